"""A long call says once how much it cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieve_rerank import TruncationWarning
from retrieve_rerank.langchain import BiEncoderEmbeddings, ChromaVectorStore

TEXTS = ["rome " * (200 if number % 3 == 0 else 2) + str(number) for number in range(30)]


async def test_a_store_says_once_what_all_its_batches_cut(tiny_bi_encoder: Path) -> None:
    store = ChromaVectorStore(embedding_function=BiEncoderEmbeddings(model=str(tiny_bi_encoder)))
    with pytest.warns(TruncationWarning, match="10 of 30 texts") as caught:
        store.add_texts(TEXTS, batch_size=4)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(TruncationWarning, match="10 of 30 texts") as caught:
        await store.aadd_texts(TEXTS, batch_size=4)
    assert len(caught) == 1
