"""What a tuning tries: the rows that are run, and the settings that are made of what they found."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrieve_rerank.errors import TruncationWarning
from retrieve_rerank.evaluation.dataset import Dataset
from retrieve_rerank.evaluation.measures import per_query
from retrieve_rerank.evaluation.results import Latency
from retrieve_rerank.evaluation.running import Reader, Stage
from retrieve_rerank.evaluation.significance import bootstrap_interval
from retrieve_rerank.evaluation.tuned import Setting
from retrieve_rerank.models.cross_encoder import CrossEncoder
from retrieve_rerank.models.ranking import Ranker
from retrieve_rerank.retrieval.adaptive import AdaptiveDepth
from retrieve_rerank.retrieval.pipeline import RetrieveRerank
from retrieve_rerank.retrieval.saved import remembered
from retrieve_rerank.retrieval.second_stage import described
from retrieve_rerank.types import Hit, Retriever, Scorer

RULES = tuple(AdaptiveDepth(patience=patience, top=top) for patience in (10, 20, 30) for top in (1, 3, 5))
_TIMED = 5  # questions on which the cost of a call is measured


class Plan:
    """The rows to run: every first stage at every depth, and what each cross-encoder makes of it.

    Attributes:
        depths: The deepest last.
        firsts: First stages by name and depth.
        reranked: What becomes of them, by first stage, cross-encoder and depth.
        rankers: The cross-encoders by name.
    """

    def __init__(self, firsts: Mapping[str, Retriever], models: Mapping[str, Scorer], depths: Sequence[int]) -> None:
        self.depths = tuple(sorted(set(depths)))
        # The deepest first: what is read for it serves the others, and is read in the fewest calls.
        self.firsts = {
            (name, depth): Stage(f"{name}, {depth} deep", retriever, depth)
            for depth in reversed(self.depths)
            for name, retriever in firsts.items()
        }
        self.reranked: dict[tuple[str, str, int], Stage] = {}
        self.rankers: dict[str, Ranker] = {}
        for model, scorer in models.items():
            for (name, depth), first in self.firsts.items():
                search = RetrieveRerank(first.retriever, scorer, fetch_k=depth)
                title = f"{first.name} → {model}"
                self.reranked[name, model, depth] = Stage(title, first.retriever, depth, search, first)
                self.rankers.setdefault(model, search.ranker)

    @property
    def stages(self) -> list[Stage]:
        """All rows, in the order that they run in."""
        return [*self.firsts.values(), *self.reranked.values()]

    @property
    def models(self) -> dict[str, dict[str, str | int | bool | None]]:
        """What `CrossEncoder(**arguments)` makes each cross-encoder from; empty for one of another kind."""
        return {
            name: remembered(ranker) if isinstance(ranker, CrossEncoder) else {}
            for name, ranker in self.rankers.items()
        }

    def seconds(self, readers: Sequence[Reader]) -> float:
        """Return what running took; scores from the cache count as what they took when they were made."""
        return sum(sum(stage.seconds) for stage in self.firsts.values()) + sum(reader.seconds for reader in readers)

    def settings(
        self, readers: Sequence[Reader], dataset: Dataset, measure: str, *, resamples: int, seed: int
    ) -> list[Setting]:
        """Return what the rows, which have run, say of each setting."""
        rows = self._rows(_call_seconds(self, readers, dataset), dataset)
        values = [
            per_query([measure], dataset.judgements, {query: _ids(hits) for query, hits in row.hits.items()})[measure]
            for row in rows
        ]
        table = np.array([[one[query] for one in values] for query in sorted(dataset.judgements)])
        intervals = bootstrap_interval(table, resamples=resamples, seed=seed)
        return [
            self._setting(row, one, float(mean), (float(low), float(high)))
            for row, one, mean, (low, high) in zip(rows, values, table.mean(axis=0), intervals, strict=True)
        ]

    def ceiling(self, dataset: Dataset, measure: str) -> dict[str, dict[int, float]]:
        """Return the mean that a perfect re-ranking would reach, by first stage and depth."""
        found: dict[str, dict[int, float]] = {}
        for (name, depth), stage in reversed(self.firsts.items()):
            perfect = {}
            for query, hits in stage.hits.items():
                relevance = dataset.judgements[query]
                perfect[query] = sorted(_ids(hits), key=lambda passage: -relevance.get(passage, 0))
            values = per_query([measure], dataset.judgements, perfect)[measure]
            found.setdefault(name, {})[depth] = statistics.fmean(values.values())
        return found

    def _rows(self, costs: Mapping[str, float], dataset: Dataset) -> list[_Row]:
        deepest = self.depths[-1]
        rows = [
            _Row(name, None, depth, None, stage.hits, 0.0, stage.seconds, estimated=False)
            for (name, depth), stage in self.firsts.items()
            if depth == deepest
        ]
        for (name, model, depth), stage in reversed(self.reranked.items()):
            rows.append(_fixed(name, model, stage, self.reranked[name, model, deepest], costs[model]))
        for (name, model, depth), stage in self.reranked.items():
            if depth == deepest:
                rows += [_adaptive(name, model, stage, rule, costs[model], dataset) for rule in RULES]
        return rows

    def _setting(self, row: _Row, values: Mapping[str, float], mean: float, interval: tuple[float, float]) -> Setting:
        model, precision = (None, None) if row.model is None else described(self.rankers[row.model])
        p50, p95 = np.percentile(row.seconds[1:] or row.seconds, [50, 95])  # the first question includes loading
        return Setting(
            first_stage=row.name,
            fetch_k=row.depth,
            cross_encoder=row.model,
            model=model,
            precision=precision,
            adaptive=row.rule,
            quality=mean,
            low=interval[0],
            high=interval[1],
            pairs=row.pairs,
            latency=Latency(float(p50), float(p95), row.estimated),
            per_query=values,
        )


@dataclass(slots=True)
class _Row:
    """A setting before it is measured."""

    name: str
    model: str | None
    depth: int
    rule: AdaptiveDepth | None
    hits: Mapping[str, Sequence[Hit]]
    pairs: float  # a question, on average
    seconds: list[float]  # by distinct question
    estimated: bool


def _fixed(name: str, model: str, stage: Stage, deepest: Stage, call: float) -> _Row:
    """Return a row of one depth. The pairs' seconds hold their share of the cost of the call for the deepest."""
    left = call * (1 - stage.pairs / max(1, deepest.pairs))
    seconds = [a + b + left for a, b in zip(_retrieving(stage), stage.seconds, strict=True)]
    pairs = stage.pairs / len(seconds)
    return _Row(name, model, stage.fetch_k, None, stage.hits, pairs, seconds, stage.estimated)


def _adaptive(name: str, model: str, stage: Stage, rule: AdaptiveDepth, call: float, dataset: Dataset) -> _Row:
    """Return a row that stops early, from the scores of the deepest one."""
    hits, pairs, reading = {}, {}, {}
    for query, candidates in ({} if stage.first is None else stage.first.hits).items():
        scores = [stage.scores[query][hit.passage.text] for hit in candidates]
        read = rule.depth([score.logit for score in scores])
        order = sorted(range(read), key=lambda place: -scores[place].logit)
        hits[query] = [*(candidates[place] for place in order), *candidates[read:]]
        pairs[query] = read
        calls = math.ceil(read / rule.chunk) - read / max(1, len(candidates))
        reading[query] = sum(score.seconds for score in scores[:read]) + call * calls
    asked = {dataset.queries[query]: query for query in sorted(hits, reverse=True)}  # equal questions were asked once
    order_asked = sorted(asked.values())
    seconds = [a + reading[query] for a, query in zip(_retrieving(stage), order_asked, strict=True)]
    return _Row(name, model, stage.fetch_k, rule, hits, statistics.fmean(pairs.values()), seconds, estimated=True)


def _retrieving(stage: Stage) -> list[float]:
    return [] if stage.first is None else stage.first.seconds


def _call_seconds(plan: Plan, readers: Sequence[Reader], dataset: Dataset) -> dict[str, float]:
    """Return what a call of each cross-encoder costs beside its pairs, as calls for single pairs show.

    It is 0 where all scores came from the cache: the model is not loaded for it.
    """
    fresh = {id(reader.ranker) for reader in readers if reader.fresh}
    costs: dict[str, float] = {}
    for (_, model, _), stage in plan.reranked.items():
        if model not in costs:
            ranker = plan.rankers[model]
            costs[model] = _single(ranker, stage, dataset) if id(ranker) in fresh else 0.0
    return costs


def _single(ranker: Ranker, stage: Stage, dataset: Dataset) -> float:
    costs = []
    for query in sorted(dataset.judgements)[: _TIMED + 1]:
        hits = [] if stage.first is None else stage.first.hits[query][:1]
        if hits:
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TruncationWarning)  # counted already
                ranker.rank(dataset.queries[query], hits)
            costs.append(time.perf_counter() - start - stage.scores[query][hits[0].passage.text].seconds)
    return max(0.0, statistics.median(costs[1:])) if len(costs) > 1 else 0.0  # the first warms up


def _ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.passage.id for hit in hits]
