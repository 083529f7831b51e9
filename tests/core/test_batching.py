"""Batches by token budget, and several of them at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrieve_rerank import BiEncoder, CrossEncoder, InvalidInputError
from retrieve_rerank.models import streams
from retrieve_rerank.models.engine import consecutive, pack, token_budget
from retrieve_rerank.models.streams import cores, in_streams


@given(st.lists(st.integers(0, 600), max_size=60), st.integers(1, 3000))
def test_batches_hold_every_position_once_the_longest_first_and_are_as_full_as_the_budget_allows(
    lengths: list[int], budget: int
) -> None:
    batches = pack(lengths, budget)
    order = [position for batch in batches for position in batch]
    assert order == sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    assert all(batches)
    for batch in batches:
        assert lengths[batch[0]] * len(batch) <= budget or len(batch) == 1
    for batch in batches[:-1]:
        assert max(1, lengths[batch[0]]) * (len(batch) + 1) > budget


@pytest.mark.parametrize(
    ("lengths", "budget", "batches"),
    [
        ([], 10, []),
        ([5], 10, [[0]]),
        ([5, 5, 5], 10, [[0, 1], [2]]),
        ([2, 9, 3], 9, [[1], [2, 0]]),
        ([50, 1], 10, [[0], [1]]),
        ([0, 0, 0], 2, [[0, 1], [2]]),
    ],
)
def test_batches_worked_out_by_hand(lengths: list[int], budget: int, batches: list[list[int]]) -> None:
    assert pack(lengths, budget) == batches


def test_a_gpu_gets_larger_batches_than_a_processor() -> None:
    assert token_budget(torch.device("cuda")) > token_budget(torch.device("cpu")) >= 512


def test_the_size_of_a_batch_can_be_set_and_results_do_not_depend_on_it(
    tiny_cross_encoder: Path, tiny_bi_encoder: Path, counted_rows: list[int]
) -> None:
    texts = [f"{'word ' * length}{length}" for length in range(1, 21)]
    with CrossEncoder(tiny_cross_encoder, precision="float32") as model:
        scores, vectors = model.score("word", texts), BiEncoder(tiny_bi_encoder, precision="float32")
    whole = vectors.encode_documents(texts)
    few = sum(counted_rows), len(counted_rows)
    counted_rows.clear()
    with CrossEncoder(tiny_cross_encoder, precision="float32", batch_tokens=1) as model:
        np.testing.assert_allclose(model.score("word", texts), scores, atol=1e-5)
    with BiEncoder(tiny_bi_encoder, precision="float32", batch_tokens=1) as encoder:
        np.testing.assert_allclose(encoder.encode_documents(texts), whole, atol=1e-5)
    assert few == (40, 2)
    assert counted_rows == [1] * 40


def test_the_size_of_a_batch_travels_and_is_checked(tiny_cross_encoder: Path) -> None:
    model = CrossEncoder(tiny_cross_encoder, batch_tokens=300)
    assert CrossEncoder(**model.settings).settings == model.settings
    assert model.settings["batch_tokens"] == 300
    with pytest.raises(InvalidInputError, match="batch_tokens must be >= 1"):
        CrossEncoder(tiny_cross_encoder, batch_tokens=0)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 100))
def test_consecutive_groups_keep_the_order_and_the_budget(lengths: list[int], budget: int) -> None:
    groups = consecutive(lengths, budget)
    assert [position for group in groups for position in group] == list(range(len(lengths)))
    assert all(len(group) == 1 or sum(lengths[position] for position in group) <= budget for group in groups)
    for group, following in pairwise(groups):  # none is smaller than it must be
        assert sum(lengths[position] for position in group) + lengths[following[0]] > budget


@pytest.mark.parametrize(
    ("quota", "told", "expected"),
    [("max 100000", 64, 8), ("150000 100000", 64, 2), ("50000 100000", 64, 1), (None, 64, 8), (None, 3, 3)],
)
def test_no_more_cores_are_used_than_the_process_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, told: int, expected: int
) -> None:
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(f"{quota}\n", encoding="ascii")
    monkeypatch.setattr(streams, "_QUOTA", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: told)
    assert cores() == expected


def batches_of(count: int) -> Callable[[], int | None]:
    left = list(range(count))[::-1]
    return lambda: left.pop() if left else None


@pytest.mark.parametrize("count", [0, 1, 2, 3, 20])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_streams_compute_every_batch_once(count: int, number: int) -> None:
    before = torch.get_num_threads()
    found = dict(in_streams(batches_of(count), lambda batch: batch * 2, number, 1))
    assert found == {batch: batch * 2 for batch in range(count)}
    with ThreadPoolExecutor(1) as pool:  # what other threads use is as it was
        assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == before


def test_streams_compute_at_once_and_end_with_the_call() -> None:
    meeting = threading.Barrier(2, timeout=10)  # nobody passes alone
    assert len(list(in_streams(batches_of(4), lambda _: meeting.wait(), 2, 1))) == 4
    for taken in in_streams(batches_of(100), lambda batch: batch, 2, 1):
        assert taken[0] == taken[1]
        break
    assert not [thread for thread in threading.enumerate() if thread.name == "retrieve-rerank stream"]


def test_an_error_in_a_stream_is_the_callers_and_ends_the_others() -> None:
    asked: list[int] = []

    def compute(batch: int) -> int:
        asked.append(batch)
        if batch == 3:
            raise ValueError("the third")
        return batch

    with pytest.raises(ValueError, match="the third"):
        list(in_streams(batches_of(100), compute, 2, 1))
    assert len(asked) < 10


def test_what_a_result_adds_is_computed_too() -> None:
    left = [1, 2, 3]
    found = []
    for batch, _ in in_streams(lambda: left.pop() if left else None, lambda batch: batch, 2, 1):
        found.append(batch)
        if batch == 1:
            left.extend([10, 20])
    assert sorted(found) == [1, 2, 3, 10, 20]
