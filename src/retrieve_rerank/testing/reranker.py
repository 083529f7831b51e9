"""What every re-ranker must do."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from retrieve_rerank.testing.running import (
    Answer,
    awaited,
    cancelled,
    chain,
    expect,
    ids,
    in_threads,
    needs,
    not_applicable,
    refused,
    ticks_during,
)
from retrieve_rerank.testing.stubs import FaultyScorer, TableScorer
from retrieve_rerank.types import Hit, Passage, Scorer

QUERY = "which one"
LOGITS = {"low": -2.0, "high": 3.0, "middle": 0.0}
BEST_FIRST = ["id-high", "id-middle", "id-low"]
_LONGER = "a longer one than the others"
_TIED = {**LOGITS, "high too": LOGITS["high"]}


class RerankerContract:
    """Checks a re-ranker: make a test class of it and say how the re-ranker is made.

    The methods `test_…` are the checks: pytest collects them from a subclass whose name starts with Test;
    `run_contract` runs them without pytest. A check that says nothing about a component is skipped.

    `make` is all that must be given. It is handed a scorer, whose answers can be computed by hand, and returns the
    re-ranker over it. As it stands this contract calls re-rankers of the shape of `CrossEncoder`,
    `rank(query, hits, *, top_n, score_threshold) -> list[Hit]`; for LangChain and LlamaIndex take
    `LangChainRerankerContract` and `LlamaIndexRerankerContract`; for anything else override `inputs`, `call`, `acall`
    and `read`.

    Attributes:
        has_threshold: Whether `make` can set a threshold on the score in [0, 1].
        has_async: Whether the re-ranker has an async call.
        can_miscount: Whether a scorer can get a wrong number of scores through; not where the scorer stands in for a
            network inside the component.
        in_process: Whether an error of the scorer's can itself reach the caller; behind a server only what it says can.
        tolerance: By how much two scores of one passage may differ and be the same.

    Example:
        >>> from retrieve_rerank import Hit, RetrieveRerank
        >>> from retrieve_rerank.testing import ListRetriever, RerankerContract, run_contract
        >>> class TestPipeline(RerankerContract):
        ...     def make(self, scorer, *, top_n=None, score_threshold=None):
        ...         options = {"top_n": 100 if top_n is None else top_n, "score_threshold": score_threshold}
        ...         return lambda hits: RetrieveRerank(ListRetriever(hits), scorer, **options)
        ...     def call(self, component, query, inputs, *, top_n=None, score_threshold=None):
        ...         return component(inputs).search(query)
        ...     async def acall(self, component, query, inputs, *, top_n=None, score_threshold=None):
        ...         return await component(inputs).asearch(query)
        >>> outcomes = run_contract(TestPipeline)
        >>> [check for check, outcome in outcomes.items() if outcome.startswith("FAIL")]
        []
    """

    has_threshold = True
    has_async = True
    can_miscount = True
    in_process = True
    tolerance = 1e-4

    # What a subclass says

    def make(self, scorer: Scorer, *, top_n: int | None = None, score_threshold: float | None = None) -> Any:
        """Return the re-ranker over a scorer of logits; `top_n=None` keeps all."""
        raise NotImplementedError("say how the re-ranker is made: def make(self, scorer, *, top_n, score_threshold)")

    def make_real(self) -> Any:
        """Return the re-ranker over a model that computes, as a user would make it; None if there is none to be had."""
        return None

    def make_weighted(self, scorer: Scorer, rerank_weight: float) -> Any:
        """Return the re-ranker that keeps all, whose scorer counts as much as the weight says; None if it takes none.

        Args:
            scorer: Of logits.
            rerank_weight: 1 is the scorer's order alone, 0 the order given.
        """
        return None

    def inputs(self, passages: Sequence[Passage]) -> list[Any]:
        """Return passages as what the re-ranker takes."""
        return [
            Hit(passage, rank=rank, score=1.0 / rank, retrieval_rank=rank, retrieval_score=1.0 / rank)
            for rank, passage in enumerate(passages, start=1)
        ]

    def call(
        self,
        component: Any,
        query: str,
        inputs: list[Any],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> Sequence[Any]:
        """Re-rank; the options are those that `make` was given, for re-rankers that take them here."""
        answer: Sequence[Any] = component.rank(query, inputs, top_n=top_n, score_threshold=score_threshold)
        return answer

    async def acall(
        self,
        component: Any,
        query: str,
        inputs: list[Any],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> Sequence[Any]:
        """As `call`, by the async method."""
        answer: Sequence[Any] = await component.arank(query, inputs, top_n=top_n, score_threshold=score_threshold)
        return answer

    def read(self, outputs: Sequence[Any]) -> list[Answer]:
        """Return what the re-ranker returned, as answers."""
        return [
            Answer(hit.passage.id, hit.passage.text, dict(hit.passage.metadata), hit.score, hit.rank) for hit in outputs
        ]

    def travel(self, component: Any) -> Any:
        """Return the re-ranker written down and read again, as its framework does it."""
        return pickle.loads(pickle.dumps(component))

    # Order

    def test_best_first(self) -> None:
        self._expect_order(self._ranked(TableScorer(LOGITS)), BEST_FIRST)

    def test_ties_keep_the_order_given(self) -> None:
        found = self._ranked(TableScorer({"one": 1.0, "two": 1.0, "three": 1.0, "best": 2.0}))
        self._expect_order(found, ["id-best", "id-one", "id-two", "id-three"])

    def test_saturated_scores_stay_in_order(self) -> None:
        """Logits of 20 and 25 are one and the same after a sigmoid in float32."""
        self._expect_order(self._ranked(TableScorer({"a20": 20.0, "a25": 25.0})), ["id-a25", "id-a20"])

    def test_a_rerank_weight_of_one_is_the_scorers_order(self) -> None:
        inputs, scorer = self.inputs(_passages(_TIED)), TableScorer(_TIED)
        found = self.read(self.call(self._weighted(scorer, 1.0), QUERY, inputs))
        expected = self.read(self.call(self.make(scorer), QUERY, inputs))
        expect(found == expected, f"{ids(expected)} without a weight came as {ids(found)} with a weight of 1")

    def test_a_rerank_weight_of_zero_is_the_order_given(self) -> None:
        found = self.read(self.call(self._weighted(TableScorer(_TIED), 0.0), QUERY, self.inputs(_passages(_TIED))))
        self._expect_order(found, [f"id-{text}" for text in _TIED])
        scored = {answer.id: answer.score for answer in self._ranked(TableScorer(_TIED))}
        changed = [answer.id for answer in found if answer.score != scored[answer.id]]
        expect(not changed, f"the scores of {changed} are others than without a weight")

    # What a model may get wrong

    def test_nan_is_an_error(self) -> None:
        refused(lambda: ids(self._ranked(FaultyScorer(LOGITS, "nan"))), "a NaN score")

    def test_a_wrong_number_of_scores_is_an_error(self) -> None:
        needs(self.can_miscount, "its network gives one score a text")
        for fault, count in (("too_few", "2"), ("too_many", "4")):
            scorer = FaultyScorer(LOGITS, fault)  # type: ignore[arg-type]
            refused(lambda scorer=scorer: ids(self._ranked(scorer)), f"{count} scores for 3 passages")  # type: ignore[misc]

    def test_the_cause_of_a_failure_is_raised(self) -> None:
        scorer = FaultyScorer(LOGITS, "raise")
        error = refused(lambda: ids(self._ranked(scorer)), "a scorer that raises")
        told = any(
            one is scorer.error or (not self.in_process and str(scorer.error) in str(one)) for one in chain(error)
        )
        expect(told, f"{type(error).__name__} hides the scorer's own error")

    # How many

    def test_nothing_gives_nothing(self) -> None:
        expect(self._ranked(TableScorer({})) == [], "no passages gave some")

    def test_one_passage(self) -> None:
        self._expect_order(self._ranked(TableScorer({"only": -9.0})), ["id-only"])

    def test_top_n_limits(self) -> None:
        self._expect_order(self._ranked(TableScorer(LOGITS), top_n=2), BEST_FIRST[:2])

    def test_top_n_beyond_the_number(self) -> None:
        self._expect_order(self._ranked(TableScorer(LOGITS), top_n=50), BEST_FIRST)

    def test_top_n_below_one_is_refused(self) -> None:
        for wrong in (0, -1):
            refused(lambda n=wrong: ids(self._ranked(TableScorer(LOGITS), top_n=n)), f"top_n={wrong}")  # type: ignore[misc]

    # The passages

    def test_equal_texts_stay_two(self) -> None:
        found = self._twins(TableScorer({"same": 1.0, "other": 2.0}))
        self._expect_order(found, ["other", "first", "second"])

    def test_equal_texts_are_scored_once(self) -> None:
        scorer = TableScorer({"same": 1.0, "other": 2.0})
        self._twins(scorer)
        texts = [text for _, asked in scorer.asked for text in asked]
        expect(sorted(texts) == ["other", "same"], f"{len(texts)} texts were scored, 2 are distinct")

    def test_ids_and_metadata_survive(self) -> None:
        for answer in self._ranked(TableScorer(LOGITS)):
            expect(answer.id == f"id-{answer.text}", f"the id of {answer.text!r} is {answer.id!r}")
            expect(
                dict(answer.metadata) == _metadata(answer.text),
                f"the metadata of {answer.text!r} became {answer.metadata!r:.80}",
            )

    def test_inputs_stay_as_they_were(self) -> None:
        inputs = self.inputs(_passages(LOGITS))
        before = copy.deepcopy(inputs)
        self.call(self.make(TableScorer(LOGITS)), QUERY, inputs)
        expect(inputs == before, "the caller's objects were changed")

    def test_ranking_the_result_again_changes_nothing(self) -> None:
        component = self.make(TableScorer(LOGITS))
        once = self.call(component, QUERY, self.inputs(_passages(LOGITS)))
        first = self.read(once)
        self._expect_same(self.read(self.call(component, QUERY, list(once))), first)

    # Scores

    def test_scores_reach_the_caller(self) -> None:
        scores = [answer.score for answer in self._ranked(TableScorer(LOGITS))]
        expect(None not in scores, "the result has no scores")
        expect(scores == sorted(scores, reverse=True), f"the scores do not fall: {scores}")

    def test_scores_are_plain_floats(self) -> None:
        kinds = {type(answer.score).__name__ for answer in self._scored(TableScorer(LOGITS))}
        expect(kinds == {"float"}, f"scores are of type {', '.join(sorted(kinds))}")

    def test_a_threshold_of_zero_is_a_threshold_that_all_meet(self) -> None:
        needs(self.has_threshold, "it has no threshold")
        self._expect_order(self._ranked(TableScorer(LOGITS), score_threshold=0.0), BEST_FIRST)

    def test_a_threshold_cuts_below(self) -> None:
        needs(self.has_threshold, "it has no threshold")
        self._expect_order(self._ranked(TableScorer(LOGITS), score_threshold=0.5), BEST_FIRST[:2])

    def test_an_empty_answer_is_an_answer(self) -> None:
        needs(self.has_threshold, "it has no threshold")
        self._expect_order(self._ranked(TableScorer(LOGITS), score_threshold=1.0), [])

    def test_other_passages_do_not_change_a_score(self) -> None:
        component = self._real_or_stub()
        texts = list(LOGITS)
        together = {answer.id: answer.score for answer in self._ask(component, [*texts, _LONGER])}
        for text in texts:
            [alone] = self._ask(component, [text])
            if alone.score is None:
                not_applicable("the result has no scores")
            gap = abs(alone.score - together[alone.id])
            expect(gap <= self.tolerance, f"alone and among others {text!r} differs by {gap:.1e}")

    # Many callers

    def test_async_is_sync(self) -> None:
        needs(self.has_async, "it has no async call")
        component = self._real_or_stub()
        inputs = self.inputs(_passages(LOGITS))
        found = awaited(lambda: self._aranked(component, inputs))
        self._expect_same(found, self._ask(component, list(LOGITS)))

    def test_async_lets_the_event_loop_run(self) -> None:
        needs(self.has_async, "it has no async call")
        component, inputs = self.make(TableScorer(LOGITS, seconds=0.3)), self.inputs(_passages(LOGITS))
        _, ticks = awaited(lambda: ticks_during(self._aranked(component, inputs)))
        expect(ticks >= 5, f"the event loop ran {ticks} times while 0.3 s of scoring went on")

    def test_a_cancelled_call_does_not_break_the_next(self) -> None:
        needs(self.has_async, "it has no async call")
        scorer = TableScorer(LOGITS, seconds=0.3)
        component, inputs = self.make(scorer), self.inputs(_passages(LOGITS))

        async def cancel_and_go_on() -> list[Answer]:
            await cancelled(self._aranked(component, inputs), after=0.05)
            scorer.seconds = 0.0
            return await self._aranked(component, inputs)

        self._expect_order(awaited(cancel_and_go_on), BEST_FIRST)
        self._expect_order(self._ask(component, list(LOGITS)), BEST_FIRST)

    def test_threads_get_what_one_caller_gets(self) -> None:
        component = self._real_or_stub()
        texts = list(LOGITS)
        expected = [self._ask(component, texts, query=f"which {number % 4}") for number in range(4)]
        found = in_threads(lambda number: self._ask(component, texts, query=f"which {number % 4}"))
        for number, answers in enumerate(found):
            self._expect_same(answers, expected[number % 4])

    def test_written_down_and_read_again(self) -> None:
        component = self.make_real()
        if component is None:
            not_applicable("make_real gives no re-ranker that could be written down")
        self._expect_same(self._ask(self.travel(component), list(LOGITS)), self._ask(component, list(LOGITS)))

    # Helpers

    def _weighted(self, scorer: TableScorer, rerank_weight: float) -> Any:
        component = self.make_weighted(scorer, rerank_weight)
        if component is None:
            not_applicable("make_weighted gives no re-ranker that takes a weight")
        return component

    def _ranked(self, scorer: TableScorer, **options: Any) -> list[Answer]:
        """Rank the scorer's texts, in the order of its table."""
        component = self.make(scorer, **options)
        return self._answers(self.call, component, self.inputs(_passages(scorer.table)), QUERY, **options)

    def _scored(self, scorer: TableScorer) -> list[Answer]:
        found = self._ranked(scorer)
        if any(answer.score is None for answer in found):
            not_applicable("the result has no scores")
        return found

    def _twins(self, scorer: TableScorer) -> list[Answer]:
        twins = [Passage("first", "same"), Passage("other", "other"), Passage("second", "same")]
        return self.read(self.call(self.make(scorer), QUERY, self.inputs(twins)))

    def _ask(self, component: Any, texts: Sequence[str], query: str = QUERY) -> list[Answer]:
        return self._answers(self.call, component, self.inputs(_passages(texts)), query)

    async def _aranked(self, component: Any, inputs: list[Any]) -> list[Answer]:
        return self.read(await self.acall(component, QUERY, inputs))

    def _answers(
        self, call: Callable[..., Sequence[Any]], component: Any, inputs: list[Any], query: str, **options: Any
    ) -> list[Answer]:
        return self.read(call(component, query, inputs, **options))

    def _real_or_stub(self) -> Any:
        real = self.make_real()
        return self.make(TableScorer({**LOGITS, _LONGER: 1.0})) if real is None else real

    def _expect_order(self, found: Sequence[Answer], expected: list[str]) -> None:
        expect(ids(found) == expected, f"{expected} came as {ids(found)}")
        ranks = [answer.rank for answer in found]
        expect(set(ranks) <= {None} or ranks == list(range(1, len(found) + 1)), f"the ranks are {ranks}")

    def _expect_same(self, found: Sequence[Answer], expected: Sequence[Answer]) -> None:
        expect(ids(found) == ids(expected), f"{ids(expected)} came as {ids(found)}")
        for one, other in zip(found, expected, strict=True):
            if one.score is None or other.score is None:
                continue
            same = math.isclose(one.score, other.score, rel_tol=self.tolerance, abs_tol=self.tolerance)
            expect(same, f"the score of {one.id!r} was {other.score} and became {one.score}")


def _passages(texts: Any) -> list[Passage]:
    return [Passage(f"id-{text}", text, _metadata(text)) for text in texts]


def _metadata(text: str) -> dict[str, Any]:
    return {"source": text, "pages": [1, 2]}
