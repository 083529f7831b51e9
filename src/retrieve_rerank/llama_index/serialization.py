"""Components that can be read back from what they were written down as, and pickled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_index.core.schema import BaseComponent
from pydantic import ModelWrapValidatorHandler, model_validator
from typing_extensions import Self

from retrieve_rerank.models.settings import reading_back


class Restorable(BaseComponent):
    """A component that pydantic reads back, too: `model_validate_json(component.model_dump_json())`.

    LlamaIndex writes a `class_name` beside the fields, and its own `from_dict` takes it away again; pydantic's methods
    would hand it to a constructor that has no such argument. Pickling leaves the component as it is, and secrets out.
    """

    @model_validator(mode="wrap")  # "before" comes after the constructor where a class has one of its own
    @classmethod
    def _without_class_name(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, Mapping):
            data = {name: value for name, value in data.items() if name != "class_name"}
        return handler(data)

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Make a component of what `to_dict` wrote; `kwargs` are arguments of the caller, which go before it."""
        with reading_back(kwargs):
            return super().from_dict(dict(data), **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # The base class deletes what it cannot pickle from the dictionaries of the object itself: it gets a copy.
        return super(Restorable, self._to_pickle()).__getstate__()

    def _to_pickle(self) -> Self:
        return self.model_copy()
