"""Vectors in Parquet: written once, loaded without an encoder's work, and of every id the latest row."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieve_rerank import ChromaIndex, IndexMismatchError, InvalidInputError, Passage
from tests.ray.stubs import Traced, encoded, passages
from tests.ray.test_index import assert_same

pytest.importorskip("ray.data")

import pyarrow as pa
import pyarrow.parquet

from retrieve_rerank.ray import encode, load_parquet, write_parquet

pytestmark = pytest.mark.usefixtures("cluster")


def test_a_folder_becomes_the_index_that_adding_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "traces").mkdir()
    encoder = Traced(tmp_path / "traces")
    folder = tmp_path / "vectors"
    options = {"batch_size": 10, "concurrency": 2}
    report = write_parquet(passages(40), encoder, folder, **options)
    assert (report.added, report.updated, report.unchanged) == (40, 0, 0)
    changed = [
        *passages(30),
        Passage("p3", "for now"),
        *passages(10, start=30),
        Passage("p1", "another"),
        Passage("p3", "another"),
        *passages(5, start=40),
    ]
    report = write_parquet(changed, encoder, folder, **options)
    assert report.added == 5
    assert encoded(tmp_path / "traces") <= 40 + 5 + 4  # what is new, and at most both texts of both ids
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]

    before = encoded(tmp_path / "traces")
    alone = ChromaIndex(Traced(tmp_path))
    alone.add(changed)
    with ChromaIndex(encoder, path=tmp_path / "index") as index:
        assert load_parquet(folder, index, batch_size=7).added == 45
        assert_same(alone, index)
        assert load_parquet(folder, index).unchanged == 45
        with ChromaIndex(encoder, path=tmp_path / "another") as other:
            written = []
            write = other.collection.write
            monkeypatch.setattr(
                other.collection, "write", lambda records, v: (written.append(len(records)), write(records, v))
            )
            monkeypatch.setattr(type(other.collection), "max_batch", 4)
            assert load_parquet(folder, other, batch_size=10**6).added == 45
            assert max(written) <= 4  # as `add` does: Chroma takes no more
    assert encoded(tmp_path / "traces") == before
    table = pyarrow.parquet.read_table(next(folder.glob("*.parquet")))
    assert table.column_names == ["id", "text", "metadata", "vector", "digest"]
    assert table["vector"].type == pa.list_(pa.float32(), 16)

    other = Traced(tmp_path, name="other")
    with pytest.raises(IndexMismatchError, match="made by another encoder"):
        load_parquet(folder, ChromaIndex(other))
    with pytest.raises(IndexMismatchError, match="made by another encoder"):
        write_parquet(passages(1), other, folder)


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    encoder = Traced(tmp_path)
    with pytest.raises(InvalidInputError, match="no files of `write_parquet`"):
        load_parquet(tmp_path, ChromaIndex(encoder))
    pyarrow.parquet.write_table(pa.table({"id": ["1"]}), tmp_path / "mine.parquet")
    with pytest.raises(InvalidInputError, match="was not written by `write_parquet`"):
        write_parquet(passages(1), encoder, tmp_path)


def test_encoding_is_a_step_of_a_pipeline(tmp_path: Path) -> None:
    encoded_rows = encode(passages(20), Traced(tmp_path), batch_size=5, concurrency=1)
    rows = encoded_rows.select_columns(["id", "vector"]).take_all()
    assert {row["id"]: len(row["vector"]) for row in rows} == {f"p{number}": 16 for number in range(20)}
