"""From pipelines to an evaluation: what their rows found as measures, differences, notes and examples."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np

from retrieve_rerank.checks import check_count
from retrieve_rerank.evaluation.dataset import Dataset, check_dataset, counted
from retrieve_rerank.evaluation.measures import check_measures, cutoff, per_query
from retrieve_rerank.evaluation.questions import holds
from retrieve_rerank.evaluation.results import SIGNIFICANT, TIE, Comparison, Evaluation, Latency, System
from retrieve_rerank.evaluation.running import WEIGHTS, Stage, plan_stages, run, run_at_weight
from retrieve_rerank.evaluation.significance import bootstrap_interval, check_draws, holm, mean, randomisation_p
from retrieve_rerank.evaluation.store import open_store
from retrieve_rerank.retrieval.pipeline import RetrieveRerank
from retrieve_rerank.search_result import cut
from retrieve_rerank.types import Retriever

_TOP = 10  # where unjudged passages are counted
_UNUSED = ("score_threshold", "time_budget")  # settings of a pipeline that cut what is measured here
_WORTH_SAYING = 0.005  # of the first measure: what another weight must gain before a reader is told
_FEW = 30  # questions, below which only large differences can show
SHOWN = 10  # ranks of each side
_EXAMPLES = 5  # questions that gained, and that lost
_LONGEST_TEXT = 240  # characters of a text that are kept


def evaluate(
    pipelines: Mapping[str, RetrieveRerank | Retriever],
    dataset: Dataset,
    measures: Sequence[str] = ("nDCG@10", "RR@10", "R@100"),
    *,
    fetch_k: int = 100,
    resamples: int = 10_000,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    show_progress: bool = False,
) -> Evaluation:
    """Measure what each pipeline's first stage finds, what re-ranking makes of it, and what that costs.

    All candidates are ranked and measured: `top_n`, `score_threshold`, `time_budget` and `on_error` of a pipeline are
    for its users and have no effect here, and errors come out. Only what the first stage found is ranked; relevant
    passages that it missed stay missed. A first stage that several pipelines share (the same object, the same
    `fetch_k`) is asked once, and a cross-encoder that they share reads each pair of question and text once. Each
    question is searched on its own, as a user's is; the first one, which includes loading, is left out of the latency.

    In some datasets, such as ArguAna and Quora, the questions are passages, and would find themselves: as in BEIR, a
    passage that has a question's id, and holds its text, is left out of what is found for it, unless it is judged for
    it. A note says so.

    Args:
        pipelines: `RetrieveRerank` objects, or first stages alone, by name. For each `RetrieveRerank` there are two
            rows: its first stage, and under its name the re-ranked result. They must search the dataset's passages.
        dataset: Questions with judgements; `dataset.sample(n)` takes fewer questions.
        measures: Names of ir-measures. The first one decides the answer.
        fetch_k: Depth of first stages that are given alone.
        resamples: Of the bootstrap and of the randomisation test.
        seed: Of both.
        cache: An SQLite file that keeps every score, by the cross-encoder's `fingerprint`, question and text; made if
            missing. Broken off and run again, or run with a further pipeline, an evaluation reads only what is new.
        show_progress: Show a bar on stderr.

    Returns:
        The results per question, means, differences with intervals and p-values, and the answer.

    Raises:
        InvalidInputError: If an argument cannot be used; measures are checked before anything is searched.

    Example:
        >>> from retrieve_rerank import BiEncoder, ChromaIndex, CrossEncoder, RetrieveRerank
        >>> from retrieve_rerank.evaluation import Dataset, evaluate
        >>> texts = {"p1": "Paris is the capital of France.", "p2": "Rome is the capital of Italy."}
        >>> dataset = Dataset("toy", texts, {"q1": "What is the capital of Italy?"}, {"q1": {"p2": 1}})
        >>> with ChromaIndex(BiEncoder(bi_encoder_path)) as index, CrossEncoder(cross_encoder_path) as model:
        ...     report = index.add(dataset.passages)
        ...     evaluation = evaluate({"re-ranked": RetrieveRerank(index, model, fetch_k=2)}, dataset)
        >>> [system.name for system in evaluation.systems]
        ['first stage of re-ranked', 're-ranked']
        >>> evaluation["re-ranked"].means["RR@10"]
        1.0
    """
    check_dataset(dataset)
    names = check_measures(measures, dataset.judgements)
    resamples, seed = check_draws(resamples, seed)
    plan = plan_stages(pipelines, check_count(fetch_k, "fetch_k"))
    with nullcontext() if cache is None else open_store(cache) as store:
        run(plan, dataset, store, show_progress=show_progress)
    systems = [
        replace(
            measure(stage, dataset, names),
            by_weight=_by_weight(stage, dataset, names[0], resamples=resamples, seed=seed),
        )
        for stage in plan
    ]
    queries = {query: dataset.queries[query] for query in sorted(dataset.judgements)}
    return Evaluation(
        dataset=dataset.name,
        weak=dataset.weak,
        measures=names,
        judgements=dataset.judgements,
        systems=tuple(systems),
        comparisons=tuple(compare(systems, names, resamples=resamples, seed=seed)),
        notes=(*dataset.notes, *notes(plan, systems, names, dataset)),
        passages=len(dataset.passages),
        resamples=resamples,
        seed=seed,
        queries=queries,
        texts=texts_of(plan, systems, names[0]),
    )


def measure(stage: Stage, dataset: Dataset, measures: Sequence[str]) -> System:
    """Return the row of a stage that has run."""
    judgements = dataset.judgements
    run = {query: tuple(hit.passage.id for hit in stage.hits[query]) for query in sorted(judgements)}
    values = per_query(measures, judgements, run)
    first = stage.first
    unread = {
        query: tuple(rank for rank, hit in enumerate(stage.hits[query], start=1) if hit.truncated) for query in run
    }
    ceiling = {}
    if first is None:
        reached = list(dict.fromkeys((f"R@{stage.fetch_k}", *measures)))
        best = per_query(reached, judgements, perfect(run, judgements))
        ceiling = {name: mean_of(known) for name, known in best.items()}
    both = [a + b for a, b in zip(first.seconds, stage.seconds, strict=True)] if first is not None else []
    return System(
        name=stage.name,
        baseline=None if first is None else first.name,
        description=_description(stage),
        fetch_k=stage.fetch_k,
        run=run,
        per_query=values,
        means={name: mean_of(known) for name, known in values.items()},
        ceiling=ceiling,
        unjudged={query: sum(passage not in judgements[query] for passage in ids[:_TOP]) for query, ids in run.items()},
        retrieve=latency((stage if first is None else first).seconds),
        rerank=None if first is None else latency(stage.seconds, estimated=stage.estimated),
        pairs=stage.pairs,
        truncated=stage.truncated,
        scores={
            query: tuple(_score(hit.score if first is None else hit.logit) for hit in stage.hits[query])
            for query in run
        },
        cut={} if first is None else {query: ranks for query, ranks in unread.items() if ranks},
        total=None if first is None else latency(both, estimated=stage.estimated),
        rerank_weight=None if stage.search is None else stage.search.rerank_weight,
    )


def _description(stage: Stage) -> str:
    """Return what a row is made of, with the weight where both stages vote."""
    if stage.search is None:
        return repr(stage.retriever)
    weight = "" if stage.search.rerank_weight == 1 else f" with rerank_weight={stage.search.rerank_weight:g}"
    return f"{stage.search.cross_encoder!r}{weight}"


def _by_weight(
    stage: Stage, dataset: Dataset, measure: str, *, resamples: int, seed: int
) -> dict[float, tuple[float, float, float]]:
    """Return the mean of a measure and its interval by weight, of a re-ranking that has run."""
    if stage.first is None:
        return {}
    weights = (0.0, *WEIGHTS)
    rows = [per_query([measure], dataset.judgements, run_at_weight(stage, weight))[measure] for weight in weights]
    found = zip(weights, rows, intervals(rows, resamples=resamples, seed=seed), strict=True)
    return {weight: (mean_of(values), low, high) for weight, values, (low, high) in found}


def intervals(rows: Sequence[Mapping[str, float]], *, resamples: int, seed: int) -> list[tuple[float, float]]:
    """Return the 95 % bootstrap interval of the mean of each row of values by question."""
    questions = sorted({question for row in rows for question in row})
    columns = np.array([[row.get(question, np.nan) for row in rows] for question in questions or [""]])
    return [(low, high) for low, high in bootstrap_interval(columns, resamples=resamples, seed=seed).tolist()]


def compare(systems: Sequence[System], measures: Sequence[str], *, resamples: int, seed: int) -> list[Comparison]:
    """Compare every re-ranked system with its own first stage on every measure, where both have a value."""
    by_name = {system.name: system for system in systems}
    pairs = [(system, by_name[system.baseline]) for system in systems if system.baseline is not None]
    comparisons = []
    for name in measures if pairs else ():
        differences = np.array(
            [
                [
                    system.per_query[name].get(query, np.nan) - baseline.per_query[name].get(query, np.nan)
                    for system, baseline in pairs
                ]
                for query in sorted(systems[0].run)
            ]
        )
        intervals = bootstrap_interval(differences, resamples=resamples, seed=seed)
        p_values = randomisation_p(differences, resamples=resamples, seed=seed).tolist()
        for (system, baseline), column, (low, high), p, p_holm in zip(
            pairs, differences.T, intervals, p_values, holm(p_values), strict=True
        ):
            comparisons.append(
                Comparison(
                    system=system.name,
                    baseline=baseline.name,
                    measure=name,
                    difference=float(mean(column)),
                    low=float(low),
                    high=float(high),
                    p=p,
                    p_holm=p_holm,
                    wins=int((column > TIE).sum()),
                    ties=int((abs(column) <= TIE).sum()),
                    losses=int((column < -TIE).sum()),
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
    for name in measures:
        if missing := {query for system in systems for query in system.run.keys() - system.per_query[name].keys()}:
            said += [
                f"{name} has no value for {counted(len(missing), 'question')} of some system, as ir-measures defines "
                "it: each mean is of the others, and changes are of those that have a value before and after."
            ]
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
        weight, (best, *_) = max(system.by_weight.items(), key=lambda item: (item[1][0], item[0]))
        if weight and best > system.means[measures[0]] + _WORTH_SAYING:
            said.append(
                f"{system.name!r} with rerank_weight={weight:g} would have {measures[0]} {best:.3f}, the highest by "
                "tenths on these questions; tune chooses a weight, and says what it is worth on others."
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
    given = sum(
        any(dataset.judgements[query].get(hit.passage.id, 0) > 0 and holds(hit.passage.text, question) for hit in hits)
        for query, hits in stage.hits.items()
        if dataset.weak is not None and (question := dataset.queries[query])
    )
    if given:
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


def mean_of(values: Mapping[str, float]) -> float:
    """Return the mean of the questions that have a value; NaN, as ir-measures has it, where none has."""
    return sum(values.values()) / len(values) if values else math.nan


def perfect(run: Mapping[str, Sequence[str]], judgements: Mapping[str, Mapping[str, int]]) -> dict[str, list[str]]:
    """Return what no re-ranking of these candidates can exceed. What the first stage missed stays missed."""
    return {query: sorted(ids, key=lambda passage: -judgements[query].get(passage, 0)) for query, ids in run.items()}


def _score(score: float | None) -> float | None:
    """Return a score in no more digits than a look at it needs."""
    return None if score is None or not math.isfinite(score) else float(f"{score:.6g}")


def latency(seconds: Sequence[float], *, estimated: bool = False) -> Latency:
    """Return the latency of the seconds by question, without the first, which includes loading."""
    p50, p95 = np.percentile(seconds[1:] or seconds, [50, 95])
    return Latency(float(p50), float(p95), estimated)


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its value before and after re-ranking."""

    query: str
    before: float
    after: float

    @property
    def change(self) -> float:
        """After minus before."""
        return self.after - self.before


def examples(system: System, baseline: System, measure: str) -> tuple[list[Example], list[Example]]:
    """Return the questions that gained most and those that lost most, the largest change first."""
    before, after = baseline.per_query[measure], system.per_query[measure]
    every = [Example(query, before[query], after[query]) for query in sorted(before.keys() & after.keys())]
    gained = sorted((one for one in every if one.change > TIE), key=lambda one: -one.change)
    lost = sorted((one for one in every if one.change < -TIE), key=lambda one: one.change)
    return gained[:_EXAMPLES], lost[:_EXAMPLES]


def missed(system: System, query: str, judgements: Mapping[str, int]) -> list[str]:
    """Return the relevant passages of a question that are not among the candidates, the most relevant first."""
    found = set(system.run[query])
    relevant = sorted((-relevance, passage) for passage, relevance in judgements.items() if relevance > 0)
    return [passage for _, passage in relevant if passage not in found]


def texts_of(stages: Sequence[Stage], systems: Sequence[System], measure: str) -> dict[str, str]:
    """Return the starts of the passages that are shown with the examples, by id."""
    by_name = {system.name: system for system in systems}
    texts: dict[str, str] = {}
    for stage, system in zip(stages, systems, strict=True):
        if system.baseline is not None:
            baseline = by_name[system.baseline]
            for one in (one for side in examples(system, baseline, measure) for one in side):
                shown = {*system.run[one.query][:SHOWN], *baseline.run[one.query][:SHOWN]}
                found = [hit.passage for hit in stage.hits[one.query] if hit.passage.id in shown]
                texts.update((passage.id, cut(" ".join(passage.text.split()), _LONGEST_TEXT)) for passage in found)
    return texts
