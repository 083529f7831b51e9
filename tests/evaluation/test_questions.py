"""Questions: those made of the corpus, and what becomes of single ones while an evaluation runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank import CrossEncoder, InvalidInputError, Passage, RetrieveRerank
from retrieve_rerank.evaluation import Dataset, evaluate, sample_questions, tune
from tests.core.stubs import TableScorer
from tests.evaluation.stubs import TEXTS, Shelf, dataset, logits

REST = "Most loaves are leavened with yeast, which needs an hour at least."


def one(text: str, **metadata: object) -> tuple[str, str]:
    """Return the question of a single passage and what is left of its text."""
    dataset = sample_questions([Passage("p", text, metadata)])
    return dataset.queries["p"], dataset.passages[0].text


@pytest.mark.parametrize(
    ("text", "question", "rest"),
    [
        (f"How is bread made? {REST}", "How is bread made?", REST),
        (f"# How bread is made\n\n{REST}", "How bread is made", REST),
        (f"How bread is made\r\n{REST}", "How bread is made", REST),
        (f'He said "bread is made of flour." {REST}', 'He said "bread is made of flour."', REST),
        (f"Dr. Smith bakes. {REST}", "Dr. Smith bakes.", REST),  # too short to end at "Dr."
        (f"Version 2.5 rises better. {REST}", "Version 2.5 rises better.", REST),
        (
            "パンは小麦粉と水から作られます。" + "酵母で膨らみます。" * 5,
            "パンは小麦粉と水から作られます。",
            "酵母で膨らみます。" * 5,
        ),
    ],
)
def test_the_first_sentence_or_heading_is_the_question_and_is_cut_out(text: str, question: str, rest: str) -> None:
    assert one(text) == (question, rest)


@pytest.mark.parametrize("text", [f"Bread making {REST}", f"bread MAKING. Bread making — {REST}", REST])
def test_a_title_is_the_question_and_is_cut_off_the_front(text: str) -> None:
    assert one(text, title="Bread making") == ("Bread making", REST)


def test_a_title_that_several_share_asks_for_none_of_them_and_stays() -> None:
    texts = [f"Baking First sentence of {number}. {REST}" for number in ("one", "two")]
    dataset = sample_questions([Passage(str(n), text, {"title": "Baking"}) for n, text in enumerate(texts)])
    assert dataset.queries == {"0": "First sentence of one.", "1": "First sentence of two."}
    assert [passage.text for passage in dataset.passages] == [f"Baking {REST}"] * 2


def test_every_passage_is_cut_alike_and_ids_and_metadata_stay() -> None:
    passages = [
        Passage(f"p{number}", f"Question number {number}. {REST} {number}", {"n": number}) for number in range(30)
    ]
    dataset = sample_questions(iter(passages), n=4)
    assert [passage.text for passage in dataset.passages] == [f"{REST} {number}" for number in range(30)]
    assert [(passage.id, passage.metadata) for passage in dataset.passages] == [(p.id, p.metadata) for p in passages]
    assert len(dataset.queries) == 4
    assert dataset.judgements == {query: {query: 1} for query in dataset.queries}


def test_the_choice_is_seeded_and_does_not_depend_on_the_order() -> None:
    passages = [Passage(f"p{number}", f"Question number {number}. {REST}") for number in range(30)]
    chosen = sample_questions(passages, n=5).queries
    assert chosen == sample_questions(passages[::-1], n=5).queries
    assert chosen != sample_questions(passages, n=5, seed=1).queries
    assert len(sample_questions(passages, n=99).queries) == 30


def test_questions_that_fit_several_passages_are_not_asked() -> None:
    texts = [f"Introduction to it. {REST}", f"introduction TO it. Another {REST}", f"Bread is baked. {REST}"]
    dataset = sample_questions([Passage(str(number), text) for number, text in enumerate(texts)])
    assert dataset.queries == {"2": "Bread is baked."}
    assert dataset.passages[0].text == REST


@pytest.mark.parametrize(
    "text", ["", "Short.", f"Hm. {REST}"[:20], "Only one sentence, however long it may be made to be.", "x" * 400]
)
def test_passages_that_cannot_be_cut_stay_whole(text: str) -> None:
    dataset = sample_questions([Passage("short", text), Passage("long", f"How is bread made? {REST}")])
    assert dataset.passages[0].text == text
    assert set(dataset.queries) == {"long"}


@pytest.mark.parametrize("index", ["cut", "whole", "another holds them"])
def test_they_are_weak_and_an_index_that_still_holds_the_questions_is_told(index: str) -> None:
    passages = [Passage(str(n), f"Question number {n}. {REST} {n}") for n in range(3)]
    dataset = sample_questions(passages)
    texts = {passage.id: passage.text for passage in (passages if index == "whole" else dataset.passages)}
    if index == "another holds them":
        texts["x"] = " ".join(dataset.queries.values())
    lists = dict.fromkeys(dataset.queries.values(), [*texts][::-1])
    evaluation = evaluate({"shelf": Shelf(lists, texts)}, dataset)
    assert "(weak questions, made from the passages themselves)" in evaluation.answer
    assert f"The questions are weak: {dataset.weak}" in evaluation.to_markdown()
    told = "'shelf' searches passages that hold the question word for word (3 questions)"
    assert any(told in note for note in evaluation.notes) is (index == "whole")


@pytest.mark.parametrize(
    ("passages", "options", "says"),
    [
        ([], {}, "none of 0 passages"),
        ([Passage("a", "short")], {}, "none of 1 passages has a title or a first sentence"),
        (["text"], {}, r"passages\[0\] must be a Passage, got str"),
        ([Passage("a", f"How is bread made? {REST}")], {"n": 0}, "n must be >= 1"),
        ([Passage("a", f"How is bread made? {REST}")], {"name": ""}, "the name of a dataset"),
    ],
)
def test_what_cannot_be_used_is_named(passages: list[Any], options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        sample_questions(passages, **options)


def test_a_title_behind_markdowns_marks_is_cut_out_and_a_short_one_gives_way_to_the_first_sentence() -> None:
    rest = "Heat the nozzle to two hundred degrees before you pull the filament out of it by hand."
    passages = [
        Passage("care", f"# Care of the printer\n\n{rest}", {"title": "Care of the printer"}),
        Passage("short", f"## Errors\n\nThe display shows a code for each of them. {rest}", {"title": "Errors"}),
    ]
    dataset = sample_questions(passages)
    assert dataset.queries == {
        "care": "Care of the printer",
        "short": "The display shows a code for each of them.",
    }
    texts = {passage.id: passage.text for passage in dataset.passages}
    assert all(question not in texts[passage] for passage, question in dataset.queries.items())


def test_a_title_is_cut_out_of_no_longer_word() -> None:
    longer = f"Configurations are stored in files. {REST}"
    assert one(longer, title="Configuration") == ("Configuration", longer)
    joined = "小麦粉と水から作られます。" + "酵母で膨らみます。" * 5  # no space between title and text
    assert one(f"日本のパンの作り方を説明{joined}", title="日本のパンの作り方を説明") == (
        "日本のパンの作り方を説明",
        joined,
    )


def test_what_a_passage_says_again_is_not_asked() -> None:
    again = f"npm-prune-all does more. {REST} See NPM-prune-all, too."
    question, rest = one(again, title="npm-prune-all")
    assert question == "does more."
    assert rest == f"npm-prune-all {REST} See NPM-prune-all, too."
    twice = f"How is bread made? {REST} How is bread made?"
    with pytest.raises(InvalidInputError, match="and it does not say again"):
        sample_questions([Passage("p", twice)])


def test_a_question_that_is_too_long_is_named(tiny_cross_encoder: Path) -> None:
    texts = {"q1": "paris", "q2": "what is the bread " * 30}
    shelf = Shelf(dict.fromkeys(texts.values(), "abc"))
    long = Dataset("long", TEXTS, texts, {"q1": {"a": 1}, "q2": {"b": 1}})
    with (
        CrossEncoder(tiny_cross_encoder) as model,
        pytest.raises(InvalidInputError, match=r"^question 'q2': the query has \d+ tokens .* shorten the query$"),
    ):
        evaluate({"search": RetrieveRerank(shelf, model)}, long)


def test_a_question_that_is_a_passage_does_not_find_itself() -> None:
    """As in ArguAna: passage a is question a. b is judged for itself, c asks what a asks, d is called so by chance."""
    queries = {"a": "one", "b": "two", "c": "one", "d": "six"}
    texts = {**TEXTS, "a": "A title. one", "b": "two"}
    data = Dataset("arguments", texts, queries, {"a": {"b": 1}, "b": {"b": 1}, "c": {"d": 1}, "d": {"a": 1}})
    shelf = Shelf({"one": "acbd", "two": "bad", "six": "da"})
    search = RetrieveRerank(shelf, TableScorer(logits("abcdef")), fetch_k=2)
    evaluation = evaluate({"search": search}, data, ["RR@10"])
    first, reranked = evaluation.systems
    # As deep as was asked for.
    assert first.run == {"a": ("c", "b"), "b": ("b", "a"), "c": ("a", "c"), "d": ("d", "a")}
    assert reranked.run == {"a": ("b", "c"), "b": ("a", "b"), "c": ("a", "c"), "d": ("a", "d")}
    assert first.per_query["RR@10"] == {"a": 0.5, "b": 1.0, "c": 0.0, "d": 0.5}
    note = "1 question is a passage and found itself, not judged for it: left out, as in BEIR."
    assert note in evaluation.notes
    tuning = tune({"shelf": shelf}, TableScorer(logits("abcdef")), data, measure="RR@10", depths=[1, 2])
    assert tuning.settings[0].per_query == first.per_query["RR@10"]
    assert note in tuning.notes


async def _later() -> int:
    return 1


@pytest.mark.parametrize("count", [lambda text: 1, _later, lambda: "many", lambda: 1 / 0, 3])
def test_a_count_of_another_kind_ends_no_evaluation(count: object) -> None:
    shelf = Shelf({"one": "cad", "two": "efb"})
    shelf.count = count  # type: ignore[attr-defined]
    evaluation = evaluate({"shelf": shelf}, dataset(), ["RR@10"])
    assert evaluation["shelf"].means["RR@10"] == pytest.approx(5 / 12)
    assert not any("it cannot find the others" in note for note in evaluation.notes)
    shelf.count = lambda: 4  # type: ignore[attr-defined]
    assert any("it cannot find the others" in note for note in evaluate({"shelf": shelf}, dataset()).notes)
