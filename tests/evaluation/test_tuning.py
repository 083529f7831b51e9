"""Settings tried, and the choice: values by hand, each pair read once, what an evaluation of each setting gives."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieve_rerank import (
    BiEncoder,
    BM25Index,
    ChromaIndex,
    CrossEncoder,
    HybridRetriever,
    InvalidInputError,
    RetrieveRerank,
)
from retrieve_rerank.evaluation import Dataset, Latency, Setting, Tuning, choosing, evaluate, tune
from retrieve_rerank.evaluation.measuring import measure
from retrieve_rerank.evaluation.running import Stage
from retrieve_rerank.evaluation.tune import Grid
from tests.core.stubs import TableScorer
from tests.evaluation.stubs import TEXTS, Shelf, dataset, logits, many

LISTS = {"one": "cad", "two": "efb"}
SECOND, THIRD = 1 / math.log2(3), 1 / math.log2(4)


def setting(tuning: Tuning, first: str, depth: int | None) -> Setting:
    """Return the setting of a depth; None is no re-ranking."""
    return next(
        one
        for one in tuning.settings
        if one.first_stage == first and (one.cross_encoder is None if depth is None else one.fetch_k == depth)
        if (one.cross_encoder is None) == (depth is None)
    )


def test_qualities_by_hand() -> None:
    table = TableScorer(logits("abcdef"))
    tuning = tune({"shelf": Shelf(LISTS)}, {"table": table}, dataset(), depths=[3, 1, 2, 2], rerank_weights=[1])
    ideal = 2 + SECOND  # a (2) first, d (1) second
    assert [one.name for one in tuning.settings] == [
        "shelf, not re-ranked",
        "shelf → table, 1 deep",
        "shelf → table, 2 deep",
        "shelf → table, 3 deep",
    ]
    assert setting(tuning, "shelf", None).per_query == pytest.approx({"q1": (2 * SECOND + THIRD) / ideal, "q2": THIRD})
    assert setting(tuning, "shelf", 1).per_query == {"q1": 0.0, "q2": 0.0}
    assert setting(tuning, "shelf", 2).per_query == pytest.approx({"q1": 2 / ideal, "q2": 0.0})
    assert setting(tuning, "shelf", 3).per_query == pytest.approx({"q1": (2 + THIRD) / ideal, "q2": 1.0})
    assert [one.pairs for one in tuning.settings] == [0, 1, 2, 3]
    assert [one.fetch_k for one in tuning.settings] == [3, 1, 2, 3]
    assert tuning.depths == (1, 2, 3)
    assert tuning.ceiling["shelf"] == pytest.approx({1: 0.0, 2: 2 / ideal / 2, 3: 1.0})
    assert tuning.chosen == setting(tuning, "shelf", 3)
    assert tuning.curve("shelf", "table") == tuning.settings[1:]


def test_where_re_ranking_hurts_the_first_stage_alone_is_chosen() -> None:
    lists = {"one": "adbcef", "two": "bacdef"}  # as good as can be
    tuning = tune({"shelf": Shelf(lists)}, {"bad": TableScorer(logits("fecbda"))}, dataset(), depths=[2, 4, 6])
    assert tuning.chosen.cross_encoder is None
    assert tuning.chosen.quality == 1.0
    assert tuning.answer.startswith("On toy, search with 'shelf' and do not re-rank: nDCG@10 1.000")
    # As deep as it was measured: a hybrid puts other passages first when it looks less deep.
    assert "hits = shelf.retrieve(query, k=6)[:10]\n" in tuning.code()


@pytest.mark.parametrize("measure", ["nDCG@10", "AP"])
def test_every_setting_is_what_evaluate_gives_a_pipeline_of_that_depth(
    measure: str, tiny_bi_encoder: Path, tiny_cross_encoder: Path
) -> None:
    """Also where a shallower search is no beginning of a deeper one, as a hybrid's; also where texts are equal."""
    random = np.random.default_rng(0)
    words = ["bread", "paris", "capital", "is", "the", "of", "what", "france"]
    texts = {str(number): " ".join(random.choice(words, size=1 + number % 5)) for number in range(30)}
    queries = {f"q{number}": " ".join(random.choice(words, size=2)) for number in range(8)}
    judgements = {
        query: {str(number): 1 + number % 2 for number in random.choice(30, size=3).tolist()} for query in queries
    }
    data = Dataset("random", texts, queries, judgements)
    with (
        BiEncoder(tiny_bi_encoder) as encoder,
        CrossEncoder(tiny_cross_encoder) as model,
        ChromaIndex(encoder) as dense,
        BM25Index() as lexical,
    ):
        dense.add(data.passages)
        lexical.add(data.passages)
        firsts = {"dense": dense, "words": lexical, "both": HybridRetriever([dense, lexical])}
        depths = [2, 5, 9]
        tuning = tune(firsts, {"tiny": model}, data, measure=measure, depths=depths, resamples=50)
        for name, first in firsts.items():
            alone = evaluate({"first": first}, data, [measure], fetch_k=9, resamples=1)
            assert setting(tuning, name, None).per_query == alone["first"].per_query[measure]
            for depth in depths:
                search = RetrieveRerank(first, model, fetch_k=depth)
                system = evaluate({"search": search}, data, [measure], resamples=1)
                here = setting(tuning, name, depth)
                assert here.per_query == system["search"].per_query[measure]
                assert here.quality == pytest.approx(system["search"].means[measure])
                assert tuning.ceiling[name][depth] == pytest.approx(system["first stage of search"].ceiling[measure])
        assert {one.precision for one in tuning.settings} == {None, model.precision}
        assert any(
            [hit.passage.id for hit in firsts["both"].retrieve(query, 5)]
            != [hit.passage.id for hit in firsts["both"].retrieve(query, 9)][:5]
            for query in queries.values()
        )


def test_each_pair_is_read_once_and_the_deepest_first() -> None:
    scorer = TableScorer(logits("abcdef"))
    shelves = {"one": Shelf({"one": "abcd", "two": "cdef"}), "other": Shelf({"one": "bcdef", "two": "f"})}
    tuning = tune(shelves, {"table": scorer}, dataset(), depths=[1, 2, 5])
    read = [(query, text) for query, texts in scorer.asked for text in texts]
    calls = len(read)
    assert {pair for pair in read if pair[0] == "one"} == {("one", TEXTS[name]) for name in "abcdef"}
    assert {pair for pair in read if pair[0] == "two"} == {("two", TEXTS[name]) for name in "cdef"}
    assert [len(texts) for _, texts in scorer.asked[:3]] == [4, 2, 4]
    # What comes after is the measuring of what a call costs, with one pair each.
    assert calls == 10 + sum(len(texts) == 1 for _, texts in scorer.asked[3:])
    assert {depth for _, depth in shelves["one"].asked} == {1, 2, 5}
    assert setting(tuning, "other", 5).pairs == 3  # of "two", it finds one


def test_two_cross_encoders_and_one_given_twice() -> None:
    good, flat = TableScorer(logits("abcdef")), TableScorer(dict.fromkeys(TEXTS.values(), 2.5))
    models = {"good": good, "flat": flat, "again": good}
    tuning = tune({"shelf": Shelf(LISTS)}, models, dataset(), depths=[3], rerank_weights=[1])
    assert tuning.cross_encoders == ("good", "flat", "again")
    found = {one.cross_encoder: one for one in tuning.settings}
    assert found.keys() == {None, "good", "flat", "again"}
    assert found["good"].quality == tuning.chosen.quality
    assert found["flat"].per_query == found[None].per_query  # equal logits keep the order of the first stage
    assert sum(len(texts) > 1 for _, texts in good.asked) == 2  # once a question


def test_a_scorer_of_probabilities() -> None:
    likely = TableScorer({TEXTS[name]: 0.9 - place / 10 for place, name in enumerate("abcdef")})
    tuning = tune({"shelf": Shelf(LISTS)}, {"likely": likely}, dataset(), depths=[3], scores="probabilities")
    assert tuning.chosen.cross_encoder == "likely"
    assert tuning.code().endswith("RetrieveRerank(shelf, likely, fetch_k=3, scores='probabilities')\n")


def test_a_first_stage_that_finds_nothing_loses_no_work() -> None:
    nothing = Shelf({"one": "", "two": ""})
    tuning = tune({"nothing": nothing, "shelf": Shelf(LISTS)}, {"table": TableScorer(logits("abcdef"))}, dataset())
    assert tuning.chosen.first_stage == "shelf"
    only = tune({"nothing": nothing}, {"table": TableScorer({})}, dataset(), depths=[2, 3], rerank_weights=[1])
    assert [one.quality for one in only.settings] == [0, 0, 0]
    assert only.chosen.pairs == 0


def test_from_a_cache_nothing_is_read_again(tmp_path: Path) -> None:
    class Known(TableScorer):
        fingerprint = {"weights": "table"}  # noqa: RUF012

    scorer, file = Known(logits("abcdef")), tmp_path / "scores.sqlite"
    evaluate({"deep": RetrieveRerank(Shelf(LISTS), scorer)}, dataset(), cache=file)
    before = len(scorer.asked)
    tuning = tune({"shelf": Shelf(LISTS)}, {"table": scorer}, dataset(), depths=[1, 2], cache=file)
    assert len(scorer.asked) == before
    assert any("came from the cache" in note for note in tuning.notes)
    assert all(one.latency.estimated for one in tuning.settings if one.cross_encoder)


def test_seconds_of_a_shallower_setting() -> None:
    """Each question: 0.1 s to retrieve; a call costs 0.5 s and each pair 0.2 s: shares of 0.25 s in a call for ten."""
    grid = Grid({"shelf": Shelf(LISTS)}, {"table": TableScorer({})}, [2, 10])
    for (_, _, depth), stage in grid.reranked.items():
        assert isinstance(stage.first, Stage)
        stage.first.seconds = [9.0, 0.1, 0.1]  # the first loads
        stage.seconds = [depth * 0.25] * 3
        stage.pairs = 3 * depth
    costs = {"table": 0.5}
    assert grid.seconds("shelf", "table", 10, costs) == pytest.approx([11.5, 2.6, 2.6])
    assert grid.seconds("shelf", "table", 2, costs) == pytest.approx([9 + 0.9, 1.0, 1.0])  # 0.1 + 0.5 + 2 * 0.2
    assert grid.seconds("shelf", None, 10, costs) == [9.0, 0.1, 0.1]


def test_latencies_hold_what_a_call_costs() -> None:
    class Slow(TableScorer):
        def score(self, query: str, texts: Sequence[str]) -> Any:
            self.seconds = 0.05 + 0.02 * len(texts)
            return super().score(query, texts)

    lists = {"one": "abcdef", "two": "abcdef"}
    tuning = tune({"shelf": Shelf(lists)}, {"slow": Slow(logits("abcdef"))}, dataset(), depths=[1, 6])
    one, six = setting(tuning, "shelf", 1).latency, setting(tuning, "shelf", 6).latency
    assert (one.estimated, six.estimated) == (True, False)
    assert 0.07 <= one.p95 < six.p95  # by the shares alone, it would be 0.028
    assert setting(tuning, "shelf", None).latency.p95 < 0.07


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"first_stages": {}}, "first_stages must hold a retriever"),
        ({"first_stages": {"x": object()}}, "first stage 'x' must have retrieve"),
        ({"first_stages": {"": Shelf(LISTS)}}, "the name of a first stage"),
        ({"cross_encoders": {}}, "cross_encoders must hold"),
        ({"cross_encoders": {"x": object()}}, "must have score"),
        ({"dataset": {}}, "dataset must be a Dataset"),
        ({"measure": "nDGC@10"}, "is not the name of a measure"),
        ({"measure": "NumRet"}, "is a count"),
        ({"depths": []}, "depths must be a list"),
        ({"depths": 10}, "depths must be a list"),
        ({"depths": [10, 0]}, "each of depths"),
        ({"latency_budget": -1.0}, "latency_budget"),
        ({"quality": "good"}, "quality must be a number"),
        ({"quality": math.nan}, "quality must be a number"),
        ({"resamples": 0}, "resamples"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_searched(arguments: dict[str, Any], message: str) -> None:
    shelf = Shelf(LISTS)
    given: dict[str, Any] = {
        "first_stages": {"shelf": shelf},
        "cross_encoders": {"table": TableScorer(logits("abcdef"))},
        "dataset": dataset(),
        **arguments,
    }
    with pytest.raises(InvalidInputError, match=message):
        tune(given.pop("first_stages"), given.pop("cross_encoders"), given.pop("dataset"), **given)
    assert shelf.asked == []


def test_names_where_none_are_given_and_all_of_it_as_json(tmp_path: Path) -> None:
    tuning = tune(Shelf(LISTS), TableScorer(logits("abcdef")), dataset(), depths=[1, 3])
    assert (tuning.first_stages, tuning.cross_encoders) == (("Shelf",), ("TableScorer",))
    tuning.to_json(tmp_path / "tuning.json")
    content = json.loads((tmp_path / "tuning.json").read_text(encoding="utf-8"))
    assert content["answer"] == tuning.answer
    assert [one["quality"] for one in content["settings"]] == [one.quality for one in tuning.settings]
    assert content["held_out"] is None


def test_both_stages_together_are_timed_by_question() -> None:
    """The 95th percentile of sums is not the sum of percentiles."""
    first = Stage("first", Shelf({}), 1, seconds=[9.0, *[0.0] * 10, *[1.0] * 10])
    second = Stage("second", Shelf({}), 1, first=first, seconds=[9.0, *[2.0] * 10, *[0.0] * 10])
    for stage in (first, second):
        stage.hits = {"q1": [], "q2": []}
    total = measure(second, dataset(), ["nDCG@10"]).total
    assert (total.p50, total.p95) == (1.5, 2.0)


# The choice: the budget, the quality, the tolerance, what it is worth on other questions, and the words for it


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
        tuning = tuned("+-" * 10, **asked)
        assert not tuning.met
        assert tuning.reason.startswith("Not what was asked for")
        assert tuning.answer.startswith("Nothing meets what was asked for; this comes closest. On many, ")
        assert tuning.held_out is not None
    assert tuned("+-" * 10, quality=0.9).met


def test_the_frontier_leaves_out_what_is_slower_and_no_better() -> None:
    slow = made("bm25", 75, [0.7] * 4, 0.7)
    assert replace(tuned("+-"), settings=(*ALL, slow)).frontier == (PLAIN, TEN, FIFTY, HUNDRED)


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


def tuned(verdicts: str, **asked: float) -> Tuning:
    """One question a letter: "+" is one that the re-ranker lifts."""
    data, shelf = many([1 if verdict == "+" else -1 for verdict in verdicts])
    return tune({"my shelf": shelf}, {"table": TableScorer(logits("ab"))}, data, depths=[2], seed=3, **asked)


def test_what_a_reader_is_told() -> None:
    tuning = tuned("+" * 30)
    assert tuning.answer.startswith(
        "On many, re-rank the first 2 of 'my shelf' by 'table': nDCG@10 1.000 [1.000, 1.000]"
    )
    assert tuning.answer.endswith("the best first stage by itself, 'my shelf', reaches 0.631.")
    assert repr(tuning).startswith(
        "<Tuning of 11 settings on 'many', 30 questions: my shelf → table, 2 deep; nDCG@10 1.000"
    )
    assert "The deepest that was tried is chosen: try deeper than 2." in tuning.notes
    assert any("reached 1.000 on the other half, 0.000 below the best" in note for note in tuning.notes)
    assert "RetrieveRerank(my_shelf, table, fetch_k=2)" in tuning.code()
    few = tuned("+-+")
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


def test_a_curve_that_is_not_there() -> None:
    with pytest.raises(InvalidInputError, match="'shelf' with 'table' was not tried; there are the first stages"):
        tuned("+-").curve("shelf", "table")


def test_who_asks_for_a_quality_is_told_whether_it_is_kept() -> None:
    """The fastest that reaches it is not the best, on purpose: more questions would not make it so."""
    tuning = tuned("+-" * 20, quality=0.7)
    held_out = tuning.held_out
    assert (held_out.target, held_out.reached) == (0.7, 1.0)
    assert any("and the 0.7 that was asked for in 100% of them" in note for note in tuning.notes)
    assert not any("too few to tell" in note or "below the best one" in note for note in tuning.notes)
    close = tuned("+-" * 20, quality=0.8155)  # the mean over all questions: half of the halves are below
    assert 0.2 < close.held_out.reached < 0.9
    assert tuned("+-" * 20).held_out.target is None
