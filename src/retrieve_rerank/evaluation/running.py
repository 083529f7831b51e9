"""Run pipelines over a dataset's questions, no work twice."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tqdm.auto import tqdm

from retrieve_rerank.checks import check_flag
from retrieve_rerank.errors import InvalidInputError, TruncationWarning, shown
from retrieve_rerank.evaluation.dataset import Dataset
from retrieve_rerank.evaluation.files import StoredRun
from retrieve_rerank.evaluation.store import Score, ScoreStore, key_of
from retrieve_rerank.models.cross_encoder import CrossEncoder
from retrieve_rerank.models.interpolation import interpolate
from retrieve_rerank.models.ranking import Ranker, ScorerRanker
from retrieve_rerank.retrieval.pipeline import RetrieveRerank
from retrieve_rerank.types import Hit, Retriever

WEIGHTS = tuple(step / 10 for step in range(1, 11))  # values of rerank_weight that are tried; 0 is not to re-rank


@dataclass(slots=True)
class Stage:
    """One row while it runs: a first stage, or the re-ranking (`search`) of another row's candidates (`first`)."""

    name: str
    retriever: Retriever
    fetch_k: int
    search: RetrieveRerank | None = None
    first: Stage | None = None
    hits: dict[str, list[Hit]] = field(default_factory=dict)  # by question id
    seconds: list[float] = field(default_factory=list)  # by what was asked, in that order
    pairs: int = 0
    truncated: int = 0
    estimated: bool = False
    reader: Reader | None = None  # what re-ranks
    themselves: set[str] = field(default_factory=set)  # questions that found a passage with their own id


@dataclass(slots=True)
class Reader:
    """One cross-encoder, and what it has read for the current question."""

    ranker: Ranker
    store: ScoreStore | None
    fingerprint: str
    query: str = ""
    known: dict[str, Score] = field(default_factory=dict)  # by text
    pairs: int = 0  # distinct pairs of question and text that were needed so far
    seconds: float = 0.0  # what reading them took, now or when they came into the cache
    fresh: int = 0  # how many of them were read now

    def rank(self, stage: Stage, query: str, candidates: Sequence[Hit]) -> list[Hit]:
        """Return candidates in the cross-encoder's order, having it read what it has not."""
        if query != self.query:
            self.query, self.known = query, {}
        texts = dict.fromkeys(hit.passage.text for hit in candidates)
        unknown = [text for text in texts if text not in self.known]
        if self.store is not None:
            self.known.update(self.store.get(self.fingerprint, query, unknown))
        new = self._read([hit for hit in candidates if hit.passage.text not in self.known])
        self.known.update(new)
        self.pairs += len(unknown)
        self.seconds += sum(self.known[text].seconds for text in unknown)
        self.fresh += len(new)
        stage.estimated |= len(new) < len(texts)
        stage.seconds.append(sum(self.known[text].seconds for text in texts))
        stage.pairs += len(texts)
        stage.truncated += sum(self.known[text].truncated for text in texts)
        found = [self.known[hit.passage.text] for hit in candidates]
        weight = 1.0 if stage.search is None else stage.search.rerank_weight
        return [
            replace(
                candidates[place],
                logit=found[place].logit,
                truncated=found[place].truncated,
                combined_score=combined,
            )
            for place, combined in interpolate(candidates, [score.logit for score in found], weight)
        ]

    def _read(self, candidates: Sequence[Hit]) -> dict[str, Score]:
        if not candidates:
            return {}
        if isinstance(self.ranker, CrossEncoder):
            self.ranker.precision  # noqa: B018 - loads the model: that is no part of what a pair takes
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)  # counted instead
            ranked = self.ranker.rank(self.query, candidates)
        texts = {hit.passage.text for hit in ranked}
        share = (time.perf_counter() - start) / len(texts)
        scores = {hit.passage.text: Score(hit.logit, hit.truncated, share) for hit in ranked if hit.logit is not None}
        if self.store is not None:
            self.store.put(self.fingerprint, self.query, scores)
        return scores


def plan_stages(pipelines: Mapping[str, RetrieveRerank | Retriever], fetch_k: int) -> list[Stage]:
    """Return the rows: each first stage before what re-ranks it, no first stage twice."""
    if not isinstance(pipelines, Mapping) or not pipelines:
        raise InvalidInputError(
            f"pipelines must be a dict name -> RetrieveRerank or first stage, got {shown(pipelines)}"
        )
    firsts: dict[tuple[int, int], Stage] = {}
    for name, pipeline in pipelines.items():
        check_name(name, "pipeline")
        if not isinstance(pipeline, RetrieveRerank) and not callable(getattr(pipeline, "retrieve", None)):
            raise InvalidInputError(
                f"pipeline {name!r} must be a RetrieveRerank or have retrieve(query, k), got {type(pipeline).__name__}"
            )
        if not isinstance(pipeline, RetrieveRerank):
            key = (id(pipeline), fetch_k)
            if key in firsts:
                raise InvalidInputError(f"{name!r} is the same first stage as {firsts[key].name!r}; give it once")
            firsts[key] = Stage(name, pipeline, fetch_k)
    searches = {name: pipeline for name, pipeline in pipelines.items() if isinstance(pipeline, RetrieveRerank)}
    for search in searches.values():
        key = (id(search.retriever), search.fetch_k)
        names = [name for name, one in searches.items() if (id(one.retriever), one.fetch_k) == key]
        firsts.setdefault(key, Stage(f"first stage of {', '.join(names)}", search.retriever, search.fetch_k))
    plan = list(firsts.values())
    for name, search in searches.items():
        first = firsts[id(search.retriever), search.fetch_k]
        plan.append(Stage(name, search.retriever, search.fetch_k, search, first))
    if len({stage.name for stage in plan}) < len(plan):
        raise InvalidInputError(f"two systems have one name: {sorted(stage.name for stage in plan)}; rename a pipeline")
    return plan


def run(plan: list[Stage], dataset: Dataset, store: ScoreStore | None, *, show_progress: bool) -> None:
    """Fill the rows' hits and times: all first stages, and then, if they can have found something, the re-ranking."""
    quiet = not check_flag(show_progress, "show_progress")
    texts = {passage.id: passage.text for passage in dataset.passages}
    own = {
        query
        for query, relevance in dataset.judgements.items()
        if query in texts and query not in relevance and dataset.queries[query].strip() in texts[query]
    }
    asked = _asked(plan, dataset, own)
    _give_readers(plan, store)
    firsts = [stage for stage in plan if stage.first is None]
    again = [stage for stage in plan if stage.first is not None]
    for text, queries in tqdm(asked, disable=quiet, unit="question", desc="Retrieving"):
        for stage in firsts:
            _retrieve(stage, text, queries, found_itself=queries[0] in own)
    for stage in firsts:
        _check_found(stage, dataset)
    for text, queries in tqdm(asked, disable=quiet or not again, unit="question", desc="Re-ranking"):
        for stage in again:
            _rerank(stage, text, queries)


def run_at_weight(stage: Stage, weight: float) -> dict[str, list[str]]:
    """Return the ids by question, best first, that a re-ranking which has run gives at a weight; nothing is scored."""
    ranked = {}
    for query, candidates in ({} if stage.first is None else stage.first.hits).items():
        logits = {hit.passage.id: hit.logit or 0.0 for hit in stage.hits[query]}
        order = interpolate(candidates, [logits[hit.passage.id] for hit in candidates], weight)
        ranked[query] = [candidates[place].passage.id for place, _ in order]
    return ranked


def _retrieve(stage: Stage, text: str, queries: Sequence[str], *, found_itself: bool) -> None:
    """Ask a first stage a question, and for one more hit where the question may find itself, which is left out."""
    k = stage.fetch_k + found_itself
    start = time.perf_counter()
    if isinstance(stage.retriever, StoredRun):
        found = stage.retriever.retrieve_of(queries[0], text, k)
    else:
        found = list(stage.retriever.retrieve(text, k)[:k])
    stage.seconds.append(time.perf_counter() - start)
    distinct: dict[str, Hit] = {}
    for hit in found:
        distinct.setdefault(hit.passage.id, hit)  # at its best place
    if found_itself and queries[0] in distinct:
        del distinct[queries[0]]
        stage.themselves.add(queries[0])
    stage.hits.update((query, list(distinct.values())[: stage.fetch_k]) for query in queries)


def _rerank(stage: Stage, text: str, queries: Sequence[str]) -> None:
    if stage.reader is not None and stage.first is not None:
        try:
            hits = stage.reader.rank(stage, text, stage.first.hits[queries[0]])
        except InvalidInputError as error:  # the question is too long, for one
            raise InvalidInputError(f"question {queries[0]!r}: {error}") from error
        stage.hits.update((query, hits) for query in queries)


def _asked(plan: Sequence[Stage], dataset: Dataset, own: set[str]) -> list[tuple[str, list[str]]]:
    """Return the texts to ask for, each once, with the ids of its questions.

    Where two questions of one text may get different lists, each is asked for: a run that is read from a file may rank
    differently for them, and what has the id of a question is left out for that one only.
    """
    ids: dict[str, list[str]] = {}
    for query in sorted(dataset.judgements):
        ids.setdefault(dataset.queries[query], []).append(query)
    stored = any(isinstance(stage.retriever, StoredRun) for stage in plan)
    asked: list[tuple[str, list[str]]] = []
    for text, queries in ids.items():
        alone = stored or not own.isdisjoint(queries)
        asked += [(text, [query]) for query in queries] if alone else [(text, queries)]
    return asked


def _give_readers(stages: Sequence[Stage], store: ScoreStore | None) -> None:
    """Give each re-ranking row its reader, the same one to all of a cross-encoder and the scale of its scores."""
    readers: dict[tuple[int, str], Reader] = {}
    for stage in stages:
        if stage.search is not None:
            model, ranker = stage.search.cross_encoder, stage.search.ranker
            scale = ranker.scores if isinstance(ranker, ScorerRanker) else "logits"
            if (id(model), scale) not in readers:
                fingerprint = "" if store is None else key_of(stage.name, model, scale)
                readers[id(model), scale] = Reader(ranker, store, fingerprint)
            stage.reader = readers[id(model), scale]


def _check_found(stage: Stage, dataset: Dataset) -> None:
    found = {hit.passage.id for hits in stage.hits.values() for hit in hits}
    if found and found.isdisjoint(passage.id for passage in dataset.passages):
        raise InvalidInputError(
            f"{stage.name!r} found {len(found)} passages ({min(found)!r}, …) and none of them is in dataset "
            f"{dataset.name!r}; index dataset.passages under their own ids, and evaluate on that index"
        )


def check_name(name: object, of: str) -> None:
    """Raise InvalidInputError unless this is a name."""
    if not isinstance(name, str) or not name.strip():
        raise InvalidInputError(f"the name of a {of} must be a string with something in it, got {shown(name)}")
