"""OpenVINO computes a network: in what the processor computes in, or in int8 from a file made for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from retrieve_rerank.errors import ModelError, require
from retrieve_rerank.models.backend import Arrays, Session
from retrieve_rerank.models.network_files import PLAIN, NetworkFiles
from retrieve_rerank.models.precision import Choice, choose_precision

_PLAIN = "openvino/openvino_model.xml"
_QUANTISED = "openvino/openvino_model_qint8_quantized.xml"
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


def locate(files: NetworkFiles, precision: str) -> Path:
    """Find a network's file, or export it.

    Raises:
        MissingDependencyError: If there is none, and what exporting needs is not installed.
        ModelError: If it cannot be made, or there is none in int8.
    """
    if precision != "int8":
        return files.find((_PLAIN, *PLAIN)) or files.exported()
    file = files.find((_QUANTISED,))
    if file is None:
        raise ModelError(
            f"there is no {_QUANTISED} beside {files.model!r}. Put one there, or use backend='onnx', which quantises a "
            "network itself, or another precision"
        )
    return file


def load(file: Path, precision: str) -> tuple[Choice, Session]:
    """Load a file that `locate` found.

    Raises:
        MissingDependencyError: If OpenVINO is not installed.
        ModelError: If it cannot read the file.
    """
    if precision == "int8":
        return Choice("int8", f"by OpenVINO from {file}"), _session(file, "float32")[1]
    choice = choose_precision(precision, torch.device("cpu"))
    name, session = _session(file, choice.name)
    return Choice(name, f"{choice.reason}; by OpenVINO from {file}"), session


def _session(file: Path, precision: str) -> tuple[str, Session]:
    with _no_telemetry():
        openvino: Any = require("openvino", extra="openvino")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),  # one setting for all backends
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
    }
    try:
        core = openvino.Core()
        network = core.compile_model(core.read_model(str(file)), "CPU", settings)
    except RuntimeError as error:
        raise ModelError(f"OpenVINO cannot load {file}: {error}. Remove it, or get it again") from error
    request = network.create_infer_request()
    # A result may have several names, and one that nothing takes has none.
    names = {name: port for port in network.outputs for name in port.get_names()}

    def run(arrays: Arrays, output: str) -> npt.NDArray[Any]:
        # The request's own memory is overwritten by its next batch.
        result: npt.NDArray[Any] = request.infer(dict(arrays))[names[output]].copy()
        return result

    real = network.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    name = "bfloat16" if real == "bf16" else "float32"
    return name, Session(tuple(port.get_any_name() for port in network.inputs), tuple(names), run)


@contextmanager
def _no_telemetry() -> Iterator[None]:
    # Importing OpenVINO reports the import to its makers, unless what sends it cannot be imported.
    sender = "openvino_telemetry"
    if sender in sys.modules or "openvino" in sys.modules:
        yield
        return
    sys.modules[sender] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[sender]
