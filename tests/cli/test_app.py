"""The front door: help, whose examples run as they stand; version; nothing heavy before it is needed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import retrieve_rerank
from retrieve_rerank.cli import evaluate, index, info, rerank, search, tune
from retrieve_rerank.cli.app import app
from tests.cli.conftest import Done, Run, environment
from tests.forking import python

COMMANDS = ["index", "search", "rerank", "evaluate", "tune", "info"]
# In the order in which a user would come to them: later ones need what earlier ones make.
MODULES = [index, evaluate, tune, search, rerank, info]


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout


def test_help_costs_little_and_imports_nothing_heavy() -> None:
    code = """
import resource, sys
sys.argv = ["retrieve-rerank", "evaluate", "--help"]
try:
    from retrieve_rerank.cli import main
    main()
except SystemExit as end:
    assert not end.code
heavy = {"torch", "chromadb", "numpy", "transformers", "ir_measures", "bm25s", "rich.markdown"} & set(sys.modules)
used = resource.getrusage(resource.RUSAGE_SELF)
print("\\n" + repr((heavy, used.ru_utime + used.ru_stime)))
"""
    heavy, seconds = eval(run_python(code).splitlines()[-1])
    assert heavy == set()
    assert seconds < 0.4  # of the processor: how fast the disk is says nothing of ours


def test_the_front_page(run: Run) -> None:
    shown = run("--help").out
    for command in COMMANDS:
        assert re.search(rf"^  {command} +[A-Z]", shown, re.MULTILINE)
        said = run(command, "--help").out
        assert "Examples:" in said
        assert re.search(r"list\[|<(?:str|int|file|path)>", said) is None
    assert max(map(len, shown.splitlines())) <= 80
    assert run("--version").out == f"retrieve-rerank {retrieve_rerank.__version__}\n"
    assert "No such command" in run("serch", status=2).err
    assert "Usage" in run("index", status=2).err


def test_every_option_says_what_it_does(run: Run) -> None:
    from typer.main import get_command

    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def examples(text: str) -> list[str]:
    return re.findall(r"^  (\S.*)$", text.split("\b\n")[1], re.MULTILINE)


@pytest.fixture
def place(tmp_path: Path, cache: Path, demo_paths: tuple[Path, Path]) -> Path:
    """What the examples are about: a folder, a dataset, files of questions."""
    cache.mkdir()
    (cache / demo_paths[1].name).symlink_to(demo_paths[1])  # or another process would merge it again
    (tmp_path / "docs").mkdir()
    for name in ("search", "statistics", "paths"):
        words = f"# About {name}\n\nHow do I install {name}? Run pip install {name}, then read the rest of this page.\n"
        (tmp_path / "docs" / f"{name}.md").write_text(
            words + f"\n## Use\n\nOpen {name} and ask it a question, {name}.\n"
        )
    (tmp_path / "faq.jsonl").write_text(
        '{"id": "1", "question": "Open?", "answer": "We are open from nine to five."}\n'
    )
    (tmp_path / "questions.txt").write_text("how do I use statistics?\nwhat are paths?\n")
    pair = {
        "query": "capital of France?",
        "passages": ["Rome is in Italy.", "Paris is the capital of France.", "A", "B"],
    }
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    folder = tmp_path / "my-dataset"
    folder.mkdir()
    corpus = {"p1": "Paris is the capital of France.", "p2": "Rome is the capital of Italy.", "p3": "Bread is baked."}
    (folder / "corpus.jsonl").write_text("".join(f'{{"_id": "{id_}", "text": "{corpus[id_]}"}}\n' for id_ in corpus))
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "capital of France?"}\n')
    (folder / "qrels.tsv").write_text("q1\tp1\t1\n")
    return tmp_path


@pytest.mark.skipif(sys.platform == "win32", reason="the examples are for a POSIX shell")
def test_the_examples_in_the_help_run_as_they_stand(run: Run, place: Path) -> None:
    """In this process; what is piped, in a shell."""
    lines = [line for module in MODULES for line in examples(module.HELP)]
    assert len(lines) >= 2 * len(COMMANDS)
    assert {shlex.split(line.split("|")[-1])[1] for line in lines} == set(COMMANDS)
    for line in lines:
        done = in_shell(line, place) if "|" in line else in_process(line, run, place)
        assert "Traceback" not in done.err
        written = re.findall(r"(?:--html|--save|--runs|--to|>) (\S+)", line)
        assert done.out or written, line
        for name in written:
            assert (place / name).exists(), line
    assert json.loads((place / "ranked.jsonl").read_text())["hits"][0]["index"] == 1


def in_process(line: str, run: Run, place: Path) -> Done:
    words = shlex.split(line, comments=True)[1:]
    stdin = None
    if "<" in words:
        at = words.index("<")
        stdin = (place / words[at + 1]).read_bytes()
        del words[at : at + 2]
    return run(*words, stdin=stdin)


def in_shell(line: str, place: Path) -> Done:
    script = place.parent / "bin" / "retrieve-rerank"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f'#!/bin/sh\nexec {shlex.join(python())} -m retrieve_rerank "$@"\n')
    script.chmod(0o755)
    known = environment(PATH=f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(
        ["sh", "-c", line], cwd=place, env=known, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def test_info_says_what_an_index_holds(run: Run, indexed: Path, models: tuple[str, ...]) -> None:
    (facts,) = run("info", "--in", "made").lines
    assert (facts["files"], facts["passages"], facts["language"], facts["complete"]) == (5, 6, "en", True)
    assert facts["kinds"] == {".md": 1, ".html": 1, ".jsonl": 1, ".txt": 1, ".csv": 1}
    assert (facts["bi_encoder"], facts["cross_encoder"]) == (models[1], models[3])
    assert "is no index" in run("info", "--in", "docs", status=1).err
