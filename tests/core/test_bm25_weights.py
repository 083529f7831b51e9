"""The weights of words are those of bm25s called directly."""

from __future__ import annotations

from pathlib import Path

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieve_rerank import BM25Index
from retrieve_rerank.indexes.bm25 import _best
from retrieve_rerank.indexes.bm25_files import Rows, weigh
from retrieve_rerank.indexes.records import Record
from tests.core.stubs import passages

VOCABULARY = 8
WORDS = st.lists(st.integers(0, VOCABULARY - 1), max_size=12)


@settings(deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=12), WORDS, st.sampled_from([(1.5, 0.75), (0.0, 0.0), (1.2, 1.0)]))
def test_scores_are_those_of_bm25s(corpus: list[list[int]], query: list[int], formula: tuple[float, float]) -> None:
    k1, b = formula
    lengths = np.array(list(map(len, corpus)), np.int32)
    words = np.array([word for passage in corpus for word in passage], np.int32)
    weights = weigh(words, lengths, VOCABULARY, k1, b)
    assert (weights["data"].dtype, weights["indices"].dtype, weights["num_docs"]) == (np.float32, np.int32, len(corpus))
    if not len(words):
        assert weights["indptr"].tolist() == [0] * (VOCABULARY + 1)
        return  # bm25s cannot index nothing
    ours = bm25s.BM25()
    ours.scores, ours.nonoccurrence_array = weights, None
    theirs = bm25s.BM25(k1=k1, b=b)
    theirs.index([[f"w{word}" for word in passage] for passage in corpus], show_progress=False)
    known = [word for word in query if word in words]
    if known:
        expected = theirs.get_scores([f"w{word}" for word in known])
        assert ours.get_scores_from_ids(known) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("restart", [False, True])
def test_single_letters_and_parts_make_no_passage_longer(tmp_path: Path, restart: bool) -> None:
    with BM25Index() as index, BM25Index(path=tmp_path) as lettered:
        index.add(passages("alpha betagamma", "alpha beta gamma"))
        lettered.add(passages("deleted word", "alpha betaGamma x 7 3.9", "alpha beta gamma"))
        lettered.delete(["0"])
        if restart:
            lettered.save()
        assert [hit.score for hit in lettered.retrieve("alpha")] == [hit.score for hit in index.retrieve("alpha")]
        for query in ("x", "3.9", "gamma"):
            assert "1" in [hit.passage.id for hit in lettered.retrieve(query)]


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), max_size=30), st.integers(1, 40))
def test_best_is_a_stable_sort_of_what_scores(values: list[float], k: int) -> None:
    scores = np.array(values, np.float32)
    expected = [number for _, number in sorted((-value, place) for place, value in enumerate(values) if value > 0)]
    assert _best(scores, k).tolist() == expected[:k]
    assert _best(scores, None).tolist() == expected


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=9), st.integers(0, 9), st.data())
def test_rows_are_the_records_that_are_left(texts: list[str], stored: int, data: st.DataObject) -> None:
    records = [Record(f"{place}", text, {"n": place}) for place, text in enumerate(texts)]
    rows = Rows()
    for record in records[:stored]:
        rows.append(record)
    raw = [rows.raw(place) for place in range(len(rows))]
    rows = Rows(b"".join(raw), np.cumsum(list(map(len, raw))).tolist(), range(len(raw)))
    for record in records[stored:]:
        rows.append(record)
    for _ in range(2):
        assert [rows[place] for place in range(len(rows))] == records
        chosen = data.draw(st.lists(st.booleans(), min_size=len(records), max_size=len(records)))
        rows = rows.only(np.array(chosen, np.bool_))
        records = [record for record, stays in zip(records, chosen, strict=True) if stays]
    assert [rows[place] for place in range(len(rows))] == records
