"""Evaluations to make reports of: an ordinary one, a hostile one, and the smallest; and a reader of their pages."""

from __future__ import annotations

import random
import re
from functools import lru_cache
from html.parser import HTMLParser

from retrieve_rerank import RetrieveRerank
from retrieve_rerank.evaluation import Dataset, Evaluation, Tuning, evaluate, tune
from tests.core.stubs import TableScorer
from tests.core.test_search_result import EVIL
from tests.evaluation.stubs import Shelf

LONG_WORD = "antidisestablishmentarianism" * 12
# Ends a script, a style and a comment, and holds what JavaScript takes for the end of a line.
HOSTILE = f"</script></style>--><script>window.hacked = 1</script>{EVIL}\u2028 $x_1$ <b>&lt;"
SURROGATE = "\ud800"  # half a character, which no file can hold


@lru_cache  # frozen, and made by several tests
def ordinary(
    questions: int = 40, depth: int = 30, *, prefix: str = "", name: str = "", weak: str | None = None
) -> Evaluation:
    """Three pipelines of a random collection: one whose re-ranking helps, one where it hurts, one of a long name."""
    draw = random.Random(0)
    ids = [f"{prefix}p{number}" for number in range(questions * 3)]
    texts = {name: f"{prefix} text of {name}. {'Words and more words. ' * draw.randint(1, 30)}" for name in ids}
    queries = {f"{prefix}q{number}": f"{prefix}question {number}" for number in range(questions)}
    judgements = {
        query: {name: draw.choice((0, 1, 1, 2)) for name in draw.sample(ids, min(6, len(ids)))} for query in queries
    }
    name = name or prefix
    dataset = Dataset(f"{name}toy", texts, queries, judgements, weak=weak)
    relevant = {texts[name] for scores in judgements.values() for name, score in scores.items() if score > 0}
    good = {text: draw.gauss(1.5 if text in relevant else -1.5, 2.0) for text in texts.values()}
    bad = {text: -score for text, score in good.items()}

    def shelf() -> Shelf:
        lists = {}
        for query, text in queries.items():
            found = draw.sample(ids, min(depth, len(ids)))
            known = [name for name in judgements[query] if name not in found and draw.random() < 0.7]
            lists[text] = [*found[: len(found) - len(known)], *known]
            draw.shuffle(lists[text])
        return Shelf(lists, texts)

    long_name = f"{name}{'a first stage of many words, re-ranked by a model of many words ' * 3}{LONG_WORD}"
    return evaluate(
        {
            f"{name}good": RetrieveRerank(shelf(), TableScorer(good), fetch_k=depth),
            f"{name}bad": RetrieveRerank(shelf(), TableScorer(bad), fetch_k=depth),
            long_name: RetrieveRerank(shelf(), TableScorer(good), fetch_k=depth),
        },
        dataset,
        resamples=500,
    )


def hostile() -> Evaluation:
    """Every text is an attack: names, ids, questions, passages, the dataset's, and how the judgements were made."""
    return ordinary(8, 12, prefix=HOSTILE, name=f"{HOSTILE}{SURROGATE}", weak=f"{HOSTILE}{SURROGATE}")


def smallest() -> Evaluation:
    """One question, one candidate, nothing that could change."""
    dataset = Dataset("one", {"a": "text a"}, {"q": "what?"}, {"q": {"a": 1}})
    search = RetrieveRerank(Shelf({"what?": ["a"]}), TableScorer({"text a": 0.0}), fetch_k=1)
    return evaluate({"search": search}, dataset)


def first_stages() -> Evaluation:
    """Nothing is re-ranked."""
    dataset = Dataset("plain", {"a": "text a", "b": "text b"}, {"q": "what?"}, {"q": {"a": 1}})
    return evaluate({"one": Shelf({"what?": ["b", "a"]}), "none": Shelf({"what?": []})}, dataset)


def tuned(prefix: str = "", name: str = "", *, latency_budget: float | None = None) -> Tuning:
    """Two first stages, two cross-encoders, four depths, twelve questions."""
    draw = random.Random(1)
    texts = {f"{prefix}p{number}": f"{prefix}text {number}" for number in range(40)}
    queries = {f"{prefix}q{number}": f"{prefix}question {number}" for number in range(12)}
    judgements = {query: dict.fromkeys(draw.sample(list(texts), 4), 1) for query in queries}
    relevant = {texts[passage] for scores in judgements.values() for passage in scores}
    scorers = {
        f"{name}{model}": TableScorer({text: draw.gauss(2.0 * (text in relevant), noise) for text in texts.values()})
        for model, noise in (("large", 0.5), ("small", 2.0))
    }
    shelves = {
        f"{name}{stage}": Shelf({text: draw.sample(list(texts), 20) for text in queries.values()}, texts)
        for stage in ("words", "vectors")
    }
    dataset = Dataset(f"{name}toy", texts, queries, judgements)
    return tune(shelves, scorers, dataset, depths=(2, 5, 10, 20), latency_budget=latency_budget, resamples=200)


VOID = {"meta", "br", "link", "img"}
ALONE = {"line", "circle", "rect", "polyline", "polygon", "path"}  # of SVG, closed in themselves


class Page(HTMLParser):
    """A page whose tags are checked to be balanced; all texts, and what is in each section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.words: dict[str, str] = {"": ""}
        self.here = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("section", "header"):
            self.here = dict(attrs).get("id") or tag
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALONE
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] not in ("script", "style"):
            self.words[self.here] = self.words.get(self.here, "") + f" {data}"

    def said(self, section: str) -> str:
        return re.sub(r"\s+", " ", self.words[section]).strip()
