"""OpenVINO computes the network: results are torch's, and everything around the network is the same."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from retrieve_rerank import (
    BiEncoder,
    ChromaIndex,
    CrossEncoder,
    InvalidInputError,
    MissingDependencyError,
    ModelError,
    Passage,
    TruncationWarning,
)
from retrieve_rerank.models import engine, openvino
from tests import tiny

pytest.importorskip("openvino")

QUERY = "what is the capital of france"
TEXTS = [
    "paris is the capital of france",
    "",
    "bread " * 200,  # longer than the models read
    "rome",
    "what is the word in italy: bread, or the bread of paris?",
    *(f"word {number} of {number * 7919}" for number in range(30)),
]
SHORT = [text for text in TEXTS if len(text) < 200]


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that tests share, so that each network is converted once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let "auto" take OpenVINO for tiny networks too, on every processor."""
    monkeypatch.setattr(openvino, "_WORTHWHILE", 0)
    monkeypatch.setattr(openvino, "is_x86", lambda: True)


@pytest.fixture
def two_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute as on two cores."""
    monkeypatch.setattr(engine, "cores", lambda: 2)


def values(model: BiEncoder | CrossEncoder, texts: list[str] = SHORT) -> np.ndarray:
    if isinstance(model, CrossEncoder):
        return model.score(QUERY, texts)
    return np.concatenate([model.encode_queries(texts), model.encode_documents(texts)])


def both(kind: type, path: Path, cache: Path, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """What OpenVINO and torch give for the same texts in float32."""
    with kind(path, precision="float32", backend="torch", **options) as model:
        expected = values(model)
    with kind(path, precision="float32", backend="openvino", cache_folder=cache, **options) as model:
        return values(model), expected


@pytest.mark.parametrize("fixture", ["tiny_bi_encoder", "tiny_dot_bi_encoder", "tiny_cross_encoder", "tiny_roberta"])
def test_results_are_those_of_torch(request: pytest.FixtureRequest, kept: Path, fixture: str) -> None:
    path = request.getfixturevalue(fixture)
    found, expected = both(BiEncoder if "bi" in fixture else CrossEncoder, path, kept)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*texts are longer")
def test_settings_around_the_network_work_as_with_torch(tmp_path: Path, kept: Path) -> None:
    path = tiny.save_bi_encoder(tmp_path, prompts={"query": "q: ", "document": "the bread: "}, include_prompt=False)
    found, expected = both(BiEncoder, path, kept, truncate_dim=16, max_length=20, query_prompt="italy ")
    assert found.shape == (2 * len(SHORT), 16)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_long_texts_are_cut_and_told_of(tiny_cross_encoder: Path, kept: Path) -> None:
    with (
        CrossEncoder(tiny_cross_encoder, precision="float32", backend="openvino", cache_folder=kept) as model,
        CrossEncoder(tiny_cross_encoder, precision="float32") as other,
    ):
        with pytest.warns(TruncationWarning, match="1 of 35"):
            found = values(model, TEXTS)
        with pytest.warns(TruncationWarning):
            np.testing.assert_allclose(found, values(other, TEXTS), atol=1e-4)


def test_every_kind_of_head_gives_the_logits_that_it_gives_with_torch(tmp_path: Path) -> None:
    for name in ("two", "dense"):
        (tmp_path / name).mkdir()
    two = tiny.save_cross_encoder(tmp_path / "two", labels=2, names=("relevant", "not relevant"))
    dense = tiny.save_cross_encoder_with_dense_head(tmp_path / "dense", torch.nn.Sigmoid())
    for path in (two, dense):
        found, expected = both(CrossEncoder, path, tmp_path / "cache")
        assert np.ptp(expected) > 1e-2
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_windows_are_those_of_torch(tiny_cross_encoder: Path, kept: Path) -> None:
    hits = []
    for options in ({}, {"backend": "openvino", "cache_folder": kept}):
        with CrossEncoder(tiny_cross_encoder, precision="float32", long_passages="windows", **options) as model:
            hits.append(model.rank(QUERY, ["rome is of the bread. what is the word. paris is in italy. " * 6]))
    (expected,), (found,) = hits
    assert found.window == expected.window != (0, len(expected.passage.text))
    assert found.logit == pytest.approx(expected.logit, abs=1e-4)


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 32},
    "mpnet": {"pad_token_id": 0},
    "xlm-roberta": {"pad_token_id": 0, "max_position_embeddings": 80},
    "deberta-v2": {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2, "pad_token_id": 0},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_usual_architectures_are_converted(tmp_path: Path, architecture: str) -> None:
    import transformers

    torch.manual_seed(8)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    common = {"vocab_size": 300, "max_position_embeddings": tiny.POSITIONS, "num_labels": 1, "initializer_range": 0.3}
    special = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    own = ARCHITECTURES[architecture] if architecture == "distilbert" else small | ARCHITECTURES[architecture]
    settings = transformers.AutoConfig.for_model(
        architecture, **common | own | (special if architecture == "modernbert" else {})
    )
    path = tmp_path / "model"
    transformers.AutoModelForSequenceClassification.from_config(settings).save_pretrained(path)
    tiny.save_tokenizer(path)
    found, expected = both(CrossEncoder, path, tmp_path / "cache", max_length=48)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.usefixtures("two_streams")
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_a_result_does_not_depend_on_the_batch_or_the_streams(
    tiny_cross_encoder: Path, tiny_bi_encoder: Path, kept: Path, backend: str
) -> None:
    options: dict[str, Any] = {"precision": "float32", "backend": backend, "cache_folder": kept}
    most = 1e-5 if backend == "torch" else 0  # one width, one kernel, whatever else is in the batch
    with CrossEncoder(tiny_cross_encoder, **options) as model:
        together = model.score(QUERY, SHORT)
        assert model._engine is not None
        assert model._engine.streams == 2
        alone = [model.score(QUERY, [text])[0] for text in SHORT]
    with CrossEncoder(tiny_cross_encoder, batch_tokens=40, **options) as model:
        few = model.score(QUERY, SHORT)
    np.testing.assert_allclose(together, alone, rtol=0, atol=most)
    np.testing.assert_allclose(together, few, rtol=0, atol=most)
    with BiEncoder(tiny_bi_encoder, **options) as encoder:
        vectors = encoder.encode_documents(SHORT)
        singly = np.concatenate([encoder.encode_documents([text]) for text in SHORT])
    np.testing.assert_allclose(vectors, singly, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("two_streams")
async def test_many_threads_and_tasks_share_one_model(tiny_cross_encoder: Path, kept: Path) -> None:
    with CrossEncoder(tiny_cross_encoder, backend="openvino", precision="float32", cache_folder=kept) as model:
        expected = model.score(QUERY, SHORT)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _: model.score(QUERY, SHORT), range(16)))
        results += await asyncio.gather(*(model.ascore(QUERY, SHORT) for _ in range(16)))
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_a_closed_and_a_pickled_model_come_back(tiny_cross_encoder: Path, kept: Path) -> None:
    model = CrossEncoder(tiny_cross_encoder, backend="openvino", cache_folder=kept)
    expected = model.score(QUERY, SHORT)
    model.close()
    other = pickle.loads(pickle.dumps(model))
    for again in (model, other):
        np.testing.assert_array_equal(again.score(QUERY, SHORT), expected)
        assert "by openvino" in repr(again)
        again.close()


def test_torchs_copy_of_the_network_is_freed(tiny_cross_encoder: Path, kept: Path) -> None:
    with CrossEncoder(tiny_cross_encoder, backend="openvino", cache_folder=kept) as model:
        model.score(QUERY, ["a"])
        assert model._engine is not None
        assert list(model._engine.model.parameters()) == []


def test_a_collection_opens_with_any_backend(tiny_bi_encoder: Path, tmp_path: Path, kept: Path) -> None:
    with BiEncoder(tiny_bi_encoder) as model, ChromaIndex(model, path=tmp_path) as index:
        index.add([Passage(str(number), text) for number, text in enumerate(SHORT)])
        fingerprint = model.fingerprint
    with BiEncoder(tiny_bi_encoder, backend="openvino", precision="float32", cache_folder=kept) as model:
        assert model.fingerprint == fingerprint
        with ChromaIndex(model, path=tmp_path) as index:
            assert index.retrieve(SHORT[0], 1)[0].passage.text == SHORT[0]


# What "auto" takes


@pytest.mark.usefixtures("worthwhile")
def test_auto_takes_openvino_and_says_so(tiny_cross_encoder: Path, kept: Path) -> None:
    with CrossEncoder(tiny_cross_encoder, precision="float32", cache_folder=kept) as model:
        assert "not loaded" in repr(model)
        assert model.fingerprint["backend"] == "openvino"
        assert f"float32: asked for; from {kept}" in repr(model)
        assert "by openvino: it is the faster one" in repr(model)


@pytest.mark.usefixtures("worthwhile")
def test_auto_leaves_to_torch_what_openvino_does_not_compute(
    tiny_static: Path, tiny_language_model: Path, tiny_bi_encoder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BiEncoder(tiny_static, cache_folder=kept) as static:
        static.encode_queries(["a"])
        assert "by torch: OpenVINO computes encoders here, and this is none (StaticEmbedding)" in repr(static)
    with CrossEncoder(tiny_language_model, cache_folder=kept) as language_model:
        language_model.score("a", ["b"])
        assert "by torch: OpenVINO computes encoders here, and this is none (text-generation)" in repr(language_model)
    for options, change, reason in (
        ({"precision": "float16"}, {}, "OpenVINO does not compute in float16"),
        ({}, {"is_x86": lambda: False}, "OpenVINO was not measured on such processors"),
        ({}, {"_WORTHWHILE": 10**9}, "the network is too small to convert"),
    ):
        with monkeypatch.context() as changed, BiEncoder(tiny_bi_encoder, cache_folder=kept, **options) as model:
            for name, value in change.items():
                changed.setattr(openvino, name, value)
            model.encode_queries(["a"])
            assert f"by torch: {reason}" in repr(model)


@pytest.mark.usefixtures("worthwhile")
@pytest.mark.parametrize("fault", ["conversion fails", "something else is computed"])
def test_where_openvino_fails_torch_computes_and_a_warning_says_why(
    tiny_cross_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "conversion fails":
        monkeypatch.setattr(openvino._Positional, "forward", None)
    else:
        monkeypatch.setattr(openvino, "_off", lambda *_: 0.5)
    with CrossEncoder(tiny_cross_encoder, backend="torch") as model:
        expected = model.score(QUERY, SHORT)
    with CrossEncoder(tiny_cross_encoder, cache_folder=tmp_path) as model:
        with pytest.warns(UserWarning, match="torch computes .* because: .*(cannot be converted|off by 0.5)"):
            found = model.score(QUERY, SHORT)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(model.score(QUERY, SHORT), found)  # said once
        assert "by torch: OpenVINO failed" in repr(model)
    np.testing.assert_allclose(found, expected, atol=1e-5)


# Which file


@pytest.fixture
def file(tiny_cross_encoder: Path, tmp_path: Path) -> Path:
    """A converted network in a cache of its own."""
    with CrossEncoder(tiny_cross_encoder, backend="openvino", cache_folder=tmp_path / "cache") as model:
        model.score(QUERY, SHORT)
    return next((tmp_path / "cache").rglob("model.xml"))


@pytest.mark.parametrize("broken", ["model.xml", "expected.npz"])
def test_a_kept_file_that_is_broken_or_of_other_weights_is_refused(
    tiny_cross_encoder: Path, tmp_path: Path, file: Path, broken: str
) -> None:
    (tmp_path / "other").mkdir()
    other = tiny.save_cross_encoder(tmp_path / "other", seed=9)
    with CrossEncoder(other, backend="openvino", cache_folder=tmp_path / "other cache") as model:
        model.score(QUERY, SHORT)
    made = next((tmp_path / "other cache").rglob("model.xml"))
    for name in ("model.xml", "model.bin"):
        shutil.copy(made.with_name(name), file.with_name(name))
    model = CrossEncoder(tiny_cross_encoder, backend="openvino", cache_folder=tmp_path / "cache")
    with pytest.raises(ModelError, match=r"model\.xml does not compute what the checkpoint does.*[Rr]emove it"):
        model.score(QUERY, SHORT)
    file.with_name(broken).write_bytes(b"not a network in sight")
    with pytest.raises(ModelError, match=rf"cannot (load|read) .*{broken}.* Remove"):
        model.score(QUERY, SHORT)


@pytest.mark.parametrize("change", ["all weights a little", "one row of the words", "the configuration alone"])
def test_what_was_changed_is_converted_again(tiny_cross_encoder: Path, tmp_path: Path, change: str) -> None:
    path = Path(shutil.copytree(tiny_cross_encoder, tmp_path / "model"))
    both(CrossEncoder, path, tmp_path / "cache")
    weights = load_file(path / "model.safetensors")
    if change == "the configuration alone":
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        (path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}), encoding="utf-8")
    elif change == "one row of the words":
        weights["bert.embeddings.word_embeddings.weight"][7] += 0.5
    else:
        weights = {name: weight + 1e-4 * torch.randn(weight.shape) for name, weight in weights.items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    found, expected = both(CrossEncoder, path, tmp_path / "cache")
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert len(list((tmp_path / "cache/retrieve-rerank").iterdir())) == 2


def test_a_network_is_converted_once(tiny_cross_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    with CrossEncoder(tiny_cross_encoder, backend="openvino") as model:
        expected = model.score(QUERY, SHORT)
        assert str(tmp_path / "home/retrieve-rerank") in repr(model)
    monkeypatch.setattr(openvino, "_convert", None)
    elsewhere = Path(shutil.copytree(tiny_cross_encoder, tmp_path / "elsewhere"))
    with CrossEncoder(elsewhere, backend="openvino") as model:
        np.testing.assert_array_equal(model.score(QUERY, SHORT), expected)
    assert len(list((tmp_path / "home/retrieve-rerank").iterdir())) == 1


def test_two_who_convert_at_once_do_not_meet(tiny_cross_encoder: Path, tmp_path: Path) -> None:
    source = (
        "import sys\nfrom retrieve_rerank import CrossEncoder\n"
        f"model = CrossEncoder({str(tiny_cross_encoder)!r}, backend='openvino', cache_folder={str(tmp_path)!r})\n"
        "print(model.score('a', ['b', 'c']).tolist())\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", source]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "env": environment, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    answers = [process.communicate()[0].splitlines()[-1] for process in processes]
    assert answers[0] == answers[1]
    (folder,) = (tmp_path / "retrieve-rerank").iterdir()  # and nothing half made
    assert sorted(path.name for path in folder.iterdir()) == ["expected.npz", "model.bin", "model.xml"]


def test_a_cache_that_cannot_be_written_is_named(tiny_cross_encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "retrieve-rerank").write_text("a file is in the way")
    with pytest.raises(ModelError, match=r"cannot keep the network .*retrieve-rerank.*Give a cache_folder"):
        CrossEncoder(tiny_cross_encoder, backend="openvino", cache_folder=tmp_path).score(QUERY, SHORT)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="folders have no such rights here")
def test_nothing_is_read_from_where_others_can_write(tiny_cross_encoder: Path, tmp_path: Path, file: Path) -> None:
    folder = file.parent.parent
    assert folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o777)
    with pytest.raises(ModelError, match="others can write in"):
        CrossEncoder(tiny_cross_encoder, backend="openvino", cache_folder=tmp_path / "cache").score(QUERY, SHORT)


# Errors


@pytest.mark.parametrize("kind", [BiEncoder, CrossEncoder])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "onnx"}, "backend must be 'auto', 'torch' or 'openvino'; got 'onnx'"),
        ({"backend": "openvino", "precision": "float16"}, "precision='float16' needs backend='auto' or .*'torch'"),
        ({"precision": "int8"}, "precision must be .*'float16'; got 'int8'"),
        ({"backend": "openvino", "device": "cuda"}, "backend='openvino' runs on the processor here, got device='cuda'"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_loads(kind: type, options: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        kind("no-such-model", **options)


def test_a_model_without_an_encoder_says_so(tiny_static: Path, tiny_language_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"backend='openvino' computes encoders.*StaticEmbedding.*'torch'"):
        BiEncoder(tiny_static, backend="openvino", cache_folder=tmp_path).encode_queries(["a"])
    with pytest.raises(InvalidInputError, match=r"backend='openvino' computes encoders.*text-generation.*'torch'"):
        CrossEncoder(tiny_language_model, backend="openvino", cache_folder=tmp_path).score("a", ["b"])


@pytest.mark.usefixtures("worthwhile")
def test_without_openvino_auto_takes_torch_and_asked_for_it_names_its_extra(
    tiny_cross_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "retrieve-rerank\[openvino\]"'):
        CrossEncoder(tiny_cross_encoder, backend="openvino", cache_folder=tmp_path).score(QUERY, SHORT)
    with CrossEncoder(tiny_cross_encoder, cache_folder=tmp_path) as model:
        model.score(QUERY, SHORT)
        assert "by torch: OpenVINO is not installed" in repr(model)


def test_openvino_reports_nothing_to_anybody(tiny_cross_encoder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    source = (
        "import sys\nfrom retrieve_rerank import CrossEncoder\n"
        f"model = CrossEncoder({str(tiny_cross_encoder)!r}, backend='openvino', cache_folder={str(tmp_path)!r})\n"
        "model.score('a', ['b'])\n"
        "print('openvino' in sys.modules, 'openvino_telemetry' in sys.modules)\n"
    )
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.endswith("True False\n")
    assert list(home.iterdir()) == []
