"""Checkpoints that lack something, and settings that no model can have: errors that say so, and never numbers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from retrieve_rerank import BiEncoder, CrossEncoder, InvalidInputError, ModelError
from retrieve_rerank.models.ranking import as_ranker
from tests import tiny


def first_use(kind: type, path: Path, **options: Any) -> object:
    with kind(path, **options) as model:
        return model.max_length


def without_last_layer(weights: Path) -> None:
    kept = {name: value for name, value in load_file(weights).items() if "layer.1." not in name}
    save_file(kept, weights, metadata={"format": "pt"})


@pytest.mark.parametrize("left", [[], ["tokenizer_config.json"]])
@pytest.mark.parametrize("kind", [BiEncoder, CrossEncoder])
def test_a_checkpoint_without_a_tokenizer(
    tiny_bi_encoder: Path, tiny_cross_encoder: Path, tmp_path: Path, kind: type, left: list[str]
) -> None:
    """transformers makes one without words, to which all texts are alike."""
    path = Path(shutil.copytree(tiny_bi_encoder if kind is BiEncoder else tiny_cross_encoder, tmp_path / "model"))
    for name in {"tokenizer.json", "vocab.txt", "special_tokens_map.json", "tokenizer_config.json"} - {*left}:
        (path / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="knows no words"):
        first_use(kind, path)


def test_random_weights_are_refused_where_the_network_lies_in_a_folder(tmp_path: Path) -> None:
    """Each time the model was loaded, it gave other vectors."""
    (tmp_path / "model").mkdir()
    path = tiny.save_bi_encoder(tmp_path / "model")
    listed = json.loads((path / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (path / "modules.json").write_text(json.dumps(listed))
    (path / "0_Transformer").mkdir()
    for file in list(path.iterdir()):
        if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json"):
            shutil.move(file, path / "0_Transformer")
    first_use(BiEncoder, path)
    without_last_layer(path / "0_Transformer" / "model.safetensors")
    with pytest.raises(ModelError, match=r"a part of .* is not in its weights and was newly initialised"):
        first_use(BiEncoder, path)


@pytest.mark.parametrize("route", ["query", "document"])
def test_random_weights_are_refused_on_either_route(tmp_path: Path, route: str) -> None:
    path = tiny.save_router(tmp_path / "model", (64, 64))
    first_use(BiEncoder, path)
    without_last_layer(path / f"{route}_0_Transformer" / "model.safetensors")
    with pytest.raises(ModelError, match="newly initialised with random numbers"):
        first_use(BiEncoder, path)


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


def test_a_device_that_is_not_there_is_no_fault_of_the_checkpoint(tiny_cross_encoder: Path) -> None:
    with pytest.raises(ModelError, match="onto device='nonsense': ") as caught:
        first_use(CrossEncoder, tiny_cross_encoder, device="nonsense")
    assert "complete checkpoint" not in str(caught.value)


def test_a_scorers_tensor_with_a_gradient() -> None:
    class Trained:
        def score(self, query: str, texts: Any) -> Any:
            return torch.ones(len(texts), requires_grad=True)

    with pytest.raises(ModelError, match="Trained must return one number a pair"):
        as_ranker(Trained()).rank("paris", ["rome"])
    assert np.isfinite(as_ranker(Detached()).rank("paris", ["rome"])[0].score)


class Detached:
    def score(self, query: str, texts: Any) -> Any:
        return torch.ones(len(texts))
