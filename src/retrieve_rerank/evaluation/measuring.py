"""From what the rows found to numbers: measures, differences, and what a reader of them should know."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from retrieve_rerank.evaluation.dataset import Dataset, counted
from retrieve_rerank.evaluation.measures import cutoff, per_query
from retrieve_rerank.evaluation.questions import holds
from retrieve_rerank.evaluation.results import SIGNIFICANT, TIE, Comparison, Latency, System
from retrieve_rerank.evaluation.significance import bootstrap_interval, holm, randomisation_p

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.running import Stage
    from retrieve_rerank.types import Hit, Retriever

_TOP = 10  # where unjudged passages are counted
_UNUSED = ("score_threshold", "time_budget")  # settings of a pipeline that cut what is measured here
_FEW = 30  # questions, below which only large differences can show


def measure(stage: Stage, dataset: Dataset, measures: Sequence[str]) -> System:
    """Return the row of a stage that has run."""
    judgements = dataset.judgements
    run = {query: tuple(hit.passage.id for hit in stage.hits[query]) for query in sorted(judgements)}
    values = per_query(measures, judgements, run)
    first = stage.first
    return System(
        name=stage.name,
        baseline=None if first is None else first.name,
        description=repr(stage.retriever if stage.search is None else stage.search.cross_encoder),
        fetch_k=stage.fetch_k,
        run=run,
        per_query=values,
        means=_means(values),
        ceiling=_ceiling(run, judgements, measures, stage.fetch_k) if first is None else {},
        unjudged={query: sum(passage not in judgements[query] for passage in ids[:_TOP]) for query, ids in run.items()},
        retrieve=_latency((stage if first is None else first).seconds),
        rerank=None if first is None else _latency(stage.seconds, estimated=stage.estimated),
        pairs=stage.pairs,
        truncated=stage.truncated,
        scores={
            query: tuple(_score(hit.score if first is None else hit.logit) for hit in stage.hits[query])
            for query in run
        },
        cut={} if first is None else {query: ranks for query in run if (ranks := _cut(stage.hits[query]))},
        total=None if first is None else _latency(_sums(first.seconds, stage.seconds), estimated=stage.estimated),
    )


def compare(systems: Sequence[System], measures: Sequence[str], *, resamples: int, seed: int) -> list[Comparison]:
    """Compare every re-ranked system with its own first stage on every measure."""
    by_name = {system.name: system for system in systems}
    pairs = [(system, by_name[system.baseline]) for system in systems if system.baseline is not None]
    comparisons = []
    for name in measures if pairs else ():
        queries = sorted(systems[0].per_query[name])
        differences = np.array(
            [
                [system.per_query[name][query] - baseline.per_query[name][query] for system, baseline in pairs]
                for query in queries
            ]
        )
        intervals = bootstrap_interval(differences, resamples=resamples, seed=seed)
        p_values = randomisation_p(differences, resamples=resamples, seed=seed).tolist()
        for (system, baseline), column, (low, high), p, p_holm in zip(
            pairs, differences.T, intervals, p_values, holm(p_values), strict=True
        ):
            wins, losses = int((column > TIE).sum()), int((column < -TIE).sum())
            comparisons.append(
                Comparison(
                    system=system.name,
                    baseline=baseline.name,
                    measure=name,
                    difference=float(column.mean()),
                    low=float(low),
                    high=float(high),
                    p=p,
                    p_holm=p_holm,
                    wins=wins,
                    ties=len(queries) - wins - losses,
                    losses=losses,
                )
            )
    return comparisons


def notes(
    stages: Sequence[Stage], systems: Sequence[System], measures: Sequence[str], dataset: Dataset
) -> tuple[str, ...]:
    """Return what the numbers do not say by themselves."""
    said = []
    if len(dataset.judgements) < _FEW:
        few = len(dataset.judgements)
        # The test cannot give less than this, however the questions turn out; corrected for many, the smallest counts
        # once for each.
        tests = max(1, sum(stage.first is not None for stage in stages))
        size = "no difference, however large," if tests * 2 * 0.5**few >= SIGNIFICANT else "small differences"
        said.append(f"Only {counted(few, 'question')}: {size} can{'' if size.startswith('no') else 'not'} show.")
    if themselves := len({query for stage in stages for query in stage.themselves}):
        found = "question is a passage" if themselves == 1 else "questions are passages"
        said.append(f"{themselves} {found} and found itself, not judged for it: left out, as in BEIR.")
    known = {passage.id for passage in dataset.passages}
    by_name = {system.name: system for system in systems}
    for stage, system in zip(stages, systems, strict=True):
        if stage.first is None:
            said += _notes_on_first_stage(stage, system, measures, known, dataset)
            continue
        before = by_name[stage.first.name]
        if system.mean_unjudged > before.mean_unjudged + 0.5:
            said.append(
                f"{system.name!r} brings unjudged passages up: {system.mean_unjudged:.1f} of the top {_TOP}, against "
                f"{before.mean_unjudged:.1f} before. They count as not relevant, so it may be better than the numbers "
                "say."
            )
        unused = [setting for setting in _UNUSED if getattr(stage.search, setting) is not None]
        if unused:
            said.append(f"{system.name!r} was measured without its {' and '.join(unused)}.")
    return tuple(said)


def _notes_on_first_stage(
    stage: Stage, system: System, measures: Sequence[str], known: set[str], dataset: Dataset
) -> list[str]:
    said = []
    deeper = [name for name in measures if (cutoff(name) or 0) > stage.fetch_k]
    if deeper:
        said.append(f"{system.name!r} fetched {stage.fetch_k}, so {', '.join(deeper)} looks at no more than that.")
    strange = sum(hit.passage.id not in known for hits in stage.hits.values() for hit in hits)
    if strange:
        share = strange / sum(map(len, stage.hits.values()))
        said.append(f"{share:.0%} of what {system.name!r} found is not among the dataset's passages.")
    there = _count(stage.retriever)
    if there is not None and there < len(dataset.passages):
        said.append(
            f"{system.name!r} searches {counted(there, 'passage')}, and the dataset has {len(dataset.passages)}: it "
            "cannot find the others."
        )
    if dataset.weak is not None and (
        given := sum(_gives_away(stage.hits[query], query, dataset) for query in stage.hits)
    ):
        said.append(
            f"{system.name!r} searches passages that hold the question word for word ({counted(given, 'question')}), "
            "which makes it trivial: index dataset.passages, where the questions are cut out."
        )
    return said


def _count(retriever: Retriever) -> int | None:
    """Return how many passages a first stage searches, if it says so; what users write may count something else."""
    try:
        count = getattr(retriever, "count", None)
        there = None if not callable(count) or inspect.iscoroutinefunction(count) else count()
    except Exception:  # noqa: BLE001 - everything has been scored by now
        return None
    return there if isinstance(there, int) else None


def _gives_away(hits: Sequence[Hit], query: str, dataset: Dataset) -> bool:
    relevance, question = dataset.judgements[query], dataset.queries[query]
    return any(relevance.get(hit.passage.id, 0) > 0 and holds(hit.passage.text, question) for hit in hits)


def _means(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(by_query.values()) / len(by_query) for name, by_query in values.items()}


def _ceiling(
    run: Mapping[str, Sequence[str]],
    judgements: Mapping[str, Mapping[str, int]],
    measures: Sequence[str],
    fetch_k: int,
) -> dict[str, float]:
    """Return what no re-ranking of these candidates can exceed. What the first stage missed stays missed."""
    perfect = {}
    for query, ids in run.items():
        relevance = judgements[query]
        perfect[query] = sorted(ids, key=lambda passage: -relevance.get(passage, 0))
    return _means(per_query(list(dict.fromkeys((f"R@{fetch_k}", *measures))), judgements, perfect))


def _score(score: float | None) -> float | None:
    """Return a score in no more digits than a look at it needs."""
    return None if score is None or not math.isfinite(score) else float(f"{score:.6g}")


def _cut(hits: Sequence[Hit]) -> tuple[int, ...]:
    return tuple(rank for rank, hit in enumerate(hits, start=1) if hit.truncated)


def _latency(seconds: Sequence[float], *, estimated: bool = False) -> Latency:
    p50, p95 = np.percentile(seconds[1:] or seconds, [50, 95])  # the first includes loading
    return Latency(float(p50), float(p95), estimated)


def _sums(retrieve: Sequence[float], rerank: Sequence[float]) -> list[float]:
    return [a + b for a, b in zip(retrieve, rerank, strict=True)]
