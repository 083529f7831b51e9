"""`retrieve-rerank search`: questions to an index, before and after re-ranking."""

from __future__ import annotations

import json as jsons
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieve_rerank.cli.folder import IndexFolder, first_stages, folded
from retrieve_rerank.cli.options import (
    CrossEncoderName,
    Debug,
    Demo,
    Device,
    FirstStage,
    Json,
    Models,
    PrecisionName,
    PrecisionOption,
    RerankWeight,
    model_name,
)
from retrieve_rerank.cli.streams import arriving, for_people, guarded, put, say, show, with_examples
from retrieve_rerank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from retrieve_rerank.models.cross_encoder import CrossEncoder
    from retrieve_rerank.retrieval.saved import SavedSetting
    from retrieve_rerank.search_result import SearchResult
    from retrieve_rerank.types import Hit, Retriever

HELP = with_examples(
    "Search an index, and show what re-ranking changed.\n\n"
    "QUERY - reads questions from stdin, one a line. A table shows each passage with its rank before; JSON lines hold "
    "all that is known of it, its text included.",
    'retrieve-rerank search "how do I install it?" --in my-index',
    'retrieve-rerank search "how do I install it?" --in my-index --no-rerank --first-stage bm25',
    'retrieve-rerank search "how do I install it?" --in my-index --setting setting.json',
    "retrieve-rerank search 'what is new?' --in my-index --where source=docs/search.md",
    "retrieve-rerank search - --in my-index --top-n 1 --json < questions.txt",
)

_CONDITION = re.compile(r"([^=!<>]+?)\s*(=|!=|>=|<=|>|<)\s*(.*)", re.DOTALL)
_OPERATORS = {"=": "$eq", "!=": "$ne", ">=": "$gte", "<=": "$lte", ">": "$gt", "<": "$lt"}


@guarded
def search(
    query: Annotated[str, typer.Argument(help="The question, or - for stdin.", show_default=False)],
    *,
    index: Annotated[Path, typer.Option("--in", metavar="DIR", help="Folder of an index.")],
    top_n: Annotated[int, typer.Option(min=1, metavar="N", help="How many passages to show.")] = 5,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="Only passages with this field; also != < <= > >=; may be repeated."),
    ] = None,
    setting: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Search as tune --save says; the options below change it.")
    ] = None,
    fetch_k: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many candidates to re-rank; usually 100.")
    ] = None,
    first_stage: Annotated[
        FirstStage | None, typer.Option(help="Left out: hybrid, or dense where there is no BM25.")
    ] = None,
    rerank: Annotated[
        bool | None, typer.Option("--rerank/--no-rerank", help="Re-rank, which is usual, or show what retrieval found.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="N", help="Leave out passages whose relevance is below."),
    ] = None,
    rerank_weight: RerankWeight = None,
    demo: Demo = False,
    cross_encoder: CrossEncoderName = None,
    device: Device = None,
    precision: PrecisionOption = PrecisionName.AUTO,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Search an index, and show what re-ranking changed."""
    from retrieve_rerank.models.settings import reading_back
    from retrieve_rerank.retrieval.pipeline import RetrieveRerank

    folder = IndexFolder.open(index)
    record = folder.record
    saved = None if setting is None else _saved(setting)
    stage = _stage(first_stage, saved, folder)
    deep = fetch_k or (max(100, top_n) if saved is None else saved.fetch_k)
    chosen = model_name(cross_encoder, demo=demo)
    options = _filter(where or [])
    models = Models(record.bi_encoder, chosen or record.cross_encoder, device, precision)
    ask: Callable[[str], SearchResult]
    with ExitStack() as opened:
        encoder = opened.enter_context(models.make_bi_encoder())
        stages = opened.enter_context(first_stages(index, [stage], encoder, record.language))
        reranked = rerank if rerank is not None else saved is None or saved.reranked
        folder.tell(cross_encoder=reranked and chosen is None and saved is None)
        if threshold is not None and not reranked:
            raise typer.BadParameter("--threshold is compared with the relevance, which only re-ranking gives")
        if rerank_weight is not None and not reranked:
            raise typer.BadParameter("--rerank-weight is for an order that re-ranking makes, and nothing is re-ranked")
        if reranked:
            if deep < top_n:
                say(f"note: only {deep} candidates are re-ranked, so there are no {top_n} to show; raise --fetch-k")
            tuned = saved is not None and saved.reranked and chosen is None
            # An address that only the folder names, which somebody else may have made, gets no key of this machine.
            with reading_back(() if chosen is None else ("endpoint",)):
                made = _tuned(saved, setting, device, precision) if saved and tuned else models.make_cross_encoder()
            scorer = opened.enter_context(made)
            # All of them, to say what became of those that were at the top before.
            usual = 1.0 if saved is None else saved.rerank_weight
            pipeline = RetrieveRerank(
                stages[stage],
                scorer,
                fetch_k=deep,
                top_n=deep,
                score_threshold=threshold,
                rerank_weight=usual if rerank_weight is None else rerank_weight,
            )
            ask = partial(pipeline.search, **options)
        else:
            ask = partial(_retrieved, stages[stage], max(deep, top_n), options)
        bad = 0
        for number, text in enumerate(_queries(query)):
            result = _asked(ask, text) if query == "-" else ask(query)
            if result is None:
                bad += 1
            else:
                _answer(result, top_n, stage, json=json, loading=number == 0)
    if bad:
        raise typer.Exit(1)


def _saved(file: Path) -> SavedSetting:
    from retrieve_rerank.retrieval.saved import load_setting

    saved = load_setting(file)
    if saved.first_stage not in {stage.value for stage in FirstStage}:
        raise InvalidInputError(
            f"{file} is for a first stage {saved.first_stage!r}, which an index does not have; expected a setting that "
            "retrieve-rerank tune --save wrote"
        )
    return saved


def _stage(given: FirstStage | None, saved: SavedSetting | None, folder: IndexFolder) -> str:
    stage = "dense"
    if given is not None:
        stage = given.value
    elif saved is not None:
        stage = saved.first_stage
    elif folder.has_words:
        stage = "hybrid"
    folder.check_stages([stage])
    return stage


def _tuned(saved: SavedSetting, file: Path | None, device: str | None, precision: PrecisionName) -> CrossEncoder:
    """Return the cross-encoder of a setting, in another precision if one is asked for."""
    if saved.model is None:
        raise InvalidInputError(
            f"{file} does not say how {saved.cross_encoder!r} is made; name the model with --cross-encoder"
        )
    changes: dict[str, Any] = {} if device is None else {"device": device}
    if precision is not PrecisionName.AUTO:
        changes["precision"] = precision.value
    return saved.make_cross_encoder(**changes)


def _retrieved(retriever: Retriever, deep: int, options: Mapping[str, Any], query: str) -> SearchResult:
    """Search without re-ranking, as deep as with it: what a hybrid puts first depends on that."""
    import time

    from retrieve_rerank.checks import check_query
    from retrieve_rerank.search_result import SearchResult, Timings

    start = time.perf_counter()
    found = tuple(retriever.retrieve(check_query(query), deep, **options))
    return SearchResult(query, found, found, Timings(time.perf_counter() - start, 0.0))


def _filter(conditions: Sequence[str]) -> Mapping[str, Any]:
    """Return conditions as the option of a first stage: none, or all of them."""
    clauses = [_clause(condition) for condition in conditions]
    if not clauses:
        return {}
    return {"where": clauses[0] if len(clauses) == 1 else {"$and": clauses}}


def _clause(condition: str) -> dict[str, Any]:
    """Return one condition in Chroma's language. What looks like a number may be stored as one or as text."""
    parts = _CONDITION.fullmatch(condition)
    if parts is None:
        raise typer.BadParameter(f"--where {condition!r} is no condition; write FIELD=VALUE, such as year>=2020")
    name, sign, text = parts.groups()
    try:
        value = jsons.loads(text)
    except (ValueError, RecursionError):
        value = text
    compared = _OPERATORS[sign]
    if not isinstance(value, (int, float)):
        if compared not in ("$eq", "$ne"):
            raise typer.BadParameter(f"--where {condition!r} compares with {text!r}, which is no number")
        return {name: {compared: text}}
    if compared not in ("$eq", "$ne"):
        return {name: {compared: value}}
    both = [{name: {compared: value}}, {name: {compared: text}}]
    return {"$or" if compared == "$eq" else "$and": both}


def _asked(ask: Callable[[str], SearchResult], text: str | None) -> SearchResult | None:
    """Ask one of several questions; one that cannot be used, such as one that is too long, is said, and is None."""
    if text is None:
        return None
    try:
        return ask(text)
    except InvalidInputError as error:
        say(f"retrieve-rerank: {text[:60]!r}: {error}")
        return None


def _queries(query: str) -> Iterator[str | None]:
    """Yield the questions; None for a line that is none, which is said."""
    if query != "-":
        yield query
        return
    for number, line in enumerate(chain.from_iterable(arriving(0)), start=1):
        text = _decoded(line, number)
        if text != "":
            yield text


def _decoded(line: bytes, number: int) -> str | None:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError:
        say(f"retrieve-rerank: line {number} of stdin is not UTF-8")
        return None


def _answer(result: SearchResult, top_n: int, stage: str, *, json: bool, loading: bool) -> None:
    if not for_people(json=json):
        for hit, others in folded(result.hits)[:top_n]:
            put(_record(result.query, hit, others))
        return
    from retrieve_rerank.cli.tables import searched

    show(*searched(result, top_n))
    took = result.timings
    what = f", re-ranked in {took.rerank_seconds:.2f} s" if took.rerank_seconds else ""
    first = "; loading the models is in these times" if loading else ""
    say(f"{len(result.candidates)} candidates found in {took.retrieve_seconds:.2f} s ({stage}){what}{first}")


def _record(query: str, hit: Hit, others: Sequence[str]) -> Mapping[str, object]:
    ranks = {"retrieval_ranks": hit.retrieval_ranks} if hit.retrieval_ranks else {}
    return {
        "query": query,
        "rank": hit.rank,
        "score": hit.score,
        "logit": hit.logit,
        **({} if hit.combined_score is None else {"combined_score": hit.combined_score}),
        "retrieval_rank": hit.retrieval_rank,
        "retrieval_score": hit.retrieval_score,
        **ranks,
        "truncated": hit.truncated,
        "id": hit.passage.id,
        "text": hit.passage.text,
        **({"also_in": list(others)} if others else {}),
        "metadata": dict(hit.passage.metadata),
    }
