"""What was measured: one record a system, one a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["helps", "hurts", "no clear difference"]

SIGNIFICANT = 0.05
TIE = 1e-9  # differences up to it are none


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds that one stage took a question.

    Attributes:
        p50: The median.
        p95: Nineteen of twenty questions took less.
        estimated: Whether some of the passages had been scored already, for another pipeline or in the cache, so that
            what they took there was counted.

    Example:
        >>> from retrieve_rerank.evaluation import Latency
        >>> Latency(p50=0.8, p95=1.25).p95
        1.25
    """

    p50: float
    p95: float
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class System:
    """One row: a first stage alone, or its candidates re-ranked.

    Attributes:
        name: Unique in an evaluation.
        baseline: Name of the first stage whose candidates this system re-ranked; None for a first stage.
        description: The `repr` of the retriever or the cross-encoder, with device and precision.
        fetch_k: How many candidates were asked for.
        run: Ids of the passages found by question, best first.
        per_query: Value by measure and question.
        means: Mean over the questions by measure.
        ceiling: For a first stage: `R@fetch_k`, the share of the relevant passages that is among the candidates, and
            for each measure the mean that a perfect re-ranking of these candidates would reach. Else empty.
        unjudged: By question, how many of the top 10 nobody judged; they count as not relevant.
        retrieve: Latency of the first stage.
        rerank: Latency of the re-ranking; None for a first stage.
        pairs: Pairs of question and passage that the cross-encoder read; 0 for a first stage.
        truncated: How many of these pairs it did not read to the end.
        scores: What `run` is by, in its order, to six digits: logits, or a first stage's scores. None for what is no
            finite number.
        cut: By question, the ranks of the passages that the cross-encoder did not read to the end; where there are any.
        total: Latency of both stages: the 95th percentile of sums is not the sum of percentiles. None for a first
            stage, and in files of versions that did not keep it.

    Example:
        >>> from retrieve_rerank.evaluation import Latency, System
        >>> system = System("BM25", None, "BM25Index()", 100, {"q1": ("p1",)}, {"RR@10": {"q1": 1.0}}, {"RR@10": 1.0},
        ...                 {"R@100": 1.0, "RR@10": 1.0}, {"q1": 0}, Latency(0.001, 0.002))
        >>> system.truncated_share is None
        True
    """

    name: str
    baseline: str | None
    description: str
    fetch_k: int
    run: Mapping[str, tuple[str, ...]]
    per_query: Mapping[str, Mapping[str, float]]
    means: Mapping[str, float]
    ceiling: Mapping[str, float]
    unjudged: Mapping[str, int]
    retrieve: Latency
    rerank: Latency | None = None
    pairs: int = 0
    truncated: int = 0
    scores: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    cut: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    total: Latency | None = None

    @property
    def truncated_share(self) -> float | None:
        """Share of the pairs that the cross-encoder did not read to the end; None where it read none."""
        return self.truncated / self.pairs if self.pairs else None

    @property
    def mean_unjudged(self) -> float:
        """Unjudged passages in the top 10, a question."""
        return sum(self.unjudged.values()) / len(self.unjudged)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one measure differs between a re-ranked system and its own first stage, question by question.

    Attributes:
        system: Name of the re-ranked system.
        baseline: Name of its first stage.
        measure: Name of the measure.
        difference: Mean of system minus baseline.
        low: Lower end of the 95 % interval of the difference (paired bootstrap, percentiles).
        high: Upper end.
        p: Two-sided p-value of a paired randomisation test.
        p_holm: The same, corrected by Holm's method for the number of systems compared on this measure.
        wins: Questions on which the system is better.
        ties: Questions on which the two are equal.
        losses: Questions on which the baseline is better.

    Example:
        >>> from retrieve_rerank.evaluation import Comparison
        >>> Comparison("mini", "BM25", "nDCG@10", 0.05, 0.02, 0.08, 0.004, 0.008, 60, 20, 20).verdict
        'helps'
    """

    system: str
    baseline: str
    measure: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    wins: int
    ties: int
    losses: int

    @property
    def verdict(self) -> Verdict:
        """`helps` or `hurts` where the corrected p-value is below 0.05, else `no clear difference`."""
        if self.p_holm >= SIGNIFICANT:
            return "no clear difference"
        return "helps" if self.difference > 0 else "hurts"
