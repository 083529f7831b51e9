"""Any LlamaIndex retriever or index as a first stage: asked as deep as is wanted, and for nothing but what may be seen.

LlamaIndex's retrievers have no common way to say how many nodes to return, or which; many hold other retrievers, which
do the finding. So a first stage is copied for a call, with all retrievers in it, and each copy is set.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import Any, Protocol, runtime_checkable

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.indices.vector_store import VectorIndexRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import FilterCondition, MetadataFilters, VectorStoreQueryMode

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.nearest import to_similarity, wider_pool
from retrieve_rerank.llama_index.nodes import FusedNode
from retrieve_rerank.retrieval.first_stage import run_on_thread
from retrieve_rerank.retrieval.fusion import Merge, fuse_by, merge_of

# Where retrievers keep how many nodes they return, and what else bounds that.
_DEPTHS = ("similarity_top_k", "_similarity_top_k", "top_k", "_top_k", "_choice_top_k", "num_chunks_per_query")
_BOUNDS = ("_image_similarity_top_k", "_max_top_k", "_empty_query_top_k", "_hybrid_top_k", "_sparse_top_k")
_FILTERS = ("filters", "_filters", "_extra_filters")
_WHOLE = ("SummaryIndexRetriever", "TreeAllLeafRetriever", "TreeRootRetriever", "EmptyIndexRetriever")  # find all
_MOST_INNER = 1_000  # longer lists are passages, which are not looked through at every call
_KNOWN = ("llama_index.core.", "retrieve_rerank.")  # whose retrievers find nothing but what those in them find


class Index(Protocol):
    """What makes a retriever of itself: LlamaIndex's indexes."""

    def as_retriever(self) -> BaseRetriever:
        """Return a retriever."""


@runtime_checkable
class ManyQueries(Protocol):
    """A retriever that searches for several queries at once, as `ChromaRetriever` does."""

    def retrieve_many(self, queries: Sequence[str]) -> list[list[NodeWithScore]]:
        """Return what `retrieve` returns for each query."""

    async def aretrieve_many(self, queries: Sequence[str]) -> list[list[NodeWithScore]]:
        """As `retrieve_many`, without blocking the event loop."""


@dataclass(frozen=True, slots=True)
class FirstStage:
    """A retriever set for one call.

    Attributes:
        retriever: A copy of what was given, or what an index made.
        k: How many nodes it is asked for.
        unreached: The kinds of those retrievers in it whose number of nodes cannot be set.
    """

    retriever: BaseRetriever
    k: int
    unreached: tuple[str, ...]

    def find(self, bundle: QueryBundle, rewrites: Sequence[str] = ()) -> list[NodeWithScore]:
        """Return at most `k` nodes for a query; given in other words, too, the fusion of what each of them finds.

        Raises:
            InvalidInputError: If the retriever returns something else than nodes.
        """
        if not rewrites:
            return self._ask(bundle)
        if isinstance(self.retriever, ManyQueries) and _is_plain(bundle):
            return self._fused(self.retriever.retrieve_many([bundle.query_str, *rewrites]))
        return self._fused([self._ask(each) for each in [bundle, *map(QueryBundle, rewrites)]])

    async def afind(self, bundle: QueryBundle, rewrites: Sequence[str] = ()) -> list[NodeWithScore]:
        """As `find`, without blocking the event loop."""
        if not rewrites:
            return await self._aask(bundle)
        if isinstance(self.retriever, ManyQueries) and _is_plain(bundle):
            return self._fused(await self.retriever.aretrieve_many([bundle.query_str, *rewrites]))
        return self._fused([await self._aask(each) for each in [bundle, *map(QueryBundle, rewrites)]])

    def _ask(self, bundle: QueryBundle) -> list[NodeWithScore]:
        # The retriever gets a bundle of its own: some write their embedding into it.
        with self._told_of_none():
            return self._in_sense(self.retriever.retrieve(replace(bundle)))

    async def _aask(self, bundle: QueryBundle) -> list[NodeWithScore]:
        if type(self.retriever)._aretrieve is BaseRetriever._aretrieve:  # noqa: SLF001 - the only way to know
            # It would run its sync method on the event loop.
            return await run_on_thread("retrieve-rerank first stage", self._ask, bundle)
        with self._told_of_none():
            return self._in_sense(await self.retriever.aretrieve(replace(bundle)))

    @contextmanager
    def _told_of_none(self) -> Iterator[None]:
        try:
            yield
        except TypeError as error:
            frame = error.__traceback__
            while frame is not None and frame.tb_next is not None:
                frame = frame.tb_next
            # LlamaIndex loops over what `_retrieve` returned, and there is no other way to look at it.
            if frame is not None and frame.tb_frame.f_code.co_name.endswith("handle_recursive_retrieval"):
                raise InvalidInputError(
                    f"the first stage, a {type(self.retriever).__name__}, must return a list of NodeWithScore, and "
                    f"returned something else: {error}"
                ) from error
            raise

    def _in_sense(self, answer: Any) -> list[NodeWithScore]:
        """Return at most `k` nodes with scores of which larger is better, or with none.

        Only nearest-neighbour searches of vector stores are looked at: their order says what their scores mean.
        Distances of an L2 index of FAISS become similarities; of another store, scores that rise along its order are
        left out.
        """
        if answer is None:
            raise InvalidInputError(
                f"the first stage, a {type(self.retriever).__name__}, must return a list of NodeWithScore, and "
                "returned None"
            )
        found: list[NodeWithScore] = list(islice(answer, self.k))
        if not isinstance(self.retriever, VectorIndexRetriever):
            return found
        store: Any = self.retriever._vector_store  # noqa: SLF001 - there is no public way
        if any(class_.__name__ == "FaissVectorStore" for class_ in type(store).__mro__):
            if store.client.metric_type != 1:  # anything but L2, squared
                return found
            return [
                item.model_copy(
                    update={"score": None if item.score is None else to_similarity(item.score, "euclidean")}
                )
                for item in found
            ]
        mode = self.retriever._vector_store_query_mode  # noqa: SLF001
        if mode is VectorStoreQueryMode.DEFAULT and _rising(found):
            return [item.model_copy(update={"score": None}) for item in found]
        return found

    def _fused(self, rankings: Sequence[Sequence[NodeWithScore]]) -> list[NodeWithScore]:
        weights = [1.0] * len(rankings)
        return fuse_nodes(rankings, weights=weights, rrf_k=60, k=self.k, merge=merge_of(self.retriever))


def check_retriever(given: object, name: str) -> None:
    """Raise InvalidInputError if `given` is neither a retriever nor an index."""
    if not isinstance(given, BaseRetriever) and not callable(getattr(given, "as_retriever", None)):
        raise InvalidInputError(f"{name} must be a LlamaIndex retriever or an index, got {type(given).__name__}")


def check_filters(filters: MetadataFilters | None) -> MetadataFilters | None:
    """Return `filters`, or raise InvalidInputError; which of them a first stage can use, it says itself."""
    if filters is not None and not isinstance(filters, MetadataFilters):
        raise InvalidInputError(f"filters must be a MetadataFilters, got {type(filters).__name__}")
    return filters


def first_stage(given: BaseRetriever | Index, k: int, filters: MetadataFilters | None = None) -> FirstStage:
    """Return a first stage for one call. What is given is never modified.

    An index is asked for a retriever each time, as it may have grown.

    Args:
        given: A retriever, or an index.
        k: How many nodes to find.
        filters: What the nodes must pass, beside the filters that retrievers have already.

    Raises:
        InvalidInputError: If it cannot be shown that the filters arrive.
    """
    setting = _Setting(k, filters)
    retriever = setting.applied(given if isinstance(given, BaseRetriever) else given.as_retriever())
    return FirstStage(retriever, k, tuple(dict.fromkeys(setting.unreached)))


def fuse_nodes(
    rankings: Sequence[Sequence[NodeWithScore]], *, weights: Sequence[float], rrf_k: float, k: int, merge: Merge
) -> list[NodeWithScore]:
    """Return new objects around the best nodes of several rankings, with the fused score and all ranks."""

    def key(found: NodeWithScore) -> str:
        return found.node.node_id if merge == "id" else found.node.get_content()

    return [
        FusedNode(node=fused.item.node, score=fused.score, retrieval_rank=rank, retrieval_ranks=fused.ranks)
        for rank, fused in enumerate(fuse_by(rankings, key, weights=weights, rrf_k=rrf_k, k=k), start=1)
    ]


@dataclass(slots=True)
class _Setting:
    """What all retrievers of a first stage are set to, on copies."""

    k: int
    filters: MetadataFilters | None
    unreached: list[str] = field(default_factory=list)
    copies: dict[int, BaseRetriever] = field(default_factory=dict)

    def applied(self, retriever: BaseRetriever) -> BaseRetriever:
        """Return a copy of a retriever, and of those in it, that finds `k` nodes which pass the filters."""
        if id(retriever) in self.copies:  # a RecursiveRetriever may hold itself
            return self.copies[id(retriever)]
        copied = self.copies[id(retriever)] = copy.copy(retriever)
        filtered, deep = self._filtered(copied), self._deepened(copied)
        inner = False
        for name, value in list(vars(copied).items()):
            followed = self._followed(value)
            if followed is not value:
                vars(copied)[name], inner = followed, True
        if self.filters is not None and not filtered and not (inner and _only_asks(copied)):
            raise InvalidInputError(
                f"it cannot be shown that filters arrive at a {type(copied).__name__}: it has no filters that could be "
                "set. Give the filters where it is made, or give a retriever that takes them, such as ChromaRetriever, "
                "BM25Retriever or index.as_retriever()"
            )
        # A retriever that re-ranks returns its own number.
        if not deep and (not inner or hasattr(copied, "top_n")) and type(copied).__name__ not in _WHOLE:
            self.unreached.append(type(copied).__name__)
        return copied

    def _deepened(self, retriever: BaseRetriever) -> bool:
        for name in _BOUNDS:
            bound = getattr(retriever, name, None)
            if isinstance(bound, int) and bound < self.k:
                setattr(retriever, name, self.k)
        for name in _DEPTHS:
            described = getattr(type(retriever), name, None)
            read_only = isinstance(described, property) and described.fset is None
            depth = getattr(retriever, name, None)
            if isinstance(depth, int) and not read_only:
                pool = getattr(retriever, "mmr_prefetch_k", None)  # ours; with its old pool it would choose all of it
                if pool is not None:
                    vars(retriever)["mmr_prefetch_k"] = wider_pool(pool, depth, self.k)
                setattr(retriever, name, self._most(retriever))
                return True
        return False

    def _most(self, retriever: BaseRetriever) -> int:
        """Return how many nodes a retriever can be asked for.

        The BM25Retriever of LlamaIndex fails when it is asked for more than it holds, which it looks at only when it is
        made.
        """
        scores = getattr(getattr(retriever, "bm25", None), "scores", None)
        held = scores.get("num_docs") if isinstance(scores, Mapping) else None
        return min(self.k, held) if isinstance(held, int) and held > 0 else self.k

    def _filtered(self, retriever: BaseRetriever) -> bool:
        for name in _FILTERS:
            own = getattr(retriever, name, self)
            if self.filters is not None and (own is None or isinstance(own, MetadataFilters)):
                setattr(retriever, name, both_filters(own, self.filters))
                return True
        return False

    def _followed(self, value: Any) -> Any:
        """Return a value with all retrievers in it replaced by their copies; one without any as it is."""
        if isinstance(value, BaseRetriever):
            return self.applied(value)
        if self.filters is not None and isinstance(value, BaseQueryEngine):
            raise InvalidInputError(
                "a query engine is among what would be searched, and takes no filters; leave it out, or give it "
                "filters where it is made"
            )
        if type(value) not in (dict, list, tuple) or len(value) > _MOST_INNER:
            return value
        items = list(value.values()) if isinstance(value, dict) else list(value)
        followed = list(map(self._followed, items))
        if all(new is old for new, old in zip(followed, items, strict=True)):
            return value
        return dict(zip(value, followed, strict=True)) if isinstance(value, dict) else type(value)(followed)


def both_filters(own: MetadataFilters | None, asked: MetadataFilters | None) -> MetadataFilters | None:
    """Return the filters that hold where both hold."""
    if own is None or asked is None or not own.filters or not asked.filters or own == asked:
        return asked if own is None or not own.filters else own
    # Side by side where that says the same: many stores take no filters within filters.
    parts = [each.filters if each.condition is FilterCondition.AND else [each] for each in (own, asked)]
    return MetadataFilters(filters=[*parts[0], *parts[1]], condition=FilterCondition.AND)


def _only_asks(retriever: BaseRetriever) -> bool:
    """Whether a retriever is known to find nothing by itself, but only to ask those in it."""
    defining = next(class_ for class_ in type(retriever).__mro__ if "_retrieve" in vars(class_))
    return defining.__module__.startswith(_KNOWN)


def _is_plain(bundle: QueryBundle) -> bool:
    return bundle.embedding is None and not bundle.custom_embedding_strs


def _rising(found: Sequence[NodeWithScore]) -> bool:
    scores = [item.score for item in found if item.score is not None]
    return len(scores) > 1 and scores[0] < scores[-1] and all(before <= after for before, after in pairwise(scores))
