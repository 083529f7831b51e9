from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers

from retrieve_rerank import BiEncoder
from retrieve_rerank.langchain import BiEncoderEmbeddings


def test_saved_prompts_reach_queries_and_documents_and_newlines_stay(tiny_dot_bi_encoder: Path) -> None:
    """H1, H3: the stock class calls plain `encode` and turns newlines into spaces."""
    embeddings = BiEncoderEmbeddings(model=str(tiny_dot_bi_encoder), precision="float32")
    model = sentence_transformers.SentenceTransformer(str(tiny_dot_bi_encoder))
    text = "def f():\n    return 1"
    np.testing.assert_allclose(embeddings.embed_query(text), model.encode_query(text), atol=1e-5)
    np.testing.assert_allclose(embeddings.embed_documents([text])[0], model.encode_document(text), atol=1e-5)
    assert not np.allclose(embeddings.embed_query(text), model.encode(text), atol=1e-3)
    assert not np.allclose(embeddings.embed_query(text), embeddings.embed_documents([text])[0], atol=1e-3)


def test_query_settings_never_fall_back_to_document_settings(tiny_bi_encoder: Path) -> None:
    """H4: the stock class gives queries the documents' options."""
    plain = BiEncoderEmbeddings(model=str(tiny_bi_encoder))
    other = BiEncoderEmbeddings(model=str(tiny_bi_encoder), document_prompt="passage: ")
    assert plain.embed_query("paris") == other.embed_query("paris")
    assert plain.embed_documents(["paris"]) != other.embed_documents(["paris"])


def test_metric_and_dimension_can_be_read(tiny_dot_bi_encoder: Path) -> None:
    """H5: the stock class exposes neither."""
    encoder = BiEncoderEmbeddings(model=str(tiny_dot_bi_encoder)).encoder
    assert (encoder.metric, encoder.dimension) == ("dot", 32)


@pytest.mark.parametrize("name", ["model", "model_name"])
def test_model_and_model_name_are_one(name: str, tiny_bi_encoder: Path) -> None:
    embeddings = BiEncoderEmbeddings(**{name: tiny_bi_encoder})
    assert embeddings.model == str(tiny_bi_encoder)
    assert len(embeddings.embed_query("paris")) == 32


def test_a_loaded_bi_encoder_is_shared(tiny_bi_encoder: Path) -> None:
    encoder = BiEncoder(tiny_bi_encoder)
    assert BiEncoderEmbeddings(model=encoder).encoder is encoder


async def test_async_gives_the_same_and_leaves_the_loop_free(tiny_bi_encoder: Path) -> None:
    embeddings = BiEncoderEmbeddings(model=str(tiny_bi_encoder))
    texts = ["paris is the capital of france"] * 400
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    task = asyncio.create_task(tick())
    try:
        vectors = await embeddings.aembed_documents(texts)
    finally:
        task.cancel()
    assert ticks > 3
    assert vectors[0] == embeddings.embed_documents(texts)[0]
    assert await embeddings.aembed_query("rome") == embeddings.embed_query("rome")


def test_unknown_and_wrong_settings_are_refused(tiny_bi_encoder: Path) -> None:
    with pytest.raises(ValueError, match="encode_kwargs"):
        BiEncoderEmbeddings(model=str(tiny_bi_encoder), encode_kwargs={})
    with pytest.raises(ValueError, match="model must be a hub name or a folder"):
        BiEncoderEmbeddings(model="")
