"""The doors of evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.generated import KEPT, TEXTS, Door


def evaluation(folder: Path) -> Iterator[Door]:
    from retrieve_rerank import BM25Index, Passage, RetrieveRerank
    from retrieve_rerank.evaluation import Dataset, Evaluation, evaluate, load_dataset, load_run, sample_questions, tune

    passages = [Passage(id_, text, {"title": "Paris"}) for id_, text in zip(KEPT, TEXTS, strict=False)]
    queries = {"q1": "capital of France", "q2": "word"}
    judgements = {"q1": {"keep-0": 1, "keep-2": 0}, "q2": {"keep-1": 2}}
    dataset = Dataset("toy", passages, queries, judgements)
    words = BM25Index()
    words.add(passages)

    class Scorer:
        model, fingerprint = "lengths", {"model": "lengths"}

        def score(self, query: str, texts: list[str]) -> list[float]:
            return [float(len(text)) for text in texts]

    search = RetrieveRerank(words, Scorer(), fetch_k=3)
    measured = evaluate({"words": words, "search": search}, dataset, ["RR@10"], resamples=100)
    measured.to_json(folder / "evaluation.json")
    lines = {
        "corpus.jsonl": [{"_id": "keep-0", "text": "paris", "title": "Paris"}, {"_id": "keep-1", "text": "rome"}],
        "queries.jsonl": [{"_id": "q1", "text": "paris"}],
    }

    def written(name: str, content: object) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else json_line(content))
        return folder / name

    def loaded(corpus: Any, questions: Any, judged: Any) -> object:
        for name, content in (("corpus.jsonl", corpus), ("queries.jsonl", questions)):
            content = content if isinstance(content, list) else [content]
            (folder / name).write_bytes(b"\n".join(map(json_line, content)))
        rows = judged if isinstance(judged, list) else [judged]
        (folder / "qrels.tsv").write_bytes(
            b"\n".join(row if isinstance(row, bytes) else str(row).encode("utf-8", "replace") for row in rows)
        )
        return load_dataset(folder)

    def report(result: Evaluation) -> object:
        return (result.to_html(folder / "report.html"), result.to_markdown(), repr(result))

    def shown(name: Any, id_: Any, text: Any, question: Any) -> object:
        one = Dataset(name, [Passage(id_, text)], {"q": question}, {"q": {id_: 1}})
        return report(evaluate({name: words}, one, ["RR@10"], resamples=10))

    yield Door(
        "Dataset",
        Dataset,
        {"name": "toy", "passages": passages, "queries": queries, "judgements": judgements, "weak": None},
    )
    yield Door("Dataset.sample", dataset.sample, {"n": 1, "seed": 0})
    yield Door(
        "evaluate",
        evaluate,
        {
            "pipelines": {"words": words, "search": search},
            "dataset": dataset,
            "measures": ["RR@10", "nDCG@5"],
            "fetch_k": 3,
            "resamples": 50,
            "seed": 0,
            "cache": None,
        },
    )
    yield Door(
        "tune",
        tune,
        {
            "first_stages": {"words": words},
            "cross_encoders": {"m": Scorer()},
            "dataset": dataset,
            "measure": "RR@10",
            "depths": [1, 3],
            "latency_budget": 1.0,
            "quality": None,
            "scores": "logits",
            "cache": None,
            "resamples": 50,
            "seed": 0,
        },
    )
    pages = [
        Passage(id_, f"{text} More is on the next page.", {"title": f"Page {id_} of many"})
        for id_, text in zip(KEPT, TEXTS, strict=False)
    ]
    yield Door("sample_questions", sample_questions, {"passages": pages, "n": 2, "seed": 0, "name": "made"})
    right = folder / "right"
    right.mkdir()
    for name, rows in lines.items():
        (right / name).write_bytes(b"\n".join(map(json_line, rows)))
    (right / "qrels.tsv").write_text("q1\tkeep-0\t1", encoding="utf-8")
    (right / "run.txt").write_text("q1 Q0 keep-0 1 0.5 run", encoding="utf-8")
    yield Door("load_dataset", load_dataset, {"folder": str(right)})
    yield Door(
        "a dataset's files",
        loaded,
        {"corpus": lines["corpus.jsonl"], "questions": lines["queries.jsonl"], "judged": ["q1\tkeep-0\t1"]},
    )
    yield Door(
        "a run's file",
        lambda content: load_run(written("run.txt", content), dataset),
        {"content": b"q1 Q0 keep-0 1 0.5 run"},
    )
    yield Door("load_run", load_run, {"file": str(right / "run.txt"), "dataset": dataset})
    yield Door(
        "Evaluation.load",
        lambda content: report(Evaluation.from_json(written("saved.json", content))),
        {"content": json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))},
    )
    yield Door("report", shown, {"name": "toy", "id_": "keep-0", "text": "Paris is the capital", "question": "capital"})
    yield Door("to_html", measured.to_html, {"path": str(folder / "report.html")})


def json_line(content: object) -> bytes:
    """Return what JSON can say of a value, and anything else in its own words."""
    if isinstance(content, bytes):
        return content
    try:
        return json.dumps(content, default=lambda value: f"{value!r:.50}").encode("utf-8", "surrogatepass")
    except Exception:  # noqa: BLE001 - whatever it is
        return b"[" * 100_000
