"""The choice: the budget, the quality, the tolerance, what it is worth on other questions, and the words for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retrieve_rerank import InvalidInputError
from retrieve_rerank.evaluation import Dataset, Latency, Setting, Tuning, choosing, tune
from tests.core.stubs import TableScorer
from tests.evaluation.stubs import TEXTS, Shelf, dataset, logits


def made(first: str, depth: int, values: list[float], p95: float, model: str | None = "ce") -> Setting:
    per_query = {f"q{number:03}": value for number, value in enumerate(values)}
    mean = float(np.mean(values))
    return Setting(first, depth, model, model, None, mean, mean, mean, float(depth), Latency(p95 / 2, p95), per_query)


PLAIN = made("bm25", 100, [0.5] * 4, 0.01, None)
TEN = made("bm25", 10, [0.7, 0.7, 0.5, 0.5], 0.10)
FIFTY = made("bm25", 50, [0.7, 0.7, 0.7, 0.7], 0.50)
HUNDRED = made("bm25", 100, [0.701, 0.701, 0.701, 0.701], 1.00)
ALL = [HUNDRED, PLAIN, FIFTY, TEN]


@pytest.mark.parametrize(
    ("budget", "quality", "expected"),
    [
        (None, None, FIFTY),  # 0.001 better is no reason to wait twice as long
        (0.5, None, FIFTY),
        (0.49, None, TEN),
        (0.05, None, PLAIN),
        (None, 0.5, PLAIN),
        (None, 0.51, TEN),
        (None, 0.7005, HUNDRED),
        (0.5, 0.55, TEN),
    ],
)
def test_choices_by_hand(budget: float | None, quality: float | None, expected: Setting) -> None:
    assert choosing.choose(ALL, budget, quality)[0] is expected


@pytest.mark.parametrize(
    ("budget", "quality", "message"),
    [
        (
            0.001,
            None,
            "no setting keeps latency_budget=0.001 s at p95: the fastest is 'bm25, not re-ranked' with 0.01 s",
        ),
        (None, 0.8, "no setting reaches quality=0.8: the best is 0.701, by 'bm25 → ce, 100 deep'"),
        (0.2, 0.65, "no setting within latency_budget=0.2 s reaches quality=0.65: the best is 0.600"),
    ],
)
def test_what_nothing_meets_is_an_error_that_says_what_comes_closest(
    budget: float | None, quality: float | None, message: str
) -> None:
    with pytest.raises(InvalidInputError) as raised:
        choosing.choose(ALL, budget, quality)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("budget", "quality", "expected"),
    [(0.001, None, PLAIN), (0.001, 0.9, PLAIN), (None, 0.8, HUNDRED), (0.2, 0.65, TEN), (0.5, 0.65, FIFTY)],
)
def test_where_nothing_meets_it_the_closest_is_taken(
    budget: float | None, quality: float | None, expected: Setting
) -> None:
    chosen, reason = choosing.closest(ALL, budget, quality)
    assert chosen is expected
    assert reason.startswith("Not what was asked for, no setting") == ((budget, quality) != (0.5, 0.65))


def test_an_hour_of_scoring_is_not_lost_to_a_budget_that_cannot_be_kept() -> None:
    for asked in ({"latency_budget": 1e-9}, {"quality": 1.5}):
        tuning = many("+-" * 10, **asked)
        assert not tuning.met
        assert tuning.reason.startswith("Not what was asked for")
        assert tuning.answer.startswith("Nothing meets what was asked for; this comes closest. On many, ")
        assert tuning.held_out is not None
    assert many("+-" * 10, quality=0.9).met


def test_the_frontier_leaves_out_what_is_slower_and_no_better() -> None:
    slow = made("bm25", 75, [0.7] * 4, 0.7)
    assert replace(many("+-"), settings=(*ALL, slow)).frontier == (PLAIN, TEN, FIFTY, HUNDRED)


def test_a_budget_that_only_depth_ten_meets() -> None:
    """0.01 s a pair: twenty take 0.2 s, and ten are the most that keep to 0.18 s."""

    class Slow(TableScorer):
        def score(self, query: str, texts: list[str]) -> np.ndarray:
            self.seconds = 0.01 * len(texts)
            return super().score(query, texts)

    texts = {f"p{number:02}": f"text {number}" for number in range(30)}
    queries = {f"q{number}": f"question {number}" for number in range(3)}
    data = Dataset("slow", texts, queries, {query: {"p07": 1} for query in queries})
    shelf = Shelf({text: sorted(texts) for text in queries.values()}, texts)
    scorer = Slow({text: float(text == "text 7") for text in texts.values()})
    tuning = tune({"shelf": shelf}, {"slow": scorer}, data, depths=[5, 10, 20, 30], latency_budget=0.18)
    assert (tuning.chosen.fetch_k, tuning.chosen.cross_encoder, tuning.chosen.quality) == (10, "slow", 1.0)
    assert tuning.choose(latency_budget=0.09).cross_encoder is None  # of five, none is the right one
    assert tuning.choose().quality == 1.0
    assert tuning.choose(quality=0.2).cross_encoder is None
    with pytest.raises(InvalidInputError, match=r"no setting reaches quality=1\.1"):
        tuning.choose(quality=1.1)


def test_held_out_by_hand() -> None:
    """Two settings, each good on 10 of 20 questions: what is better on one half is as much worse on the other."""
    one = made("one", 10, [1.0] * 10 + [0.0] * 10, 0.1)
    two = made("two", 10, [0.0] * 10 + [1.0] * 10, 0.2)
    held_out = choosing.check([one, two], one, None, None, seed=0)
    assert held_out is not None
    assert held_out.tuned == pytest.approx(1 - held_out.quality)
    assert held_out.tuned == pytest.approx(held_out.best)  # the other setting, on the other half
    assert held_out.regret == pytest.approx(held_out.best - held_out.quality)
    assert held_out.regret == pytest.approx(np.mean(held_out.regrets))
    assert 0 < held_out.regret < 0.3
    assert held_out.spread == pytest.approx(np.percentile(held_out.regrets, 90))
    assert 0 < held_out.agreement < 1
    assert len(held_out.regrets) == held_out.splits
    again = choosing.check([one, two], one, None, None, seed=0)
    assert again == held_out != choosing.check([one, two], one, None, None, seed=1)


def test_held_out_of_a_clear_case_and_of_few_questions() -> None:
    good, bad = made("good", 10, [0.75] * 20, 0.1), made("bad", 10, [0.25] * 20, 0.05)
    held_out = choosing.check([good, bad], good, None, None, seed=0)
    assert held_out is not None
    assert (held_out.regret, held_out.agreement) == (0.0, 1.0)
    # Only the bad one is fast enough.
    slow = choosing.check([good, bad], bad, 0.07, None, seed=0)
    assert slow is not None
    assert slow.quality == 0.25
    assert choosing.check(ALL, FIFTY, None, None, seed=0) is None


def many(verdicts: str, **asked: float) -> Tuning:
    """One question a letter, answered by a: "+" has it second, so that the re-ranker lifts it; "-" has it first."""
    queries = {f"q{number:03}": f"question {number}" for number in range(len(verdicts))}
    lists = {text: "ba" if verdict == "+" else "ab" for text, verdict in zip(queries.values(), verdicts, strict=True)}
    data = Dataset("many", TEXTS, queries, {query: {"a": 1} for query in queries})
    return tune({"my shelf": Shelf(lists)}, {"table": TableScorer(logits("ab"))}, data, depths=[2], seed=3, **asked)


def test_what_a_reader_is_told() -> None:
    tuning = many("+" * 30)
    assert tuning.answer.startswith(
        "On many, re-rank the first 2 of 'my shelf' by 'table': nDCG@10 1.000 [1.000, 1.000]"
    )
    assert tuning.answer.endswith("the best first stage by itself, 'my shelf', reaches 0.631.")
    assert repr(tuning).startswith(
        "<Tuning of 2 settings on 'many', 30 questions: my shelf → table, 2 deep; nDCG@10 1.000"
    )
    assert "The deepest that was tried is chosen: try deeper than 2." in tuning.notes
    assert any("reached 1.000 on the other half, 0.000 below the best" in note for note in tuning.notes)
    assert "RetrieveRerank(my_shelf, table, fetch_k=2)" in tuning.code()
    few = many("+-+")
    assert any("Only 3 questions" in note for note in few.notes)
    assert any("too few to check the choice" in note for note in few.notes)


def test_a_notebook_shows_it_escaped() -> None:
    shelf, weak = Shelf({"one": "ca", "two": "eb"}), dataset(weak="first sentences")
    tuning = tune({"<b>shelf": shelf}, {"<script>": TableScorer(logits("abcdef"))}, weak, depths=[1, 2])
    assert "(weak questions, made from the passages themselves)" in tuning.answer
    assert any("The questions are weak: first sentences" in note for note in tuning.notes)
    html = tuning._repr_html_()
    assert "<b>" not in html
    assert "<script>" not in html
    assert "&lt;b&gt;shelf → &lt;script&gt;, 2 deep (chosen)</td>" in html
    assert "2 deep (chosen)</td>" in html


def test_a_curve_that_is_not_there() -> None:
    with pytest.raises(InvalidInputError, match="'shelf' with 'table' was not tried; there are the first stages"):
        many("+-").curve("shelf", "table")


def test_who_asks_for_a_quality_is_told_whether_it_is_kept() -> None:
    """The fastest that reaches it is not the best, on purpose: more questions would not make it so."""
    tuning = many("+-" * 20, quality=0.7)
    held_out = tuning.held_out
    assert (held_out.target, held_out.reached) == (0.7, 1.0)
    assert any("and the 0.7 that was asked for in 100% of them" in note for note in tuning.notes)
    assert not any("too few to tell" in note or "below the best one" in note for note in tuning.notes)
    close = many("+-" * 20, quality=0.8155)  # the mean over all questions: half of the halves are below
    assert 0.2 < close.held_out.reached < 0.9
    assert many("+-" * 20).held_out.target is None
