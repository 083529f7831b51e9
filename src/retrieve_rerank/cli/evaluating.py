"""`retrieve-rerank evaluate`: does re-ranking help on this data, and what does it cost?"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieve_rerank.cli.judging import (
    Cache,
    DatasetFolder,
    IndexFolder,
    NoCache,
    Qrels,
    Queries,
    Sample,
    SampleQuestions,
    Source,
    check_measures,
    check_outputs,
    prepared,
)
from retrieve_rerank.cli.options import (
    DEMO,
    BiEncoderName,
    CrossEncoderNames,
    Debug,
    Demo,
    Device,
    FirstStage,
    Json,
    Language,
    Models,
    PrecisionName,
    PrecisionOption,
    check_first_stages,
    model_name,
)
from retrieve_rerank.cli.streams import files_first, for_people, guarded, put, say, show, show_bars, write_files
from retrieve_rerank.cli.texts import with_examples

if TYPE_CHECKING:
    from collections.abc import Mapping

    from retrieve_rerank.evaluation.results import Evaluation
    from retrieve_rerank.retrieval.pipeline import RetrieveRerank
    from retrieve_rerank.types import Retriever

HELP = with_examples(
    "Measure whether re-ranking helps, by how much, and at what cost.\n\n"
    "DATASET is a folder in the BEIR layout; its index is kept in the cache, and so are the scores, so that a second "
    "run is fast. Or take an index of yours, with questions and judgements in files, or with weak questions that are "
    "made from its own passages.",
    "retrieve-rerank evaluate my-dataset --demo --html report.html --save evaluation.json",
    "retrieve-rerank evaluate my-dataset --demo --sample 50 --first-stage bm25 --first-stage dense --runs runs",
    "retrieve-rerank evaluate --in my-index --sample-questions 100",
)


@guarded
def evaluate(
    dataset: DatasetFolder = None,
    *,
    index: IndexFolder = None,
    queries: Queries = None,
    qrels: Qrels = None,
    sample: Sample = None,
    sample_questions: SampleQuestions = None,
    language: Language = None,
    first_stage: Annotated[
        list[FirstStage] | None,
        typer.Option(help="May be repeated; left out: hybrid, or dense where there is no BM25."),
    ] = None,
    fetch_k: Annotated[int, typer.Option(min=1, help="How many candidates to re-rank.")] = 100,
    measure: Annotated[
        list[str] | None,
        typer.Option(help="Name in ir-measures, may be repeated, the first decides; left out: nDCG@10, RR@10, R@100."),
    ] = None,
    demo: Demo = False,
    bi_encoder: BiEncoderName = None,
    cross_encoder: CrossEncoderNames = None,
    device: Device = None,
    precision: PrecisionOption = PrecisionName.AUTO,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as a page.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as Markdown.")] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write everything as JSON, for retrieve-rerank report.")
    ] = None,
    runs: Annotated[Path | None, typer.Option(metavar="DIR", help="Write TREC runs and qrels.")] = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure whether re-ranking helps."""
    from retrieve_rerank._files import write_text
    from retrieve_rerank.evaluation.measuring import evaluate as run

    check_outputs(html, markdown, save, cache, folder=runs, inputs=[dataset, queries, qrels], index=index)
    measures, names = check_measures(measure), check_first_stages(first_stage)
    source = Source(dataset, index, queries, qrels, sample, sample_questions, language)
    models = Models(model_name(bi_encoder, demo=demo), None, device, precision)
    with ExitStack() as opened:
        ground = opened.enter_context(prepared(source, models, names))
        stages = opened.enter_context(ground.stages(names))
        pipelines = _pipelines(stages, cross_encoders(cross_encoder, index, demo=demo), models, fetch_k, opened)
        evaluation = run(
            pipelines,
            ground.dataset,
            measures,
            fetch_k=fetch_k,
            cache=ground.cache(cache, without=no_cache),
            show_progress=show_bars(),
        )
    with files_first(lambda: _tell(evaluation, json=json)) as written:
        write_files(
            written,
            ("evaluation", save, evaluation.to_json),  # what holds everything first
            ("report", html, evaluation.to_html),
            ("table", markdown, lambda path: write_text(evaluation.to_markdown(), path, "the table")),
            ("runs", runs, evaluation.to_runs),
        )


def cross_encoders(given: list[str] | None, index: Path | None, *, demo: bool) -> list[str | None]:
    """Return which cross-encoders to use: those given, else the index's own, else the default one."""
    from retrieve_rerank.cli.index_folder import Library

    if given:
        return [model_name(name, demo=demo) for name in dict.fromkeys(given)]
    if demo or index is None:
        return [model_name(None, demo=demo)]
    return [Library.open(index).record.cross_encoder]


def short_names(models: list[str | None]) -> dict[str | None, str]:
    """Return what tables call cross-encoders: the end of the name, where that is enough."""
    ends = {model: DEMO if model == DEMO else Path(model or "default").name for model in models}
    return ends if len(set(ends.values())) == len(ends) else {model: model or "default" for model in models}


def _pipelines(
    stages: Mapping[str, Retriever],
    names: list[str | None],
    models: Models,
    fetch_k: int,
    opened: ExitStack,
) -> Mapping[str, Retriever | RetrieveRerank]:
    from dataclasses import replace

    from retrieve_rerank.retrieval.pipeline import RetrieveRerank

    pipelines: dict[str, Retriever | RetrieveRerank] = {**stages}
    shown = short_names(names)
    for name in names:
        scorer = opened.enter_context(replace(models, cross_encoder=name).make_cross_encoder())
        for stage, retriever in stages.items():
            pipelines[f"{stage} → {shown[name]}"] = RetrieveRerank(retriever, scorer, fetch_k=fetch_k)
    return pipelines


def _tell(evaluation: Evaluation, *, json: bool) -> None:
    if for_people(json=json):
        from retrieve_rerank.cli.tables import evaluated

        show(*evaluated(evaluation))
        return
    for note in evaluation.notes:
        say(f"note: {note}")
    changes = {change.system: change for change in evaluation.comparisons if change.measure == evaluation.measures[0]}
    for system in evaluation.systems:
        change = changes.get(system.name)
        put(
            {
                "dataset": evaluation.dataset,
                "weak": evaluation.weak,
                "questions": len(evaluation.judgements),
                "system": system.name,
                "baseline": system.baseline,
                "fetch_k": system.fetch_k,
                "means": system.means,
                "ceiling": system.ceiling,
                "verdict": None if change is None else change.verdict,
                "change": None if change is None else change.difference,
                "interval": None if change is None else [change.low, change.high],
                "p": None if change is None else change.p_holm,
                "retrieve_p50_seconds": system.retrieve.p50,
                "retrieve_p95_seconds": system.retrieve.p95,
                "rerank_p50_seconds": None if system.rerank is None else system.rerank.p50,
                "rerank_p95_seconds": None if system.rerank is None else system.rerank.p95,
                "rerank_estimated": system.rerank is not None and system.rerank.estimated,
            }
        )
