"""The command line's doors, called in this process."""

from __future__ import annotations

import functools
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from tests.generated import Door
from tests.generated.evaluation import json_line


def command_line(folder: Path) -> Iterator[Door]:  # noqa: C901 - a function a door
    from typer import testing

    from retrieve_rerank.cli.app import app
    from retrieve_rerank.models import loading
    from tests import tiny

    # Most of the time, and none of it depends on the call.
    for place, name in ((loading, "load_bi_encoder"), (loading, "load_cross_encoder"), (testing, "_get_command")):
        setattr(place, name, functools.cache(getattr(place, name)))

    for name in ("bi", "cross", "docs", "toy"):
        (folder / name).mkdir()
    models = [
        "--bi-encoder",
        str(tiny.save_bi_encoder(folder / "bi")),
        "--cross-encoder",
        str(tiny.save_cross_encoder(folder / "cross")),
    ]
    (folder / "docs" / "paris.md").write_text("# Paris\n\nParis is the capital of France.\n", encoding="utf-8")
    os.environ["RETRIEVE_RERANK_CACHE"] = str(folder / "cache")
    os.chdir(folder)

    def run(*arguments: object) -> None:
        given = []
        for argument in arguments:  # what a shell could hand over
            text = (
                argument
                if type(argument) is str
                else f"{argument!r:.1000}"
                if type(argument) in (int, float, bool)
                else type(argument).__name__
            )
            given.append(text.replace("\0", "")[:100_000])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = testing.CliRunner().invoke(app, given)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        if done.exit_code not in (0, 1, 2) or "Traceback (" in done.stderr or "unexpected " in done.stderr:
            raise AssertionError(f"status {done.exit_code}: {done.stderr[-300:]}")
        longest = max(map(len, done.stderr.encode("utf-8", "replace").splitlines()), default=0)
        if longest > 2_200:
            raise AssertionError(f"a line of {longest} bytes on stderr: {done.stderr[:100]}")

    run("index", "docs", "--to", "made", *models)

    def after() -> None:
        run("search", "capital", "--in", "made", "--first-stage", "bm25", "--no-rerank")

    def soup(content: object, ending: str) -> None:
        (folder / "odd").mkdir(exist_ok=True)
        for old in (folder / "odd").iterdir():
            old.unlink()
        (folder / "odd" / f"file{ending}").write_bytes(json_line(content)[:20_000])
        (folder / "odd" / "good.txt").write_text("Rome is in Italy.", encoding="utf-8")
        run("index", "odd", "--to", "odd-index", *models)

    def lines(first: object, query: object, passages: object) -> None:
        (folder / "pairs.jsonl").write_bytes(
            json_line(first) + b"\n" + json_line({"query": query, "passages": passages})
        )
        run("rerank", "pairs.jsonl", "--json", *models[2:])

    def setting(content: object) -> None:
        (folder / "setting.json").write_bytes(json_line(content))
        run("search", "capital", "--in", "made", "--setting", "setting.json")

    def toy(corpus: object, questions: object, judged: object, measure: object) -> None:
        (folder / "toy" / "corpus.jsonl").write_bytes(json_line(corpus))
        (folder / "toy" / "queries.jsonl").write_bytes(json_line(questions))
        (folder / "toy" / "qrels.tsv").write_bytes(
            judged if isinstance(judged, bytes) else str(judged)[:10_000].encode("utf-8", "replace")
        )
        run("evaluate", "toy", "--first-stage", "bm25", "--measure", measure, *models[2:])

    def record(content: object) -> None:
        strange = f"strange-{len(list(folder.glob('strange-*')))}"
        shutil.copytree(folder / "made", folder / strange)
        (folder / strange / "retrieve-rerank.json").write_bytes(json_line(content))
        run("search", "capital", "--in", strange, *quick)
        run("info", "--in", strange)
        run("evaluate", "--in", strange, "--first-stage", "bm25", *models[2:])
        run("index", "docs", "--to", strange, *models)

    quick = ("--first-stage", "bm25", "--no-rerank")
    yield Door("search", lambda query: run("search", query, "--in", "made", *quick), {"query": "capital"}, after)
    yield Door(
        "search with",
        lambda **of: run(
            "search",
            "capital",
            "--in",
            "made",
            *quick,
            *(part for name, value in of.items() for part in (f"--{name.replace('_', '-')}", value)),
        ),
        {"where": "kind=fact", "top_n": 3, "fetch_k": 3, "threshold": 0.1},
    )
    yield Door(
        "where",
        lambda key, sign, value: run(
            "search",
            "capital",
            "--in",
            "made",
            *quick,
            "--where",
            f"{key}{sign}{value}"
            if all(
                type(part) in (str, int, float) and abs(part if not isinstance(part, str) else 0) < 2**70
                for part in (key, sign, value)
            )
            else "x",
        ),
        {"key": "n", "sign": ">=", "value": 3},
    )
    yield Door(
        "search in",
        lambda folder, query: run("search", query, "--in", folder, *quick),
        {"folder": "made", "query": "capital"},
    )
    yield Door(
        "rerank",
        lines,
        {
            "first": {"query": "paris", "passages": ["a"]},
            "query": "paris",
            "passages": ["a", {"id": "b", "text": "rome", "metadata": {"c": 1}}],
        },
    )
    yield Door(
        "rerank with",
        lambda **of: run("rerank", of["file"], "--top-n", of["top_n"], "--threshold", of["threshold"], *models[2:]),
        {"file": "pairs.jsonl", "top_n": 3, "threshold": 0.1},
    )
    yield Door(
        "setting", setting, {"content": {"format": 1, "first_stage": "bm25", "fetch_k": 20, "cross_encoder": None}}
    )
    yield Door(
        "evaluate",
        toy,
        {
            "corpus": {"_id": "a", "text": "paris"},
            "questions": {"_id": "q", "text": "paris"},
            "judged": "q\ta\t1",
            "measure": "RR@10",
        },
    )
    yield Door(
        "evaluate with",
        lambda **of: run("evaluate", of["dataset"], "--qrels", of["qrels"], "--from", of["saved"]),
        {"dataset": "toy", "qrels": "toy/qrels.tsv", "saved": "saved.json"},
    )
    made = json.loads((folder / "made" / "retrieve-rerank.json").read_text(encoding="utf-8"))
    yield Door("an index's record", record, {"content": made}, after)
    for ending in (".md", ".txt", ".html", ".jsonl", ".csv", ".tsv", ".json", ".pdf", ".docx", ".ipynb", ".rst"):
        yield Door(
            f"index {ending}",
            lambda content, ending=ending: soup(content, ending),
            {"content": {"text": "paris", "id": "a"}},
        )
