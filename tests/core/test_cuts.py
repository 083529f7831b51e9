"""A long call says once how much it cut, where its caller is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieve_rerank import BiEncoder, ChromaIndex, Passage, TruncationWarning

TEXTS = ["rome " * (200 if number % 3 == 0 else 2) + str(number) for number in range(30)]


@pytest.fixture
def encoder(tiny_bi_encoder: Path) -> Iterator[BiEncoder]:
    with BiEncoder(tiny_bi_encoder) as model:
        yield model


def passages() -> Iterator[Passage]:
    return (Passage(str(number), text) for number, text in enumerate(TEXTS))


def test_an_index_says_once_what_all_its_batches_cut(encoder: BiEncoder) -> None:
    with ChromaIndex(encoder) as index:
        with pytest.warns(TruncationWarning, match="10 of 30 texts are longer than") as caught:
            index.add(passages(), batch_size=4)
        assert [warning.filename for warning in caught] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            index.add(passages(), batch_size=4)  # nothing is encoded
            index.add([Passage("short", "rome")])
        with pytest.warns(TruncationWarning, match="1 of 1 texts"):
            encoder.encode_documents(TEXTS[:1])  # by itself as before


def test_what_was_cut_before_a_failure_is_said(encoder: BiEncoder) -> None:
    def broken() -> Iterator[Passage]:
        yield from list(passages())[:8]
        raise RuntimeError("the file ends here")

    with (
        ChromaIndex(encoder) as index,
        pytest.warns(TruncationWarning, match="3 of 8 texts"),
        pytest.raises(RuntimeError, match="the file ends"),
    ):
        index.add(broken(), batch_size=4)
