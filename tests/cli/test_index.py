"""An index follows its files: only what is new is encoded, and what is gone goes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from retrieve_rerank import BiEncoder, BM25Index, ChromaIndex
from retrieve_rerank.cli import documents
from retrieve_rerank.cli import index as indexing
from tests.cli.conftest import Run, start


@pytest.fixture
def no_office(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without the extra that reads PDF and docx."""
    monkeypatch.setattr(documents, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "markitdown", None)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that were encoded."""
    texts: list[str] = []
    real = BiEncoder.encode_documents

    def spy(self: BiEncoder, given: Sequence[str], **options: bool) -> object:
        texts.extend(given)
        return real(self, given, **options)

    monkeypatch.setattr(BiEncoder, "encode_documents", spy)
    return texts


def stored(index: Path, encoder: Path, language: str = "en") -> dict[str, tuple[str, dict[str, object]]]:
    """What both parts of an index hold, which must be the same."""
    with (
        ChromaIndex(BiEncoder(encoder), path=index / "vectors") as vectors,
        BM25Index(path=index / "words", language=language) as words,
    ):
        found = {record.id: (record.text, dict(record.metadata)) for record in vectors.collection.read()}
        assert found == {record.id: (record.text, dict(record.metadata)) for record in words.get_records()}
    return found


def test_every_kind_of_file_is_stored_in_both_indexes(indexed: Path, tiny_bi_encoder: Path) -> None:
    found = stored(indexed, tiny_bi_encoder)
    sources = {metadata["source"] for _, metadata in found.values()}
    assert sources == {
        "docs/paris.md",
        "docs/rome.txt",
        "docs/table.csv",
        "docs/more/page.html",
        "docs/more/facts.jsonl",
    }
    assert found["f1"][0] == "the word of rome"
    assert found["f1"][1]["year"] == 2020
    page = next(metadata for _, metadata in found.values() if metadata["source"] == "docs/more/page.html")
    assert (page["title"], page["heading"]) == ("A page", "Of words")
    assert not any("menu" in text or "var capital" in text for text, _ in found.values())


def test_only_what_changed_is_encoded_again(
    run: Run, docs: Path, indexed: Path, models: tuple[str, ...], tiny_bi_encoder: Path, encoded: list[str]
) -> None:
    (again,) = run("index", docs, "--to", "made").lines
    assert (again["added"], again["updated"], again["removed"]) == (0, 0, 0)
    assert encoded == ["dimension"] or encoded == []
    encoded.clear()

    (docs / "rome.txt").write_text("Rome is the capital of bread.\n")
    (docs / "new.md").write_text("# New\n\nthe word\n")
    (docs / "table.csv").unlink()
    (done,) = run("index", docs, "--to", "made").lines
    assert (done["added"], done["removed"], done["unchanged_files"]) == (2, 2, 3)
    assert sorted(encoded) == ["# New\n\nthe word", "Rome is the capital of bread."]
    run("index", docs, "--to", "fresh", *models)
    assert stored(indexed, tiny_bi_encoder) == stored(docs.parent / "fresh", tiny_bi_encoder)


def test_files_elsewhere_stay(run: Run, docs: Path, indexed: Path, tmp_path: Path, tiny_bi_encoder: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("the bread of rome")
    run("index", tmp_path / "notes", "--to", "made")
    shutil.rmtree(docs / "more")
    run("index", docs / "paris.md", "--to", "made")  # says nothing about the others
    sources = {metadata["source"] for _, metadata in stored(indexed, tiny_bi_encoder).values()}
    assert {"notes/a.txt", "docs/more/page.html"} <= sources
    run("index", docs, "--to", "made")
    sources = {metadata["source"] for _, metadata in stored(indexed, tiny_bi_encoder).values()}
    assert sources == {"notes/a.txt", "docs/paris.md", "docs/rome.txt", "docs/table.csv"}


def test_other_sizes_split_everything_anew(run: Run, docs: Path, indexed: Path, tiny_bi_encoder: Path) -> None:
    before = len(stored(indexed, tiny_bi_encoder))
    (done,) = run("index", docs, "--to", "made", "--passage-tokens", 14).lines
    assert done["unchanged_files"] == 0
    assert len(stored(indexed, tiny_bi_encoder)) == done["passages"] > before


def test_files_that_cannot_be_read_are_named_and_keep_what_they_had(
    run: Run, docs: Path, indexed: Path, tiny_bi_encoder: Path, no_office: None
) -> None:
    before = stored(indexed, tiny_bi_encoder)
    (docs / "rome.txt").write_bytes("caf\xe9".encode("latin-1"))
    (docs / "more" / "facts.jsonl").write_text('{"text": ')
    (docs / "gone.md").symlink_to(docs / "nowhere")
    (docs / "x\x1b[31m y.md").symlink_to(docs / "nowhere")
    (docs / "paper.pdf").write_bytes(b"%PDF")
    done = run("index", docs, "--to", "made", status=1)
    assert "docs/rome.txt: line 1 is not UTF-8; say what it is with --encoding" in done.err
    assert "docs/more/facts.jsonl: line 1 is not JSON" in done.err
    assert "docs/gone.md: No such file" in done.err
    assert "\x1b" not in done.err
    assert '.pdf (1); for PDF and docx: pip install "retrieve-rerank[documents]"' in done.err
    assert done.lines[0]["failed_files"] == 4
    assert stored(indexed, tiny_bi_encoder) == before


def test_nothing_to_index_changes_nothing(
    run: Run, docs: Path, indexed: Path, tiny_bi_encoder: Path, no_office: None
) -> None:
    before = stored(indexed, tiny_bi_encoder)
    for file in sorted(docs.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    failed = run("index", docs, "--to", "made", status=1)
    assert "there is nothing to index in" in failed.err
    assert stored(indexed, tiny_bi_encoder) == before
    (docs / "paper.pdf").write_bytes(b"%PDF")
    assert "for PDF and docx: pip install" in run("index", docs, "--to", "made", status=1).err
    assert "retrieve-rerank[documents]" in run("index", docs / "paper.pdf", "--to", "made", status=1).err
    assert "does not exist" in run("index", docs / "none", "--to", "made", status=2).err


def test_an_index_belongs_to_one_model_and_one_language(
    run: Run, docs: Path, indexed: Path, tiny_dot_bi_encoder: Path
) -> None:
    other = run("index", docs, "--to", "made", "--bi-encoder", tiny_dot_bi_encoder, status=1)
    assert "was made with the bi-encoder" in other.err
    assert "index into another folder" in other.err
    assert "made for the language 'en'" in run("index", docs, "--to", "made", "--language", "de", status=1).err


def test_a_folder_with_something_else_is_left_alone(run: Run, docs: Path, models: tuple[str, ...]) -> None:
    refused = run("index", docs, "--to", docs, *models, status=1)
    assert "holds something else than an index" in refused.err


def test_an_id_that_two_files_have_names_its_file_in_the_second(
    run: Run, docs: Path, indexed: Path, models: tuple[str, ...], tiny_bi_encoder: Path
) -> None:
    """Exports of two tables both count from 1: all records are there, in one run and one after the other."""
    (docs / "other.jsonl").write_text('{"id": "f1", "text": "bread"}\n{"id": "f3", "text": "rome"}\n')
    (done,) = run("index", docs, "--to", "made").lines
    assert (done["added"], done["removed"]) == (2, 0)
    found = stored(indexed, tiny_bi_encoder)
    assert (found["f1"][0], found["docs/other.jsonl#f1"][0]) == ("the word of rome", "bread")
    assert "f3" in found
    (again,) = run("index", docs, "--to", "made").lines
    assert again["unchanged_files"] == again["files"] == 6
    run("index", docs, "--to", "fresh", *models)
    assert sorted(text for text, _ in stored(docs.parent / "fresh", tiny_bi_encoder).values()) == sorted(
        text for text, _ in found.values()
    )


def test_a_line_that_cannot_be_used_costs_that_line_and_is_said_each_time(
    run: Run, docs: Path, indexed: Path, tiny_bi_encoder: Path
) -> None:
    lines = ['{"id": "f1", "text": "the word of rome"}', '{"text": ', '{"id": "f9", "text": "bread"}', "[1]"]
    (docs / "more" / "facts.jsonl").write_text("\n".join(lines))
    for _ in range(2):
        done = run("index", docs, "--to", "made", status=1)
        assert "docs/more/facts.jsonl: line 2 is not JSON" in done.err
        assert "; line 4 must be a JSON object; left out" in done.err
        assert {"f1", "f9"} <= set(stored(indexed, tiny_bi_encoder))
    assert (done.lines[0]["added"], done.lines[0]["removed"]) == (0, 0)


def test_a_renamed_file_keeps_its_records(run: Run, docs: Path, indexed: Path, tiny_bi_encoder: Path) -> None:
    (docs / "more" / "facts.jsonl").rename(docs / "more" / "known.jsonl")
    (done,) = run("index", docs, "--to", "made").lines
    assert (done["updated"], done["removed"]) == (2, 0)
    assert stored(indexed, tiny_bi_encoder)["f1"][1]["source"] == "docs/more/known.jsonl"
    (again,) = run("index", docs, "--to", "made").lines
    assert again["unchanged_files"] == again["files"] == 5


def test_another_folder_of_a_name_that_is_known_is_refused(
    run: Run, docs: Path, indexed: Path, tiny_bi_encoder: Path, tmp_path: Path
) -> None:
    """It may be another, while the first one's disk is away: nothing must be removed."""
    before = stored(indexed, tiny_bi_encoder)
    other = tmp_path / "else" / "docs"
    other.parent.mkdir()
    docs.rename(other)
    assert "has a folder 'docs' already" in run("index", other, "--to", "made", status=1).err
    assert stored(indexed, tiny_bi_encoder) == before


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        (("--language", "klingon"), 1),
        (("--encoding", "klingon"), 2),
        (("--passage-tokens", 9_999), 1),
        (("--bi-encoder", "nowhere"), 1),
        (("--text-field", "nowhere"), 0),
    ],
)
def test_a_run_that_failed_before_a_file_was_done_is_in_nobodys_way(
    run: Run, docs: Path, models: tuple[str, ...], tiny_bi_encoder: Path, wrong: tuple[str, ...], status: int
) -> None:
    (docs / "table.csv").unlink()
    (docs / "more" / "facts.jsonl").unlink()
    run("index", docs, "--to", "made", *models, *wrong, status=status)
    language = "de" if status else "en"
    run("index", docs, "--to", "made", *models, "--language", language)
    assert len(stored(docs.parent / "made", tiny_bi_encoder, language)) == 3


def test_killed_before_the_first_saving_it_is_still_an_index(
    run: Run, docs: Path, models: tuple[str, ...], tiny_bi_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(ChromaIndex, "add", full)
        assert "the disk is full" in run("index", docs, "--to", "made", *models, "--language", "fr", status=1).err
    run("index", docs, "--to", "made", *models, "--language", "de")
    assert stored(docs.parent / "made", tiny_bi_encoder, "de")
    assert "made for the language 'de'" in run("index", docs, "--to", "made", "--language", "fr", status=1).err


def test_what_most_pages_of_a_folder_have_in_common_is_left_out(
    run: Run, tmp_path: Path, models: tuple[str, ...], tiny_bi_encoder: Path
) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    names = ["paris", "rome", "bread", "word", "capital", "italy"]
    links = "".join(f"<li><a href='{name}.html'>{name} page</a></li>" for name in names)

    def write(name: str, words: str) -> None:
        page = f"<title>{name}</title><div id='column'><ul>{links}</ul></div><h1>{name}</h1><p>{words}</p>"
        (folder / f"{name}.html").write_text(page)

    for name in names:
        write(name, f"what {name} is")
    run("index", folder, "--to", "made", *models)
    texts = {text for text, _ in stored(tmp_path / "made", tiny_bi_encoder).values()}
    assert texts == {f"# {name}\n\nwhat {name} is" for name in names}
    assert run("index", folder, "--to", "made").lines[0]["unchanged_files"] == 6
    write("rome", "all new")
    (done,) = run("index", folder, "--to", "made").lines
    assert (done["added"], done["removed"], done["unchanged_files"]) == (1, 1, 5)


def test_one_file_that_no_parser_reads_costs_no_other(
    run: Run, docs: Path, models: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tiny_bi_encoder: Path
) -> None:
    (docs / "odd.md").write_text('---\ntitle: !!int ""\n---\nthe word\n')
    (docs / "huge.md").write_text(f"---\ntitle: {'9' * 5_000}\n---\nthe bread\n")
    (docs / "cells.ipynb").write_text('{"cells": 5}')
    done = run("index", docs, "--to", "made", *models, status=1)
    assert "docs/cells.ipynb: it cannot be read as notebook: TypeError" in done.err
    assert done.lines[0]["files"] == 7
    sources = {metadata["source"] for _, metadata in stored(docs.parent / "made", tiny_bi_encoder).values()}
    assert {"docs/odd.md", "docs/huge.md", "docs/paris.md"} <= sources


@pytest.mark.parametrize("module", ["semantic_text_splitter", "markdownify"])
def test_a_missing_extra_is_named(
    run: Run, docs: Path, models: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert 'pip install "retrieve-rerank[cli]"' in run("index", docs, "--to", "made", *models, status=1).err


def test_without_bm25_there_are_vectors_and_words_follow_later(
    run: Run, docs: Path, models: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tiny_bi_encoder: Path
) -> None:
    with monkeypatch.context() as patch:
        for name in (
            "retrieve_rerank.cli.index",
            "retrieve_rerank.cli.options",
            "retrieve_rerank.cli.folder",
        ):
            patch.setattr(f"{name}.has_bm25", lambda: False)
        done = run("index", docs, "--to", "made", *models)
        assert 'pip install "retrieve-rerank[hybrid]"' in done.err
        found = run("search", "capital of france", "--in", "made", "--no-rerank").lines
        assert "retrieval_ranks" not in found[0]
    run("index", docs, "--to", "made")
    assert stored(docs.parent / "made", tiny_bi_encoder)


@pytest.mark.parametrize("stopped_in", ["add", "between the two indexes", "saving"])
def test_broken_off_it_goes_on(
    run: Run,
    docs: Path,
    models: tuple[str, ...],
    tiny_bi_encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoded: list[str],
    stopped_in: str,
) -> None:
    """Whatever was written in part, the next run makes it as if nothing had happened, also if the files changed."""
    monkeypatch.setattr(indexing, "_TOGETHER", 2)
    monkeypatch.setattr(indexing, "_SAVE", 2)
    run("index", docs, "--to", "made", *models)
    for number in range(8):
        (docs / f"n{number}.txt").write_text(f"the word number {number} of paris")
    calls = {"add": (ChromaIndex, "add"), "between the two indexes": (BM25Index, "add"), "saving": (BM25Index, "save")}
    owner, name = calls[stopped_in]
    real, count = getattr(owner, name), [0]

    def failing(self: object, *given: object, **options: object) -> object:
        count[0] += 1
        if count[0] >= 2:
            raise OSError("the disk is full")
        return real(self, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        patch.setattr(BM25Index, "close", lambda self: self.worker.close())  # killed: nothing is saved
        assert "the disk is full" in run("index", docs, "--to", "made", status=1).err
    assert "was broken off" in run("search", "bread", "--in", "made", "--no-rerank").err
    (docs / "n0.txt").unlink()
    (docs / "n1.txt").write_text("the word number 1 is another")
    encoded.clear()
    run("index", docs, "--to", "made")
    run("index", docs, "--to", "fresh", *models)
    assert stored(docs.parent / "made", tiny_bi_encoder) == stored(docs.parent / "fresh", tiny_bi_encoder)


def test_ctrl_c_ends_it_cleanly_and_the_next_run_goes_on(
    run: Run, tmp_path: Path, models: tuple[str, ...], tiny_bi_encoder: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(2_000):
        (folder / f"{number}.txt").write_text(f"the word number {number} of paris")
    with start("index", folder, "--to", tmp_path / "made", *models) as process:
        database = tmp_path / "made" / "vectors" / "chroma.sqlite3"
        end = time.monotonic() + 300
        while not (database.exists() and (tmp_path / "made" / "words").exists()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert out == b""
    assert b"Traceback" not in err
    assert b"stopped" in err
    (done,) = run("index", folder, "--to", "made").lines
    assert done["passages"] == 2_000
    assert len(stored(tmp_path / "made", tiny_bi_encoder)) == 2_000


def test_what_an_index_was_made_with_is_kept(run: Run, tmp_path: Path, models: tuple[str, ...]) -> None:
    """Run again as the help says, without the options of the first time, it must change nothing."""
    record = {"id": "a", "text": "the question", "answer": "bread is the word. " * 9}
    (tmp_path / "faq.jsonl").write_text(json.dumps(record) + "\n")
    first = run(
        *("index", "faq.jsonl", "--to", "faq", *models),
        *("--text-field", "answer", "--passage-tokens", 20, "--language", "de"),
    )
    again = run("index", "faq.jsonl", "--to", "faq")
    assert first.lines[0]["added"] > 1
    assert again.lines[0]["unchanged"] == first.lines[0]["added"]
    assert (again.lines[0]["added"], again.lines[0]["updated"], again.lines[0]["removed"]) == (0, 0, 0)
    (tmp_path / "notes.jsonl").write_text('{"id": "n", "text": "rome is the word"}\n')
    assert run("index", "notes.jsonl", "--to", "faq").lines[0]["added"] == 1  # its fields are called as usual
    assert run("index", "faq.jsonl", "--to", "faq").lines[0]["unchanged"] == first.lines[0]["added"]
    assert "no text in 'typo'" in run("index", "faq.jsonl", "--to", "faq", "--text-field", "typo", status=1).err
    assert run("index", "faq.jsonl", "--to", "faq").lines[0]["unchanged"] == first.lines[0]["added"]
    assert "made for the language 'de'" in run("index", "faq.jsonl", "--to", "faq", "--language", "en", status=1).err


def test_a_file_that_cannot_be_looked_at_has_no_size(tmp_path: Path) -> None:
    """As in a folder that may be listed and not entered, where `exists` raises: the bar's total must end no run."""
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(OSError, match="name too long"):
        (tmp_path / ("x" * 300)).stat()
    assert [indexing._size(tmp_path / name) for name in ("a", "none", "x" * 300)] == [3, 0, 0]


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


def test_the_folder_above_is_indexed_next(run: Run, docs: Path, models: tuple[str, ...], tiny_bi_encoder: Path) -> None:
    run("index", docs / "more", "--to", "made", *models)
    run("index", docs, "--to", "made")
    found = stored(docs.parent / "made", tiny_bi_encoder)
    assert found["f1"][1]["source"] == "docs/more/facts.jsonl"
    assert all(str(metadata["source"]).startswith("docs/") for _, metadata in found.values())
