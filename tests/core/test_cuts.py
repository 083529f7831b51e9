"""A long call says once how much it cut, where its caller is."""

from __future__ import annotations

import asyncio
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


def test_each_model_is_told_of_its_own(encoder: BiEncoder, tiny_dot_bi_encoder: Path) -> None:
    def asking(other: BiEncoder) -> Iterator[Passage]:
        for passage in passages():
            other.encode_queries([passage.text])
            yield passage

    with BiEncoder(tiny_dot_bi_encoder) as other, ChromaIndex(encoder) as index:
        with pytest.warns(TruncationWarning) as caught:
            index.add(asking(other), batch_size=4)
        said = sorted(str(warning.message).split(" reads")[0] for warning in caught)
        both = sorted(f"10 of 30 texts are longer than {model.model!r}" for model in (encoder, other))
        assert said == both


async def test_a_task_that_outlives_the_call_is_heard(encoder: BiEncoder) -> None:
    tasks: list[asyncio.Task[object]] = []

    async def later() -> object:
        return encoder.encode_queries(TEXTS[:1])

    def starting() -> Iterator[Passage]:
        tasks.append(asyncio.get_running_loop().create_task(later()))
        yield Passage("short", "rome")

    with ChromaIndex(encoder) as index:
        index.add(starting())
        with pytest.warns(TruncationWarning, match="1 of 1 texts"):
            await tasks[0]


def test_where_warnings_are_errors_the_calls_own_error_comes_first(encoder: BiEncoder) -> None:
    def broken() -> Iterator[Passage]:
        yield from list(passages())[:8]
        raise RuntimeError("the file ends here")

    with ChromaIndex(encoder) as index, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="the file ends"):
            index.add(broken(), batch_size=4)
        with pytest.raises(TruncationWarning):
            index.add(passages(), batch_size=4)
