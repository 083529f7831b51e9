"""Batches by token budget."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrieve_rerank import BiEncoder, CrossEncoder, InvalidInputError
from retrieve_rerank.models.engine import consecutive, pack, token_budget


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
