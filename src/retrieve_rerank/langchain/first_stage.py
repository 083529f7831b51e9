"""Any LangChain retriever or vector store as a first stage that keeps its scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    BaseCallbackManager,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableBinding
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.langchain._convert import as_candidates, with_metadata
from retrieve_rerank.langchain.chroma_retriever import ChromaRetriever
from retrieve_rerank.langchain.vectorstore import ChromaVectorStore

Base: TypeAlias = Runnable[str, list[Document]] | VectorStore


@dataclass(frozen=True, slots=True)
class FirstStage:
    """A first stage made ready for one call.

    Attributes:
        asked: What finds the documents.
        options: For its `invoke`.
        fetch_k: How many documents are wanted.
        scored: Whether it writes each document's `retrieval_score`.
        fused: Whether it writes each document's `retrieval_ranks`.
    """

    asked: Runnable[str, list[Document]]
    options: dict[str, Any]
    fetch_k: int
    scored: bool = False
    fused: bool = False

    def invoke(self, query: str, callbacks: BaseCallbackManager) -> list[Document]:
        """Return copies of the candidates, best first, marked with their ranks."""
        found = self.asked.invoke(query, {"callbacks": callbacks}, **self.options)
        return self.candidates(found)

    async def ainvoke(self, query: str, callbacks: BaseCallbackManager) -> list[Document]:
        """As `invoke`, by the first stage's own async method."""
        found = await self.asked.ainvoke(query, {"callbacks": callbacks}, **self.options)
        return self.candidates(found)

    def candidates(self, found: list[Document]) -> list[Document]:
        """Return copies of what it found, marked with their ranks."""
        return as_candidates(found[: self.fetch_k], scored=self.scored, fused=self.fused)


def first_stage(base: Base, fetch_k: int, options: dict[str, Any]) -> FirstStage:
    """Return `base`, which is never modified, made ready to find `fetch_k` documents.

    Args:
        base: Any LangChain retriever or vector store.
        fetch_k: How many documents it is asked for, where it can be told.
        options: Further options of the call, for `base`.

    Raises:
        InvalidInputError: If `base` would drop the options without a word.
    """
    if isinstance(base, RunnableBinding):  # what with_config and bind make
        inner = first_stage(base.bound, fetch_k, options)
        return replace(inner, asked=base.model_copy(update={"bound": inner.asked}))
    if isinstance(base, ChromaVectorStore):
        return FirstStage(ChromaRetriever(vectorstore=base, k=fetch_k), options, fetch_k, scored=True)
    if isinstance(base, VectorStore):
        return FirstStage(ScoredStoreRetriever(vectorstore=base), {"k": fetch_k, **options}, fetch_k, scored=True)
    if isinstance(base, VectorStoreRetriever):
        depth = {"k": fetch_k}
        if base.search_type == "mmr":  # it chooses k out of fetch_k
            depth["fetch_k"] = max(fetch_k, base.search_kwargs.get("fetch_k", 0))
        return FirstStage(base, {**depth, **options}, fetch_k, scored=isinstance(base, ScoredStoreRetriever))
    if isinstance(base, BaseRetriever):
        if options and not base._expects_other_args:  # noqa: SLF001 - LangChain drops them without a word
            raise InvalidInputError(
                f"{type(base).__name__} takes no options at invoke, got {', '.join(map(repr, sorted(options)))}; "
                "set them on the retriever itself"
            )
        if "k" in type(base).model_fields:
            base = base.model_copy(update={"k": fetch_k})
    fused = getattr(base, "fuses", False) is True
    return FirstStage(base, options, fetch_k, scored=fused or isinstance(base, ChromaRetriever), fused=fused)


class ScoredStoreRetriever(VectorStoreRetriever):
    """Any vector store as a first stage that keeps the store's relevance score, where the store has one."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        try:
            scored = self.vectorstore.similarity_search_with_relevance_scores(query, **kwargs)
        except NotImplementedError:
            return as_candidates(self.vectorstore.similarity_search(query, **kwargs), scored=False)
        return _with_relevance(scored)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        try:
            scored = await self.vectorstore.asimilarity_search_with_relevance_scores(query, **kwargs)
        except NotImplementedError:
            return as_candidates(await self.vectorstore.asimilarity_search(query, **kwargs), scored=False)
        return _with_relevance(scored)


def _with_relevance(scored: list[tuple[Document, float]]) -> list[Document]:
    return [with_metadata(document, {"retrieval_score": float(score)}) for document, score in scored]
