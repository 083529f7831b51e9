"""ONNX Runtime computes a network: in float32, or in int8, which is smaller and coarser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from retrieve_rerank.errors import ModelError, require
from retrieve_rerank.models.backend import Session
from retrieve_rerank.models.network_files import PLAIN, NetworkFiles
from retrieve_rerank.models.precision import Choice, has_vnni, is_x86

_VNNI, _X86, _ARM = "qint8_avx512_vnni", ("quint8_avx2", "qint8_avx512"), "qint8_arm64"


def locate(files: NetworkFiles, precision: str) -> Path:
    """Find a network's file, or export it.

    Raises:
        MissingDependencyError: If there is none, and what exporting needs is not installed.
        ModelError: If it cannot be made.
    """
    if precision == "int8":
        return files.find(_quantised_names()) or files.quantised()
    return files.find(PLAIN) or files.exported()


def load(file: Path, precision: str) -> tuple[Choice, Session]:
    """Load a file that `locate` found.

    Raises:
        MissingDependencyError: If ONNX Runtime is not installed.
        ModelError: If it cannot read the file.
    """
    return Choice("int8" if precision == "int8" else "float32", f"by ONNX Runtime from {file}"), _session(file)


def _quantised_names() -> tuple[str, ...]:
    # What the hub's models are quantised for. Each computes everywhere, but where a processor adds int8 products in 16
    # bits (x86 without VNNI), those made for another lose sums that do not fit.
    order = (_ARM, _VNNI, *_X86) if not is_x86() else (_VNNI, *_X86[::-1], _ARM) if has_vnni() else (*_X86, _ARM, _VNNI)
    return tuple(f"onnx/model_{name}.onnx" for name in (*order, "quantized", "int8"))


def _session(file: Path) -> Session:
    runtime: Any = require("onnxruntime", extra="onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # one setting for all backends
    options.log_severity_level = 3  # what it warns of, such as its own choice of kernels, helps nobody
    try:
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"ONNX Runtime cannot load {file}: {error}. Remove it, or get it again") from error
    return Session(
        tuple(each.name for each in session.get_inputs()),
        tuple(each.name for each in session.get_outputs()),
        lambda arrays, output: session.run([output], dict(arrays))[0],
    )
