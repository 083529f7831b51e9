"""ONNX Runtime or OpenVINO in the place of a loaded model's network; everything around the network stays as it is.

The checkpoint is loaded and checked as ever. Its network is exported to ONNX once and kept, under a digest of its
weights and its configuration. One small batch must come out of both alike, and the torch network is let go of before
anything is scored.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import constants as hub_constants
from sentence_transformers.base.modules import Transformer

from retrieve_rerank.errors import InvalidInputError, ModelError, require
from retrieve_rerank.models.heads import read_all_tokens
from retrieve_rerank.models.loading import AnyModel, Checkpoint, rows_digest, weights_digest
from retrieve_rerank.models.precision import Choice, Precision, choose_precision, has_vnni, is_x86
from retrieve_rerank.models.settings import Backend

Run: TypeAlias = Callable[[Mapping[str, npt.NDArray[Any]]], npt.NDArray[Any]]

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_OUTPUTS = {"feature-extraction": "last_hidden_state", "sequence-classification": "logits"}

# Texts whose results must be torch's, and how far the worst number may be off, as a part of the largest.
_PROBE = ("the quick brown fox", "jumps over the lazy dog, and then it sleeps for a while", "a", "what is 1 + 1?")
_TOLERANCE = {"float32": 0.01, "bfloat16": 0.1, "int8": 0.5}

_FORMAT = 3  # changes when what is exported changes, so that an older export is not taken for it
_OPSET = 17
_EXPORTING = threading.RLock()  # torch exports one network at a time


class RuntimeNetwork(torch.nn.Module):
    """Stands where the transformer's network stood, and has a runtime compute.

    Args:
        run: Computes the network's result from int64 arrays (batch, tokens) by the names of its inputs.
        config: The configuration of the network whose place it takes.
        inputs: Names of its inputs.
        output: What the network's result is called.
    """

    def __init__(self, run: Run, config: Any, inputs: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.config = config
        self.device = torch.device("cpu")
        self._run, self._inputs, self._output = run, inputs, output

    def forward(self, **features: Any) -> dict[str, torch.Tensor]:
        """Return the network's result, in float32, under its usual name."""
        try:
            values = self._run({name: features[name].numpy() for name in self._inputs})
        except Exception as error:  # the runtimes' errors have no base of their own
            texts, tokens = features["input_ids"].shape
            raise ModelError(f"the network cannot compute {texts} texts of {tokens} tokens: {error}") from error
        return {self._output: torch.from_numpy(values).float()}


def replace_network(model: AnyModel, checkpoint: Checkpoint, backend: Backend, precision: Precision) -> Choice:
    """Let `backend` compute the network of a model that torch has loaded in float32 on the CPU.

    Args:
        model: The loaded model; the network in it is replaced.
        checkpoint: Where it came from.
        backend: "onnx" or "openvino".
        precision: As the model's constructor takes it.

    Returns:
        The precision it computes in, and the file that the network came from.

    Raises:
        InvalidInputError: If the model has no network that these runtimes can compute.
        MissingDependencyError: If the runtime, or what exporting needs, is not installed.
        ModelError: If the network cannot be exported or kept, or what was kept is not the checkpoint's.
    """
    transformer: Any = model[0]
    kind = getattr(transformer, "transformer_task", type(transformer).__name__)
    if not isinstance(transformer, Transformer) or kind not in _OUTPUTS:
        raise InvalidInputError(
            f"backend={backend!r} computes encoders such as BERT, and {checkpoint.model!r} is none ({kind}); use "
            "backend='torch'"
        )
    output, config = _OUTPUTS[kind], transformer.config
    if output == "last_hidden_state":  # of all tokens, for whatever pools them
        read_all_tokens(transformer.model)
    texts = [("what is it", text) for text in _PROBE] if output == "logits" else list(_PROBE)
    prepared = transformer.preprocess(texts)
    features = {name: prepared[name] for name in _INPUTS if name in prepared}
    with torch.inference_mode():
        expected = transformer.model(**features)[output].numpy()
    export = _Export(checkpoint, transformer.model, features, output)
    file = export.quantised() if precision == "int8" else export.exact()
    del export
    transformer.model = torch.nn.Identity()  # two copies of the weights are never in memory at once
    choice, run = (_onnxruntime if backend == "onnx" else _openvino)(file, precision, output)
    transformer.model = RuntimeNetwork(run, config, tuple(features), output)
    transformer.model_forward_params = set(features)
    values = transformer.model(**features)[output].numpy()
    if values.ndim == 3:  # what is computed in the places of padding means nothing
        read = features["attention_mask"].numpy() == 1
        values, expected = values[read], expected[read]
    off = float(np.abs(values - expected).max() / np.abs(expected).max())
    if not off <= _TOLERANCE[choice.name]:
        raise ModelError(
            f"the network {choice.reason} does not compute what the checkpoint does: its results are off by {off:.0%} "
            "of the largest. Remove it, and another is exported"
        )
    return choice


@dataclass(frozen=True)
class _Export:
    """Makes ONNX files of one network and keeps them.

    Attributes:
        checkpoint: Where the network came from.
        network: The network in torch, in float32.
        features: A small batch for it.
        output: The name of its result.
    """

    checkpoint: Checkpoint
    network: Any
    features: Mapping[str, torch.Tensor]
    output: str

    def exact(self) -> Path:
        """Return the network as an ONNX file in float32, made at the first call and kept in the cache.

        Raises:
            MissingDependencyError: If it is not there and the package `onnx` is not installed.
            ModelError: If the network cannot be exported, or the cache cannot be written.
        """
        return self._kept("float32", self._export)

    def quantised(self) -> Path:
        """Return the network as an ONNX file in int8; as `exact` otherwise."""
        # x86 without VNNI adds products in 16 bits, in which those of 8-bit weights do not fit.
        narrow = is_x86() and not has_vnni()
        name = "int8-narrow" if narrow else "int8"
        return self._kept(name, lambda to: _quantise(self.exact(), to, reduce_range=narrow))

    def _kept(self, name: str, make: Callable[[Path], None]) -> Path:
        config = self.network.config.to_json_string()
        parts = (weights_digest(self.network), rows_digest(self.network), config, self.output, *self.features)
        digest = sha256("\n".join(parts).encode()).hexdigest()[:24]
        folder = Path(self.checkpoint.cache_folder or hub_constants.HF_HOME, "retrieve-rerank")
        file = folder / f"{digest}-{name}-v{_FORMAT}" / "model.onnx"
        if file.is_file():
            return file
        require("onnx", extra="onnx")
        with _EXPORTING:
            if not file.is_file():
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-", ignore_cleanup_errors=True) as made:
                        new = Path(made, "network", "model.onnx")
                        new.parent.mkdir()
                        make(new)
                        _publish(new, file)
                except OSError as error:
                    raise ModelError(
                        f"cannot keep an ONNX file of {self.checkpoint.model!r} in {folder}: {error}. Give a "
                        "cache_folder that can be written and has room"
                    ) from error
        return file

    def _export(self, to: Path) -> None:
        # Traced from plain matrix products, the runtimes recognise attention and compute it in one step.
        self.network.set_attn_implementation("eager")
        axes = {name: {0: "batch", 1: "tokens"} for name in self.features}
        axes[self.output] = {0: "batch"} if self.output == "logits" else {0: "batch", 1: "tokens"}
        try:
            with warnings.catch_warnings(), torch.no_grad():
                # Tracing warns of every Python value in the model's code, and of the newer exporter, which needs more
                # packages and takes seconds for what this does in tenths.
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    _Positional(self.network, tuple(self.features), self.output).eval(),
                    tuple(self.features.values()),
                    str(to),
                    input_names=list(self.features),
                    output_names=[self.output],
                    dynamic_axes=axes,
                    opset_version=_OPSET,
                    dynamo=False,
                )
        except OSError:
            raise
        except Exception as error:
            raise ModelError(
                f"{self.checkpoint.model!r} cannot be exported to ONNX: {error}. Use backend='torch'"
            ) from error


class _Positional(torch.nn.Module):
    """A network that takes tensors in order and gives one, as exporting wants it."""

    def __init__(self, network: torch.nn.Module, inputs: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.network, self.inputs, self.output = network, inputs, output

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.network(**dict(zip(self.inputs, tensors, strict=True)))[self.output]
        return result


def _quantise(file: Path, to: Path, *, reduce_range: bool) -> None:
    onnx: Any = require("onnx", extra="onnx")
    tools: Any = require("onnxruntime.quantization", extra="onnx")
    network = onnx.load(str(file))
    # The tool logs to the root logger: advice, unless the model has this mark, and what sets up logging for the whole
    # process where nobody has.
    network.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    shapes = {weight.name: tuple(weight.dims) for weight in network.graph.initializer}
    # A layer that narrows takes in what comes out of the activation function, where a few large numbers would leave
    # too few of the 256 steps for all others. Kept in float32, it costs a third of the gain and halves the error.
    exact = [
        node.name
        for node in network.graph.node
        if node.op_type in ("MatMul", "Gemm") and _narrows(shapes.get(node.input[1]), node)
    ]
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)
    try:
        tools.quantize_dynamic(
            network,
            str(to),
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=tools.QuantType.QInt8,
            nodes_to_exclude=exact,
        )
    finally:
        root.removeHandler(silent)


def _narrows(shape: tuple[int, ...] | None, node: Any) -> bool:
    if shape is None or len(shape) != 2:
        return False
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    rows, columns = shape[::-1] if transposed else shape
    return rows > columns


def _publish(made: Path, file: Path) -> None:
    """Move a file in its complete folder to its place at once; if another process was faster, that one's stays."""
    try:
        os.replace(made.parent, file.parent)  # noqa: PTH105 - as one step
    except OSError:
        if not file.is_file():
            raise
        shutil.rmtree(made.parent)


def _onnxruntime(file: Path, precision: str, output: str) -> tuple[Choice, Run]:
    runtime: Any = require("onnxruntime", extra="onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # one setting for all backends
    options.log_severity_level = 3  # what it warns of, such as its own choice of kernels, helps nobody
    try:
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"ONNX Runtime cannot load {file}: {error}. Remove it, and another is exported") from error
    choice = Choice("int8" if precision == "int8" else "float32", f"by ONNX Runtime from {file}")
    inputs = [each.name for each in session.get_inputs()]  # exporting leaves out what the network does not use
    return choice, lambda arrays: session.run([output], {name: arrays[name] for name in inputs})[0]


def _openvino(file: Path, precision: str, output: str) -> tuple[Choice, Run]:
    with _no_telemetry():
        openvino: Any = require("openvino", extra="openvino")
    choice = choose_precision(precision, torch.device("cpu"))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),  # one setting for all backends
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[choice.name],
    }
    try:
        core = openvino.Core()
        network = core.compile_model(core.read_model(str(file)), "CPU", settings)
    except RuntimeError as error:
        raise ModelError(f"OpenVINO cannot load {file}: {error}. Remove it, and another is exported") from error
    request = network.create_infer_request()
    inputs, port = [each.get_any_name() for each in network.inputs], network.output(output)

    def run(arrays: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        # The request's own memory is overwritten by its next batch.
        result: npt.NDArray[Any] = request.infer({name: arrays[name] for name in inputs})[port].copy()
        return result

    real = network.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return Choice("bfloat16" if real == "bf16" else "float32", f"{choice.reason}; by OpenVINO from {file}"), run


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
