"""Settings tried: values by hand, each pair read once, exactly what an evaluation of each setting gives."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
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
from retrieve_rerank.evaluation import Dataset, Setting, Tuning, evaluate, tune
from retrieve_rerank.evaluation.measuring import measure
from retrieve_rerank.evaluation.running import Stage
from retrieve_rerank.evaluation.tune import Grid
from tests.core.stubs import TableScorer
from tests.evaluation.stubs import TEXTS, Shelf, dataset, logits

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
    tuning = tune({"shelf": Shelf(LISTS)}, {"table": TableScorer(logits("abcdef"))}, dataset(), depths=[3, 1, 2, 2])
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


@pytest.mark.parametrize("measure", ["nDCG@10", "RR@3", "R@4", "AP"])
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
    tuning = tune({"shelf": Shelf(LISTS)}, models, dataset(), depths=[3])
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
    only = tune({"nothing": nothing}, {"table": TableScorer({})}, dataset(), depths=[2, 3])
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
