"""Other runtimes compute the network: results are torch's, and everything around the network is the same."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
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
)
from tests import tiny

onnx = pytest.importorskip("onnx")
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
BACKENDS = ("onnx", "openvino")


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that tests share, so that each network is exported once."""
    return tmp_path_factory.mktemp("cache")


def values(model: BiEncoder | CrossEncoder, texts: list[str] = SHORT) -> np.ndarray:
    if isinstance(model, CrossEncoder):
        return model.score(QUERY, texts)
    return np.concatenate([model.encode_queries(texts), model.encode_documents(texts)])


def both(kind: type, path: Path, cache: Path, backend: str, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """What torch and `backend` give for the same texts in float32."""
    with kind(path, precision="float32", **options) as model:
        expected = values(model)
    with kind(path, precision="float32", backend=backend, cache_folder=cache, **options) as model:
        return values(model), expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fixture", ["tiny_bi_encoder", "tiny_dot_bi_encoder", "tiny_cross_encoder", "tiny_roberta"])
def test_results_are_those_of_torch(request: pytest.FixtureRequest, kept: Path, backend: str, fixture: str) -> None:
    path = request.getfixturevalue(fixture)
    found, expected = both(BiEncoder if "bi" in fixture else CrossEncoder, path, kept, backend)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*texts are longer")
@pytest.mark.parametrize("backend", BACKENDS)
def test_settings_around_the_network_work_as_with_torch(tmp_path: Path, kept: Path, backend: str) -> None:
    path = tiny.save_bi_encoder(tmp_path, prompts={"query": "q: ", "document": "the bread: "}, include_prompt=False)
    found, expected = both(BiEncoder, path, kept, backend, truncate_dim=16, max_length=20, query_prompt="italy ")
    assert found.shape == (2 * len(SHORT), 16)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_kind_of_head_gives_the_logits_that_it_gives_with_torch(tmp_path: Path, backend: str) -> None:
    for name in ("two", "dense"):
        (tmp_path / name).mkdir()
    two = tiny.save_cross_encoder(tmp_path / "two", labels=2, names=("relevant", "not relevant"))
    dense = tiny.save_cross_encoder_with_dense_head(tmp_path / "dense", torch.nn.Sigmoid())
    for path in (two, dense):
        found, expected = both(CrossEncoder, path, tmp_path / "cache", backend)
        assert np.ptp(expected) > 1e-2
        np.testing.assert_allclose(found, expected, atol=1e-4)


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 32},
    "mpnet": {"pad_token_id": 0},
    "xlm-roberta": {"pad_token_id": 0, "max_position_embeddings": 80},
    "deberta-v2": {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2, "pad_token_id": 0},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_usual_architectures_are_exported(tmp_path: Path, architecture: str) -> None:
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
    found, expected = both(CrossEncoder, path, tmp_path / "cache", "onnx", max_length=48)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_score_does_not_depend_on_the_batch(tiny_cross_encoder: Path, kept: Path, backend: str) -> None:
    with CrossEncoder(tiny_cross_encoder, precision="float32", backend=backend, cache_folder=kept) as model:
        together = model.score(QUERY, SHORT)
        alone = [model.score(QUERY, [text])[0] for text in SHORT]
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_many_threads_and_tasks_share_one_model(tiny_cross_encoder: Path, kept: Path, backend: str) -> None:
    with CrossEncoder(tiny_cross_encoder, backend=backend, precision="float32", cache_folder=kept) as model:
        expected = model.score(QUERY, SHORT)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _: model.score(QUERY, SHORT), range(16)))
        results += await asyncio.gather(*(model.ascore(QUERY, SHORT) for _ in range(16)))
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_a_closed_and_a_pickled_model_come_back(tiny_cross_encoder: Path, kept: Path) -> None:
    model = CrossEncoder(tiny_cross_encoder, backend="onnx", cache_folder=kept)
    expected = model.score(QUERY, SHORT)
    model.close()
    other = pickle.loads(pickle.dumps(model))
    for again in (model, other):
        np.testing.assert_array_equal(again.score(QUERY, SHORT), expected)
        assert "ONNX Runtime" in repr(again)
        again.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_torchs_copy_of_the_network_is_freed(tiny_cross_encoder: Path, kept: Path, backend: str) -> None:
    with CrossEncoder(tiny_cross_encoder, backend=backend, cache_folder=kept) as model:
        model.score(QUERY, ["a"])
        assert model._engine is not None
        assert list(model._engine.model.parameters()) == []


# Which file


def test_what_was_chosen_and_why_can_be_read(tiny_bi_encoder: Path, kept: Path) -> None:
    with BiEncoder(tiny_bi_encoder, backend="onnx", cache_folder=kept) as model:
        assert "not loaded" in repr(model)
        assert (model.precision, model.device) == ("float32", "cpu")
        assert f"float32: by ONNX Runtime from {kept}" in repr(model)
    with BiEncoder(tiny_bi_encoder, backend="openvino", precision="bfloat16", cache_folder=kept) as model:
        # Where the processor has no bfloat16, OpenVINO computes in float32 whatever it is asked for.
        assert model.precision in ("bfloat16", "float32")
        assert f"{model.precision}: asked for; by OpenVINO from {kept}" in repr(model)


def kept_file(path: Path, cache: Path) -> Path:
    """Export a cross-encoder's network; return the file."""
    with CrossEncoder(path, backend="onnx", cache_folder=cache) as model:
        model.score(QUERY, SHORT)
    return next(cache.rglob("model.onnx"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_kept_file_that_is_broken_or_of_other_weights_is_refused(
    tiny_cross_encoder: Path, tmp_path: Path, backend: str
) -> None:
    file = kept_file(tiny_cross_encoder, tmp_path / "cache")
    (tmp_path / "other").mkdir()
    other = kept_file(tiny.save_cross_encoder(tmp_path / "other", seed=9), tmp_path / "other cache")
    shutil.copy(other, file)
    model = CrossEncoder(tiny_cross_encoder, backend=backend, cache_folder=tmp_path / "cache")
    with pytest.raises(ModelError, match=r"model\.onnx.* does not compute what the checkpoint does.*[Rr]emove it"):
        model.score(QUERY, SHORT)
    file.write_bytes(b"not a network in sight")
    with pytest.raises(ModelError, match=r"cannot load .*model\.onnx"):
        model.score(QUERY, SHORT)


def test_files_of_others_beside_the_checkpoint_are_left_alone(tiny_cross_encoder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_cross_encoder, tmp_path / "model"))
    (path / "onnx").mkdir()
    (path / "onnx/model.onnx").write_bytes(b"somebody else's")
    found, expected = both(CrossEncoder, path, tmp_path / "cache", "onnx")
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("change", ["all weights a little", "one row of the words", "the configuration alone"])
def test_what_was_changed_is_exported_again(tiny_cross_encoder: Path, tmp_path: Path, change: str) -> None:
    path = Path(shutil.copytree(tiny_cross_encoder, tmp_path / "model"))
    both(CrossEncoder, path, tmp_path / "cache", "onnx")
    weights = load_file(path / "model.safetensors")
    if change == "the configuration alone":
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        (path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}), encoding="utf-8")
    elif change == "one row of the words":
        weights["bert.embeddings.word_embeddings.weight"][7] += 0.5
    else:
        weights = {name: weight + 1e-4 * torch.randn(weight.shape) for name, weight in weights.items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    found, expected = both(CrossEncoder, path, tmp_path / "cache", "onnx")
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert len(list((tmp_path / "cache/retrieve-rerank").iterdir())) == 2


# What is exported is kept


def test_a_network_is_exported_once(tiny_cross_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    with CrossEncoder(tiny_cross_encoder, backend="onnx") as model:
        expected = model.score(QUERY, SHORT)
        assert str(tmp_path / "home/retrieve-rerank") in repr(model)
    monkeypatch.setattr(torch.onnx, "export", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    elsewhere = Path(shutil.copytree(tiny_cross_encoder, tmp_path / "elsewhere"))
    with CrossEncoder(elsewhere, backend="onnx") as model:
        np.testing.assert_array_equal(model.score(QUERY, SHORT), expected)
    assert len(list((tmp_path / "home/retrieve-rerank").iterdir())) == 1


def test_two_who_export_at_once_do_not_meet(tiny_cross_encoder: Path, tmp_path: Path) -> None:
    models = [
        CrossEncoder(tiny_cross_encoder, backend="onnx", precision="int8", cache_folder=tmp_path) for _ in range(4)
    ]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda model: model.score(QUERY, SHORT), models))
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    assert len(list((tmp_path / "retrieve-rerank").iterdir())) == 2  # float32 and int8, and nothing half made


def test_a_cache_that_cannot_be_written_is_named(tiny_cross_encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "retrieve-rerank").write_text("a file is in the way")
    with pytest.raises(ModelError, match=r"cannot keep an ONNX file .*retrieve-rerank.*Give a cache_folder"):
        CrossEncoder(tiny_cross_encoder, backend="onnx", cache_folder=tmp_path).score(QUERY, SHORT)


# int8


def test_int8_is_near_and_leaves_narrowing_layers_exact(tiny_bi_encoder: Path, kept: Path) -> None:
    with BiEncoder(tiny_bi_encoder, precision="float32") as model:
        expected = values(model)
    with BiEncoder(tiny_bi_encoder, backend="onnx", precision="int8", cache_folder=kept) as model:
        found = values(model)
        assert model.precision == "int8"
        file = Path(repr(model).split("from ")[1].split(", on cpu")[0])
    assert found.dtype == np.float32
    assert (found * expected).sum(axis=1).min() > 0.99
    assert np.abs(found - expected).max() > 1e-4
    network = onnx.load(file)
    exact = {weight.name for weight in network.graph.initializer if weight.data_type == onnx.TensorProto.FLOAT}
    kinds = [node.op_type for node in network.graph.node]
    assert kinds.count("MatMulInteger") == 2 * 5  # in each layer: query, key, value, attention's output, the wide one
    assert sum(node.op_type == "MatMul" and node.input[1] in exact for node in network.graph.node) == 2


@pytest.mark.slow
def test_int8_keeps_the_ranking_of_a_real_model_roughly(
    cross_encoder_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    query = "What is the capital of France?"
    texts = [
        *("Paris is the capital and largest city of France.", "The capital of Italy is Rome.", "France is in Europe."),
        *("Bread is baked from flour and water.", "The seat of the French government is in Paris.", "It rains."),
        *("Berlin has been the capital of Germany since 1990.", "Lyon is the third-largest city of France."),
        *("The Eiffel Tower stands in Paris.", "What is the capital of Spain? Madrid.", "Cats sleep a lot."),
        *("Marseille, a port, is the second city of France.", "Investors need capital.", "Capital letters are large."),
    ]
    with CrossEncoder(cross_encoder_path, precision="float32") as model:
        expected = model.score(query, texts)
    cache = tmp_path_factory.mktemp("demo")
    with CrossEncoder(cross_encoder_path, backend="onnx", precision="int8", cache_folder=cache) as model:
        found = model.score(query, texts)
    ranks = [np.argsort(np.argsort(-scores)) for scores in (found, expected)]
    assert np.corrcoef(*ranks)[0, 1] > 0.95
    assert len({*np.argsort(-found)[:5]} & {*np.argsort(-expected)[:5]}) >= 4
    with CrossEncoder(cross_encoder_path, backend="openvino", precision="bfloat16", cache_folder=cache) as model:
        assert len(set(model.score(query, texts).tolist())) == len(texts)  # no ties: the head is not rounded


def test_quantising_leaves_the_users_logging_alone(
    tiny_cross_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    with CrossEncoder(tiny_cross_encoder, backend="onnx", precision="int8", cache_folder=tmp_path) as model:
        model.score(QUERY, SHORT)
    assert (root.handlers, root.filters) == ([], [])
    assert "quantiz" not in "".join(capfd.readouterr())


def test_a_collection_opens_with_any_backend(tiny_bi_encoder: Path, tmp_path: Path, kept: Path) -> None:
    with BiEncoder(tiny_bi_encoder) as model, ChromaIndex(model, path=tmp_path) as index:
        index.add([Passage(str(number), text) for number, text in enumerate(SHORT)])
        fingerprint = model.fingerprint
    for backend, precision in (("onnx", "float32"), ("onnx", "int8"), ("openvino", "float32")):
        with BiEncoder(tiny_bi_encoder, backend=backend, precision=precision, cache_folder=kept) as model:
            assert model.fingerprint == fingerprint
            with ChromaIndex(model, path=tmp_path) as index:
                assert index.retrieve(SHORT[0], 1)[0].passage.text == SHORT[0]


# Errors


@pytest.mark.parametrize("kind", [BiEncoder, CrossEncoder])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt"}, "backend must be 'torch', 'onnx' or 'openvino'; got 'tensorrt'"),
        ({"precision": "int8"}, "precision='int8' needs backend='onnx'; backend='torch'"),
        ({"backend": "openvino", "precision": "int8"}, "precision='int8' needs backend='onnx'; backend='openvino'"),
        ({"backend": "onnx", "precision": "bfloat16"}, "precision='bfloat16' needs backend='torch' or .*'openvino'"),
        ({"backend": "openvino", "precision": "float16"}, "precision='float16' needs backend='torch'"),
        ({"backend": "onnx", "precision": "int4"}, "precision must be .*int8'; got 'int4'"),
        ({"backend": "onnx", "device": "cuda"}, "backend='onnx' runs on the processor here, got device='cuda'"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_loads(kind: type, options: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        kind("no-such-model", **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_without_an_encoder_says_so(
    tiny_static: Path, tiny_language_model: Path, tmp_path: Path, backend: str
) -> None:
    with pytest.raises(InvalidInputError, match=rf"backend='{backend}' computes encoders.*StaticEmbedding.*'torch'"):
        BiEncoder(tiny_static, backend=backend, cache_folder=tmp_path).encode_queries(["a"])
    with pytest.raises(InvalidInputError, match=rf"backend='{backend}' computes encoders.*text-generation.*'torch'"):
        CrossEncoder(tiny_language_model, backend=backend, cache_folder=tmp_path).score("a", ["b"])


@pytest.mark.parametrize(
    ("missing", "backend", "extra"),
    [
        ("onnx", "onnx", "onnx"),
        ("onnx", "openvino", "onnx"),
        ("onnxruntime", "onnx", "onnx"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_a_missing_package_names_its_extra(
    tiny_cross_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, backend: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingDependencyError, match=rf'pip install "retrieve-rerank\[{extra}\]"'):
        CrossEncoder(tiny_cross_encoder, backend=backend, cache_folder=tmp_path).score(QUERY, SHORT)


def test_a_random_head_is_refused_here_too(headless: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="newly initialised"):
        CrossEncoder(headless, backend="onnx", cache_folder=tmp_path).score("a", ["b"])


@pytest.mark.slow
def test_openvino_reports_nothing_to_anybody(tmp_path: Path) -> None:
    source = (
        "import sys\nfrom retrieve_rerank.models.runtimes import _openvino\nfrom pathlib import Path\n"
        "try:\n    _openvino(Path('no-such-file.xml'), 'float32', 'logits')\n"
        "except Exception as error:\n    print(error)\n"
        "print('openvino' in sys.modules, 'openvino_telemetry' in sys.modules)\n"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, env=environment, check=True)
    assert "OpenVINO cannot load no-such-file.xml" in done.stdout
    assert done.stdout.endswith("True False\n")
    assert list(tmp_path.iterdir()) == []
