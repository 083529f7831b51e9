"""The numbers are those of bm25s called directly, however the passages came and went."""

from __future__ import annotations

from array import array

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieve_rerank.indexes.packed import PackedTexts
from retrieve_rerank.indexes.postings import Postings, Scorer, best

VOCABULARY = 8
WORDS = st.lists(st.integers(0, VOCABULARY - 1), max_size=12)
Corpus = list[list[int]]


def grown(postings: Postings, corpus: Corpus, first: int) -> Postings:
    words = array("i", [word for passage in corpus for word in passage])
    return postings.grown(words, array("i", map(len, corpus)), first, VOCABULARY)


def bm25s_scores(corpus: Corpus, query: list[int], k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    """Scores by bm25s called directly, with its own words as text."""
    model = bm25s.BM25(k1=k1, b=b)
    model.index([[f"w{word}" for word in passage] for passage in corpus], show_progress=False)
    known = [word for word in query if any(word in passage for passage in corpus)]
    return model.get_scores([f"w{word}" for word in known]) if known else np.zeros(len(corpus))


@settings(deadline=None)
@given(st.lists(st.lists(WORDS, max_size=5), min_size=1, max_size=4), WORDS, st.data())
def test_scores_are_those_of_bm25s_after_any_changes(
    parts: list[Corpus], query: list[int], data: st.DataObject
) -> None:
    postings, corpus = Postings.empty(), []
    for part in parts:  # as they are added, and weighed in between
        postings = grown(postings, part, len(corpus)).weighed(
            len(corpus) + len(part), len(corpus) + len(part), 1.5, 0.75
        )
        corpus += part
    alive = np.array(data.draw(st.lists(st.booleans(), min_size=len(corpus), max_size=len(corpus))), np.bool_)
    rest = [passage for passage, is_alive in zip(corpus, alive, strict=True) if is_alive]
    if not any(rest):
        return  # bm25s cannot index nothing
    k1, b = data.draw(st.sampled_from([(1.5, 0.75), (0.0, 0.0), (1.2, 1.0)]))
    postings = postings.without(alive)
    expected = bm25s_scores(rest, query, k1, b)
    scores = Scorer(postings.weighed(len(rest), len(corpus), k1, b), len(corpus)).scores(query)
    assert scores[alive] == pytest.approx(expected, abs=1e-6)
    assert not scores[~alive].any()
    renumbered = postings.renumbered(alive).weighed(len(rest), len(rest), k1, b)
    assert Scorer(renumbered, len(rest)).scores(query) == pytest.approx(expected, abs=1e-6)


def test_words_that_nothing_has_go() -> None:
    postings = grown(Postings.empty(), [[1, 1, 3], [3]], 0).weighed(2, 2, 1.5, 0.75)
    used = np.diff(postings.starts) > 0
    assert used.tolist() == [False, True, False, True, False, False, False, False]
    kept = postings.with_words(used)
    assert Scorer(kept, 2).scores([0, 1]) == pytest.approx(Scorer(postings, 2).scores([1, 3]))


def test_counts_of_any_size_are_kept() -> None:
    postings = grown(Postings.empty(), [[0] * 300, [0]], 0)
    assert (postings.counts.tolist(), postings.counts.dtype) == ([300, 1], np.uint16)
    assert grown(postings, [[0] * 70_000], 2).counts.tolist() == [300, 1, 70_000]


def test_nothing_scores_nothing() -> None:
    scorer = Scorer(Postings.empty().weighed(0, 0, 1.5, 0.75), 0)
    assert scorer.scores([]).tolist() == []
    assert scorer.scores([5]).tolist() == []
    only_empty = Scorer(grown(Postings.empty(), [[], []], 0).weighed(2, 2, 1.5, 0.75), 2)
    assert only_empty.scores([0, 99]).tolist() == [0, 0]


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), max_size=30), st.integers(1, 40))
def test_best_is_a_stable_sort_of_what_scores(values: list[float], k: int) -> None:
    scores = np.array(values, np.float32)
    expected = [slot for _, slot in sorted((-value, slot) for slot, value in enumerate(values) if value > 0)]
    assert best(scores, k).tolist() == expected[:k]
    assert best(scores, None).tolist() == expected


@given(st.lists(st.text()), st.lists(st.text()))
def test_packed_texts_are_the_texts(stored: list[str], new: list[str]) -> None:
    raw = [text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") for text in stored + new]
    before = PackedTexts()
    for text in raw[: len(stored)]:
        before.append(text)
    packed = PackedTexts(b"".join(before.kept()), before.ends())
    for text in raw[len(stored) :]:
        packed.append(text)
    assert [packed[position] for position in range(len(packed))] == raw
    assert b"".join(packed.kept()) == "".join(raw).encode()
    chosen = list(range(0, len(raw), 2))
    kept = PackedTexts(b"".join(packed.kept(chosen)), packed.ends(np.array(chosen, np.int64)))
    assert [kept[position] for position in range(len(kept))] == raw[::2]
