"""What stands for a model or a store in a configuration that is written down, and how it comes back.

LangChain writes down its own objects. Ours that are none (`CrossEncoder`, `BiEncoder`, `ChromaVectorStore`) become a
mapping of their class and their arguments, without the token; objects that cannot be made again become a mapping that
says so when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from langchain_core.load import Serializable, dumpd
from pydantic import FieldSerializationInfo, SerializerFunctionWrapHandler, field_serializer

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.langchain._checked import Checked
from retrieve_rerank.langchain.vectorstore import ChromaVectorStore
from retrieve_rerank.models.bi_encoder import BiEncoder
from retrieve_rerank.models.cross_encoder import CrossEncoder
from retrieve_rerank.models.settings import reading_back

CLASS = "class"  # the key that tells such a mapping from any other
_MAKERS: dict[str, type[BiEncoder] | type[CrossEncoder] | type[ChromaVectorStore]] = {
    made.__name__: made for made in (BiEncoder, CrossEncoder, ChromaVectorStore)
}
_PLAIN = (str, int, float, bool, type(None))


class Travelling(Checked):
    """A component that LangChain's `dumpd` and pydantic write down, and `retrieve_rerank.langchain.load` reads back.

    Attributes:
        holds: The fields that may hold models, stores and other components.
    """

    holds: ClassVar[tuple[str, ...]] = ()

    @field_serializer("*", mode="wrap", when_used="json")
    def _written(self, value: object, plain: SerializerFunctionWrapHandler, field: FieldSerializationInfo) -> Any:
        return written(value) if field.field_name in self.holds else plain(value)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether `dumpd` writes this down: yes."""
        return True

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What `dumpd` writes instead of the fields of these names."""
        return {name: packed(getattr(self, name)) for name in self.holds}


def packed(value: object) -> object:
    """Return what `dumpd` can write down of `value`: itself, or a mapping that `unpacked` understands."""
    if isinstance(value, (*_PLAIN, Mapping)) or (isinstance(value, Serializable) and value.is_lc_serializable()):
        return value
    if isinstance(value, (list, tuple)):
        return [packed(item) for item in value]
    # Of a subclass we do not know the arguments.
    if type(value) in (BiEncoder, CrossEncoder):
        return {CLASS: type(value).__name__, **value.settings}  # type: ignore[attr-defined]
    if type(value) is ChromaVectorStore and value.collection.folder is not None:
        return {
            CLASS: "ChromaVectorStore",
            "collection_name": value.collection.name,
            "persist_directory": value.collection.folder,
            "metric": value.metric,
            "assume_compatible": value.collection.assume_compatible,
            "search_breadth": value.collection.search_breadth,
            "lock_timeout": value.collection.lock_timeout,
            "embedding_function": packed(value.embeddings),
        }
    return {CLASS: f"{type(value).__module__}.{type(value).__qualname__}"}


def written(value: object) -> Any:
    """Return `value` as plain data, in LangChain's format: for fields that pydantic writes as JSON."""
    return dumpd(packed(value))


def unpacked(value: Any) -> Any:
    """Return what `packed` or `written` made a mapping of; everything else as it is.

    Raises:
        InvalidInputError: If it stands for an object that could not be written down.
    """
    if isinstance(value, list):
        return [unpacked(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "lc" in value:
        from retrieve_rerank.langchain._load import load  # which knows all classes, also those that import this module

        return load(dict(value))
    if CLASS not in value:
        return value
    maker = _MAKERS.get(str(value[CLASS]))
    if maker is None:
        raise InvalidInputError(
            f"this configuration was written down with a {value[CLASS]} in it, which cannot be written down: only "
            "components of this package can, and of vector stores only ChromaVectorStore in a directory. Load the "
            "rest, and give the object in code"
        )
    with reading_back():
        return maker(**{name: unpacked(argument) for name, argument in value.items() if name != CLASS})
