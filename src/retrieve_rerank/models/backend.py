"""A model's network as ONNX Runtime or OpenVINO has loaded it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]


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
