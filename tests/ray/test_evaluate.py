"""Questions shared out among workers give the evaluation that one process gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from retrieve_rerank import BM25Index, CrossEncoder, InvalidInputError, RetrieveRerank, RetrieveRerankError
from retrieve_rerank import evaluation as alone
from retrieve_rerank.evaluation import Dataset, Evaluation, Latency

pytest.importorskip("ray.data")

from retrieve_rerank.ray import evaluate
from retrieve_rerank.ray.asking import Pipelines

pytestmark = pytest.mark.usefixtures("cluster")

WORDS = ["paris", "rome", "bread", "capital", "of", "france", "italy", "is", "the", "king", "queen", "walks"]


def dataset(questions: int = 40) -> Dataset:
    made = np.random.default_rng(0)
    texts = {f"p{n}": " ".join(made.choice(WORDS, 30 if n % 4 else 90)) for n in range(30)}
    asked = {f"q{n:02}": " ".join(made.choice(WORDS, 2)) for n in range(questions)}
    return Dataset("words", texts, asked, {query: {f"p{made.integers(30)}": 1} for query in asked})


def pipelines(model: Path) -> Pipelines:
    """Two depths of one first stage, one cross-encoder twice, and a setting that has no effect here."""
    index = BM25Index()
    index.add(dataset().passages)
    reader = CrossEncoder(model, precision="float32")
    return {
        "words": index,
        "deep": RetrieveRerank(index, reader, fetch_k=20, score_threshold=0.5),
        "shallow": RetrieveRerank(index, reader, fetch_k=5),
    }


def without_latency(evaluation: Evaluation) -> dict[str, object]:
    none = Latency(0.0, 0.0)
    systems = [
        replace(
            system,
            retrieve=none,
            rerank=system.rerank and replace(none, estimated=system.rerank.estimated),
            total=system.total and replace(none, estimated=system.total.estimated),
        )
        for system in evaluation.systems
    ]
    return {**{field.name: getattr(evaluation, field.name) for field in fields(evaluation)}, "systems": systems}


def test_the_evaluation_is_that_of_one_process(tiny_cross_encoder: Path) -> None:
    options = {"fetch_k": 20, "resamples": 500, "seed": 3}
    made = evaluate(lambda: pipelines(tiny_cross_encoder), dataset(), **options, concurrency=2)
    expected = alone.evaluate(pipelines(tiny_cross_encoder), dataset(), **options)
    assert "Ray cluster by 2 workers" in made.notes[-1]
    assert without_latency(replace(made, notes=made.notes[:-1])) == without_latency(expected)
    assert made["deep"].truncated > 0
    assert made["deep"].retrieve.p50 > 0
    assert made["deep"].rerank is not None
    assert made["deep"].rerank.p95 > made["deep"].rerank.p50 > 0


def test_what_a_pipeline_raises_comes_out(tiny_cross_encoder: Path) -> None:
    class Broken:
        def score(self, query: str, texts: Sequence[str]) -> object:
            raise RuntimeError("the scorer failed on purpose")

    def failing() -> Pipelines:
        return {"bad": RetrieveRerank(pipelines(tiny_cross_encoder)["words"], Broken())}

    with pytest.raises(RetrieveRerankError, match="failed on purpose"):
        evaluate(failing, dataset(3), concurrency=1)
    with pytest.raises(InvalidInputError, match="must return a dict"):
        evaluate(list, dataset(3), concurrency=1)
    with pytest.raises(InvalidInputError, match="must be a function"):
        evaluate({"words": BM25Index()}, dataset(3))


def test_there_are_no_more_workers_than_places() -> None:
    """Those without one would keep questions waiting until the others end, which they do not before."""
    from retrieve_rerank.ray.pool import Pool

    assert Pool(8).places(1.0) == 4
    assert Pool(8).places(1.5) == 2
    assert Pool(8, num_gpus=0.5).places(1.0) == 1
