"""Try first stages, depths, cross-encoders and weights on a dataset, and say which setting to take."""

from __future__ import annotations

import math
import os
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from retrieve_rerank.checks import check_count, check_seconds, number_of
from retrieve_rerank.errors import InvalidInputError, TruncationWarning, shown
from retrieve_rerank.evaluation.choosing import HeldOut, Setting, Tuning, check, closest
from retrieve_rerank.evaluation.dataset import WEAK, Dataset, check_dataset
from retrieve_rerank.evaluation.measures import check_measures, per_query
from retrieve_rerank.evaluation.measuring import latency, mean_of, perfect
from retrieve_rerank.evaluation.measuring import measure as measured
from retrieve_rerank.evaluation.measuring import notes as notes_on
from retrieve_rerank.evaluation.running import WEIGHTS, Reader, Stage, check_name, run, run_at_weight
from retrieve_rerank.evaluation.significance import bootstrap_interval, check_draws, mean
from retrieve_rerank.evaluation.store import open_store
from retrieve_rerank.models.cross_encoder import CrossEncoder
from retrieve_rerank.models.interpolation import check_weight
from retrieve_rerank.models.ranking import Ranker, scorer_name
from retrieve_rerank.retrieval.first_stage import check_retriever
from retrieve_rerank.retrieval.pipeline import RetrieveRerank
from retrieve_rerank.retrieval.rerank import described
from retrieve_rerank.retrieval.saved import remembered
from retrieve_rerank.types import Retriever, Scale, Scorer

DEPTHS = (5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 100)
_TIMED = 5  # questions on which the cost of a call is measured
_UNSURE = 0.01  # of the measure: what the choice may lose on other questions before a reader is told
_CUT = 0.01  # share of the pairs that were not read to the end, below which nothing is said


def tune(
    first_stages: Mapping[str, Retriever] | Retriever,
    cross_encoders: Mapping[str, Scorer] | Scorer,
    dataset: Dataset,
    *,
    measure: str = "nDCG@10",
    depths: Sequence[int] = DEPTHS,
    rerank_weights: Sequence[float] = WEIGHTS,
    latency_budget: float | None = None,
    quality: float | None = None,
    scores: Scale = "logits",
    cache: str | os.PathLike[str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    show_progress: bool = False,
) -> Tuning:
    """Find the setting to search with: which first stage, how deep it is re-ranked, by what, with which weight, or not.

    Every first stage is asked at every depth, as a search of that depth asks it, and each pair of question and text is
    read once by each cross-encoder: what is read for the deepest candidates serves all shallower ones, and every weight
    is tried with the same scores. A setting's quality is exactly what `evaluate` gives a pipeline of that `fetch_k` and
    `rerank_weight`. Each first stage without re-ranking is a setting, too, since re-ranking can hurt.

    Args:
        first_stages: Retrievers by name, or one. They must search the dataset's passages.
        cross_encoders: Cross-encoders by name, or one. The same model in two precisions is two of them.
        dataset: Questions with judgements, best a hundred or more; `dataset.sample(n)` takes fewer.
        measure: Name of a measure of ir-measures.
        depths: Values of `fetch_k` to try.
        rerank_weights: Values of `rerank_weight` to try, which costs no scoring.
        latency_budget: Seconds that nineteen of twenty questions may take, on this machine, first stage and re-ranking
            together; None is no limit.
        quality: Mean of the measure that is enough: the fastest setting that reaches it is taken. None takes the best.
        scores: What those of the cross-encoders that are no `CrossEncoder` return: "logits", or "probabilities".
        cache: An SQLite file that keeps every score, as for `evaluate`, which may share it.
        resamples: Of the bootstrap.
        seed: Of the bootstrap and of the splits of the questions in halves.
        show_progress: Show a bar on stderr.

    Returns:
        All settings with their quality and latency, the one to take and why, and what choosing it this way is worth on
        questions that it was not chosen on.

    Raises:
        InvalidInputError: If an argument cannot be used. That no setting meets the budget or the quality is a result:
            the one that comes closest is chosen, `reason` says so, and `met` is False.

    Example:
        >>> from retrieve_rerank import BM25Index, CrossEncoder
        >>> from retrieve_rerank.evaluation import Dataset, tune
        >>> texts = {"p1": "Paris is the capital of France.", "p2": "Rome is the capital of Italy."}
        >>> dataset = Dataset("toy", texts, {"q1": "the capital of Italy"}, {"q1": {"p2": 1}})
        >>> index = BM25Index()
        >>> report = index.add(dataset.passages)
        >>> with CrossEncoder(cross_encoder_path) as model:
        ...     tuning = tune({"words": index}, {"demo": model}, dataset, depths=[1, 2])
        >>> tuning.chosen.name
        'words, not re-ranked'
    """
    start = time.perf_counter()
    check_dataset(dataset)
    (name,) = check_measures([measure], dataset.judgements)
    resamples, seed = check_draws(resamples, seed)
    check_seconds(latency_budget, "latency_budget")
    if quality is not None and not number_of(quality) < math.inf:
        raise InvalidInputError(
            f"quality must be a number, the mean of the measure that is enough; got {shown(quality)}"
        )
    if isinstance(depths, (str, int)) or not isinstance(depths, Sequence) or not depths:
        raise InvalidInputError(f"depths must be a list of whole numbers, such as [10, 20, 50], got {shown(depths)}")
    levels = [check_count(depth, "each of depths") for depth in depths]
    if isinstance(rerank_weights, (str, int, float)) or not isinstance(rerank_weights, Sequence) or not rerank_weights:
        raise InvalidInputError(
            f"rerank_weights must be a list of numbers from 0 to 1, such as [0.3, 0.5, 1], got {shown(rerank_weights)}"
        )
    weights = sorted({check_weight(weight) for weight in rerank_weights}, reverse=True)
    grid = Grid(_first_stages(first_stages), _cross_encoders(cross_encoders), levels, scores)
    with nullcontext() if cache is None else open_store(cache) as store:
        began = time.perf_counter()
        run([*grid.first_stages.values(), *grid.reranked.values()], dataset, store, show_progress=show_progress)
        running = time.perf_counter() - began
    costs = {model: grid.call_seconds(model, reader, dataset) for model, reader in grid.readers.items()}
    settings = grid.settings(costs, dataset, name, weights, resamples=resamples, seed=seed)
    considered = settings
    chosen, reason = closest(settings, latency_budget, quality)
    held_out = check(settings, chosen, latency_budget, quality, seed=seed)
    said = []
    if weights[0] == 1 and len(weights) > 1:
        plain = [one for one in settings if one.cross_encoder is None or one.rerank_weight == 1]
        other, why = closest(plain, latency_budget, quality)
        at_one = check(plain, other, latency_budget, quality, seed=seed)
        if held_out is not None and at_one is not None:
            worth = held_out.quality - at_one.quality
            said.append(
                f"Chosen in the same way with every rerank_weight left at 1, it reached {at_one.quality:.3f} there: "
                f"choosing the weight, too, is worth {worth:+.3f}."
            )
            if worth < 0 and quality is None:
                considered, chosen, reason, held_out = plain, other, why, at_one
                said = [
                    f"Chosen among all weights, it reached {at_one.quality + worth:.3f} there: choosing the weight, "
                    f"too, is worth {worth:+.3f}, so it is left at 1."
                ]
    # Scores from the cache count as what they took when they were made.
    read = {id(reader): reader.seconds for reader in grid.readers.values()}
    found = sum(sum(stage.seconds) for stage in grid.first_stages.values())
    return Tuning(
        dataset=dataset.name,
        weak=dataset.weak,
        measure=name,
        settings=tuple(settings),
        weight_chosen=considered is settings,
        chosen=chosen,
        reason=reason,
        latency_budget=latency_budget,
        quality=quality,
        depths=grid.depths,
        ceiling=grid.ceiling(dataset, name),
        held_out=held_out,
        notes=_notes(grid, dataset, name, chosen, held_out, said),
        questions=len(dataset.judgements),
        passages=len(dataset.passages),
        resamples=resamples,
        seed=seed,
        models={
            model: remembered(ranker) if isinstance(ranker, CrossEncoder) else {}
            for model, ranker in grid.rankers.items()
        },
        scores=scores,
        seconds=time.perf_counter() - start - running + found + sum(read.values()),
        seconds_alone=sum(sum(grid.seconds(*row, costs)) for row in grid.rows),
    )


class Grid:
    """The rows to run: every first stage at every depth, and what each cross-encoder makes of it.

    Attributes:
        depths: The deepest last.
        first_stages: By name and depth; the deepest first: what is read for it serves the others, in the fewest calls.
        reranked: What becomes of them, by first stage, cross-encoder and depth.
        rows: The rows that are settings, likewise; the shallowest first.
        rankers: The cross-encoders by name.
    """

    def __init__(
        self,
        first_stages: Mapping[str, Retriever],
        cross_encoders: Mapping[str, Scorer],
        depths: Sequence[int],
        scores: Scale = "logits",
    ) -> None:
        self.depths = tuple(sorted(set(depths)))
        self.first_stages = {
            (name, depth): Stage(f"{name}, {depth} deep", retriever, depth)
            for depth in reversed(self.depths)
            for name, retriever in first_stages.items()
        }
        self.reranked: dict[tuple[str, str, int], Stage] = {}
        self.rankers: dict[str, Ranker] = {}
        for model, scorer in cross_encoders.items():
            scale = "logits" if isinstance(scorer, CrossEncoder) else scores
            for (name, depth), first in self.first_stages.items():
                search = RetrieveRerank(first.retriever, scorer, fetch_k=depth, scores=scale)
                title = f"{first.name} → {model}"
                self.reranked[name, model, depth] = Stage(title, first.retriever, depth, search, first)
                self.rankers[model] = search.ranker
        self.rows: dict[tuple[str, str | None, int], Stage] = {
            (name, None, depth): stage for (name, depth), stage in self.first_stages.items() if depth == self.depths[-1]
        }
        # Sorting keeps the order in which first stages and cross-encoders were given.
        self.rows.update(sorted(self.reranked.items(), key=lambda row: row[0][2]))

    @property
    def readers(self) -> dict[str, Reader]:
        """What has read, by the name of the cross-encoder; filled by running."""
        return {model: stage.reader for (_, model, _), stage in self.reranked.items() if stage.reader is not None}

    def settings(
        self,
        costs: Mapping[str, float],
        dataset: Dataset,
        measure: str,
        weights: Sequence[float],
        *,
        resamples: int,
        seed: int,
    ) -> list[Setting]:
        """Return what the rows, which have run, say of each setting, given what a call of each cross-encoder costs."""
        rows = [
            (row, weight, stage)
            for row, stage in self.rows.items()
            for weight in (weights if stage.first is not None else [0.0])
        ]
        runs = [_run(stage) if stage.first is None else run_at_weight(stage, weight) for _, weight, stage in rows]
        values = [per_query([measure], dataset.judgements, run)[measure] for run in runs]
        table = np.array([[one.get(query, np.nan) for one in values] for query in sorted(dataset.judgements)])
        # A measure without any value says nothing for a setting.
        intervals = np.nan_to_num(bootstrap_interval(table, resamples=resamples, seed=seed))
        means = np.nan_to_num(mean(table))
        settings = []
        for (row, weight, stage), one, quality, (low, high) in zip(rows, values, means, intervals, strict=True):
            name, model, depth = row
            made, precision = (None, None) if model is None else described(self.rankers[model])
            settings.append(
                Setting(
                    first_stage=name,
                    fetch_k=depth,
                    cross_encoder=model,
                    model=made,
                    precision=precision,
                    quality=float(quality),
                    low=float(low),
                    high=float(high),
                    pairs=stage.pairs / len(stage.seconds),
                    latency=latency(self.seconds(*row, costs), estimated=stage.estimated),
                    per_query=one,
                    rerank_weight=weight,
                )
            )
        return settings

    def ceiling(self, dataset: Dataset, measure: str) -> dict[str, dict[int, float]]:
        """Return the mean that a perfect re-ranking would reach, by first stage and depth."""
        found: dict[str, dict[int, float]] = {}
        for (name, depth), stage in reversed(self.first_stages.items()):
            best = perfect(_run(stage), dataset.judgements)
            found.setdefault(name, {})[depth] = mean_of(per_query([measure], dataset.judgements, best)[measure])
        return found

    def seconds(self, name: str, model: str | None, depth: int, costs: Mapping[str, float]) -> list[float]:
        """Return the seconds of both stages by question, of a setting that is run by itself.

        A pair's seconds hold its share of the cost of the call for the deepest pool: of fewer pairs, a part is missing.
        """
        first = self.first_stages[name, depth].seconds
        if model is None:
            return first
        stage, deepest = self.reranked[name, model, depth], self.reranked[name, model, self.depths[-1]]
        call = costs[model] * (1 - stage.pairs / max(1, deepest.pairs))
        return [a + b + call for a, b in zip(first, stage.seconds, strict=True)]

    def call_seconds(self, model: str, reader: Reader, dataset: Dataset) -> float:
        """Return what a call of a cross-encoder costs beside its pairs, as calls for single pairs show.

        It is 0 where all scores came from the cache: the model is not loaded for it.
        """
        if not reader.fresh:
            return 0.0
        stages = list(self.first_stages.values())
        found = {query: [hit for stage in stages for hit in stage.hits[query][:1]] for query in dataset.judgements}
        taken = []
        for query in [query for query in sorted(found) if found[query]][: _TIMED + 1]:
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TruncationWarning)  # it was read before
                self.rankers[model].rank(dataset.queries[query], found[query][:1])
            taken.append(time.perf_counter() - start)
        single = statistics.median(taken[1:] or taken)  # the first warms up
        # A pair of a call for many holds its share of that call's cost, too: cost / many.
        many = reader.pairs / len(stages[0].seconds)
        return max(0.0, (single - reader.seconds / reader.pairs) / (1 - 1 / many)) if many > 1 else 0.0


def _run(stage: Stage) -> dict[str, list[str]]:
    return {query: [hit.passage.id for hit in found] for query, found in stage.hits.items()}


def _notes(
    grid: Grid, dataset: Dataset, measure: str, chosen: Setting, held_out: HeldOut | None, on_weights: Sequence[str]
) -> tuple[str, ...]:
    """Return what the numbers do not say by themselves."""
    deepest = grid.depths[-1]
    firsts = [stage for (_, depth), stage in grid.first_stages.items() if depth == deepest]
    rows = [measured(stage, dataset, [measure]) for stage in firsts]
    said = [*dataset.notes, *notes_on(firsts, rows, [measure], dataset)]
    if dataset.weak:
        said.append(WEAK.format(weak=dataset.weak))
    if held_out is None:
        said.append("The questions are too few to check the choice on some that it was not made on.")
    else:
        said += _notes_on_choice(held_out)
        said += on_weights
    if chosen.cross_encoder is not None and chosen.fetch_k == deepest:
        said.append(f"The deepest that was tried is chosen: try deeper than {deepest}.")
    for (name, model, depth), stage in grid.reranked.items():
        if depth == deepest and stage.truncated > _CUT * stage.pairs:
            share = stage.truncated / stage.pairs
            said.append(f"{model!r} did not read {share:.0%} of what {name!r} found to the end.")
    said.append(
        "≈: computed from the times of the pairs, which were read for the deepest candidates, and the cost of a call."
    )
    said += [
        f"All scores of {model!r} came from the cache: its times are those of when they were made, maybe on another "
        "machine, and hold nothing of a call's own cost."
        for model, reader in grid.readers.items()
        if reader.pairs and not reader.fresh
    ]
    return tuple(said)


def _notes_on_choice(held_out: HeldOut) -> list[str]:
    splits = f"means of {held_out.splits} random splits"
    same = f"It was the setting chosen here in {held_out.agreement:.0%}."
    if held_out.target is not None:  # the fastest that is good enough was wanted, and not the best
        return [
            f"Chosen on one half of the questions, the setting taken reached {held_out.quality:.3f} on the other half "
            f"({splits}), and the {held_out.target:g} that was asked for in {held_out.reached:.0%} of them. {same}"
        ]
    said = [
        f"Chosen on one half of the questions, the setting taken reached {held_out.quality:.3f} on the other half, "
        f"{held_out.regret:.3f} below the best one there ({splits}; nine of ten were at most {held_out.spread:.3f} "
        f"below). {same}"
    ]
    if held_out.regret > _UNSURE:
        said.append("So these questions are too few to tell the best settings apart: more would.")
    return said


def _first_stages(given: Mapping[str, Retriever] | Retriever) -> dict[str, Retriever]:
    found = dict(given) if isinstance(given, Mapping) else {type(given).__name__: given}
    for name, retriever in found.items():
        check_name(name, "first stage")
        check_retriever(retriever, f"first stage {name!r}")
    if not found:
        raise InvalidInputError("first_stages must hold a retriever, got none")
    return found


def _cross_encoders(given: Mapping[str, Scorer] | Scorer) -> dict[str, Scorer]:
    found = dict(given) if isinstance(given, Mapping) else {Path(scorer_name(given)).name: given}
    for name in found:
        check_name(name, "cross-encoder")
    if not found:
        raise InvalidInputError("cross_encoders must hold a cross-encoder, got none; evaluate measures first stages")
    return found
