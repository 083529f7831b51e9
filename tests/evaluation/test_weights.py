"""Weights of the cross-encoder that `evaluate` and `tune` try: over what was scored once, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieve_rerank import Hit, InvalidInputError, Passage, RetrieveRerank, load_setting
from retrieve_rerank.evaluation import Dataset, Evaluation, charts, choosing, evaluate, tune
from retrieve_rerank.evaluation.running import WEIGHTS
from tests.core.stubs import TableScorer

TEXTS = {f"p{number:02}": f"text {number}" for number in range(12)}


class Noisy:
    """A first stage whose scores fall with the ranks; what is asked first, it finds first, more or less."""

    def __init__(self, lists: dict[str, Sequence[str]]) -> None:
        self.lists = lists

    def retrieve(self, query: str, k: int) -> list[Hit]:
        return [
            Hit(Passage(name, TEXTS[name]), rank, 1 / rank, retrieval_rank=rank, retrieval_score=1 / rank)
            for rank, name in enumerate(self.lists[query][:k], start=1)
        ]


class ByQuery(TableScorer):
    """A logit for each pair of question and text."""

    def score(self, query: str, texts: Sequence[str]) -> Any:
        self.asked.append((query, list(texts)))
        return np.array([self.table[f"{query} {text}"] for text in texts])


def made(seed: int, questions: int, found: float, read: float) -> tuple[Noisy, ByQuery, Dataset]:
    """Both stages see the right passage through noise of their own; `found` and `read` say how well each does."""
    random, names = np.random.default_rng(seed), sorted(TEXTS)
    lists: dict[str, Sequence[str]] = {}
    table: dict[str, float] = {}
    for number in range(questions):
        query, right = f"question {number}", np.array([float(place == number % 12) for place in range(12)])
        lists[query] = [names[place] for place in np.argsort(-(found * right + random.normal(size=12)))]
        logits = read * right + random.normal(size=12)
        table.update({f"{query} {TEXTS[name]}": float(logit) for name, logit in zip(names, logits, strict=True)})
    queries = {f"q{number:02}": f"question {number}" for number in range(questions)}
    judgements = {f"q{number:02}": {names[number % 12]: 1} for number in range(questions)}
    return Noisy(lists), ByQuery(table), Dataset("noisy", TEXTS, queries, judgements)


@pytest.fixture(scope="module")
def ground() -> tuple[Noisy, ByQuery, Dataset]:
    """Together, the stages see more than either."""
    return made(5, 40, 2.0, 2.0)


def test_not_a_pair_more_is_scored_for_them(ground: tuple[Noisy, ByQuery, Dataset]) -> None:
    first, scorer, data = ground
    asked = []
    for weights in ([1.0], WEIGHTS):
        scorer.asked.clear()
        tune(first, scorer, data, depths=[4, 12], rerank_weights=weights, resamples=10)
        asked.append([(query, texts) for query, texts in scorer.asked if len(texts) > 1])
    assert asked[0] == asked[1]
    assert sum(len(texts) for _, texts in asked[1]) == 40 * 12


def test_a_setting_is_what_evaluate_gives_a_pipeline_of_that_weight(ground: tuple[Noisy, ByQuery, Dataset]) -> None:
    first, scorer, data = ground
    tuning = tune({"first": first}, {"table": scorer}, data, depths=[4, 12], resamples=10)
    for depth, weight in ((4, 0.3), (12, 0.7), (12, 1.0)):
        search = RetrieveRerank(first, scorer, fetch_k=depth, rerank_weight=weight)
        found = evaluate({"search": search}, data, ["nDCG@10"], resamples=10)["search"]
        [setting] = [one for one in tuning.curve("first", "table", weight) if one.fetch_k == depth]
        assert setting.per_query == found.per_query["nDCG@10"]
        assert found.by_weight[weight][0] == pytest.approx(found.means["nDCG@10"])
        assert found.rerank_weight == weight
        assert found.run["q03"] == tuple(hit.passage.id for hit in search.search("question 3", top_n=12))


def test_both_together_are_chosen_where_they_are_better_than_either(
    ground: tuple[Noisy, ByQuery, Dataset], tmp_path: Path
) -> None:
    first, scorer, data = ground
    tuning = tune({"first": first}, {"table": scorer}, data, depths=[4, 12])
    weight = tuning.chosen.rerank_weight
    assert 0.2 <= weight <= 0.8
    assert tuning.chosen.name == f"first → table, 12 deep, weight {weight:g}"
    assert f"by 'table' with rerank_weight={weight:g}: " in tuning.answer
    assert f", fetch_k=12, rerank_weight={weight:g})\n" in tuning.code()
    assert any("choosing the weight, too, is worth +0." in note for note in tuning.notes)
    tuning.save(tmp_path / "setting.json")
    assert load_setting(tmp_path / "setting.json").rerank_weight == weight
    search = RetrieveRerank.load(tmp_path / "setting.json", first, scorer)
    assert (search.fetch_k, search.rerank_weight) == (12, weight)
    plain = next(one for one in tuning.settings if one.cross_encoder is None)
    assert plain.rerank_weight == 0
    tuning.save(tmp_path / "plain.json", plain)
    assert load_setting(tmp_path / "plain.json").rerank_weight == 1  # for whoever re-ranks all the same
    [chart] = charts.tuning_weights(tuning)
    assert [point.x for point in chart.points] == [0.0, *WEIGHTS]
    assert [point.x for point in chart.points if point.best] == [weight]
    tuning.to_html(tmp_path / "tuning.html")
    page = (tmp_path / "tuning.html").read_text(encoding="utf-8")
    assert "How much the cross-encoder should count" in page
    assert f"rerank_weight={weight:g}" in page


def test_a_weight_that_is_worth_nothing_on_other_questions_is_left_at_one(tmp_path: Path) -> None:
    first, scorer, data = made(10, 30, 1.5, 0.0)  # the cross-encoder sees nothing, and on some questions is lucky
    tuning = tune({"first": first}, {"table": scorer}, data, depths=[4, 12])
    assert not tuning.weight_chosen
    assert tuning.chosen.cross_encoder is None
    assert tuning.choose() == tuning.chosen
    assert max(one.quality for one in tuning.settings) > tuning.chosen.quality + choosing.TOLERANCE
    assert any("choosing the weight, too, is worth -0." in note for note in tuning.notes)
    assert [chart.points[-1].x for chart in charts.tuning_depths(tuning)] == [12]
    tuning.to_html(tmp_path / "tuning.html")


def test_an_evaluation_shows_the_curve_and_keeps_it(ground: tuple[Noisy, ByQuery, Dataset], tmp_path: Path) -> None:
    first, scorer, data = ground
    pipelines = {name: RetrieveRerank(first, scorer, rerank_weight=weight) for name, weight in (("x", 1), ("y", 0.5))}
    evaluation = evaluate(pipelines, data, ["nDCG@10", "RR@10"], resamples=100)
    assert evaluation["x"].by_weight == evaluation["y"].by_weight
    by_weight = evaluation["x"].by_weight
    assert list(by_weight) == [0.0, *WEIGHTS]
    assert by_weight[0.0][0] == pytest.approx(evaluation["first stage of x, y"].means["nDCG@10"])
    assert by_weight[1.0][0] == pytest.approx(evaluation["x"].means["nDCG@10"])
    assert by_weight[0.5][0] == pytest.approx(evaluation["y"].means["nDCG@10"])
    assert all(low <= mean <= high for mean, low, high in by_weight.values())
    assert any("'x' with rerank_weight=0." in note for note in evaluation.notes)
    assert evaluation["y"].description.endswith(" with rerank_weight=0.5")
    assert [len(chart.points) for chart in charts.evaluation_weights(evaluation)] == [11, 11]
    evaluation.to_json(tmp_path / "evaluation.json")
    assert Evaluation.from_json(tmp_path / "evaluation.json") == evaluation
    evaluation.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "How much the cross-encoder should count" in page
    found = RetrieveRerank(first, scorer, rerank_weight=0.5).search_many(list(data.queries.values()))
    shown = [f", combined {result[0].combined_score:.3f}</span>" in page for result in found]
    assert 5 <= sum(shown) <= 10  # those of the examples
    content = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    for system in content["systems"]:
        del system["rerank_weight"], system["by_weight"]  # as versions before this one wrote it
    (tmp_path / "old.json").write_text(json.dumps(content), encoding="utf-8")
    assert charts.evaluation_weights(Evaluation.from_json(tmp_path / "old.json")) == []


@pytest.mark.parametrize("wrong", [[], 0.5, "0.5", None, [1.5], ["much"], [True]])
def test_weights_that_cannot_be_tried_are_refused(wrong: Any, ground: tuple[Noisy, ByQuery, Dataset]) -> None:
    with pytest.raises(InvalidInputError, match="rerank_weight"):
        tune(*ground, rerank_weights=wrong)
