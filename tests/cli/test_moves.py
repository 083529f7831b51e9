"""Files are moved and renamed, and records go from one to another: the index follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieve_rerank.cli import following
from tests.cli.conftest import Run
from tests.cli.test_index import stored


def sources(index: Path, encoder: Path) -> dict[str, object]:
    return {id_: metadata["source"] for id_, (_, metadata) in stored(index, encoder).items()}


@pytest.fixture(params=["one go", "a go a record"])
def goes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "one go":
        monkeypatch.setattr(following, "_TOGETHER", 1)


def test_a_renamed_file_keeps_its_records(run: Run, docs: Path, indexed: Path, tiny_bi_encoder: Path) -> None:
    (docs / "more" / "facts.jsonl").rename(docs / "more" / "known.jsonl")
    (done,) = run("index", docs, "--to", "made").lines
    assert (done["updated"], done["removed"]) == (2, 0)
    found = sources(indexed, tiny_bi_encoder)
    assert (found["f1"], found["f2"]) == ("docs/more/known.jsonl", "docs/more/known.jsonl")
    (again,) = run("index", docs, "--to", "made").lines
    assert again["unchanged_files"] == again["files"] == 5


@pytest.mark.parametrize("to", ["a.jsonl", "z.jsonl"])  # read before the file that the record was in, and after it
def test_a_record_goes_to_another_file(
    run: Run, docs: Path, indexed: Path, tiny_bi_encoder: Path, to: str, goes: None
) -> None:
    facts = docs / "more" / "facts.jsonl"
    first, second = facts.read_text().splitlines(keepends=True)
    facts.write_text(second)
    (docs / "more" / to).write_text(first)
    run("index", docs, "--to", "made")
    found = sources(indexed, tiny_bi_encoder)
    assert (found["f1"], found["f2"]) == (f"docs/more/{to}", "docs/more/facts.jsonl")
    (again,) = run("index", docs, "--to", "made").lines
    assert again["unchanged_files"] == again["files"] == 6


@pytest.mark.parametrize("to", ["a.jsonl", "z.jsonl"])
def test_a_record_in_two_files_is_refused_until_one_is_gone(
    run: Run, docs: Path, indexed: Path, tiny_bi_encoder: Path, to: str, goes: None
) -> None:
    other = docs / "more" / to
    other.write_text('{"id": "f1", "text": "the word of rome", "title": "Word", "year": 2020}\n')
    for _ in range(2):  # what the first run left behind is no reason to take it
        refused = run("index", docs, "--to", "made", status=1)
        assert "id 'f1' is in docs/more/" in refused.err
    other.unlink()
    run("index", docs, "--to", "made")
    found = sources(indexed, tiny_bi_encoder)
    assert (found["f1"], found["f2"]) == ("docs/more/facts.jsonl", "docs/more/facts.jsonl")


def test_the_folder_above_is_indexed_next(run: Run, docs: Path, models: tuple[str, ...], tiny_bi_encoder: Path) -> None:
    run("index", docs / "more", "--to", "made", *models)
    run("index", docs, "--to", "made")
    found = sources(docs.parent / "made", tiny_bi_encoder)
    assert found["f1"] == "docs/more/facts.jsonl"
    assert all(str(source).startswith("docs/") for source in found.values())


def test_files_elsewhere_keep_their_ids(run: Run, docs: Path, indexed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "facts.jsonl").write_text('{"id": "f1", "text": "bread"}\n')
    refused = run("index", other, "--to", "made", status=1)
    assert "id 'f1' is in docs/more/facts.jsonl and in other/facts.jsonl" in refused.err


def test_an_id_in_doubt_stays_until_its_files_are_read_again(
    run: Run, docs: Path, indexed: Path, tiny_bi_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_TOGETHER", 1)
    (docs / "more" / "a.jsonl").write_text('{"id": "f1", "text": "the word of rome"}\n')
    run("index", docs, "--to", "made", status=1)  # f1 was taken from facts.jsonl, whose turn came after
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.txt").write_text("bread")
    run("index", tmp_path / "other", "--to", "made")
    assert "f1" in sources(indexed, tiny_bi_encoder)
    assert "was broken off" in run("search", "bread", "--in", "made", "--no-rerank").err
    (docs / "more" / "a.jsonl").unlink()
    run("index", docs, "--to", "made")
    assert sources(indexed, tiny_bi_encoder)["f1"] == "docs/more/facts.jsonl"
    assert "broken off" not in run("search", "bread", "--in", "made", "--no-rerank").err


def test_another_folder_of_a_name_that_is_gone_is_not_the_one_that_was_moved(
    run: Run, docs: Path, indexed: Path, tiny_bi_encoder: Path, tmp_path: Path
) -> None:
    before = stored(indexed, tiny_bi_encoder)
    docs.rename(tmp_path / "unmounted")
    other = tmp_path / "else" / "docs"
    other.mkdir(parents=True)
    (other / "rome.txt").write_text((tmp_path / "unmounted" / "rome.txt").read_text())
    (other / "new.txt").write_text("the word")
    assert run("index", other, "--to", "made").lines[0]["removed"] == 0
    assert before.items() <= stored(indexed, tiny_bi_encoder).items()


@pytest.mark.parametrize("together", [True, False])
def test_a_moved_folder_loses_what_is_deleted_from_it(
    run: Run, docs: Path, indexed: Path, tiny_bi_encoder: Path, tmp_path: Path, *, together: bool
) -> None:
    moved = tmp_path / "new place" / "docs"
    moved.parent.mkdir()
    docs.rename(moved)
    if not together:
        assert run("index", moved, "--to", "made").lines[0]["unchanged_files"] == 5
    (moved / "rome.txt").unlink()
    (done,) = run("index", moved, "--to", "made").lines
    assert (done["removed"], done["files"]) == (1, 4)
    assert "docs/rome.txt" not in sources(indexed, tiny_bi_encoder).values()


def test_records_that_are_alike_are_all_there(
    run: Run, tmp_path: Path, models: tuple[str, ...], tiny_bi_encoder: Path
) -> None:
    (tmp_path / "faq.csv").write_text(
        "text,title\nYes.,Is it free?\nYes.,Is it open source?\nNo.,Is it slow?\nYes.,Is it here?\n"
    )
    (done,) = run("index", "faq.csv", "--to", "made", *models).lines
    assert done["passages"] == 4
    titles = sorted(str(metadata["title"]) for _, metadata in stored(tmp_path / "made", tiny_bi_encoder).values())
    assert titles == ["Is it free?", "Is it here?", "Is it open source?", "Is it slow?"]


def test_half_a_character_fails_its_file_only(run: Run, docs: Path, models: tuple[str, ...]) -> None:
    (docs / "more" / "facts.jsonl").write_text('{"text": "\\ud83d"}\n')
    done = run("index", docs, "--to", "made", *models, status=1)
    assert "docs/more/facts.jsonl: line 1 holds half a character" in done.err
    assert done.lines[0]["files"] == 4
