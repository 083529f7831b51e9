"""What a vector store query asks for, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_index.core.schema import ImageNode, IndexNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from retrieve_rerank.checks import check_count
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.collection import ChromaCollection, check_ids
from retrieve_rerank.indexes.mmr import PREFETCH_FACTOR, check_diversity
from retrieve_rerank.llama_index._clauses import Condition
from retrieve_rerank.llama_index._convert import DOCUMENT_KEY, TYPE_KEY
from retrieve_rerank.llama_index._filters import to_condition

Vector = npt.NDArray[np.float32]
_KEPT_BY_INDEX: Any = {TYPE_KEY: {"$in": [ImageNode.class_name(), IndexNode.class_name()]}}
_OPTIONS = ("where", "where_document", "mmr_threshold", "mmr_prefetch_factor", "mmr_prefetch_k")


@dataclass(frozen=True, slots=True)
class Request:
    """A checked query.

    Attributes:
        vector: (dimension,).
        k: How many nodes to return.
        condition: What they must pass.
        node_ids: What they must be among; None is no restriction.
        fetch: How many to fetch: more than `k` where the most diverse of them are chosen.
        diversity: Weight of relevance against novelty in [0, 1]; None ranks by relevance alone.
    """

    vector: Vector
    k: int
    condition: Condition
    node_ids: Sequence[str] | None
    fetch: int
    diversity: float | None


def read_request(query: VectorStoreQuery, options: Mapping[str, Any]) -> Request:
    """Check a query and the keyword options that came with it.

    Raises:
        InvalidInputError: If something is missing, unknown or cannot be done.
    """
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise InvalidInputError(f"unknown query option {', '.join(unknown)}; there are {', '.join(_OPTIONS)}")
    if query.mode not in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR):
        raise InvalidInputError(
            f"this store cannot search in mode {query.mode.value!r}, only in 'default' and 'mmr': it holds one dense "
            "vector a node"
        )
    if query.query_embedding is None or len(query.query_embedding) == 0:
        raise InvalidInputError(
            "the query has no embedding: it is empty, or was not embedded; give VectorStoreQuery(query_embedding=…)"
        )
    k = check_count(query.similarity_top_k, "similarity_top_k")
    condition = to_condition(query.filters).both(Condition(options.get("where"), options.get("where_document")))
    if query.doc_ids:
        condition = condition.both(Condition({DOCUMENT_KEY: {"$in": check_ids(query.doc_ids)}}))
    diversity, fetch = None, k
    if query.mode is VectorStoreQueryMode.MMR:
        given = options.get("mmr_threshold")
        threshold = query.mmr_threshold if given is None else given
        diversity = 0.5 if threshold is None else check_diversity(threshold, "mmr_threshold")
        fetch = _prefetch(k, options)
    # VectorStoreIndex passes an empty list where it has no restriction.
    node_ids = check_ids(query.node_ids) if query.node_ids else None
    return Request(_vector(query.query_embedding), k, condition, node_ids, fetch, diversity)


def _vector(embedding: Sequence[float]) -> Vector:
    try:
        return np.asarray(embedding, np.float32)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"the query's embedding must be a list of numbers: {error}") from error


def _prefetch(k: int, options: Mapping[str, Any]) -> int:
    factor, count = options.get("mmr_prefetch_factor"), options.get("mmr_prefetch_k")
    if factor is not None and count is not None:
        raise InvalidInputError("give mmr_prefetch_factor or mmr_prefetch_k, not both")
    if count is not None:
        return max(k, check_count(count, "mmr_prefetch_k"))
    if factor is None:
        factor = PREFETCH_FACTOR
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1 <= factor < math.inf:
        raise InvalidInputError(f"mmr_prefetch_factor must be a number >= 1, got {factor!r}")
    return int(k * factor)


def restriction(collection: ChromaCollection, node_ids: Sequence[str] | None) -> Sequence[str] | None:
    """Return the ids that a query is restricted to.

    VectorStoreIndex sends the ids of the nodes that it keeps itself. With a store that keeps the text these are the
    image and index nodes only, and a restriction to them would lose all others. A list of all of them, and of no other
    node, is therefore taken as its list, not as a wish.
    """
    if node_ids is None:
        return None
    kept = set(collection.ids(where=_KEPT_BY_INDEX))
    if not kept or not kept <= set(node_ids):
        return node_ids
    # The index never forgets a node that was deleted: ids that are not stored say nothing.
    return node_ids if collection.read(sorted(set(node_ids) - kept)) else None
