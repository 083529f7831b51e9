"""The last layer computes what is read of it: same results, less work, and hands off what is built otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from transformers.models.bert.modeling_bert import BertPooler

from retrieve_rerank import BiEncoder, CrossEncoder
from retrieve_rerank.models.heads import FirstToken
from tests import tiny

QUERY = "capital of france"
TEXTS = ["paris is the capital of france", "rome", "bread is the bread of the word in italy", "paris " * 90, ""]
ALIKE = ["paris is the capital", "rome is the bread of", "bread is in the word"]  # nothing is padded


def save(folder: Path, kind: str, **settings: object) -> Path:
    """Save a small network with one label."""
    torch.manual_seed(30)
    sizes: dict[str, Any] = {
        "vocab_size": 256,
        "hidden_size": tiny.WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": tiny.POSITIONS + 1,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "initializer_range": 0.3,
        "num_labels": 1,
        **settings,
    }
    path = folder / kind
    config = getattr(transformers, f"{kind}Config")(**sizes)
    getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(path)
    tiny.save_tokenizer(path)
    return path


def last_layer(model: BiEncoder | CrossEncoder) -> Any:
    assert model.precision  # loads it
    engine: Any = model._engine
    network = engine.model.transformers_model
    return getattr(network, network.base_model_prefix, network).encoder.layer[-1]


def theirs(path: Path, texts: list[str]) -> Any:
    scorer = sentence_transformers.CrossEncoder(str(path), device="cpu", max_length=tiny.POSITIONS)
    return scorer.predict([(QUERY, text) for text in texts], activation_fn=torch.nn.Identity())


@pytest.mark.parametrize("kind", ["Bert", "Camembert", "Electra", "Roberta", "XLMRoberta"])
@pytest.mark.parametrize("texts", [TEXTS, ALIKE, TEXTS[:1]], ids=["padded", "of one length", "one"])
@pytest.mark.filterwarnings("ignore::retrieve_rerank.errors.TruncationWarning")
def test_scores_are_those_of_the_whole_layer(tmp_path: Path, kind: str, texts: list[str]) -> None:
    path = save(tmp_path, kind)
    with CrossEncoder(path, device="cpu", precision="float32", max_length=tiny.POSITIONS) as model:
        assert isinstance(last_layer(model), FirstToken)
        assert model.score(QUERY, texts) == pytest.approx(theirs(path, texts), rel=1e-4, abs=1e-5)


def test_the_other_tokens_are_not_computed(tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []
    with CrossEncoder(save(tmp_path, "Bert"), device="cpu", precision="float32") as model:
        wide = last_layer(model).layer.intermediate.dense
        wide.register_forward_hook(lambda _module, inputs, _result: seen.append(tuple(inputs[0].shape)))
        model.score(QUERY, ALIKE)
    assert seen == [(len(ALIKE), 1, tiny.WIDTH)]


@pytest.mark.parametrize("why", ["its head reads more", "its layers are others", "its code is its own", "other calls"])
def test_a_network_that_is_built_otherwise_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """As a network may be that only calls itself BERT: what counts is that the scores stay."""
    pool = BertPooler.forward

    def mean(self: BertPooler, hidden: torch.Tensor) -> torch.Tensor:
        return pool(self, hidden.mean(dim=1, keepdim=True))

    def broken(*_: object, **__: object) -> torch.Tensor:
        raise TypeError("another version passes other things")

    if why == "its layers are others":
        path = save(tmp_path, "DebertaV2", relative_attention=True, position_biased_input=False)
    else:
        path = save(tmp_path, "Bert")
    if why == "its head reads more":
        monkeypatch.setattr(BertPooler, "forward", mean)
    elif why == "its code is its own":
        monkeypatch.setattr(transformers.BertForSequenceClassification, "__module__", "transformers_modules.made.up")
    elif why == "other calls":
        monkeypatch.setattr(FirstToken, "forward", broken)
    with CrossEncoder(path, device="cpu", precision="float32") as model:
        assert not isinstance(last_layer(model), FirstToken)
        assert model.score(QUERY, ALIKE) == pytest.approx(theirs(path, ALIKE), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("pooling", "include_prompt", "shortened"), [("cls", True, True), ("cls", False, False), ("mean", True, False)]
)
@pytest.mark.filterwarnings("ignore::retrieve_rerank.errors.TruncationWarning")
def test_bi_encoders_with_cls_pooling(tmp_path: Path, pooling: str, *, include_prompt: bool, shortened: bool) -> None:
    prompts = {"query": "the word "}
    path = tiny.save_bi_encoder(tmp_path, prompts=prompts, pooling=pooling, include_prompt=include_prompt)
    plain = sentence_transformers.SentenceTransformer(str(path), device="cpu")
    with BiEncoder(path, device="cpu", precision="float32") as model:
        assert isinstance(last_layer(model), FirstToken) is shortened
        np.testing.assert_allclose(model.encode_documents(TEXTS), plain.encode_document(TEXTS), atol=1e-5)
        np.testing.assert_allclose(model.encode_queries([QUERY]), plain.encode_query([QUERY]), atol=1e-5)


def test_another_backend_gets_a_bi_encoders_whole_network(tmp_path: Path) -> None:
    """Its files hold all tokens' vectors, also those that others made."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    path = tiny.save_bi_encoder(tmp_path, pooling="cls")
    plain = sentence_transformers.SentenceTransformer(str(path), device="cpu")
    with BiEncoder(path, backend="onnx", cache_folder=tmp_path / "cache") as model:
        np.testing.assert_allclose(model.encode_documents(TEXTS[:3]), plain.encode_document(TEXTS[:3]), atol=1e-4)
