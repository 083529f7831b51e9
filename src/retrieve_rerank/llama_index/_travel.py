"""Components that can be read back from what they were written down as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_index.core.schema import BaseComponent
from pydantic import ModelWrapValidatorHandler, model_validator
from typing_extensions import Self


class Travelling(BaseComponent):
    """A component that pydantic reads back, too: `model_validate_json(component.model_dump_json())`.

    LlamaIndex writes a `class_name` beside the fields, and its own `from_dict` takes it away again; pydantic's methods
    would hand it to a constructor that has no such argument.
    """

    @model_validator(mode="wrap")  # "before" comes after the constructor where a class has one of its own
    @classmethod
    def _without_class_name(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, Mapping):
            data = {name: value for name, value in data.items() if name != "class_name"}
        return handler(data)
