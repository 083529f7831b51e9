"""Vectors are those of sentence-transformers, with nothing cut or dropped in silence."""

from __future__ import annotations

import asyncio
import itertools
import math
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers

from retrieve_rerank import BiEncoder, InvalidInputError, ModelError, TruncationWarning
from tests import tiny
from tests.core.stubs import close_to

TEXTS = ["paris is the capital of france", "", "rome", "two\nlines", "bread " * 40, "what is the word", "é ü 123 !?"]


def reference(path: Path, **options: Any) -> sentence_transformers.SentenceTransformer:
    return sentence_transformers.SentenceTransformer(str(path), device="cpu", **options)


def test_vectors_equal_those_of_the_real_model(bi_encoder_path: Path) -> None:
    texts = ["What is the capital of France?", "Paris is the capital of France.\nIt lies on the Seine.", "x = [1, 2]"]
    with BiEncoder(bi_encoder_path, precision="float32") as encoder:
        assert encoder.encode_queries(texts) == close_to(reference(bi_encoder_path).encode_query(texts))
        assert encoder.encode_documents(texts) == close_to(reference(bi_encoder_path).encode_document(texts))


def test_hundreds_of_texts_come_back_in_their_order(tiny_bi_encoder: Path) -> None:
    texts = ["word " * (number % 61) + str(number) for number in range(300)]  # several batches
    with BiEncoder(tiny_bi_encoder, precision="float32") as encoder, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        together = encoder.encode_documents(texts)
        alone = np.concatenate([encoder.encode_documents([text]) for text in texts[::29]])
    assert together.shape == (300, tiny.WIDTH)
    assert together[::29] == close_to(alone)


@pytest.mark.parametrize("prompt", [None, "", "search: "])
def test_a_given_prompt_wins_over_the_saved_one_and_an_empty_one_switches_off(
    tiny_dot_bi_encoder: Path, prompt: str | None
) -> None:
    query, document = ("query: ", "passage: ") if prompt is None else (prompt, prompt)
    expected = reference(tiny_dot_bi_encoder).encode([f"{query}rome", f"{document}rome"])
    with BiEncoder(tiny_dot_bi_encoder, precision="float32", query_prompt=prompt, document_prompt=prompt) as encoder:
        assert encoder.encode_queries(["rome"]) == close_to(expected[:1])
        assert encoder.encode_documents(["rome"]) == close_to(expected[1:])


@pytest.mark.parametrize(
    ("prompts", "query", "document", "unused"),
    [
        ({"query": "query: ", "document": "passage: "}, "query: ", "passage: ", None),
        ({"document": "the "}, "", "the ", None),
        ({"query": "query: ", "passage": "passage: "}, "query: ", "passage: ", None),
        ({"corpus": "the ", "query": "query: ", "clustering": "group: "}, "query: ", "the ", None),
        ({"query": "query: ", "clustering": "group: "}, "query: ", "", None),
        ({"query": "query: ", "retrieval.passage": "the "}, "query: ", "", "retrieval.passage = 'the '"),
        ({"web_search_query": "find: ", "sts_query": "like: "}, "", "", "sts_query = 'like: ', web_search_query"),
        ({"label": "the "}, "", "", "label = 'the '"),
    ],
)
def test_saved_prompts_are_applied_or_told(
    tmp_path: Path, prompts: dict[str, str], query: str, document: str, unused: str | None
) -> None:
    """sentence-transformers saves an empty "document" beside "passage", and applies the empty one."""
    default = "label" if "label" in prompts else None
    path = tiny.save_bi_encoder(tmp_path, prompts=prompts, default_prompt_name=default, include_prompt=False)
    plain = reference(path)
    with BiEncoder(path, precision="float32") as encoder:
        with pytest.warns(UserWarning, match=unused) if unused else nullcontext():
            queries = encoder.encode_queries(TEXTS)
        assert queries == close_to(plain.encode(TEXTS, prompt=query))
        assert encoder.encode_documents(TEXTS) == close_to(plain.encode(TEXTS, prompt=document))
        assert encoder.fingerprint["document_prompt"] == document
    with BiEncoder(path, query_prompt="", document_prompt="") as encoder:
        encoder.encode_queries(TEXTS)


def test_newlines_reach_the_tokenizer(tiny_bi_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with BiEncoder(tiny_bi_encoder) as encoder:
        model = encoder._worker.run(encoder._loaded).model
        seen: list[str] = []
        preprocess = type(model).preprocess
        monkeypatch.setattr(
            type(model),
            "preprocess",
            lambda self, inputs, **more: seen.extend(inputs) or preprocess(self, inputs, **more),
        )
        encoder.encode_documents(["def f():\n\treturn 1\r\n"])
    assert seen == ["def f():\n\treturn 1\r\n"]


async def test_truncation_is_warned_of_once_with_counts(tiny_bi_encoder: Path) -> None:
    texts = ["word " * 62, "word " * 63, "rome", "word " * 500]  # 62 words and two special tokens fill 64 positions
    with BiEncoder(tiny_bi_encoder) as encoder:
        with pytest.warns(TruncationWarning, match=r"2 of 4 texts are longer .*\(64 tokens\)") as caught:
            encoder.encode_documents(texts)
        assert [warning.filename for warning in caught] == [__file__]
        encoder.encode_documents(texts[:1])  # fits exactly: no warning, which would be an error here
        with pytest.warns(TruncationWarning, match="1 of 1 texts"):
            await encoder.aencode_queries(texts[1:2])
    with BiEncoder(tiny_bi_encoder, document_prompt="the ") as encoder, pytest.warns(TruncationWarning, match="1 of 1"):
        encoder.encode_documents(texts[:1])  # a prompt counts


@pytest.mark.parametrize("method", ["encode_queries", "encode_documents"])
def test_no_texts_are_an_empty_array_of_the_right_width(tiny_bi_encoder: Path, method: str) -> None:
    with BiEncoder(tiny_bi_encoder, truncate_dim=8) as encoder:
        empty = getattr(encoder, method)([])
    assert (empty.shape, empty.dtype) == ((0, 8), np.float32)


def test_max_length_shortens_what_is_read(tiny_bi_encoder: Path) -> None:
    with BiEncoder(tiny_bi_encoder, precision="float32", max_length=5) as encoder:
        assert encoder.max_length == 5
        with pytest.warns(TruncationWarning, match=r"\(5 tokens\)"):
            cut = encoder.encode_documents(["rome is the capital of italy"])
        assert cut == close_to(encoder.encode_documents(["rome is the"]))


@pytest.mark.parametrize("fixture", ["tiny_bi_encoder", "tiny_dot_bi_encoder"])
@pytest.mark.parametrize("normalize", [None, True, False])
def test_normalize_switches_on_off_or_follows_the_model(
    request: pytest.FixtureRequest, fixture: str, normalize: bool | None
) -> None:
    path = request.getfixturevalue(fixture)
    texts = ["rome is the capital", "bread"]
    with BiEncoder(path, precision="float32", normalize=normalize) as encoder:
        vectors = encoder.encode_documents(texts)
        says = encoder.fingerprint["normalize"]
    raw = reference(path)
    if len(raw) == 3:
        raw.pop(2)  # the layer that normalises
    raw_vectors = raw.encode_document(texts)
    scaled = normalize is True or (normalize is None and fixture == "tiny_bi_encoder")
    assert says is scaled
    assert vectors == close_to(
        raw_vectors / np.linalg.norm(raw_vectors, axis=1, keepdims=True) if scaled else raw_vectors
    )


@pytest.mark.parametrize("normalize", [None, True])
def test_truncate_dim_keeps_the_first_dimensions(tiny_bi_encoder: Path, normalize: bool | None) -> None:
    with BiEncoder(tiny_bi_encoder, precision="float32", truncate_dim=8, normalize=normalize) as encoder:
        vectors = encoder.encode_documents(TEXTS)
        assert encoder.dimension == encoder.fingerprint["dimension"] == 8
    other = reference(tiny_bi_encoder, truncate_dim=8)
    assert vectors == close_to(other.encode_document(TEXTS, normalize_embeddings=bool(normalize)))
    assert vectors.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean", "manhattan"])
def test_the_metric_is_the_models(tmp_path: Path, metric: str) -> None:
    encoder = BiEncoder(tiny.save_bi_encoder(tmp_path, metric=metric))
    if metric != "manhattan":
        assert encoder.metric == metric
        return
    with pytest.raises(ModelError, match="'manhattan', which no index here can search"):
        _ = encoder.metric


def test_the_fingerprint_tells_encoders_apart_and_not_names(
    tiny_bi_encoder: Path, tiny_dot_bi_encoder: Path, tmp_path: Path
) -> None:
    facts = BiEncoder(tiny_bi_encoder).fingerprint
    assert facts["dimension"] == tiny.WIDTH
    assert all(isinstance(value, (str, int, float, bool)) for value in facts.values())
    assert facts == BiEncoder(tiny_bi_encoder, query_prompt="query only: ").fingerprint
    different = [
        BiEncoder(tiny_bi_encoder, document_prompt="passage: "),
        BiEncoder(tiny_bi_encoder, truncate_dim=8),
        BiEncoder(tiny_bi_encoder, normalize=False),
        BiEncoder(tiny_bi_encoder, max_length=9),
        BiEncoder(tiny_dot_bi_encoder, document_prompt=""),
    ]
    for one, other in itertools.combinations([facts, *(encoder.fingerprint for encoder in different)], 2):
        assert {**one, "model": ""} != {**other, "model": ""}
    facts["dimension"] = 0  # a copy: the caller cannot change the encoder's
    assert BiEncoder(tiny_bi_encoder).fingerprint["dimension"] == tiny.WIDTH


@pytest.mark.parametrize("texts", ["one text", None, [None], ["a", 5], ["\ud800"]])
async def test_unusable_texts_are_refused_before_anything_loads(texts: Any) -> None:
    encoder = BiEncoder("no-such-model")
    for method in (encoder.encode_queries, encoder.encode_documents):
        with pytest.raises(InvalidInputError, match="texts"):
            method(texts)
    for method in (encoder.aencode_queries, encoder.aencode_documents):
        with pytest.raises(InvalidInputError, match="texts"):
            await method(texts)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_vectors_that_are_no_numbers_are_an_error(tiny_bi_encoder: Path, value: float) -> None:
    with BiEncoder(tiny_bi_encoder, normalize=False) as encoder:
        network = encoder._worker.run(encoder._loaded).model[0].auto_model
        network.encoder.layer[-1].output.LayerNorm.bias.data[3] = value
        with pytest.raises(ModelError, match=r"NaN or infinity for texts\[0\]"):
            encoder.encode_documents(["a", "b"])


async def test_async_gives_the_same_vectors(tiny_dot_bi_encoder: Path) -> None:
    with BiEncoder(tiny_dot_bi_encoder) as encoder:
        queries, documents, empty = await asyncio.gather(
            encoder.aencode_queries(TEXTS), encoder.aencode_documents(TEXTS), encoder.aencode_documents([])
        )
        assert np.array_equal(queries, encoder.encode_queries(TEXTS))
        assert np.array_equal(documents, encoder.encode_documents(TEXTS))
        assert empty.shape == (0, tiny.WIDTH)


def test_progress_is_shown_only_when_asked(tiny_bi_encoder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with BiEncoder(tiny_bi_encoder) as encoder:
        encoder.encode_documents(TEXTS)
        assert capfd.readouterr() == ("", "")
        encoder.encode_documents(TEXTS, show_progress=True)
        out, err = capfd.readouterr()
    assert out == ""
    assert f"{len(TEXTS)}/{len(TEXTS)}" in err
