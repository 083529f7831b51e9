"""What a tuning tries: the rows that are run, and the settings that are made of what they found."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from retrieve_rerank.errors import TruncationWarning
from retrieve_rerank.evaluation.dataset import Dataset
from retrieve_rerank.evaluation.measures import per_query
from retrieve_rerank.evaluation.results import Latency
from retrieve_rerank.evaluation.running import Reader, Stage
from retrieve_rerank.evaluation.significance import bootstrap_interval
from retrieve_rerank.evaluation.tuned import Setting
from retrieve_rerank.models.cross_encoder import CrossEncoder
from retrieve_rerank.retrieval.pipeline import RetrieveRerank
from retrieve_rerank.retrieval.rerank import described
from retrieve_rerank.retrieval.saved import remembered
from retrieve_rerank.types import Hit, Retriever, Scale, Scorer

_TIMED = 5  # questions on which the cost of a call is measured


class Plan:
    """The rows to run: every first stage at every depth, and what each cross-encoder makes of it.

    Attributes:
        depths: The deepest last.
        firsts: First stages by name and depth.
        reranked: What becomes of them, by first stage, cross-encoder and depth.
        rankers: The cross-encoders by name.
    """

    def __init__(
        self,
        firsts: Mapping[str, Retriever],
        models: Mapping[str, Scorer],
        depths: Sequence[int],
        scores: Scale = "logits",
    ) -> None:
        self.depths = tuple(sorted(set(depths)))
        # The deepest first: what is read for it serves the others, and is read in the fewest calls.
        self.firsts = {
            (name, depth): Stage(f"{name}, {depth} deep", retriever, depth)
            for depth in reversed(self.depths)
            for name, retriever in firsts.items()
        }
        self.reranked: dict[tuple[str, str, int], Stage] = {}
        searches: dict[str, RetrieveRerank] = {}
        for model, scorer in models.items():
            for (name, depth), first in self.firsts.items():
                scale = "logits" if isinstance(scorer, CrossEncoder) else scores
                searches[model] = RetrieveRerank(first.retriever, scorer, fetch_k=depth, scores=scale)
                title = f"{first.name} → {model}"
                self.reranked[name, model, depth] = Stage(title, first.retriever, depth, searches[model], first)
        self.rankers = {model: search.ranker for model, search in searches.items()}

    @property
    def stages(self) -> list[Stage]:
        """All rows, in the order that they run in."""
        return [*self.firsts.values(), *self.reranked.values()]

    @property
    def models(self) -> dict[str, dict[str, str | int | float | bool | None]]:
        """What `CrossEncoder(**arguments)` makes each cross-encoder from; empty for one of another kind."""
        return {
            name: remembered(ranker) if isinstance(ranker, CrossEncoder) else {}
            for name, ranker in self.rankers.items()
        }

    @property
    def readers(self) -> dict[str, Reader]:
        """What has read, by the name of the cross-encoder; filled by running."""
        return {model: stage.reader for (_, model, _), stage in self.reranked.items() if stage.reader is not None}

    @property
    def seconds(self) -> float:
        """What running took; scores from the cache count as what they took when they were made."""
        distinct = {id(reader): reader.seconds for reader in self.readers.values()}
        return sum(sum(stage.seconds) for stage in self.firsts.values()) + sum(distinct.values())

    @property
    def rows(self) -> dict[tuple[str, str | None, int], Stage]:
        """The rows that are settings, by first stage, cross-encoder and depth; the shallowest first."""
        deepest = self.depths[-1]
        rows: dict[tuple[str, str | None, int], Stage] = {
            (name, None, depth): stage for (name, depth), stage in self.firsts.items() if depth == deepest
        }
        # Sorting keeps the order in which first stages and cross-encoders were given.
        rows.update(sorted(self.reranked.items(), key=lambda row: row[0][2]))
        return rows

    def seconds_alone(self, costs: Mapping[str, float]) -> float:
        """Return what running every setting by itself would take, given what a call of each cross-encoder costs."""
        return sum(sum(self._seconds(*key, costs)) for key in self.rows)

    def call_seconds(self, dataset: Dataset) -> dict[str, float]:
        """Return what a call of each cross-encoder costs beside its pairs, as calls for single pairs show.

        It is 0 where all scores came from the cache: the model is not loaded for it.
        """
        return {model: self._call_seconds(model, reader, dataset) for model, reader in self.readers.items()}

    def settings(
        self, costs: Mapping[str, float], dataset: Dataset, measure: str, *, resamples: int, seed: int
    ) -> list[Setting]:
        """Return what the rows, which have run, say of each setting."""
        rows = self.rows
        values = [_values(stage.hits, dataset, measure) for stage in rows.values()]
        table = np.array([[one[query] for one in values] for query in sorted(dataset.judgements)])
        intervals = bootstrap_interval(table, resamples=resamples, seed=seed)
        settings = []
        for ((name, model, depth), stage), one, mean, (low, high) in zip(
            rows.items(), values, table.mean(axis=0), intervals, strict=True
        ):
            seconds = self._seconds(name, model, depth, costs)
            p50, p95 = np.percentile(seconds[1:] or seconds, [50, 95])  # the first question includes loading
            made, precision = (None, None) if model is None else described(self.rankers[model])
            settings.append(
                Setting(
                    first_stage=name,
                    fetch_k=depth,
                    cross_encoder=model,
                    model=made,
                    precision=precision,
                    quality=float(mean),
                    low=float(low),
                    high=float(high),
                    pairs=stage.pairs / len(stage.seconds),
                    latency=Latency(float(p50), float(p95), stage.estimated),
                    per_query=one,
                )
            )
        return settings

    def ceiling(self, dataset: Dataset, measure: str) -> dict[str, dict[int, float]]:
        """Return the mean that a perfect re-ranking would reach, by first stage and depth."""
        found: dict[str, dict[int, float]] = {}
        for (name, depth), stage in reversed(self.firsts.items()):
            perfect = {}
            for query, hits in stage.hits.items():
                relevance = dataset.judgements[query]
                perfect[query] = sorted(hits, key=lambda hit: -relevance.get(hit.passage.id, 0))
            found.setdefault(name, {})[depth] = statistics.fmean(_values(perfect, dataset, measure).values())
        return found

    def _seconds(self, name: str, model: str | None, depth: int, costs: Mapping[str, float]) -> list[float]:
        """Return the seconds of both stages by question.

        A pair's seconds hold its share of the cost of the call for the deepest pool: of fewer pairs, a part is missing.
        """
        if model is None:
            return self.firsts[name, depth].seconds
        stage, deepest = self.reranked[name, model, depth], self.reranked[name, model, self.depths[-1]]
        call = costs[model] * (1 - stage.pairs / max(1, deepest.pairs))
        return [a + b + call for a, b in zip(self.firsts[name, depth].seconds, stage.seconds, strict=True)]

    def _call_seconds(self, model: str, reader: Reader, dataset: Dataset) -> float:
        if not reader.fresh:
            return 0.0
        firsts = list(self.firsts.values())
        found = {query: [hit for first in firsts for hit in first.hits[query][:1]] for query in dataset.judgements}
        taken = []
        for query in [query for query in sorted(found) if found[query]][: _TIMED + 1]:
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TruncationWarning)  # it was read before
                self.rankers[model].rank(dataset.queries[query], found[query][:1])
            taken.append(time.perf_counter() - start)
        single = statistics.median(taken[1:] or taken)  # the first warms up
        # A pair of a call for many holds its share of that call's cost, too: cost / many.
        many = reader.pairs / len(firsts[0].seconds)
        return max(0.0, (single - reader.seconds / reader.pairs) / (1 - 1 / many)) if many > 1 else 0.0


def _values(hits: Mapping[str, Sequence[Hit]], dataset: Dataset, measure: str) -> dict[str, float]:
    run = {query: [hit.passage.id for hit in found] for query, found in hits.items()}
    return per_query([measure], dataset.judgements, run)[measure]
