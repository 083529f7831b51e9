"""Test collections and rankings from files: the BEIR layout, TREC judgements and TREC runs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from retrieve_rerank._files import check_path
from retrieve_rerank.checks import check_count
from retrieve_rerank.errors import InvalidInputError, shown
from retrieve_rerank.evaluation.dataset import Dataset, check_dataset
from retrieve_rerank.types import Hit, Passage


def load_dataset(
    folder: str | os.PathLike[str],
    *,
    queries: str | os.PathLike[str] | None = None,
    qrels: str | os.PathLike[str] | None = None,
) -> Dataset:
    r"""Read a test collection in the BEIR layout.

    Args:
        folder: Holds `corpus.jsonl` (`_id` or `id`, `text`, perhaps `title`), `queries.jsonl` (`_id` or `id`, `text`)
            and judgements. UTF-8; records end at "\n" only, so texts may hold any other line break.
        queries: The file of questions, in the folder or anywhere, instead of `queries.jsonl`.
        qrels: The file of judgements, in the folder or anywhere. None takes `qrels.tsv`, else `qrels/test.tsv`, else
            the only `qrels*.tsv` there is. Three columns (question, passage, relevance; BEIR) or four (question,
            anything, passage, relevance; TREC), with a header or without. Without tabs between the columns, ids may be
            written as `Evaluation.to_runs` does, "a b" as a%20b.

    Returns:
        The dataset, named as the folder. A title stands in front of its text, with a space between, as BEIR has it,
        and is in the metadata.

    Raises:
        InvalidInputError: If a file is missing or a line cannot be used; it names the file and the line.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from retrieve_rerank.evaluation import load_dataset
        >>> with TemporaryDirectory() as name:
        ...     folder = Path(name) / "toy"
        ...     folder.mkdir()
        ...     _ = (folder / "corpus.jsonl").write_text('{"_id": "p1", "title": "Paris", "text": "A city."}\n')
        ...     _ = (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "what is Paris?"}\n')
        ...     _ = (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tp1\t1\n")
        ...     dataset = load_dataset(folder)
        >>> dataset.passages[0].text, dataset.judgements
        ('Paris A city.', {'q1': {'p1': 1}})
    """
    path = check_path(folder, "the folder of a dataset")
    if not path.is_dir():
        raise InvalidInputError(f"{path} is not a folder; expected one with corpus.jsonl, queries.jsonl and qrels")
    file = _qrels_file(path, qrels)
    passages = list(_passages(path / "corpus.jsonl"))
    texts = load_queries(path / "queries.jsonl" if queries is None else _named(path, queries))
    return Dataset(path.resolve().name, passages, texts, load_judgements(file, texts, passages))


def _records(file: Path) -> Iterator[tuple[str, str, dict[str, object]]]:
    """Yield the records of a file of JSON lines, each with its place and its id; no id twice."""
    seen: dict[str, str] = {}
    for place, line in _lines(file):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{place} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise InvalidInputError(f"{place} must be a JSON object, got {line[:80]!r}")
        identifier = record.get("_id", record.get("id"))
        if isinstance(identifier, int) and not isinstance(identifier, bool):
            identifier = str(identifier)
        if not isinstance(identifier, str) or not identifier:
            raise InvalidInputError(f"{place} needs an id, as `_id` or `id`, got {shown(identifier)}")
        if not isinstance(record.get("text"), str):
            raise InvalidInputError(f"{place} needs a `text` that is a string, got {shown(record.get('text'))}")
        if identifier in seen:
            raise InvalidInputError(f"{place} has id {identifier!r}, as {seen[identifier]} has")
        seen[identifier] = place
        yield place, identifier, record


def _passages(file: Path) -> Iterator[Passage]:
    for place, identifier, record in _records(file):
        text, title = str(record["text"]), record.get("title") or ""
        if not isinstance(title, str):
            raise InvalidInputError(f"{place} has a `title` that is no string: {shown(title)}")
        if title.strip():
            yield Passage(identifier, f"{title} {text}".strip(), {"title": title})
        else:
            yield Passage(identifier, text)


def load_queries(file: Path) -> dict[str, str]:
    """Read questions: lines with `_id` or `id`, and `text`."""
    return {identifier: str(record["text"]) for _, identifier, record in _records(file)}


def _named(folder: Path, file: str | os.PathLike[str]) -> Path:
    inside = check_path(folder / check_path(file, "a file of a dataset"), "a file of a dataset")  # may be absolute
    return inside if inside.is_file() else Path(file)


def _qrels_file(folder: Path, qrels: str | os.PathLike[str] | None) -> Path:
    if qrels is not None:
        return _named(folder, qrels)
    for usual in (folder / "qrels.tsv", folder / "qrels" / "test.tsv"):
        if usual.is_file():
            return usual
    if not (folder / "corpus.jsonl").is_file():
        raise InvalidInputError(
            f"{folder} has no corpus.jsonl, so it is no test collection in the BEIR layout. For a folder of your own: "
            "retrieve-rerank index, then evaluate --in; or sample_questions"
        )
    found = sorted({*folder.glob("qrels*.tsv"), *folder.glob("qrels/*.tsv")})
    if len(found) != 1:
        names = ", ".join(str(file.relative_to(folder)) for file in found) or "none"
        raise InvalidInputError(
            f"{folder} needs judgements: expected qrels.tsv, qrels/test.tsv or a single qrels*.tsv, found {names}. "
            "Say which file with qrels=... (--qrels)"
        )
    return found[0]


def load_judgements(file: Path, queries: Container[str], passages: Iterable[Passage]) -> dict[str, dict[str, int]]:
    """Read judgements of questions and passages in the BEIR or the TREC layout, as `load_dataset` does."""
    ids = {passage.id for passage in passages}
    judgements: dict[str, dict[str, int]] = {}
    for number, (place, line) in enumerate(_lines(file)):
        cells = _columns(line)
        if len(cells) not in (3, 4):
            raise InvalidInputError(
                f"{place} must have 3 columns (question, passage, relevance) or 4 (question, anything, passage, "
                f"relevance), got {len(cells)}: {line[:80]!r}"
            )
        query, passage, relevance = cells[0], cells[-2], _number(cells[-1])
        if "\t" not in line:  # between tabs, ids hold white space as it is
            query, passage = _known_id(query, queries), _known_id(passage, ids)
        if relevance is None and number == 0 and not any(mark.isdigit() for mark in cells[-1]):
            continue  # a header
        if relevance is None or not relevance.is_integer() or not query or not passage:
            raise InvalidInputError(f"{place} must end with a whole number after two ids, got {line[:80]!r}")
        score = int(relevance)
        known = judgements.setdefault(query, {})
        if known.setdefault(passage, score) != score:
            raise InvalidInputError(
                f"{place} judges passage {passage!r} for question {query!r} as {score}, an earlier line as "
                f"{known[passage]}"
            )
    return judgements


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
        k = check_count(k, "k")
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
    path = check_path(file, "the file of a run")
    check_dataset(dataset)
    passages = {passage.id: passage for passage in dataset.passages}
    found: dict[str, list[tuple[float, Passage]]] = {}
    for place, line in _lines(path):
        cells = _columns(line)
        if len(cells) != 6:
            raise InvalidInputError(
                f"{place} must have 6 columns (question, anything, passage, rank, score, tag), got {len(cells)}: "
                f"{line[:80]!r}"
            )
        query, passage = _known_id(cells[0], dataset.queries), _known_id(cells[2], passages)
        score = _number(cells[4])
        if score is None or math.isnan(score):
            raise InvalidInputError(f"{place} has a score that is no number: {cells[4]!r}")
        if query not in dataset.queries:
            continue
        if passage not in passages:
            raise InvalidInputError(f"{place} names passage {passage!r}, which dataset {dataset.name!r} lacks")
        found.setdefault(query, []).append((score, passages[passage]))
    if not found:
        raise InvalidInputError(f"{path} holds no question of dataset {dataset.name!r}; ids must match as strings")
    hits = {}
    for query, scored in found.items():
        scored.sort(key=lambda pair: -pair[0])
        hits[query] = [
            Hit(passage, rank=rank, score=score, retrieval_rank=rank, retrieval_score=score)
            for rank, (score, passage) in enumerate(scored, start=1)
        ]
    return StoredRun(path.name, hits, dataset.queries)


def _number(cell: str) -> float | None:
    """Return the number in a cell. Python reads 1_000 as one, and nothing that writes such files writes it so."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines of a UTF-8 file that are not blank, each with its place.

    Raises:
        InvalidInputError: If the file is missing or a line is not UTF-8.
    """
    if not file.is_file():
        raise InvalidInputError(f"{file} is missing")
    # "\n" only: a text may hold U+2028 and the like. A file from a spreadsheet begins with a BOM.
    with file.open("rb") as raw:
        for number, line in enumerate(raw, start=1):
            place = f"{file}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InvalidInputError(f"{place} is not UTF-8: {error}") from error
            if text.strip():
                yield place, text.rstrip("\r\n")


def _columns(line: str) -> list[str]:
    """Return the cells of a line. Between tabs, cells may hold spaces; else any white space ends a cell, as in TREC."""
    return [cell.strip() for cell in line.split("\t")] if "\t" in line else line.split()


def _known_id(identifier: str, ids: Container[str]) -> str:
    """Return an id of a TREC file as the dataset has it: in it, `to_runs` writes white space and % as URLs do."""
    plain = unquote(identifier)
    return plain if plain in ids else identifier
