"""Storing passages and finding them by their words."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import bm25s
import numpy as np
import pytest

from retrieve_rerank import (
    AddReport,
    BM25Index,
    MissingDependencyError,
    Passage,
    RetrieveRerankError,
)
from retrieve_rerank.indexes.bm25_files import Rows
from retrieve_rerank.indexes.records import Record
from retrieve_rerank.indexes.words import Analyzer
from tests.core.stubs import passages

ENGLISH = Analyzer("en")

THREE = [
    Passage("x", "alpha alpha", {"n": 1}),
    Passage("y", "alpha beta", {"n": 2}),
    Passage("z", "gamma gamma", {"n": 3, "tags": ["t"]}),
]
# Paragraphs of Python's documentation: real text, wherever the tests run.
PARAGRAPHS = [part for topic in sorted(topics) for part in topics[topic].split("\n\n") if len(part) > 40]
QUERIES = [" ".join(part.split()[3:10]) for part in PARAGRAPHS[::40]] + ["the", "x", "no-such-word zzzz", "class class"]


@pytest.fixture
def index() -> Iterator[BM25Index]:
    with BM25Index() as index:
        yield index


def ids(index: BM25Index, query: str, k: int = 100, **options: Any) -> list[str]:
    return [hit.passage.id for hit in index.retrieve(query, k, **options)]


def cut(text: str) -> list[str]:
    """Cut a text as an index does whose language is English."""
    return [stem for word in ENGLISH.words(text) if (stem := ENGLISH.stem(word)) is not None]


@pytest.fixture(scope="module")
def documented() -> BM25Index:
    index = BM25Index(tokenizer=cut)
    index.add(passages(*PARAGRAPHS))
    return index


@pytest.fixture(scope="module")
def reference() -> Any:
    """What bm25s finds for the same words, called directly."""
    model = bm25s.BM25()
    model.index([cut(text) for text in PARAGRAPHS], show_progress=False)

    def scores(query: str) -> np.ndarray:
        known = [word for word in cut(query) if word in model.vocab_dict]
        return model.get_scores(known) if known else np.zeros(len(PARAGRAPHS), np.float32)

    return scores


@pytest.mark.parametrize("query", QUERIES)
def test_scores_and_order_are_those_of_bm25s_on_real_text(query: str, documented: BM25Index, reference: Any) -> None:
    scores = reference(query)
    expected = [int(slot) for slot in np.lexsort((np.arange(len(scores)), -scores)) if scores[slot] > 0]
    for k in (1, 10, 100_000):
        hits = documented.retrieve(query, k)
        assert [hit.passage.id for hit in hits] == [str(slot) for slot in expected[:k]]
        assert [hit.score for hit in hits] == pytest.approx(scores[expected[:k]].tolist(), abs=1e-6)


@pytest.mark.parametrize("query", ["the and of", "unknown", "x", "!?", "zeta the"])
def test_no_word_in_common_is_no_hit(index: BM25Index, query: str) -> None:
    index.add([*THREE, Passage("empty", ""), Passage("stop", "the and of")])
    assert index.retrieve(query) == []
    assert index.retrieve_many([query, "alpha"])[0] == []


def test_of_equal_scores_the_one_stored_earlier_comes_first(index: BM25Index) -> None:
    index.add(passages(*["same words"] * 50))
    assert ids(index, "words", 7) == [str(number) for number in range(7)]
    index.add([Passage("3", "same word")])  # stored again: now the last
    assert ids(index, "words")[-2:] == ["49", "3"]


@pytest.mark.parametrize(
    "metadata",
    [
        {"none": None, "empty": [], "deep": {"a": [1, "two", None, {"b": True}]}, "": "no name", "$x": 1, "#x": 2},
        {"big": 2**80, "small": 5e-324, "third": 1 / 3, "minus": -0.0, "mixed": [1, "a"], "ä\n": "\x00é漢😀"},
    ],
)
def test_metadata_come_back_as_they_were(index: BM25Index, metadata: dict[str, Any]) -> None:
    index.add([Passage("x", "alpha", metadata)])
    found = index.get(["x"])[0].metadata
    assert repr(sorted(found.items())) == repr(sorted(metadata.items()))  # which tells 1 from True and 0.0 from -0.0
    assert index.retrieve("alpha")[0].passage.metadata == metadata


def test_a_batch_whose_words_cannot_be_cut_leaves_nothing(tmp_path: Path) -> None:
    def cut(text: str) -> list[str]:
        if text == "bad":
            raise ZeroDivisionError
        return text.split()

    with BM25Index(path=tmp_path, tokenizer=cut) as index:
        index.add(passages("alpha"))
        assert ids(index, "alpha") == ["0"]
        with pytest.raises(ZeroDivisionError):
            index.add([Passage("1", "new"), Passage("2", "bad")])
        assert (index.count(), ids(index, "new"), ids(index, "new alpha")) == (1, [], ["0"])
        index.save()
        assert ids(index, "new alpha") == ["0"]
        index.delete(["0"])
        assert ids(index, "alpha") == []


def test_an_index_that_changes_for_ever_does_not_grow_for_ever(index: BM25Index) -> None:
    index.add(passages(*["kept alpha"] * 10))
    for number in range(60):
        index.add([Passage(f"m{place}", f"moving n{number}") for place in range(100)])
        assert len(index.retrieve("moving", 1000)) == 100
    assert len(index._content.rows) == 110
    assert {passage.text for passage in index.get([f"m{place}" for place in range(100)])} == {"moving n59"}


def test_filters_come_before_the_best_are_chosen(index: BM25Index) -> None:
    many = [Passage(f"m{number}", "alpha alpha alpha", {"kind": "common"}) for number in range(500)]
    rare = [
        Passage(f"r{number}", f"alpha and {number} words more of something else", {"kind": "rare"})
        for number in range(5)
    ]
    index.add(many + rare)
    assert sorted(ids(index, "alpha", 5, where={"kind": "rare"})) == [f"r{number}" for number in range(5)]
    assert ids(index, "alpha", 2, where={"kind": "rare"}) == ids(index, "alpha", 5, where={"kind": "rare"})[:2]
    assert ids(index, "alpha", 5, where={"kind": "none"}) == []
    assert ids(index, "alpha", 5, where_document={"$contains": "3 words"}) == ["r3"]
    everything = {hit.passage.id: hit.score for hit in index.retrieve("alpha", 10**6)}
    for hit in index.retrieve("alpha", 5, where={"kind": "rare"}):
        assert hit.score == everything[hit.passage.id]  # a filter changes no score
    assert [hit.rank for hit in index.retrieve("alpha", where={"kind": "rare"})] == [1, 2, 3, 4, 5]
    assert index.retrieve_many(["alpha"], 5, where={"kind": "rare"}) == [
        index.retrieve("alpha", 5, where={"kind": "rare"})
    ]


async def test_many_and_async_find_what_one_does(documented: BM25Index) -> None:
    one_by_one = [documented.retrieve(query, 9) for query in QUERIES]
    assert documented.retrieve_many(QUERIES, 9) == one_by_one
    assert list(await asyncio.gather(*(documented.aretrieve(query, 9) for query in QUERIES))) == one_by_one
    assert await documented.aretrieve_many(QUERIES, 9) == one_by_one


async def test_async_runs_on_the_worker_of_the_index(index: BM25Index) -> None:
    names = []

    def cut(text: str) -> list[str]:
        names.append(threading.current_thread().name)
        return text.split()

    with BM25Index(tokenizer=cut) as index:
        index.add(passages("alpha"))
        names.clear()
        assert len(await index.aretrieve("alpha")) == 1
        assert len((await index.aretrieve_many(["alpha"]))[0]) == 1
    assert all(name.startswith("retrieve-rerank BM25 index") for name in names)


def test_threads_may_add_and_search_at_once(index: BM25Index) -> None:
    def work(number: int) -> tuple[bool, bool]:
        mine = [Passage(f"{number}-{part}", f"common word{number}") for part in range(25)]
        index.add(mine, batch_size=5)
        found = index.retrieve(f"word{number}", 100)
        assert len(index.retrieve("common", 3)) == 3
        return {hit.passage.id for hit in found} == {passage.id for passage in mine}, index.get([mine[3].id]) == [
            mine[3]
        ]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(8))) == [(True, True)] * 8
    assert index.count() == 200
    assert len(index.retrieve("common", 1000)) == 200


def test_the_formula_may_be_tuned(index: BM25Index) -> None:
    index.add([Passage("long", "alpha alpha beta gamma delta"), Passage("short", "alpha")])
    assert ids(index, "alpha") == ["short", "long"]
    with BM25Index(b=0.0) as tuned:
        tuned.add([Passage("long", "alpha alpha beta gamma delta"), Passage("short", "alpha")])
        assert ids(tuned, "alpha") == ["long", "short"]


def test_a_closed_index_says_so(index: BM25Index) -> None:
    index.add(THREE)
    index.close()
    index.close()
    for call in (lambda: index.retrieve("alpha"), index.count, lambda: index.add(THREE), index.clear, index.save):
        with pytest.raises(RetrieveRerankError, match="was closed"):
            call()


def test_repr_says_what_it_is() -> None:
    assert repr(BM25Index(language="de")) == "BM25Index(path=None, language='german')"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "retrieve-rerank\[hybrid\]"'):
        BM25Index()


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("at", range(3))
def test_an_add_that_is_interrupted_leaves_what_was_there(
    at: int, stored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passages had their neighbour's words afterwards, or no search worked any more."""
    index = BM25Index(path=tmp_path)
    index.add([Passage("a", "alpha"), Passage("b", "beta beta")])
    if stored:
        index.save()
    index.add([Passage("c", "gamma")])
    calls = 0
    append = Rows.append

    def interrupted(rows: Rows, record: Record) -> None:
        nonlocal calls
        calls += 1
        append(rows, record)
        if calls == at + 1:
            raise KeyboardInterrupt

    batch = [Passage("d", "delta"), Passage("b", "epsilon epsilon epsilon"), Passage("e", "beta")]
    monkeypatch.setattr(Rows, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index.add(batch)
    monkeypatch.undo()
    assert index.count() == 3
    assert {word: [hit.passage.id for hit in index.retrieve(word)] for word in ("alpha", "beta", "gamma", "delta")} == {
        "alpha": ["a"],
        "beta": ["b"],
        "gamma": ["c"],
        "delta": [],
    }
    assert index.add(batch) == AddReport(added=2, updated=1)
    index.save()
    for word, ids in {"alpha": ["a"], "beta": ["e"], "gamma": ["c"], "delta": ["d"], "epsilon": ["b"]}.items():
        assert [hit.passage.id for hit in index.retrieve(word)] == ids
    assert index.get(["b", "e"]) == batch[1:]
    index.close()
