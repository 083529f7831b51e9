"""The command line in this process, and in a process of its own where pipes and signals matter."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from retrieve_rerank.cli.app import app
from tests.forking import python

SOURCES = Path(__file__).parent.parent.parent / "src"
BM25 = ("--first-stage", "bm25", "--measure", "RR@10")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.split("\n") if line]


Run = Callable[..., Done]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RETRIEVE_RERANK_CACHE", str(folder))
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, with a stdin of its own in another, in the test's folder; no terminal."""
    monkeypatch.chdir(tmp_path)

    def run_here(*arguments: object, status: int = 0, stdin: bytes | None = None) -> Done:
        if stdin is not None:
            process = start(*arguments)
            out, err = process.communicate(stdin, timeout=300)
            assert process.returncode == status, err
            return Done(status, out.decode(), err.decode())
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.stderr
        return Done(result.exit_code, result.stdout, result.stderr)

    return run_here


def environment(**variables: str) -> dict[str, str]:
    known = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    return {**known, **variables}


def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    """Start a command in a process of its own, with pipes."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [*python(), "-m", "retrieve_rerank", *map(str, arguments)]
    return subprocess.Popen(command, **{"env": environment(), **pipes, **options})


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A folder of files of every kind."""
    folder = tmp_path / "docs"
    (folder / "more").mkdir(parents=True)
    (folder / "paris.md").write_text("# Paris\n\nParis is the capital of France.\n\n## Bread\n\nBread is the bread.\n")
    (folder / "rome.txt").write_text("Rome is the capital of Italy.\n")
    (folder / "more" / "page.html").write_text(
        "<html><head><title>A page</title><script>var capital;</script></head>"
        "<body><nav>menu</nav><h1>Of words</h1><p>What is the word in France?</p></body></html>"
    )
    (folder / "more" / "facts.jsonl").write_text(
        '{"id": "f1", "text": "the word of rome", "title": "Word", "year": 2020}\n'
        '{"id": "f2", "text": "in the bread"}\n'
    )
    (folder / "table.csv").write_text("id;text\nc1;capital of capital\n")
    return folder


@pytest.fixture
def models(tiny_bi_encoder: Path, tiny_cross_encoder: Path) -> tuple[str, ...]:
    """Options that name the tiny models."""
    return "--bi-encoder", str(tiny_bi_encoder), "--cross-encoder", str(tiny_cross_encoder)


@pytest.fixture
def indexed(run: Run, docs: Path, models: tuple[str, ...]) -> Path:
    """An index of the folder."""
    run("index", docs, "--to", "made", *models)
    return docs.parent / "made"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A test collection of one question."""
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text('{"_id": "p1", "text": "paris france"}\n{"_id": "p2", "text": "rome italy"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "paris"}\n')
    (folder / "qrels.tsv").write_text("q1\tp1\t1\nq2\tp2\t1\nq3\tp2\t1\n")
    return folder
