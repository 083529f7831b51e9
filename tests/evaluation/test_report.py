"""What a report says. How it looks is tested in a browser (test_report_browser.py)."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank import CrossEncoder, Hit, RetrieveRerank
from retrieve_rerank.evaluation import Dataset, Evaluation, evaluate, tune, words
from retrieve_rerank.evaluation.charts import Axis, axis_around, depths
from retrieve_rerank.evaluation.measuring import examples
from tests.core.stubs import TableScorer
from tests.evaluation import reports
from tests.evaluation.reports import Page
from tests.evaluation.stubs import Shelf, dataset, logits


def page_of(evaluation: Evaluation, folder: Path) -> Page:
    evaluation.to_html(folder / "report.html")
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def search(lists: dict[str, str], order: str, fetch_k: int, data: Dataset | None = None) -> Evaluation:
    pipeline = RetrieveRerank(Shelf(lists), TableScorer(logits(order)), fetch_k=fetch_k)
    return evaluate({"search": pipeline}, data or dataset(), resamples=200)


@pytest.mark.parametrize("make", [reports.ordinary, reports.hostile, reports.smallest, reports.first_stages])
def test_it_is_well_formed_and_refers_to_nothing_outside(tmp_path: Path, make: Any) -> None:
    page = page_of(make(), tmp_path)
    assert page.open == []
    assert {"img", "link", "iframe", "object", "a"}.isdisjoint(page.tags)
    assert page.tags.count("script") == 1
    assert {"src", "href", "xlink:href", "onclick", "onload", "onerror"}.isdisjoint(name for name, _ in page.attributes)
    assert not [value for _, value in page.attributes if value and "url(" in value]
    assert page.tags.count("h1") == 1


def test_the_answer_comes_first_also_when_it_is_no(tmp_path: Path) -> None:
    evaluation = search({"one": "adc", "two": "bcd"}, "fedcba", 3, dataset(weak="by guess"))
    head = page_of(evaluation, tmp_path).said("header").replace("\u00a0", " ")
    assert "The questions are weak: by guess. They show whether a system is broken" in head
    assert "do not show how large the gain is" in head
    assert head.startswith("Does re-ranking help on toy ? ")
    assert evaluation.answer in head
    assert "Only 2 questions: no difference, however large, can show." in head


def test_several_pipelines_have_a_verdict_each(tmp_path: Path) -> None:
    head = page_of(reports.ordinary(), tmp_path).said("header").replace("\u00a0", " ")
    assert "Re-ranking helps in 0 of 3 pipelines on toy, over 40 questions:" in head
    assert re.search(r"5 bad hurts nDCG@10 goes from 0\.\d{3} to 0\.\d{3} \(-0\.\d{3}, 95 % interval", head)


def test_where_nothing_was_re_ranked_there_is_nothing_about_it(tmp_path: Path) -> None:
    page = page_of(reports.first_stages(), tmp_path)
    assert set(page.words) == {"", "header", "table", "quality", "about"}


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_the_depth_curve_is_what_an_evaluation_of_that_depth_says(depth: int) -> None:
    """The naive curve cuts the re-ranked list: it would find what lies deeper in the first stage."""
    lists = {"one": "fcead", "two": "efdab"}
    deep, shallow = search(lists, "abcdef", 5), search(lists, "abcdef", depth)
    found = {at: rest for at, *rest in depths(deep, deep["search"], deep["first stage of search"])}
    quality, low, high, ceiling = found[depth]
    assert quality == pytest.approx(shallow["search"].means["nDCG@10"], abs=1e-12)
    assert ceiling == pytest.approx(shallow["first stage of search"].ceiling["nDCG@10"], abs=1e-12)
    assert low <= quality <= high


def test_a_depth_curve_of_a_measure_without_cutoff_looks_at_all() -> None:
    pipeline = RetrieveRerank(Shelf({"one": "fcead", "two": "efdab"}), TableScorer(logits("abcdef")), fetch_k=5)
    found = evaluate({"search": pipeline}, dataset(), ["AP"], resamples=100)
    _, quality, *_ = depths(found, found["search"], found["first stage of search"])[-1]
    assert quality == pytest.approx(found["search"].means["AP"], abs=1e-12)


def test_examples_are_the_largest_changes_in_order() -> None:
    evaluation = reports.ordinary()
    for system in evaluation.systems[3:]:
        gained, lost = examples(system, evaluation[str(system.baseline)], "nDCG@10")
        changes = sorted(
            system.per_query["nDCG@10"][query] - evaluation[str(system.baseline)].per_query["nDCG@10"][query]
            for query in evaluation.judgements
        )
        assert [one.change for one in lost] == [change for change in changes[:5] if change < 0]
        assert [one.change for one in gained] == [change for change in changes[:-6:-1] if change > 0]


def test_both_rankings_show_relevance_moves_scores_and_what_was_missed(tmp_path: Path) -> None:
    """Question two: relevant is b, found third. Question one: a (2) is found, d (1) is not."""
    said = page_of(search({"one": "cea", "two": "efb"}, "abcdef", 3), tmp_path).said("questions")
    assert "Of 2 questions, 2 gained, 0 lost, 0 stayed as before." in said
    two, one = said.split("one nDCG@10 0.380 → 0.760 +0.380")
    assert "two nDCG@10 0.500 → 1.000 +0.500 Relevant, rank before → after: b (3 → 1). First stage" in two
    assert "Relevant, rank before → after: a (3 → 1). Relevant but not found by the first stage: d ." in one
    before, after = one.split("First stage ")[1].split("Re-ranked ")
    assert before.startswith("1 c not relevant → 2 0.500 text c 2 e unjudged → 3 0.500 text e 3 a relevant (2) → 1")
    assert after.startswith("1 a ▲ 2 was 3 relevant (2) 0.500 logit 0.00 text a 2 c ▼ 1 was 1 not relevant 0.119 logit")
    assert "Lost most" not in said


def test_a_question_without_relevant_candidates_says_so(tmp_path: Path) -> None:
    """A loss without a relevant candidate cannot be; unjudged passages alone cannot move a measure."""
    evaluation = search({"one": "efc", "two": "bef"}, "fedcba", 3)
    said = page_of(evaluation, tmp_path).said("questions")
    assert "Of 2 questions, 0 gained, 1 lost, 1 stayed as before." in said
    assert "b (1 → 3)." in said


def test_truncation_is_split_by_relevance_and_by_question(tmp_path: Path, tiny_cross_encoder: Path) -> None:
    """The tiny cross-encoder reads 64 tokens; the relevant passage of one question and no other text is longer."""
    texts = {"a": "long " * 200, "b": "short", "c": "other"}
    data = Dataset("cut", texts, {"q1": "one", "q2": "two"}, {"q1": {"a": 1}, "q2": {"b": 1}})
    shelf = Shelf({"one": "abc", "two": "bc"}, texts)
    with CrossEncoder(tiny_cross_encoder, device="cpu") as model:
        evaluation = evaluate({"search": RetrieveRerank(shelf, model, fetch_k=3)}, data, resamples=100)
    assert evaluation["search"].truncated == 1
    (rank,) = evaluation["search"].cut["q1"]
    assert evaluation["search"].run["q1"][rank - 1] == "a"
    said = page_of(evaluation, tmp_path).said("unread")
    assert "relevant 50.0% of 2 others 0.0% of 3" in said
    untouched = page_of(reports.ordinary(), tmp_path).said("unread")
    assert untouched.endswith("Nothing: every candidate was read to its end.")


def test_first_stage_scores_that_are_no_numbers_are_no_obstacle(tmp_path: Path) -> None:
    class Odd(Shelf):
        def retrieve(self, query: str, k: int) -> list[Hit]:
            return [replace(hit, score=float("nan")) for hit in super().retrieve(query, k)]

    pipeline = RetrieveRerank(Odd({"one": "cad", "two": "efb"}), TableScorer(logits("abcdef")), fetch_k=3)
    evaluation = evaluate({"search": pipeline}, dataset(), resamples=100)
    assert evaluation["first stage of search"].scores["q1"] == (None, None, None)
    evaluation.to_json(tmp_path / "evaluation.json")
    assert "NaN" not in (tmp_path / "evaluation.json").read_text(encoding="utf-8")
    assert "– text c" in page_of(evaluation, tmp_path).said("questions")


def test_a_large_evaluation_is_a_small_file(tmp_path: Path) -> None:
    evaluation = reports.ordinary(questions=90, depth=60)
    evaluation.to_html(tmp_path / "small.html")
    reports.ordinary(questions=30, depth=60).to_html(tmp_path / "smaller.html")
    large, small = ((tmp_path / name).stat().st_size for name in ("small.html", "smaller.html"))
    assert large < 1.2 * small  # it depends on what is shown, not on the number of questions
    assert large < 1_000_000


@pytest.mark.parametrize(
    ("axis", "most", "ticks"),
    [
        (Axis(0.0, 1.0), 5, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (Axis(-0.22, 0.02), 4, [-0.2, -0.1, 0.0]),
        (Axis(1.0, 100.0, log=True), 7, [1, 2, 5, 10, 20, 50, 100]),
        (Axis(1e-5, 10.0, log=True), 5, [1e-5, 1e-3, 1e-1, 10.0]),
        (Axis(0.3, 0.6, log=True), 5, [0.5]),
        (Axis(7e-5, 4.3e-3, log=True), 5, [1e-4, 3e-4, 1e-3, 3e-3]),  # 200 µs would lie on 100 µs
    ],
)
def test_ticks_are_round_and_few(axis: Axis, most: int, ticks: list[float]) -> None:
    assert axis.ticks(most) == pytest.approx(ticks)


def test_a_scale_shows_one_value_and_zero_seconds() -> None:
    one = axis_around([0.5, 0.5])
    assert one.low < 0.5 < one.high
    assert one.at(0.5) == 50.0
    log = axis_around([0.0, 1.0], log=True)
    assert 0 < log.at(1e-7) < log.at(1.0) < 100


def test_a_tuning_has_a_report_of_its_own_with_the_setting_to_paste(tmp_path: Path) -> None:
    tuning = reports.tuned(latency_budget=10.0)
    tuning.to_html(tmp_path / "tuning.html")
    text = (tmp_path / "tuning.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert tuning.answer in page.said("header").replace("\u00a0", " ")
    assert page.tags.count("code") == 1
    assert html.unescape(re.findall("<code>(.*?)</code>", text, re.DOTALL)[0]) == tuning.code()
    assert "dashed: 10.00 s asked for" in page.said("frontier")
    settings = page.said("settings")
    assert settings.count(" chosen ") == 1
    assert settings.count(" deep ") == 16  # two first stages, two cross-encoders, four depths
    assert f", and {len(tuning.settings) - len(words.listed(tuning))} more with other weights" in settings
    assert settings.count(" yes") == len(tuning.frontier)
    assert page.tags.count("figure") == 2 * 4  # by depth, and by weight
    assert "words → large : highest at" in page.said("depths")


def test_one_report_shows_both_and_no_label_means_two_things(tmp_path: Path) -> None:
    reports.ordinary().to_html(tmp_path / "both.html", reports.tuned())
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert list(page.words)[2:7] == ["answer", "frontier", "depths", "weights", "settings"]
    assert len(set(page.words)) == len(re.findall("<section|<header", text)) + 1  # no section twice
    assert set(re.findall(r'class="chip[^"]*">(\w+)<', text.split('id="table"')[0].split('id="answer"')[1])) == set(
        "ABCDEF"
    )
    assert set(re.findall(r'class="chip[^"]*">(\w+)<', text.split('id="table"')[1])) == set("123456")


def test_a_tuning_that_chose_not_to_re_rank_of_one_depth(tmp_path: Path) -> None:
    """No curve, no line: what is there is shown."""
    shelf, scorer = Shelf({"one": "adc", "two": "bcd"}), TableScorer(logits("fedcba"))
    tuning = tune({"shelf": shelf}, {"model": scorer}, dataset(), depths=[3], resamples=100)
    assert tuning.chosen.cross_encoder is None
    tuning.to_html(tmp_path / "tuning.html")
    page = Page((tmp_path / "tuning.html").read_text(encoding="utf-8"))
    assert "depths" not in page.words
    assert "shelf, not re-ranked chosen" in page.said("settings")
