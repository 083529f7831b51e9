"""Hanging, and too little memory: what was scored by then comes out, batches become smaller, the next call works.

Scorers that hang, errors, NaN and wrong numbers of scores are in tests/test_faults.py, through every door.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from retrieve_rerank import BiEncoder, CrossEncoder, ModelError

QUERY = "what is the capital of france"
NUMBERS = [str(number) for number in range(100)]


@pytest.mark.parametrize("at", [1, 3, 5])
async def test_a_model_that_hangs_at_a_batch_gives_what_it_had_scored(
    model: CrossEncoder, monkeypatch: pytest.MonkeyPatch, many_texts: Callable[[], list[str]], at: int
) -> None:
    gate, calls = threading.Event(), []
    forward = transformers.BertModel.forward

    def hang(self: object, *arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == at:
            gate.wait(20)
        return forward(self, *arguments, **options)

    monkeypatch.setattr(transformers.BertModel, "forward", hang)
    hits = model.rank(QUERY, many_texts(), time_budget=1.0)
    scored = [hit for hit in hits if hit.logit is not None]
    assert (len(scored) > 0) == (at > 1)
    assert len(hits) == 200 > len(scored)
    assert all(hit.logit is None for hit in hits[len(scored) :])
    gate.set()
    assert len(model.rank(QUERY, ["rome", "paris"])) == 2  # the same thread goes on: it only was slow


@pytest.fixture(params=["CUDA", "MPS"])
def memory(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[[int], list[int]]:
    """Makes a BERT run out of memory above so many rows; the list gets the rows of every try."""

    errors = {
        "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GiB, max allowed: 18.13 GiB)."),
    }

    def limit(most: int) -> list[int]:
        tries: list[int] = []
        forward = transformers.BertModel.forward

        def limited(self: object, input_ids: torch.Tensor, *arguments: object, **options: object) -> object:
            tries.append(len(input_ids))
            if len(input_ids) > most:
                raise errors[request.param]
            return forward(self, input_ids, *arguments, **options)

        monkeypatch.setattr(transformers.BertModel, "forward", limited)
        return tries

    return limit


@pytest.mark.parametrize("most", [1, 5, 30])
def test_out_of_memory_makes_batches_smaller_and_the_scores_stay(
    model: CrossEncoder, memory: Callable[[int], list[int]], many_texts: Callable[[], list[str]], most: int
) -> None:
    texts = many_texts()
    expected = model.score(QUERY, texts)
    tries = memory(most)
    assert model.score(QUERY, texts) == pytest.approx(expected, abs=1e-5)
    assert sum(rows for rows in tries if rows <= most) == 200
    failed = [rows for rows in tries if rows > most]
    assert 0 < len(failed) < 10
    assert failed == sorted(failed, reverse=True)
    tries.clear()
    assert model.score(QUERY, texts) == pytest.approx(expected, abs=1e-5)
    assert max(tries) <= most  # it remembers


def test_a_bi_encoder_makes_its_batches_smaller_too(
    tiny_bi_encoder: Path, memory: Callable[[int], list[int]], many_texts: Callable[[], list[str]]
) -> None:
    with BiEncoder(tiny_bi_encoder, precision="float32") as encoder:
        expected = encoder.encode_documents(many_texts())
        tries = memory(3)
        assert encoder.encode_documents(many_texts()) == pytest.approx(expected, abs=1e-5)
        assert sum(rows for rows in tries if rows <= 3) == 200


def test_a_single_text_that_does_not_fit_is_an_error_with_advice(
    model: CrossEncoder, memory: Callable[[int], list[int]]
) -> None:
    memory(0)
    with pytest.raises(ModelError, match=r"cpu has not enough memory for a single text of \d+ tokens; use a smaller"):
        model.rank(QUERY, NUMBERS)
    memory(10**6)


def test_another_error_is_not_taken_for_a_lack_of_memory(model: CrossEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, *arguments: object, **options: object) -> object:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(transformers.BertModel, "forward", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        model.score(QUERY, NUMBERS)
