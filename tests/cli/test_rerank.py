"""`rerank` answers line by line, in order, at once, whatever the lines hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from retrieve_rerank import CrossEncoder
from retrieve_rerank.cli.streams import arriving
from tests.cli.conftest import Run, environment, start
from tests.forking import python

TEXTS = ["rome is in italy", "paris is the capital of france", "bread"]
LINE = json.dumps({"query": "capital of france", "passages": TEXTS}) + "\n"


@pytest.fixture
def model(tiny_cross_encoder: Path) -> tuple[str, str]:
    return "--cross-encoder", str(tiny_cross_encoder)


def write(tmp_path: Path, content: str | bytes) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def test_hits_are_the_librarys_and_all_else_is_kept(
    run: Run, tmp_path: Path, model: tuple[str, str], tiny_cross_encoder: Path
) -> None:
    objects = [{"id": "p9", "text": TEXTS[0], "metadata": {"page": 9}}, TEXTS[1], {"id": 5, "text": TEXTS[2]}]
    lines = [
        {"query": "capital of france", "passages": objects, "qid": 7, "hits": "overwritten"},
        {"query": "bread", "passages": []},
        {"query": "bread", "passages": [TEXTS[2], TEXTS[2], ""]},
    ]
    file = write(tmp_path, "\ufeff" + "\n".join(map(json.dumps, lines)))  # without a last line feed
    first, empty, twins = run("rerank", file, *model).lines
    expected = CrossEncoder(tiny_cross_encoder).rank("capital of france", TEXTS)
    assert [(hit["index"], hit["logit"]) for hit in first["hits"]] == [
        (int(hit.passage.id), pytest.approx(hit.logit, abs=1e-4)) for hit in expected
    ]
    assert {hit["index"]: hit["id"] for hit in first["hits"]} == {0: "p9", 1: "1", 2: 5}
    assert next(hit for hit in first["hits"] if hit["index"] == 0)["metadata"] == {"page": 9}
    assert (first["qid"], first["query"]) == (7, "capital of france")
    assert empty == {"query": "bread", "hits": []}
    assert [hit["index"] for hit in twins["hits"] if hit["text"]] == [0, 1]
    best = run("rerank", file, *model, "--top-n", 1).lines
    assert [len(line["hits"]) for line in best] == [1, 0, 1]
    assert run("rerank", file, *model, "--threshold", 1).lines[0]["hits"] == []
    as_given = run("rerank", file, *model, "--rerank-weight", 0).lines[0]["hits"]
    assert [hit["index"] for hit in as_given] == [0, 1, 2]
    assert all("combined_score" in hit for hit in as_given)
    assert not any("combined_score" in hit for hit in first["hits"])


BAD = {
    "not JSON": b'{"query": "a", ',
    "not an object": b"[1, 2]",
    "no query": b'{"passages": ["a"]}',
    "empty query": b'{"query": " ", "passages": ["a"]}',
    "no passages": b'{"query": "a"}',
    "passages are a text": b'{"query": "a", "passages": "text"}',
    "a passage is a number": b'{"query": "a", "passages": ["a", 5]}',
    "a passage without text": b'{"query": "a", "passages": [{"id": "a"}]}',
    "metadata are a text": b'{"query": "a", "passages": [{"text": "a", "metadata": "x"}]}',
    "not UTF-8": b'{"query": "\xe9", "passages": ["a"]}',
    "lone surrogate": b'{"query": "a", "passages": ["\\ud800"]}',
    "NaN beside": b'{"query": "a", "passages": ["a"], "weight": NaN}',
    "NaN within": b'{"query": "a", "passages": [{"text": "a", "metadata": {"x": NaN}}]}',
    "infinity within": b'{"query": "a", "passages": [{"text": "a", "metadata": {"x": 1e999}}]}',
    "query too long": json.dumps({"query": "a b " * 200, "passages": ["a"]}).encode(),
    "nested without end": b"[" * 100_000,
}


def test_bad_lines_are_named_and_the_others_answered(run: Run, tmp_path: Path, model: tuple[str, str]) -> None:
    lines = [LINE.encode().strip()]
    for bad in BAD.values():
        lines += [bad, LINE.encode().strip()]
    done = run("rerank", write(tmp_path, b"\n".join(lines) + b"\n\n \n"), *model, status=1)
    assert len(done.lines) == len(BAD) + 1
    assert all(line["hits"][0]["text"] == done.lines[0]["hits"][0]["text"] for line in done.lines)
    named = [line for line in done.err.splitlines() if line.startswith("retrieve-rerank: line ")]
    assert [int(line.split()[2].rstrip(":")) for line in named] == list(range(2, 2 * len(BAD) + 1, 2))
    assert done.err.splitlines()[-1] == f"retrieve-rerank: {len(BAD)} lines could not be used"
    assert "Traceback" not in done.err


def test_a_passage_that_is_cut_is_said_once_and_marked(run: Run, tmp_path: Path, model: tuple[str, str]) -> None:
    long = json.dumps({"query": "bread", "passages": ["is the word of " * 40]}) + "\n"
    done = run("rerank", write(tmp_path, long * 2 + LINE), *model)
    assert [line["hits"][0]["truncated"] for line in done.lines] == [True, True, False]
    assert done.err.count("warning: ") == done.err.count("\n") == 1
    assert "longer than" in done.err


def test_a_file_that_is_not_there(run: Run, model: tuple[str, str]) -> None:
    assert "none.jsonl cannot be read: No such file" in run("rerank", "none.jsonl", *model, status=1).err


def test_lines_are_answered_as_they_come(model: tuple[str, str]) -> None:
    with start("rerank", "-", *model) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(LINE.encode())
        process.stdin.flush()
        first = json.loads(process.stdout.readline())  # before there is a second line, or an end
        assert len(first["hits"]) == 3
        process.stdin.write(b"{nonsense\n" + LINE.encode()[:20])
        process.stdin.flush()
        assert b"line 2" in process.stderr.readline()
        process.stdin.write(LINE.encode()[20:].rstrip())
        out, err = process.communicate(timeout=3000)
    assert json.loads(out)["hits"] == first["hits"]
    assert process.returncode == 1
    assert err == b"retrieve-rerank: 1 line could not be used\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_ctrl_c_while_it_waits_ends_it_quietly(model: tuple[str, str]) -> None:
    process = start("rerank", "-", *model)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(LINE.encode())
    process.stdin.flush()
    assert process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=300) == 130
    out, err = process.communicate()
    assert out == b""
    assert err.strip() == b"retrieve-rerank: stopped"


_BESIDE = """
import signal, threading, time
threading.Thread(target=time.sleep, args=(3000,), daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
from retrieve_rerank.cli.app import main
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX's signals")
def test_ctrl_c_that_does_not_interrupt_the_read_ends_it_too(model: tuple[str, str]) -> None:
    """As one that comes a moment before the read begins: here it goes to another thread."""
    process = subprocess.Popen(
        [*python(), "-c", _BESIDE, "rerank", "-", *model],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(LINE.encode())
    process.stdin.flush()
    assert process.stdout.readline()
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=300) == 130
    assert process.communicate()[1].strip() == b"retrieve-rerank: stopped"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are POSIX's")
def test_a_reader_that_has_enough_is_no_failure(tmp_path: Path, model: tuple[str, str]) -> None:
    """As `rerank … | head -n 1` does: the pipe closes while there is more to say than it holds."""
    long = json.dumps({"query": "bread", "passages": [f"{number} is the word" for number in range(40)]}) + "\n"
    file = write(tmp_path, long * 64)
    process = start("rerank", file, *model, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=3000) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_an_id_that_is_null_is_none(run: Run, tmp_path: Path, model: tuple[str, str]) -> None:
    passages = [{"id": None, "text": "bread"}, {"id": "", "text": "rome"}, {"id": 0, "text": "paris"}]
    done = run("rerank", write(tmp_path, json.dumps({"query": "bread", "passages": passages})), *model)
    assert {hit["text"]: hit["id"] for hit in done.lines[0]["hits"]} == {"bread": "0", "rome": "1", "paris": 0}


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are POSIX's")
def test_a_long_line_is_put_together_once() -> None:
    """Of a pipe's 64 KiB at a time, copying all before it for each would take minutes."""
    read, write = os.pipe()
    sent = b"first\n" + b"x" * 100_000_000 + b"\nlast"
    with os.fdopen(write, "wb") as pipe:
        writer = threading.Thread(target=lambda: (pipe.write(sent), pipe.close()))
        writer.start()
        start = time.monotonic()
        lines = [line for some in arriving(read) for line in some]
        writer.join()
    os.close(read)
    assert b"\n".join(lines) == sent
    assert time.monotonic() - start < 10


def test_what_a_passage_held_is_handed_on(run: Run, tmp_path: Path, model: tuple[str, str]) -> None:
    """All its fields, but those that are said anew; the id as it was given."""
    given = {"id": 0, "text": TEXTS[1], "url": "https://example.org", "score": 12.5, "rank": 3, "metadata": {"page": 9}}
    others = [{"id": [7, "b"], "text": TEXTS[0], "tags": None}, {"id": "", "text": TEXTS[2]}, TEXTS[2]]
    file = write(tmp_path, json.dumps({"query": "bread", "passages": [given, *others]}))
    hits = {hit["index"]: hit for hit in run("rerank", file, *model).lines[0]["hits"]}
    assert hits[0]["score"] <= 1
    ours = {name: hits[0][name] for name in ("rank", "index", "score", "logit", "truncated")}
    assert hits[0] == {**given, **ours}
    assert (hits[1]["id"], hits[1]["tags"]) == ([7, "b"], None)
    assert (hits[2]["id"], hits[3]["id"]) == ("2", "3")
    bad = write(tmp_path, '{"query": "bread", "passages": [{"text": "a", "weight": NaN}]}')
    assert "not usable as JSON" in run("rerank", bad, *model, status=1).err
