"""Which way the scores of LlamaIndex's vector stores run: some stores give distances where similarities are meant."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.indices.vector_store import VectorIndexRetriever
from llama_index.core.schema import NodeWithScore
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from retrieve_rerank.indexes.collection import to_similarity


def in_sense(retriever: BaseRetriever, found: Sequence[NodeWithScore]) -> list[NodeWithScore]:
    """Return a first stage's nodes with scores of which larger is better, or with none.

    Only nearest-neighbour searches of vector stores are looked at: their order says what their scores mean. Distances
    of an L2 index of FAISS become similarities; of another store, scores that rise along its order are left out.
    """
    if not isinstance(retriever, VectorIndexRetriever):
        return list(found)
    store: Any = retriever._vector_store  # noqa: SLF001 - there is no public way
    if any(class_.__name__ == "FaissVectorStore" for class_ in type(store).__mro__):
        if store.client.metric_type != 1:  # anything but L2, squared
            return list(found)
        return [
            item.model_copy(update={"score": None if item.score is None else to_similarity(item.score, "euclidean")})
            for item in found
        ]
    if retriever._vector_store_query_mode is VectorStoreQueryMode.DEFAULT and _rising(found):  # noqa: SLF001
        return [item.model_copy(update={"score": None}) for item in found]
    return list(found)


def _rising(found: Sequence[NodeWithScore]) -> bool:
    scores = [item.score for item in found if item.score is not None]
    return len(scores) > 1 and scores[0] < scores[-1] and all(before <= after for before, after in pairwise(scores))
