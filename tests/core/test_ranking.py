"""From logits, or other people's scores, to ranked hits."""

from __future__ import annotations

import contextvars
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieve_rerank import CrossEncoder, Hit, InvalidInputError, ModelError, Passage, RetrieveRerank
from retrieve_rerank.models.calibration import sigmoid
from retrieve_rerank.models.ranking import Ranker, ScorerRanker, as_ranker
from tests.core.stubs import ListRetriever, TableScorer

TABLE = {"low": -2.0, "zero": 0.0, "high": 3.0, "also zero": 0.0, "nought": -0.0}


class Answer:
    """A scorer that gives one answer, whatever it is asked."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def score(self, query: str, texts: Sequence[str]) -> Any:
        return self.answer


def rank(passages: Any, table: dict[str, float] | None = None, **options: Any) -> list[Hit]:
    return as_ranker(TableScorer(TABLE if table is None else table)).rank("query", passages, **options)


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.passage.id for hit in hits]


def test_hits_are_sorted_by_logit_and_ranked_from_one() -> None:
    hits = rank(["low", "high", "zero"])
    assert [(hit.passage.id, hit.passage.text, hit.rank, hit.logit) for hit in hits] == [
        ("1", "high", 1, 3.0),  # the id of a text is its position
        ("2", "zero", 2, 0.0),
        ("0", "low", 3, -2.0),
    ]
    assert [hit.score for hit in hits] == [1 / (1 + math.exp(-3)), 0.5, 1 / (1 + math.exp(2))]


def test_a_hit_says_where_it_was_in_what_was_given() -> None:
    found = Hit(Passage("1", "zero"), 7, 0.25, retrieval_rank=7, retrieval_score=0.25)
    assert found.index is None
    hits = rank(["low", found, Passage("1", "high"), "low", found])
    assert [hit.index for hit in hits] == [2, 1, 4, 0, 3]
    assert [hit.index for hit in rank(hits[1:])] == [0, 1, 2, 3], "of this ranking, not of an earlier one"


def test_texts_passages_and_hits_mix() -> None:
    hit = Hit(Passage("found", "high", {"page": 3}), 7, 0.25, retrieval_rank=7, retrieval_score=0.25)
    hits = rank([Passage("stored", "zero", {"page": 1}), "low", hit])
    assert ids(hits) == ["found", "stored", "1"]
    assert hits[0].passage is hit.passage
    assert [(hit.retrieval_rank, hit.retrieval_score) for hit in hits] == [(7, 0.25), (None, None), (None, None)]


def test_ranking_again_gives_the_same_and_drops_what_no_longer_holds() -> None:
    once = rank(["low", "high"])
    assert rank(once) == once
    stale = Hit(Passage("a", "low"), 1, 0.9, 1, 0.5, 9.0, (0, 3), True)
    assert rank([stale]) == [Hit(Passage("a", "low"), 1, sigmoid(-2.0), 1, 0.5, -2.0, None, False)]


@pytest.mark.parametrize(
    "kind", [list, tuple, iter, lambda items: (item for item in items), lambda items: dict.fromkeys(items).keys()]
)
def test_any_iterable_of_passages_will_do(kind: Any) -> None:
    assert [hit.passage.text for hit in rank(kind(["low", "high"]))] == ["high", "low"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("top_n", value) for value in (0, -1, True, False, 1.0, "1", math.inf)),
        *(("score_threshold", value) for value in (math.nan, 2, -0.1, "0.5", True)),
    ],
)
def test_an_unusable_option_is_refused_even_with_nothing_to_rank(name: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=name):
        rank([], **{name: value})


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(None, 4), (0.0, 4), (0, 4), (0.3, 3), (0.5, 3), (0.500001, 1), (sigmoid(3.0), 1), (0.96, 0), (1.0, 0), (1, 0)],
)
def test_the_threshold_is_on_the_score_and_its_own_value_stays(threshold: float | None, expected: int) -> None:
    hits = rank(["low", "high", "zero", "also zero"], score_threshold=threshold)
    assert len(hits) == expected
    assert [hit.rank for hit in hits] == list(range(1, expected + 1))


def test_a_threshold_of_one_keeps_what_reaches_one() -> None:
    assert len(rank(["sure", "nearly"], {"sure": 800.0, "nearly": 30.0}, score_threshold=1.0)) == 1


def test_saturated_logits_keep_their_order_and_differ_in_score() -> None:
    hits = rank(["a", "b", "c"], {"a": 30.0, "b": 31.0, "c": 29.0})
    assert ids(hits) == ["1", "0", "2"]
    assert hits[0].score > hits[1].score > hits[2].score
    hits = rank(["a", "b"], {"a": 40.0, "b": 41.0})  # both scores round to 1.0, and the order still holds
    assert ids(hits) == ["1", "0"]


@pytest.mark.parametrize(
    ("logit", "score"), [(1000.0, 1.0), (-1000.0, 0.0), (math.inf, 1.0), (-math.inf, 0.0), (0.0, 0.5)]
)
def test_scores_do_not_overflow(logit: float, score: float) -> None:
    assert rank(["a"], {"a": logit})[0].score == score


@given(st.floats(-700, 700), st.floats(-700, 700))
def test_sigmoid_is_monotone_symmetric_and_in_range(left: float, right: float) -> None:
    assert 0.0 <= sigmoid(left) <= 1.0
    assert (sigmoid(left) <= sigmoid(right)) == (left <= right) or sigmoid(left) == sigmoid(right)
    assert sigmoid(left) + sigmoid(-left) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("position", [0, 1, 3])
def test_nan_has_no_rank(position: int) -> None:
    table = {"a": 0.1, "b": 0.9, "c": 0.5, "d": 0.2}
    name = "abcd"[position]
    with pytest.raises(ModelError, match=rf"NaN for 1 of 4 passages \(first: '{position}'\)"):
        rank(list(table), {**table, name: math.nan})


@pytest.mark.parametrize(
    "answer", [[1.0], [1.0, 2.0, 3.0], [[1.0], [2.0]], [[1.0, 2.0], [3.0, 4.0]], [], 1.0, None, np.zeros((2, 1))]
)
async def test_a_wrong_number_of_scores_is_an_error(answer: Any) -> None:
    ranker = as_ranker(Answer(answer))
    with pytest.raises(ModelError, match="given 2 texts and returned scores of shape"):
        ranker.rank("query", ["a", "b"])
    with pytest.raises(ModelError, match="given 2 texts"):
        await ranker.arank("query", ["a", "b"])


@pytest.mark.parametrize(
    "answer", [[2, 1], (2.0, 1.0), np.array([2.0, 1.0]), np.array([2, 1], np.int8), [np.float16(2), 1]]
)
def test_scores_may_come_in_any_numeric_form(answer: Any) -> None:
    assert [hit.logit for hit in as_ranker(Answer(answer)).rank("query", ["a", "b"])] == [2.0, 1.0]


@pytest.mark.parametrize(
    ("passages", "says"),
    [
        ("one text", "wrap one"),
        (Passage("a", "text"), "wrap one"),
        (Hit(Passage("a", "text"), 1, 0.5), "wrap one"),
        (None, "NoneType"),
        (5, "int"),
        (["a", None], r"passages\[1\].*NoneType"),
        ([("a", "text")], r"passages\[0\].*tuple"),
        (b"bytes", r"passages\[0\].*int"),
        ({"id": "low"}, "must be a list of texts, passages or hits, got dict"),  # its keys were scored
        (["a", "\ud800"], "passage '1' holds a lone surrogate"),
        ([Passage("x", "\ud800")], "passage 'x' holds a lone surrogate"),
    ],
)
def test_unusable_passages_are_refused(passages: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        rank(passages)


@pytest.mark.parametrize("query", ["", " ", None, 7])
async def test_an_unusable_query_is_refused(query: Any) -> None:
    ranker = as_ranker(TableScorer(TABLE))
    with pytest.raises(InvalidInputError, match="query"):
        ranker.rank(query, ["low"])
    with pytest.raises(InvalidInputError, match="query"):
        await ranker.arank(query, [])


def test_our_model_ranks_itself_and_others_are_wrapped(tiny_cross_encoder: Path) -> None:
    model, scorer = CrossEncoder(tiny_cross_encoder), TableScorer({})
    assert as_ranker(model) is model
    wrapped = as_ranker(scorer)
    assert isinstance(wrapped, ScorerRanker)
    assert isinstance(wrapped, Ranker)
    assert wrapped.scorer is scorer


@pytest.mark.parametrize("scorer", [None, "a name", object(), lambda query, texts: [1.0]])
def test_what_cannot_score_is_refused(scorer: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"must have score\(query, texts\)"):
        as_ranker(scorer)


async def test_a_scorer_sees_the_callers_context() -> None:
    """A trace, for one, was lost in async calls and with a time budget."""
    trace: contextvars.ContextVar[str] = contextvars.ContextVar("trace", default="lost")
    seen = []

    class Traced:
        def score(self, query: str, texts: Sequence[str]) -> list[float]:
            seen.append(trace.get())
            return [0.0] * len(texts)

    trace.set("kept")
    ranker = ScorerRanker(Traced())
    ranker.rank("q", ["a"])
    ranker.rank("q", ["a"], time_budget=5)
    await ranker.arank("q", ["a"])
    assert seen == ["kept"] * 3


# Other people's scores on our scale


HINT = "every score that Given gave lies in"


class Given:
    """Returns the scores that it was given, in order."""

    def __init__(self, *scores: float, kind: Any = list) -> None:
        self.scores = scores
        self.kind = kind

    def score(self, query: str, texts: Sequence[str]) -> Any:
        return self.kind(self.scores[: len(texts)])


class GivenAsync(Given):
    async def ascore(self, query: str, texts: Sequence[str]) -> Any:
        return self.score(query, texts)


@pytest.mark.parametrize("kind", [Given, GivenAsync])
async def test_probabilities_are_the_relevance_scores(kind: type[Given]) -> None:
    """A sigmoid on top of a probability gives 0.5 to 0.73 for everything."""
    scores = (0.2, 0.999, 0.5, 1e-9)
    ranker = as_ranker(kind(*scores), "probabilities")
    hits = ranker.rank("q", list("abcd"))
    assert [hit.passage.text for hit in hits] == list("bcad")
    assert [hit.score for hit in hits] == pytest.approx([0.999, 0.5, 0.2, 1e-9], rel=1e-12)
    assert [hit.logit for hit in hits][1:3] == pytest.approx([0.0, math.log(0.25)], abs=1e-12)
    assert await ranker.arank("q", list("abcd")) == hits
    assert [hit.passage.text for hit in ranker.rank("q", list("abcd"), score_threshold=0.5)] == ["b", "c"]


def test_the_ends_of_the_scale_are_numbers_and_tie_with_nothing() -> None:
    tiny, large = 5e-324, 1 - 2**-53  # the neighbours of 0 and 1
    hits = as_ranker(Given(0.0, tiny, large, 1.0, 0.0), "probabilities").rank("q", list("abcde"))
    assert [hit.passage.text for hit in hits] == list("dcbae")
    assert [hit.score for hit in hits] == pytest.approx([1.0, large, tiny, 0.0, 0.0], rel=1e-15, abs=0)
    logits = [hit.logit for hit in hits]
    assert all(math.isfinite(logit) for logit in logits if logit is not None)
    assert logits[0] > logits[1] > logits[2] > logits[3] == logits[4]  # type: ignore[operator]


@pytest.mark.parametrize("base", [0.9, 1e-4, 0.999999])
def test_neighbouring_probabilities_do_not_tie(base: float) -> None:
    """As float32 logits they would: float32's steps are wider there than the model's."""
    single = np.float32(base)
    for number, above in ((single, np.nextafter(single, np.float32(1))), (base, base * (1 + 1e-12))):
        hits = as_ranker(Given(number, above, kind=np.array), "probabilities").rank("q", ["a", "b"])
        assert [hit.passage.text for hit in hits] == ["b", "a"]


@pytest.mark.parametrize("score", [-0.001, 1.5, math.inf, -math.inf, math.nan])
def test_what_is_no_probability_is_refused(score: float) -> None:
    says = r'said to give probabilities, but gave .*use scores="logits"' if not math.isnan(score) else "NaN for 1 of 2"
    with pytest.raises(ModelError, match=says):
        as_ranker(Given(0.5, score), "probabilities").rank("q", ["a", "b"])


def test_logits_that_look_like_probabilities_are_mentioned_once() -> None:
    ranker = as_ranker(Given(0.1, 0.9))
    with pytest.warns(UserWarning, match=HINT) as warned:
        assert [hit.logit for hit in ranker.rank("q", ["a", "b"])] == [0.9, 0.1]
    assert len(warned) == 1
    assert 'scores="probabilities"' in str(warned[0].message)
    ranker.rank("q", ["a", "b"])  # a second warning would be an error here


@pytest.mark.parametrize("scores", [(0.1, 1.1), (-0.1, 0.5), (0.0, 1.0)])
def test_what_is_clearly_no_probability_is_not_mentioned(scores: tuple[float, ...]) -> None:
    as_ranker(Given(*scores)).rank("q", ["a", "b"])  # a warning would be an error here


def test_one_text_says_nothing_about_the_scale() -> None:
    as_ranker(Given(0.5, 0.5)).rank("q", ["a"])
    as_ranker(Given(0.5, 0.5)).rank("q", ["a", "a"])


def test_ragged_scores_are_a_model_error() -> None:
    with pytest.raises(ModelError, match="one number a pair"):
        as_ranker(Given(1.0, [1.0, 2.0])).rank("q", ["a", "b"])  # type: ignore[arg-type]


def test_the_scale_of_our_own_model_is_known() -> None:
    model = CrossEncoder("some/model")
    assert as_ranker(model) is model
    with pytest.raises(InvalidInputError, match="a CrossEncoder ranks by logits already"):
        as_ranker(model, "probabilities")
    with pytest.raises(InvalidInputError, match="scores must be 'logits' or 'probabilities'"):
        as_ranker(Given(), "percent")  # type: ignore[arg-type]


def test_the_pipeline_takes_either_scale() -> None:
    pipeline = RetrieveRerank(ListRetriever(["a", "b"]), Given(0.25, 0.75), scores="probabilities", score_threshold=0.5)
    assert [hit.score for hit in pipeline.search("q")] == pytest.approx([0.75])
    with pytest.raises(InvalidInputError, match="scores"):
        RetrieveRerank(ListRetriever([]), Given(), scores="logit")  # type: ignore[arg-type]
