"""A run of another system as a first stage: measured and re-ranked like any other."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from retrieve_rerank.checks import check_count
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.evaluation.dataset import Dataset
from retrieve_rerank.evaluation.lines import columns, known_id, lines
from retrieve_rerank.types import Hit, Passage


class StoredRun:
    r"""A first stage that returns what a run file says, for the questions of a dataset. Made by `load_run`.

    A question that the run does not hold finds nothing. Questions of the same text are told apart by their ids where
    `evaluate` or `tune` asks the run itself; inside a hybrid, and on Ray, only the text is known. Latency of this stage
    means nothing.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from retrieve_rerank.evaluation import Dataset, evaluate, load_run
        >>> dataset = Dataset("toy", {"p1": "Paris is a city.", "p2": "Bread."}, {"q1": "Paris?"}, {"q1": {"p1": 1}})
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "bm25.run"
        ...     _ = file.write_text("q1 Q0 p2 1 7.5 bm25\nq1 Q0 p1 2 3.25 bm25\n")
        ...     run = load_run(file, dataset)
        >>> evaluate({"bm25": run}, dataset)["bm25"].means["RR@10"]
        0.5
    """

    def __init__(self, name: str, hits: Mapping[str, Sequence[Hit]], queries: Mapping[str, str]) -> None:
        self._name = name
        self._hits = hits
        self._queries = queries
        self._ids: dict[str, list[str]] = {}
        for identifier, text in queries.items():
            self._ids.setdefault(text, []).append(identifier)

    def retrieve(self, query: str, k: int = 100) -> list[Hit]:
        """Return the first `k` hits that the run holds for the text of a question.

        Raises:
            InvalidInputError: If several questions have this text, and the run ranks differently for them.
        """
        check_count(k, "k")
        found = {
            identifier: self._hits[identifier] for identifier in self._ids.get(query, ()) if identifier in self._hits
        }
        if len({tuple(hit.passage.id for hit in hits) for hits in found.values()}) > 1:
            raise InvalidInputError(
                f"questions {', '.join(map(repr, found))} have the same text, and the run {self._name} ranks "
                "differently for them; evaluate the run itself, which is asked by id, or leave all but one of them out"
            )
        return list(next(iter(found.values()), ()))[:k]

    def retrieve_of(self, identifier: str, query: str, k: int = 100) -> list[Hit]:
        """Return the first `k` hits that the run holds for a question, given its id and its text."""
        if self._queries.get(identifier) != query:
            return self.retrieve(query, k)  # of a dataset with other ids
        return list(self._hits.get(identifier, ()))[: check_count(k, "k")]

    def __repr__(self) -> str:
        return f"StoredRun({self._name!r})"


def load_run(file: str | os.PathLike[str], dataset: Dataset) -> StoredRun:
    """Read a TREC run file as a first stage, to measure another system's results or to re-rank them.

    Args:
        file: Lines of question id, anything, passage id, rank, score and tag. As in trec_eval, the score decides; equal
            scores keep the order of the file. Ids may be written as `Evaluation.to_runs` does, "a b" as a%20b.
        dataset: Holds the questions' and passages' texts. Questions of the run that it lacks are left out.

    Raises:
        InvalidInputError: If the file is missing, a line cannot be used or names a passage that the dataset lacks, or
            no question of the run is in the dataset.
    """
    path = Path(file)
    passages = {passage.id: passage for passage in dataset.passages}
    found: dict[str, list[tuple[float, Passage]]] = {}
    for place, line in lines(path):
        cells = columns(line)
        if len(cells) != 6:
            raise InvalidInputError(
                f"{place} must have 6 columns (question, anything, passage, rank, score, tag), got {len(cells)}: "
                f"{line[:80]!r}"
            )
        query, passage = known_id(cells[0], dataset.queries), known_id(cells[2], passages)
        score = _number(cells[4])
        if score is None:
            raise InvalidInputError(f"{place} has a score that is no number: {cells[4]!r}")
        if query not in dataset.queries:
            continue
        if passage not in passages:
            raise InvalidInputError(f"{place} names passage {passage!r}, which dataset {dataset.name!r} lacks")
        found.setdefault(query, []).append((score, passages[passage]))
    if not found:
        raise InvalidInputError(f"{path} holds no question of dataset {dataset.name!r}; ids must match as strings")
    return StoredRun(path.name, {query: _hits(scored) for query, scored in found.items()}, dataset.queries)


def _hits(scored: Sequence[tuple[float, Passage]]) -> list[Hit]:
    ordered = sorted(scored, key=lambda pair: -pair[0])
    return [
        Hit(passage, rank=rank, score=score, retrieval_rank=rank, retrieval_score=score)
        for rank, (score, passage) in enumerate(ordered, start=1)
    ]


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return None if math.isnan(number) else number
