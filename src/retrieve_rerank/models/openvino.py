"""OpenVINO in the place of a loaded model's network; everything around the network stays as it is.

The checkpoint is loaded and checked as ever. Its network is converted once and kept, under a digest of its weights and
its configuration, together with what torch makes of a few texts. The torch network is let go of before OpenVINO loads
what was converted, and the same must come out before anything is scored.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import constants as hub_constants
from sentence_transformers.base.modules import Transformer
from transformers.utils import logging as transformers_logging

from retrieve_rerank.errors import InvalidInputError, ModelError, require
from retrieve_rerank.models.heads import read_all_tokens
from retrieve_rerank.models.loading import AnyModel, Checkpoint, rows_digest, weights_digest
from retrieve_rerank.models.precision import Choice, choose_precision, is_x86
from retrieve_rerank.models.reading import longest_input

Run: TypeAlias = Callable[[Mapping[str, npt.NDArray[Any]]], npt.NDArray[Any]]

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_OUTPUTS = {"feature-extraction": "last_hidden_state", "sequence-classification": "logits"}

# Texts of different lengths whose results must be torch's. Logits may be off by so much, and tokens' vectors by this
# part of their length.
_PROBE = ("what is 1 + 1?", "a", "jumps over the lazy dog, and then it sleeps for a while", "the quick brown fox " * 9)
_TOLERANCE = {"logits": {"float32": 1e-3, "bfloat16": 0.15}, "last_hidden_state": {"float32": 1e-3, "bfloat16": 0.1}}

# Parameters of a network that is worth converting: one that is smaller is computed in no time by torch as well.
_WORTHWHILE = 1_000_000

_WIDTH = 16  # OpenVINO builds its kernels for each width anew, so batches are padded to a multiple of this
_EXPECTED = "expected.npz"  # beside the network: what torch makes of the texts above
_FORMAT = 4  # changes when what is converted changes, so that an older file is not taken for it
_CONVERTING = threading.RLock()  # torch traces one network at a time


def choose_backend(backend: str, model: AnyModel, precision: str) -> Choice:
    """Return what computes the network, "torch" or "openvino", and why.

    Args:
        backend: As the model's constructor takes it.
        model: The loaded model.
        precision: As the model's constructor takes it.
    """
    if backend != "auto":
        return Choice(backend, "asked for")
    against = _against(model, precision)
    return Choice("torch", against) if against else Choice("openvino", "it is the faster one on such processors")


def _against(model: AnyModel, precision: str) -> str | None:
    """Return why "auto" leaves a model to torch, or None."""
    device = torch.device(model.device)
    if device.type != "cpu":
        return f"OpenVINO computes on the processor, and the model is on {device}"
    if precision == "float16":
        return "OpenVINO does not compute in float16"
    if not is_x86():
        return "OpenVINO was not measured on such processors"
    if (other := no_encoder(model)) is not None:
        return f"OpenVINO computes encoders here, and this is none ({other})"
    if sum(parameter.numel() for parameter in model.parameters()) < _WORTHWHILE:
        return "the network is too small to convert"
    if importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed"
    return None


def no_encoder(model: AnyModel) -> str | None:
    """Return what a model has in the place of an encoder such as BERT, or None."""
    transformer = model[0] if len(model) else None
    kind = getattr(transformer, "transformer_task", type(transformer).__name__)
    return None if isinstance(transformer, Transformer) and kind in _OUTPUTS else str(kind)


class OpenVinoNetwork(torch.nn.Module):
    """Stands where the transformer's network stood, and has OpenVINO compute.

    Args:
        run: Computes the network's result from int64 arrays (batch, tokens) by the names of its inputs.
        network: The network whose place it takes.
        inputs: Names of its inputs.
        output: What the network's result is called.
    """

    def __init__(self, run: Run, network: Any, inputs: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.config = network.config
        self.device = torch.device("cpu")
        self._run, self._inputs, self._output = run, inputs, output
        self._longest = longest_input(network)
        self._padding = getattr(network.config, "pad_token_id", None) or 0

    def forward(self, **features: Any) -> dict[str, torch.Tensor]:
        """Return the network's result, in float32, under its usual name."""
        texts, tokens = features["input_ids"].shape
        more = -tokens % _WIDTH
        if self._longest is not None and tokens + more > self._longest:
            more = 0
        try:
            values = self._run({name: self._padded(name, features[name], more) for name in self._inputs})
        except Exception as error:  # OpenVINO's errors have no base of their own
            raise ModelError(f"the network cannot compute {texts} texts of {tokens} tokens: {error}") from error
        if values.ndim == 3:
            values = values[:, :tokens]
        return {self._output: torch.from_numpy(values).float()}

    def _padded(self, name: str, values: torch.Tensor, more: int) -> npt.NDArray[Any]:
        with_what = self._padding if name == "input_ids" else 0
        return torch.nn.functional.pad(values, (0, more), value=with_what).numpy()


def replace_network(model: AnyModel, checkpoint: Checkpoint, precision: str, streams: int) -> Choice:
    """Let OpenVINO compute the network of a model that torch has loaded in float32 on the CPU.

    Args:
        model: The loaded model; the network in it is replaced.
        checkpoint: Where it came from.
        precision: As the model's constructor takes it.
        streams: How many threads may call it at once; each is given one core.

    Returns:
        The precision it computes in, and the file that the network came from.

    Raises:
        InvalidInputError: If the model has no network that OpenVINO can compute.
        MissingDependencyError: If OpenVINO is not installed.
        ModelError: If the network cannot be converted or kept, or what was kept is not the checkpoint's.
    """
    if (other := no_encoder(model)) is not None:
        raise InvalidInputError(
            f"backend='openvino' computes encoders such as BERT, and {checkpoint.model!r} is none ({other}); use "
            "backend='torch'"
        )
    with _no_telemetry():
        openvino: Any = require("openvino", extra="openvino")
    transformer: Any = model[0]
    network, result = transformer.model, _OUTPUTS[transformer.transformer_task]
    if result == "last_hidden_state":  # of all tokens, for whatever pools them
        read_all_tokens(network)
    prepared = transformer.preprocess([("what is it", text) for text in _PROBE] if result == "logits" else _PROBE)
    features = {name: prepared[name] for name in _INPUTS if name in prepared}
    file = _kept(network, checkpoint, features, result)
    transformer.model = torch.nn.Identity()  # two copies of the weights are never in memory at once
    choice, run = _load(openvino, file, precision, streams)
    transformer.model = OpenVinoNetwork(run, network, tuple(features), result)
    transformer.model_forward_params = set(features)
    del network
    off = _off(transformer.model, file, result)
    if not off <= _TOLERANCE[result][choice.name]:
        raise ModelError(
            f"the network in {file} does not compute what the checkpoint does: its results are off by {off:.2g}. "
            "Remove it, and another is made; if that does not help, use backend='torch'"
        )
    return choice


def _off(network: OpenVinoNetwork, file: Path, result: str) -> float:
    """Return how far the results of a network are from those that torch had for the same texts."""
    try:
        with np.load(file.with_name(_EXPECTED), allow_pickle=False) as kept:
            features, expected = {name: torch.from_numpy(kept[name]) for name in kept}, kept[result]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"cannot read {file.with_name(_EXPECTED)}: {error}. Remove {file}, and another is made"
        ) from error
    features.pop(result)
    off = network(**features)[result].numpy() - expected
    if result == "logits":
        return float(np.abs(off).max())
    read = features["attention_mask"].numpy() == 1  # what is computed in the places of padding means nothing
    return float(np.linalg.norm(off[read]) / np.linalg.norm(expected[read]))


def _kept(network: Any, checkpoint: Checkpoint, features: Mapping[str, torch.Tensor], result: str) -> Path:
    """Return the network in OpenVINO's format, in float32, made at the first call and kept in the cache."""
    parts = (weights_digest(network), rows_digest(network), network.config.to_json_string(), result, *features)
    digest = sha256("\n".join(parts).encode()).hexdigest()[:24]
    folder = Path(checkpoint.cache_folder or hub_constants.HF_HOME, "retrieve-rerank")
    file = folder / f"{digest}-v{_FORMAT}" / "model.xml"
    try:
        _check_owner(folder)
        if file.is_file():
            return file
        with (
            _CONVERTING,
            tempfile.TemporaryDirectory(dir=folder, prefix=".making-", ignore_cleanup_errors=True) as made,
        ):
            if not file.is_file():
                new = Path(made, "network", "model.xml")
                new.parent.mkdir()
                _convert(network, checkpoint, features, result, new)
                _publish(new, file)
    except OSError as error:
        raise ModelError(
            f"cannot keep the network of {checkpoint.model!r} for OpenVINO in {folder}: {error}. Give a cache_folder "
            "that can be written and has room, or use backend='torch'"
        ) from error
    return file


def _check_owner(folder: Path) -> None:
    """Make the folder if need be, and refuse one in which others than this user and root can write."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not hasattr(os, "geteuid"):  # Windows keeps a user's folders by other means
        return
    status = folder.stat()
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        raise ModelError(
            f"others can write in {folder}, so what lies there may be theirs. Take that right from them "
            "(chmod go-w) once you have removed what is in it, or give another cache_folder"
        )


def _convert(network: Any, checkpoint: Checkpoint, features: Mapping[str, torch.Tensor], result: str, to: Path) -> None:
    with torch.inference_mode():
        results = {result: network(**features)[result]}
    arrays: dict[str, Any] = {name: value.numpy() for name, value in {**features, **results}.items()}
    np.savez(to.with_name(_EXPECTED), **arrays)
    # Traced from plain matrix products, attention is recognised and computed in one step.
    network.set_attn_implementation("eager")
    try:
        with warnings.catch_warnings(), torch.no_grad(), _no_telemetry(), _no_remarks():
            warnings.simplefilter("ignore")  # tracing warns of every Python value in the model's code
            openvino: Any = require("openvino", extra="openvino")
            positional = _Positional(network, tuple(features), result).eval()
            converted = openvino.convert_model(positional, example_input=tuple(features.values()))
            for name, port in zip(features, converted.inputs, strict=True):
                port.get_tensor().set_names({name})
            openvino.save_model(converted, str(to), compress_to_fp16=False)
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{checkpoint.model!r} cannot be converted for OpenVINO: {reason}. Use backend='torch'"
        ) from error


class _Positional(torch.nn.Module):
    """A network that takes tensors in order and gives one, as tracing wants it."""

    def __init__(self, network: torch.nn.Module, inputs: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.network, self.inputs, self.output = network, inputs, output

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.network(**dict(zip(self.inputs, tensors, strict=True)))[self.output]
        return result


def _publish(made: Path, file: Path) -> None:
    """Move a file in its complete folder to its place at once; if another process was faster, that one's stays."""
    try:
        os.replace(made.parent, file.parent)  # noqa: PTH105 - as one step
    except OSError:
        if not file.is_file():
            raise
        shutil.rmtree(made.parent)


def _load(openvino: Any, file: Path, precision: str, streams: int) -> tuple[Choice, Run]:
    choice = choose_precision(precision, torch.device("cpu"))
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams,
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[choice.name],
        "ENABLE_CPU_PINNING": False,  # or all models, and all processes, would have the same first cores
    }
    try:
        core = openvino.Core()
        network = core.compile_model(core.read_model(str(file)), "CPU", settings)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"OpenVINO cannot load {file}: {reason}. Remove it, and another is made") from error
    requests: SimpleQueue[Any] = SimpleQueue()
    for _ in range(streams):
        requests.put(network.create_infer_request())
    names, port = [each.get_any_name() for each in network.inputs], network.output(0)

    def run(arrays: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        request = requests.get()
        try:
            # The request's own memory is overwritten by its next batch.
            result: npt.NDArray[Any] = np.array(request.infer({name: arrays[name] for name in names})[port])
        finally:
            requests.put(request)
        return result

    real = network.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return Choice("bfloat16" if real == "bf16" else "float32", f"{choice.reason}; from {file}"), run


@contextmanager
def _no_remarks() -> Iterator[None]:
    # Tracing looks at every attribute of a network, and transformers remarks on that of the loss, which is not used.
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


@contextmanager
def _no_telemetry() -> Iterator[None]:
    # Importing OpenVINO, and converting, report to its makers, unless what sends it cannot be imported.
    sender = "openvino_telemetry"
    if sender in sys.modules:
        yield
        return
    sys.modules[sender] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[sender]
