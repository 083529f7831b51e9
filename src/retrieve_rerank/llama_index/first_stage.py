"""Any LlamaIndex retriever or index as a first stage, asked as deep as is wanted."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.mmr import wider_pool
from retrieve_rerank.llama_index._stores import in_sense
from retrieve_rerank.llama_index.chroma_retriever import ChromaRetriever

# Where LlamaIndex's retrievers keep how many nodes they return; there is no common interface.
_TOP_K = ("similarity_top_k", "_similarity_top_k")


class Index(Protocol):
    """What makes a retriever of itself: LlamaIndex's indexes."""

    def as_retriever(self) -> BaseRetriever:
        """Return a retriever."""


def check_retriever(given: object, name: str) -> None:
    """Raise InvalidInputError if `given` is neither a retriever nor an index."""
    if not isinstance(given, BaseRetriever) and not callable(getattr(given, "as_retriever", None)):
        raise InvalidInputError(f"{name} must be a LlamaIndex retriever or an index, got {type(given).__name__}")


def first_stage(given: BaseRetriever | Index, k: int) -> BaseRetriever:
    """Return a retriever for one call, set to find `k` nodes where it can be. What is given is never modified.

    An index is asked for one each time, as it may have grown.
    """
    retriever = copy.copy(given) if isinstance(given, BaseRetriever) else given.as_retriever()
    for name in _TOP_K:
        described = getattr(type(retriever), name, None)
        read_only = isinstance(described, property) and described.fset is None
        if hasattr(retriever, name) and not read_only:
            if isinstance(retriever, ChromaRetriever) and retriever.mmr_prefetch_k is not None:
                retriever.mmr_prefetch_k = wider_pool(retriever.mmr_prefetch_k, retriever.similarity_top_k, k)
            setattr(retriever, name, _most(retriever, k))
            break
    return retriever


def _most(retriever: BaseRetriever, k: int) -> int:
    """Return how many nodes a retriever can be asked for.

    The BM25Retriever of LlamaIndex fails when it is asked for more than it holds, which it looks at only when it is
    made.
    """
    scores = getattr(getattr(retriever, "bm25", None), "scores", None)
    held = scores.get("num_docs") if isinstance(scores, Mapping) else None
    return min(k, held) if isinstance(held, int) and held > 0 else k


def ask(retriever: BaseRetriever, bundle: QueryBundle, k: int) -> list[NodeWithScore]:
    """Return at most `k` nodes. The retriever gets a bundle of its own: some write their embedding into it."""
    return in_sense(retriever, retriever.retrieve(replace(bundle))[:k])


async def aask(
    retriever: BaseRetriever, bundle: QueryBundle, k: int, arun: Callable[..., Awaitable[Any]]
) -> list[NodeWithScore]:
    """As `ask`, without blocking the event loop.

    Args:
        retriever: One without an async method of its own runs by `arun`.
        bundle: The query.
        k: How many nodes at most.
        arun: Runs a call on a thread, in the caller's context (spans stay nested), and awaits it.
    """
    if type(retriever)._aretrieve is BaseRetriever._aretrieve:  # noqa: SLF001 - the only way to know
        # It would run its sync method on the event loop.
        found: list[NodeWithScore] = await arun(ask, retriever, bundle, k)
        return found
    return in_sense(retriever, (await retriever.aretrieve(replace(bundle)))[:k])
