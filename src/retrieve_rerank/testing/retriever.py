"""What every retriever must do."""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Sequence
from typing import Any

from retrieve_rerank.testing.running import (
    Answer,
    awaited,
    expect,
    ids,
    in_threads,
    needs,
    not_applicable,
    refused,
    ticks_during,
)
from retrieve_rerank.testing.stubs import LetterEncoder
from retrieve_rerank.types import Encoder, Passage

QUERY = "aaa"
# Nearest first for the query, by the letters that they have in common as by the words, however it is counted; the
# others have no word of it. Equally long, so that no normalisation by length changes that.
_NEAREST = {"three": "aaa aaa aaa aaa", "two": "aaa aaa aaa bbb", "one": "aaa bbb bbb ccc"}
_OTHERS = dict.fromkeys(("x1", "x2", "x3", "x4", "x5"), "bbb bbb ccc ccc")
_PASSAGES = [Passage(name, text, {"name": name}) for name, text in [*_OTHERS.items(), *_NEAREST.items()]]
_FOUND = list(_NEAREST)


class RetrieverContract:
    """Checks a first stage, or a whole search: make a test class of it and say how the retriever is made.

    The methods `test_…` are the checks: pytest collects them from a subclass whose name starts with Test;
    `run_contract` runs them without pytest. The passages and the query are such that dense retrievers over the given
    encoder, BM25 and any fusion of them have to agree on the best three.

    As it stands this contract calls retrievers of the shape of `ChromaIndex`, `retrieve(query, k) -> list[Hit]`; for
    LangChain and LlamaIndex take `LangChainRetrieverContract` and `LlamaIndexRetrieverContract`; for anything else
    override `call`, `acall` and `read`. With `make_kept` a retriever is written down and read again, too.

    Attributes:
        has_async: Whether the retriever has an async call.

    Example:
        >>> from retrieve_rerank import ChromaIndex
        >>> from retrieve_rerank.testing import RetrieverContract, run_contract
        >>> class TestChromaIndex(RetrieverContract):
        ...     def make(self, passages, k, encoder):
        ...         index = ChromaIndex(encoder)
        ...         index.add(passages)
        ...         return index
        >>> outcomes = run_contract(TestChromaIndex)
        >>> [check for check, outcome in outcomes.items() if outcome.startswith("FAIL")]
        []
    """

    has_async = True

    # What a subclass says

    def make(self, passages: Sequence[Passage], k: int, encoder: Encoder) -> Any:
        """Return a retriever over passages.

        Args:
            passages: May be none.
            k: How many it is to find, for retrievers that are told when they are made.
            encoder: For those that need one; a `LetterEncoder`.
        """
        raise NotImplementedError("say how the retriever is made: def make(self, passages, k, encoder)")

    def make_kept(self, passages: Sequence[Passage], k: int, encoder: Encoder, folder: str) -> Any:
        """As `make`, over passages that are kept in an empty directory; None if there is no way to be written down."""
        return None

    def call(self, component: Any, query: str, k: int) -> Sequence[Any]:
        """Retrieve; `k` is what `make` was given, for retrievers that take it here."""
        answer: Sequence[Any] = component.retrieve(query, k)
        return answer

    async def acall(self, component: Any, query: str, k: int) -> Sequence[Any]:
        """As `call`, by the async method."""
        answer: Sequence[Any] = await component.aretrieve(query, k)
        return answer

    def read(self, outputs: Sequence[Any]) -> list[Answer]:
        """Return what the retriever returned, as answers."""
        return [
            Answer(hit.passage.id, hit.passage.text, dict(hit.passage.metadata), hit.score, hit.rank) for hit in outputs
        ]

    def travel(self, component: Any) -> Any:
        """Return what `make_kept` made, written down and read again: by pickle, unless overridden."""
        return pickle.loads(pickle.dumps(component))

    # Order

    def test_best_first(self) -> None:
        expect(ids(self._found(3)) == _FOUND, f"{_FOUND} came as {ids(self._found(3))}")

    def test_ranks_and_scores_follow_the_order(self) -> None:
        found = self._found(8)
        ranks = [answer.rank for answer in found]
        expect(set(ranks) <= {None} or ranks == list(range(1, len(found) + 1)), f"the ranks are {ranks}")
        scores = [answer.score for answer in found]
        if None in scores:
            not_applicable("the result has no scores")
        expect(scores == sorted(scores, reverse=True), f"the scores do not fall: {scores}")

    def test_scores_are_plain_floats(self) -> None:
        kinds = {type(answer.score).__name__ for answer in self._found(3)}
        if kinds == {"NoneType"}:
            not_applicable("the result has no scores")
        expect(kinds == {"float"}, f"scores are of type {', '.join(sorted(kinds))}")

    # How many

    def test_k_limits(self) -> None:
        for k in (1, 2):
            count = len(self._found(k))
            expect(count == k, f"{count} came for k={k}")

    def test_k_beyond_the_number(self) -> None:
        found = ids(self._found(50))
        expect(found[:3] == _FOUND, f"{_FOUND} came as {found[:3]}")
        expect(len(set(found)) == len(found), f"some came twice: {found}")

    def test_k_below_one_is_refused(self) -> None:
        for wrong in (0, -1):
            refused(lambda k=wrong: ids(self._found(k)), f"k={wrong}")  # type: ignore[misc]

    def test_an_empty_store_gives_nothing(self) -> None:
        expect(self._found(3, passages=[]) == [], "an empty store gave some")

    def test_an_empty_query_is_refused(self) -> None:
        for wrong in ("", "  "):
            refused(lambda query=wrong: ids(self._found(3, query=query)), f"the query {wrong!r}")  # type: ignore[misc]

    # The passages

    def test_equal_texts_stay_apart(self) -> None:
        best = _NEAREST["three"]
        others = [Passage(f"y{number}", f"bbb ccc {'ccc ' * number}") for number in range(5)]  # aaa stays a rare word
        twins = [Passage("first", best), Passage("second", best), *_PASSAGES, *others]
        found = ids(self._found(3, passages=twins))
        expect({"first", "second", "three"} <= set(found), f"three passages with one text came as {found}")

    def test_ids_and_metadata_survive(self) -> None:
        for answer in self._found(3):
            expect(answer.id in _NEAREST, f"the id of {answer.text!r} is {answer.id!r}")
            expect(answer.text == _NEAREST[str(answer.id)], f"the text of {answer.id!r} is {answer.text!r}")
            expect(
                dict(answer.metadata) == {"name": answer.id},
                f"the metadata of {answer.id!r} became {dict(answer.metadata)!r:.80}",
            )

    def test_what_is_given_stays_as_it_was(self) -> None:
        given = copy.deepcopy(_PASSAGES)
        self._found(3, passages=given)
        expect(given == _PASSAGES, "the caller's passages were changed")

    def test_a_changed_result_does_not_change_the_next(self) -> None:
        component = self._made(3)
        for item in self.call(component, QUERY, 3):  # documents and nodes; hits are frozen, their metadata shared
            metadata = getattr(item, "metadata", None)
            if isinstance(metadata, dict):
                metadata["name"] = "changed by the caller"
        answers = self.read(self.call(component, QUERY, 3))
        names = [answer.metadata.get("name") for answer in answers]
        expect(names == _FOUND, f"the next result shows what the caller did to the first: {names}")

    # Many callers

    def test_asking_twice_gives_the_same(self) -> None:
        component = self._made(5)
        first = self.read(self.call(component, QUERY, 5))
        expect(self.read(self.call(component, QUERY, 5)) == first, "the second answer was another")

    def test_async_is_sync(self) -> None:
        needs(self.has_async, "it has no async call")
        component = self._made(5)
        found = awaited(lambda: self._afound(component, 5))
        expect(found == self.read(self.call(component, QUERY, 5)), f"async found {ids(found)}")

    def test_async_lets_the_event_loop_run(self) -> None:
        needs(self.has_async, "it has no async call")
        encoder = LetterEncoder()
        component = self.make(_PASSAGES, 3, encoder)
        self.call(component, QUERY, 3)
        encoder.seconds = 0.3
        before = len(encoder.queries)
        _, ticks = awaited(lambda: ticks_during(self._afound(component, 3)))
        if len(encoder.queries) == before:
            not_applicable("it does not use the encoder, so it cannot be slowed down")
        expect(ticks >= 5, f"the event loop ran {ticks} times while 0.3 s of encoding went on")

    def test_threads_get_what_one_caller_gets(self) -> None:
        component = self._made(5)
        queries = ["aaa", "bbb", "aaa ccc", "ccc bbb"]
        expected = [self.read(self.call(component, query, 5)) for query in queries]
        found = in_threads(lambda number: self.read(self.call(component, queries[number % 4], 5)))
        for number, answers in enumerate(found):
            expect(answers == expected[number % 4], f"a thread found {ids(answers)}, not {ids(expected[number % 4])}")

    def test_written_down_and_read_again(self) -> None:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            component = self.make_kept(copy.deepcopy(_PASSAGES), 5, LetterEncoder(), folder)
            if component is None:
                not_applicable("make_kept gives no retriever that could be written down")
            expected = self.read(self.call(component, QUERY, 5))
            answers = self.read(self.call(self.travel(component), QUERY, 5))
        expect(ids(expected[:3]) == _FOUND, f"{_FOUND} came as {ids(expected[:3])}")
        expect(answers == expected, f"read again it found {ids(answers)}")

    # Helpers

    def _made(self, k: int) -> Any:
        return self.make(copy.deepcopy(_PASSAGES), k, LetterEncoder())

    def _found(self, k: int, *, query: str = QUERY, passages: Sequence[Passage] | None = None) -> list[Answer]:
        given = copy.deepcopy(_PASSAGES) if passages is None else passages
        return self.read(self.call(self.make(given, k, LetterEncoder()), query, k))

    async def _afound(self, component: Any, k: int) -> list[Answer]:
        return self.read(await self.acall(component, QUERY, k))
