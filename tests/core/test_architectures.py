"""Every architecture that is listed here gives sentence-transformers' own numbers; what is no such model is refused.

A row makes a small network of random weights from the configuration that is public, and saves it as
sentence-transformers does. A new architecture is one more row.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from sentence_transformers.base.modules import Dense
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer import modules
from transformers.models.bert.modeling_bert import BertPooler

from retrieve_rerank import BiEncoder, CrossEncoder, ModelError, TruncationWarning
from retrieve_rerank.models.heads import FirstToken
from tests import tiny

QUERY = "capital of france"
TEXTS = ["paris is the capital of france", "rome", "bread is the bread of the word in italy", "", "what is the word"]
LONG = "rome is the capital of italy . what is the word of bread in france ? paris is paris . " * 8
# What the public configurations have beside their sizes.
SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": tiny.WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.3,
    "num_labels": 1,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "DebertaV2": {"relative_attention": True, "position_biased_input": False, "type_vocab_size": 0},
    "Gemma": {"num_key_value_heads": 1, "head_dim": 8},
    "Gemma3Text": {"num_key_value_heads": 1, "head_dim": 8, "use_bidirectional_attention": True, "sliding_window": 16},
    "ModernBert": {"global_attn_every_n_layers": 2, "local_attention": 16, "classifier_pooling": "mean"},
    "NomicBert": {"head_dim": 8, "type_vocab_size": 2},
    "Qwen2": {"num_key_value_heads": 2},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "XLMRoberta": {"type_vocab_size": 2},
}
TEMPLATE = (
    "{% set told = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first "
    "| default('is the passage what the query is of') %}judge : {{ told }} "
    "query : {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }} "
    "passage : {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }} answer :"
)


@dataclass(frozen=True)
class Row:
    """An architecture.

    Attributes:
        name: What users call it.
        family: Of transformers' classes.
        head: The rest of its class.
        parts: Makes the modules after the network, of its width.
        shortcut: Whether the last layer computes the first token only.
        template: Of a language model that reads chats.
        prompts: That are saved.
        options: Of the model.
        make: Saves it in another way.
    """

    name: str
    family: str = "Bert"
    head: str = "Model"
    parts: Callable[[], Sequence[torch.nn.Module]] | None = None
    shortcut: bool = False
    template: str | None = None
    prompts: dict[str, str] | None = None
    options: dict[str, Any] | None = None
    make: Callable[[Path], Path] | None = None

    def save(self, folder: Path) -> Path:
        """Save it; in a subfolder "model"."""
        if self.make is not None:
            return self.make(folder)
        torch.manual_seed(3)
        network = folder / "network"
        config = getattr(transformers, f"{self.family}Config")(**{**SIZES, **SETTINGS.get(self.family, {})})
        getattr(transformers, f"{self.family}{self.head}")(config).save_pretrained(network)
        if self.head == "ForCausalLM":
            tiny.save_chat_tokenizer(network, self.template, 128 if self.template else tiny.POSITIONS)
        else:
            tiny.save_tokenizer(network)
        if self.parts is None:
            return network
        task = "text-generation" if self.head == "ForCausalLM" else "feature-extraction"
        chain = [modules.Transformer(str(network), transformer_task=task, max_seq_length=tiny.POSITIONS), *self.parts()]
        kind: Any = sentence_transformers.CrossEncoder if self in CROSS else sentence_transformers.SentenceTransformer
        made = kind(modules=chain, device="cpu", prompts=self.prompts, **(self.options or {}))
        made.save(str(folder / "model"), create_model_card=False)
        return folder / "model"


def pooled(mode: str, *more: torch.nn.Module) -> Callable[[], Sequence[torch.nn.Module]]:
    return lambda: [modules.Pooling(tiny.WIDTH, pooling_mode=mode), *more]


def scores(width: int) -> Dense:
    return Dense(
        width,
        1,
        activation_function=torch.nn.Identity(),
        module_input_name="sentence_embedding",
        module_output_name="scores",
    )


CLASSIFIER = "ForSequenceClassification"
UNIT = modules.Normalize()
CROSS = [
    Row("BERT, MiniLM", "Bert", CLASSIFIER, shortcut=True),
    Row("bge-reranker-v2-m3", "XLMRoberta", CLASSIFIER, shortcut=True),
    Row("RoBERTa", "Roberta", CLASSIFIER, shortcut=True),
    Row("CamemBERT", "Camembert", CLASSIFIER, shortcut=True),
    Row("ELECTRA", "Electra", CLASSIFIER, shortcut=True),
    Row("MPNet", "MPNet", CLASSIFIER),
    Row("mxbai-rerank-v1, DeBERTa-v2", "DebertaV2", CLASSIFIER),
    Row("gte-reranker-modernbert", "ModernBert", CLASSIFIER),
    Row("Ettin", "ModernBert", parts=pooled("cls", Dense(tiny.WIDTH, 16), scores(16))),
    Row("Qwen2 with a head", "Qwen2", CLASSIFIER),
    Row("mxbai-rerank-v2", "Qwen2", "ForCausalLM", template=TEMPLATE),
    Row("Qwen3-Reranker", "Qwen3", "ForCausalLM", template=TEMPLATE),
    Row("bge-reranker-v2-gemma", "Gemma", "ForCausalLM", lambda: [LogitScore(true_token_id=100)]),
    Row("Gemma with a template", "Gemma", "ForCausalLM", lambda: [LogitScore(true_token_id=100)], template=TEMPLATE),
]
BI = [
    Row("all-MiniLM", "Bert", parts=pooled("mean", UNIT)),
    Row("bge", "Bert", parts=pooled("cls", UNIT), shortcut=True, prompts={"query": "find : "}),
    Row("multi-qa-mpnet", "MPNet", parts=pooled("cls"), options={"similarity_fn_name": "dot"}),
    Row("E5", "XLMRoberta", parts=pooled("mean", UNIT), prompts={"query": "query: ", "document": "passage: "}),
    Row("bge-m3", "XLMRoberta", parts=pooled("cls", UNIT), shortcut=True),
    Row("nomic", "NomicBert", parts=pooled("mean", UNIT), prompts={"query": "what : ", "document": "the : "}),
    Row("gte-modernbert", "ModernBert", parts=pooled("cls")),
    Row("EmbeddingGemma", "Gemma3Text", parts=pooled("mean", Dense(tiny.WIDTH, 64), Dense(64, tiny.WIDTH), UNIT)),
    Row("Qwen3-Embedding", "Qwen3", parts=pooled("lasttoken", UNIT), prompts={"query": "find the word : "}),
    Row("Matryoshka", "Bert", parts=pooled("mean", UNIT), options={"truncate_dim": 16}),
    Row("static", make=tiny.save_static_bi_encoder),
    Row("Router", make=lambda folder: tiny.save_router(folder, (64, 128))),
]


def of_rows(rows: Sequence[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=[row.name for row in rows])


def is_short(model: BiEncoder | CrossEncoder) -> bool:
    assert model.precision  # loads it
    engine: Any = model._engine
    return any(isinstance(part, FirstToken) for part in engine.model.modules())


@of_rows(CROSS)
def test_a_cross_encoder_scores_as_sentence_transformers_does(row: Row, tmp_path: Path) -> None:
    path = row.save(tmp_path)
    plain = sentence_transformers.CrossEncoder(str(path), device="cpu", model_kwargs={"dtype": torch.float32})
    plain.max_seq_length = limit = 128 if row.template else tiny.POSITIONS
    texts = TEXTS if row.template else [*TEXTS, LONG]
    expected = plain.predict([(QUERY, text) for text in texts], activation_fn=torch.nn.Identity())
    with CrossEncoder(path, precision="float32", max_length=limit) as model, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        found = model.score(QUERY, texts)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert np.ptp(found) > 1e-3
        assert found == pytest.approx([float(model.score(QUERY, [text])[0]) for text in texts], rel=1e-4, abs=1e-5)
        assert is_short(model) is row.shortcut
        hits = model.rank(QUERY, [*TEXTS, LONG])
        assert [hit.passage.text for hit in hits if hit.truncated] == [LONG]
    with CrossEncoder(path, precision="float32", max_length=limit, long_passages="windows") as windowed:
        best = next(hit for hit in windowed.rank(QUERY, [LONG, *TEXTS]) if hit.passage.text == LONG)
        assert best.window is not None
        assert not best.truncated
        assert best.logit == pytest.approx(float(windowed.score(QUERY, [LONG[slice(*best.window)]])[0]), abs=1e-4)
    with CrossEncoder(path, precision="bfloat16", max_length=limit) as rounded:
        low = rounded.score(QUERY, TEXTS)
        assert is_short(rounded) is row.shortcut
    assert low == pytest.approx(found[: len(TEXTS)], abs=float(0.1 * max(1, np.abs(found).max())))


@of_rows(BI)
def test_a_bi_encoder_gives_the_vectors_of_sentence_transformers(row: Row, tmp_path: Path) -> None:
    path = row.save(tmp_path)
    plain = sentence_transformers.SentenceTransformer(str(path), device="cpu", model_kwargs={"dtype": torch.float32})
    texts = [*TEXTS, LONG]
    with BiEncoder(path, precision="float32") as encoder:
        with nullcontext() if row.name == "static" else pytest.warns(TruncationWarning, match="1 of 6"):
            found = encoder.encode_documents(texts)
        assert found == pytest.approx(plain.encode_document(texts), rel=1e-4, abs=1e-5)
        queries = encoder.encode_queries(TEXTS)
        assert queries == pytest.approx(plain.encode_query(TEXTS), rel=1e-4, abs=1e-5)
        assert found[:5] == pytest.approx(
            np.concatenate([encoder.encode_documents([text]) for text in TEXTS]), rel=1e-4, abs=1e-5
        )
        assert np.allclose(queries, found[:5], atol=1e-4) is not bool(row.prompts or row.name == "Router")
        assert is_short(encoder) is row.shortcut
        assert encoder.dimension == found.shape[1] == (16 if row.options and "truncate_dim" in row.options else 32)
        facts = encoder.fingerprint
    with BiEncoder(path, precision="bfloat16") as rounded:
        low = rounded.encode_documents(TEXTS)
        assert rounded.fingerprint == facts
        assert is_short(rounded) is row.shortcut
    assert low == pytest.approx(found[:5], abs=float(0.1 * np.abs(found).max()))


REFUSED = [
    ("SPLADE", BiEncoder, "Bert", "ForMaskedLM", None, r"predicts words.*sentence_transformers\.SparseEncoder"),
    ("ColBERT", BiEncoder, "Bert", "Model", "HF_ColBERT", r"late-interaction.*MultiVectorEncoder"),
    ("listwise", BiEncoder, "Qwen3", "Model", "JinaForRanking", "listwise re-ranker"),
    ("listwise", CrossEncoder, "Qwen3", "ForSequenceClassification", "JinaForRanking", "listwise re-ranker"),
    ("language model", BiEncoder, "Qwen3", "ForCausalLM", None, "writes text.*answers yes or no, use CrossEncoder"),
    ("language model", CrossEncoder, "Qwen3", "ForCausalLM", None, "has no chat template"),
    ("answers", BiEncoder, "Bert", "ForQuestionAnswering", None, "trained for another task"),
    ("words", CrossEncoder, "Bert", "ForMaskedLM", None, "is not a cross-encoder: it was saved as BertForMaskedLM"),
    ("ColBERT", CrossEncoder, "Bert", "Model", "HF_ColBERT", r"is not a cross-encoder.*Use .*\.MultiVectorEncoder"),
    ("bi-encoder", CrossEncoder, "Bert", "Model", None, r"is not a cross-encoder.*Use BiEncoder"),
]


@pytest.mark.parametrize(("kind", "family", "head", "claims", "message"), [row[1:] for row in REFUSED])
def test_what_is_another_kind_of_model_is_refused_with_what_is_right(
    kind: type[BiEncoder | CrossEncoder], family: str, head: str, claims: str | None, message: str, tmp_path: Path
) -> None:
    """They loaded, with mean pooling or random weights, and nothing was said."""
    path = Row("", family, head).save(tmp_path)
    if claims is not None:
        tiny.configure(path, {"architectures": [claims]})
    with pytest.raises(ModelError, match=message):
        _ = kind(path).max_length


@pytest.mark.parametrize("kind", [BiEncoder, CrossEncoder])
def test_a_multimodal_model_is_called_so(kind: type[BiEncoder | CrossEncoder], tmp_path: Path) -> None:
    """What could not be found of it told nobody."""
    part = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    ends = {"vocab_size": 256, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPConfig(text_config={**part, **ends}, vision_config={**part, "image_size": 28})
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    tiny.save_tokenizer(tmp_path)
    with pytest.raises(ModelError, match=r"is a multimodal model \(CLIPModel\).* of texts"):
        _ = kind(tmp_path).max_length


def test_a_chat_model_is_asked_nothing_about_a_passage(tmp_path: Path) -> None:
    row = Row("", "Qwen3", "ForCausalLM", template="{% for m in messages %}{{ m['content'] }} {% endfor %}")
    with pytest.raises(ModelError, match=r"no place for a 'query' and a 'document'.* Mend the chat template"):
        _ = CrossEncoder(row.save(tmp_path)).max_length


def test_a_plain_network_says_how_its_vectors_are_made(tmp_path: Path) -> None:
    path = Row("", "Bert").save(tmp_path)
    plain = sentence_transformers.SentenceTransformer(str(path), device="cpu")
    with BiEncoder(path, precision="float32") as encoder:
        with pytest.warns(UserWarning, match=r"plain network \(BertModel\).* mean pooling was taken"):
            found = encoder.encode_queries(TEXTS)
        assert found == pytest.approx(plain.encode_query(TEXTS), abs=1e-5)
        encoder.encode_queries(TEXTS)  # said once


BERT = CROSS[0]
ALIKE = ["paris is the capital", "rome is the bread of", "bread is in the word"]  # nothing is padded


def theirs(path: Path, texts: list[str]) -> Any:
    scorer = sentence_transformers.CrossEncoder(str(path), device="cpu", max_length=tiny.POSITIONS)
    return scorer.predict([(QUERY, text) for text in texts], activation_fn=torch.nn.Identity())


def test_the_last_layer_does_not_compute_the_other_tokens(tmp_path: Path) -> None:
    path, seen = BERT.save(tmp_path), []
    with CrossEncoder(path, device="cpu", precision="float32") as model:
        assert is_short(model)
        engine: Any = model._engine
        wide = engine.model.transformers_model.bert.encoder.layer[-1].layer.intermediate.dense
        wide.register_forward_hook(lambda _module, inputs, _result: seen.append(tuple(inputs[0].shape)))
        assert model.score(QUERY, ALIKE) == pytest.approx(theirs(path, ALIKE), rel=1e-4, abs=1e-5)
    assert seen == [(len(ALIKE), 1, tiny.WIDTH)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("why", ["its head reads more", "its code is its own", "other calls"])
def test_a_network_that_is_built_otherwise_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str, precision: Any
) -> None:
    """As a network may be that only calls itself BERT: what counts is that the scores stay."""
    pool = BertPooler.forward

    def mean(self: BertPooler, hidden: torch.Tensor) -> torch.Tensor:
        return pool(self, hidden.mean(dim=1, keepdim=True))

    def broken(*_: object, **__: object) -> torch.Tensor:
        raise TypeError("another version passes other things")

    path = BERT.save(tmp_path)
    if why == "its head reads more":
        monkeypatch.setattr(BertPooler, "forward", mean)
    elif why == "its code is its own":
        monkeypatch.setattr(transformers.BertForSequenceClassification, "__module__", "transformers_modules.made.up")
    else:
        monkeypatch.setattr(FirstToken, "forward", broken)
    with CrossEncoder(path, device="cpu", precision=precision) as model:
        assert not is_short(model)
        within = 1e-5 if precision == "float32" else 0.1
        assert model.score(QUERY, ALIKE) == pytest.approx(theirs(path, ALIKE), rel=1e-4, abs=within)


def test_a_prompt_that_pooling_leaves_out_keeps_the_whole_layer(tmp_path: Path) -> None:
    path = tiny.save_bi_encoder(tmp_path, prompts={"query": "the word "}, pooling="cls", include_prompt=False)
    plain = sentence_transformers.SentenceTransformer(str(path), device="cpu")
    with BiEncoder(path, device="cpu", precision="float32") as model:
        assert not is_short(model)
        np.testing.assert_allclose(model.encode_queries([QUERY]), plain.encode_query([QUERY]), atol=1e-5)


def test_another_backend_gets_a_bi_encoders_whole_network(tmp_path: Path) -> None:
    """Its files hold all tokens' vectors, also those that others made."""
    pytest.importorskip("openvino")
    path = tiny.save_bi_encoder(tmp_path, pooling="cls")
    plain = sentence_transformers.SentenceTransformer(str(path), device="cpu")
    with BiEncoder(path, backend="openvino", precision="float32", cache_folder=tmp_path / "cache") as model:
        np.testing.assert_allclose(model.encode_documents(TEXTS[:3]), plain.encode_document(TEXTS[:3]), atol=1e-4)
