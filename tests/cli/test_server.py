"""A cross-encoder at an inference server, named by its address."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.test_evaluate import dataset
from tests.inference_server import InferenceServer, inference_server

__all__ = ["dataset"]


class SharedWords:
    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        return [float(len(set(query.split()) & set(text.split()))) - len(text) / 1000 for text in texts]


@pytest.fixture
def server() -> Iterator[InferenceServer]:
    with inference_server("tei", scorer=SharedWords()) as running:
        yield running


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"query": "capital of france", "passages": ["bread", "the capital of france"]}))
    return file


def test_lines_are_ordered_by_the_servers_scores(run: Run, server: InferenceServer, pairs: Path) -> None:
    (done,) = run("rerank", pairs, "--cross-encoder", server.url).lines
    assert [(hit["index"], hit["logit"]) for hit in done["hits"]] == [(1, 3 - 0.021), (0, -0.005)]


def test_evaluated_and_tuned_and_searched(
    run: Run, server: InferenceServer, dataset: Path, docs: Path, tiny_bi_encoder: Path
) -> None:
    options = ("--cross-encoder", server.url, "--first-stage", "bm25")
    name = f"bm25 → {server.url.removeprefix('http://')}"
    lines = run("evaluate", dataset, *options, "--runs", "runs").lines
    assert [line["system"] for line in lines] == ["bm25", name]
    assert len(list((dataset.parent / "runs").glob("*.run"))) == 2
    run("tune", dataset, *options, "--depth", 2, "--save", "setting.json")
    assert json.loads((dataset.parent / "setting.json").read_text())["first_stage"] == "bm25"
    asked = len(server.asked)
    run("index", docs, "--to", "made", "--bi-encoder", tiny_bi_encoder, "--cross-encoder", server.url)
    hits = run("search", "capital of france", "--in", "made").lines
    assert hits[0]["logit"] == max(hit["logit"] for hit in hits)
    assert len(server.asked) > asked


def test_a_server_that_only_the_index_names_gets_no_key(
    run: Run, server: InferenceServer, docs: Path, tiny_bi_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRIEVE_RERANK_API_KEY", "key-of-this-machine")
    run("index", docs, "--to", "made", "--bi-encoder", tiny_bi_encoder, "--cross-encoder", server.url)
    search = ("search", "capital of france", "--in", "made")
    assert run(*search).lines
    assert [sent["authorization"] for sent in server.headers if "authorization" in sent] == []
    assert run(*search, "--cross-encoder", server.url).lines
    assert server.headers[-1]["authorization"] == "Bearer key-of-this-machine"


def test_a_device_is_of_no_use_to_a_server(run: Run, server: InferenceServer, pairs: Path) -> None:
    refused = run("rerank", pairs, "--cross-encoder", server.url, "--device", "cpu", status=1)
    assert "device" in refused.err
    assert "endpoint" in refused.err
