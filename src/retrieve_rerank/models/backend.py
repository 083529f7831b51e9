"""What computes a model's network: torch, ONNX Runtime or OpenVINO, and in which precisions each can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy.typing as npt

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.models.precision import Precision, check_precision

Backend = Literal["torch", "onnx", "openvino"]
Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

_PRECISIONS: dict[str, tuple[str, ...]] = {
    "torch": ("auto", "float32", "bfloat16", "float16"),
    "onnx": ("auto", "float32", "int8"),  # its CPU kernels have nothing between the two
    "openvino": ("auto", "float32", "bfloat16", "int8"),
}


@dataclass(frozen=True, slots=True)
class Session:
    """A network that a runtime has loaded.

    Attributes:
        inputs: Names of what it takes.
        outputs: Names of what it gives.
        run: Computes the output of a name from int64 arrays (batch, tokens) by the names of the inputs.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[[Arrays, str], npt.NDArray[Any]]


def check_backend(backend: Backend, precision: Precision, device: str | None) -> None:
    """Raise InvalidInputError unless `backend` is one we know and computes in `precision` on `device`."""
    if backend not in get_args(Backend):
        raise InvalidInputError(f"backend must be one of {', '.join(get_args(Backend))}; got {backend!r}")
    check_precision(precision)
    if precision not in _PRECISIONS[backend]:
        able = " or ".join(f"backend={other!r}" for other, names in _PRECISIONS.items() if precision in names)
        raise InvalidInputError(
            f"precision={precision!r} needs {able}; backend={backend!r} computes in {', '.join(_PRECISIONS[backend])}"
        )
    if backend != "torch" and device not in (None, "cpu"):
        raise InvalidInputError(
            f"backend={backend!r} runs on the processor here, got device={device!r}; leave device out, or use "
            "backend='torch' for a GPU"
        )
