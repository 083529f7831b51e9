"""Every example runs, as a user runs it, and shows what it says."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.forking import python
from tests.search_server import search_server

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORT = [
    "langchain_chain",
    "llama_index_query_engine",
    "in_document_search",
    "simple_wikipedia",
    "another_vector_store",
    "elasticsearch_langchain",
    "elasticsearch_llama_index",
    "opensearch_langchain",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all examples, so that the demo model is merged once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _demo(demo_paths: tuple[Path, Path]) -> None:
    """Skip without the demo extra."""


def run(
    script: str, *arguments: str, cache: Path, stdin: str = "", status: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "RETRIEVE_RERANK_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
        "PYTHONIOENCODING": "utf-8",
        **variables,
    }
    command = [*python(), str(EXAMPLES / f"{script}.py"), *arguments]
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("script", SHORT)
def test_it_is_short(script: str) -> None:
    assert len((EXAMPLES / f"{script}.py").read_text(encoding="utf-8").splitlines()) < 80


@pytest.mark.slow
def test_quickstart_indexes_once_and_shows_both_orders(cache: Path) -> None:
    first = run("quickstart", "--modules", "random,statistics", "most common value", cache=cache).stdout
    assert "Indexing" in first
    assert "BEFORE" in first
    assert "AFTER" in first
    assert "statistics.mode" in first
    again = run(
        "quickstart", "--modules", "random,statistics", "--ask", cache=cache, stdin="most common value\n"
    ).stdout
    assert "reused" in again
    assert "Indexing" not in again
    assert again[again.index("most common") :].splitlines()[:8] == first[first.index("most common") :].splitlines()[:8]


@pytest.mark.slow
def test_quickstart_answers_its_own_questions_without_a_terminal(cache: Path) -> None:
    shown = run("quickstart", "--modules", "atexit,threading,time", cache=cache).stdout
    assert shown.count("AFTER") == 1
    rows = [line.split() for line in shown.partition("before  after\n")[2].splitlines()]
    ranks = {row[2]: row[:2] for row in rows if len(row) > 2}
    assert ranks["threading:"] == ["1", "1"]
    assert ranks["concurrent.futures:"] == ["–", "–"]
    assert re.search(r"^\d+ higher after re-ranking, \d+ lower, \d+ as before", shown, re.MULTILINE)


def test_quickstart_says_what_is_wrong(cache: Path) -> None:
    failed = run("quickstart", "--cross-encoder", "./nothing-here", "a question", cache=cache, status=1)
    assert "there is no folder" in failed.stderr


@pytest.mark.slow
def test_langchain_chain(cache: Path) -> None:
    shown = run("langchain_chain", cache=cache).stdout
    assert shown.index("statistics.mode") < shown.index("statistics.multimode")
    assert "> [statistics.mode] Return the most common data point" in shown


@pytest.mark.slow
def test_llama_index_query_engine(cache: Path) -> None:
    shown = run("llama_index_query_engine", cache=cache).stdout
    assert "1." in shown or "1 " in shown
    assert "→" in shown


def test_another_vector_store_gives_the_same(cache: Path) -> None:
    shown = run("another_vector_store", cache=cache).stdout
    ours, other = shown.split("ChromaVectorStore\n")[1].split("\n  InMemoryVectorStore\n")
    assert ours.split() == other.split()
    assert ours.count("(similarity 0.") == 3


@pytest.mark.slow
def test_in_document_search(cache: Path, tmp_path: Path) -> None:
    document = tmp_path / "document.txt"
    paragraphs = ["The shop opens at nine.", "Parcels arrive within two days.", "You can return shoes for 30 days."]
    document.write_text("\n\n".join(paragraphs), encoding="utf-8")
    shown = run("in_document_search", str(document), "When does the shop open?", cache=cache).stdout
    assert shown.index("opens at nine") < shown.index("Parcels")
    assert run("in_document_search", cache=cache).stdout


@pytest.mark.slow
def test_simple_wikipedia(cache: Path, tmp_path: Path) -> None:
    articles = [
        {"id": "1", "title": "Paris", "paragraphs": ["Paris is the capital of France.", "It lies on the Seine."]},
        {"id": "2", "title": "Bread", "paragraphs": ["Bread is a food made of flour and water."]},
    ]
    file = tmp_path / "simplewiki-2020-11-01.jsonl.gz"
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(article) + "\n" for article in articles)
    shown = run("simple_wikipedia", str(file), "What is the capital of France?", cache=cache).stdout
    assert "Paris" in shown
    missing = run("simple_wikipedia", str(tmp_path / "none.jsonl.gz"), cache=cache, status=2)
    assert "https://sbert.net/datasets/simplewiki-2020-11-01.jsonl.gz" in missing.stdout + missing.stderr


# What a server answers to the question of the example, without the filter's "paris", which would be first.
SERVED = {"toast": 2.0, "ingredients": 1.5, "cake": 0.25}
QUESTION = "What do I need to bake bread?"
SERVERS = {
    "elasticsearch_langchain": "ELASTICSEARCH_URL",
    "elasticsearch_llama_index": "ELASTICSEARCH_URL",
    "opensearch_langchain": "OPENSEARCH_URL",
}


@pytest.mark.parametrize(
    ("script", "product", "searches", "scores"),
    [
        ("elasticsearch_langchain", "elasticsearch", 2, ["BM25 1.50, was 2", "BM25 2.00, was 1", "BM25 0.25, was 3"]),
        ("elasticsearch_llama_index", "elasticsearch", 1, ["0.71, was 2", "1.00, was 1", "0.00, was 3"]),
        ("opensearch_langchain", "opensearch", 1, ["BM25 1.50, was 2", "BM25 2.00, was 1", "BM25 0.25, was 3"]),
    ],
)
def test_search_servers_are_asked_in_their_language_and_their_scores_are_kept(
    cache: Path, script: str, product: str, searches: int, scores: list[str]
) -> None:
    with search_server(SERVED, product) as server:
        shown = run(script, cache=cache, **{SERVERS[script]: server.url}).stdout
    assert len(server.stored) == 6
    assert len(server.searches()) == searches
    for body in server.searches():
        assert body["size"] == 50
        asked = body["query"]["bool"]
        key = "name" if product == "opensearch" else "metadata.name.keyword"
        assert asked["filter"] == [{"bool": {"must_not": {"term": {key: "paris"}}}}]
        (must,) = asked["must"] if isinstance(asked["must"], list) else [asked["must"]]
        ((text, match),) = must["match"].items()
        assert (match if isinstance(match, str) else match["query"]) == QUESTION
        assert all(QUESTION not in source[text] for source in server.stored.values())  # it is the texts' own field
    places = [shown.index(score) for score in scores]  # the cross-encoder's order, not the server's
    assert places == sorted(places)
    assert shown.count(scores[0]) == searches


@pytest.mark.parametrize("script", list(SERVERS))
def test_search_servers_themselves(cache: Path, script: str) -> None:
    if not os.environ.get(SERVERS[script]):
        pytest.skip(f"{SERVERS[script]} is not set")
    shown = run(script, cache=cache).stdout
    assert "was 1)" in shown
    assert "paris" not in shown.lower()
