"""Whatever is added, replaced, deleted, saved and opened again, in any order: the index is that of what is left."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieve_rerank import AddReport, BM25Index, Passage
from retrieve_rerank.indexes.bm25_files import Rows
from retrieve_rerank.indexes.records import Record

IDS = st.sampled_from(["a", "b", "c", "d", "e"])
TEXTS = st.lists(st.sampled_from(["alpha", "beta", "gamma", "the", "running", "runs"]), max_size=5).map(" ".join)
METADATA = st.sampled_from([{}, {"n": 1}, {"n": 2, "deep": [None]}])
STEPS = st.one_of(
    st.tuples(st.just("add"), st.lists(st.builds(Passage, IDS, TEXTS, METADATA), max_size=4)),
    st.tuples(st.just("delete"), st.lists(IDS, max_size=3)),
    st.tuples(st.sampled_from(["clear", "save", "open again", "search"]), st.none()),
)
QUERIES = ["alpha", "beta gamma", "run alpha run"]


@settings(max_examples=80, deadline=None)
@given(st.lists(STEPS, max_size=12))
def test_any_sequence_of_changes(steps: list[tuple[str, Any]]) -> None:
    left: dict[str, Passage] = {}
    with tempfile.TemporaryDirectory() as folder:
        index = BM25Index(path=folder)
        for name, argument in steps:
            if name == "add":
                distinct = {passage.id: passage for passage in argument}
                report = index.add(argument)
                assert report.added == len(set(distinct) - set(left))
                assert report.unchanged == sum(left.get(id_) == passage for id_, passage in distinct.items())
                left |= distinct
            elif name == "delete":
                index.delete(argument)
                left = {id_: passage for id_, passage in left.items() if id_ not in argument}
            elif name == "clear":
                index.clear()
                left = {}
            elif name == "save":
                index.save()
            elif name == "open again":
                index.close()
                index = BM25Index(path=folder)
            else:
                index.retrieve("alpha")
        assert index.count() == len(left)
        assert index.get(["gone", *sorted(left, reverse=True)]) == [left[id_] for id_ in sorted(left, reverse=True)]
        with BM25Index() as fresh:
            fresh.add(left.values())
            for query in QUERIES:
                expected = {hit.passage.id: hit.score for hit in fresh.retrieve(query)}
                found = index.retrieve(query, np.int64(100))  # type: ignore[arg-type]
                assert index.retrieve(query, 2) == found[:2]
                twos = [hit.passage for hit in index.retrieve(query, 10**30, where={"n": 2})]
                assert twos == [hit.passage for hit in found if hit.passage.metadata.get("n") == 2]
                assert [(hit.rank, hit.retrieval_rank) for hit in found] == [(n, n) for n in range(1, len(found) + 1)]
                assert {hit.passage.id: hit.score for hit in found} == pytest.approx(expected, abs=1e-6)
                assert all(hit.passage == left[hit.passage.id] for hit in found)
                assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
        index.close()


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
