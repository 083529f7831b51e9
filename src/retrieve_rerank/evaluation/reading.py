"""Test collections from files: the BEIR layout and TREC judgements."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.evaluation.dataset import Dataset
from retrieve_rerank.evaluation.lines import columns, known_id, lines
from retrieve_rerank.types import Passage


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
    path = Path(folder)
    if not path.is_dir():
        raise InvalidInputError(f"{path} is not a folder; expected one with corpus.jsonl, queries.jsonl and qrels")
    file = _qrels_file(path, qrels)
    passages = list(_passages(path / "corpus.jsonl"))
    texts = load_queries(path / "queries.jsonl" if queries is None else _named(path, queries))
    return Dataset(path.resolve().name, passages, texts, load_judgements(file, texts, passages))


def _records(file: Path) -> Iterator[tuple[str, str, dict[str, object]]]:
    """Yield the records of a file of JSON lines, each with its place and its id; no id twice."""
    seen: dict[str, str] = {}
    for place, line in lines(file):
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
            raise InvalidInputError(f"{place} needs an id, as `_id` or `id`, got {identifier!r}")
        if not isinstance(record.get("text"), str):
            raise InvalidInputError(f"{place} needs a `text` that is a string, got {record.get('text')!r}")
        if identifier in seen:
            raise InvalidInputError(f"{place} has id {identifier!r}, as {seen[identifier]} has")
        seen[identifier] = place
        yield place, identifier, record


def _passages(file: Path) -> Iterator[Passage]:
    for place, identifier, record in _records(file):
        text, title = str(record["text"]), record.get("title") or ""
        if not isinstance(title, str):
            raise InvalidInputError(f"{place} has a `title` that is no string: {title!r}")
        if title.strip():
            yield Passage(identifier, f"{title} {text}".strip(), {"title": title})
        else:
            yield Passage(identifier, text)


def load_queries(file: Path) -> dict[str, str]:
    """Read questions: lines with `_id` or `id`, and `text`."""
    return {identifier: str(record["text"]) for _, identifier, record in _records(file)}


def _named(folder: Path, file: str | os.PathLike[str]) -> Path:
    inside = folder / file  # an absolute path stays as it is
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
    first = True
    for place, line in lines(file):
        cells = columns(line)
        if len(cells) not in (3, 4):
            raise InvalidInputError(
                f"{place} must have 3 columns (question, passage, relevance) or 4 (question, anything, passage, "
                f"relevance), got {len(cells)}: {line[:80]!r}"
            )
        query, passage, score = cells[0], cells[-2], _whole(cells[-1])
        if "\t" not in line:  # between tabs, ids hold white space as it is
            query, passage = known_id(query, queries), known_id(passage, ids)
        if score is None and first and _is_name(cells[-1]):
            first = False  # a header
            continue
        first = False
        if score is None or not query or not passage:
            raise InvalidInputError(f"{place} must end with a whole number after two ids, got {line[:80]!r}")
        known = judgements.setdefault(query, {})
        if known.setdefault(passage, score) != score:
            raise InvalidInputError(
                f"{place} judges passage {passage!r} for question {query!r} as {score}, an earlier line as "
                f"{known[passage]}"
            )
    return judgements


def _whole(cell: str) -> int | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    # Python reads 1_000 as a number, and nothing that writes judgements writes it so.
    return int(number) if number.is_integer() and "_" not in cell else None


def _is_name(cell: str) -> bool:
    """Whether the last cell of a first line is a column's name, and no relevance that went wrong, such as nan."""
    try:
        float(cell)
    except ValueError:
        return not any(character.isdigit() for character in cell)
    return False
