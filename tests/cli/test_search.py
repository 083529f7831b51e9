"""What `search` shows: the same hits as the library's, before and after, harmless on any terminal."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from retrieve_rerank import (
    BiEncoder,
    BM25Index,
    ChromaIndex,
    CrossEncoder,
    Hit,
    HybridRetriever,
    Passage,
    RetrieveRerank,
    SearchResult,
)
from retrieve_rerank.cli import tables
from retrieve_rerank.search_result import Timings
from tests.cli.conftest import Run, environment
from tests.forking import python

QUERY = "what is the capital of france"


def test_hits_are_the_librarys(run: Run, indexed: Path, tiny_bi_encoder: Path, tiny_cross_encoder: Path) -> None:
    found = run("search", QUERY, "--in", "made", "--top-n", 3).lines
    vectors = ChromaIndex(BiEncoder(tiny_bi_encoder), path=indexed / "vectors")
    with vectors, BM25Index(path=indexed / "words") as words:
        hybrid = HybridRetriever([vectors, words])
        expected = RetrieveRerank(hybrid, CrossEncoder(tiny_cross_encoder), top_n=3).search(QUERY)
        bm25 = words.retrieve(QUERY, 2)
    assert [(hit["id"], hit["rank"], hit["retrieval_rank"], hit["logit"]) for hit in found] == [
        (hit.passage.id, hit.rank, hit.retrieval_rank, hit.logit) for hit in expected
    ]
    assert [tuple(hit["retrieval_ranks"]) for hit in found] == [hit.retrieval_ranks for hit in expected]
    assert found[0]["text"] == expected[0].passage.text
    assert found[0]["metadata"]["source"].startswith("docs/")
    plain = run("search", QUERY, "--in", "made", "--no-rerank", "--first-stage", "bm25", "--top-n", 2).lines
    assert [(hit["id"], hit["score"], hit["logit"]) for hit in plain] == [
        (hit.passage.id, hit.score, None) for hit in bm25
    ]


def test_questions_from_stdin_are_answered_in_turn(run: Run, indexed: Path) -> None:
    done = run("search", "-", "--in", "made", "--top-n", 1, stdin="\ufeffbread\r\n\nThe Word\n".encode())
    assert [hit["query"] for hit in done.lines] == ["bread", "The Word"]
    failed = run("search", "-", "--in", "made", "--no-rerank", stdin=b"caf\xe9\n", status=1)
    assert "line 1 of stdin is not UTF-8" in failed.err


def test_a_threshold_may_leave_nothing(run: Run, indexed: Path) -> None:
    assert run("search", QUERY, "--in", "made", "--threshold", 1.0).out == ""
    refused = run("search", QUERY, "--in", "made", "--no-rerank", "--rerank-weight", 0.5, status=2)
    assert "is for an order that re-ranking makes" in " ".join(refused.err.replace("│", "").split())
    refused = run("search", QUERY, "--in", "made", "--no-rerank", "--threshold", 0.5, status=2)
    assert "only re-ranking gives" in " ".join(refused.err.replace("│", "").split())


def test_what_is_wrong_is_said_in_one_line(run: Run, indexed: Path, tmp_path: Path) -> None:
    nothing = run("search", QUERY, "--in", "nowhere", status=1)
    assert nothing.err == (
        "retrieve-rerank: nowhere is no index; make one first: retrieve-rerank index FILES --to nowhere\n"
    )
    assert "the query is empty" in run("search", " ", "--in", "made", status=1).err
    no_model = run("search", QUERY, "--in", "made", "--cross-encoder", "./none", status=1)
    assert "there is no folder" in no_model.err
    assert "--in" in run("search", QUERY, status=2).err
    assert "--top-n" in run("search", QUERY, "--in", "made", "--top-n", 0, status=2).err
    (indexed / "retrieve-rerank.json").write_text('{"index_format": 99}')
    assert "has format 99" in run("search", QUERY, "--in", "made", status=1).err
    (indexed / "retrieve-rerank.json").write_text('{"index_format": 2, "files": {}}')
    assert "is not whole" in run("search", QUERY, "--in", "made", status=1).err


def test_debug_shows_where(run: Run, tmp_path: Path) -> None:
    assert "Traceback" not in run("search", QUERY, "--in", "nowhere", status=1).err
    assert "Traceback" in run("search", QUERY, "--in", "nowhere", "--debug", status=1).err


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_terminal_gets_a_table_that_fits_and_no_commands(run: Run, tmp_path: Path, models: tuple[str, ...]) -> None:
    """Texts and names may hold escape sequences, such as one that writes to the clipboard or hides the line."""
    import fcntl
    import pty
    import struct
    import termios

    folder = tmp_path / "evil"
    folder.mkdir()
    name = "a\x1b]0;owned\x07 ü\u202e.txt"
    (folder / name).write_text("the capital \x1b[2J\x1b]52;c;aGk=\x07 of france \x9b31m [bold]markup[/bold] " * 3)
    run("index", folder, "--to", "made", *models)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    command = [*python(), "-m", "retrieve_rerank", "search", QUERY, "--in", str(tmp_path / "made")]
    plain = {name: value for name, value in environment().items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        command, stdout=theirs, stderr=subprocess.PIPE, env={**plain, "NO_COLOR": "1", "TERM": "xterm-256color"}
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 1 << 16)
        except OSError:  # Linux's way to say that the other side has closed
            break
        if not block:
            break
        shown += block
    _, err = process.communicate(timeout=300)
    os.close(ours)
    assert process.returncode == 0, err
    styled = shown.decode()
    assert not re.search("\x1b\\[[0-9;]*3[0-9]m", styled), "a colour in spite of NO_COLOR"
    text = re.sub("\x1b\\[[0-9;]*m", "", styled)  # bold and dim, which are the table's own
    assert re.findall("[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", text) == []
    assert "relevance" in text
    assert "[bold]" in text
    assert max(len(line) for line in text.splitlines()) <= 60
    assert b"candidates found in" in err


def test_json_escapes_what_a_terminal_could_obey(run: Run, tmp_path: Path, models: tuple[str, ...]) -> None:
    (tmp_path / "a.txt").write_text("bread \x1b[31m \x9b31m \u2028 \x85 \u202e rome")
    run("index", tmp_path / "a.txt", "--to", "made", *models)
    done = run("search", "bread", "--in", "made")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", done.out)
    assert done.lines[0]["text"] == "bread \x1b[31m \x9b31m \u2028 \x85 \u202e rome"


def test_a_question_that_cannot_be_used_costs_no_other(run: Run, indexed: Path) -> None:
    questions = b"bread\n" + b"word " * 300 + b"\ncaf\xe9\nthe word\n"
    done = run("search", "-", "--in", "made", "--top-n", 1, stdin=questions, status=1)
    assert "line 3 of stdin is not UTF-8" in done.err
    assert [hit["query"] for hit in done.lines] == ["bread", "the word"]
    assert "'word word" in done.err
    assert "shorten the query" in done.err


def test_fewer_candidates_than_are_to_be_shown_are_said(run: Run, indexed: Path) -> None:
    done = run("search", QUERY, "--in", "made", "--top-n", 3, "--fetch-k", 2)
    assert len(done.lines) == 2
    assert "note: only 2 candidates are re-ranked, so there are no 3 to show; raise --fetch-k" in done.err
    assert "note: only" not in run("search", QUERY, "--in", "made", "--top-n", 200).err


@pytest.fixture
def shelves(run: Run, tmp_path: Path, models: tuple[str, ...]) -> None:
    """An index of records with fields, whose numbers are text in CSV and numbers in JSON."""
    (tmp_path / "old.csv").write_text("id,text,year\n1,the bread of rome,2020\n2,the word of rome,2021\n")
    lines = [{"id": str(number), "text": f"the bread {number} of rome", "year": 2018 + number} for number in (3, 4)]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run("index", "old.csv", "new.jsonl", "--to", "made", *models)


WHERE = [
    (["year=2021"], {"2", "3"}),
    (["year!=2021"], {"1", "4"}),
    (["year>=2021"], {"3", "4"}),
    (["year < 2022"], {"3"}),
    (["year=2020"], {"1"}),
    (["year=2021", "line=3"], {"2"}),
    (["year=nothing"], set[str]()),
]


@pytest.mark.parametrize("stage", ["dense", "bm25", "hybrid"])
def test_where_holds_in_every_first_stage(run: Run, shelves: None, stage: str) -> None:
    options = ["--in", "made", "--first-stage", stage, "--no-rerank" if stage == "bm25" else "--rerank"]
    for conditions, ids in WHERE:
        where = [part for condition in conditions for part in ("--where", condition)]
        found = run("search", "the bread word of rome", *options, *where).lines
        assert {hit["id"] for hit in found} == ids, conditions


@pytest.mark.parametrize("condition", ["year", "=2020", "year>>2020", "year>=old", ""])
def test_a_condition_that_is_none_is_refused(run: Run, shelves: None, condition: str) -> None:
    assert "--where" in run("search", "bread", "--in", "made", "--where", condition, status=2).err


def test_hits_of_one_text_are_one(run: Run, tmp_path: Path, models: tuple[str, ...]) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for name in "abcd":
        (folder / f"{name}.txt").write_text("\n\nthe bread of rome\n")
    (folder / "e.txt").write_text("the word of bread")
    run("index", folder, "--to", "made", *models)
    first, second = sorted(run("search", "bread of rome", "--in", "made").lines, key=lambda hit: "also_in" not in hit)
    assert sorted([f"{first['metadata']['source']}:{first['metadata']['line']}", *first["also_in"]]) == [
        f"many/{name}.txt:3" for name in "abcd"
    ]
    assert "also_in" not in second


def test_a_table_shows_the_words_that_were_asked_for_and_their_line() -> None:
    text = "filler " * 100 + "the treasurer was elected\nin March " + "filler " * 100
    metadata = {"source": "a/b.md", "line": 7, "heading": f"{'Handbook ' * 9}> Board > Minutes"}
    hits = tuple(Hit(Passage(name, text, metadata), rank, 0.9, rank, 0.5, 2.0) for rank, name in enumerate("xyz", 1))
    result = SearchResult("When was the treasurer elected?", hits, hits, Timings(0.1, 0.1))
    stream = io.StringIO()
    console = Console(file=stream, width=120)
    for thing in tables.searched(result, 5):
        console.print(thing)
    shown = " ".join(stream.getvalue().split())
    assert "a/b.md:7" in shown
    assert "… > Board > Minutes" in shown
    assert "also in 2 files" in shown
    assert "treasurer was elected" in shown
    assert shown.count("0.900") == 1
