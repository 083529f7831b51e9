"""A test collection: passages, questions, and which passage answers which question."""

from __future__ import annotations

import operator
import random
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass

from retrieve_rerank.checks import check_count, is_iterable
from retrieve_rerank.errors import InvalidInputError, shown
from retrieve_rerank.types import Passage

WEAK = (
    "The questions are weak: {weak}. They show whether a system is broken and roughly which of two is better; they do "
    "not show how large the gain is on questions that people ask, since their words come from the passages themselves "
    "and any other passage that answers counts as not relevant."
)
_MOST_RELEVANT = 100_000  # what computes the measures keeps a count for each grade


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Dataset:
    """Passages, questions, and judgements that say which passage is relevant to which question.

    Only judged questions are evaluated. A judged question whose judgements are all 0 counts, as in trec_eval: every
    system gets 0 on it.

    Args:
        name: What tables call it.
        passages: Passages, or a dict id -> text.
        queries: Question texts by id; may hold more than the judged ones.
        judgements: Relevance by question id and passage id: whole numbers, 0 is not relevant, larger is better. A
            passage that is not named is unjudged, which counts as not relevant.
        weak: How the judgements were made, where no person judged; see `sample_questions`.

    Attributes:
        notes: What a reader of the numbers should know, such as judgements that name unknown passages. These are kept:
            they can never be found, and that lowers recall.

    Raises:
        InvalidInputError: If nothing usable is judged, a judged question is empty, an id occurs twice, or a value is
            of the wrong type.

    Example:
        >>> from retrieve_rerank.evaluation import Dataset
        >>> texts = {"p1": "Paris is the capital of France.", "p2": "Bread is baked."}
        >>> Dataset("toy", texts, {"q1": "capital of France?"}, {"q1": {"p1": 1}})
        <Dataset 'toy': 2 passages, 1 judged question, 1 judgement>
    """

    name: str
    passages: tuple[Passage, ...]
    queries: Mapping[str, str]
    judgements: Mapping[str, Mapping[str, int]]
    weak: str | None
    notes: tuple[str, ...]

    def __init__(
        self,
        name: str,
        passages: Mapping[str, str] | Iterable[Passage],
        queries: Mapping[str, str],
        judgements: Mapping[str, Mapping[str, int]],
        *,
        weak: str | None = None,
    ) -> None:
        if not isinstance(name, str) or not name.strip():
            raise InvalidInputError(f"the name of a dataset must be a string with something in it, got {shown(name)}")
        if isinstance(passages, Mapping):
            passages = [Passage(identifier, text) for identifier, text in passages.items()]
        kept = _checked_passages(passages)
        relevance = _checked_judgements(judgements)
        texts = _checked_queries(queries)
        judged = {query: scores for query, scores in relevance.items() if query in texts}
        if not judged:
            raise InvalidInputError(
                f"no question of dataset {name!r} is judged: {_some(texts)} are questions, and the judgements are of "
                f"{_some(relevance)}. Ids must match as strings"
            )
        for query in judged:
            if not texts[query].strip():
                raise InvalidInputError(f"question {query!r} of dataset {name!r} is judged and empty; leave it out")
        for field, value in (
            ("name", name),
            ("passages", kept),
            ("queries", texts),
            ("judgements", judged),
            ("weak", weak),
            ("notes", (*_left_out(name, kept, relevance, judged), *_notes(kept, judged))),
        ):
            object.__setattr__(self, field, value)

    def sample(self, n: int, *, seed: int = 0) -> Dataset:
        """Return this dataset with `n` of its judged questions, always the same for a seed; itself if it has no more.

        The passages stay: fewer passages would be an easier search. A note says what was drawn.
        """
        seed = check_count(seed, "seed", least=0)
        every = sorted(self.judgements)
        if check_count(n, "n") >= len(every):
            return self
        chosen = sorted(random.Random(seed).sample(every, n))
        judged = {query: self.judgements[query] for query in chosen}
        drawn = copy(self)  # checked when it was made
        notes = (
            f"{n} of {counted(len(every), 'judged question')}, drawn with seed {seed}",
            *_notes(self.passages, judged),
            *(f"of the {len(every)}: {note}" for note in self.notes),
        )
        queries = {query: self.queries[query] for query in chosen}
        for field, value in (("queries", queries), ("judgements", judged), ("notes", notes)):
            object.__setattr__(drawn, field, value)
        return drawn

    def __repr__(self) -> str:
        judgements = sum(map(len, self.judgements.values()))
        weak = f", weak: {self.weak}" if self.weak else ""
        notes = "".join(f"; {note}" for note in self.notes)
        return (
            f"<Dataset {self.name!r}: {counted(len(self.passages), 'passage')}, "
            f"{counted(len(self.judgements), 'judged question')}, {counted(judgements, 'judgement')}{weak}{notes}>"
        )


def check_dataset(dataset: object) -> None:
    """Raise InvalidInputError unless this is a dataset."""
    if not isinstance(dataset, Dataset):
        raise InvalidInputError(f"dataset must be a Dataset, as load_dataset returns, got {type(dataset).__name__}")


def counted(number: int, thing: str) -> str:
    """Return a number with its noun."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _checked_passages(passages: Iterable[Passage]) -> tuple[Passage, ...]:
    if isinstance(passages, (str, bytes, Passage)) or not is_iterable(passages):
        raise InvalidInputError(f"passages must be a list of Passage or a dict id -> text, got {shown(passages)}")
    kept = tuple(passages)
    seen: set[str] = set()
    for position, passage in enumerate(kept):
        if not isinstance(passage, Passage):
            raise InvalidInputError(f"passages[{position}] must be a Passage, got {type(passage).__name__}")
        if passage.id in seen:
            raise InvalidInputError(f"passage id {passage.id!r} occurs twice; judgements could not tell which is meant")
        seen.add(passage.id)
    if not kept:
        raise InvalidInputError("a dataset needs passages, got none")
    return kept


def _checked_queries(queries: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(queries, Mapping):
        raise InvalidInputError(f"queries must be a dict id -> text, got {type(queries).__name__}")
    for query, text in queries.items():
        if not isinstance(query, str) or not isinstance(text, str):
            raise InvalidInputError(f"queries must be a dict of strings, got {shown(query)}: {shown(text)}")
    return dict(queries)


def _checked_judgements(judgements: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    if not isinstance(judgements, Mapping):
        raise InvalidInputError(
            f"judgements must be a dict question id -> passage id -> whole number, got {type(judgements).__name__}"
        )
    checked: dict[str, dict[str, int]] = {}
    for query, scores in judgements.items():
        if not isinstance(query, str) or not isinstance(scores, Mapping):
            raise InvalidInputError(
                "judgements must be a dict question id -> passage id -> whole number, got "
                f"{shown(query)}: {shown(scores)}"
            )
        for passage, given in scores.items():
            score = _whole(given)
            if not isinstance(passage, str) or score is None:
                raise InvalidInputError(
                    f"a judgement of question {query!r} must be a passage id with a whole number, got "
                    f"{shown(passage)}: {shown(given)}"
                )
            checked.setdefault(query, {})[passage] = score
            if score > _MOST_RELEVANT:
                raise InvalidInputError(
                    f"passage {passage!r} has the relevance {score} for question {query!r}; expected grades such as 0, "
                    f"1, 2, {_MOST_RELEVANT} at most"
                )
    return checked


def _whole(value: object) -> int | None:
    """Return a whole number of any kind, numpy's among them, as Python's own; None of anything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _left_out(
    name: str,
    passages: tuple[Passage, ...],
    relevance: Mapping[str, Mapping[str, int]],
    judged: Mapping[str, Mapping[str, int]],
) -> tuple[str, ...]:
    ids = {passage.id for passage in passages}
    named = {passage for scores in judged.values() for passage in scores}
    if named.isdisjoint(ids):
        raise InvalidInputError(
            f"no passage that the judgements of dataset {name!r} name is there: {_some(named)} are judged, and the "
            f"passages are {_some(ids)}. Ids must match as strings"
        )
    strangers = len(relevance) - len(judged)
    return (f"{counted(strangers, 'judged question')} without a text left out",) if strangers else ()


def _notes(passages: tuple[Passage, ...], judged: Mapping[str, Mapping[str, int]]) -> tuple[str, ...]:
    notes = []
    ids = {passage.id for passage in passages}
    unknown = sum(passage not in ids for scores in judged.values() for passage in scores)
    if unknown:
        is_or_are = "is" if unknown == 1 else "are"
        notes.append(f"{counted(unknown, 'judgement')} {is_or_are} of passages that are not there and cannot be found")
    if hopeless := sum(max(scores.values()) < 1 for scores in judged.values()):
        has_or_have = "has" if hopeless == 1 else "have"
        notes.append(
            f"{counted(hopeless, 'question')} {has_or_have} no relevant passage: every system gets 0 on such a question"
        )
    return tuple(notes)


def _some(ids: Iterable[str]) -> str:
    some = sorted(ids)
    shown = ", ".join(map(repr, some[:3])) + (", …" if len(some) > 3 else "")
    return shown or "none"
