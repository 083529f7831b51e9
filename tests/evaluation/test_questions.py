"""Questions from the corpus: what is asked, what is cut out, and what is said about it."""

from __future__ import annotations

from typing import Any

import pytest

from retrieve_rerank import InvalidInputError, Passage, RetrieveRerank
from retrieve_rerank.evaluation import evaluate, sample_questions
from tests.core.stubs import TableScorer
from tests.evaluation.stubs import Shelf

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


def test_it_is_marked_as_weak_and_the_evaluation_says_what_that_means() -> None:
    dataset = sample_questions([Passage(str(n), f"Question number {n}. {REST} {n}") for n in range(3)])
    assert dataset.weak is not None
    lists = {question: ["2", "1", "0"] for question in dataset.queries.values()}
    texts = {passage.id: passage.text for passage in dataset.passages}
    search = RetrieveRerank(Shelf(lists, texts), TableScorer(dict.fromkeys(texts.values(), 0.0)))
    evaluation = evaluate({"search": search}, dataset)
    assert "(weak questions, made from the passages themselves)" in evaluation.answer
    assert f"The questions are weak: {dataset.weak}" in evaluation.to_markdown()
    assert not any("word for word" in note for note in evaluation.notes)


def test_an_index_that_still_holds_the_questions_is_told() -> None:
    passages = [Passage(str(n), f"Question number {n}. {REST} {n}") for n in range(3)]
    dataset = sample_questions(passages)
    lists = {question: ["2", "1", "0"] for question in dataset.queries.values()}
    evaluation = evaluate({"shelf": Shelf(lists, {passage.id: passage.text for passage in passages})}, dataset)
    assert any(
        "'shelf' searches passages that hold the question word for word (3 questions)" in n for n in evaluation.notes
    )


def test_another_passage_may_hold_the_question() -> None:
    dataset = sample_questions([Passage(str(n), f"Question number {n}. {REST} {n}") for n in range(3)])
    texts = {**{passage.id: passage.text for passage in dataset.passages}, "x": " ".join(dataset.queries.values())}
    lists = {question: ["x", "2", "1", "0"] for question in dataset.queries.values()}
    assert not any("word for word" in note for note in evaluate({"shelf": Shelf(lists, texts)}, dataset).notes)


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
