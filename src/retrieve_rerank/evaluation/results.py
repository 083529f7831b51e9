"""What an evaluation found, and its files: one record a system, one a comparison, and the whole of them.

This is data. What shows it, in words, as a page or drawn, stands above it and is loaded at its first use: see
`Presented`.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol
from urllib.parse import quote

from retrieve_rerank import __version__
from retrieve_rerank._files import check_path, write_text
from retrieve_rerank.errors import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Verdict = Literal["helps", "hurts", "no clear difference"]

SIGNIFICANT = 0.05
TIE = 1e-9  # differences up to it are none
_FORMAT = 1  # of the JSON file


class Presenter(Protocol):
    """What shows an `Evaluation` or a `Tuning`."""

    def answer(self, result: Any) -> str: ...
    def short(self, result: Any) -> str: ...
    def markdown(self, result: Any) -> str: ...
    def fragment(self, result: Any) -> str: ...
    def page(self, result: Any, tuning: Any = None) -> str: ...
    def draw(self, result: Any, ax: Axes | None) -> Axes: ...


class Presented:
    """What an `Evaluation` and a `Tuning` show of themselves.

    Attributes:
        presenter: Loads what shows them. The package sets it, so that nothing here imports what stands above.
    """

    __slots__ = ()

    presenter: ClassVar[Callable[[], Presenter]]

    @property
    def answer(self) -> str:
        """One sentence: what to do, by how much it helps, and at what cost."""
        return type(self).presenter().answer(self)

    def __repr__(self) -> str:
        return type(self).presenter().short(self)

    def _repr_html_(self) -> str:
        return type(self).presenter().fragment(self)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write a report as one HTML file that loads nothing from outside."""
        write_text(type(self).presenter().page(self), path, "the report")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw quality against seconds a question with matplotlib; what would cover each other stands side by side.

        Args:
            ax: Where; None takes a new figure.

        Returns:
            The axes that were drawn on.

        Raises:
            MissingDependencyError: If matplotlib is not installed.
        """
        return type(self).presenter().draw(self, ax)


def write_json(content: Mapping[str, object], path: str | os.PathLike[str], what: str) -> None:
    """Write one JSON object, a line a member, in UTF-8."""
    members = (f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in content.items())
    write_text("{\n" + ",\n".join(members) + "\n}\n", path, what)


def machine() -> dict[str, str | int]:
    """Return what the latencies were measured on and with."""
    packages = ("ir-measures", "numpy", "sentence-transformers", "torch")
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count() or 0,
        "system": platform.system(),
        "python": platform.python_version(),
        "retrieve-rerank": __version__,
        **{name: version(name) for name in packages},
    }


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
        scores: Scores of `run`, in its order, to six digits: logits, or a first stage's scores. None for what is no
            finite number.
        cut: By question, the ranks of the passages that the cross-encoder did not read to the end; where there are any.
        total: Latency of both stages: the 95th percentile of sums is not the sum of percentiles. None for a first
            stage, and in files of versions that did not keep it.
        rerank_weight: How much the cross-encoder counts in the order of `run`; None for a first stage.
        by_weight: Mean of the first measure, and both ends of its 95 % interval, at each `rerank_weight` from 0 to 1
            by tenths, from the same scores; of a first stage none.

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
    rerank_weight: float | None = None
    by_weight: Mapping[float, tuple[float, float, float]] = field(default_factory=dict)

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


@dataclass(frozen=True, slots=True, repr=False)
class Evaluation(Presented):
    """What `evaluate` found: results per question first, then means, differences and the answer.

    Indexing by name gives a row: `evaluation["my pipeline"].means["nDCG@10"]`.

    Attributes:
        dataset: Name of the dataset.
        weak: How its judgements were made, where no person judged.
        measures: Names of the measures; the first one decides the answer.
        judgements: Relevance by question and passage, of the questions that were evaluated.
        systems: The rows: first stages, each before what re-ranks it.
        comparisons: Each re-ranked system against its own first stage, on each measure.
        notes: What the numbers do not say by themselves.
        passages: Number of passages of the dataset.
        resamples: Of the bootstrap and the randomisation test.
        seed: Of both.
        machine: Processor, cores, versions.
        queries: Text by question, of the questions that were evaluated.
        texts: The starts of passages by id, of those that `to_html` shows.

    Example:
        >>> from retrieve_rerank import Hit, Passage
        >>> from retrieve_rerank.evaluation import Dataset, evaluate
        >>> class Shelf:
        ...     def retrieve(self, query, k):
        ...         return [Hit(Passage("p1", "Paris is a city."), rank=1, score=1.0)]
        >>> dataset = Dataset("toy", {"p1": "Paris is a city."}, {"q1": "what is Paris?"}, {"q1": {"p1": 1}})
        >>> evaluation = evaluate({"shelf": Shelf()}, dataset)
        >>> evaluation
        <Evaluation of 1 system on 'toy', 1 question: nothing was re-ranked>
        >>> print(evaluation.answer)
        Nothing was re-ranked on toy; the best first stage is 'shelf' with nDCG@10 1.000.
    """

    dataset: str
    weak: str | None
    measures: tuple[str, ...]
    judgements: Mapping[str, Mapping[str, int]]
    systems: tuple[System, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    passages: int
    resamples: int
    seed: int
    machine: Mapping[str, str | int] = field(default_factory=machine)
    queries: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> System:
        for system in self.systems:
            if system.name == name:
                return system
        raise KeyError(f"no system is called {name!r}; there are {[system.name for system in self.systems]}")

    def comparison(self, name: str, measure: str | None = None) -> Comparison:
        """Return how a re-ranked system differs from its first stage on a measure; None takes the first measure.

        Raises:
            InvalidInputError: If there is no such comparison.
        """
        wanted = self.measures[0] if measure is None else measure
        for comparison in self.comparisons:
            if (comparison.system, comparison.measure) == (name, wanted):
                return comparison
        there = sorted({comparison.system for comparison in self.comparisons})
        raise InvalidInputError(
            f"{name!r} is not compared on {wanted!r}; compared are {there} on {list(self.measures)}"
        )

    def to_markdown(self) -> str:
        """Return the answer, the table and the notes as Markdown."""
        return type(self).presenter().markdown(self)

    def to_html(self, path: str | os.PathLike[str], tuning: Presented | None = None) -> None:
        """Write a report as one HTML file that loads nothing from outside.

        The answer, the table (sorted by a click), quality against latency, what re-ranking changes, how deep to
        re-rank, the questions that gained and lost most with both rankings, truncation, machine and versions.

        Args:
            path: The file.
            tuning: What `tune` found on the same data: the setting to paste, and what it was chosen from.
        """
        write_text(type(self).presenter().page(self, tuning), path, "the report")

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything, values per question included, as one JSON object, in UTF-8; `from_json` reads it."""
        write_json({"format": _FORMAT, "answer": self.answer, **asdict(self)}, path, "the evaluation")

    @staticmethod
    def from_json(path: str | os.PathLike[str]) -> Evaluation:
        """Read what `to_json` wrote.

        Raises:
            InvalidInputError: If the file is missing, is something else, or is of another version's format.
        """
        return _read_evaluation(check_path(path, "an evaluation's file"))

    def to_runs(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write TREC run files, one a system, and `qrels.txt`; return the paths of the runs, in the systems' order.

        `ir_measures FOLDER/qrels.txt RUN nDCG@10` computes the same numbers from them. The folder is made if missing.
        TREC files are columns between white space: white space and `%` in ids are written as in URLs (`%20`).
        """
        return _write_runs(self.judgements, self.systems, check_path(folder, "the folder of runs"))


def _read_evaluation(path: Path) -> Evaluation:
    from pydantic import TypeAdapter, ValidationError  # only who reads pays for it

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} cannot be read as an evaluation: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        found = str(content.get("format"))[:40] if isinstance(content, dict) else None
        raise InvalidInputError(
            f"{path} is not an evaluation that this version reads (format {found}, expected {_FORMAT}); write it anew "
            "with Evaluation.to_json"
        )
    if "systems" not in content:
        raise InvalidInputError(
            f"{path} is no evaluation: it has no systems. Evaluation.to_json (retrieve-rerank evaluate --save) writes "
            "one; a setting that was tuned is another file"
        )
    try:
        evaluation = TypeAdapter(Evaluation).validate_python(content)
        _check(evaluation)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidInputError(f"{path} is not a whole evaluation: {place}: {first['msg']}") from error
    except (LookupError, ValueError) as error:
        raise InvalidInputError(f"{path} is not a whole evaluation: {type(error).__name__} {error}") from error
    return evaluation


def _check(evaluation: Evaluation) -> None:
    """Raise where one part names what another lacks: now, and not when a report is half written."""
    questions = set(evaluation.judgements)
    for system in evaluation.systems:
        measured = [system.per_query[name] for name in evaluation.measures]  # some have no value for some questions
        if set(system.run) != questions or any(not values.keys() <= questions for values in measured):
            raise ValueError(f"system {system.name!r} has other questions than the judgements")
        if system.baseline is not None:
            found = evaluation[system.baseline].run
            if any(set(ids) != set(found[query]) for query, ids in system.run.items()):
                raise ValueError(f"system {system.name!r} ranks other passages than its first stage")
            for measure in evaluation.measures:
                evaluation.comparison(system.name, measure)
    evaluation.to_markdown()


def _write_runs(judgements: Mapping[str, Mapping[str, int]], systems: Sequence[System], folder: Path) -> list[Path]:
    """Write `qrels.txt` and a run a system; return the runs' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    qrels = [
        f"{_column(query)} 0 {_column(passage)} {max(relevance, -1)}"  # as they were measured
        for query, scores in judgements.items()
        for passage, relevance in scores.items()
    ]
    _write_lines(qrels, folder / "qrels.txt")
    paths: list[Path] = []
    for system in systems:
        tag = _free_name(system.name, {path.stem.casefold() for path in paths})
        # The place from the end is the score: equal scores cannot reorder what was ranked, and a measure that reads the
        # scores themselves takes a passage of a score above 0 for one that was found.
        lines = [
            f"{_column(query)} Q0 {_column(passage)} {rank} {len(ids) - rank + 1} {tag}"
            for query, ids in system.run.items()
            for rank, passage in enumerate(ids, start=1)
        ]
        paths.append(folder / f"{tag}.run")
        _write_lines(lines, paths[-1])
    return paths


def _column(identifier: str) -> str:
    """Return an id that holds no white space."""
    return "".join(quote(mark) if mark.isspace() or mark == "%" else mark for mark in identifier)


def _free_name(name: str, taken: set[str]) -> str:
    """Return a file name, safe on every system, that is not taken."""
    tag = free = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "system"
    number = 1
    while free.casefold() in taken:
        number += 1
        free = f"{tag}-{number}"
    return free


def _write_lines(lines: Sequence[str], path: Path) -> None:
    write_text("".join(f"{line}\n" for line in lines), path, "the run")
