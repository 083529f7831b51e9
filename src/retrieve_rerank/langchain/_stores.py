"""What is known of other libraries' vector stores: which way their scores run, and how a filter is kept from starving.

LangChain's `similarity_search_with_score` is a distance in one store and a similarity in the next, and the relevance
scores made of it are wrong in some. What a store says of itself decides here. No store is imported: they are told by
the names of their classes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from langchain_core.vectorstores import VectorStore

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.collection import to_similarity
from retrieve_rerank.indexes.fingerprint import Identity

Sense: TypeAlias = Callable[[float], float]

# The names that stores give to their filter; many drop a name that is not theirs without a word.
_FILTERS = ("filter", "filters", "where", "where_document", "expr", "pre_filter", "metadata_filter")
_SEARCHES = (
    "similarity_search",
    "similarity_search_with_score",
    "similarity_search_by_vector",
    "similarity_search_with_score_by_vector",
)


def similarity_of(store: VectorStore, options: Mapping[str, Any]) -> Sense | None:
    """Return what makes a similarity, larger is better, of a score of `store.similarity_search_with_score`.

    A store that is not known here is asked for its relevance function.

    Args:
        store: Any vector store.
        options: Of the search; some stores take the metric there.

    Returns:
        None where the store has no scores for such a search, or none that are known to be similarities.
    """
    for class_ in type(store).__mro__:
        if class_.__name__ in _SENSES:
            try:
                return _SENSES[class_.__name__](store, options)
            except (AttributeError, KeyError, TypeError):  # a version that keeps its metric elsewhere
                break
    try:
        return store._select_relevance_score_fn()  # noqa: SLF001 - there is no public way that does not also warn
    except (NotImplementedError, ValueError):
        return None


def falling(scores: Sequence[float]) -> bool:
    """Whether scores are numbers that fall, or stay, along the store's own order: larger is better, then."""
    return all(map(math.isfinite, scores)) and all(
        after <= before + 1e-6 * max(1.0, abs(before)) for before, after in pairwise(scores)
    )


def prepared(store: VectorStore, options: Mapping[str, Any], search_type: str) -> dict[str, Any]:
    """Return the options of a search, so that a filter among them chooses in the store and not among what was found.

    Raises:
        InvalidInputError: If the store would drop the filter without a word, or cannot but starve it.
    """
    known = {
        name
        for search in _SEARCHES
        for name in inspect.signature(getattr(store, search, _nothing)).parameters
        if name in _FILTERS
    }
    given = [name for name in _FILTERS if options.get(name) is not None]
    for name in given:
        if known and name not in known:
            raise InvalidInputError(
                f"{type(store).__name__} has no option {name!r}; its filter is given as {' or '.join(sorted(known))}"
            )
    if given:
        for class_ in type(store).__mro__:
            if class_.__name__ in _UNSTARVED:
                return {**options, **_UNSTARVED[class_.__name__](store, options, search_type)}
    return dict(options)


def _nothing() -> None:
    """Stand for a method that a store lacks."""


def _same(score: float) -> float:
    return score


def _inverse(distance: float) -> float:
    return 1.0 / (1.0 + distance)


def _inverse_of_square(squared: float) -> float:
    return to_similarity(squared, "euclidean")


def _complement(distance: float) -> float:
    return 1.0 - distance


def _always_same(store: Any, options: Mapping[str, Any]) -> Sense:
    return _same


def _ours(store: Any, options: Mapping[str, Any]) -> Sense:
    similarity: Sense = store.collection.similarity
    return similarity


def _chroma(store: Any, options: Mapping[str, Any]) -> Sense:
    metric = Identity.read(store._collection.configuration_json, store._collection.metadata).metric  # noqa: SLF001
    return lambda distance: to_similarity(distance, metric)


def _faiss(store: Any, options: Mapping[str, Any]) -> Sense | None:
    # The store's distance_strategy is a wish: "COSINE" makes an L2 index. The index knows.
    if store.index.metric_type == 0:  # inner product
        return _same
    if store.index.metric_type != 1:  # L2, squared
        return None
    if store._normalize_L2:  # noqa: SLF001
        return lambda squared: 1.0 - squared / 2.0  # of unit vectors, the cosine
    return _inverse_of_square


def _qdrant(store: Any, options: Mapping[str, Any]) -> Sense | None:
    if getattr(store, "retrieval_mode", "dense") != "dense":  # dot products of sparse vectors, or fused ranks
        return _same
    distance = (store.distance if hasattr(store, "distance") else store.distance_strategy).lower()
    return {"cosine": _same, "dot": _same, "euclid": _inverse, "manhattan": _inverse}.get(distance)


def _milvus(store: Any, options: Mapping[str, Any]) -> Sense | None:
    if store._is_multi_vector:  # noqa: SLF001 - fused by a ranker
        return _same
    known = [settings for settings in (store.search_params, store.index_params) if isinstance(settings, Mapping)]
    metric = next((settings["metric_type"] for settings in known if settings.get("metric_type")), "")
    return {"COSINE": _same, "IP": _same, "BM25": _same, "L2": _inverse_of_square}.get(metric)


def _lancedb(store: Any, options: Mapping[str, Any]) -> Sense | None:
    if options.get("query_type", "vector") != "vector":
        return None  # it gives no scores then
    # The store's `distance` is a wish, too: the search takes its own option, the vectors' index, or L2.
    table, metric = store.get_table(options.get("name")), options.get("metrics")
    if metric is None:
        made = [table.index_stats(index.name).distance_type for index in table.list_indices()]
        metric = next((kind for kind in made if kind), "l2")
    return {"l2": _inverse_of_square, "cosine": _complement, "dot": _complement}.get(metric)


def _elasticsearch(store: Any, options: Mapping[str, Any]) -> Sense | None:
    return None if getattr(store._store.retrieval_strategy, "hybrid", False) else _same  # noqa: SLF001


_SENSES: dict[str, Callable[[Any, Mapping[str, Any]], Sense | None]] = {
    "ChromaVectorStore": _ours,
    "Chroma": _chroma,
    "FAISS": _faiss,
    "InMemoryVectorStore": _always_same,
    "QdrantVectorStore": _qdrant,
    "Qdrant": _qdrant,
    "Milvus": _milvus,
    "LanceDB": _lancedb,
    "ElasticsearchStore": _elasticsearch,
    "AsyncElasticsearchStore": _elasticsearch,
    "OpenSearchVectorSearch": _always_same,
}


def _fetch_all(store: Any, options: Mapping[str, Any], search_type: str) -> dict[str, Any]:
    """FAISS filters what it has fetched, 20 unless told."""
    return {"fetch_k": max(options.get("fetch_k") or 0, store.index.ntotal)}


def _filter_first(store: Any, options: Mapping[str, Any], search_type: str) -> dict[str, Any]:
    """LanceDB filters what it has found, unless told."""
    if search_type == "mmr":
        raise InvalidInputError(
            "LanceDB's mmr search filters what it has found, and may return nothing where there is much; use the "
            "search type 'similarity' with a filter"
        )
    return {"prefilter": True}


_UNSTARVED: dict[str, Callable[[Any, Mapping[str, Any], str], dict[str, Any]]] = {
    "FAISS": _fetch_all,
    "LanceDB": _filter_first,
}
