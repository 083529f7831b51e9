"""The dense first stage as a LangChain retriever."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables import RunnableConfig
from pydantic import ConfigDict, field_validator

from retrieve_rerank.checks import check_count, check_query
from retrieve_rerank.indexes.filters import Where
from retrieve_rerank.indexes.mmr import check_diversity
from retrieve_rerank.indexes.nearest import Found
from retrieve_rerank.langchain._convert import to_document, with_metadata
from retrieve_rerank.langchain._dense import DenseSearch, Together
from retrieve_rerank.langchain._travel import Travelling, unpacked
from retrieve_rerank.langchain.vectorstore import ChromaVectorStore

_SEARCH_OPTIONS = ("k", "filter", "where_document", "lambda_mult", "fetch_k")


class ChromaRetriever(Travelling, BaseRetriever):
    """The dense first stage: many candidates from a `ChromaVectorStore`, with their scores.

    Args:
        vectorstore: Where the documents are.
        k: How many documents at most; `invoke(query, k=…)` overrides it for one call.
        filter: Chroma's filter on metadata; `invoke(query, filter=…)` overrides it.
        score_threshold: Documents whose retrieval score is below are left out. It is a similarity on the metric's own
            scale: cosine in [-1, 1], a dot product, or 1 / (1 + distance).
        lambda_mult: Find documents that are near to the query and unlike one another, by maximal marginal relevance:
            the weight of nearness against novelty in [0, 1], both by the collection's metric. The order is that in
            which they were chosen. `invoke(query, lambda_mult=…)` overrides it.
        fetch_k: How many of the nearest to choose from, where `lambda_mult` is given; None is 4 * `k`.

    `batch` and `abatch` search all queries in one go, and embed them in one go where the embeddings are
    `BiEncoderEmbeddings`, else side by side; the config's `max_concurrency` is how many at once. Every query is a run
    of its own all the same.

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

    holds: ClassVar[tuple[str, ...]] = ("vectorstore",)

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    score_key: ClassVar[str] = "retrieval_score"  # see `first_stage`

    vectorstore: ChromaVectorStore
    k: int = 100
    filter: Mapping[str, Any] | None = None
    score_threshold: float | None = None
    lambda_mult: float | None = None
    fetch_k: int | None = None

    @field_validator("vectorstore", mode="before")
    @classmethod
    def _vectorstore(cls, value: object) -> object:
        return unpacked(value)

    @field_validator("k", mode="before")
    @classmethod
    def _k(cls, value: int) -> int:
        return check_count(value, "k")

    @field_validator("fetch_k", mode="before")
    @classmethod
    def _fetch_k(cls, value: int | None) -> int | None:
        return None if value is None else check_count(value, "fetch_k")

    @field_validator("lambda_mult", mode="before")
    @classmethod
    def _lambda_mult(cls, value: float | None) -> float | None:
        return None if value is None else check_diversity(value, "lambda_mult")

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
        lambda_mult: float | None = None,
        fetch_k: int | None = None,
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
            lambda_mult: As for the class.
            fetch_k: As for the class.
            **store_options: For `ChromaVectorStore.from_texts`, such as `persist_directory`.
        """
        store = ChromaVectorStore.from_texts(texts, embedding, metadatas, ids=ids, **store_options)
        return cls(
            vectorstore=store,
            k=k,
            filter=filter,
            score_threshold=score_threshold,
            lambda_mult=lambda_mult,
            fetch_k=fetch_k,
        )

    @classmethod
    def from_documents(
        cls,
        documents: list[Document],
        embedding: Embeddings,
        *,
        k: int = 100,
        filter: Where | None = None,
        score_threshold: float | None = None,
        lambda_mult: float | None = None,
        fetch_k: int | None = None,
        **store_options: Any,
    ) -> ChromaRetriever:
        """Return a retriever over a new store with documents in it; see `from_texts`."""
        store = ChromaVectorStore.from_documents(documents, embedding, **store_options)
        return cls(
            vectorstore=store,
            k=k,
            filter=filter,
            score_threshold=score_threshold,
            lambda_mult=lambda_mult,
            fetch_k=fetch_k,
        )

    def add_documents(self, documents: list[Document], **options: Any) -> list[str]:
        """Store documents; see `ChromaVectorStore.add_texts`. Returns their ids."""
        return self.vectorstore.add_documents(documents, **options)

    def delete(self, ids: list[str]) -> None:
        """Delete documents by id; ids that are not stored are no error."""
        self.vectorstore.delete(ids)

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """As `invoke` for each query, each a run of its own; embedded and searched in one go."""
        together = self.together(inputs, kwargs, config)
        return super().batch(inputs, config, return_exceptions=return_exceptions, together=together, **kwargs)

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """As `batch`, without blocking the event loop."""
        together = self.together(inputs, kwargs, config)
        return await super().abatch(inputs, config, return_exceptions=return_exceptions, together=together, **kwargs)

    def together(
        self,
        queries: list[str],
        options: Mapping[str, Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
    ) -> Together:
        """Return a search of many queries, each of which then is one `invoke` with these options."""
        known = {name: value for name, value in options.items() if name in _SEARCH_OPTIONS}
        return Together(partial(self._search, **known), queries, config)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Where | None = None,
        where_document: Where | None = None,
        score_threshold: float | None = None,
        lambda_mult: float | None = None,
        fetch_k: int | None = None,
        together: Together | None = None,
    ) -> list[Document]:
        if together is not None:
            return self._scored(together.found(query), score_threshold)
        search = self._search(k, filter, where_document, lambda_mult, fetch_k)
        return self._scored(search.run([check_query(query)])[0], score_threshold)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Where | None = None,
        where_document: Where | None = None,
        score_threshold: float | None = None,
        lambda_mult: float | None = None,
        fetch_k: int | None = None,
        together: Together | None = None,
    ) -> list[Document]:
        if together is not None:
            return self._scored(await together.afound(query), score_threshold)
        search = self._search(k, filter, where_document, lambda_mult, fetch_k)
        return self._scored((await search.arun([check_query(query)]))[0], score_threshold)

    def _search(
        self,
        k: int | None = None,
        filter: Where | None = None,
        where_document: Where | None = None,
        lambda_mult: float | None = None,
        fetch_k: int | None = None,
    ) -> DenseSearch:
        return DenseSearch(
            self.vectorstore,
            check_count(self.k if k is None else k, "k"),
            self.filter if filter is None else filter,
            where_document,
            self.lambda_mult if lambda_mult is None else check_diversity(lambda_mult, "lambda_mult"),
            self.fetch_k if fetch_k is None else check_count(fetch_k, "fetch_k"),
        )

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        params = super()._get_ls_params(**kwargs)
        params["ls_vector_store_provider"] = "Chroma"
        if self.vectorstore.embeddings is not None:
            params["ls_embedding_provider"] = type(self.vectorstore.embeddings).__name__
        return params

    def _scored(self, found: list[Found], score_threshold: float | None) -> list[Document]:
        threshold = self.score_threshold if score_threshold is None else score_threshold
        documents = []
        for rank, item in enumerate(found, start=1):
            score = self.vectorstore.collection.similarity(item.distance)
            if threshold is None or score >= threshold:
                marks = {"retrieval_score": score, "retrieval_rank": rank}
                documents.append(with_metadata(to_document(item.record), marks))
        return documents
