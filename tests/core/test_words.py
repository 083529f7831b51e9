"""Texts cut into words: as bm25s does it, in the language asked for, the same for passages and queries."""

from __future__ import annotations

import re
import sys
import time
import unicodedata
from pydoc_data.topics import topics
from typing import Any

import bm25s
import pytest
import Stemmer
from hypothesis import given
from hypothesis import strategies as st

from retrieve_rerank import InvalidInputError, MissingDependencyError
from retrieve_rerank.indexes.words import Analyzer, Vocabulary, language_name, stop_words

ENGLISH = Analyzer("en")


def stems(analyzer: Analyzer, text: str) -> list[str]:
    """Return the stems of a text, through a vocabulary."""
    vocabulary = Vocabulary(analyzer)
    numbers = vocabulary.learn(text)
    known = list(vocabulary.stems)
    assert set(vocabulary.look_up(text)) <= set(map(number_of, numbers))
    return [known[number] for number in numbers if number >= 0]


def number_of(number: int) -> int:
    """Return the number of a passage's word, also of one that makes the passage no longer."""
    return max(number, ~number)


def bm25s_stems(text: str, language: str = "english") -> list[str]:
    stemmer = Stemmer.Stemmer(language)
    return bm25s.tokenize(text, stopwords=language, stemmer=stemmer, return_ids=False, show_progress=False)[0]


@pytest.mark.parametrize("topic", sorted(topics)[::8])
def test_words_that_make_a_real_text_longer_are_those_of_bm25s(topic: str) -> None:
    """Beside them there are words of one letter, and the parts of identifiers."""
    text = re.sub(r"\b_+|_+\b", "", topics[topic])
    assert stems(ENGLISH, text) == bm25s_stems(text)


@given(st.text())
def test_any_text_can_be_cut_and_finds_itself(text: str) -> None:
    vocabulary = Vocabulary(Analyzer(None))
    numbers = vocabulary.learn(text)
    assert set(vocabulary.look_up(text)) <= set(map(number_of, numbers))
    assert bool(numbers) == bool(vocabulary.look_up(text))
    assert bool(re.search(r"[^\W_]", unicodedata.normalize("NFKC", text))) <= (bool(numbers) or "'" in text)


FOUND = [
    ("错误E4021：打印床不平", ["打印床", "E4021", "e4021", "床", "打印", "错误"]),
    ("今日は成語しりとりをした", ["しりとり", "成語", "今日", "語"]),
    ("スーパーカーのﾚﾝﾀﾙ", ["スーパー", "カー", "レンタル"]),
    ("ภาษาไทยสวยงาม PDF", ["ไทย", "สวยงาม", "pdf"]),
    ("ພາສາລາວ ភាសាខ្មែរ မြန်မာဘာသာ", ["ລາວ", "ខ្មែរ", "ဘာသာ"]),
    ("It is written in C++, C# or R; rule 7, f(x).", ["C++", "c++", "C#", "R", "r", "7", "x", "C"]),
    ("The oﬃcial ﬁlter", ["official filter", "official", "FILTER"]),
    ("型番ＡＢＣ１２とABC１３", ["ABC12", "型番", "abc13"]),
    ("call retrieval_rank or getUserById of HTMLParser in __init__", ["rank", "user", "retrieval_rank", "getUserById"]),
    ("the XMLHttpRequest", ["xmlhttprequest", "XML", "request", "http"]),
    ("USB-кабель и USBкабель", ["кабель", "usb", "USBкабель"]),
    ("co\u00adop\u00adera\u00adtion and cafe\u0301 and x²", ["cooperation", "café", "x2"]),
    ("한국語 번역 v2", ["한국", "語", "번역", "v2"]),
    ("한국어문서를 읽는 사람", ["문서", "한국어", "읽는", "사람", "한"]),
    ("don’t use e.g. U.S. units: it's 3.14 m", ["don", "units", "14", "m", "3.14", "U.S.", "u.s"]),
    ("class HTTPServer2 of utf8 and sha256sum", ["server", "HTTPServer", "httpserver2", "utf-8", "UTF", "sha"]),
    ("Python 3.9, release 3.11.2, section 2.5", ["3.9", "3.11.2", "2.5", "3.11", "11"]),
    ("cost 1,000,000 or 12,500 in 2,3", ["1000000", "1,000,000", "12500", "500", "3"]),
    ("an x-ray, a T-shirt, USB-C and F-16", ["ray", "x", "t-shirt", "usb-c", "F-16", "16", "c"]),
    (
        "ask #python at jane.doe@mail-host.example or https://docs.site.org/v2/a_b?q=x",
        ["python", "doe", "mail", "docs"],
    ),
    ("in C:\\Temp\\new_file.txt and /usr/lib64/libfoo.so.6", ["temp", "file", "new_file.txt", "lib", "libfoo.so.6"]),
    ("STRASSE, Straße, İstanbul, Acme™ and Foo®", ["straße", "strasse", "STRAẞE", "istanbul", "acme", "foo"]),
    ("launch 🚀 of 👍🏽 it ❤️", ["🚀", "👍", "❤", "👍🏿"]),
    ("rock'n'roll by O'Brien & R&D of AT&T", ["roll", "O'Brien", "brien", "R&D", "AT&T"]),
    ("كتـــاب and ａ１ ½", ["كتاب", "a1", "2"]),
]


@pytest.mark.parametrize("language", ["en", None])
@pytest.mark.parametrize(("text", "queries"), FOUND)
def test_what_a_text_is_found_by(text: str, queries: list[str], language: str | None) -> None:
    vocabulary = Vocabulary(Analyzer(language))
    words = set(map(number_of, vocabulary.learn(text)))
    for query in queries:
        asked = vocabulary.look_up(query)
        assert asked, query
        assert set(asked) <= words


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("x-15", ["15"]),  # an x is in any formula
        ("the x", ["x"]),
        ("3.9", ["3", "9", "3.9"]),
        ("iPhone", ["iphon", "phone"]),
        ("phone7 HTTPServer2", ["phone7", "httpserver2", "http"]),
        ("e.g. i.e.", []),
    ],
)
def test_a_query_asks_for_less_than_a_passage_is_found_by(query: str, expected: list[str]) -> None:
    vocabulary = Vocabulary(ENGLISH)
    vocabulary.learn(f"{query} phone")
    known = list(vocabulary.stems)
    assert [known[number] for number in vocabulary.look_up(query)] == expected


def test_a_query_in_a_script_without_spaces_asks_for_pairs_alone() -> None:
    """A single character of it is in half of all texts."""
    vocabulary = Vocabulary(Analyzer(None))
    vocabulary.learn("打印床 打字")
    assert [list(vocabulary.stems)[number] for number in vocabulary.look_up("打印机")] == ["打印"]
    assert [list(vocabulary.stems)[number] for number in vocabulary.look_up("打")] == ["打"]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        (None, "it's don’t l'eau we'll", ["it", "don", "l", "eau", "we", "ll"]),  # as ever
        (None, "e.g. U.S.A. in C.", ["e.g", "u.s.a", "in", "c"]),
        (
            None,
            "PDFs McDonald B2B E4021 utf8",
            ["pdfs", "mcdonald", "mc", "donald", "b2b", "e4021", "utf8", "utf", "8"],
        ),
        (None, "end.The a1b2c3 3.x Ph.D.", ["end", "the", "a1b2c3", "3", "x", "3.x", "ph", "d", "ph.d"]),
        (None, "__ _x a__b", ["x", "a__b", "a", "b"]),
        (None, "ünïCode Größe_Max", ["ünïcode", "ünï", "code", "grösse_max", "grösse", "max"]),
        (None, "5µm ΔT", ["5μm", "5", "μ", "m", "δt", "δ", "t"]),
        (None, "x" * 99 + "_y " + "x" * 100 + "_y", ["x" * 99 + "_y", "x" * 100 + "_y"]),
        (None, "issue#4 i++ #5", ["issue", "4", "i", "i++", "5"]),
        # Vowel signs are no letters to Python: bm25s leaves "रत" of "भारत", and nothing of "नेपाल".
        ("hi", "हिन्दी भारत", ["हिन्दी", "भारत"]),
        ("ne", "नेपाल", ["नेपाल"]),
        ("ta", "தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        (None, "हिन्दी", ["हिन्दी"]),
        (None, "a cafe\u0301", ["a", "caf\u00e9"]),
        ("tr", "İstanbul IĞDIR ILIK", ["istanbul", "ığdır", "ılık"]),
        (None, "ILIK", ["ilik"]),
    ],
)
def test_words_and_parts(language: str | None, text: str, expected: list[str]) -> None:
    assert Analyzer(language).words(text) == expected


def test_long_texts_are_cut_in_time() -> None:
    begin = time.perf_counter()
    for text in ("aB", "é_", "\u0301", "字", "_", "a.", "a'", "a-", "1,111", "a1", "++"):
        Analyzer(None).words(text * 200_000)
        Analyzer(None).words("é" + text * 200_000)
    assert time.perf_counter() - begin < 20


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


NO_WORDS: list[Any] = ["text", None, [1], ["a", None], 5]


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        *((lambda text, answer=answer: answer, "must return a list of strings") for answer in NO_WORDS),
        # Half a character: the index could be searched, and never be saved.
        (lambda text: ["a", "\ud83d"], "what the tokenizer made of a text holds a lone surrogate"),
        (lambda text: ["\ud83d", "\ude42"], "what the tokenizer made of a text holds a lone surrogate"),
        ("split", "tokenizer must be a function"),
    ],
)
def test_a_tokenizer_that_makes_no_words(tokenizer: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        Vocabulary(Analyzer("en", tokenizer)).learn("text")


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
