"""Questions for those who have none: from the user's own passages, with weak labels."""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

from retrieve_rerank.checks import check_count, check_iterable
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.evaluation.dataset import Dataset
from retrieve_rerank.indexes.records import check_passage
from retrieve_rerank.types import Passage

_SHORTEST, _LONGEST = 10, 300  # characters of a question
_REST = 40  # characters that a passage must keep
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]|(?=[\r\n])")
_AROUND = " \t\r\n#*>.:;,–—-"


def sample_questions(
    passages: Iterable[Passage], *, n: int = 100, seed: int = 0, name: str = "sampled questions"
) -> Dataset:
    """Make a small labelled dataset from passages alone: title or first sentence -> its passage.

    The question of a passage is its title (`metadata["title"]`), or its first sentence or heading where it has none.
    It is cut out of the passage, and out of every other passage in the same way, so that finding the passage is not
    a matter of finding the same words: index `dataset.passages`, not your own. Questions that fit several passages,
    or that their passage holds twice, are not asked. Passages too short to be cut stay whole, and are searched but not
    asked for.

    The labels are weak. They can tell whether a pipeline is broken and roughly which of two is better. They cannot
    tell how much users gain: titles and first sentences are not what people ask, share words with their passage,
    which favours a lexical first stage, and another passage that answers as well counts as not relevant. Fifty
    questions of real users, judged by hand, tell more.

    Args:
        passages: Of the corpus, all of them if you can: fewer passages are an easier search.
        n: How many questions at most.
        seed: Of the choice.
        name: Of the dataset.

    Raises:
        InvalidInputError: If no passage is long enough, or an argument cannot be used.

    Example:
        >>> from retrieve_rerank import Passage
        >>> from retrieve_rerank.evaluation import sample_questions
        >>> text = "Bread is made from flour and water. Most loaves are leavened with yeast, which needs an hour."
        >>> dataset = sample_questions([Passage("bread", text)])
        >>> dataset.queries, dataset.passages[0].text
        ({'bread': 'Bread is made from flour and water.'}, 'Most loaves are leavened with yeast, which needs an hour.')
    """
    n = check_count(n, "n")
    seed = check_count(seed, "seed", least=0)
    whole = [check_passage(one, at) for at, one in enumerate(check_iterable(passages, "passages", "Passage"))]
    titles = Counter(_title(passage) for passage in whole)
    questions: dict[str, str] = {}
    cut: list[Passage] = []
    for passage in whole:
        question, rest = _split(passage.text, _title(passage), titles)
        if question:
            questions[passage.id] = question
        cut.append(Passage(passage.id, rest, passage.metadata))
    times = Counter(question.casefold() for question in questions.values())
    usable = sorted(identifier for identifier, question in questions.items() if times[question.casefold()] == 1)
    if not usable:
        raise InvalidInputError(
            f"none of {len(cut)} passages has a title or a first sentence of {_SHORTEST} to {_LONGEST} characters that "
            f"no other has and it does not say again, with {_REST} characters after it; use longer passages, or write "
            "questions by hand"
        )
    chosen = sorted(random.Random(seed).sample(usable, n)) if n < len(usable) else usable
    return Dataset(
        name,
        cut,
        {identifier: questions[identifier] for identifier in chosen},
        {identifier: {identifier: 1} for identifier in chosen},
        weak="titles and first sentences of passages, cut out of them; one passage counts as relevant to each",
    )


def _title(passage: Passage) -> str:
    title = passage.metadata.get("title")
    return title.strip() if isinstance(title, str) else ""


def holds(text: str, question: str) -> bool:
    """Whether a text says a question word for word."""
    return re.search(rf"(?<!\w){re.escape(question)}(?!\w)", text, re.IGNORECASE) is not None


def _split(text: str, title: str, titles: Mapping[str, int]) -> tuple[str, str]:
    """Return the question of a text, empty if it has none, and the text without it."""
    body = text.lstrip()
    # Some corpora repeat it; Markdown has marks before it.
    while title and (bare := body.lstrip(_AROUND))[: len(title)].casefold() == title.casefold():
        if _goes_on(bare[len(title) : len(title) + 1]):
            break
        body = bare[len(title) :].lstrip(_AROUND)
    # A title that several have, such as the chunks of one document, tells none of them from the others.
    if titles[title] == 1 and _can_be_asked(title, body):
        return title, body
    # The title stays.
    front = text[: len(text) - len(body)]
    body = body.lstrip(_AROUND)
    end = next((match.end() for match in _END.finditer(body) if match.end() >= _SHORTEST), len(body))
    question, rest = body[:end].strip(), body[end:].lstrip(_AROUND)
    return (question, f"{front}{rest}") if rest and _can_be_asked(question, f"{front}{rest}") else ("", text)


def _can_be_asked(question: str, rest: str) -> bool:
    # What the passage says again makes finding it trivial.
    return _SHORTEST <= len(question) <= _LONGEST and len(rest) >= _REST and not holds(rest, question)


def _goes_on(mark: str) -> bool:
    """Whether a word goes on with a character. In scripts without spaces, a word may end anywhere."""
    return mark.isalnum() and unicodedata.category(mark) != "Lo"
