"""Several first stages as one LangChain retriever."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.runnables import Runnable
from langchain_core.vectorstores import VectorStore
from pydantic import BeforeValidator, ConfigDict, field_validator, model_validator

from retrieve_rerank.checks import check_count, check_query
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.langchain.first_stage import AskingRetriever, FirstStage, fuse_documents
from retrieve_rerank.langchain.serialization import Component, Count, check_base, from_plain, restorable
from retrieve_rerank.retrieval.first_stage import (
    OnRetrieverError,
    aask_all,
    ask_all,
    check_on_retriever_error,
    check_retrievers,
    named,
)
from retrieve_rerank.retrieval.fusion import Merge, check_merge, check_rrf_k, check_weights, warn_of_twins


@restorable
class HybridRetriever(Component, AskingRetriever):
    """Ask several retrievers at once and fuse their rankings by weighted reciprocal rank fusion.

    A document's score is the sum of weight / (rrf_k + rank) over the retrievers that found it; see
    `retrieve_rerank.fuse`.

    Args:
        retrievers: Any LangChain retrievers or vector stores. Each is asked for `k` documents where it has a `k`, and
            is never modified.
        weights: One a retriever, 0 or more and not all 0; None weighs all alike.
        rrf_k: How flat the shares of the ranks are. The larger, the less the first ranks stand out.
        k: How many documents to return at most; `invoke(query, k=…)` overrides it for one call.
        merge: What makes two documents one: the same "id", or the same "text" (`page_content`). Documents of several
            retrievers that have no ids can be merged by their text only. It warns where the retrievers give equal texts
            ids of their own, which "id" keeps apart.
        on_error: "raise" raises what a retriever raises; "skip" fuses what the others found and warns with one
            `DegradedWarning` a call. What the caller did wrong, such as an option that a retriever does not take, and
            the failure of all retrievers raise in any case. Inside a search
            only the warning tells: the mark of a degraded search is about its re-ranking.

    Other options of `invoke`, such as `filter=…`, go to every retriever. Each is traced as a run under this one's run.

    The documents are copies, best first, whose metadata has `retrieval_score` (the fused score), `retrieval_rank`
    (1-based) and `retrieval_ranks`: the rank in each retriever's list, None where it did not find the document.

    Example:
        >>> from langchain_core.documents import Document
        >>> from retrieve_rerank.langchain import BiEncoderEmbeddings, ChromaVectorStore, HybridRetriever
        >>> embeddings = BiEncoderEmbeddings(model=str(bi_encoder_path))
        >>> news = ChromaVectorStore.from_texts(["Bread is dearer."], embeddings)
        >>> atlas = ChromaVectorStore.from_texts(["Rome is in Italy.", "Paris is in France."], embeddings)
        >>> hybrid = HybridRetriever(retrievers=[news, atlas], weights=[0.5, 1.0])
        >>> best = hybrid.invoke("a city in France")[0]
        >>> best.page_content, best.metadata["retrieval_ranks"]
        ('Paris is in France.', [None, 1])
    """

    positional = holds = ("retrievers",)

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    # They tell a stage after it that these are of this search.
    score_key: ClassVar[str] = "retrieval_score"
    fuses: ClassVar[bool] = True

    retrievers: Sequence[Runnable[str, list[Document]] | VectorStore]
    weights: Annotated[Sequence[float], BeforeValidator(lambda given: check_weights(given, None))] | None = None
    rrf_k: Annotated[float, BeforeValidator(check_rrf_k)] = 60
    k: Count = 100
    merge: Annotated[Merge, BeforeValidator(check_merge)] = "id"
    on_error: Annotated[OnRetrieverError, BeforeValidator(check_on_retriever_error)] = "raise"

    @field_validator("retrievers", mode="before")
    @classmethod
    def _retrievers(cls, value: object) -> object:
        return check_retrievers(value, check_base, from_plain)

    @model_validator(mode="after")
    def _one_weight_each(self) -> HybridRetriever:
        check_weights(self.weights, len(self.retrievers))
        return self

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        **retriever_options: Any,
    ) -> list[Document]:
        limit, stages = self._stages(query, k, retriever_options)
        calls = [
            partial(stage.invoke, query, run_manager.get_child(f"retriever_{number}"))
            for number, stage in enumerate(stages, start=1)
        ]
        names = named(self.retrievers)
        return self._fused(ask_all(names, calls, self.on_error, with_options=bool(retriever_options)), limit)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        **retriever_options: Any,
    ) -> list[Document]:
        limit, stages = self._stages(query, k, retriever_options)
        calls = [
            partial(stage.ainvoke, query, run_manager.get_child(f"retriever_{number}"))
            for number, stage in enumerate(stages, start=1)
        ]
        names = named(self.retrievers)
        found = await aask_all(names, calls, self.on_error, with_options=bool(retriever_options))
        return self._fused(found, limit)

    def _stages(self, query: str, k: int | None, options: dict[str, Any]) -> tuple[int, list[FirstStage]]:
        check_query(query)
        limit = self.k if k is None else check_count(k, "k")
        return limit, [self._first_stage(retriever, limit, options) for retriever in self.retrievers]

    def _fused(self, found: Sequence[list[Document] | None], limit: int) -> list[Document]:
        rankings = [ranking or [] for ranking in found]
        if self.merge == "id" and sum(map(bool, rankings)) > 1:
            for name, ranking in zip(named(self.retrievers), rankings, strict=True):
                if any(not document.id for document in ranking):
                    raise InvalidInputError(
                        f"{name} found a document without an id, which cannot be told from those of the other "
                        'retrievers; give the documents ids, or merge them by their text: merge="text"'
                    )
        weights = check_weights(self.weights, len(rankings))
        if self.merge == "id":
            warn_of_twins(
                [rankings], lambda document: document.id, lambda document: document.page_content, weights=weights
            )
        return fuse_documents(rankings, weights=weights, rrf_k=self.rrf_k, k=limit, merge=self.merge)
