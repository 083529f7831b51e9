"""How components are made, checked, written down by LangChain's `dumpd`, and read back.

LangChain writes down its own objects. Ours that are none, models and stores, become a mapping of their class and their
settings, without the secrets; objects that cannot be made again become a mapping that says so when it is read. Only
classes that registered here are made of what is read.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias, TypeVar

from langchain_core.documents import Document
from langchain_core.load import Serializable, dumpd
from langchain_core.load import load as load_any
from langchain_core.runnables import Runnable, RunnableBinding, RunnableParallel, RunnablePassthrough, RunnableSequence
from langchain_core.vectorstores import VectorStore
from pydantic import (
    AfterValidator,
    BeforeValidator,
    FieldSerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_serializer,
)

from retrieve_rerank.checks import check_count, check_flag, check_mapping, check_seconds, check_threshold
from retrieve_rerank.errors import InvalidInputError, in_one_line
from retrieve_rerank.indexes.nearest import check_diversity
from retrieve_rerank.langchain.compat import INSTEAD
from retrieve_rerank.models.bi_encoder import BiEncoder
from retrieve_rerank.models.cross_encoder import CrossEncoder
from retrieve_rerank.models.interpolation import check_weight
from retrieve_rerank.models.settings import reading_back

K = TypeVar("K", bound=type)

CLASS = "class"  # the key that tells the mapping of a model or a store from any other
_PLAIN = (str, int, float, bool, type(None), Mapping)
# LangChain's own that hold other components, and do nothing that those do not.
_ALLOWED: list[type[Serializable]] = [
    Document,
    RunnableBinding,
    RunnableParallel,
    RunnablePassthrough,
    RunnableSequence,
]
_ENDLESS = "what is to be read back is nested without end; write it down flatter"
_MADE_OF_SETTINGS: dict[str, type] = {}
_ESCAPED = "__lc_escaped__"  # what LangChain keeps a caller's own mapping under; it is never made into an object


def restorable(kind: K) -> K:
    """Register a class whose objects may be made of what is read: a Serializable, or one that has `settings`.

    Its `settings` are the arguments of its constructor by their names, without secrets; None if an object cannot be
    made again.
    """
    if issubclass(kind, Serializable):
        _ALLOWED.append(kind)
    else:
        _MADE_OF_SETTINGS[kind.__name__] = kind
    return kind


restorable(BiEncoder)
restorable(CrossEncoder)


def _check_named(check: Callable[[Any, str], Any]) -> BeforeValidator:
    def run(value: object, info: ValidationInfo) -> Any:
        return None if value is None else check(value, info.field_name or "")

    return BeforeValidator(run)


Count: TypeAlias = Annotated[int, _check_named(check_count)]
Seconds: TypeAlias = Annotated[float, _check_named(check_seconds)]
Diversity: TypeAlias = Annotated[float, _check_named(check_diversity)]
Threshold: TypeAlias = Annotated[float, AfterValidator(check_threshold)]
Weight: TypeAlias = Annotated[float, BeforeValidator(check_weight)]


class Component(Serializable):
    """A component whose constructor says in this package's words what it cannot use, and that can be written down.

    Attributes:
        positional: The arguments that may be given by position.
        holds: The fields that may hold models, stores and other components.
    """

    positional: ClassVar[tuple[str, ...]] = ()
    holds: ClassVar[tuple[str, ...]] = ()

    if not TYPE_CHECKING:  # checkers read the arguments off the fields

        def __init__(self, *arguments: Any, **fields: Any) -> None:
            kind = type(self)
            if len(arguments) > (most := len(kind.positional)):
                told = {0: "no argument", 1: "1 argument"}.get(most, f"{most} arguments")
                raise InvalidInputError(f"{kind.__name__} takes {told} by position, got {len(arguments)}")
            by_position = dict(zip(kind.positional, arguments, strict=False))
            if twice := by_position.keys() & fields.keys():
                raise InvalidInputError(f"{kind.__name__}: {', '.join(sorted(twice))} is given twice")
            fields |= by_position
            try:
                with reading_back() if _made_by_langchains_load() else nullcontext():
                    super().__init__(**fields)
            except ValidationError as error:
                raise InvalidInputError(_in_words(error, kind)) from error

        def __getattr__(self, name: str) -> Any:
            if name in INSTEAD:
                raise AttributeError(f"{type(self).__name__} has no {name!r}: {INSTEAD[name]}")
            return super().__getattr__(name)

    @field_serializer("*", mode="wrap", when_used="json")
    def _written(self, value: object, plain: SerializerFunctionWrapHandler, field: FieldSerializationInfo) -> Any:
        return dumpd(to_plain(value)) if field.field_name in self.holds else plain(value)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether `dumpd` writes this down: yes."""
        return True

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What `dumpd` writes instead of the fields of these names."""
        return {name: to_plain(getattr(self, name)) for name in self.holds}


def _made_by_langchains_load() -> bool:
    """Whether a constructor is called by LangChain's own `load`, whose arguments are what was read."""
    frame = sys._getframe(2)  # noqa: SLF001 - the caller alone tells them from arguments of a call
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("retrieve_rerank."):
        frame = frame.f_back
    return bool(frame.f_globals.get("__name__") == "langchain_core.load.load")


def _in_words(error: ValidationError, kind: type[Component]) -> str:
    said = []
    for fault in error.errors(include_url=False):
        name = ".".join(str(part) for part in fault["loc"])
        reason = fault.get("ctx", {}).get("error")
        if fault["type"] == "extra_forbidden":
            hint = INSTEAD.get(name) or f"it takes {', '.join(kind.model_fields)}"
            said.append(f"there is no argument {name!r}: {hint}")
        elif fault["type"] == "missing":
            said.append(f"{name!r} is missing")
        elif isinstance(reason, Exception):  # a check of ours
            said.append(str(reason) if not name or name in str(reason) else f"{name}: {reason}")
        else:
            said.append(f"{name}: {fault['msg']}, got {type(fault['input']).__name__}")
    return f"{kind.__name__}: {'; '.join(said)}"


def to_plain(value: object) -> object:
    """Return what `dumpd` can write down of `value`: itself, or a mapping that `from_plain` understands."""
    if isinstance(value, _PLAIN) or (isinstance(value, Serializable) and value.is_lc_serializable()):
        return value
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    kind = type(value)
    settings = getattr(value, "settings", None) if _MADE_OF_SETTINGS.get(kind.__name__) is kind else None
    if settings is None:  # of a subclass, too, whose arguments nobody knows
        return {CLASS: f"{kind.__module__}.{kind.__qualname__}"}
    return {CLASS: kind.__name__, **{name: to_plain(setting) for name, setting in settings.items()}}


def from_plain(value: Any) -> Any:
    """Return what `to_plain` made a mapping of; everything else as it is.

    Raises:
        InvalidInputError: If it stands for an object that could not be written down.
    """
    if isinstance(value, list):
        try:
            return [from_plain(item) for item in value]
        except RecursionError as error:
            raise InvalidInputError(_ENDLESS) from error
    if not isinstance(value, Mapping):
        return value
    if "lc" in value:
        return load(value)
    if CLASS not in value:
        return value
    maker = _MADE_OF_SETTINGS.get(str(value[CLASS]))
    if maker is None:
        raise InvalidInputError(
            f"this configuration was written down with a {value[CLASS]} in it, which cannot be written down: only "
            "components of this package can, and of vector stores only ChromaVectorStore in a directory. Load the "
            "rest, and give the object in code"
        )
    with reading_back():
        return maker(**{name: from_plain(argument) for name, argument in value.items() if name != CLASS})


def check_base(value: object, what: str) -> None:
    """Raise InvalidInputError, which calls it `what`, unless this can be a first stage."""
    if not isinstance(value, (Runnable, VectorStore)):
        raise InvalidInputError(f"{what} must be a LangChain retriever or vector store, got {type(value).__name__}")


def model_of(value: object) -> object:
    """Return a model as a component takes it, of whatever stands for one: a path is its name."""
    return os.fspath(value) if isinstance(value, os.PathLike) else from_plain(value)


def load(dumped: Mapping[str, Any], *, trust_remote_code: bool = False) -> Any:
    """Restore a component, or a chain of them, from what `langchain_core.load.dumpd` wrote.

    Only classes of this package and LangChain's own containers are made, whatever the dump says. Tokens are never
    written down: set `HF_TOKEN` for private models. Inside a component, a `ChromaVectorStore` comes back by its
    directory. One by itself, one in memory, other vector stores and other people's models cannot be written down, and
    loading says so.

    Args:
        dumped: What `dumpd` returned, or the same read from JSON.
        trust_remote_code: Allow models in it to run code that comes with their checkpoint, if they ask for it.

    Returns:
        The component.

    Raises:
        InvalidInputError: If something in it cannot be restored.

    Example:
        >>> from langchain_core.load import dumpd
        >>> from retrieve_rerank.langchain import CrossEncoderReranker, load
        >>> reranker = CrossEncoderReranker(model=str(cross_encoder_path), top_n=3)
        >>> load(dumpd(reranker)).top_n
        3
    """
    if not isinstance(dumped, Mapping):
        raise InvalidInputError(f"load() takes what dumpd() returned, a mapping; got {type(dumped).__name__}")
    allowed, given = check_flag(trust_remote_code, "trust_remote_code"), check_mapping(dumped, "a dump")
    try:
        _check_plain(given)
        return _loaded(given, trust_remote_code=allowed)
    except RecursionError as error:
        raise InvalidInputError(_ENDLESS) from error


def _check_plain(dumped: dict[str, Any]) -> None:
    try:
        json.dumps(dumped)
    except TypeError as error:
        raise InvalidInputError(f"a dump is plain JSON, as dumpd() returns it: {in_one_line(error)}") from error
    except ValueError as error:  # it holds itself
        raise InvalidInputError(_ENDLESS) from error


def _loaded(dumped: dict[str, Any], *, trust_remote_code: bool) -> Any:
    known = {tuple(kind.lc_id()) for kind in _ALLOWED}
    for part in _parts(dumped):
        kind, name = part.get("type"), part.get("id")
        if part.get("lc") != 1 or not isinstance(name, list):
            continue
        if kind == "not_implemented" or (kind == "constructor" and tuple(map(str, name)) not in known):
            raise InvalidInputError(
                f"the dump has a {'.'.join(map(str, name))} in it, which cannot be restored: load() makes components "
                "of this package and LangChain's containers around them only. Give the object in code"
            )
    with warnings.catch_warnings(), reading_back(["trust_remote_code"] if trust_remote_code else []):
        warnings.filterwarnings("ignore", message="The function `load` is in beta")
        return load_any(dumped, allowed_objects=_ALLOWED, valid_namespaces=[__name__.split(".")[0]])


def _parts(value: object) -> Iterator[Mapping[str, Any]]:
    """Yield every mapping of a dump, but for what callers wrote themselves."""
    if isinstance(value, Mapping) and _ESCAPED not in value:
        yield value
        for inner in value.values():
            yield from _parts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _parts(inner)
