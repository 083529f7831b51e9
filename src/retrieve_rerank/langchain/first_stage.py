"""Any LangChain retriever or vector store as a first stage that keeps its scores."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

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
from retrieve_rerank.langchain._stores import Sense, falling, prepared, similarity_of
from retrieve_rerank.langchain.chroma_retriever import ChromaRetriever
from retrieve_rerank.langchain.vectorstore import ChromaVectorStore

Base: TypeAlias = Runnable[str, list[Document]] | VectorStore

_OURS = "retrieval_score"
# Where retrievers of other libraries leave the score of each document, in its metadata. Larger is better in all.
_SCORE_KEYS = {"ElasticsearchRetriever": "_score", "AsyncElasticsearchRetriever": "_score"}


@dataclass(frozen=True, slots=True)
class FirstStage:
    """A first stage made ready for one call.

    Attributes:
        asked: What finds the documents.
        options: For its `invoke`.
        fetch_k: How many documents are wanted.
        score_key: The metadata key under which it leaves each document's score; None where it leaves none.
        fused: Whether it writes each document's `retrieval_ranks`.
    """

    asked: Runnable[str, list[Document]]
    options: dict[str, Any]
    fetch_k: int
    score_key: str | None = None
    fused: bool = False

    def invoke(self, query: str, callbacks: BaseCallbackManager) -> list[Document]:
        """Return copies of the candidates, best first, marked with their ranks."""
        return self.candidates(self.asked.invoke(query, {"callbacks": callbacks}, **self.options))

    async def ainvoke(self, query: str, callbacks: BaseCallbackManager) -> list[Document]:
        """As `invoke`, by the first stage's own async method."""
        return self.candidates(await self.asked.ainvoke(query, {"callbacks": callbacks}, **self.options))

    def candidates(self, found: list[Document]) -> list[Document]:
        """Return copies of what it found, marked with their ranks."""
        documents = as_candidates(found[: self.fetch_k], scored=self.score_key == _OURS, fused=self.fused)
        if self.score_key in (None, _OURS):
            return documents
        return [_with_score(document, document.metadata.get(self.score_key)) for document in documents]


def first_stage(base: Base, fetch_k: int, options: dict[str, Any]) -> FirstStage:
    """Return `base`, which is never modified, made ready to find `fetch_k` documents.

    A retriever that leaves each document's score in the metadata says so by a class attribute `score_key`, the key's
    name; of a class that does not, what stored documents say of themselves is not taken for a score.

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
        return FirstStage(ChromaRetriever(vectorstore=base, k=fetch_k), options, fetch_k, _OURS)
    if isinstance(base, VectorStore):
        base = VectorStoreRetriever(vectorstore=base)
    if isinstance(base, VectorStoreRetriever):
        depth = {"k": fetch_k}
        if base.search_type == "mmr":  # it chooses k out of fetch_k
            depth["fetch_k"] = max(fetch_k, base.search_kwargs.get("fetch_k", 0))
        if type(base) is VectorStoreRetriever:
            base = ScoredStoreRetriever.of(base)
        return FirstStage(base, {**depth, **options}, fetch_k, _score_key(base))
    if isinstance(base, BaseRetriever):
        if options and not base._expects_other_args:  # noqa: SLF001 - LangChain drops them without a word
            raise InvalidInputError(
                f"{type(base).__name__} takes no options at invoke, got {', '.join(map(repr, sorted(options)))}; "
                "set them on the retriever itself"
            )
        if "k" in type(base).model_fields:
            base = base.model_copy(update={"k": fetch_k})
    return FirstStage(base, options, fetch_k, _score_key(base), fused=getattr(type(base), "fuses", False) is True)


class ScoredStoreRetriever(VectorStoreRetriever):
    """A vector store's own retriever that keeps the store's scores, turned so that larger is better."""

    score_key: ClassVar[str] = _OURS

    @classmethod
    def of(cls, plain: VectorStoreRetriever) -> ScoredStoreRetriever:
        """Return `plain` with scores; in traces it keeps its name."""
        fields = {name: getattr(plain, name) for name in type(plain).model_fields}
        return cls(**{**fields, "name": plain.get_name()})

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        options, store = prepared(self.vectorstore, self.search_kwargs | kwargs, self.search_type), self.vectorstore
        if self.search_type == "similarity_score_threshold":
            return _scored(store.similarity_search_with_relevance_scores(query, **options))
        similarity = similarity_of(store, options) if self.search_type == "similarity" else None
        if similarity is not None:
            try:
                return _scored(store.similarity_search_with_score(query, **options), similarity)
            except NotImplementedError:
                pass
        return _unscored(super()._get_relevant_documents(query, run_manager=run_manager, **options))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        options, store = prepared(self.vectorstore, self.search_kwargs | kwargs, self.search_type), self.vectorstore
        if self.search_type == "similarity_score_threshold":
            return _scored(await store.asimilarity_search_with_relevance_scores(query, **options))
        similarity = similarity_of(store, options) if self.search_type == "similarity" else None
        if similarity is not None:
            try:
                return _scored(await store.asimilarity_search_with_score(query, **options), similarity)
            except NotImplementedError:
                pass
        return _unscored(await super()._aget_relevant_documents(query, run_manager=run_manager, **options))


def _score_key(retriever: object) -> str | None:
    declared = getattr(type(retriever), "score_key", None)
    if isinstance(declared, str):
        return declared
    return next((_SCORE_KEYS[c.__name__] for c in type(retriever).__mro__ if c.__name__ in _SCORE_KEYS), None)


def _scored(found: list[tuple[Document, float]], similarity: Sense = float) -> list[Document]:
    scores = [float(similarity(float(score))) for _, score in found]
    if not falling(scores):  # whatever they are, larger is not better
        return _unscored(document for document, _ in found)
    return [_with_score(document, score) for (document, _), score in zip(found, scores, strict=True)]


def _unscored(documents: Iterable[Document]) -> list[Document]:
    return [_with_score(document, None) for document in documents]


def _with_score(document: Document, score: object) -> Document:
    """Return a copy with this score, or, if it is no number, without any."""
    if isinstance(score, (int, float)) and math.isfinite(score):
        return with_metadata(document, {_OURS: float(score)})
    metadata = {key: value for key, value in document.metadata.items() if key != _OURS}
    return document.model_copy(update={"metadata": metadata})
