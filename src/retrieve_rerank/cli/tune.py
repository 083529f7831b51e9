"""`retrieve-rerank tune`: which setting to search with."""

from __future__ import annotations

import math
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieve_rerank.cli.evaluate import (
    Cache,
    DatasetFolder,
    IndexOption,
    NoCache,
    Qrels,
    Queries,
    Sample,
    SampleQuestions,
    Source,
    check_measures,
    check_outputs,
    cross_encoders,
    prepared,
    short_names,
)
from retrieve_rerank.cli.options import (
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
    check_first_stages,
    has_bm25,
    model_name,
)
from retrieve_rerank.cli.streams import (
    files_first,
    for_people,
    guarded,
    put,
    say,
    show,
    show_bars,
    with_examples,
    write_files,
)

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.choosing import Setting, Tuning
    from retrieve_rerank.models.cross_encoder import CrossEncoder

HELP = with_examples(
    "Find the first stage, the depth, the cross-encoder and its weight to search with.\n\n"
    "Tries first stages at many depths, each without re-ranking and with many weights of the cross-encoder, and takes "
    "the best that fits --latency-budget, or the fastest that reaches --quality. An index without judgements is tuned "
    "on 100 weak questions made from its own passages. What --save writes, search --setting takes. Where nothing meets "
    "what was asked for, the closest is written, and the status is 1.",
    "retrieve-rerank tune --in my-index --latency-budget 300ms --save setting.json",
    "retrieve-rerank tune my-dataset --demo --quality 0.5 --save setting.json --html tuning.html",
)

_WEAK = 100  # questions that are made where there are none
_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s)")


def _seconds(text: str) -> float:
    found = _TIME.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(f"{text!r} is no time; write 300ms or 0.3s")
    return float(found[1]) / (1000 if found[2] == "ms" else 1)


@guarded
def tune(
    dataset: DatasetFolder = None,
    *,
    index: IndexOption = None,
    queries: Queries = None,
    qrels: Qrels = None,
    sample: Sample = None,
    sample_questions: SampleQuestions = None,
    language: Language = None,
    latency_budget: Annotated[
        float | None,
        typer.Option(parser=_seconds, metavar="TIME", help="What 19 of 20 questions may take here: 300ms, 0.3s."),
    ] = None,
    quality: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="N", help="Mean of the measure that is enough; left out: the best."),
    ] = None,
    first_stage: Annotated[
        list[FirstStage] | None, typer.Option(metavar="hybrid|bm25|dense", help="May be repeated; left out: all.")
    ] = None,
    depth: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N", help="Candidates to re-rank; may be repeated; left out: 5 to 100."),
    ] = None,
    rerank_weight: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            max=1,
            metavar="N",
            help="How much the cross-encoder counts in the order; may be repeated; left out: 0.1, 0.2 … 1.",
        ),
    ] = None,
    measure: Annotated[str, typer.Option(metavar="NAME", help="Name in ir-measures.")] = "nDCG@10",
    demo: Demo = False,
    bi_encoder: BiEncoderName = None,
    cross_encoder: CrossEncoderNames = None,
    device: Device = None,
    precision: Annotated[
        list[PrecisionName] | None,
        typer.Option(
            metavar="auto|float32|bfloat16|float16", help="Of the cross-encoder; may be repeated; left out: auto."
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the setting, for search --setting.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as a page.")] = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Find the setting to search with."""
    from retrieve_rerank.evaluation.running import WEIGHTS
    from retrieve_rerank.evaluation.tune import DEPTHS
    from retrieve_rerank.evaluation.tune import tune as run

    check_outputs(save, html, cache, inputs=[dataset, queries, qrels], index=index)
    (name,) = check_measures([measure])
    every = list(FirstStage) if has_bm25() else [FirstStage.DENSE]
    names = check_first_stages(first_stage or every)
    source = Source(dataset, index, queries, qrels, sample, sample_questions, language)
    models = Models(model_name(bi_encoder, demo=demo), None, device)
    with ExitStack() as opened:
        ground = opened.enter_context(prepared(source, models, names, weak=_WEAK))
        stages = opened.enter_context(ground.stages(names))
        tuning = run(
            dict(stages),
            _scorers(
                cross_encoders(cross_encoder, index, demo=demo), precision or [PrecisionName.AUTO], models, opened
            ),
            ground.dataset,
            measure=name,
            depths=depth or DEPTHS,
            rerank_weights=rerank_weight or WEIGHTS,
            latency_budget=latency_budget,
            quality=quality,
            cache=ground.cache(cache, without=no_cache),
            show_progress=show_bars(),
        )
    with files_first(lambda: _tell(tuning, json=json)) as written:
        write_files(written, ("setting", save, tuning.save), ("report", html, tuning.to_html))
    if not tuning.met:  # a script must not go on as if the setting kept the budget
        say(f"retrieve-rerank: {tuning.reason}")
        raise typer.Exit(1)


def _scorers(
    names: list[str | None], given: list[PrecisionName] | None, models: Models, opened: ExitStack
) -> dict[str, CrossEncoder]:
    precisions = list(dict.fromkeys(given or [PrecisionName.AUTO]))
    shown = short_names(names)
    made = {}
    for name in names:
        for precision in precisions:
            called = shown[name] if len(precisions) == 1 else f"{shown[name]}, {precision.value}"
            scorer = replace(models, cross_encoder=name, precision=precision).make_cross_encoder()
            made[called] = opened.enter_context(scorer)
    return made


def _tell(tuning: Tuning, *, json: bool) -> None:
    if for_people(json=json):
        from retrieve_rerank.cli.tables import tuned

        show(*tuned(tuning))
        return
    for note in tuning.notes:
        say(f"note: {note}")
    shown = list(tuning.frontier)
    if tuning.chosen not in shown:
        shown.append(tuning.chosen)
    for setting in shown:
        put(_record(tuning, setting))


def _record(tuning: Tuning, setting: Setting) -> dict[str, object]:
    return {
        "dataset": tuning.dataset,
        "weak": tuning.weak,
        "questions": tuning.questions,
        "chosen": setting == tuning.chosen,
        "setting": setting.name,
        "first_stage": setting.first_stage,
        "fetch_k": setting.fetch_k,
        "cross_encoder": setting.cross_encoder,
        "rerank_weight": setting.rerank_weight,
        "precision": setting.precision,
        "measure": tuning.measure,
        "quality": setting.quality if math.isfinite(setting.quality) else None,
        "interval": [setting.low, setting.high],
        "pairs": setting.pairs,
        "p50_seconds": setting.latency.p50,
        "p95_seconds": setting.latency.p95,
        "estimated": setting.latency.estimated,
    }
