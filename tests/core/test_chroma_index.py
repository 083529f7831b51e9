"""Storing and finding passages."""

from __future__ import annotations

import asyncio
import math
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from retrieve_rerank import AddReport, ChromaIndex, Passage
from tests.core.stubs import LetterEncoder, passages

THREE = [Passage("x", "aa", {"n": 1}), Passage("y", "ab", {"n": 2}), Passage("z", "cc", {"n": 3, "tags": ["t"]})]


@pytest.fixture
def index() -> Iterator[ChromaIndex]:
    with ChromaIndex(LetterEncoder()) as index:
        yield index
        index.clear()


def texts(index: ChromaIndex, *ids: str) -> list[str]:
    return [passage.text for passage in index.get(ids)]


def test_what_is_added_is_there(index: ChromaIndex) -> None:
    assert index.count() == 0
    assert index.add(THREE) == AddReport(added=3)
    assert index.count() == 3
    assert index.get(["z", "no", "x", "z"]) == [THREE[2], THREE[0]]
    assert index.get([]) == index.get(["no"]) == []
    assert index.add([]) == index.add(iter(())) == AddReport()


def test_upsert_replaces_text_and_metadata(index: ChromaIndex) -> None:
    index.add([Passage("x", "aa", {"kept": 1, "changed": 1, "gone": 1, "was list": ["a"]})])
    new = Passage("x", "bb", {"kept": 1, "changed": "two", "new": None, "was list": "flat"})
    assert index.add([new]) == AddReport(updated=1)
    assert index.get(["x"]) == [new]
    assert index.retrieve("bb")[0].retrieval_score == pytest.approx(1.0)
    assert index.retrieve("b", where={"kept": 1})[0].passage == new
    assert index.retrieve("b", where={"gone": 1}) == []
    assert index.add([Passage("x", "bb")]) == AddReport(updated=1)
    assert index.get(["x"]) == [Passage("x", "bb")]


def test_unchanged_passages_are_not_encoded_again(index: ChromaIndex) -> None:
    encoder: Any = index.encoder
    index.add(THREE)
    encoder.documents.clear()
    changed = [THREE[0], Passage("y", "ab", {"n": 20}), Passage("z", "ca", THREE[2].metadata), Passage("new", "b")]
    assert index.add(changed) == AddReport(added=1, updated=2, unchanged=1)
    assert encoder.documents == ["ca", "b"]  # of "ab" only the metadata changed
    assert index.add(changed) == AddReport(unchanged=4)
    assert encoder.documents == ["ca", "b"]


class Scattered(LetterEncoder):
    """A vector of 16 random numbers for every text, the same each time."""

    def __init__(self) -> None:
        super().__init__(dimension=16, fingerprint={"model": "scattered", "dimension": 16})

    def _encode(self, texts: Sequence[str]) -> Any:
        rows = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=16) for text in texts]
        return np.array(rows, np.float32).reshape(len(texts), 16)


def test_equal_texts_are_found_after_their_metadata_changed() -> None:
    """Chroma loses equal vectors that are written again: a third of these could not be found by any search."""
    with ChromaIndex(Scattered()) as index:
        for version in (1, 2):
            others = [Passage(f"o{number}", f"text {number}", {"v": version}) for number in range(500)]
            equal = [Passage(f"e{number}", "the same", {"v": version, "n": number}) for number in range(80)]
            index.add([*others, *equal])
        assert all(index.retrieve("q", 1, where={"n": number}) for number in range(80))
        assert index.check().unreached == ()


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
async def test_what_chromas_index_does_not_lead_to_is_found_all_the_same(metric: Any) -> None:
    """Written again among equal ones, with another text: some have no way to them any more."""
    with ChromaIndex(Scattered(), metric=metric) as index:
        index.add([Passage(f"o{number}", f"text {number}") for number in range(300)])
        index.add([Passage(f"e{number}", "the same", {"n": number}) for number in range(80)])
        for attempt in range(20):  # mostly once is enough: the graph is made by chance
            index.add([Passage(f"e{number}", f"the new one {attempt}", {"n": number}) for number in range(80)])
            if index.check().unreached:
                break
        else:
            pytest.fail("Chroma reached everything twenty times: does it lose nothing any more?")
        for hits in (
            index.retrieve("q", 80, where={"n": {"$gte": 0}}),
            await index.aretrieve("q", 80, where={"n": {"$gte": 0}}),
        ):
            assert sorted(hit.passage.metadata["n"] for hit in hits) == list(range(80))
            scores = [hit.retrieval_score for hit in hits]
            assert scores == pytest.approx([scores[0]] * 80, abs=1e-5)
        everything = index.retrieve("q", 1000)
        assert len(everything) == 380
        vector = index.encoder.encode_queries(["q"])[0]
        stored = {
            p.id: index.encoder.encode_documents([p.text])[0] for p in index.get([h.passage.id for h in everything])
        }
        by_hand = {
            "cosine": lambda v: float(v @ vector / np.linalg.norm(v) / np.linalg.norm(vector)),
            "dot": lambda v: float(v @ vector),
            "euclidean": lambda v: 1 / (1 + float(np.linalg.norm(v - vector))),
        }[metric]
        for hit in everything:
            assert hit.retrieval_score == pytest.approx(by_hand(stored[hit.passage.id]), abs=1e-4)
        scores = [hit.score for hit in everything]
        assert scores == sorted(scores, reverse=True)
        assert [len(hits) for hits in index.retrieve_many(["q", "text 3"], 1000)] == [380, 380]


def test_of_equal_ids_in_one_call_the_last_wins(index: ChromaIndex) -> None:
    index.add([Passage("x", "first", {"n": 1}), Passage("y", "other"), Passage("x", "last")])
    assert index.get(["x"]) == [Passage("x", "last")]
    assert index.count() == 2
    index.add([Passage(f"{number % 3}", f"text {number}") for number in range(10)], batch_size=2)
    assert texts(index, "0", "1", "2") == ["text 9", "text 7", "text 8"]


def test_batches_have_the_size_asked_for_and_no_more_than_chroma_takes(index: ChromaIndex) -> None:
    encoder: Any = index.encoder
    index.add(passages(*"abcabca"), batch_size=3)
    assert encoder.calls == [3, 3, 1]
    encoder.calls.clear()
    limit = index.collection.max_batch
    assert index.add(passages(*["a"] * (limit + 100)), batch_size=10**6).added == limit + 100 - 7
    assert max(encoder.calls) <= limit
    assert index.count() == limit + 100


def test_delete_takes_what_is_there_and_clear_takes_all(index: ChromaIndex) -> None:
    index.add(THREE)
    index.delete(["y", "no such id", "y"])
    assert [passage.id for passage in index.get(["x", "y", "z"])] == ["x", "z"]
    index.delete([])
    index.delete(["only", "missing"])
    assert index.count() == 2
    index.clear()
    assert (index.count(), index.retrieve("aa"), index.retrieve_many(["aa", "b"])) == (0, [], [[], []])
    index.clear()
    assert index.add(THREE) == AddReport(added=3)


@pytest.mark.parametrize(
    ("metric", "similarity"),
    [
        ("cosine", lambda q, d: q @ d / np.linalg.norm(q) / np.linalg.norm(d)),
        ("dot", lambda q, d: q @ d),
        ("euclidean", lambda q, d: 1 / (1 + np.linalg.norm(q - d))),
    ],
)
def test_scores_are_similarities_worked_out_by_hand(metric: str, similarity: Any) -> None:
    encoder = LetterEncoder(metric)
    documents = ["aaaa", "a", "ab", "ccc", "bbbbbbbbb", ""]
    with ChromaIndex(encoder) as index:
        index.add(passages(*documents))
        hits = index.retrieve("aab", k=10)
    query = np.array(encoder.vector("aab"))
    expected = {text: similarity(query, np.array(encoder.vector(text))) for text in documents}
    assert {hit.passage.text: hit.retrieval_score for hit in hits} == pytest.approx(expected, abs=1e-6)
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) >= 0
    assert [(hit.rank, hit.retrieval_rank) for hit in hits] == [(rank, rank) for rank in range(1, 7)]
    assert all(type(score) is float for score in scores)
    assert all(hit.logit is None and hit.score == hit.retrieval_score for hit in hits)


def test_the_best_scores_are_exact_enough_to_be_similarities() -> None:
    vectors = {"same": [0.6, 0.8], "opposite": [-0.6, -0.8], "zero": [0.0, 0.0]}
    with ChromaIndex(LetterEncoder(vector=vectors.__getitem__, dimension=2)) as index:
        index.add(passages(*vectors))
        scores = {hit.passage.text: hit.score for hit in index.retrieve("same")}
    assert scores == pytest.approx({"same": 1.0, "zero": 0.0, "opposite": -1.0}, abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 100, np.int64(2), np.int32(2)])
def test_k_is_the_most_that_comes_back(index: ChromaIndex, k: Any) -> None:
    index.add(THREE)
    assert len(index.retrieve("aa", k)) == min(3, k)
    assert len(index.retrieve_many(["aa"], k)[0]) == min(3, k)


async def test_many_and_async_find_what_one_does(index: ChromaIndex) -> None:
    index.add(THREE)
    queries = ["aa", "cab", "b"]
    one_by_one = [index.retrieve(query, 2) for query in queries]
    assert index.retrieve_many(queries, 2) == one_by_one
    assert list(await asyncio.gather(*(index.aretrieve(query, 2) for query in queries))) == one_by_one
    assert await index.aretrieve("aa", where={"n": 3}) == index.retrieve("aa", where={"n": 3})
    assert index.retrieve_many([]) == []


async def test_async_does_not_block_the_loop_however_slow_the_encoder() -> None:
    class Slow(LetterEncoder):
        def encode_queries(self, texts: Any) -> Any:
            time.sleep(0.3)
            assert threading.current_thread() is not threading.main_thread()
            return super().encode_queries(texts)

    with ChromaIndex(Slow()) as index:
        index.add(THREE[:2])
        waiting, ticks = asyncio.create_task(index.aretrieve("aa")), 0
        while not waiting.done():
            ticks += 1
            await asyncio.sleep(0.01)
    assert waiting.result()[0].passage.id == "x"
    assert ticks >= 10


def test_threads_may_add_and_search_at_once(index: ChromaIndex) -> None:
    def work(number: int) -> bool:
        mine = [Passage(f"{number}-{part}", "a" * (number + 1) + "b" * part) for part in range(25)]
        index.add(mine, batch_size=5)
        return len(index.retrieve("aab", k=5)), index.get([passage.id for passage in mine]) == mine

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(8))) == [(5, True)] * 8
    assert index.count() == 200
    assert len({hit.passage.id for hit in index.retrieve("a", k=200)}) == 200


def test_progress_is_shown_only_when_asked(index: ChromaIndex, capfd: pytest.CaptureFixture[str]) -> None:
    index.add(THREE)
    assert capfd.readouterr() == ("", "")
    index.add(passages("a", "b"), show_progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "2/2" in err


def test_similarity_of_a_squared_distance_below_zero_is_that_of_zero() -> None:
    with ChromaIndex(LetterEncoder("euclidean")) as index:
        assert index.collection.similarity(-1e-9) == 1.0
        assert index.collection.similarity(4.0) == pytest.approx(1 / 3)
        assert index.collection.similarity(math.inf) == 0.0


def test_more_queries_than_chroma_answers_in_one_statement() -> None:
    """500 queries with 100 hits each: SQLite takes about 32,000 variables."""
    encoder = LetterEncoder(vector=lambda text: [1.0, float(text)], dimension=2)
    with ChromaIndex(encoder) as index:
        index.add([Passage(str(number), str(number)) for number in range(150)])
        queries = [str(number % 150) for number in range(500)]
        found = index.retrieve_many(queries, 100)
        assert [len(hits) for hits in found] == [100] * 500
        for place in (0, 99, 100, 499):
            assert found[place] == index.retrieve(queries[place], 100)
