"""A network file of the model that these weights were trained from is refused, however near it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from retrieve_rerank import CrossEncoder, ModelError
from tests import tiny

pytest.importorskip("onnx")
openvino = pytest.importorskip("openvino")
quantization = pytest.importorskip("onnxruntime.quantization")

QUERY, TEXTS = "what is the capital of france", ["paris", "rome is in italy", "bread"]
KINDS: dict[str, dict[str, Any]] = {
    "int8": {"per_channel": False, "weight_type": quantization.QuantType.QInt8},
    "uint8": {"per_channel": False, "weight_type": quantization.QuantType.QUInt8},
    "int8 by channel": {"per_channel": True, "weight_type": quantization.QuantType.QInt8},
    "7 bits": {"per_channel": True, "reduce_range": True, "weight_type": quantization.QuantType.QUInt8},
}


def change(path: Path, by: float, dtype: torch.dtype = torch.float32) -> None:
    """Change all that training changes, by so much of its size."""
    weights = load_file(path / "model.safetensors")
    torch.manual_seed(0)
    for name, weight in weights.items():
        moved = weight.float() + by * (weight.float().abs().mean() + 0.01) * torch.randn(weight.shape)
        weights[name] = moved.to(dtype)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder whose normalising layers are no longer as they were made."""
    path = tiny.save_cross_encoder(tmp_path_factory.mktemp("trained"))
    change(path, 0.05)
    return path


@pytest.fixture(scope="module")
def network(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its network in float32."""
    cache = tmp_path_factory.mktemp("cache")
    with CrossEncoder(trained, backend="onnx", cache_folder=cache) as model:
        model.score(QUERY, TEXTS)
    return next(cache.rglob("model.onnx"))


def beside(checkpoint: Path, to: Path, network: Path, kind: str) -> dict[str, Any]:
    """Copy a checkpoint with a network in a form beside it; return the arguments that take the form."""
    shutil.copytree(checkpoint, to)
    if kind.startswith("openvino"):
        file = to / "openvino/openvino_model.xml"
        openvino.save_model(openvino.Core().read_model(network), file, compress_to_fp16=kind.endswith("half"))
        return {"backend": "openvino", "precision": "float32"}
    (to / "onnx").mkdir()
    if kind == "float32":
        shutil.copy(network, to / "onnx/model.onnx")
        return {"backend": "onnx", "precision": "float32"}
    quantization.quantize_dynamic(network, to / "onnx/model_quantized.onnx", **KINDS[kind])
    return {"backend": "onnx", "precision": "int8"}


@pytest.mark.parametrize("kind", [*KINDS, "float32", "openvino", "openvino half"])
def test_a_file_of_the_weights_before_a_little_training_is_refused(
    trained: Path, network: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "model"
    options = beside(trained, path, network, kind)
    with CrossEncoder(path, cache_folder=tmp_path / "cache", **options) as model:
        model.score(QUERY, TEXTS)
        assert f"from {path}" in repr(model)
    change(path, 1e-4)  # so little that the results alone do not tell
    with pytest.raises(ModelError, match=r"does not hold the checkpoint's weights: the numbers .* remove it"):
        CrossEncoder(path, cache_folder=tmp_path / "cache", **options).score(QUERY, TEXTS)


def test_of_a_checkpoint_in_half_precision_it_is_said_only(trained: Path, network: Path, tmp_path: Path) -> None:
    """Its file may have been made before the weights were rounded."""
    path = tmp_path / "model"
    options = beside(trained, path, network, "int8")
    change(path, 0.0, torch.float16)
    tiny.configure(path, {"dtype": "float16"})
    with (
        CrossEncoder(path, cache_folder=tmp_path / "cache", **options) as model,
        pytest.warns(UserWarning, match=r"model_quantized\.onnx may not hold the checkpoint's weights") as caught,
    ):
        model.score(QUERY, TEXTS)
    assert len(caught) == 1


def test_of_an_int8_file_for_openvino_it_is_said_only(trained: Path, network: Path, tmp_path: Path) -> None:
    """Those who make them may shift the numbers of the layers before."""
    path = tmp_path / "model"
    beside(trained, path, network, "openvino")
    (path / "openvino/openvino_model.xml").rename(path / "openvino/openvino_model_qint8_quantized.xml")
    (path / "openvino/openvino_model.bin").rename(path / "openvino/openvino_model_qint8_quantized.bin")
    options: dict[str, Any] = {"backend": "openvino", "precision": "int8"}
    with CrossEncoder(path, **options) as model:
        model.score(QUERY, TEXTS)
    change(path, 1e-4)
    with (
        CrossEncoder(path, **options) as model,
        pytest.warns(UserWarning, match=r"qint8_quantized\.xml may not hold the checkpoint's weights"),
    ):
        model.score(QUERY, TEXTS)


def test_weights_kept_beside_the_network_are_looked_through(trained: Path, network: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "model"
    options = beside(trained, path, network, "float32")
    file = path / "onnx/model.onnx"
    onnx.save_model(onnx.load(file), file, save_as_external_data=True, location="its weights", size_threshold=0)
    with CrossEncoder(path, **options) as model:
        model.score(QUERY, TEXTS)
    change(path, 1e-4)
    with pytest.raises(ModelError, match="does not hold the checkpoint's weights: the numbers"):
        CrossEncoder(path, **options).score(QUERY, TEXTS)
