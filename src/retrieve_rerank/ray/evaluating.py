"""Evaluation on a cluster: the questions are shared out, and the answers measured as in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util import ActorPool
from tqdm.auto import tqdm

from retrieve_rerank import evaluation as alone
from retrieve_rerank.checks import check_count
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.evaluation import Dataset, Evaluation, Latency, System
from retrieve_rerank.evaluation.measures import check_measures
from retrieve_rerank.ray.asking import Answer, Asking, Pipeline, Pipelines, Stage
from retrieve_rerank.ray.outcome import Fault
from retrieve_rerank.ray.pool import Pool, check_travels, translated
from retrieve_rerank.ray.replay import stand_ins

_SHARE = 8  # questions that a worker is given at once
_RETRIES = 5  # of questions whose worker was lost

T = TypeVar("T")


def evaluate(
    pipelines: Callable[[], Pipelines],
    dataset: Dataset,
    measures: Sequence[str] = ("nDCG@10", "RR@10", "R@100"),
    *,
    fetch_k: int = 100,
    resamples: int = 10_000,
    seed: int = 0,
    concurrency: int | None = None,
    num_cpus: float | None = None,
    num_gpus: float = 0.0,
    show_progress: bool = False,
) -> Evaluation:
    """Measure pipelines as `retrieve_rerank.evaluation.evaluate` does, with the questions shared out among workers.

    Results, means, differences and notes are those of one process. Latencies are what a question took while all workers
    were searching, on the cluster's machines: under load, and a note says so. The first question of each worker, which
    includes loading, is left out of them.

    Args:
        pipelines: Returns the pipelines by name, the same ones in every worker; called once in each. What they search
            must be reachable from there: a Chroma server, or files that all nodes have and nobody writes.
        dataset: As for `retrieve_rerank.evaluation.evaluate`; so are the four below.
        measures: Names of ir-measures.
        fetch_k: Depth of first stages that are given alone.
        resamples: Of the bootstrap and of the randomisation test.
        seed: Of both.
        concurrency: Workers; None takes as many as there is room for.
        num_cpus: CPUs of each worker, which are also the threads that it computes on; None is one.
        num_gpus: GPUs of each worker.
        show_progress: Show a bar on stderr.

    Returns:
        The results, as of one process.

    Raises:
        InvalidInputError: If an argument cannot be used.
        RetrieveRerankError: If a pipeline fails.

    Example:
        >>> from retrieve_rerank import BM25Index
        >>> from retrieve_rerank.evaluation import Dataset
        >>> from retrieve_rerank.ray import evaluate
        >>> texts = {"p1": "Paris is the capital of France.", "p2": "Rome is the capital of Italy."}
        >>> dataset = Dataset("toy", texts, {"q1": "What is the capital of Italy?"}, {"q1": {"p2": 1}})
        >>> def pipelines():
        ...     index = BM25Index()
        ...     index.add(dataset.passages)
        ...     return {"BM25": index}
        >>> evaluate(pipelines, dataset, concurrency=1)["BM25"].means["RR@10"]
        1.0
    """
    if not isinstance(dataset, Dataset):
        raise InvalidInputError(f"dataset must be a Dataset, as load_dataset returns, got {type(dataset).__name__}")
    if not callable(pipelines):
        raise InvalidInputError(
            f"pipelines must be a function that returns them by name, as it runs in each worker; got "
            f"{type(pipelines).__name__}"
        )
    check_measures(measures)
    check_count(resamples, "resamples")
    check_travels(pipelines, "the function that makes the pipelines")
    texts = list(dict.fromkeys(dataset.queries[query] for query in sorted(dataset.judgements)))
    pool = Pool(concurrency, num_cpus, num_gpus)
    _, workers, cpus = pool.sized(spare=0)
    # More would wait for a place, and with them the questions that they were given, until the others end.
    workers = min(workers, pool.places(cpus), -(-len(texts) // _SHARE))
    options = {"num_cpus": cpus, "num_gpus": num_gpus, "max_restarts": -1, "max_task_retries": _RETRIES}
    make: Any = ray.remote(Asking).options(**options)
    actors: list[ActorHandle[Any]] = [
        make.remote(pipelines, check_count(fetch_k, "fetch_k"), number) for number in range(workers)
    ]
    try:
        answers: dict[str, Answer] = {}
        with tqdm(total=len(texts), disable=not show_progress, unit="question", desc="Asking") as bar:
            for part in _asked(actors, texts):
                answers.update(part)
                bar.update(len(part))
        # Last, as a model that was loaded says more of itself.
        described: dict[str, Pipeline] = _got(ray.get(actors[0].describe.remote()))
    except RayError as error:
        raise translated(error) from error
    finally:
        for actor in actors:
            ray.kill(actor)
    made = alone.evaluate(
        stand_ins(described, answers), dataset, measures, fetch_k=fetch_k, resamples=resamples, seed=seed
    )
    return _timed(made, described, [answers[text] for text in texts], workers)


def _asked(actors: Sequence[ActorHandle[Any]], texts: Sequence[str]) -> Iterator[dict[str, Answer]]:
    parts = [texts[start : start + _SHARE] for start in range(0, len(texts), _SHARE)]
    for part in ActorPool(list(actors)).map_unordered(lambda actor, part: actor.ask.remote(part), parts):
        yield _got(part)


def _got(answer: T | Fault) -> T:
    if isinstance(answer, Fault):
        raise answer.error()
    return answer


def _timed(made: Evaluation, pipelines: Mapping[str, Pipeline], answers: Sequence[Answer], workers: int) -> Evaluation:
    """Put the latencies in that were measured where the questions were asked."""
    warm = _warm(answers)
    by_name = dict(pipelines)
    for system in made.systems:  # a first stage that has no name of its own is that of what re-ranks it
        if system.baseline is not None:
            by_name.setdefault(system.baseline, pipelines[system.name])
    systems = [_with_latency(system, by_name[system.name], warm) for system in made.systems]
    note = (
        f"Asked on a Ray cluster by {workers} workers at a time: latencies are under that load. `machine` is where the "
        "answers were measured, not where they were given."
    )
    return replace(made, systems=tuple(systems), notes=(*made.notes, note))


def _warm(answers: Sequence[Answer]) -> list[Answer]:
    """Leave out the first question of each worker, unless nothing is left then."""
    seen: set[int] = set()
    warm = []
    for answer in answers:
        if answer.worker in seen:
            warm.append(answer)
        seen.add(answer.worker)
    return warm or list(answers)


def _with_latency(system: System, pipeline: Pipeline, answers: Sequence[Answer]) -> System:
    found = [answer.seconds[pipeline.stage] for answer in answers]
    retrieve = _latency(found)
    if system.rerank is None or pipeline.reader is None:
        return replace(system, retrieve=retrieve)
    read = [_read_seconds(answer, pipeline.stage, pipeline.reader) for answer in answers]
    rerank, total = (
        replace(_latency(seconds), estimated=system.rerank.estimated)
        for seconds in (read, [a + b for a, b in zip(found, read, strict=True)])
    )
    return replace(system, retrieve=retrieve, rerank=rerank, total=total)


def _read_seconds(answer: Answer, stage: Stage, reader: int) -> float:
    texts = {hit.passage.text for hit in answer.found[stage]}
    return sum(answer.read.get(reader, {})[text].seconds for text in texts)


def _latency(seconds: Sequence[float]) -> Latency:
    p50, p95 = np.percentile(seconds, [50, 95])
    return Latency(float(p50), float(p95))
