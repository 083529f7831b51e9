"""Several rankings of one query made into one: weighted reciprocal rank fusion."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, cast, get_args

from retrieve_rerank.checks import check_choice, check_count, is_iterable, number_of
from retrieve_rerank.errors import InvalidInputError, shown, warn_caller
from retrieve_rerank.types import Hit

Merge = Literal["id", "text"]
T = TypeVar("T")


@dataclass(frozen=True)
class Fused(Generic[T]):
    """An item of a fused ranking.

    Attributes:
        item: As it is in the first list that has it.
        score: Sum of its shares.
        ranks: Its 1-based rank in every list; None where it is missing.
    """

    item: T
    score: float
    ranks: tuple[int | None, ...]


def fuse(
    rankings: Sequence[Sequence[Hit]],
    *,
    weights: Sequence[float] | None = None,
    rrf_k: float = 60,
    k: int | None = None,
    merge: Merge = "id",
) -> list[Hit]:
    """Fuse rankings of one query by weighted reciprocal rank fusion.

    A passage's score is the sum of weight / (rrf_k + rank) over the lists that have it; rank is its 1-based position,
    and the best one where a list has it twice. A list of weight 0 counts for nothing: it brings no passage and breaks
    no tie, and only its ranks are told. Ties keep the order in which the passages first appear: the first list from top
    to bottom, then what the second adds, and so on.

    Args:
        rankings: Hits of each retriever, best first. Their scores are not looked at.
        weights: One a list, 0 or more and not all 0; None weighs all alike, by 1.
        rrf_k: How flat the shares are: 0 or more. The larger, the less the first ranks stand out.
        k: How many hits to return; None returns all.
        merge: What makes two hits one passage: the same "id", or the same "text". The passage returned is that of the
            first list that counts and has it.

    Returns:
        New hits, best first: `score` and `retrieval_score` are the fused score, `rank` and `retrieval_rank` the fused
        rank, `retrieval_ranks` the rank in every list.

    Raises:
        InvalidInputError: If an argument cannot be used.

    Example:
        >>> from retrieve_rerank import Hit, Passage, fuse
        >>> dense = [Hit(Passage(id, "text"), rank, 0.5) for rank, id in enumerate("ab", start=1)]
        >>> words = [Hit(Passage(id, "text"), rank, 7.5) for rank, id in enumerate("bc", start=1)]
        >>> [(hit.passage.id, hit.retrieval_ranks) for hit in fuse([dense, words])]
        [('b', (2, 1)), ('a', (1, None)), ('c', (None, 2))]
    """
    key = check_merge(merge)
    checked = [_hits(ranking, position) for position, ranking in enumerate(_lists(rankings))]
    fused = fuse_by(
        checked,
        lambda hit: hit.passage.id if key == "id" else hit.passage.text,
        weights=check_weights(weights, len(checked)),
        rrf_k=check_rrf_k(rrf_k),
        k=k,
    )
    return [
        Hit(
            found.item.passage,
            rank=rank,
            score=found.score,
            retrieval_rank=rank,
            retrieval_score=found.score,
            retrieval_ranks=found.ranks,
        )
        for rank, found in enumerate(fused, start=1)
    ]


def merge_of(retriever: object) -> Merge:
    """Return what makes two hits of a retriever one passage: what a hybrid one says, for its queries' hits, too."""
    return "text" if getattr(retriever, "merge", None) == "text" else "id"


def fuse_by(
    rankings: Sequence[Sequence[T]],
    key: Callable[[T], Hashable],
    *,
    weights: Sequence[float],
    rrf_k: float,
    k: int | None = None,
) -> list[Fused[T]]:
    """Fuse rankings of anything; see `fuse`. Items with equal keys are one."""
    ranks: list[dict[Hashable, int]] = []
    for ranking in rankings:
        places: dict[Hashable, int] = {}
        for rank, item in enumerate(ranking, start=1):
            places.setdefault(key(item), rank)
        ranks.append(places)
    items: dict[Hashable, T] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        if weight:
            for item in ranking:
                items.setdefault(key(item), item)
    fused = []
    for name, item in items.items():
        # fsum rounds once, at the end: the order of the lists does not make equal sums differ.
        shares = [
            weight / (rrf_k + places[name]) for places, weight in zip(ranks, weights, strict=True) if name in places
        ]
        fused.append(Fused(item, math.fsum(shares), tuple(places.get(name) for places in ranks)))
    fused.sort(key=lambda found: -found.score)
    return fused if k is None else fused[: check_count(k, "k")]


def warn_of_twins(
    searches: Iterable[Sequence[Sequence[T]]],
    key: Callable[[T], Hashable],
    text: Callable[[T], str],
    *,
    weights: Sequence[float],
) -> None:
    """Warn once if lists to be fused by their keys have equal texts, and no key that two of them share.

    Args:
        searches: For each query of one call, what `fuse_by` fuses.
        key: As in `fuse_by`.
        text: What the user reads of an item; empty texts are not compared.
        weights: As in `fuse_by`; a list of weight 0 brings nothing that could come twice.
    """
    for rankings in searches:
        counted = [ranking for ranking, weight in zip(rankings, weights, strict=True) if weight]
        if not _shared([map(key, ranking) for ranking in counted]) and _shared(
            [filter(None, map(text, ranking)) for ranking in counted]
        ):
            warn_caller(
                "the retrievers found the same texts under different ids, so these were not merged and may come more "
                'than once; give them the same ids in every retriever, or merge them by their text: merge="text"',
                UserWarning,
            )
            return


def check_weights(weights: Iterable[float] | None, count: int | None) -> tuple[float, ...]:
    """Return one weight a list, or raise InvalidInputError if they cannot be used; a `count` of None is not known."""
    if weights is None:
        return (1.0,) * (count or 0)
    given = list(weights) if is_iterable(weights) and not isinstance(weights, str) else [weights]
    for position, weight in enumerate(given):
        if not 0 <= number_of(weight) < math.inf:
            raise InvalidInputError(f"weights[{position}] must be a number >= 0, got {shown(weight)}")
    checked = tuple(map(number_of, given))
    if count is not None and len(checked) != count:
        raise InvalidInputError(f"there must be one weight a retriever: {count}, got {len(checked)}")
    if checked and not 0 < sum(checked) < math.inf:
        raise InvalidInputError(f"the weights' sum must be finite and above 0, so that something counts; got {checked}")
    return checked


def check_rrf_k(rrf_k: float) -> float:
    """Return `rrf_k` as a float of 0 or more, or raise InvalidInputError."""
    if not 0 <= (number := number_of(rrf_k)) < math.inf:
        raise InvalidInputError(f"rrf_k must be a number >= 0, got {shown(rrf_k)}; 60 is usual")
    return number


def check_merge(merge: Merge) -> Merge:
    """Return `merge`, or raise InvalidInputError."""
    return cast(Merge, check_choice(merge, get_args(Merge), "merge"))


def _shared(lists: Iterable[Iterable[Hashable]]) -> bool:
    seen: set[Hashable] = set()
    for values in lists:
        distinct = set(values)
        if not seen.isdisjoint(distinct):
            return True
        seen |= distinct
    return False


def _lists(rankings: Sequence[Sequence[Hit]]) -> Sequence[Sequence[Hit]]:
    if isinstance(rankings, (str, Hit)) or not is_iterable(rankings):
        raise InvalidInputError(f"rankings must be a list of lists of Hit, got {type(rankings).__name__}")
    return list(rankings)


def _hits(ranking: Sequence[Hit], position: int) -> list[Hit]:
    if isinstance(ranking, str) or not is_iterable(ranking):
        raise InvalidInputError(f"rankings[{position}] must be a list of Hit, got {type(ranking).__name__}")
    hits = list(ranking)
    for item in hits:
        if not isinstance(item, Hit):
            raise InvalidInputError(f"rankings[{position}] must be a list of Hit, but it holds a {type(item).__name__}")
    return hits
