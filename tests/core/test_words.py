"""Texts cut into words: as bm25s does it, in the language asked for, the same for passages and queries."""

from __future__ import annotations

import sys
import unicodedata
from pydoc_data.topics import topics
from typing import Any

import bm25s
import pytest
import Stemmer
from hypothesis import assume, given
from hypothesis import strategies as st

from retrieve_rerank import InvalidInputError, MissingDependencyError
from retrieve_rerank.indexes.words import Analyzer, Vocabulary, language_name, stop_words

ENGLISH = Analyzer("en")


def stems(analyzer: Analyzer, text: str) -> list[str]:
    """Return the stems of a text, through a vocabulary."""
    vocabulary = Vocabulary(analyzer)
    numbers = vocabulary.learn(text)
    known = list(vocabulary.stems)
    assert numbers == vocabulary.look_up(text)
    return [known[number] for number in numbers]


def bm25s_stems(text: str, language: str = "english") -> list[str]:
    stemmer = Stemmer.Stemmer(language)
    return bm25s.tokenize(text, stopwords=language, stemmer=stemmer, return_ids=False, show_progress=False)[0]


@pytest.mark.parametrize("topic", sorted(topics)[::8])
def test_real_text_gives_the_words_of_bm25s(topic: str) -> None:
    assert stems(ENGLISH, topics[topic]) == bm25s_stems(topics[topic])


@given(st.text(st.characters(exclude_categories=("Mn", "Mc", "Cs"))))
def test_any_text_without_marks_gives_the_words_of_bm25s(text: str) -> None:
    composed = unicodedata.normalize("NFC", text.lower())
    assume(not any(unicodedata.category(character) in ("Mn", "Mc") for character in composed))
    assert stems(ENGLISH, text) == bm25s_stems(composed)


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("hi", "हिन्दी भारत", ["हिन्दी", "भारत"]),
        ("ne", "नेपाल", ["नेपाल"]),
        ("ta", "தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        (None, "हिन्दी", ["हिन्दी"]),
        (None, "a cafe\u0301", ["caf\u00e9"]),
        ("tr", "İstanbul IĞDIR ILIK", ["istanbul", "ığdır", "ılık"]),
        (None, "ILIK", ["ilik"]),
    ],
)
def test_marks_belong_to_their_word(language: str | None, text: str, expected: list[str]) -> None:
    """Vowel signs are no letters to Python: bm25s leaves "रत" of "भारत", and nothing of "नेपाल"."""
    assert Analyzer(language).words(text) == expected


@given(
    st.lists(
        st.sampled_from(["The", "a", "I", "running", "RUNS", "it's", "x", "x_y", "7", "42", "Ünïted", "Σας", "ſt"])
    )
)
def test_words_of_all_kinds_give_those_of_bm25s(words: list[str]) -> None:
    assert stems(ENGLISH, " ".join(words)) == bm25s_stems(" ".join(words))


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("de", "Die Häuser der Königin", ["haus", "konigin"]),
        ("german", "Die Häuser der Königin", ["haus", "konigin"]),
        ("FR", "les chevaux de la reine", ["cheval", "rein"]),
        ("fi", "talossa on taloja", ["talo", "on", "talo"]),  # no stop words
        (None, "The runners ran", ["the", "runners", "ran"]),
    ],
)
def test_each_language_has_its_stemmer_and_stop_words(language: str | None, text: str, expected: list[str]) -> None:
    assert stems(Analyzer(language), text) == expected


@pytest.mark.parametrize("language", sorted(set(Stemmer.algorithms()) - {"porter", "dutch_porter"}))
def test_every_language_of_pystemmer_is_there(language: str) -> None:
    assert language_name(language) == language
    assert stems(Analyzer(language), "text text") == [Stemmer.Stemmer(language).stemWord("text")] * 2


def test_every_list_of_stop_words_of_a_language_with_a_stemmer_is_found() -> None:
    lists = {name.removeprefix("STOPWORDS_").lower() for name in vars(bm25s.stopwords) if name.startswith("STOPWORDS_")}
    lists = lists - {"en", "en_plus", "chinese", "korean"} | {"english"}  # these two have no stemmer
    assert {language for language in Stemmer.algorithms() if stop_words(language)} == lists


@pytest.mark.parametrize("language", ["xx", "", "klingon", "porter", "zh", 5, b"en"])
def test_an_unknown_language_lists_those_there_are(language: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"danish \(da\), dutch \(nl\), english \(en\)"):
        Analyzer(language)


def test_a_tokenizer_replaces_everything() -> None:
    analyzer = Analyzer("en", tokenizer=lambda text: text.split("|"))
    assert stems(analyzer, "The|RUNNING man||") == ["The", "RUNNING man", "", ""]
    assert analyzer.language is None


@pytest.mark.parametrize("answer", ["text", None, [1], ["a", None], 5])
def test_a_tokenizer_that_returns_no_words(answer: Any) -> None:
    with pytest.raises(InvalidInputError, match="must return a list of strings"):
        Vocabulary(Analyzer("en", tokenizer=lambda text: answer)).learn("text")


@pytest.mark.parametrize("words", [["a", "\ud83d"], ["\ud83d", "\ude42"]])
def test_half_a_character_is_no_word(words: list[str]) -> None:
    """The index could be searched, and never be saved."""
    with pytest.raises(InvalidInputError, match="what the tokenizer made of a text holds a lone surrogate"):
        Analyzer(None, lambda text: words).words("a")


def test_a_tokenizer_that_is_no_function() -> None:
    with pytest.raises(InvalidInputError, match="tokenizer must be a function"):
        Analyzer("en", tokenizer="split")  # type: ignore[arg-type]


def test_a_query_teaches_nothing() -> None:
    vocabulary = Vocabulary(ENGLISH)
    vocabulary.learn("known words")
    assert vocabulary.look_up("words unknown known words the") == [1, 0, 1]
    assert list(vocabulary.stems) == ["known", "word"]


@pytest.mark.parametrize("module", ["Stemmer", "bm25s.stopwords"])
def test_a_missing_extra_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r'pip install "retrieve-rerank\[hybrid\]"'):
        Analyzer("en")
