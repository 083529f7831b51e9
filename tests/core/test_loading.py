"""Checkpoints are loaded safely, and the wrong kind is refused with a message that helps."""

from __future__ import annotations

import gc
import json
import math
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import sentence_transformers
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from retrieve_rerank import BiEncoder, CrossEncoder, InvalidInputError, ModelError, TruncationWarning
from retrieve_rerank.models import loading
from retrieve_rerank.models.loading import Checkpoint, load_bi_encoder, load_cross_encoder
from retrieve_rerank.models.ranking import as_ranker
from tests import tiny

LOADERS = {"bi-encoder": load_bi_encoder, "cross-encoder": load_cross_encoder}
KINDS = {"bi-encoder": BiEncoder, "cross-encoder": CrossEncoder}


def copy(path: Path, to: Path) -> Path:
    return Path(shutil.copytree(path, to))


def take_out(weights: Path, part: str) -> None:
    """Take the tensors with this in their names out of a checkpoint's weights."""
    kept = {name: value for name, value in load_file(weights).items() if part not in name}
    save_file(kept, weights, metadata={"format": "pt"})


@pytest.fixture
def models(tiny_bi_encoder: Path, tiny_cross_encoder: Path) -> dict[str, Path]:
    """Whole checkpoints, which stay as they are."""
    return {"bi-encoder": tiny_bi_encoder, "cross-encoder": tiny_cross_encoder}


@pytest.fixture
def network(tiny_bi_encoder: Path) -> Path:
    """A network of transformers' alone."""
    return tiny_bi_encoder.parent / "network"


@pytest.mark.parametrize(
    ("what", "fixture", "message"),
    [
        ("bi-encoder", "tiny_cross_encoder", r"is a cross-encoder.*Use CrossEncoder"),
        ("cross-encoder", "tiny_bi_encoder", r"is not a cross-encoder: it was saved as BertModel.*random"),
        ("cross-encoder", "network", "not a cross-encoder"),
        ("cross-encoder", "headless", r"scoring head.*classifier\.weight.*newly initialised"),
    ],
)
def test_another_kind_of_checkpoint_is_refused(
    request: pytest.FixtureRequest, what: str, fixture: str, message: str
) -> None:
    """Also a head that only the configuration claims."""
    with pytest.raises(ModelError, match=message):
        _ = KINDS[what](request.getfixturevalue(fixture)).max_length


@pytest.mark.parametrize(
    ("what", "missing"),
    [
        ("cross-encoder", "classifier."),
        ("cross-encoder", "classifier.weight"),
        ("cross-encoder", "layer.1."),
        ("bi-encoder", "layer.1."),
    ],
)
def test_a_checkpoint_with_missing_weights_is_refused(
    models: dict[str, Path], tmp_path: Path, what: str, missing: str
) -> None:
    path = copy(models[what], tmp_path / "model")
    take_out(path / "model.safetensors", missing)
    with pytest.raises(ModelError, match=r"newly initialised"):
        LOADERS[what](Checkpoint(str(path)))


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


def test_the_token_is_not_shown() -> None:
    assert "secret" not in repr(Checkpoint("a/b", token="secret"))
    assert "secret" not in repr(CrossEncoder("a/b", token="secret"))


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


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("device", ["nonsense", "cuda:77"])
def test_a_device_that_is_not_there_is_no_fault_of_the_checkpoint(
    models: dict[str, Path], what: str, device: str
) -> None:
    with pytest.raises(ModelError, match=f"cannot load .*onto device='{device}': ") as caught:
        _ = KINDS[what](models[what], device=device).max_length
    assert "complete checkpoint" not in str(caught.value)


@pytest.mark.parametrize("left", [[], ["tokenizer_config.json"]])
@pytest.mark.parametrize("what", KINDS)
def test_a_checkpoint_without_a_tokenizer(models: dict[str, Path], tmp_path: Path, what: str, left: list[str]) -> None:
    """transformers makes one without words, to which all texts are alike."""
    path = copy(models[what], tmp_path / "model")
    for name in {"tokenizer.json", "vocab.txt", "special_tokens_map.json", "tokenizer_config.json"} - {*left}:
        (path / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="knows no words"):
        _ = KINDS[what](path).max_length


@pytest.mark.parametrize("folder", ["0_Transformer", "query_0_Transformer", "document_0_Transformer"])
def test_random_weights_are_refused_wherever_the_network_lies(tmp_path: Path, folder: str) -> None:
    """Each time the model was loaded, it gave other vectors."""
    if folder == "0_Transformer":
        path = tiny.save_bi_encoder(tmp_path)
        listed = json.loads((path / "modules.json").read_text())
        listed[0]["path"] = folder
        (path / "modules.json").write_text(json.dumps(listed))
        (path / folder).mkdir()
        for file in list(path.iterdir()):
            if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json"):
                shutil.move(file, path / folder)
    else:
        path = tiny.save_router(tmp_path / "model", (64, 64))
    assert BiEncoder(path).max_length == 64
    take_out(path / folder / "model.safetensors", "layer.1.")
    with pytest.raises(ModelError, match=r"is not in its weights and was newly initialised with random numbers"):
        _ = BiEncoder(path).max_length


def test_another_model_in_the_folder_has_another_fingerprint(tmp_path: Path) -> None:
    """It was that of the model that had been loaded first, under which the other one's vectors were stored."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    path, other = tiny.save_bi_encoder(tmp_path / "one", seed=1), tiny.save_bi_encoder(tmp_path / "two", seed=2)
    encoder = BiEncoder(path)
    before = encoder.fingerprint
    encoder.close()
    shutil.copytree(other, path, dirs_exist_ok=True)
    with encoder, BiEncoder(other) as fresh:
        assert encoder.fingerprint["weights"] == fresh.fingerprint["weights"] != before["weights"]


def test_a_single_word_that_was_trained_changes_the_fingerprint(tmp_path: Path) -> None:
    """Of a table of word vectors, a sample of the numbers may all be as they were."""
    path = tiny.save_static_bi_encoder(tmp_path)
    with BiEncoder(path) as encoder:
        before = encoder.fingerprint
    (weights,) = path.rglob("model.safetensors")
    ((name, rows),) = load_file(weights).items()
    rows[8] *= -3
    save_file({name: rows}, weights, metadata={"format": "pt"})
    with BiEncoder(path) as encoder:
        changed = encoder.fingerprint
    assert {key for key in before if changed[key] != before[key]} == {"rows"}


async def test_no_score_is_nan(tmp_path: Path) -> None:
    path = tiny.save_cross_encoder(tmp_path)
    weights = load_file(path / "model.safetensors")
    weights["classifier.bias"][:] = math.nan
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with CrossEncoder(path) as model:
        with pytest.raises(ModelError, match=r"gave NaN for texts\[0\]"):
            model.score("what", ["paris", "rome"])
        with pytest.raises(ModelError, match=r"gave NaN for texts\[0\]"):
            await model.ascore("what", ["paris", "rome"])


@pytest.mark.parametrize("prompt", [{"query": "find: "}, 5, ["find: "]])
def test_a_prompt_that_is_no_text(tiny_bi_encoder: Path, tiny_cross_encoder: Path, prompt: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^prompt must be a text"):
        CrossEncoder(tiny_cross_encoder, prompt=prompt)
    with pytest.raises(InvalidInputError, match=r"^query_prompt must be a text"):
        BiEncoder(tiny_bi_encoder, query_prompt=prompt)
    with pytest.raises(InvalidInputError, match=r"^document_prompt must be a text"):
        BiEncoder(tiny_bi_encoder, document_prompt=prompt)


def test_more_dimensions_than_there_are(tiny_bi_encoder: Path) -> None:
    encoder = BiEncoder(tiny_bi_encoder, truncate_dim=1000)
    with encoder, pytest.raises(InvalidInputError, match="is 1000, and the vectors of this model have 32"):
        encoder.encode_queries(["paris"])


def test_a_scorers_tensor_with_a_gradient() -> None:
    class Trained:
        def score(self, query: str, texts: Any) -> Any:
            return torch.ones(len(texts), requires_grad=True)

    class Detached:
        def score(self, query: str, texts: Any) -> Any:
            return torch.ones(len(texts))

    with pytest.raises(ModelError, match="Trained must return one number a pair"):
        as_ranker(Trained()).rank("paris", ["rome"])
    assert math.isfinite(as_ranker(Detached()).rank("paris", ["rome"])[0].score)
