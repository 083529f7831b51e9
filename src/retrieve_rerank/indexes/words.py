"""How a text becomes the words that are searched: cut, lower-cased, without stop words, stemmed.

The same steps for passages and queries, and recorded in every index, as words that were cut differently never meet.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from itertools import chain, pairwise

from retrieve_rerank.checks import check_encodable
from retrieve_rerank.errors import InvalidInputError, require, shown

Tokenizer = Callable[[str], list[str]]

_EXTRA = "hybrid"
_CUT = "4"  # of the rules below; what is stored is cut again where they change
_CACHED = 1 << 18  # pieces of text whose words are remembered
_LONGEST_NAME = 100  # characters of an identifier that is looked for by its parts; what is longer is data

# Letters and digits, and what dots, hyphens and the commas of thousands join, with the signs of C++ and C#. Not the one
# letter that is part of "it's".
_JOINT = r"(?:[.-]|(?<=\d),(?=\d{3}(?!\d)))"
_SIGNS = r"(?:\+\+|#(?!\w))?"
_find_words = re.compile(rf"(?:\w\w+|(?<!\w')\w)(?:{_JOINT}\w+)*{_SIGNS}").findall
_split = re.compile("[.,-]").split
_is_abbreviation = re.compile(r"[^\W\d_](?:\.[^\W\d_])+").fullmatch

# Scripts without spaces between words: Thai, Lao, Myanmar, Khmer, Tai Le, New Tai Lue, Tai Tham, kana, bopomofo, Han.
# And Hangul, which has spaces, but none within compounds nor before particles.
_NO_SPACES = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf\u1000-\u103f\u1050-\u108f\u109a-\u109d\u1780-\u17d3\u17d7\u17dc\u17dd"
    "\u1100-\u11ff\u1950-\u1974\u1980-\u19c9\u1a20-\u1a7c\u3005-\u3007\u3021-\u3029\u3041-\u3096\u3099\u309a\u309d-\u309f"
    "\u30a1-\u30fa\u30fc-\u30ff\u3105-\u318e\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97c\uaa60-\uaa7f"
    "\uac00-\ud7a3\ud7b0-\ud7fb\uf900-\ufaff\U00020000-\U000323af"
)
_runs_on = re.compile(f"[{_NO_SPACES}]").match
_EMOJI = "\u2600-\u27bf\U0001f000-\U0001f3fa\U0001f400-\U0001faff"
# What is not seen is no part of a word: the soft hyphen, the Arabic line that makes a word wider, joiners, the marks of
# an emoji's form and of byte order. ß has two forms in capitals, and a trade mark ends its word.
_REPLACED: dict[int, str | None] = {
    **dict.fromkeys(map(ord, "\u00ad\u0640\u200d\u2060\ufe0e\ufe0f\ufeff")),
    ord("ß"): "ss",
    ord("ẞ"): "SS",
    ord("™"): " ",
    ord("℠"): " ",
}

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
def _find_any_words() -> Callable[[str], list[str]]:
    """Return a search for words as above in any script, for emoji, and for runs of letters of a script without spaces.

    To Python the vowel signs of Hindi or Tamil, and an accent by itself, are no part of a word. Marks outside the basic
    plane are left out: going through all of Unicode takes twenty times as long.
    """
    marks = "".join(sign for sign in map(chr, range(0x10000)) if unicodedata.category(sign) in ("Mn", "Mc"))
    letter = rf"[^\W{_NO_SPACES}]"
    rest = rf"{letter}*(?:[{marks}]+{letter}*)*"
    first = rf"(?:{letter}(?={letter}|[{marks}])|(?<!\w['’]){letter}){rest}"
    return re.compile(rf"[{_NO_SPACES}]+|[{_EMOJI}]|{first}(?:{_JOINT}{letter}{rest})*{_SIGNS}").findall


class Analyzer:
    """Cuts texts into words.

    A text is brought into Unicode's compatible form, where ligatures and full width are plain letters. A word is a run
    of letters, digits and underscores. An identifier is found by its parts as well, `getUserById` by "user" and
    "sha256" by "sha", and a word of two scripts by its halves. What dots and hyphens join is several words, and found
    as a whole as well where dots join single letters or digits: "3.9", "U.S.". Scripts without spaces, and Hangul, are
    searched by overlapping pairs of characters. Parts and single letters make a passage no longer, which would take
    away from its score.

    Args:
        language: Name or ISO 639-1 code of the language whose stop words are left out and whose endings are cut off.
            None: lower-cased words as they are.
        tokenizer: Cuts a text into words instead; then nothing else is done to them.

    Raises:
        InvalidInputError: If there is no stemmer for the language.
        MissingDependencyError: If the extra `hybrid` is not installed.
    """

    def __init__(self, language: str | None, tokenizer: Tokenizer | None = None) -> None:
        if tokenizer is not None and not callable(tokenizer):
            raise InvalidInputError(f"tokenizer must be a function from a text to its words, got {shown(tokenizer)}")
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
            self._stop = stop_words(self.language) | ({"i", "e.g", "i.e"} if self.language == "english" else set())
            # Either may change with a new version of its package; what is stored is cut again then.
            digest = hashlib.sha256(" ".join(sorted(self._stop)).encode()).hexdigest()[:16]
            self.facts |= {"stemmer": stemmers.version(), "stop_words": digest}

    def __reduce__(self) -> tuple[type[Analyzer], tuple[str | None, Tokenizer | None]]:
        return Analyzer, (self.language, self.tokenizer)  # a stemmer cannot be pickled, and is made again

    def words(self, text: str) -> list[str]:
        """Return the words of a passage, those that it can be found by; stop words and endings are still there."""
        return [word for piece in self.pieces(text) for word in chain(*self.words_of(piece))]

    def pieces(self, text: str) -> list[str]:
        """Cut a text where its words end, or an unbroken run of letters of a script without spaces does."""
        if self.tokenizer is None:
            if text.isascii():
                return _find_words(text)
            return _find_any_words()(unicodedata.normalize("NFKC", text.translate(_REPLACED)))
        words = self.tokenizer(text)
        if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
            raise InvalidInputError(f"the tokenizer must return a list of strings, got {words!r:.200}")
        check_encodable("".join(words), "what the tokenizer made of a text")  # or it could never be saved
        return list(words)

    def words_of(self, piece: str, *, of_query: bool = False) -> tuple[list[str], list[str]]:
        """Return the words of a piece, and what it is found by, or asks for, as well."""
        if self.tokenizer is not None:
            return [piece], []
        if _runs_on(piece):
            return [first + second for first, second in pairwise(piece)], list(piece)
        name = piece.rstrip("+#")
        words, others = _words_of_name(name, split_at_digits=not of_query)
        if name != piece:
            others.append(piece)
        return list(map(self._lowered, words)), list(map(self._lowered, others))

    def asked_by(self, piece: str) -> list[str]:
        """Return the words that a piece of a query asks for.

        Single letters if there is nothing else, and no parts at digits: "part7" is not a question for all parts.
        """
        words, others = self.words_of(piece, of_query=True)
        return [*words, *(other for other in others if len(other) > 1 or not words)]

    def _lowered(self, word: str) -> str:
        if self.language == "turkish":  # whose i has a dot in capitals, too
            return word.replace("İ", "i").replace("I", "ı").lower()
        return word.lower().replace("i\u0307", "i")

    def stem(self, word: str) -> str | None:
        """Return a word without its ending, or None for a stop word."""
        if word in self._stop:
            return None
        return word if self._stem is None else self._stem(word)


class Vocabulary:
    """Stems by number, in the order in which they were first seen. What comes often is stemmed once.

    Args:
        analyzer: Cuts the texts.
        stems: Those known already.
    """

    def __init__(self, analyzer: Analyzer, stems: Iterable[str] = ()) -> None:
        self.analyzer = analyzer
        self.stems = {stem: number for number, stem in enumerate(stems)}
        self._numbers = lru_cache(_CACHED)(self._numbers_of)

    def __len__(self) -> int:
        return len(self.stems)

    def learn(self, text: str) -> list[int]:
        """Return the numbers of a passage's words; a new stem gets the next number.

        Of what makes the passage no longer it is the complement, `~number`, which is below 0.
        """
        return list(chain.from_iterable(map(self._numbers, self.analyzer.pieces(text))))

    def look_up(self, text: str) -> list[int]:
        """Return the numbers of a query's words; words that no passage has are left out."""
        words = chain.from_iterable(map(self.analyzer.asked_by, self.analyzer.pieces(text)))
        return [self.stems[stem] for stem in map(self.analyzer.stem, words) if stem in self.stems]

    def _numbers_of(self, piece: str) -> tuple[int, ...]:
        words, others = self.analyzer.words_of(piece)
        return (*self._numbered(words), *(~number for number in self._numbered(others)))

    def _numbered(self, words: Iterable[str]) -> Iterator[int]:
        stems = map(self.analyzer.stem, words)
        return (self.stems.setdefault(stem, len(self.stems)) for stem in stems if stem is not None)


def _words_of_name(name: str, *, split_at_digits: bool) -> tuple[list[str], list[str]]:
    """Return the words of a name, which dots, hyphens and commas may join, and what it is found by as well."""
    if _is_abbreviation(name):  # of which no letter means anything
        return [], [name]
    joined = [word for part in _split(name) if (word := part.strip("_"))]
    words = [word for word in joined if len(word) > 1]
    singles = [word for word in joined if len(word) == 1]
    others = [*(part for word in words for part in _parts(word, split_at_digits=split_at_digits)), *singles]
    if "," in name or (singles and "." in name):
        others.append(name.replace(",", ""))
    return words, others


def _parts(name: str, *, split_at_digits: bool) -> list[str]:
    """Return the parts of an identifier or of a word in two scripts, if there are several."""
    if len(name) > _LONGEST_NAME or (name.isascii() and name.isalpha() and (name[1:].islower() or name.isupper())):
        return []
    borders = [place for place in range(1, len(name)) if _is_border(name, place, at_digits=split_at_digits)]
    parts = [name[start:end].strip("_") for start, end in pairwise([0, *borders, len(name)])]
    return [part for part in parts if part] if borders else []


def _is_border(name: str, place: int, *, at_digits: bool) -> bool:
    before, here, after = name[place - 1], name[place], name[place + 1 : place + 3]
    if "_" in (before, here):
        return True
    if at_digits and before.isdigit() != here.isdigit():  # sha256, but not 3D or B12
        letters = name[max(0, place - 2) : place] if here.isdigit() else name[place : place + 2]
        return len(letters) == 2 and letters.isalpha()
    if len({_script(before), _script(here)} - {None}) == 2:
        return True
    # getUser, HTMLParser, but not PDFs
    ends = len(after) == 2 and after.islower() and _script(after[0]) == _script(here)
    return here.isupper() and (before.islower() or ends)


@lru_cache(maxsize=10_000)
def _script(letter: str) -> str | None:
    """Return the first word of a letter's name, which is its script, or None of what goes with any."""
    is_letter = unicodedata.category(letter) in ("Lu", "Ll", "Lt", "Lo")
    return unicodedata.name(letter, "").partition(" ")[0] if is_letter else None


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
        f"there is no stemmer for the language {shown(language)}; there is {offered}. None takes words as they are, "
        "in any language that puts spaces between them"
    )


def stop_words(language: str) -> frozenset[str]:
    """Return bm25s's stop words of a language; none where it has no list."""
    lists = require("bm25s.stopwords", extra=_EXTRA)
    name = "EN" if language == "english" else language.upper()
    return frozenset(getattr(lists, f"STOPWORDS_{name}", ()))
