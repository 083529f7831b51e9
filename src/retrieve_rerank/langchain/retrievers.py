"""The dense first stage, and both stages in a row, as LangChain retrievers."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.vectorstores import VectorStore
from pydantic import BeforeValidator, ConfigDict, field_validator
from typing_extensions import Self, Unpack

from retrieve_rerank.checks import check_count, check_query, number_of
from retrieve_rerank.errors import InvalidInputError, shown
from retrieve_rerank.indexes.filters import Where
from retrieve_rerank.indexes.nearest import Found, check_diversity, check_mmr, diverse, wider_pool
from retrieve_rerank.langchain.compat import StoreOptions
from retrieve_rerank.langchain.convert import to_document
from retrieve_rerank.langchain.first_stage import AskingRetriever, FirstStage, retriever_of
from retrieve_rerank.langchain.reranker import CrossEncoderReranker, RerankInput
from retrieve_rerank.langchain.serialization import (
    Component,
    Count,
    Diversity,
    Seconds,
    Threshold,
    Weight,
    check_base,
    from_plain,
    restorable,
)
from retrieve_rerank.langchain.vectorstore import ChromaVectorStore
from retrieve_rerank.retrieval.rerank import OnError, SecondStage
from retrieve_rerank.types import Scorer


class _Options(StoreOptions, total=False):
    """The fields of a `ChromaRetriever` beside its store, and the arguments of the store."""

    k: int
    filter: Where | None
    score_threshold: float | None
    lambda_mult: float | None
    fetch_k: int | None
    name: str | None
    tags: list[str] | None
    metadata: dict[str, Any] | None


@restorable
class ChromaRetriever(Component, BaseRetriever):
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

    positional = holds = ("vectorstore",)

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    score_key: ClassVar[str] = "retrieval_score"  # see `first_stage`

    vectorstore: Annotated[ChromaVectorStore, BeforeValidator(from_plain)]
    k: Count = 100
    filter: Mapping[str, Any] | None = None
    score_threshold: float | None = None
    lambda_mult: Diversity | None = None
    fetch_k: Count | None = None

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings,
        metadatas: Iterable[dict[str, Any]] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        **options: Unpack[_Options],
    ) -> Self:
        """Return a retriever over a new store with texts in it.

        Args:
            texts: What to store.
            embedding: Any LangChain embeddings.
            metadatas: One a text.
            ids: One a text; a text without one gets a random one.
            **options: The fields of the class, and arguments of `ChromaVectorStore`, such as `persist_directory`.
        """
        fields = {name: options.pop(name) for name in cls.model_fields if name in options}  # type: ignore[misc]
        store = ChromaVectorStore.from_texts(texts, embedding, metadatas, ids, **options)  # type: ignore[misc]
        return cls(vectorstore=store, **fields)

    @classmethod
    def from_documents(cls, documents: list[Document], embedding: Embeddings, **options: Unpack[_Options]) -> Self:
        """Return a retriever over a new store with documents in it; see `from_texts`."""
        texts, metadatas = [item.page_content for item in documents], [item.metadata for item in documents]
        return cls.from_texts(texts, embedding, metadatas, ids=[item.id for item in documents], **options)

    def add_documents(self, documents: list[Document], **options: Any) -> list[str]:
        """Store documents; see `ChromaVectorStore.add_texts`. Returns their ids."""
        return self.vectorstore.add_documents(documents, **options)

    def delete(self, ids: list[str]) -> None:
        """Delete documents by id; ids that are not stored are no error."""
        self.vectorstore.delete(ids)

    def deeper(self, fetch_k: int) -> dict[str, Any]:
        """Return the fields with which a copy of this one returns `fetch_k` documents, as diverse as they were."""
        pool = self.fetch_k and wider_pool(self.fetch_k, self.k, fetch_k)
        return {"k": fetch_k, "fetch_k": pool}

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
    ) -> list[Document]:
        limit, options, documents_of = self._search(k, filter, where_document, score_threshold, lambda_mult, fetch_k)
        vectors = self.vectorstore.embed_queries([check_query(query)])
        return documents_of(self.vectorstore.collection.query(vectors, limit, **options)[0])

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        limit, options, documents_of = self._search(**options)
        vectors = await self.vectorstore.aembed_queries([check_query(query)])
        collection = self.vectorstore.collection
        return await collection.arun(lambda: documents_of(collection.query(vectors, limit, **options)[0]))

    def _search(
        self,
        k: int | None = None,
        filter: Where | None = None,
        where_document: Where | None = None,
        score_threshold: float | None = None,
        lambda_mult: float | None = None,
        fetch_k: int | None = None,
    ) -> tuple[int, dict[str, Any], Callable[[list[Found]], list[Document]]]:
        """Return how many to ask the collection for, with which options, and what makes documents of its answer."""
        k = check_count(self.k if k is None else k, "k")
        diversity = self.lambda_mult if lambda_mult is None else check_diversity(lambda_mult, "lambda_mult")
        pool = self.fetch_k if fetch_k is None else check_count(fetch_k, "fetch_k")
        # As in LangChain, a fetch_k below k is no error, and means nothing without lambda_mult.
        limit = check_mmr(diversity, None if pool is None or diversity is None else max(pool, k), k)
        where = self.filter if filter is None else filter
        options = {"where": where, "where_document": where_document, "with_vectors": diversity is not None}
        collection = self.vectorstore.collection
        threshold = self.score_threshold if score_threshold is None else number_of(score_threshold)
        if threshold is not None and math.isnan(threshold):
            raise InvalidInputError(f"score_threshold must be a number, got {shown(score_threshold)}")

        def documents_of(found: list[Found]) -> list[Document]:
            chosen = found if diversity is None else diverse(found, k, diversity, collection.metric)
            scored = [(collection.similarity(item.distance), item.record) for item in chosen]
            return [
                to_document(record, {"retrieval_score": score, "retrieval_rank": rank})
                for rank, (score, record) in enumerate(scored, start=1)
                if threshold is None or score >= threshold
            ]

        return limit, options, documents_of

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        params = super()._get_ls_params(**kwargs)
        params["ls_vector_store_provider"] = "Chroma"
        if self.vectorstore.embeddings is not None:
            params["ls_embedding_provider"] = type(self.vectorstore.embeddings).__name__
        return params


@retriever_of.register
def _(store: ChromaVectorStore) -> ChromaRetriever:
    return ChromaRetriever(vectorstore=store)


@restorable
class RetrieveRerankRetriever(Component, AskingRetriever):
    """Retrieve candidates with any first stage, order them with a cross-encoder, keep the best.

    Args:
        base_retriever: Any LangChain retriever or vector store. It is asked for `fetch_k` documents where it has a `k`,
            and is never modified; so it is behind `with_config`, `bind`, `with_retry` and `with_fallbacks`. Of another
            runnable, such as `retriever | function`, the depth cannot be set, and the scores are not known.
        reranker: A `CrossEncoderReranker`, or anything that it takes as its `model`.
        fetch_k: How many candidates; `invoke(query, fetch_k=…)` overrides it for one call.
        top_n: How many documents to return at most; None returns all. Not given, it is the re-ranker's own, which is 5
            unless it was given. `invoke(query, top_n=…)` overrides it.
        score_threshold: Documents whose relevance score is below are left out; None takes the re-ranker's own.
        time_budget: Seconds that the whole search may take: what the first stage leaves is the re-ranker's, whose own
            budget is not used then. The first stage is never cut off. None takes the re-ranker's own, for the
            re-ranking alone; `invoke(query, time_budget=…)` overrides it.
        on_error: What happens when the re-ranking fails, as in `CrossEncoderReranker`; None takes the re-ranker's own.
            `invoke(query, on_error=…)` overrides it. A first stage that fails raises in any case.
        rerank_weight: How much the cross-encoder counts in the order, as in `CrossEncoderReranker`; None takes the
            re-ranker's own. `invoke(query, rerank_weight=…)` overrides it.

    `invoke(query, rewrites=[…])` gives the query in other words, too: the first stage looks for each of them, and what
    they find is fused (see `retrieve_rerank.fuse`; documents without ids by their text). The query itself decides the
    re-ranking.

    Other options of `invoke` go to the first stage: a filter in the store's own language and by its own name, such as
    `filter=…`, or `expr=…` for Milvus. The first stage and the re-ranking are traced as runs under the retriever's run.
    For the result's metadata see `CrossEncoderReranker`.

    `retrieval_score` is the first stage's own score, and larger is better: a store's distance is turned into a
    similarity, and a score that is not known to be one is left out. A retriever of your own says under which metadata
    key it leaves its scores, by a class attribute such as `score_key: ClassVar[str] = "_score"`.

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

    positional = ("base_retriever", "reranker")
    holds = ("base_retriever",)

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    base_retriever: Runnable[str, list[Document]] | VectorStore
    reranker: CrossEncoderReranker
    fetch_k: Count = 100
    top_n: Count | None = 5
    score_threshold: Threshold | None = None
    time_budget: Seconds | None = None
    on_error: OnError | None = None
    rerank_weight: Weight | None = None

    @field_validator("base_retriever", mode="before")
    @classmethod
    def _base_retriever(cls, value: object) -> object:
        value = from_plain(value)
        check_base(value, "base_retriever")
        return value

    @field_validator("reranker", mode="before")
    @classmethod
    def _reranker(cls, value: object) -> object:
        model = os.fspath(value) if isinstance(value, os.PathLike) else value
        return CrossEncoderReranker(model=model) if isinstance(model, (str, Scorer)) else model

    def model_post_init(self, context: Any, /) -> None:
        """Take the re-ranker's own `top_n` where none was given."""
        super().model_post_init(context)
        if "top_n" not in self.model_fields_set:
            self.__dict__["top_n"] = self.reranker.top_n

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; one with another re-ranker takes its `top_n` where none was given."""
        copied = super().model_copy(update=update, deep=deep)
        if "top_n" not in copied.model_fields_set:
            copied.__dict__["top_n"] = copied.reranker.top_n
        return copied

    def deeper(self, fetch_k: int) -> dict[str, Any]:
        """Return the fields with which a copy of this one returns `fetch_k` documents."""
        return {"top_n": fetch_k, "fetch_k": max(fetch_k, self.fetch_k)}

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, rewrites: Sequence[str] = (), **options: Any
    ) -> list[Document]:
        first_stage, second_stage, budgeted = self._stages(**options)
        start = time.perf_counter()
        candidates = first_stage.invoke(check_query(query), run_manager.get_child("retrieve"), rewrites)
        spent = time.perf_counter() - start if budgeted else 0.0
        job: RerankInput = {"query": query, "documents": candidates}
        config: RunnableConfig = {"callbacks": run_manager.get_child("rerank")}
        return self.reranker.step().invoke(job, config, stage=second_stage, spent=spent)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        rewrites: Sequence[str] = (),
        **options: Any,
    ) -> list[Document]:
        first_stage, second_stage, budgeted = self._stages(**options)
        start = time.perf_counter()
        candidates = await first_stage.ainvoke(check_query(query), run_manager.get_child("retrieve"), rewrites)
        spent = time.perf_counter() - start if budgeted else 0.0
        job: RerankInput = {"query": query, "documents": candidates}
        config: RunnableConfig = {"callbacks": run_manager.get_child("rerank")}
        return await self.reranker.step().ainvoke(job, config, stage=second_stage, spent=spent)

    def _stages(
        self,
        *,
        top_n: int | None = None,
        fetch_k: int | None = None,
        score_threshold: float | None = None,
        time_budget: float | None = None,
        on_error: OnError | None = None,
        rerank_weight: float | None = None,
        **first_stage_options: Any,
    ) -> tuple[FirstStage, SecondStage, bool]:
        """Return both stages as the call wants them, and whether the time budget is for both."""
        if "k" in first_stage_options:
            raise InvalidInputError(
                "there is no option 'k' here: fetch_k is how many candidates are looked for, and top_n how many "
                "documents are returned"
            )
        limit = self.fetch_k if fetch_k is None else check_count(fetch_k, "fetch_k")
        budget = self.time_budget if time_budget is None else time_budget
        second_stage = self.reranker.second_stage(
            score_threshold=self.score_threshold if score_threshold is None else score_threshold,
            time_budget=budget,
            on_error=self.on_error if on_error is None else on_error,
            rerank_weight=self.rerank_weight if rerank_weight is None else rerank_weight,
        )
        return (
            self._first_stage(self.base_retriever, limit, first_stage_options),
            replace(second_stage, top_n=self.top_n if top_n is None else top_n),
            budget is not None,  # a re-ranker's own is for the re-ranking alone
        )
