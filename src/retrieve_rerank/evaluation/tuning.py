"""Try first stages, depths and cross-encoders on a dataset, and say which setting to take."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from numbers import Real
from pathlib import Path

from retrieve_rerank.checks import check_count, check_seconds
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.evaluation import choosing, tuning_words
from retrieve_rerank.evaluation.dataset import Dataset
from retrieve_rerank.evaluation.measures import check_measures
from retrieve_rerank.evaluation.running import run
from retrieve_rerank.evaluation.store import open_store
from retrieve_rerank.evaluation.trying import Plan
from retrieve_rerank.evaluation.tuned import Tuning
from retrieve_rerank.models.ranking import scorer_name
from retrieve_rerank.types import Retriever, Scale, Scorer

DEPTHS = (5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 100)


def tune(
    first_stages: Mapping[str, Retriever] | Retriever,
    cross_encoders: Mapping[str, Scorer] | Scorer,
    dataset: Dataset,
    *,
    measure: str = "nDCG@10",
    depths: Sequence[int] = DEPTHS,
    latency_budget: float | None = None,
    quality: float | None = None,
    scores: Scale = "logits",
    cache: str | os.PathLike[str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    show_progress: bool = False,
) -> Tuning:
    """Find the setting to search with: which first stage, how deep it is re-ranked, by which cross-encoder, or not.

    Every first stage is asked at every depth, as a search of that depth asks it, and each pair of question and text is
    read once by each cross-encoder: what is read for the deepest candidates serves all shallower ones. A setting's
    quality is exactly what `evaluate` gives a pipeline of that `fetch_k`. Each first stage without re-ranking is a
    setting, too, since re-ranking can hurt.

    Args:
        first_stages: Retrievers by name, or one. They must search the dataset's passages.
        cross_encoders: Cross-encoders by name, or one. The same model in two precisions is two of them.
        dataset: Questions with judgements, best a hundred or more; `dataset.sample(n)` takes fewer.
        measure: Name of a measure of ir-measures.
        depths: Values of `fetch_k` to try.
        latency_budget: Seconds that nineteen of twenty questions may take, on this machine, first stage and re-ranking
            together; None is no limit.
        quality: Mean of the measure that is enough: the fastest setting that reaches it is taken. None takes the best.
        scores: What those of the cross-encoders that are no `CrossEncoder` return: "logits", or "probabilities".
        cache: An SQLite file that keeps every score, as for `evaluate`, which may share it.
        resamples: Of the bootstrap.
        seed: Of the bootstrap and of the splits of the questions in halves.
        show_progress: Show a bar on stderr.

    Returns:
        All settings with their quality and latency, the one to take and why, and what choosing it this way is worth on
        questions that it was not chosen on.

    Raises:
        InvalidInputError: If an argument cannot be used. That no setting meets the budget or the quality is a result:
            the one that comes closest is chosen, `reason` says so, and `met` is False.

    Example:
        >>> from retrieve_rerank import BM25Index, CrossEncoder
        >>> from retrieve_rerank.evaluation import Dataset, tune
        >>> texts = {"p1": "Paris is the capital of France.", "p2": "Rome is the capital of Italy."}
        >>> dataset = Dataset("toy", texts, {"q1": "the capital of Italy"}, {"q1": {"p2": 1}})
        >>> index = BM25Index()
        >>> report = index.add(dataset.passages)
        >>> with CrossEncoder(cross_encoder_path) as model:
        ...     tuning = tune({"words": index}, {"demo": model}, dataset, depths=[1, 2])
        >>> tuning.chosen.name
        'words, not re-ranked'
    """
    start = time.perf_counter()
    if not isinstance(dataset, Dataset):
        raise InvalidInputError(f"dataset must be a Dataset, as load_dataset returns, got {type(dataset).__name__}")
    (name,) = check_measures([measure], dataset.judgements)
    check_count(resamples, "resamples")
    check_seconds(latency_budget, "latency_budget")
    _check_quality(quality)
    plan = Plan(_firsts(first_stages), _models(cross_encoders), _depths(depths), scores)
    with nullcontext() if cache is None else open_store(cache) as store:
        began = time.perf_counter()
        run(plan.stages, dataset, store, show_progress=show_progress)
        running = time.perf_counter() - began
    costs = plan.call_seconds(dataset)
    settings = plan.settings(costs, dataset, name, resamples=resamples, seed=seed)
    choice = choosing.closest(settings, latency_budget, quality)
    held_out = choosing.check(settings, choice.setting, latency_budget, quality, seed=seed)
    return Tuning(
        dataset=dataset.name,
        weak=dataset.weak,
        measure=name,
        settings=tuple(settings),
        chosen=choice.setting,
        reason=choice.reason,
        latency_budget=latency_budget,
        quality=quality,
        depths=plan.depths,
        ceiling=plan.ceiling(dataset, name),
        held_out=held_out,
        notes=tuning_words.notes(plan, dataset, name, choice.setting, held_out),
        questions=len(dataset.judgements),
        passages=len(dataset.passages),
        resamples=resamples,
        seed=seed,
        models=plan.models,
        scores=scores,
        seconds=time.perf_counter() - start - running + plan.seconds,
        seconds_alone=plan.seconds_alone(costs),
    )


def _firsts(given: Mapping[str, Retriever] | Retriever) -> dict[str, Retriever]:
    firsts = dict(given) if isinstance(given, Mapping) else {type(given).__name__: given}
    for name, retriever in firsts.items():
        _check_name(name, "first stage")
        if not callable(getattr(retriever, "retrieve", None)):
            raise InvalidInputError(
                f"first stage {name!r} must have retrieve(query, k), as ChromaIndex has; got {type(retriever).__name__}"
            )
    if not firsts:
        raise InvalidInputError("first_stages must hold a retriever, got none")
    return firsts


def _models(given: Mapping[str, Scorer] | Scorer) -> dict[str, Scorer]:
    models = dict(given) if isinstance(given, Mapping) else {Path(scorer_name(given)).name: given}
    for name in models:
        _check_name(name, "cross-encoder")
    if not models:
        raise InvalidInputError("cross_encoders must hold a cross-encoder, got none; evaluate measures first stages")
    return models


def _check_name(name: object, of: str) -> None:
    if not isinstance(name, str) or not name.strip():
        raise InvalidInputError(f"the name of a {of} must be a string with something in it, got {name!r}")


def _check_quality(quality: object) -> None:
    if quality is not None and (isinstance(quality, bool) or not isinstance(quality, Real) or not quality < math.inf):
        raise InvalidInputError(f"quality must be a number, the mean of the measure that is enough; got {quality!r}")


def _depths(given: Sequence[int]) -> list[int]:
    if isinstance(given, (str, int)) or not isinstance(given, Sequence) or not given:
        raise InvalidInputError(f"depths must be a list of whole numbers, such as [10, 20, 50], got {given!r}")
    return [check_count(depth, "each of depths") for depth in given]
