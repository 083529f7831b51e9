"""Any LangChain retriever or vector store as a first stage that keeps its scores."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    BaseCallbackManager,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSequence, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import run_in_executor
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.mmr import wider_pool
from retrieve_rerank.langchain._convert import as_candidates, finite, with_metadata
from retrieve_rerank.langchain._stores import Sense, falling, prepared, similarity_of
from retrieve_rerank.langchain.chroma_retriever import ChromaRetriever
from retrieve_rerank.langchain.vectorstore import ChromaVectorStore
from retrieve_rerank.retrieval.fusion import Merge, merge_of

Base: TypeAlias = Runnable[str, list[Document]] | VectorStore

_OURS = "retrieval_score"
# Where retrievers of other libraries leave the score of each document, in its metadata. Larger is better in all.
_SCORE_KEYS = {"ElasticsearchRetriever": "_score", "AsyncElasticsearchRetriever": "_score"}

# What a component of ours is made with, or takes itself at a call: never an option of somebody else's store, which may
# drop what it does not know.
_OUR_SETTINGS = {
    "base_retriever",
    "long_passages",
    "max_windows",
    "merge",
    "mmr_lambda",
    "model",
    "on_error",
    "reranker",
    "retrievers",
    "rewrites",
    "rrf_k",
    "scores",
    "text_template",
    "time_budget",
    "top_n",
}
_NO_OPTIONS = {"self", "query", "run_manager"}
_UNTOLD = {"together"}  # between our own retrievers


_handed_on: ContextVar[RunnableConfig] = ContextVar("retrieve-rerank: what the caller configures", default={})  # noqa: B039 - never changed


class AskingRetriever(BaseRetriever):
    """A retriever that asks others, and hands on to them what its caller configures, as LangChain's own do."""

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Return the documents for a query."""
        with _handing_on(config):
            return super().invoke(input, config, **kwargs)

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """As `invoke`, without blocking the event loop."""
        with _handing_on(config):
            return await super().ainvoke(input, config, **kwargs)


@contextmanager
def _handing_on(config: RunnableConfig | None) -> Iterator[None]:
    # Not all of it: a run's name and its tags are its own, and callbacks come by its manager.
    handed: RunnableConfig = {}
    if config is not None and config.get("configurable"):
        handed["configurable"] = config["configurable"]
    if config is not None and config.get("max_concurrency") is not None:
        handed["max_concurrency"] = config["max_concurrency"]
    token = _handed_on.set(handed)
    try:
        yield
    finally:
        _handed_on.reset(token)


@dataclass(frozen=True, slots=True)
class FirstStage:
    """A first stage made ready for one call.

    Attributes:
        asked: What finds the documents.
        options: For its `invoke`.
        fetch_k: How many documents are wanted.
        score_key: The metadata key under which it leaves each document's score; None where it leaves none.
        fused: Whether it writes each document's `retrieval_ranks`.
        merge: What makes two of its documents one passage.
        blocks: Whether it has no async method of its own: LangChain's drops options that a call has, or fails.
        config: What the caller configures.
    """

    asked: Runnable[str, list[Document]]
    options: dict[str, Any]
    fetch_k: int
    score_key: str | None = None
    fused: bool = False
    merge: Merge = "id"
    blocks: bool = False
    config: RunnableConfig = field(default_factory=_handed_on.get)

    def invoke(self, query: str, callbacks: BaseCallbackManager) -> list[Document]:
        """Return copies of the candidates, best first, marked with their ranks."""
        return self.candidates(self.asked.invoke(query, self.configured(callbacks), **self.options))

    async def ainvoke(self, query: str, callbacks: BaseCallbackManager) -> list[Document]:
        """As `invoke`, by the first stage's own async method."""
        return self.candidates(await self.afound(query, self.configured(callbacks), self.options))

    async def abatch(self, queries: list[str], callbacks: BaseCallbackManager) -> list[list[Document]]:
        """Return what it finds for each query, not yet marked."""
        config = self.configured(callbacks)
        if self.blocks and self.options:
            return await run_in_executor(config, self.asked.batch, queries, config, **self.options)
        return await self.asked.abatch(queries, config, **self.options)

    async def afound(self, query: str, config: RunnableConfig | None, options: dict[str, Any]) -> list[Document]:
        """Return what it finds, not yet marked; on a thread where its async method would not take the options."""
        if self.blocks and options:
            return await run_in_executor(config, self.asked.invoke, query, config, **options)
        return await self.asked.ainvoke(query, config, **options)

    def configured(self, callbacks: BaseCallbackManager) -> RunnableConfig:
        """Return the configuration of a run under `callbacks`."""
        return {**self.config, "callbacks": callbacks}

    def candidates(self, found: list[Document]) -> list[Document]:
        """Return copies of what it found, marked with their ranks."""
        return as_candidates(found[: self.fetch_k], score_key=self.score_key, fused=self.fused)


def first_stage(base: Base, fetch_k: int, options: dict[str, Any]) -> FirstStage:
    """Return `base`, which is never modified, made ready to find `fetch_k` documents.

    A retriever that leaves each document's score in the metadata says so by a class attribute `score_key`, the key's
    name; of a class that does not, what stored documents say of themselves is not taken for a score.

    Args:
        base: Any LangChain retriever or vector store, also behind `with_config`, `bind`, `with_retry` and
            `with_fallbacks`. Of another runnable, such as `retriever | function`, the depth cannot be set, and the
            scores are not known.
        fetch_k: How many documents it is asked for, where it can be told.
        options: Further options of the call, for `base`.

    Raises:
        InvalidInputError: If `base` does not take one of the options, or would drop it without a word.
    """
    if isinstance(base, RunnableBindingBase):  # what with_config, bind and with_retry make
        _check_options(base.bound, base.kwargs)
        inner = first_stage(base.bound, fetch_k, options)
        return replace(inner, asked=base.model_copy(update={"bound": inner.asked}))
    if isinstance(base, RunnableWithFallbacks):
        first, *others = [_Alternative(first_stage(runnable, fetch_k, options)) for runnable in base.runnables]
        asked = base.model_copy(update={"runnable": first, "fallbacks": others})
        return FirstStage(asked, {}, fetch_k, _OURS, fused=True)  # as each of them leaves what it knows
    if isinstance(base, ChromaVectorStore):
        base = ChromaRetriever(vectorstore=base)
    elif isinstance(base, VectorStore):
        base = VectorStoreRetriever(vectorstore=base)
    _check_options(base, options)
    if isinstance(base, VectorStoreRetriever):
        depth = {"k": fetch_k}
        if base.search_type == "mmr":
            pool, chosen = base.search_kwargs.get("fetch_k") or 20, base.search_kwargs.get("k") or 4  # LangChain's own
            depth["fetch_k"] = wider_pool(pool, chosen, fetch_k)
        if type(base) is VectorStoreRetriever:
            base = ScoredStoreRetriever.of(base)
        return FirstStage(base, {**depth, **options}, fetch_k, _score_key(base))
    if isinstance(base, BaseRetriever) and "k" in type(base).model_fields:
        base = _deepened(base, fetch_k)
        if "k" in _parameters(base):  # which a k that was bound would override
            options = {"k": fetch_k, **options}
    return FirstStage(
        base,
        options,
        fetch_k,
        _score_key(base),
        fused=getattr(type(base), "fuses", False) is True,
        merge=merge_of(base),
        blocks=isinstance(base, BaseRetriever)
        and type(base)._aget_relevant_documents is BaseRetriever._aget_relevant_documents,  # noqa: SLF001
    )


def _deepened(base: BaseRetriever, k: int) -> BaseRetriever:
    update = {"k": k}
    if isinstance(base, ChromaRetriever) and base.fetch_k is not None:
        update["fetch_k"] = wider_pool(base.fetch_k, base.k, k)
    return base.model_copy(update=update)


class _Alternative(Runnable[str, list[Document]]):
    """One of several first stages of which the first that does not fail counts, each with options of its own."""

    def __init__(self, stage: FirstStage) -> None:
        self.stage = stage

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        return self.stage.candidates(self.stage.asked.invoke(input, config, **{**kwargs, **self.stage.options}))

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        return self.stage.candidates(await self.stage.afound(input, config, {**kwargs, **self.stage.options}))


def _check_options(asked: object, options: Mapping[str, Any]) -> None:
    """Raise InvalidInputError for options that a retriever does not take, which LangChain may drop without a word."""
    if isinstance(asked, RunnableWithFallbacks):
        for runnable in asked.runnables:
            _check_options(runnable, options)
    elif isinstance(asked, RunnableBindingBase):
        _check_options(asked.bound, options)
    elif isinstance(asked, RunnableSequence):
        _check_options(asked.first, options)  # which alone gets them
    if not options or not isinstance(asked, BaseRetriever):
        return
    parameters = _parameters(asked).values()
    takes = {item.name for item in parameters if item.kind is not item.VAR_KEYWORD} - _NO_OPTIONS
    takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters)
    wrong = set(options) - takes
    if takes_any:
        wrong &= _OUR_SETTINGS
    if not wrong:
        return
    kind, names = type(asked).__name__, ", ".join(map(repr, sorted(wrong)))
    if takes_any:
        raise InvalidInputError(
            f"{names}: no option of a call that reaches {kind}; set it where the component that has it is made"
        )
    if not takes:
        raise InvalidInputError(f"{kind} takes no options at invoke, got {names}; set them on the retriever itself")
    told = ", ".join(map(repr, sorted(takes - _UNTOLD)))
    raise InvalidInputError(f"{kind} has no option {names} at invoke; it takes {told}")


def _parameters(retriever: BaseRetriever) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(retriever)._get_relevant_documents).parameters  # noqa: SLF001


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
        similarity = None
        if self.search_type == "similarity":  # which some stores read from a file or a server
            similarity = await run_in_executor(None, similarity_of, store, options)
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
    number = finite(score)
    if number is not None:
        return with_metadata(document, {_OURS: number})
    metadata = {key: value for key, value in document.metadata.items() if key != _OURS}
    return document.model_copy(update={"metadata": metadata})
