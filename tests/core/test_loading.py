"""Checkpoints are loaded safely, and the wrong kind is refused with a message that helps."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import sentence_transformers
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from retrieve_rerank import BiEncoder, CrossEncoder, InvalidInputError, ModelError, TruncationWarning
from retrieve_rerank.models import loading
from retrieve_rerank.models.loading import Checkpoint, load_bi_encoder, load_cross_encoder, weights_digest
from retrieve_rerank.models.reading import longest_input
from tests import tiny

LOADERS = {"bi-encoder": load_bi_encoder, "cross-encoder": load_cross_encoder}


def copy(path: Path, to: Path) -> Path:
    return Path(shutil.copytree(path, to))


def without_weights(path: Path, names: tuple[str, ...]) -> Path:
    """Take the named tensors out of a checkpoint."""
    file = path / "model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if not any(part in name for part in names)}
    save_file(weights, file, metadata={"format": "pt"})
    return path


def test_a_cross_encoder_is_no_bi_encoder(tiny_cross_encoder: Path) -> None:
    with pytest.raises(ModelError, match=r"is a cross-encoder.*Use CrossEncoder"):
        BiEncoder(tiny_cross_encoder).encode_queries(["a"])


def test_a_bi_encoder_is_no_cross_encoder(tiny_bi_encoder: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a cross-encoder: it was saved as BertModel.*random"):
        CrossEncoder(tiny_bi_encoder).score("a", ["b"])


def test_a_plain_network_is_no_cross_encoder(tiny_bi_encoder: Path) -> None:
    with pytest.raises(ModelError, match="not a cross-encoder"):
        load_cross_encoder(Checkpoint(str(tiny_bi_encoder.parent / "network")))


def test_a_head_that_only_the_configuration_claims_is_refused(headless: Path) -> None:
    with pytest.raises(ModelError, match=r"scoring head.*classifier\.weight.*newly initialised"):
        CrossEncoder(headless).score("a", ["b"])


@pytest.mark.parametrize(
    "missing",
    [
        ("classifier.",),
        ("classifier.weight",),
        ("layer.1.",),
    ],
)
def test_a_cross_encoder_with_missing_weights_is_refused(
    tiny_cross_encoder: Path, tmp_path: Path, missing: tuple[str, ...]
) -> None:
    path = without_weights(copy(tiny_cross_encoder, tmp_path / "model"), missing)
    with pytest.raises(ModelError, match=r"newly initialised"):
        load_cross_encoder(Checkpoint(str(path)))


def test_a_bi_encoder_with_missing_layers_is_refused(tiny_bi_encoder: Path, tmp_path: Path) -> None:
    path = without_weights(copy(tiny_bi_encoder, tmp_path / "model"), ("layer.1.",))
    with pytest.raises(ModelError, match=r"newly initialised"):
        load_bi_encoder(Checkpoint(str(path)))


def test_a_cross_encoder_in_several_files_is_checked_and_loads(tiny_cross_encoder: Path, tmp_path: Path) -> None:
    import transformers

    path = copy(tiny_cross_encoder, tmp_path / "model")
    network = transformers.AutoModelForSequenceClassification.from_pretrained(path)
    (path / "model.safetensors").unlink()
    network.save_pretrained(path, max_shard_size="20KB")
    assert (path / "model.safetensors.index.json").is_file()
    assert load_cross_encoder(Checkpoint(str(path))).num_labels == 1
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    for name in [name for name in content["weight_map"] if "classifier" in name]:
        del content["weight_map"][name]
    index.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError, match="newly initialised"):
        load_cross_encoder(Checkpoint(str(path)))


@pytest.mark.parametrize("labels", [3, 5])
def test_a_classifier_with_several_labels_is_refused(tmp_path: Path, labels: int) -> None:
    with pytest.raises(ModelError, match=f"has {labels} labels; re-ranking needs a cross-encoder with one"):
        CrossEncoder(tiny.save_cross_encoder(tmp_path, labels=labels)).score("a", ["b"])


@pytest.mark.parametrize("what", LOADERS)
@pytest.mark.parametrize("name", ["./no-folder", "/no/such/folder", "~/no-such-folder", "a/b/c"])
def test_a_missing_folder_is_said_to_be_missing(what: str, name: str) -> None:
    with pytest.raises(ModelError, match=f"there is no folder .* to load a {what} from; check the path"):
        LOADERS[what](Checkpoint(name))


@pytest.mark.parametrize("what", LOADERS)
def test_a_folder_without_a_checkpoint_says_what_belongs_there(what: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot load the .*config\.json, a tokenizer and safetensors weights"):
        LOADERS[what](Checkpoint(str(tmp_path)))


@pytest.mark.parametrize("what", LOADERS)
@pytest.mark.parametrize("pickled", [False, True])
def test_weights_load_from_safetensors_only(
    what: str, pickled: bool, tmp_path: Path, tiny_bi_encoder: Path, tiny_cross_encoder: Path
) -> None:
    path = copy(tiny_bi_encoder if what == "bi-encoder" else tiny_cross_encoder, tmp_path / "model")
    file = path / "model.safetensors"
    if pickled:
        torch.save(load_file(file), path / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(ModelError, match=f"cannot load the {what}.*safetensors"):
        LOADERS[what](Checkpoint(str(path)))


def test_a_broken_weights_file_is_a_model_error(tiny_cross_encoder: Path, tmp_path: Path) -> None:
    path = copy(tiny_cross_encoder, tmp_path / "model")
    (path / "model.safetensors").write_bytes(b"not a tensor in sight")
    with pytest.raises(ModelError, match="cannot load"):
        CrossEncoder(path).score("a", ["b"])


@pytest.mark.parametrize("what", LOADERS)
@pytest.mark.parametrize(
    ("offline", "options", "advice"),
    [
        (False, {}, "cannot be reached and the model is not in the local cache. Check the network, or give a folder"),
        (False, {"local_files_only": True}, "fetch it once while online, or give a folder"),
        (True, {}, "fetch it once while online, or give a folder"),
    ],
)
def test_a_hub_name_without_network_fails_fast_and_says_what_to_do(
    what: str, offline: bool, options: dict[str, bool], advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    start = time.perf_counter()
    with pytest.raises(ModelError, match=f"'no-such-owner/no-such-model'.*{advice}"):
        LOADERS[what](Checkpoint("no-such-owner/no-such-model", cache_folder=str(tmp_path), **options))
    assert time.perf_counter() - start < 10


def test_a_failed_load_is_tried_again(tiny_cross_encoder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    model = CrossEncoder(path)
    with pytest.raises(ModelError):
        model.score("a", ["b"])
    copy(tiny_cross_encoder, path)
    assert model.score("a", ["b"]).shape == (1,)


def test_code_that_comes_with_a_checkpoint_does_not_run(tiny_cross_encoder: Path, tmp_path: Path) -> None:
    path = copy(tiny_cross_encoder, tmp_path / "model")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(ModelError):
        CrossEncoder(path).score("a", ["b"])
    assert not (tmp_path / "ran").exists()


def test_loading_shows_no_bar_and_leaves_the_users_settings(
    tiny_cross_encoder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_cross_encoder(Checkpoint(str(tiny_cross_encoder)))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_a_home_folder_is_expanded(tiny_cross_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_cross_encoder.parent))
    monkeypatch.setenv("USERPROFILE", str(tiny_cross_encoder.parent))
    assert CrossEncoder("~/model").score("a", ["b"]).shape == (1,)


@pytest.mark.parametrize("kind", [BiEncoder, CrossEncoder])
@pytest.mark.parametrize("device", ["nonsense", "cuda:77"])
def test_a_device_that_is_not_there_is_a_model_error(request: pytest.FixtureRequest, kind: type, device: str) -> None:
    path = request.getfixturevalue("tiny_bi_encoder" if kind is BiEncoder else "tiny_cross_encoder")
    with pytest.raises(ModelError, match="cannot load"):
        _ = kind(path, device=device).max_length


def test_the_token_is_not_shown() -> None:
    assert "secret" not in repr(Checkpoint("a/b", token="secret"))
    assert "secret" not in repr(CrossEncoder("a/b", token="secret"))


def test_equal_weights_have_one_digest_and_others_another(
    tiny_bi_encoder: Path, tiny_dot_bi_encoder: Path, tmp_path: Path
) -> None:
    def digest(path: Path) -> str:
        return weights_digest(load_bi_encoder(Checkpoint(str(path))))

    assert digest(tiny_bi_encoder) == digest(copy(tiny_bi_encoder, tmp_path / "another name"))
    assert digest(tiny_bi_encoder) != digest(tiny_dot_bi_encoder)


@pytest.mark.parametrize("fixture", ["tiny_cross_encoder", "tiny_roberta", "tiny_language_model"])
def test_the_network_says_how_many_tokens_it_takes(request: pytest.FixtureRequest, fixture: str) -> None:
    model = load_cross_encoder(Checkpoint(str(request.getfixturevalue(fixture))))
    assert longest_input(model) == tiny.POSITIONS


def test_a_static_model_has_no_limit(tiny_static: Path) -> None:
    assert longest_input(load_bi_encoder(Checkpoint(str(tiny_static)))) is None


def test_two_models_do_not_load_at_once(
    tiny_bi_encoder: Path, tiny_cross_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers sets the process's default type while it loads: the other model's weights were rounded."""
    loading_now: list[int] = []
    most: list[int] = []

    @contextmanager
    def watched() -> Iterator[None]:
        loading_now.append(1)
        most.append(len(loading_now))
        time.sleep(0.2)
        yield
        loading_now.pop()

    monkeypatch.setattr(loading, "_quiet_loading", watched)
    with BiEncoder(tiny_bi_encoder) as one, CrossEncoder(tiny_cross_encoder) as other:
        threads = [
            threading.Thread(target=one.encode_queries, args=(["paris"],)),
            threading.Thread(target=other.score, args=("paris", ["rome"])),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1, 1]


@pytest.mark.parametrize("kind", ["SparseEncoder", "MultiVectorEncoder", "CrossEncoder"])
def test_another_kind_of_sentence_transformers_is_no_bi_encoder(
    tiny_bi_encoder: Path, tmp_path: Path, kind: str
) -> None:
    """The pooled hidden states of a sparse or a late-interaction model mean nothing."""
    path = copy(tiny_bi_encoder, tmp_path / "model")
    file = path / "config_sentence_transformers.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": kind}))
    with pytest.raises(ModelError, match=f"was saved as a {kind} of sentence-transformers"):
        load_bi_encoder(Checkpoint(str(path)))


def test_a_padding_token_that_only_the_tokenizer_knows(tmp_path: Path) -> None:
    """Language models with a head for classification: transformers refused batches."""
    path = tiny.save_language_model_with_head(tmp_path / "model")
    texts = ["rome", "the word is france paris", "bread"]
    with CrossEncoder(path, precision="float32") as model:
        together = model.score("paris", texts)
        assert together == pytest.approx([float(model.score("paris", [text])[0]) for text in texts], abs=1e-5)
    settings = path / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "pad_token": None}))
    with CrossEncoder(path) as model, pytest.raises(ModelError, match="has no padding token"):
        model.score("paris", texts)


def test_a_model_that_takes_no_limit(tmp_path: Path) -> None:
    path = tiny.save_static_bi_encoder(tmp_path)
    with BiEncoder(path) as encoder:
        assert encoder.max_length is None
        assert encoder.precision == "float32"  # no network that bfloat16 would make faster
    with BiEncoder(path, max_length=16) as encoder, pytest.raises(InvalidInputError, match="takes no limit; leave"):
        encoder.encode_queries(["paris"])


@pytest.mark.parametrize("positions", [(64, 128), (128, 64)])
def test_a_router_keeps_the_limits_of_both_ways(tmp_path: Path, positions: tuple[int, int]) -> None:
    """Passages were cut at what queries may have, or went beyond what their network has positions for."""
    path = tiny.save_router(tmp_path / "model", positions)
    plain = sentence_transformers.SentenceTransformer(str(path), device="cpu")
    texts = ["paris is the capital", "word " * 100]
    with BiEncoder(path, precision="float32") as encoder:
        assert encoder.max_length == positions[1]
        with pytest.warns(TruncationWarning) if positions[1] == 64 else nullcontext():
            found = encoder.encode_documents(texts)
        assert found == pytest.approx(plain.encode_document(texts), abs=1e-5)
        assert encoder.encode_queries(["paris"]) == pytest.approx(plain.encode_query(["paris"]), abs=1e-5)


def test_a_closed_model_is_gone(tiny_cross_encoder: Path) -> None:
    """Its parts refer to one another: the next collection of garbage may be far away."""
    gc.disable()
    try:
        with CrossEncoder(tiny_cross_encoder) as model:
            model.score("paris", ["rome"])
            network = weakref.ref(model._engine.model[0])  # type: ignore[union-attr]
            assert network() is not None
        assert network() is None
    finally:
        gc.enable()
