"""The settings of the models: said once, and the same for type checkers, editors, `help` and checks."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieve_rerank import BiEncoder, CrossEncoder, InvalidInputError
from retrieve_rerank.models.settings import (
    BiEncoderOptions,
    BiEncoderSettings,
    CrossEncoderOptions,
    CrossEncoderSettings,
    ModelSettings,
)
from tests.odd_values import Unshown

KINDS = [(BiEncoder, BiEncoderSettings, BiEncoderOptions), (CrossEncoder, CrossEncoderSettings, CrossEncoderOptions)]


@pytest.mark.parametrize(("kind", "settings", "options"), KINDS)
def test_every_setting_is_typed_shown_and_explained(kind: type, settings: type[ModelSettings], options: type) -> None:
    parameters = inspect.signature(kind).parameters
    assert list(parameters) == ["model", *settings.model_fields]
    assert set(settings.model_fields) == set(options.__annotations__)
    for name, field in settings.model_fields.items():
        assert parameters[name].default == field.default
        assert f"    {name}: {(field.description or '?')[:20]}" in (kind.__doc__ or "")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_length": 0}, "max_length must be >= 1, got 0"),
        ({"batch_tokens": "5"}, "batch_tokens must be a whole number >= 1, got '5'"),
        ({"max_length": True}, "max_length must be a whole number"),
        ({"precision": "int3"}, "precision must be 'auto', .* got 'int3'"),
        ({"backend": "openvino", "device": "cuda"}, "runs on the processor here, got device='cuda'"),
        ({"device": 3}, "device: .* got int"),
        ({"timeout": 3}, "timeout can be given for a server only"),
        ({"endpoint": "http://localhost", "timeout": None}, "timeout: .* got NoneType"),
        ({"endpoint": "http://localhost", "device": "cpu"}, "device cannot be given together with endpoint"),
    ],
)
def test_what_is_wrong_is_said(wrong: dict[str, Any], says: str) -> None:
    for kind in (BiEncoder, CrossEncoder):
        with pytest.raises(InvalidInputError, match=says):
            kind("some/model", **wrong)


@pytest.mark.parametrize("value", [0, -1, True, 1.5])
@pytest.mark.parametrize(("kind", "name"), [(BiEncoder, "truncate_dim"), (CrossEncoder, "max_windows")])
def test_counts_below_one_are_refused_before_anything_loads(kind: type, name: str, value: Any) -> None:
    for argument in ("max_length", name):
        with pytest.raises(InvalidInputError, match=argument):
            kind("no-such-model", **{argument: value})


@pytest.mark.parametrize("model", ["", "  ", None, 5, b"bytes"])
def test_a_model_is_a_name_or_a_folder(model: Any) -> None:
    for kind in (BiEncoder, CrossEncoder):
        with pytest.raises(InvalidInputError, match="model must be a hub name or a folder"):
            kind(model)


def test_the_default_models_are_the_documented_ones() -> None:
    assert BiEncoder().model == "sentence-transformers/multi-qa-mpnet-base-dot-v1"
    assert CrossEncoder().model == "cross-encoder/ms-marco-MiniLM-L6-v2"


ODD = [10**5000, -(10**5000), int, np.array([1, 2]), Unshown(), b"x", {}]


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", ["max_length", "precision", "protocol", "timeout", "device", "model"])
def test_odd_values_are_refused_in_our_words(name: str, value: Any) -> None:
    server = {"endpoint": "http://localhost"} if name in ("protocol", "timeout") else {}
    if (name == "max_length" and value is ODD[0]) or (name == "device" and isinstance(value, bytes)):
        return  # what the model has room for is known when it is loaded; bytes are read as text
    for kind in (BiEncoder, CrossEncoder):
        with pytest.raises(InvalidInputError) as caught:
            kind(**{"model": "some/model", name: value, **server})
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("kind", "fixture"),
    [(BiEncoder, "tiny_bi_encoder"), (CrossEncoder, "tiny_cross_encoder"), (CrossEncoder, "tiny_roberta")],
)
def test_max_length_beyond_the_positions_is_refused(request: pytest.FixtureRequest, kind: Any, fixture: str) -> None:
    path = request.getfixturevalue(fixture)
    assert kind(path).max_length == kind(path, max_length=64).max_length == 64
    model = kind(path, max_length=65)
    with pytest.raises(InvalidInputError, match="max_length is 65, but this model has positions for 64"):
        model.score("a", ["b"]) if kind is CrossEncoder else model.encode_queries(["a"])


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_lenght'"):
        BiEncoder("some/model", max_lenght=3)  # type: ignore[call-arg]


def test_paths_and_torchs_devices_are_taken_by_their_names(tmp_path: Path) -> None:
    import torch

    told = CrossEncoder(tmp_path, cache_folder=tmp_path, device=torch.device("cpu")).settings  # type: ignore[arg-type]
    assert (told["model"], told["cache_folder"], told["device"]) == (str(tmp_path), str(tmp_path), "cpu")
