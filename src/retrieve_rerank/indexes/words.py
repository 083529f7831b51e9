"""How a text becomes the words that are searched: lower-cased, split, without stop words, stemmed.

The same steps for passages and queries, and recorded in every index, as words that were cut differently never meet.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache

from retrieve_rerank.checks import check_encodable
from retrieve_rerank.errors import InvalidInputError, require

Tokenizer = Callable[[str], list[str]]

_EXTRA = "hybrid"
_STOP = -1

# Two or more letters or digits, as bm25s and scikit-learn split.
_find_words = re.compile(r"\w\w+").findall
_CUT = "2"  # of the rules below; what is stored is cut again where they change

_CODES = {
    "ar": "arabic",
    "ca": "catalan",
    "cs": "czech",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "eo": "esperanto",
    "es": "spanish",
    "et": "estonian",
    "eu": "basque",
    "fa": "persian",
    "fi": "finnish",
    "fr": "french",
    "ga": "irish",
    "hi": "hindi",
    "hu": "hungarian",
    "hy": "armenian",
    "id": "indonesian",
    "it": "italian",
    "lt": "lithuanian",
    "nb": "norwegian",
    "ne": "nepali",
    "nl": "dutch",
    "nn": "norwegian",
    "no": "norwegian",
    "pl": "polish",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sr": "serbian",
    "st": "sesotho",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
    "yi": "yiddish",
}


@cache
def _find_marked_words() -> Callable[[str], list[str]]:
    """Return a search for words as above whose letters may bear marks.

    To Python the vowel signs of Hindi or Tamil, and an accent by itself, are no part of a word. Marks outside the basic
    plane are left out: going through all of Unicode takes twenty times as long.
    """
    marks = (character for character in map(chr, range(0x10000)) if unicodedata.category(character) in ("Mn", "Mc"))
    return re.compile(rf"\w[\w{''.join(marks)}]+").findall


class Analyzer:
    """Cuts texts into words.

    Args:
        language: Name or ISO 639-1 code of the language whose stop words are left out and whose endings are cut off.
            None: lower-cased words as they are, which suits any language that puts spaces between words.
        tokenizer: Cuts a text into words instead; then nothing else is done to them.

    Raises:
        InvalidInputError: If there is no stemmer for the language.
        MissingDependencyError: If the extra `hybrid` is not installed.
    """

    def __init__(self, language: str | None, tokenizer: Tokenizer | None = None) -> None:
        if tokenizer is not None and not callable(tokenizer):
            raise InvalidInputError(f"tokenizer must be a function from a text to its words, got {tokenizer!r}")
        self.language = None if tokenizer is not None else language_name(language)
        self.tokenizer = tokenizer
        self._stem: Callable[[str], str] | None = None
        self._stop: frozenset[str] = frozenset()
        self.facts: dict[str, str | None] = {"language": self.language}
        if tokenizer is None:
            self.facts["cut"] = _CUT
        else:
            self.facts["tokenizer"] = "the caller's own"
        if self.language is not None:
            stemmers = require("Stemmer", extra=_EXTRA)
            self._stem = stemmers.Stemmer(self.language).stemWord
            self._stop = stop_words(self.language)
            # Either may change with a new version of its package; what is stored is cut again then.
            digest = hashlib.sha256(" ".join(sorted(self._stop)).encode()).hexdigest()[:16]
            self.facts |= {"stemmer": stemmers.version(), "stop_words": digest}

    def __reduce__(self) -> tuple[type[Analyzer], tuple[str | None, Tokenizer | None]]:
        return Analyzer, (self.language, self.tokenizer)  # a stemmer cannot be pickled, and is made again

    def words(self, text: str) -> list[str]:
        """Return the words of a text, stop words and endings still there."""
        if self.tokenizer is None:
            if self.language == "turkish":  # whose i has a dot in capitals, too
                text = text.replace("İ", "i").replace("I", "ı")
            if text.isascii():
                return _find_words(text.lower())
            return _find_marked_words()(unicodedata.normalize("NFC", text.lower()))
        words = self.tokenizer(text)
        if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
            raise InvalidInputError(f"the tokenizer must return a list of strings, got {words!r}")
        check_encodable("".join(words), "what the tokenizer made of a text")  # or it could never be saved
        return list(words)

    def stem(self, word: str) -> str | None:
        """Return a word without its ending, or None for a stop word."""
        if word in self._stop:
            return None
        return word if self._stem is None else self._stem(word)


class Vocabulary:
    """Stems by number, in the order in which they were first seen. Every distinct word is stemmed once.

    Args:
        analyzer: Cuts the texts.
        stems: Those known already.
    """

    def __init__(self, analyzer: Analyzer, stems: Iterable[str] = ()) -> None:
        self.analyzer = analyzer
        self.stems = {stem: number for number, stem in enumerate(stems)}
        self._numbers = _Numbers(self)

    def __len__(self) -> int:
        return len(self.stems)

    def learn(self, text: str) -> list[int]:
        """Return the numbers of a passage's words; a new stem gets the next number."""
        numbers = self._numbers
        return [number for word in self.analyzer.words(text) if (number := numbers[word]) >= 0]

    def look_up(self, text: str) -> list[int]:
        """Return the numbers of a query's words; words that no passage has are left out."""
        stems = (self.analyzer.stem(word) for word in self.analyzer.words(text))
        return [self.stems[stem] for stem in stems if stem in self.stems]

    def number(self, word: str) -> int:
        """Return the number of a passage's word, below 0 for a stop word."""
        stem = self.analyzer.stem(word)
        return _STOP if stem is None else self.stems.setdefault(stem, len(self.stems))


class _Numbers(dict[str, int]):
    """The number of every word seen; looks a new one up. A dictionary, as millions of words go through it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self._number = vocabulary.number

    def __missing__(self, word: str) -> int:
        number = self[word] = self._number(word)
        return number


def language_name(language: str | None) -> str | None:
    """Return the name of a language given by its name or code.

    Raises:
        InvalidInputError: If there is no stemmer for it, listing those there are.
    """
    if language is None:
        return None
    # The two further English and Dutch stemmers are older forms of those that bear the language's name.
    names = set(require("Stemmer", extra=_EXTRA).algorithms()) - {"porter", "dutch_porter"}
    name = _CODES.get(language.lower(), language.lower()) if isinstance(language, str) else None
    if name in names:
        return name
    codes = {name: code for code, name in _CODES.items()}
    offered = ", ".join(f"{name} ({codes[name]})" if name in codes else name for name in sorted(names))
    raise InvalidInputError(
        f"there is no stemmer for the language {language!r}; there is {offered}. None takes words as they are, in any "
        "language that puts spaces between them"
    )


def stop_words(language: str) -> frozenset[str]:
    """Return bm25s's stop words of a language; none where it has no list."""
    lists = require("bm25s.stopwords", extra=_EXTRA)
    name = "EN" if language == "english" else language.upper()
    return frozenset(getattr(lists, f"STOPWORDS_{name}", ()))
