"""Errors in this package's words where pydantic checks the arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.load import Serializable
from pydantic import ValidationError

from retrieve_rerank.errors import InvalidInputError

# What the arguments of the components that these replace are called here.
_HERE = {
    "base_compressor": "it is called reranker",
    "c": "it is called rrf_k",
    "encode_kwargs": "write its values as arguments: normalize=, batch_tokens=",
    "model_kwargs": "write its values as arguments: device=, trust_remote_code=, revision=",
    "multi_process": "several processes are an inference server's (endpoint=) or Ray's",
    "query_encode_kwargs": "a prompt for queries is query_prompt=",
    "show_progress": "it is an argument of encode_documents and of ChromaIndex.add",
}


class Checked(Serializable):
    """A pydantic model whose constructor raises InvalidInputError, which says what to do; the input is not shown."""

    if not TYPE_CHECKING:  # checkers read the arguments off the fields

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise InvalidInputError(_in_words(error, type(self))) from error


def _in_words(error: ValidationError, kind: type[Checked]) -> str:
    said = []
    for fault in error.errors(include_url=False):
        name = ".".join(str(part) for part in fault["loc"])
        reason = fault.get("ctx", {}).get("error")
        if fault["type"] == "extra_forbidden":
            hint = _HERE.get(name) or f"it takes {', '.join(kind.model_fields)}"
            said.append(f"there is no argument {name!r}: {hint}")
        elif fault["type"] == "missing":
            said.append(f"{name!r} is missing")
        elif isinstance(reason, Exception):  # a check of ours
            said.append(str(reason) if not name or name in str(reason) else f"{name}: {reason}")
        else:
            said.append(f"{name}: {fault['msg']}, got {type(fault['input']).__name__}")
    return f"{kind.__name__}: {'; '.join(said)}"
