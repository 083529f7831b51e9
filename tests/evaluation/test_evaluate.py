"""Pipelines measured: values by hand, equality with ir-measures, no work twice, and honest about harm."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ir_measures
import pytest

from retrieve_rerank import BiEncoder, ChromaIndex, CrossEncoder, Hit, InvalidInputError, Passage, RetrieveRerank
from retrieve_rerank.evaluation import Dataset, evaluate
from retrieve_rerank.evaluation.measuring import latency as latency_of
from tests.core.stubs import LetterEncoder, TableScorer
from tests.evaluation.stubs import TEXTS, Shelf, dataset, logits, many

LISTS = {"one": "cad", "two": "efb", "three": "a"}
MEASURES = ("nDCG@10", "RR@10", "R@2")


def pipeline(order: str = "abcdef", shelf: Shelf | None = None, **options: Any) -> RetrieveRerank:
    return RetrieveRerank(shelf or Shelf(LISTS), TableScorer(logits(order)), **options)


def test_measures_by_hand() -> None:
    evaluation = evaluate({"re-ranked": pipeline()}, dataset(), MEASURES)
    assert [system.name for system in evaluation.systems] == ["first stage of re-ranked", "re-ranked"]
    before, after = evaluation.systems
    ideal = 2 + 1 / math.log2(3)  # a (2) first, d (1) second
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    assert before.run == {"q1": ("c", "a", "d"), "q2": ("e", "f", "b")}
    assert before.per_query["nDCG@10"] == pytest.approx({"q1": (2 * second + third) / ideal, "q2": third})
    assert before.per_query["RR@10"] == pytest.approx({"q1": 1 / 2, "q2": 1 / 3})
    assert before.per_query["R@2"] == pytest.approx({"q1": 1 / 2, "q2": 0.0})
    assert after.run == {"q1": ("a", "c", "d"), "q2": ("b", "e", "f")}
    assert after.per_query["nDCG@10"] == pytest.approx({"q1": (2 + third) / ideal, "q2": 1.0})
    assert after.per_query["RR@10"] == {"q1": 1.0, "q2": 1.0}
    assert after.per_query["R@2"] == pytest.approx({"q1": 1 / 2, "q2": 1.0})
    assert after.means["RR@10"] == 1.0
    assert before.means["RR@10"] == pytest.approx(5 / 12)


def test_comparisons_by_hand() -> None:
    evaluation = evaluate({"re-ranked": pipeline()}, dataset(), MEASURES)
    assert [(one.system, one.baseline, one.measure) for one in evaluation.comparisons] == [
        ("re-ranked", "first stage of re-ranked", measure) for measure in MEASURES
    ]
    reciprocal = evaluation.comparison("re-ranked", "RR@10")
    assert reciprocal.difference == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert (reciprocal.low, reciprocal.high) == pytest.approx((1 / 2, 2 / 3))
    assert (reciprocal.wins, reciprocal.ties, reciprocal.losses) == (2, 0, 0)
    assert (reciprocal.p, reciprocal.p_holm) == (0.5, 0.5)  # of two questions, nothing can be said
    assert reciprocal.verdict == "no clear difference"
    assert (evaluation.comparison("re-ranked", "R@2").ties, evaluation.comparison("re-ranked").measure) == (
        1,
        "nDCG@10",
    )


def test_equal_scores_do_not_reorder() -> None:
    """The shelf's scores are all equal; trec_eval itself would sort equal scores by id, backwards."""
    evaluation = evaluate({"first": Shelf({"one": "adcbef", "two": "badcef"})}, dataset())
    assert evaluation["first"].means["nDCG@10"] == pytest.approx(1.0)
    flat = RetrieveRerank(Shelf({"one": "adcb", "two": "ba"}), TableScorer(dict.fromkeys(TEXTS.values(), 0.0)))
    assert evaluate({"flat": flat}, dataset())["flat"].means["nDCG@10"] == pytest.approx(1.0)


def test_the_ranking_is_the_pipelines_own(tiny_bi_encoder: Path, tiny_cross_encoder: Path) -> None:
    texts = {str(number): f"bread {'word ' * number}paris {number}" for number in range(12)}
    questions = {"q1": "what is the capital", "q2": "bread"}
    data = Dataset("tiny", texts, questions, {"q1": {"3": 1}, "q2": {"5": 1}})
    with (
        BiEncoder(tiny_bi_encoder) as encoder,
        CrossEncoder(tiny_cross_encoder) as model,
        ChromaIndex(encoder) as index,
    ):
        index.add(data.passages)
        search = RetrieveRerank(index, model, fetch_k=8, top_n=8)
        system = evaluate({"search": search}, data)["search"]
        for query, question in questions.items():
            assert system.run[query] == tuple(hit.passage.id for hit in search.search(question))
        assert "float" in system.description


def test_a_shared_first_stage_is_asked_once_and_a_depth_of_its_own_once_more() -> None:
    shelf = Shelf(LISTS)
    evaluation = evaluate(
        {
            "a": pipeline("abcdef", shelf, fetch_k=3),
            "b": pipeline("fedcba", shelf, fetch_k=3),
            "deep": pipeline("abcdef", shelf, fetch_k=6),
        },
        dataset(),
    )
    assert sorted(shelf.asked) == [("one", 3), ("one", 6), ("two", 3), ("two", 6)]
    assert [(system.name, system.baseline) for system in evaluation.systems] == [
        ("first stage of a, b", None),
        ("first stage of deep", None),
        ("a", "first stage of a, b"),
        ("b", "first stage of a, b"),
        ("deep", "first stage of deep"),
    ]


def test_a_first_stage_that_has_a_name_keeps_it_and_only_judged_questions_are_searched() -> None:
    shelf = Shelf(LISTS)
    evaluation = evaluate({"re-ranked": pipeline(shelf=shelf, fetch_k=4), "shelf": shelf}, dataset(), fetch_k=4)
    assert [(system.name, system.baseline) for system in evaluation.systems] == [
        ("shelf", None),
        ("re-ranked", "shelf"),
    ]
    assert shelf.asked == [("one", 4), ("two", 4)]


def test_a_cross_encoder_reads_each_pair_once() -> None:
    scorer, shelf = TableScorer(logits("abcdef")), Shelf(LISTS)
    evaluation = evaluate(
        {
            "shallow": RetrieveRerank(shelf, scorer, fetch_k=2),
            "deep": RetrieveRerank(shelf, scorer, fetch_k=3),
            "other": RetrieveRerank(Shelf({"one": "dac", "two": "ab"}), scorer, fetch_k=3),
            "other model": pipeline(shelf=shelf, fetch_k=2),
        },
        dataset(),
    )
    read = [(query, text) for query, texts in scorer.asked for text in texts]
    assert len(read) == len(set(read)) == 7  # c a d and e f b, and of the other shelf a for two
    assert [evaluation[name].pairs for name in ("shallow", "deep", "other", "other model")] == [4, 6, 5, 4]
    estimated = [evaluation[name].rerank.estimated for name in ("shallow", "deep", "other", "other model")]
    assert estimated == [False, True, True, False]
    assert evaluation["other"].run == {"q1": ("a", "c", "d"), "q2": ("a", "b")}


def test_equal_questions_and_equal_texts_are_no_new_work() -> None:
    scorer = TableScorer({"same": 1.0})
    shelf = Shelf({"one": "abc"}, dict.fromkeys("abc", "same"))
    data = Dataset("twins", dict.fromkeys("abc", "same"), {"q1": "one", "q2": "one"}, {"q1": {"b": 1}, "q2": {"c": 1}})
    evaluation = evaluate({"search": RetrieveRerank(shelf, scorer)}, data)
    assert shelf.asked == [("one", 100)]
    assert scorer.asked == [("one", ["same"])]
    assert evaluation["search"].run == dict.fromkeys(("q1", "q2"), ("a", "b", "c"))
    assert evaluation["search"].per_query["RR@10"] == pytest.approx({"q1": 1 / 2, "q2": 1 / 3})


def test_a_passage_found_twice_counts_at_its_first_place() -> None:
    evaluation = evaluate({"stutters": Shelf({"one": "caacd", "two": "bb"})}, dataset())
    assert evaluation["stutters"].run == {"q1": ("c", "a", "d"), "q2": ("b",)}


def test_a_first_stage_that_returns_too_many_is_cut_as_a_search_cuts_it() -> None:
    class Generous(Shelf):
        def retrieve(self, query: str, k: int) -> list[Hit]:
            return super().retrieve(query, 100)

    texts = {"a": "aa", "b": "bb", "c": "cc"}
    data = Dataset("many", texts, {"q1": "one"}, {"q1": {"c": 1}})
    search = RetrieveRerank(Generous({"one": "abc"}, texts), TableScorer({"aa": 1.0, "bb": 2.0, "cc": 3.0}), fetch_k=2)
    assert evaluate({"search": search}, data, ("RR@10",), fetch_k=2)["search"].means["RR@10"] == 0.0


def test_cuts_of_the_pipeline_do_not_cut_what_is_measured() -> None:
    whole = evaluate({"search": pipeline()}, dataset())
    cut = evaluate({"search": pipeline(top_n=1, score_threshold=0.9)}, dataset())
    assert cut["search"].run == whole["search"].run
    assert "'search' was measured without its score_threshold." in cut.notes
    assert not any("without its" in note for note in whole.notes)


def test_what_the_first_stage_missed_stays_missed_and_a_perfect_cross_encoder_reaches_the_ceiling() -> None:
    """q2's only answer is not among two candidates: no number may put it back."""
    evaluation = evaluate({"search": pipeline(fetch_k=2)}, dataset())
    first, search = evaluation.systems
    assert search.per_query["nDCG@10"]["q2"] == 0.0
    assert search.run["q2"] == ("e", "f")
    assert first.ceiling["R@2"] == pytest.approx((1 / 2 + 0) / 2)
    assert first.ceiling["RR@10"] == pytest.approx((1 + 0) / 2)
    assert first.ceiling["nDCG@10"] == pytest.approx(2 / (2 + 1 / math.log2(3)) / 2)
    assert search.ceiling == {}
    evaluation = evaluate({"perfect": pipeline("badcef", fetch_k=3)}, dataset())
    first, perfect = evaluation.systems
    assert perfect.means == pytest.approx({name: first.ceiling[name] for name in evaluation.measures})


def test_a_question_without_candidates_counts_as_nothing_found() -> None:
    scorer = TableScorer(logits("abcdef"))
    lists = {"one": "", "two": "b"}
    evaluation = evaluate({"search": RetrieveRerank(Shelf(lists), scorer)}, dataset(), ("nDCG@10", "AP", "Judged@10"))
    assert evaluation["search"].per_query["nDCG@10"] == {"q1": 0.0, "q2": 1.0}
    assert evaluation["search"].means["AP"] == 0.5
    assert scorer.asked == [("two", [TEXTS["b"]])]


def test_nothing_found_at_all() -> None:
    evaluation = evaluate({"search": pipeline(shelf=Shelf({"one": "", "two": ""}))}, dataset())
    assert evaluation["search"].means == dict.fromkeys(evaluation.measures, 0.0)
    assert evaluation["search"].truncated_share is None
    assert evaluation.comparison("search").verdict == "no clear difference"


def test_unjudged_passages_are_counted_in_the_top_ten() -> None:
    texts = {str(number): f"text {number}" for number in range(30)}
    data = Dataset("toy", texts, {"q1": "one", "q2": "two"}, {"q1": {"0": 1, "1": 0, "20": 1}, "q2": {"5": 1}})
    lists = {"one": [str(number) for number in range(30)], "two": ["5", "6"]}
    back = TableScorer({text: float(number) for number, text in enumerate(texts.values())})
    evaluation = evaluate({"search": RetrieveRerank(Shelf(lists, texts), back, fetch_k=30)}, data)
    first, search = evaluation.systems
    assert first.unjudged == {"q1": 8, "q2": 1}
    assert search.unjudged == {"q1": 9, "q2": 1}  # 29 to 20, of which 20 is judged
    assert (first.mean_unjudged, search.mean_unjudged) == (4.5, 5.0)


def test_more_unjudged_passages_than_before_are_said() -> None:
    evaluation = evaluate({"search": pipeline("efbcad", Shelf({"one": "adcbef", "two": "bef"}), fetch_k=6)}, dataset())
    assert not any("unjudged passages up" in note for note in evaluation.notes)
    texts = {str(number): f"text {number}" for number in range(20)}
    data = Dataset("toy", texts, {"q": "one"}, {"q": dict.fromkeys(map(str, range(10)), 1)})
    back = TableScorer({text: float(number) for number, text in enumerate(texts.values())})
    evaluation = evaluate({"search": RetrieveRerank(Shelf({"one": list(texts)}, texts), back)}, data)
    assert any(
        "'search' brings unjudged passages up: 10.0 of the top 10, against 0.0" in note for note in evaluation.notes
    )


def test_help_harm_and_no_difference_are_told_apart() -> None:
    data, shelf = many([1] * 20 + [0] * 20)
    helps = evaluate({"search": pipeline("ab", shelf)}, data)
    assert helps.comparison("search").verdict == "helps"
    assert helps.answer.startswith(
        "Re-ranking helps on many: nDCG@10 goes from 0.815 to 1.000 (+0.185, 95 % interval +0."
    )
    hurts = evaluate({"search": pipeline("ba", shelf)}, data)
    assert hurts.comparison("search").verdict == "hurts"
    assert (hurts.comparison("search").wins, hurts.comparison("search").losses) == (0, 20)
    assert hurts.answer.startswith(
        "Re-ranking hurts on many: nDCG@10 goes from 0.815 to 0.631 (-0.185, 95 % interval -0."
    )
    same = evaluate({"search": pipeline("ab", many([0] * 40)[1])}, many([0] * 40)[0])
    assert same.comparison("search").ties == 40
    assert same.answer.startswith(
        "Re-ranking makes no clear difference on many: nDCG@10 goes from 1.000 to 1.000 (+0.000"
    )


def test_several_pipelines_are_corrected_for_their_number() -> None:
    data, shelf = many([1] * 6 + [0] * 30)
    one = evaluate({"search": pipeline("ab", shelf)}, data)
    assert one.comparison("search").p < 0.05
    assert one.comparison("search").verdict == "helps"
    two = evaluate({"search": pipeline("ab", shelf), "another": pipeline("ab", shelf)}, data)
    assert two.comparison("search").p == one.comparison("search").p
    assert two.comparison("search").p_holm == pytest.approx(2 * two.comparison("search").p)
    assert two.comparison("search").verdict == "no clear difference"
    assert two.answer.startswith(
        "Re-ranking helps in 0 of 2 pipelines on many, over 36 questions: 'search' makes no clear"
    )


def test_the_same_again_gives_the_same_numbers() -> None:
    data, shelf = many([1, 0, 1] * 10)
    first, again, other = (
        evaluate({"search": pipeline("ab", shelf)}, data, seed=seed, resamples=99) for seed in (1, 1, 2)
    )
    assert first.comparisons == again.comparisons
    assert first.comparisons != other.comparisons
    assert first["search"].means == other["search"].means


def test_truncated_pairs_are_counted_and_do_not_warn(tiny_cross_encoder: Path) -> None:
    texts = {"a": "bread " * 100, "b": "rome", "c": "paris"}
    data = Dataset("long", texts, {"q1": "one", "q2": "two"}, {"q1": {"a": 1}, "q2": {"b": 1}})
    with CrossEncoder(tiny_cross_encoder) as model:
        search = RetrieveRerank(Shelf({"one": "abc", "two": "b"}, texts), model)
        system = evaluate({"search": search}, data)["search"]
    assert (system.pairs, system.truncated, system.truncated_share) == (4, 1, 0.25)


def test_latency_is_that_of_each_stage_without_the_first_question() -> None:
    class Slow(Shelf):
        def retrieve(self, query: str, k: int) -> list[Hit]:
            time.sleep(0.02 if self.asked else 0.5)  # the first call loads
            return super().retrieve(query, k)

    class SlowScorer(TableScorer):
        def score(self, query: str, texts: Sequence[str]) -> Any:
            time.sleep(0.05 if self.asked else 0.6)
            return super().score(query, texts)

    data, shelf = many([1] * 5)
    slow = SlowScorer(logits("ab"))
    first, search = evaluate({"search": RetrieveRerank(Slow(shelf.lists), slow)}, data).systems
    assert 0.02 <= first.retrieve.p50 <= first.retrieve.p95 < 0.4
    assert search.retrieve == first.retrieve
    assert first.rerank is None
    assert 0.05 <= search.rerank.p50 <= search.rerank.p95 < 0.5


def test_percentiles_by_hand() -> None:
    times = [99.0, *(float(number) for number in range(21))]  # the first is left out
    latency = latency_of(times, estimated=True)
    assert (latency.p50, latency.p95, latency.estimated) == (10.0, 19.0, True)
    assert latency_of([2.5]).p95 == 2.5


def test_a_deeper_pipeline_is_not_given_for_free_what_a_shallower_one_paid() -> None:
    class SlowScorer(TableScorer):
        def score(self, query: str, texts: Sequence[str]) -> Any:
            time.sleep(0.02 * len(texts))
            return super().score(query, texts)

    data, _ = many([1] * 4)
    shelf, scorer = Shelf(dict.fromkeys(data.queries.values(), "abcdef")), SlowScorer(logits("abcdef"))
    start = time.perf_counter()
    evaluation = evaluate(
        {"deep": RetrieveRerank(shelf, scorer, fetch_k=6), "shallow": RetrieveRerank(shelf, scorer, fetch_k=2)}, data
    )
    assert 0.12 <= evaluation["deep"].rerank.p50 <= (time.perf_counter() - start) / 2  # of four questions
    assert evaluation["shallow"].rerank.p50 == pytest.approx(evaluation["deep"].rerank.p50 / 3, rel=0.2)
    assert (evaluation["deep"].rerank.estimated, evaluation["shallow"].rerank.estimated) == (False, True)


def test_errors_of_the_parts_come_out() -> None:
    with pytest.raises(KeyError, match="text c"):
        evaluate({"search": RetrieveRerank(Shelf(LISTS), TableScorer({}))}, dataset())


def test_an_index_of_something_else_is_refused_before_re_ranking() -> None:
    scorer = TableScorer({"text x": 1.0})
    stranger = Shelf({"one": "x", "two": "x"}, {"x": "text x"})
    with pytest.raises(InvalidInputError, match=r"found 1 passages \('x', …\) and none of them is in dataset 'toy'"):
        evaluate({"search": RetrieveRerank(stranger, scorer)}, dataset())
    assert scorer.asked == []


def test_what_the_numbers_do_not_say_is_in_the_notes() -> None:
    with ChromaIndex(LetterEncoder()) as index:
        index.add([*dataset().passages[:2], Passage("z", "of another kind")])
        given = dataset()
        lost = Dataset("toy", given.passages, given.queries, {**given.judgements, "q2": {"b": 1, "gone": 1}})
        evaluation = evaluate({"index": index}, lost, ("nDCG@10", "R@100"), fetch_k=50)
    assert evaluation["index"].per_query["R@100"]["q2"] == 0.5
    assert evaluation.notes == (
        "1 judgement is of passages that are not there and cannot be found",
        "Only 2 questions: no difference, however large, can show.",
        "'index' fetched 50, so R@100 looks at no more than that.",
        "33% of what 'index' found is not among the dataset's passages.",
        "'index' searches 3 passages, and the dataset has 6: it cannot find the others.",
    )


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"pipelines": {}}, "pipelines must be a dict"),
        ({"pipelines": [pipeline()]}, "pipelines must be a dict"),
        ({"pipelines": {" ": pipeline()}}, "the name of a pipeline"),
        ({"pipelines": {"x": object()}}, r"pipeline 'x' must be a RetrieveRerank or have retrieve\(query, k\)"),
        ({"pipelines": {"a": pipeline(), "first stage of a": pipeline()}}, "two systems have one name"),
        ({"pipelines": dict.fromkeys("ab", Shelf(LISTS))}, "'b' is the same first stage as 'a'"),
        ({"dataset": "cranfield"}, "dataset must be a Dataset, as load_dataset returns, got str"),
        ({"measures": ()}, "measures must be a list"),
        ({"measures": "nDCG@10"}, "measures must be a list"),
        ({"measures": ["nDGC@10"]}, "'nDGC@10' is not the name of a measure"),
        ({"measures": ["nDCG@0"]}, "cut-off of 'nDCG@0' must be a whole number >= 1"),  # would end the process
        ({"measures": ["nDCG(cutoff='x')"]}, "cut-off"),
        ({"measures": ["P"]}, "cannot compute 'P' here"),
        ({"measures": ["nDCG(foo=1)@10"]}, "cannot compute"),
        ({"measures": ["NumRet"]}, "'NumRet' is a count"),
        ({"fetch_k": 0}, "fetch_k must be >= 1"),
        ({"resamples": 0}, "resamples must be >= 1"),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_is_searched(changed: dict[str, Any], says: str) -> None:
    shelf = Shelf(LISTS)
    arguments: dict[str, Any] = {"pipelines": {"shelf": shelf}, "dataset": dataset()}
    with pytest.raises(InvalidInputError, match=says):
        evaluate(**{**arguments, **changed})
    assert shelf.asked == []


def test_progress_is_on_stderr_and_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate({"search": pipeline()}, dataset())
    assert capsys.readouterr() == ("", "")
    evaluate({"search": pipeline()}, dataset(), show_progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Retrieving" in shown.err
    assert "Re-ranking" in shown.err


def test_grades_below_minus_one_are_minus_one_to_what_computes_the_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a question with lower ones only, it writes beside its memory: here, and where the exported file is used."""
    given: list[dict[str, dict[str, int]]] = []
    compute = ir_measures.iter_calc

    def seen(measures: Any, qrels: Any, run: Any) -> Any:
        given.append(qrels)
        return compute(measures, qrels, run)

    plain = dataset()
    graded = Dataset("graded", plain.passages, plain.queries, {"q1": {"a": 1}, "q2": {"b": -7, "c": -1}})
    monkeypatch.setattr(ir_measures, "iter_calc", seen)
    evaluation = evaluate({"shelf": Shelf(LISTS)}, graded)
    assert [list(scores.values()) for scores in given[-1].values()] == [[1], [-1, -1]]
    assert evaluation["shelf"].per_query["nDCG@10"]["q2"] == 0.0
    evaluation.to_runs(tmp_path)
    assert "q2 0 b -1\n" in (tmp_path / "qrels.txt").read_text()
    assert graded.judgements["q2"] == {"b": -7, "c": -1}


@pytest.mark.parametrize(("pipelines", "says"), [(1, "small differences cannot"), (2, "no difference, however large,")])
def test_the_note_on_few_questions_counts_the_comparisons(pipelines: int, says: str) -> None:
    """Six questions can give 0.031 at least; corrected for two comparisons, 0.0625."""
    passages = dataset().passages
    six = {f"q{number}": f"question {number}" for number in range(6)}
    few = Dataset("six", passages, six, {query: {"a": 1} for query in six})
    shelf = Shelf(dict.fromkeys(six.values(), "cab"))
    searches = {f"s{number}": RetrieveRerank(shelf, TableScorer(logits("abc"))) for number in range(pipelines)}
    assert any(f"Only 6 questions: {says}" in note for note in evaluate(searches, few).notes)
