"""What flows through the two stages, and what each stage must be able to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from retrieve_rerank.errors import InvalidInputError, shown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Self

Scale = Literal["logits", "probabilities"]  # of a cross-encoder's scores
Metric = Literal["cosine", "dot", "euclidean"]


@dataclass(frozen=True, slots=True)
class Passage:
    """A text with an id and metadata: what is stored and what is found.

    Attributes:
        id: Not empty; unique in a collection.
        text: What the models read. May be empty.
        metadata: Facts about the passage, by name. Belongs to the caller and is never modified.

    Raises:
        InvalidInputError: If the id is not a non-empty string or the text is not a string.

    Example:
        >>> Passage("42", "Paris is the capital of France.", {"source": "atlas"}).text
        'Paris is the capital of France.'
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise InvalidInputError(f"a passage's id must be a non-empty string, got {shown(self.id)}")
        for name, kind, a_kind in (("text", str, "string"), ("metadata", Mapping, "mapping")):
            if not isinstance(value := getattr(self, name), kind):
                raise InvalidInputError(
                    f"the {name} of passage {shown(self.id)} must be a {a_kind}, got {type(value).__name__}"
                )


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage with everything known about how it was found.

    Attributes:
        passage: What was found.
        rank: 1-based, final.
        score: Relevance in [0, 1] once re-ranked, else the retrieval score; NaN where there is neither, as for a text
            by itself that a time budget left out. `rank` is by it, where there is no `combined_score`.
        retrieval_rank: 1-based rank in the first stage, if there was one.
        retrieval_score: Similarity in the first stage, larger is better.
        logit: The cross-encoder's raw output; None where it did not score this passage.
        window: Character span of the text that won, where the passage was scored in windows.
        truncated: Whether part of the text was not seen by the cross-encoder.
        retrieval_ranks: Where several retrievers were fused: the 1-based rank in the list of each, in their order; None
            where a retriever did not find the passage. Else empty.
        index: 0-based position in what was given to be ranked: in `rank`'s passages, or in a search's `candidates`;
            None for what a first stage found. It says where a hit was, not what it is, and is not compared.
        combined_score: What `rank` is by where both stages voted, with a `rerank_weight` below 1: the weighted mean of
            the logit and the retrieval score, each standardised over the query's candidates. Else None.

    Raises:
        InvalidInputError: If the passage is none, or its rank in the first stage no whole number.

    Example:
        >>> Hit(Passage("a", "text"), rank=1, score=0.9).retrieval_rank is None
        True
    """

    passage: Passage
    rank: int
    score: float
    retrieval_rank: int | None = None
    retrieval_score: float | None = None
    logit: float | None = None
    window: tuple[int, int] | None = None
    truncated: bool = False
    retrieval_ranks: tuple[int | None, ...] = ()
    index: int | None = field(default=None, compare=False)
    combined_score: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.passage, Passage):
            raise InvalidInputError(f"a hit's passage must be a Passage, got {shown(self.passage)}")
        if self.retrieval_rank is not None and not isinstance(self.retrieval_rank, (int, Integral)):
            raise InvalidInputError(f"a hit's retrieval_rank must be a whole number, got {shown(self.retrieval_rank)}")


@dataclass(frozen=True, slots=True, repr=False)
class AddReport:
    """What became of the passages of one `add` or `replace_source`.

    Attributes:
        added: Passages whose id was new.
        updated: Passages whose text or metadata replaced what was stored.
        unchanged: Passages that were stored already, word for word; they are not encoded again.
        removed: Passages that the source no longer has.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0

    def __add__(self, other: AddReport) -> AddReport:
        return AddReport(
            self.added + other.added,
            self.updated + other.updated,
            self.unchanged + other.unchanged,
            self.removed + other.removed,
        )

    def __repr__(self) -> str:
        removed = f", removed={self.removed}" if self.removed else ""
        return f"AddReport(added={self.added}, updated={self.updated}, unchanged={self.unchanged}{removed})"


class Closeable:
    """What is closed at the end of a `with` block."""

    def close(self) -> None:
        """Release what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@runtime_checkable
class Encoder(Protocol):
    """Turns texts into vectors: our `BiEncoder`, or anything of the same shape."""

    @property
    def dimension(self) -> int:
        """Length of every vector."""

    @property
    def metric(self) -> Metric:
        """What the vectors are compared by."""

    @property
    def fingerprint(self) -> Mapping[str, str | int | float | bool]:
        """Flat facts that tell one encoder's vectors from another's."""

    def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return an array (len(texts), dimension)."""

    def encode_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return an array (len(texts), dimension)."""


@runtime_checkable
class Scorer(Protocol):
    """Scores passages against a query: our `CrossEncoder`, or anything of the same shape."""

    def score(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return an array (len(texts),) of logits; larger is more relevant."""


@runtime_checkable
class Retriever(Protocol):
    """A first stage: finds candidates for a query, best first."""

    def retrieve(self, query: str, k: int) -> list[Hit]:
        """Return at most `k` hits, whose `retrieval_rank` counts from 1."""
