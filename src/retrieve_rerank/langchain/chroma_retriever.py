"""The dense first stage as a LangChain retriever."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from pydantic import ConfigDict, field_validator

from retrieve_rerank.checks import check_count
from retrieve_rerank.indexes.clauses import Where
from retrieve_rerank.langchain._convert import with_metadata
from retrieve_rerank.langchain.vectorstore import ChromaVectorStore


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

    score_key: ClassVar[str] = "retrieval_score"  # see `first_stage`

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
