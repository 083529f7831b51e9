"""Both stages in a row, as a LangChain retriever."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.vectorstores import VectorStore
from pydantic import ConfigDict, field_validator

from retrieve_rerank.checks import check_count, check_query, check_seconds, check_threshold
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.langchain._dense import Together
from retrieve_rerank.langchain._travel import Travelling, unpacked
from retrieve_rerank.langchain.chroma_retriever import ChromaRetriever
from retrieve_rerank.langchain.first_stage import AskingRetriever, FirstStage, first_stage
from retrieve_rerank.langchain.fusion import afind, find
from retrieve_rerank.langchain.reranker import CrossEncoderReranker
from retrieve_rerank.retrieval.rerank import OnError
from retrieve_rerank.types import Scorer

_OPTIONS = ("top_n", "fetch_k", "score_threshold", "time_budget", "on_error", "rewrites")  # of a call, for itself


class RetrieveRerankRetriever(Travelling, AskingRetriever):
    """Retrieve candidates with any first stage, order them with a cross-encoder, keep the best.

    Args:
        base_retriever: Any LangChain retriever or vector store. It is asked for `fetch_k` documents where it has a `k`,
            and is never modified; so it is behind `with_config`, `bind`, `with_retry` and `with_fallbacks`. Of another
            runnable, such as `retriever | function`, the depth cannot be set, and the scores are not known.
        reranker: A `CrossEncoderReranker`, or anything that it takes as its `model`.
        fetch_k: How many candidates; `invoke(query, fetch_k=…)` overrides it for one call.
        top_n: How many documents to return at most; `invoke(query, top_n=…)` overrides it. The re-ranker's own `top_n`
            is not used.
        score_threshold: Documents whose relevance score is below are left out; None takes the re-ranker's own.
        time_budget: Seconds that the whole search may take: what the first stage leaves is the re-ranker's, whose own
            budget is not used then. The first stage is never cut off. None takes the re-ranker's own, for the
            re-ranking alone; `invoke(query, time_budget=…)` overrides it.
        on_error: What happens when the re-ranking fails, as in `CrossEncoderReranker`; None takes the re-ranker's own.
            `invoke(query, on_error=…)` overrides it. A first stage that fails raises in any case.

    `invoke(query, rewrites=[…])` gives the query in other words, too: the first stage looks for each of them, and what
    they find is fused (see `retrieve_rerank.fuse`; documents without ids by their text). The query itself decides the
    re-ranking.
    `batch` searches all queries in one go where the first stage is a `ChromaVectorStore` or a `ChromaRetriever`.

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

    holds: ClassVar[tuple[str, ...]] = ("base_retriever",)

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    base_retriever: Runnable[str, list[Document]] | VectorStore
    reranker: CrossEncoderReranker
    fetch_k: int = 100
    top_n: int = 5
    score_threshold: float | None = None
    time_budget: float | None = None
    on_error: OnError | None = None

    @field_validator("base_retriever", mode="before")
    @classmethod
    def _base_retriever(cls, value: object) -> object:
        value = unpacked(value)
        if not isinstance(value, (Runnable, VectorStore)):
            raise InvalidInputError(
                f"base_retriever must be a LangChain retriever or vector store, got {type(value).__name__}"
            )
        return value

    @field_validator("reranker", mode="before")
    @classmethod
    def _reranker(cls, value: object) -> object:
        model = os.fspath(value) if isinstance(value, os.PathLike) else value
        return CrossEncoderReranker(model=model) if isinstance(model, (str, Scorer)) else model

    @field_validator("fetch_k", "top_n", mode="before")
    @classmethod
    def _count(cls, value: int) -> int:
        return check_count(value, "fetch_k and top_n")

    @field_validator("score_threshold")
    @classmethod
    def _score_threshold(cls, value: float | None) -> float | None:
        return check_threshold(value)

    @field_validator("time_budget", mode="before")
    @classmethod
    def _time_budget(cls, value: float | None) -> float | None:
        return check_seconds(value, "time_budget")

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """As `invoke` for each query, each a run of its own; see the class for what is done in one go."""
        return super().batch(
            inputs, config, return_exceptions=return_exceptions, **self._together(inputs, kwargs, config)
        )

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """As `batch`, without blocking the event loop."""
        options = self._together(inputs, kwargs, config)
        return await super().abatch(inputs, config, return_exceptions=return_exceptions, **options)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        top_n: int | None = None,
        fetch_k: int | None = None,
        score_threshold: float | None = None,
        time_budget: float | None = None,
        on_error: OnError | None = None,
        rewrites: Sequence[str] = (),
        **first_stage_options: Any,
    ) -> list[Document]:
        check_query(query)
        stage = self._first_stage(fetch_k, first_stage_options)
        rerank = self._second_stage(top_n, score_threshold, time_budget, on_error)
        start = time.perf_counter()
        candidates = find(stage, query, rewrites, run_manager.get_child("retrieve"))
        return rerank.invoke(
            {"query": query, "documents": candidates},
            {"callbacks": run_manager.get_child("rerank")},
            spent=self._spent(start, time_budget, first_stage_options.get("together")),
        )

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        top_n: int | None = None,
        fetch_k: int | None = None,
        score_threshold: float | None = None,
        time_budget: float | None = None,
        on_error: OnError | None = None,
        rewrites: Sequence[str] = (),
        **first_stage_options: Any,
    ) -> list[Document]:
        check_query(query)
        stage = self._first_stage(fetch_k, first_stage_options)
        rerank = self._second_stage(top_n, score_threshold, time_budget, on_error)
        start = time.perf_counter()
        candidates = await afind(stage, query, rewrites, run_manager.get_child("retrieve"))
        return await rerank.ainvoke(
            {"query": query, "documents": candidates},
            {"callbacks": run_manager.get_child("rerank")},
            spent=self._spent(start, time_budget, first_stage_options.get("together")),
        )

    def _second_stage(
        self,
        top_n: int | None,
        score_threshold: float | None,
        time_budget: float | None,
        on_error: OnError | None,
    ) -> Runnable[Any, list[Document]]:
        return self.reranker.as_runnable(
            top_n=self.top_n if top_n is None else top_n,
            score_threshold=self.score_threshold if score_threshold is None else score_threshold,
            time_budget=self.time_budget if time_budget is None else time_budget,
            on_error=self.on_error if on_error is None else on_error,
        )

    def _spent(self, start: float, time_budget: float | None, together: Together | None) -> float:
        """Return the seconds since `start` if they count: the re-ranker's own budget is for the re-ranking alone.

        Of a search that was for many queries, a query's share counts, and not that it waited for the others.
        """
        if self.time_budget is None and time_budget is None:
            return 0.0
        return time.perf_counter() - start if together is None else together.share

    def _together(
        self,
        queries: list[str],
        options: dict[str, Any],
        config: RunnableConfig | list[RunnableConfig] | None,
    ) -> dict[str, Any]:
        """Return the options with a search of all queries among them, where the first stage can do that."""
        if options.get("rewrites"):  # these are what is searched in one go
            return options
        try:
            others = {name: value for name, value in options.items() if name not in _OPTIONS}
            stage = self._first_stage(options.get("fetch_k"), others)
        except InvalidInputError:  # raised again for each query
            return options
        if not isinstance(stage.asked, ChromaRetriever):
            return options
        return {**options, "together": stage.asked.together(queries, stage.options, config)}

    def _first_stage(self, fetch_k: int | None, options: dict[str, Any]) -> FirstStage:
        limit = self.fetch_k if fetch_k is None else check_count(fetch_k, "fetch_k")
        return first_stage(self.base_retriever, limit, options)
