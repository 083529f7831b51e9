"""What every vector store must do."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from retrieve_rerank.testing.running import (
    Answer,
    awaited,
    expect,
    ids,
    in_threads,
    needs,
    not_applicable,
    ticks_during,
)
from retrieve_rerank.testing.stubs import LetterEncoder, letters
from retrieve_rerank.types import Encoder, Metric, Passage

QUERY = "aab"
_MANY = 6_000  # more than Chroma takes at once (5,461)


class VectorStoreContract:
    """Checks a vector store: make a test class of it and say how the store is made.

    The methods `test_…` are the checks: pytest collects them from a subclass whose name starts with Test;
    `run_contract` runs them without pytest.

    As it stands this contract calls stores of the shape of `ChromaIndex`. For LangChain and LlamaIndex take
    `LangChainVectorStoreContract` and `LlamaIndexVectorStoreContract`; for anything else override the methods from
    `add` to `similarity`.

    Attributes:
        has_async: Whether the store has async methods.
        embeds: Whether the store embeds what is added; else it is given vectors.
        is_persistent: Whether `make` can open a store in a directory.
        metrics: What vectors can be compared by.

    Example:
        >>> from retrieve_rerank import ChromaIndex
        >>> from retrieve_rerank.testing import VectorStoreContract, run_contract
        >>> class TestChromaIndex(VectorStoreContract):
        ...     has_async = False
        ...     def make(self, encoder, path=None):
        ...         return ChromaIndex(encoder, path=path)
        >>> outcomes = run_contract(TestChromaIndex)
        >>> [check for check, outcome in outcomes.items() if outcome.startswith("FAIL")]
        []
    """

    has_async = True
    embeds = True
    is_persistent = True
    metrics: tuple[Metric, ...] = ("cosine", "dot", "euclidean")

    # What a subclass says

    def make(self, encoder: Encoder, path: str | None = None) -> Any:
        """Return the store over an encoder, with its metric; in a directory, or empty and in memory."""
        raise NotImplementedError("say how the store is made: def make(self, encoder, path=None)")

    def add(self, store: Any, passages: Iterable[Passage]) -> None:
        """Store passages, which may be a generator."""
        store.add(passages)

    async def aadd(self, store: Any, passages: Iterable[Passage]) -> None:
        """As `add`, by the async method."""
        await store.aadd(passages)

    def delete(self, store: Any, ids: list[str]) -> None:
        """Delete by id."""
        store.delete(ids)

    def get(self, store: Any, ids: list[str]) -> list[Answer]:
        """Return what is stored, by id."""
        return [Answer(item.id, item.text, dict(item.metadata)) for item in store.get(ids)]

    def count(self, store: Any) -> int:
        """Return how many are stored."""
        count: int = store.count()
        return count

    def search(self, store: Any, query: str, k: int, where: dict[str, Any] | None = None) -> list[Answer]:
        """Return the nearest, best first; `where` is a metadata key and the value it must have."""
        hits = store.retrieve(query, k, where=where)
        return [Answer(hit.passage.id, hit.passage.text, dict(hit.passage.metadata), hit.score) for hit in hits]

    async def asearch(self, store: Any, query: str, k: int) -> list[Answer]:
        """As `search`, by the async method."""
        hits = await store.aretrieve(query, k)
        return [Answer(hit.passage.id, hit.passage.text, dict(hit.passage.metadata), hit.score) for hit in hits]

    def close(self, store: Any) -> None:
        """Let go of a store, so that its directory can be opened again."""
        close: Callable[[], None] | None = getattr(store, "close", None)
        if close is not None:
            close()

    def similarity(self, metric: Metric, similarity: float) -> float | None:
        """Return the score that the store gives for a similarity; None if only the order is promised.

        Args:
            metric: What vectors are compared by.
            similarity: The cosine similarity, the dot product, or 1 / (1 + distance).
        """
        return similarity

    # Writing

    def test_what_is_added_can_be_got(self) -> None:
        store = self._filled()
        self._expect_stored(store, Passage("1", "aaa", {"year": 2001, "tags": "x"}))
        expect(self.count(store) == 3, f"3 were added, {self.count(store)} are counted")

    def test_adding_again_replaces(self) -> None:
        store = self._filled()
        self.add(store, [Passage("1", "bbb", {"year": 2002, "tags": "x"})])
        self._expect_stored(store, Passage("1", "bbb", {"year": 2002, "tags": "x"}))
        expect(self.count(store) == 3, f"3 ids were added, {self.count(store)} are counted")
        nearest = ids(self.search(store, "bbb", 1))
        expect(nearest == ["1"], f"the vector is still the old one: {nearest} is nearest to the new text")

    def test_metadata_are_replaced_not_merged(self) -> None:
        store = self._filled()
        self.add(store, [Passage("1", "aaa", {"colour": "red"})])
        self._expect_stored(store, Passage("1", "aaa", {"colour": "red"}))
        self.add(store, [Passage("1", "aaa")])
        self._expect_stored(store, Passage("1", "aaa"))

    def test_of_equal_ids_in_one_call_the_last_wins(self) -> None:
        store = self.make(LetterEncoder())
        self.add(store, [Passage("1", "aaa"), Passage("2", "bbb"), Passage("1", "ccc")])
        self._expect_stored(store, Passage("1", "ccc"))
        expect(self.count(store) == 2, f"2 ids were added, {self.count(store)} are counted")

    def test_passages_without_metadata(self) -> None:
        store = self.make(LetterEncoder())
        self.add(store, [Passage("1", "aaa"), Passage("2", "bbb", {"year": 2001})])
        self._expect_stored(store, Passage("1", "aaa"))
        expect(set(ids(self.search(store, QUERY, 5))) == {"1", "2"}, "not both are found")

    def test_adding_nothing(self) -> None:
        store = self._filled()
        self.add(store, [])
        expect(self.count(store) == 3, f"{self.count(store)} are counted, 3 were there")

    def test_a_generator_is_as_good_as_a_list(self) -> None:
        store = self.make(LetterEncoder())
        self.add(store, (passage for passage in _three()))
        expect(self.count(store) == 3, f"3 were generated, {self.count(store)} are counted")

    def test_more_than_the_store_takes_at_once(self) -> None:
        store = self.make(LetterEncoder())
        self.add(store, [Passage(str(number), "abc", {"number": number}) for number in range(_MANY)])
        expect(self.count(store) == _MANY, f"{_MANY} were added, {self.count(store)} are counted")

    def test_what_is_given_stays_as_it_was(self) -> None:
        given = _three()
        self.add(self.make(LetterEncoder()), given)
        expect(given == _three(), "the caller's passages were changed")

    def test_metadata_that_cannot_be_stored_do_no_harm(self) -> None:
        """The call fails or stores them; what was stored before stays."""
        store = self._filled()
        bad = [Passage("4", "cab"), Passage("5", "abc", {"thing": object()})]
        try:
            self.add(store, bad)
        except Exception:  # noqa: BLE001 - which error it is, is the store's affair
            pass
        else:
            kept = [answer for answer in self.get(store, ["5"]) if "thing" in answer.metadata]
            expect(kept, "metadata were dropped without a word")
        self._expect_stored(store, _three()[0])
        expect(set(ids(self.search(store, QUERY, 3))) >= {"1", "2"}, "what was stored is not found any more")

    def test_text_that_is_not_unicode_does_no_harm(self) -> None:
        """A lone surrogate, as a wrong decoding leaves it, is refused or stored; what was stored before stays."""
        store = self._filled()
        try:
            self.add(store, [Passage("4", "cut \ud83d off")])
        except Exception:  # noqa: BLE001 - which error it is, is the store's affair
            expect(self.count(store) == 3, f"3 were there before the refusal, {self.count(store)} are counted")
        self._expect_stored(store, _three()[0])
        expect(set(ids(self.search(store, QUERY, 4))) >= {"1", "2", "3"}, "what was stored is not found any more")

    # Deleting and reading

    def test_deleted_is_gone(self) -> None:
        store = self._filled()
        self.delete(store, ["1", "3"])
        expect(self.get(store, ["1"]) == [], "a deleted passage can still be got")
        expect(ids(self.search(store, QUERY, 5)) == ["2"], "a deleted passage is still found")

    def test_deleting_what_is_not_there(self) -> None:
        store = self._filled()
        self.delete(store, ["unknown"])
        self.delete(store, [])
        expect(self.count(store) == 3, f"{self.count(store)} are counted, 3 were there")

    def test_getting_what_is_not_there(self) -> None:
        store = self._filled()
        found = ids(self.get(store, ["unknown", "1"]))
        expect(found == ["1"], f"asked for an unknown id and '1', got {found}")
        expect(self.get(store, []) == [], "asked for none, got some")

    def test_a_filter_holds(self) -> None:
        found = ids(self.search(self._filled(), QUERY, 5, {"year": 2001}))
        expect(sorted(map(str, found)) == ["1", "2"], f"of the year 2001 are 1 and 2; found were {found}")

    def test_an_empty_store_finds_nothing(self) -> None:
        store = self.make(LetterEncoder())
        expect(self.search(store, QUERY, 3) == [], "an empty store found some")
        expect(self.count(store) == 0, f"an empty store counts {self.count(store)}")

    def test_opened_again(self) -> None:
        needs(self.is_persistent, "it is not persistent")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            store = self.make(LetterEncoder(), folder)
            self.add(store, _three())
            found = self.search(store, QUERY, 3)
            self.close(store)
            again = self.make(LetterEncoder(), folder)
            self._expect_stored(again, _three()[0])
            expect(self.search(again, QUERY, 3) == found, "opened again it finds something else")
            self.close(again)

    # Scores

    def test_scores_by_cosine(self) -> None:
        self._scores("cosine")

    def test_scores_by_dot_product(self) -> None:
        self._scores("dot")

    def test_scores_by_distance(self) -> None:
        self._scores("euclidean")

    # Many callers

    def test_async_is_sync(self) -> None:
        needs(self.has_async, "it has no async methods")
        store, other = self.make(LetterEncoder()), self._filled()

        async def add_and_search() -> list[Answer]:
            await self.aadd(store, _three())
            return await self.asearch(store, QUERY, 3)

        expect(awaited(add_and_search) == self.search(other, QUERY, 3), "async found something else")

    def test_async_lets_the_event_loop_run(self) -> None:
        needs(self.has_async, "it has no async methods")
        store = self.make(encoder := LetterEncoder())
        if self.embeds:
            encoder.seconds, given = 0.3, _three()
        else:
            given = [Passage(str(number), "abc", {"number": number}) for number in range(_MANY)]
        _, ticks = awaited(lambda: ticks_during(self.aadd(store, given)))
        expect(ticks >= 5, f"the event loop ran {ticks} times while {len(given)} passages were added")

    def test_threads_lose_nothing(self) -> None:
        store = self.make(LetterEncoder())
        in_threads(lambda number: self.add(store, [Passage(f"{number}-{item}", "abc") for item in range(20)]))
        expect(self.count(store) == 320, f"16 threads added 320, {self.count(store)} are counted")

    # Helpers

    def _filled(self) -> Any:
        store = self.make(LetterEncoder())
        self.add(store, _three())
        return store

    def _expect_stored(self, store: Any, passage: Passage) -> None:
        stored = self.get(store, [passage.id])
        expect(len(stored) == 1, f"{passage.id!r} was stored, got {len(stored)} for it")
        expect(
            stored[0].text == passage.text, f"the text of {passage.id!r} is {stored[0].text!r}, not {passage.text!r}"
        )
        metadata, wanted = dict(stored[0].metadata), dict(passage.metadata)
        expect(metadata == wanted, f"the metadata of {passage.id!r} are {metadata}, not {wanted}")

    def _scores(self, metric: Metric) -> None:
        if metric not in self.metrics:
            not_applicable(f"it has no {metric} metric")
        store = self.make(LetterEncoder(metric))
        texts = {"near": "aab", "far": "bcc", "long": "aaaaaabbb", "longer": "aaaaaaaaabbbbbc"}
        self.add(store, [Passage(name, text) for name, text in texts.items()])
        true = {name: _similarity(metric, letters(QUERY), letters(text)) for name, text in texts.items()}
        found = self.search(store, QUERY, 4)
        expected = sorted(true, key=lambda name: -true[name])
        expect(ids(found) == expected, f"{expected} came as {ids(found)}")
        scores = [answer.score for answer in found]
        if None in scores:
            not_applicable("the result has no scores")
        expect(
            scores == sorted(scores, reverse=True), f"the scores do not fall: {[f'{score:.3f}' for score in scores]}"
        )
        for answer in found:
            wanted = self.similarity(metric, true[str(answer.id)])
            if wanted is None:
                expect(0.0 <= answer.score <= 1.0, f"a relevance of {answer.score:.3f} is not in [0, 1]")
            else:
                gap = abs(answer.score - wanted)
                expect(gap < 1e-3, f"a similarity of {true[str(answer.id)]:.3f} is scored {answer.score:.3f}")


def _three() -> list[Passage]:
    return copy.deepcopy(
        [
            Passage("1", "aaa", {"year": 2001, "tags": "x"}),
            Passage("2", "aab", {"year": 2001}),
            Passage("3", "ccc", {"year": 1999}),
        ]
    )


def _similarity(metric: Metric, left: Sequence[float], right: Sequence[float]) -> float:
    one, other = np.asarray(left), np.asarray(right)
    if metric == "euclidean":
        return float(1.0 / (1.0 + np.linalg.norm(one - other)))
    product = float(one @ other)
    return product if metric == "dot" else product / float(np.linalg.norm(one) * np.linalg.norm(other))
