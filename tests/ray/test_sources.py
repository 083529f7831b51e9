"""Passages come from iterables, Datasets and files, and are the same passages."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from retrieve_rerank import InvalidInputError, Passage, RetrieveRerankError
from tests.ray.stubs import Traced, passages, vector

pytest.importorskip("ray.data")

import pyarrow as pa
import pyarrow.parquet
import ray

from retrieve_rerank.ray.encoding import Passages, blocks_of, encode, to_dataset, to_passages

pytestmark = pytest.mark.usefixtures("cluster")

GIVEN = [*passages(5), Passage("odd", "a\nb", {"big": 2**70, "nan": float("inf"), "é": 0.1})]


def read(given: Passages) -> list[Passage]:
    found = []
    for block in blocks_of(to_dataset(given)):
        some, failures = to_passages(block)
        assert failures == {}
        found += some
    return sorted(found, key=lambda passage: passage.id)


def expected() -> list[Passage]:
    return sorted(GIVEN, key=lambda passage: passage.id)


def write_lines(file: Path, some: list[Passage]) -> None:
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "wt", encoding="utf-8") as lines:
        for passage in some:
            lines.write(json.dumps({"id": passage.id, "text": passage.text, "metadata": passage.metadata}) + "\n")


def test_an_iterable_comes_through_word_for_word() -> None:
    assert read(iter(GIVEN)) == expected()


def test_files_of_json_lines_come_through_word_for_word(tmp_path: Path) -> None:
    """Metadata with other keys in each line are no common structure, which a reader of tables would make of them."""
    write_lines(tmp_path / "a.jsonl", GIVEN[:2])
    write_lines(tmp_path / "b.jsonl.gz", GIVEN[2:])
    assert read(tmp_path) == expected()
    assert read(str(tmp_path / "a.jsonl")) == sorted(GIVEN[:2], key=lambda passage: passage.id)


def test_each_parquet_file_is_read_by_its_own_columns(tmp_path: Path) -> None:
    """A reader that looks at some of them drops what only others have: here the metadata."""
    for number in range(20):
        columns = {"id": [f"{number:02d}"], "text": ["a"], **({"metadata": ['{"n": 1}']} if number == 19 else {})}
        pyarrow.parquet.write_table(pa.table(columns), tmp_path / f"{number:02d}.parquet")
    assert [passage.metadata for passage in read(tmp_path)] == [{}] * 19 + [{"n": 1}]
    (tmp_path / "20.parquet").write_bytes(b"no parquet")
    with pytest.raises(RetrieveRerankError, match=r"20\.parquet cannot be read"):
        read(tmp_path)


LINE = b'{"id": "1", "text": "bread"}\n'


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl.gz", gzip.compress(LINE * 5000)[:-30], r"a\.jsonl\.gz cannot be read after line \d+"),
        ("a.jsonl", LINE + b'{"id": "2", "text": "caf\xe9"}\n', r"a\.jsonl cannot be read after line \d+"),
        ("a.jsonl", LINE + b'\n{"id": 2, "text": "b"}\n', r"a\.jsonl, line 3: expected .* got 2"),
    ],
    ids=["half of a gzip", "not UTF-8", "a bad line"],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RetrieveRerankError, match=says):
        read(tmp_path)


def test_rows_without_ids_are_told_apart() -> None:
    _, failures = to_passages(pa.table({"id": [None, None, ""], "text": ["a", "b", "c"]}))
    assert list(failures) == ["None ('a')", "None ('b')", "'' ('c')"]


def test_parquet_may_hold_metadata_as_json_or_as_a_structure(tmp_path: Path) -> None:
    columns = {"id": ["1", "2", "3"], "text": ["a", "b", "c"], "other": [[0.5], [0.5], [0.5]]}
    structures = [{"year": 1, "tags": ["x"]}, {"year": None, "tags": None}, None]
    pyarrow.parquet.write_table(pa.table({**columns, "metadata": structures}), tmp_path / "structure.parquet")
    assert [p.metadata for p in read(tmp_path / "structure.parquet")] == [{"year": 1, "tags": ["x"]}, {}, {}]
    written = ['{"year": 1, "tags": null}', "{}", None]
    pyarrow.parquet.write_table(pa.table({**columns, "metadata": written}), tmp_path / "json.parquet")
    assert [p.metadata for p in read(tmp_path / "json.parquet")] == [{"year": 1, "tags": None}, {}, {}]


def test_bad_rows_are_named_and_others_kept() -> None:
    table = pa.table({"id": ["1", "2"], "text": ["a", "b"], "metadata": ["[1]", "{}"]})
    some, failures = to_passages(table)
    assert [passage.id for passage in some] == ["2"]
    assert "JSON object" in failures["1"]
    with pytest.raises(InvalidInputError, match="no column 'text'"):
        to_passages(pa.table({"id": ["1"], "body": ["a"]}))


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="there is no"):
        to_dataset(tmp_path / "none.jsonl")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InvalidInputError, match="expected files that end in"):
        to_dataset(tmp_path)
    with pytest.raises(InvalidInputError, match="iterable of Passage"):
        to_dataset(Passage("1", "a"))
    dataset = ray.data.from_items([{"id": "1"}])
    assert to_dataset(dataset) is dataset


def test_encoded_passages_are_written_and_read_as_parquet_by_ray(tmp_path: Path) -> None:
    (tmp_path / "trace").mkdir()
    encoder = Traced(tmp_path / "trace")
    encode(GIVEN, encoder, concurrency=1).write_parquet(str(tmp_path / "vectors"))
    rows = ray.data.read_parquet(str(tmp_path / "vectors")).take_all()
    assert {row["id"]: list(row["vector"]) for row in rows} == {
        passage.id: pytest.approx(vector(passage.text)) for passage in GIVEN
    }
    assert read(tmp_path / "vectors") == expected()
    with pytest.raises(Exception, match="passages 'p' to 'p' could not be encoded: RuntimeError: the model failed"):
        encode([Passage("p", "stop")], encoder, concurrency=1).take_all()
