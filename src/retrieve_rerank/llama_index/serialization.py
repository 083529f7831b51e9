"""Components that can be read back from what they were written down as, and pickled; and values as JSON has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from llama_index.core.schema import BaseComponent
from pydantic import ModelWrapValidatorHandler, model_validator
from pydantic_core import to_jsonable_python
from typing_extensions import Self

from retrieve_rerank.checks import check_mapping
from retrieve_rerank.errors import InvalidInputError
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
            return super().from_dict(check_mapping(data, "what from_dict takes"), **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # The base class deletes what it cannot pickle from the dictionaries of the object itself: it gets a copy.
        return super(Restorable, self._to_pickle()).__getstate__()

    def _to_pickle(self) -> Self:
        return self.model_copy()


def to_json(value: object, what: str) -> Any:
    """Return a value in what JSON has, or raise InvalidInputError that names it as `what`."""
    try:
        return to_jsonable_python(value, by_alias=False, fallback=_scalar)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(
            f"{what} cannot be stored: {error}. Metadata are text, numbers, booleans, None, dates, and lists and "
            "mappings of these"
        ) from error


def _scalar(value: object) -> object:
    # numpy's scalars are the one foreign kind that metadata often holds.
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} has no form in JSON")
