"""Where the file of a network comes from: beside the checkpoint, from the hub, or exported once and kept."""

from __future__ import annotations

import logging
import mmap
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from retrieve_rerank.errors import ModelError, require
from retrieve_rerank.models.loading import Checkpoint, hub_failure
from retrieve_rerank.models.precision import has_vnni, is_x86

PLAIN = ("onnx/model.onnx", "model.onnx")

# Changes when what is exported changes, so that an older export is not taken for it.
_FORMAT = 2
_OPSET = 17
# What a file needs beside it: weights of large networks, and OpenVINO's.
_COMPANIONS = {".onnx": (".onnx_data", ".onnx.data"), ".xml": (".bin",)}

_EXPORTING = threading.RLock()  # torch exports one network at a time


@dataclass(frozen=True)
class NetworkFiles:
    """Finds and makes files of one network.

    Attributes:
        checkpoint: Where the network came from.
        network: The network in torch, in float32.
        features: A small batch for it.
        output: The name of its result.
        weights: The digest of its weights.
    """

    checkpoint: Checkpoint
    network: Any
    features: Mapping[str, torch.Tensor]
    output: str
    weights: str

    @property
    def model(self) -> str:
        """The name or folder of the checkpoint."""
        return self.checkpoint.model

    def find(self, names: tuple[str, ...]) -> Path | None:
        """Return the first of `names` that lies beside the checkpoint, on disk or on the hub.

        Raises:
            ModelError: If the hub has one and does not give it.
        """
        folder = Path(self.model).expanduser()
        if folder.is_dir():
            return next((folder / name for name in names if (folder / name).is_file()), None)
        return self._find_on_hub(names)

    def exported(self) -> Path:
        """Return the network as an ONNX file in float32, made at the first call and kept in the cache.

        Raises:
            MissingDependencyError: If it is not there and the package `onnx` is not installed.
            ModelError: If the network cannot be exported, or the cache cannot be written.
        """
        return self._kept("float32", self._export)

    def quantised(self) -> Path:
        """Return the network as an ONNX file in int8; as `exported` otherwise."""
        # x86 without VNNI adds products in 16 bits, in which those of 8-bit weights do not fit.
        narrow = is_x86() and not has_vnni()
        name = "int8-narrow" if narrow else "int8"
        # Not of a file beside the checkpoint: nobody has compared that with the weights.
        return self._kept(name, lambda to: _quantise(self.exported(), to, reduce_range=narrow))

    def _find_on_hub(self, names: tuple[str, ...]) -> Path | None:
        config = self.network.config
        where: dict[str, Any] = {
            "repo_id": getattr(config, "_name_or_path", self.model),
            "revision": getattr(config, "_commit_hash", None) or self.checkpoint.revision,
            "cache_dir": self.checkpoint.cache_folder,
        }
        unknown = []
        for name in names:
            cached = huggingface_hub.try_to_load_from_cache(filename=name, **where)
            if isinstance(cached, str):
                return Path(cached)
            if cached is None:  # else it is known not to be there
                unknown.append(name)
        offline = self.checkpoint.local_files_only or hub_constants.HF_HUB_OFFLINE
        if offline or not unknown or hub_failure() is not None:
            return None
        fetch = partial(huggingface_hub.hf_hub_download, token=self.checkpoint.token, **where)
        try:
            for name in unknown:
                with suppress(EntryNotFoundError):
                    file = Path(fetch(filename=name))
                    for ending in _COMPANIONS[file.suffix]:
                        with suppress(EntryNotFoundError):
                            fetch(filename=str(PurePosixPath(name).with_suffix(ending)))
                    return file
        except (HfHubHTTPError, OSError) as error:
            raise ModelError(f"cannot get {name} of {self.model!r} from the hub: {error}") from error
        return None

    def _kept(self, name: str, make: Callable[[Path], None]) -> Path:
        config = sha256(self.network.config.to_json_string().encode()).hexdigest()[:8]
        kept = self.checkpoint.cache_folder or hub_constants.HF_HOME
        folder = Path(kept, "retrieve-rerank", f"{self.weights}-{config}-{self.output}-{name}-v{_FORMAT}")
        file = folder / "model.onnx"
        if file.is_file():
            return file
        require("onnx", extra="onnx")
        with _EXPORTING:
            if not file.is_file():
                self._keep(folder, make)
        return file

    def _keep(self, folder: Path, make: Callable[[Path], None]) -> None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-", ignore_cleanup_errors=True) as made:
                make(Path(made, "network", "model.onnx"))
                _publish(Path(made, "network"), folder)
        except OSError as error:
            raise ModelError(
                f"cannot keep an ONNX file of {self.model!r} in {folder.parent}: {error}. Give a cache_folder that "
                "can be written and has room, or a model with a file onnx/model.onnx"
            ) from error

    def _export(self, to: Path) -> None:
        to.parent.mkdir()
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
                    _Plain(self.network, tuple(self.features), self.output).eval(),
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
                f"{self.model!r} cannot be exported to ONNX: {error}. Use backend='torch', or a model that comes with "
                "a file onnx/model.onnx"
            ) from error


def parts(file: Path) -> list[Path]:
    """Return a network's file and the files that it keeps its weights in."""
    if file.suffix == ".xml":
        return [file, file.with_suffix(".bin")]
    others = [each for each in file.parent.rglob("*") if each.suffix != ".onnx" and each.is_file()]
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as network:
        # It names them, and each maker names them otherwise.
        named = [each for each in others if network.find(each.relative_to(file.parent).as_posix().encode()) >= 0]
    return [file, *(each for each in named if each.stat().st_size)]


class _Plain(torch.nn.Module):
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
    to.parent.mkdir()
    network = onnx.load(str(file))
    shapes = {weight.name: tuple(weight.dims) for weight in network.graph.initializer}
    # A layer that narrows takes in what comes out of the activation function, where a few large numbers would leave
    # too few of the 256 steps for all others. Kept in float32, it costs a third of the gain and halves the error.
    exact = [
        node.name
        for node in network.graph.node
        if node.op_type in ("MatMul", "Gemm") and _narrows(shapes.get(node.input[1]), node)
    ]
    with _quiet_root_logger():
        tools.quantize_dynamic(
            network,
            str(to),
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=tools.QuantType.QInt8,
            nodes_to_exclude=exact,
        )


def _narrows(shape: tuple[int, ...] | None, node: Any) -> bool:
    if shape is None or len(shape) != 2:
        return False
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    rows, columns = shape[::-1] if transposed else shape
    return rows > columns


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    # The tool logs advice to the root logger, which sets up logging for the whole process where nobody has.
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)
    root.addFilter(_not_advice)
    try:
        yield
    finally:
        root.removeFilter(_not_advice)
        root.removeHandler(silent)


def _not_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()


def _publish(made: Path, folder: Path) -> None:
    """Move a complete folder to its place at once; if another process was faster, its folder stays."""
    try:
        os.replace(made, folder)  # noqa: PTH105 - as one step
    except OSError:
        if not (folder / "model.onnx").is_file():
            raise
        shutil.rmtree(made)
