"""`retrieve-rerank rerank`: JSON lines in, the same re-ranked out, as they come."""

from __future__ import annotations

import json as jsons
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieve_rerank.cli.options import (
    CrossEncoderName,
    Debug,
    Demo,
    Device,
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
    from retrieve_rerank.models.cross_encoder import CrossEncoder
    from retrieve_rerank.types import Hit, Passage

HELP = with_examples(
    'Re-rank the passages of JSON lines, {"query": …, "passages": […]}.\n\n'
    'A passage is a text or {"id": …, "text": …, "metadata": {…}}. Every line is answered as soon as it is there, by '
    'one line: what it held, with "hits" for "passages", best first, each with what the passage held; "index" is its '
    "place in the line, from 0. With a --rerank-weight below 1 the order in the line counts, too. Lines that "
    "cannot be used are named on stderr, and the status is 1 in the end.",
    "retrieve-rerank rerank pairs.jsonl --demo",
    "cat pairs.jsonl | retrieve-rerank rerank - --demo --top-n 3 > ranked.jsonl",
)

_TOGETHER = 32  # lines re-ranked at once, if there are as many


@guarded
def rerank(
    file: Annotated[str, typer.Argument(help="A file of JSON lines, or - for stdin.")] = "-",
    *,
    top_n: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many passages to keep; left out: all.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, metavar="N", help="Leave out passages whose relevance is below.")
    ] = None,
    rerank_weight: RerankWeight = None,
    demo: Demo = False,
    cross_encoder: CrossEncoderName = None,
    device: Device = None,
    precision: PrecisionOption = PrecisionName.AUTO,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Re-rank the passages of JSON lines."""
    models = Models(None, model_name(cross_encoder, demo=demo), device, precision)
    options = {"top_n": top_n, "score_threshold": threshold}
    options["rerank_weight"] = 1.0 if rerank_weight is None else rerank_weight
    bad = 0
    with ExitStack() as opened:
        stream = 0 if file == "-" else opened.enter_context(_opened(Path(file))).fileno()
        if file == "-" and sys.stdin is not None and sys.stdin.isatty():
            say('Type lines such as {"query": "capital of France?", "passages": ["Paris.", "Rome."]}; Ctrl-D ends.')
        scorer = opened.enter_context(models.make_cross_encoder())
        for lines in _batches(stream):
            bad += _answer(lines, scorer, options, json=json)
    if bad:
        say(f"retrieve-rerank: {bad} line{'s' * (bad != 1)} could not be used")
        raise typer.Exit(1)


def _opened(file: Path) -> Any:
    try:
        return file.open("rb", buffering=0)
    except OSError as error:
        raise InvalidInputError(f"{file} cannot be read: {error.strerror}") from error


def _batches(stream: int) -> Iterator[list[tuple[int, bytes]]]:
    """Yield lines with their numbers: those that are there by now, without waiting for more."""
    number = 0
    for lines in arriving(stream):
        numbered = list(enumerate(lines, start=number + 1))
        number += len(lines)
        for start in range(0, len(numbered), _TOGETHER):
            yield numbered[start : start + _TOGETHER]


@dataclass(slots=True)
class _Line:
    """A line that can be used, and what became of it."""

    number: int
    query: str
    passages: list[Passage]
    others: Mapping[str, object]
    items: list[dict[str, object]]  # what the passages held
    hits: list[Hit] | None = None
    problem: str | None = None


def _answer(lines: Sequence[tuple[int, bytes]], scorer: CrossEncoder, options: Mapping[str, Any], *, json: bool) -> int:
    """Answer lines in their order, ranked with these options of the scorer; return how many could not be."""
    bad = 0
    parsed = [line for number, raw in lines if (line := _parsed(number, raw)) is not None]
    good = [line for line in parsed if line.problem is None]
    try:
        ranked = scorer.rank_many([line.query for line in good], [line.passages for line in good], **options)
        for line, hits in zip(good, ranked, strict=True):
            line.hits = hits
    except InvalidInputError:  # one of them; each by itself shows which
        for line in good:
            _answer_alone(line, scorer, options)
    for line in parsed:
        if line.hits is None:
            bad += 1
            say(f"retrieve-rerank: line {line.number}: {line.problem}")
        else:
            _write(line, line.hits, json=json)
    return bad


def _answer_alone(line: _Line, scorer: CrossEncoder, options: Mapping[str, Any]) -> None:
    try:
        line.hits = scorer.rank(line.query, line.passages, **options)
    except InvalidInputError as error:
        line.problem = str(error)


def _parsed(number: int, raw: bytes) -> _Line | None:
    """Return a line, None if it is blank."""
    if not raw.strip():
        return None
    line = _Line(number, "", [], {}, [])
    try:
        record = jsons.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
        line.query, line.passages = _pair(record)
        line.items = [item if isinstance(item, dict) else {} for item in record["passages"]]
        line.others = {name: value for name, value in record.items() if name not in ("query", "passages", "hits")}
        jsons.dumps([line.others, *line.items], allow_nan=False)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        line.problem = f"not usable as JSON: {error}" if not isinstance(error, InvalidInputError) else str(error)
    return line


def _pair(record: Any) -> tuple[str, list[Passage]]:
    from retrieve_rerank.checks import check_query
    from retrieve_rerank.types import Passage

    if not isinstance(record, dict):
        raise InvalidInputError('expected an object, {"query": …, "passages": […]}')
    items = record.get("passages")
    if not isinstance(items, list):
        raise InvalidInputError('"passages" must be a list of texts or objects')
    passages = []
    for place, item in enumerate(items):
        if isinstance(item, str):
            passages.append(Passage(str(place), item))
        elif isinstance(item, dict) and isinstance(item.get("text"), str):
            identifier = item.get("id")
            metadata = item.get("metadata") or {}
            named = str(place if identifier is None or identifier == "" else identifier)
            passages.append(Passage(named, item["text"], metadata))
        else:
            raise InvalidInputError(f'passages[{place}] must be a text or an object with "text"')
    return check_query(record.get("query", ""), '"query"'), passages


def _write(line: _Line, hits: Sequence[Hit], *, json: bool) -> None:
    if for_people(json=json):
        from retrieve_rerank.cli.tables import reranked

        show(*reranked(line.query, hits))
        return
    found = []
    for hit in hits:
        item = line.items[hit.index or 0]
        ours = {
            "rank": hit.rank,
            "index": hit.index,
            "id": hit.passage.id if item.get("id") in (None, "") else item["id"],
            "score": hit.score,
            "logit": hit.logit,
            **({} if hit.combined_score is None else {"combined_score": hit.combined_score}),
            "truncated": hit.truncated,
            "text": hit.passage.text,
        }
        found.append({**ours, **{name: value for name, value in item.items() if name not in ours}})
    put({**line.others, "query": line.query, "hits": found})
