"""Maximal marginal relevance: results that are near to the query and unlike one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np

from retrieve_rerank.checks import check_count, number_of
from retrieve_rerank.errors import InvalidInputError, shown
from retrieve_rerank.indexes.nearest import Found, Vectors, to_similarity
from retrieve_rerank.types import Metric

PREFETCH_FACTOR = 4  # how many times as many are fetched as are chosen


def diverse(
    found: Sequence[Found], k: int, diversity: float, metric: Metric, query: Vectors | None = None
) -> list[Found]:
    """Choose `k` of what a query found by maximal marginal relevance, in the order chosen.

    The first is the most relevant one. Each further one has the largest `diversity` * relevance - (1 - `diversity`) *
    similarity to the most similar of those chosen before. Of equals the first wins.

    Args:
        found: The candidates, with their vectors.
        k: How many to choose.
        diversity: In [0, 1]: 1 is the order of relevance.
        metric: What is similar, and what is relevant.
        query: The query's vector, (dimension,), where the metric is not the collection's; None takes the distances.
    """
    if not found:
        return []
    vectors = np.stack([cast(Vectors, item.vector) for item in found])
    if query is None:
        relevance = np.array([to_similarity(item.distance, metric) for item in found], np.float64)
    else:
        relevance = _similarity(vectors, query, metric).astype(np.float64)
    nearest = np.full(len(found), -math.inf)  # similarity to the most similar item chosen so far
    left = np.ones(len(found), bool)
    chosen: list[int] = []
    while len(chosen) < min(k, len(found)):
        gain = diversity * relevance - (1.0 - diversity) * nearest if chosen else relevance
        best = int(np.argmax(np.where(left, gain, -math.inf)))
        chosen.append(best)
        left[best] = False
        nearest = np.maximum(nearest, _similarity(vectors, vectors[best], metric))
    return [found[position] for position in chosen]


def check_mmr(mmr_lambda: float | None, mmr_pool: int | None, k: int) -> int:
    """Return how many of the nearest to fetch for `k` results.

    Raises:
        InvalidInputError: If the options cannot be used.
    """
    k = check_count(k, "k")
    if mmr_lambda is None:
        if mmr_pool is not None:
            raise InvalidInputError("mmr_pool is what mmr_lambda chooses from; give mmr_lambda, too, or neither")
        return k
    check_diversity(mmr_lambda, "mmr_lambda")
    pool = PREFETCH_FACTOR * k if mmr_pool is None else check_count(mmr_pool, "mmr_pool")
    if pool < k:
        raise InvalidInputError(f"mmr_pool must be at least k, {k}, of which the results are chosen; got {pool}")
    return pool


def wider_pool(pool: int, chosen: int, k: int) -> int:
    """Return what `k` results are chosen from, where `chosen` were to be chosen from `pool`.

    As many times as many, but at most five, as choosing takes as long as both numbers multiplied. Of the pool as it
    was, nothing could be left out once `k` reaches its size.
    """
    return max(pool, math.ceil(k * min(5.0, max(1.0, pool / chosen))))


def check_diversity(value: float, name: str) -> float:
    """Return `value` as a float in [0, 1], or raise InvalidInputError."""
    if not 0 <= number_of(value) <= 1:
        raise InvalidInputError(
            f"{name} must be a number from 0 (as diverse as can be) to 1 (by relevance alone), got {shown(value)}"
        )
    return float(value)


def _similarity(vectors: Vectors, vector: Vectors, metric: Metric) -> Vectors:
    """Return how alike vectors (n, dimension) are to one (dimension,), larger is more alike: (n,)."""
    if metric == "euclidean":
        alike = 1.0 / (1.0 + np.linalg.norm(vectors - vector, axis=1))
    elif metric == "dot":
        alike = vectors @ vector
    else:
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vector)
        alike = vectors @ vector / np.maximum(norms, 1e-12)
    return cast(Vectors, alike)
