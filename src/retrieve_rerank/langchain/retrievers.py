"""The first stage, and both stages in a row, as LangChain retrievers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables import Runnable, RunnableBinding
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
from pydantic import ConfigDict, field_validator

from retrieve_rerank.checks import check_count, check_query, check_threshold
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.collection import Where
from retrieve_rerank.langchain._convert import as_candidates, with_metadata
from retrieve_rerank.langchain.reranker import CrossEncoderReranker
from retrieve_rerank.langchain.vectorstore import ChromaVectorStore
from retrieve_rerank.models.cross_encoder import CrossEncoder


class ChromaRetriever(BaseRetriever):
    """The dense first stage: many candidates from a `ChromaVectorStore`, with their scores.

    Args:
        vectorstore: Where the documents are.
        k: How many documents at most; `invoke(query, k=…)` overrides it for one call.
        filter: Chroma's filter on metadata; `invoke(query, filter=…)` overrides it.
        score_threshold: Documents whose retrieval score is below are left out. It is a similarity on the metric's own
            scale: cosine in [-1, 1], a dot product, or 1 / (1 + distance).

    The documents are copies whose metadata has `retrieval_score` (larger is better) and `retrieval_rank` (1-based).

    Example:
        >>> from retrieve_rerank.langchain import BiEncoderEmbeddings, ChromaRetriever
        >>> retriever = ChromaRetriever.from_texts(
        ...     ["Paris is the capital of France.", "Bread is baked."],
        ...     BiEncoderEmbeddings(model=str(bi_encoder_path)),
        ...     k=1,
        ... )
        >>> retriever.invoke("capital of France")[0].page_content
        'Paris is the capital of France.'
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    vectorstore: ChromaVectorStore
    k: int = 100
    filter: Mapping[str, Any] | None = None
    score_threshold: float | None = None

    @field_validator("k", mode="before")
    @classmethod
    def _k(cls, value: int) -> int:
        return check_count(value, "k")

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings,
        metadatas: Iterable[dict[str, Any]] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        k: int = 100,
        filter: Where | None = None,
        score_threshold: float | None = None,
        **store_options: Any,
    ) -> ChromaRetriever:
        """Return a retriever over a new store with texts in it.

        Args:
            texts: What to store.
            embedding: Any LangChain embeddings.
            metadatas: One a text.
            ids: One a text; a text without one gets a random one.
            k: As for the class.
            filter: As for the class.
            score_threshold: As for the class.
            **store_options: For `ChromaVectorStore.from_texts`, such as `persist_directory`.
        """
        store = ChromaVectorStore.from_texts(texts, embedding, metadatas, ids=ids, **store_options)
        return cls(vectorstore=store, k=k, filter=filter, score_threshold=score_threshold)

    @classmethod
    def from_documents(
        cls,
        documents: list[Document],
        embedding: Embeddings,
        *,
        k: int = 100,
        filter: Where | None = None,
        score_threshold: float | None = None,
        **store_options: Any,
    ) -> ChromaRetriever:
        """Return a retriever over a new store with documents in it; see `from_texts`."""
        store = ChromaVectorStore.from_documents(documents, embedding, **store_options)
        return cls(vectorstore=store, k=k, filter=filter, score_threshold=score_threshold)

    def add_documents(self, documents: list[Document], **options: Any) -> list[str]:
        """Store documents; see `ChromaVectorStore.add_texts`. Returns their ids."""
        return self.vectorstore.add_documents(documents, **options)

    def delete(self, ids: list[str]) -> None:
        """Delete documents by id; ids that are not stored are no error."""
        self.vectorstore.delete(ids)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Where | None = None,
        where_document: Where | None = None,
        score_threshold: float | None = None,
    ) -> list[Document]:
        scored = self.vectorstore.similarity_search_with_score(
            query, self.k if k is None else k, self.filter if filter is None else filter, where_document
        )
        return self._scored(scored, score_threshold)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Where | None = None,
        where_document: Where | None = None,
        score_threshold: float | None = None,
    ) -> list[Document]:
        scored = await self.vectorstore.asimilarity_search_with_score(
            query, self.k if k is None else k, self.filter if filter is None else filter, where_document
        )
        return self._scored(scored, score_threshold)

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        params = super()._get_ls_params(**kwargs)
        params["ls_vector_store_provider"] = "Chroma"
        if self.vectorstore.embeddings is not None:
            params["ls_embedding_provider"] = type(self.vectorstore.embeddings).__name__
        return params

    def _scored(self, found: list[tuple[Document, float]], score_threshold: float | None) -> list[Document]:
        threshold = self.score_threshold if score_threshold is None else score_threshold
        documents = []
        for rank, (document, distance) in enumerate(found, start=1):
            score = self.vectorstore.collection.similarity(distance)
            if threshold is None or score >= threshold:
                documents.append(with_metadata(document, {"retrieval_score": score, "retrieval_rank": rank}))
        return documents


class RetrieveRerankRetriever(BaseRetriever):
    """Retrieve candidates with any first stage, order them with a cross-encoder, keep the best.

    Args:
        base_retriever: Any LangChain retriever or vector store. It is asked for `fetch_k` documents where it has a `k`,
            and is never modified.
        reranker: A `CrossEncoderReranker`, or a model for one.
        fetch_k: How many candidates; `invoke(query, fetch_k=…)` overrides it for one call.
        top_n: How many documents to return at most; `invoke(query, top_n=…)` overrides it. The re-ranker's own `top_n`
            is not used.
        score_threshold: Documents whose relevance score is below are left out; None takes the re-ranker's own.

    Other options of `invoke`, such as `filter=…`, go to the first stage. The first stage and the re-ranking are traced
    as runs under the retriever's run. For the result's metadata see `CrossEncoderReranker`.

    Example:
        >>> from retrieve_rerank.langchain import BiEncoderEmbeddings, ChromaVectorStore
        >>> from retrieve_rerank.langchain import CrossEncoderReranker, RetrieveRerankRetriever
        >>> store = ChromaVectorStore.from_texts(
        ...     ["Bread is baked.", "Paris is the capital of France."], BiEncoderEmbeddings(model=str(bi_encoder_path))
        ... )
        >>> reranker = CrossEncoderReranker(model=str(cross_encoder_path))
        >>> retriever = RetrieveRerankRetriever(base_retriever=store, reranker=reranker, top_n=1)
        >>> retriever.invoke("What is the capital of France?")[0].page_content
        'Paris is the capital of France.'
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    base_retriever: Runnable[str, list[Document]] | VectorStore
    reranker: CrossEncoderReranker
    fetch_k: int = 100
    top_n: int = 5
    score_threshold: float | None = None

    @field_validator("base_retriever", mode="before")
    @classmethod
    def _base_retriever(cls, value: object) -> object:
        if not isinstance(value, (Runnable, VectorStore)):
            raise InvalidInputError(
                f"base_retriever must be a LangChain retriever or vector store, got {type(value).__name__}"
            )
        return value

    @field_validator("reranker", mode="before")
    @classmethod
    def _reranker(cls, value: object) -> object:
        return CrossEncoderReranker(model=value) if isinstance(value, (str, CrossEncoder)) else value

    @field_validator("fetch_k", "top_n", mode="before")
    @classmethod
    def _count(cls, value: int) -> int:
        return check_count(value, "fetch_k and top_n")

    @field_validator("score_threshold")
    @classmethod
    def _score_threshold(cls, value: float | None) -> float | None:
        return check_threshold(value)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        top_n: int | None = None,
        fetch_k: int | None = None,
        score_threshold: float | None = None,
        **first_stage_options: Any,
    ) -> list[Document]:
        check_query(query)
        stage, limit, options = self._first_stage(fetch_k, first_stage_options)
        rerank = self._second_stage(top_n, score_threshold)
        candidates = stage.invoke(query, {"callbacks": run_manager.get_child("retrieve")}, **options)
        job = {"query": query, "documents": as_candidates(candidates[:limit], scored=isinstance(stage, _SCORING))}
        return rerank.invoke(job, {"callbacks": run_manager.get_child("rerank")})

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        top_n: int | None = None,
        fetch_k: int | None = None,
        score_threshold: float | None = None,
        **first_stage_options: Any,
    ) -> list[Document]:
        check_query(query)
        stage, limit, options = self._first_stage(fetch_k, first_stage_options)
        rerank = self._second_stage(top_n, score_threshold)
        candidates = await stage.ainvoke(query, {"callbacks": run_manager.get_child("retrieve")}, **options)
        job = {"query": query, "documents": as_candidates(candidates[:limit], scored=isinstance(stage, _SCORING))}
        return await rerank.ainvoke(job, {"callbacks": run_manager.get_child("rerank")})

    def _second_stage(self, top_n: int | None, score_threshold: float | None) -> Runnable[Any, list[Document]]:
        limit = self.top_n if top_n is None else check_count(top_n, "top_n")
        threshold = self.score_threshold if score_threshold is None else score_threshold
        return self.reranker.as_runnable(top_n=limit, score_threshold=threshold)

    def _first_stage(
        self, fetch_k: int | None, options: dict[str, Any]
    ) -> tuple[Runnable[str, list[Document]], int, dict[str, Any]]:
        """Return the first stage, set to find `fetch_k` documents; that number; and the options for its `invoke`."""
        limit = self.fetch_k if fetch_k is None else check_count(fetch_k, "fetch_k")
        base = self.base_retriever
        if isinstance(base, RunnableBinding):  # what with_config and bind make
            inner = self.model_copy(update={"base_retriever": base.bound})
            stage, limit, options = inner._first_stage(limit, options)  # noqa: SLF001 - ourselves
            return base.model_copy(update={"bound": stage}), limit, options
        if isinstance(base, ChromaVectorStore):
            return ChromaRetriever(vectorstore=base, k=limit), limit, options
        if isinstance(base, VectorStore):
            return ScoredStoreRetriever(vectorstore=base), limit, {"k": limit, **options}
        if isinstance(base, VectorStoreRetriever):
            depth = {"k": limit}
            if base.search_type == "mmr":  # it chooses k out of fetch_k
                depth["fetch_k"] = max(limit, base.search_kwargs.get("fetch_k", 0))
            return base, limit, {**depth, **options}
        if isinstance(base, BaseRetriever):
            if options and not base._expects_other_args:  # noqa: SLF001 - LangChain drops them without a word
                raise InvalidInputError(
                    f"{type(base).__name__} takes no options at invoke, got {', '.join(map(repr, sorted(options)))}; "
                    "set them on the retriever itself"
                )
            if "k" in type(base).model_fields:
                base = base.model_copy(update={"k": limit})
        return base, limit, options


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


_SCORING = (ChromaRetriever, ScoredStoreRetriever)  # first stages that write each document's retrieval score


def _with_relevance(scored: list[tuple[Document, float]]) -> list[Document]:
    return [with_metadata(document, {"retrieval_score": float(score)}) for document, score in scored]
