"""The answer, and everything that it rests on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from retrieve_rerank import __version__
from retrieve_rerank._files import write_text
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.evaluation import exporting, presenting
from retrieve_rerank.evaluation.results import Comparison, System

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from retrieve_rerank.evaluation.tuned import Tuning

FORMAT = 1  # of the JSON file


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


@dataclass(frozen=True, slots=True, repr=False)
class Evaluation:
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

    @property
    def answer(self) -> str:
        """One sentence: whether re-ranking helps on this data, by how much, and at what cost."""
        return presenting.answer(self)

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

    def __repr__(self) -> str:
        return presenting.short(self)

    def _repr_html_(self) -> str:
        return presenting.html(self)

    def to_markdown(self) -> str:
        """Return the answer, the table and the notes as Markdown."""
        return presenting.markdown(self)

    def to_html(self, path: str | os.PathLike[str], tuning: Tuning | None = None) -> None:
        """Write a report as one HTML file that loads nothing from outside.

        The answer, the table (sorted by a click), quality against latency, what re-ranking changes, how deep to
        re-rank, the questions that gained and lost most with both rankings, scores, truncation, machine and versions.

        Args:
            path: The file.
            tuning: What `tune` found on the same data: the setting to paste, and what it was chosen from.
        """
        from retrieve_rerank.evaluation.report.page import evaluation_page  # only who looks pays for it

        write_text(evaluation_page(self, tuning), path, "the report")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw quality against seconds a question with matplotlib: intervals, ceilings, and lines to p95.

        Systems of about the same latency are drawn side by side.

        Args:
            ax: Where; None takes a new figure.

        Returns:
            The axes that were drawn on.

        Raises:
            MissingDependencyError: If matplotlib is not installed.
        """
        from retrieve_rerank.evaluation.plotting import plot_evaluation

        return plot_evaluation(self, ax)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything, values per question included, as one JSON object, in UTF-8; `from_json` reads it."""
        exporting.write_json({"format": FORMAT, "answer": self.answer, **asdict(self)}, Path(path), "the evaluation")

    @staticmethod
    def from_json(path: str | os.PathLike[str]) -> Evaluation:
        """Read what `to_json` wrote.

        Raises:
            InvalidInputError: If the file is missing, is something else, or is of another version's format.
        """
        from retrieve_rerank.evaluation.loading import read_evaluation  # which imports this module

        return read_evaluation(Path(path))

    def to_runs(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write TREC run files, one a system, and `qrels.txt`; return the paths of the runs, in the systems' order.

        `ir_measures FOLDER/qrels.txt RUN nDCG@10` computes the same numbers from them. The folder is made if missing.
        TREC files are columns between white space: white space and `%` in ids are written as in URLs (`%20`).
        """
        return exporting.write_runs(self.judgements, self.systems, Path(folder))
