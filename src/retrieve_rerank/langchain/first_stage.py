"""Any LangChain runnable that finds documents, made ready for one call: asked for enough, its options within it.

A first stage may be wrapped and composed of others: bindings, retries, fallbacks, branches, sequences, configurables,
retrievers that ask retrievers or a vector store. What finds the documents lies inside, and LangChain hands a call's
options to the outermost part only, which may drop them without a word. So the parts are followed, and each that finds
is replaced, in copies, by one that is asked for `fetch_k` documents and has the options. What cannot be shown to take
an option is not called with it: a filter that is dropped shows one tenant another's documents.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import singledispatch
from types import FunctionType, MethodType
from typing import Any, TypeAlias, cast

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    Runnable,
    RunnableBranch,
    RunnableConfig,
    RunnableLambda,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs, run_in_executor
from langchain_core.runnables.configurable import DynamicRunnable
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
from pydantic import BaseModel, PrivateAttr

from retrieve_rerank.checks import check_queries
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.nearest import wider_pool
from retrieve_rerank.langchain.compat import (
    ScoredStoreRetriever,
    hands_on_search_kwargs,
    heeded,
    prepared,
    reads_search_kwargs,
    score_key_of,
)
from retrieve_rerank.langchain.convert import as_candidates, documents_of, with_marks
from retrieve_rerank.retrieval.first_stage import warn_of_few
from retrieve_rerank.retrieval.fusion import Merge, fuse_by, merge_of

Base: TypeAlias = Runnable[str, list[Document]] | VectorStore

_OURS = "retrieval_score"
_DEEPEST = 20  # how far parts are followed
_WIDEST = 100  # how much of a list is looked at: one of documents may be long
_MOST = 1000  # how much of what a function may reach is looked at
_DEPTHS = ("k", "top_k")  # the fields of a retriever that say how many documents it returns

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
    "rerank_weight",
    "reranker",
    "retrievers",
    "rewrites",
    "rrf_k",
    "scores",
    "text_template",
    "time_budget",
    "top_n",
}

_handed_on: ContextVar[RunnableConfig] = ContextVar("retrieve-rerank: what the caller configures", default={})  # noqa: B039 - never changed


class AskingRetriever(BaseRetriever):
    """A retriever that asks others, and hands on to them what its caller configures, as LangChain's own do."""

    _told: set[str] = PrivateAttr(default_factory=set)  # of what could not be asked for enough
    _made: dict[int, tuple[VectorStore, BaseRetriever]] = PrivateAttr(default_factory=dict)

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Return the documents for a query."""
        with _handing_on(config):
            return super().invoke(input, config, **kwargs)

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """As `invoke`, without blocking the event loop."""
        with _handing_on(config):
            return await super().ainvoke(input, config, **kwargs)

    def _first_stage(self, base: Base, fetch_k: int, options: dict[str, Any]) -> FirstStage:
        if isinstance(base, VectorStore):  # its retriever is made once
            store, retriever = self._made.get(id(base), (None, None))
            if store is not base or retriever is None:
                retriever = retriever_of(base)
                self._made[id(base)] = (base, retriever)
            base = retriever
        return first_stage(base, fetch_k, options, self._told)


@contextmanager
def _handing_on(config: RunnableConfig | None) -> Iterator[None]:
    # Not all of it: a run's name and its tags are its own, and callbacks come by its manager. What an outer retriever
    # was told holds within it, also where those in between do not hand it on.
    handed: RunnableConfig = {**_handed_on.get()}
    if config is not None and config.get("configurable"):
        handed["configurable"] = {**handed.get("configurable", {}), **config["configurable"]}
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
        runnable: A copy that finds the documents, with the depth and the options in it.
        fetch_k: How many documents are wanted.
        name: What errors and warnings call it.
        marked: Whether what it finds carries its score and ranks under this package's keys.
        merge: What makes two of its documents one passage.
        short: The names of what cannot be asked for `fetch_k` and found fewer, once it was asked.
        told: The warnings that were given; each is given once.
        watch: Sees what retrievers find inside of what is composed.
        config: What the caller configures.
    """

    runnable: Runnable[str, list[Document]]
    fetch_k: int
    name: str
    marked: bool
    merge: Merge
    short: list[str]
    told: set[str]
    watch: _Watch
    config: RunnableConfig = field(default_factory=_handed_on.get)

    def invoke(self, query: str, callbacks: BaseCallbackManager, rewrites: Sequence[str] = ()) -> list[Document]:
        """Return the candidates, best first, marked with their ranks.

        Args:
            query: What is looked for.
            callbacks: Of the run that this is a part of.
            rewrites: The query in other words; what all of them find is fused.
        """
        config = self._config(callbacks)
        if not check_queries(rewrites, "rewrites"):
            return self._candidates(self.runnable.invoke(query, config))
        return self._fused(self.runnable.batch([query, *rewrites], config))

    async def ainvoke(self, query: str, callbacks: BaseCallbackManager, rewrites: Sequence[str] = ()) -> list[Document]:
        """As `invoke`, by the first stage's own async method."""
        config = self._config(callbacks)
        if not check_queries(rewrites, "rewrites"):
            return self._candidates(await self.runnable.ainvoke(query, config))
        return self._fused(await self.runnable.abatch([query, *rewrites], config))

    def _config(self, callbacks: BaseCallbackManager) -> RunnableConfig:
        if not self.marked:
            callbacks = callbacks.copy()
            callbacks.add_handler(self.watch)
        return {**self.config, "callbacks": callbacks}

    def _fused(self, found: Sequence[list[Document]]) -> list[Document]:
        rankings = [self._candidates(documents) for documents in found]
        weights = [1.0] * len(rankings)
        return fuse_documents(rankings, weights=weights, rrf_k=60, k=self.fetch_k, merge=self.merge)

    def _candidates(self, found: object) -> list[Document]:
        documents = documents_of(found, self.name)
        if len(documents) < self.fetch_k and (self.short or self.watch.full):
            warn_of_few(self.name, len(documents), self.fetch_k, self.told, unset=self.short)
        return as_candidates(documents, score_key=_OURS if self.marked else None, fused=self.marked)[: self.fetch_k]


class _Watch(BaseCallbackHandler):
    """Notes whether a retriever found as many documents as were looked for."""

    def __init__(self, fetch_k: int) -> None:
        self.fetch_k = fetch_k
        self.full = False

    def on_retriever_end(self, documents: Sequence[Document], **kwargs: Any) -> None:
        """Look at what a retriever found."""
        self.full |= len(documents) >= self.fetch_k


def fuse_documents(
    rankings: Sequence[Sequence[Document]], *, weights: Sequence[float], rrf_k: float, k: int, merge: Merge
) -> list[Document]:
    """Return copies of the best documents of several rankings, with the fused score and all ranks in their metadata.

    Documents without an id are one where their texts are equal, whatever `merge` says.
    """

    def key(document: Document) -> Hashable:
        return ("id", document.id) if merge == "id" and document.id else ("text", document.page_content)

    return [
        with_marks(found.item, {_OURS: found.score, "retrieval_rank": rank, "retrieval_ranks": list(found.ranks)})
        for rank, found in enumerate(fuse_by(rankings, key, weights=weights, rrf_k=rrf_k, k=k), start=1)
    ]


def first_stage(base: Base, fetch_k: int, options: dict[str, Any], told: set[str] | None = None) -> FirstStage:
    """Return `base`, which is never modified, made ready to find `fetch_k` documents.

    A retriever that leaves each document's score in the metadata says so by a class attribute `score_key`, the key's
    name; of a class that does not, what stored documents say of themselves is not taken for a score.

    Args:
        base: Any LangChain retriever, vector store, or runnable that finds documents, wrapped and composed in any way.
            Where others process what a retriever found, its scores are not known.
        fetch_k: How many documents each that finds is asked for, where it can be told.
        options: Further options of the call, for all that find.
        told: The warnings that were given before.

    Raises:
        InvalidInputError: If something that finds does not take one of the options, or would drop it without a word.
    """
    short: list[str] = []
    wanted = _Wanted(fetch_k, options, _handed_on.get(), marked=True, short=short)
    ready = _ready(retriever_of(base) if isinstance(base, VectorStore) else base, wanted)
    return FirstStage(
        runnable=ready.runnable,
        fetch_k=fetch_k,
        name=type(base).__name__,
        marked=ready.marked,
        merge=ready.merge,
        short=short,
        told=set() if told is None else told,
        watch=_Watch(fetch_k),
    )


@singledispatch
def retriever_of(store: VectorStore) -> BaseRetriever:
    """Return a retriever that asks a vector store; a kind of store may register one of its own."""
    return VectorStoreRetriever(vectorstore=store)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is wanted of a part of the first stage; `fetch_k` is None where only the options count."""

    fetch_k: int | None
    options: Mapping[str, Any]
    config: RunnableConfig
    marked: bool  # whether its documents are the candidates themselves
    short: list[str]


@dataclass(frozen=True, slots=True)
class _Ready:
    runnable: Runnable[Any, Any]
    marked: bool = False
    merge: Merge = "id"


def _ready(base: Runnable[Any, Any], wanted: _Wanted) -> _Ready:
    """Return a copy of a runnable that finds documents, with all that is wanted in it."""
    if isinstance(base, DynamicRunnable):  # what configurable_fields and configurable_alternatives make
        chosen, config = base.prepare(wanted.config)
        configurable: RunnableConfig = {"configurable": config.get("configurable", {})}
        inner = _ready(chosen, replace(wanted, config=configurable))
        return replace(inner, runnable=inner.runnable.with_config(merge_configs(base.config, configurable)))
    if isinstance(base, RunnableBindingBase):  # what with_config, bind and with_retry make
        config = base._merge_configs(wanted.config)  # noqa: SLF001 - as its own invoke does
        options = {**base.kwargs, **wanted.options}
        inner = _ready(base.bound, replace(wanted, options=options, config=config))
        return replace(inner, runnable=base.model_copy(update={"bound": inner.runnable, "kwargs": {}}))
    if isinstance(base, RunnableWithFallbacks):
        first, *others = [_ready(each, wanted).runnable for each in base.runnables]
        return _Ready(base.model_copy(update={"runnable": first, "fallbacks": others}), wanted.marked)
    if isinstance(base, RunnableBranch):
        branches = [(condition, _ready(each, wanted).runnable) for condition, each in base.branches]
        default = _ready(base.default, wanted).runnable
        return _Ready(base.model_copy(update={"branches": branches, "default": default}), wanted.marked)
    if isinstance(base, RunnableSequence) and any(map(_finds, base.steps)):
        return _sequence(base, wanted)
    if isinstance(base, AskingRetriever) or (isinstance(base, BaseRetriever) and not _asks_others(base)):
        return _retriever(base, wanted)
    if isinstance(base, RunnableLambda):
        asked = getattr(getattr(base, "func", None), "__self__", None)
        if isinstance(asked, Runnable) and base.func.__name__ == "invoke":
            return _ready(asked, wanted)
    elif _finds(base):
        return _composite(base, wanted)
    return _unknown(base, wanted)


def _sequence(base: RunnableSequence[Any, Any], wanted: _Wanted) -> _Ready:
    """The last step that finds is asked for enough, as what comes before it only makes its query."""
    steps = list(base.steps)
    finding = [position for position, step in enumerate(steps) if _finds(step)]
    ready = _Ready(base)
    for position in finding:
        is_last = position == finding[-1]
        marked = wanted.marked and position == len(steps) - 1
        ready = _ready(steps[position], replace(wanted, marked=marked, fetch_k=wanted.fetch_k if is_last else None))
        steps[position] = ready.runnable
    first, *middle, last = steps
    return replace(ready, runnable=base.model_copy(update={"first": first, "middle": middle, "last": last}))


def _composite(base: Runnable[Any, Any], wanted: _Wanted) -> _Ready:
    """Make a runnable or retriever ready that asks others: by those that it asks, whose scores are not its own."""
    inside = replace(wanted, marked=False)

    def changed(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {name: changed(item) for name, item in part.items()}
        if isinstance(part, (list, tuple)):
            return type(part)(map(changed, part))
        return _ready(part, inside).runnable if isinstance(part, Runnable) and _finds(part) else part

    parts = _parts(base)
    copied = _with_parts(base, {name: changed(part) for name, part in parts.items() if _finds(part)})
    if isinstance(copied, BaseRetriever):
        if _finds(parts, stores_only=True):  # which it asks itself, too
            return _retriever(copied, wanted)
        # An option that it names itself it hands on: else it would hand on its default in the place of what was given.
        named = inspect.signature(type(copied)._get_relevant_documents).parameters  # noqa: SLF001
        options = {name: value for name, value in wanted.options.items() if name in named}
        return _Ready(_Asked(copied, options) if options else copied)
    return _unknown(copied, wanted) if _finds(parts, stores_only=True) else _Ready(copied)


def _retriever(base: BaseRetriever, wanted: _Wanted) -> _Ready:
    """Make a retriever ready that finds documents itself."""
    options = {name: value for name, value in wanted.options.items() if name != "k"}  # a k may have been bound
    kind, update, searches = type(base), dict[str, Any](), _searches(base)
    untaken, short = _untaken(base, options), None
    if untaken and (searches is None or not hands_on_search_kwargs(kind) or not _OUR_SETTINGS.isdisjoint(untaken)):
        raise _refused(base, untaken)
    if wanted.fetch_k is not None:
        update |= _deeper(base, wanted.fetch_k)
        if "k" in inspect.signature(kind._get_relevant_documents).parameters:  # noqa: SLF001
            options["k"] = wanted.fetch_k
        elif not update and (searches is None or not reads_search_kwargs(kind)):
            short = wanted
    if searches is not None:
        store, search_kwargs, search_type = searches
        kept = {**search_kwargs, **{name: options.pop(name) for name in untaken}}
        if wanted.fetch_k is not None:
            kept |= _depth(search_type, kept, wanted.fetch_k)
        kept = prepared(store, {**kept, **options}, search_type)
        update["search_kwargs"] = {name: value for name, value in kept.items() if name not in options}
    copied = base.model_copy(update=update) if update else base
    if kind is VectorStoreRetriever and wanted.marked:
        copied = ScoredStoreRetriever.of(cast("VectorStoreRetriever", copied))
    marks = (score_key_of(copied), getattr(kind, "fuses", False) is True) if wanted.marked else None
    asked = _Asked(copied, options, marks, short) if options or marks or short else copied
    return _Ready(asked, wanted.marked, merge_of(base))


def _unknown(base: Runnable[Any, Any], wanted: _Wanted) -> _Ready:
    """Make ready what nothing is known of, such as a function: it gets what its parameters name, and nothing else."""
    options = {name: value for name, value in wanted.options.items() if name != "k"}
    if untaken := _untaken(base, options):
        raise _refused(base, untaken)
    short = None
    if wanted.fetch_k is not None:
        if not _untaken(base, {"k": wanted.fetch_k}):
            options["k"] = wanted.fetch_k
        else:
            short = wanted
    return _Ready(_Asked(base, options, (None, False) if wanted.marked else None, short), wanted.marked)


class _Asked(Runnable[Any, list[Document]]):
    """Something that finds documents, asked with options of its own: those of a call do not go before them.

    Args:
        runnable: What finds.
        options: For its `invoke`.
        marks: Where it leaves scores, and whether it leaves `retrieval_ranks`, if its documents are the candidates.
        short: What was wanted of it, if it cannot be asked for that many documents.
    """

    def __init__(
        self,
        runnable: Runnable[Any, Any],
        options: Mapping[str, Any],
        marks: tuple[str | None, bool] | None = None,
        short: _Wanted | None = None,
    ) -> None:
        self.runnable = runnable
        self.options = options
        self.marks = marks
        self.short = short
        # LangChain's own async method drops options, or fails on them.
        self.blocks = isinstance(runnable, BaseRetriever) and len(_functions(runnable)) == 1 and bool(options)

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        return self._marked(self.runnable.invoke(input, config, **{**kwargs, **self.options}))

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        options = {**kwargs, **self.options}
        if self.blocks:
            return self._marked(await run_in_executor(config, self.runnable.invoke, input, config, **options))
        return self._marked(await self.runnable.ainvoke(input, config, **options))

    def _marked(self, found: Any) -> list[Document]:
        name = type(self.runnable).__name__
        documents = documents_of(found, name)
        if self.short is not None and 0 < len(documents) < (self.short.fetch_k or 0):
            self.short.short.append(name)
        if self.marks is None:
            return documents
        score_key, fused = self.marks
        return as_candidates(documents, score_key=score_key, fused=fused)


# What a part is, what it takes, and what it is asked with


def _parts(value: object) -> dict[str, Any]:
    """Return what an object holds, also behind pydantic's private attributes."""
    return {**getattr(value, "__dict__", {}), **(getattr(value, "__pydantic_private__", None) or {})}


def _with_parts(value: Runnable[Any, Any], parts: Mapping[str, Any]) -> Runnable[Any, Any]:
    if not isinstance(value, BaseModel):
        copied = copy.copy(value)
        copied.__dict__.update(parts)
        return copied
    private = {name for name in parts if name in (value.__pydantic_private__ or {})}
    made = value.model_copy(update={name: part for name, part in parts.items() if name not in private})
    if made.__pydantic_private__ is not None:
        made.__pydantic_private__.update({name: parts[name] for name in private})
    return made


def _finds(value: object, *, stores_only: bool = False, seen: tuple[int, ...] = ()) -> bool:
    """Whether an object is, or holds, a retriever or a vector store; with `stores_only`, outside other retrievers."""
    if isinstance(value, VectorStore) or (isinstance(value, BaseRetriever) and not stores_only):
        return True
    if id(value) in seen or len(seen) > _DEEPEST:
        return False
    inside: Iterable[Any] = ()
    if isinstance(value, Mapping):
        inside = value.values()
    elif isinstance(value, (list, tuple)):
        inside = value
    elif isinstance(value, RunnableLambda) and not stores_only:
        inside = itertools.chain.from_iterable(map(_looks_at, _functions(value)))
    elif isinstance(value, Runnable) and not stores_only:
        inside = _parts(value).values()
    some = itertools.islice(inside, _WIDEST)
    return any(_finds(item, stores_only=stores_only, seen=(*seen, id(value))) for item in some)


def _looks_at(function: object) -> Iterator[object]:
    """Yield what a function may reach, also by functions that it calls."""
    following, followed = [function], set[int]()
    while following and len(followed) < _MOST:
        item = following.pop()
        if id(item) in followed:
            continue
        followed.add(id(item))
        if isinstance(item, MethodType):
            following += [item.__self__, item.__func__]
        elif isinstance(item, FunctionType):
            closure = inspect.getclosurevars(item)
            following += [*closure.nonlocals.values(), *closure.globals.values()]
        else:
            yield item


def _asks_others(base: BaseRetriever) -> bool:
    return any(_finds(part) for part in _parts(base).values() if not isinstance(part, VectorStore))


def _searches(base: BaseRetriever) -> tuple[VectorStore, Mapping[str, Any], str] | None:
    """Return the store that a retriever searches, with which options, and how; None if it does not say."""
    parts = _parts(base)
    stores = [part for part in parts.values() if isinstance(part, VectorStore)]
    search_kwargs, search_type = parts.get("search_kwargs"), parts.get("search_type", "similarity")
    if len(stores) != 1 or not isinstance(search_kwargs, Mapping):
        return None
    return stores[0], search_kwargs, str(getattr(search_type, "value", search_type))


def _depth(search_type: str, search_kwargs: Mapping[str, Any], fetch_k: int) -> dict[str, int]:
    if search_type != "mmr":
        return {"k": fetch_k}
    pool, chosen = search_kwargs.get("fetch_k") or 20, search_kwargs.get("k") or 4  # LangChain's own
    return {"k": fetch_k, "fetch_k": wider_pool(pool, chosen, fetch_k)}


def _deeper(base: BaseRetriever, fetch_k: int) -> dict[str, Any]:
    """Return the fields with which a copy of a retriever returns `fetch_k` documents."""
    deeper = getattr(base, "deeper", None)
    if callable(deeper):
        return cast("dict[str, Any]", deeper(fetch_k))
    return {name: fetch_k for name in _DEPTHS if name in type(base).model_fields}


def _functions(asked: object) -> list[Callable[..., Any]]:
    """Return the functions of a retriever or a RunnableLambda that find; for async ones only if they are their own."""
    if isinstance(asked, BaseRetriever):
        sync, own = type(asked)._get_relevant_documents, type(asked)._aget_relevant_documents  # noqa: SLF001
        return [sync] if own.__module__ == BaseRetriever.__module__ else [sync, own]
    if isinstance(asked, RunnableLambda):
        return [getattr(asked, name) for name in ("func", "afunc") if hasattr(asked, name)]
    return []


def _untaken(asked: object, options: Mapping[str, Any]) -> list[str]:
    """Return the options that something does not take, or takes and never looks at."""
    functions = [heeded(function) for function in _functions(asked)]
    takes_others = isinstance(asked, BaseRetriever)  # who says with **kwargs that it hands them on
    return [
        name
        for name in options
        if not functions
        or any(
            name not in names and (others is None or not takes_others or name in _OUR_SETTINGS)
            for names, others in functions
        )
    ]


def _refused(asked: object, untaken: list[str]) -> InvalidInputError:
    kind, names = type(asked).__name__, ", ".join(map(repr, sorted(untaken)))
    functions = [heeded(function) for function in _functions(asked)]
    takes = set[str]().union(*(named for named, _ in functions))
    if not isinstance(asked, BaseRetriever):
        return InvalidInputError(
            f"{names} cannot be shown to reach what {kind} searches: set it on the retriever within, put that "
            f"retriever in the place of the {kind}, or give its function a parameter of this name"
        )
    if functions and all(others is not None for _, others in functions):
        return InvalidInputError(
            f"{names}: no option of a call that reaches {kind}; set it where the component that has it is made"
        )
    if not takes:
        return InvalidInputError(f"{kind} takes no options at invoke, got {names}; set them on the retriever itself")
    told = ", ".join(map(repr, sorted(takes)))
    return InvalidInputError(f"{kind} has no option {names} at invoke; it takes {told}")
