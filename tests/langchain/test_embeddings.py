from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from retrieve_rerank import BiEncoder
from retrieve_rerank.langchain import BiEncoderEmbeddings


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
