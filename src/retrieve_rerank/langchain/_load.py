"""Reading back what LangChain's `dumpd` wrote of our classes."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from langchain_core.documents import Document
from langchain_core.load import Serializable
from langchain_core.load import load as load_any
from langchain_core.runnables import (
    RunnableBinding,
    RunnableParallel,
    RunnablePassthrough,
    RunnableSequence,
)

from retrieve_rerank.errors import InvalidInputError, MissingDependencyError
from retrieve_rerank.langchain.reranker import RerankStep
from retrieve_rerank.models.settings import reading_back

# LangChain's own that hold other components, and do nothing that those do not.
_CONTAINERS: tuple[type[Serializable], ...] = (
    Document,
    RunnableBinding,
    RunnableParallel,
    RunnablePassthrough,
    RunnableSequence,
)
_ESCAPED = "__lc_escaped__"  # what LangChain keeps a caller's own mapping under; it is never made into an object


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
    classes = [*_classes(), *_CONTAINERS]
    known = {tuple(kind.lc_id()) for kind in classes}
    for part in _parts(dumped):
        _check(part, known)
    with warnings.catch_warnings(), reading_back(["trust_remote_code"] if trust_remote_code else []):
        warnings.filterwarnings("ignore", message="The function `load` is in beta")
        return load_any(dict(dumped), allowed_objects=classes, valid_namespaces=[__name__.split(".")[0]])


def _classes() -> list[type[Serializable]]:
    # All that the package offers, so that a new component needs no entry here. One whose extra is missing cannot load.
    package = importlib.import_module(__name__.rsplit(".", 1)[0])
    found: list[type[Serializable]] = [RerankStep]
    for name in package.__all__:
        try:
            kind = getattr(package, name)
        except MissingDependencyError:
            continue
        if isinstance(kind, type) and issubclass(kind, Serializable) and kind.is_lc_serializable():
            found.append(kind)
    return found


def _parts(value: object) -> Iterator[Mapping[str, Any]]:
    """Yield every mapping of a dump, but for what callers wrote themselves."""
    if isinstance(value, Mapping) and _ESCAPED not in value:
        yield value
        for inner in value.values():
            yield from _parts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _parts(inner)


def _check(part: Mapping[str, Any], known: set[tuple[str, ...]]) -> None:
    kind, name = part.get("type"), part.get("id")
    if part.get("lc") != 1 or not isinstance(name, list):
        return
    if kind == "not_implemented" or (kind == "constructor" and tuple(name) not in known):
        raise InvalidInputError(
            f"the dump has a {'.'.join(map(str, name))} in it, which cannot be restored: load() makes components of "
            "this package and LangChain's containers around them only. Give the object in code"
        )
