"""What a search gives back, and how it looks: before and after side by side, as HTML that runs no script."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import overload

from retrieve_rerank.types import Hit

_SHOWN = 10  # rows of each side before the rest is folded away
_WHOLE = 420  # characters up to which a text is shown whole
_AROUND = 80  # characters before and after an excerpt's window
_FACTS = 6  # metadata shown of a hit
_FACT = 80  # characters of each

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body{{margin:0;padding:16px;background:#f3f5f7}}
@media (prefers-color-scheme:dark){{body{{background:#0b0e11}}}}
@media (max-width:640px){{body{{padding:0}}}}
.rr-result{{margin:0 auto}}
</style>
</head>
<body>
{body}
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock seconds of the two stages of one search."""

    retrieve_seconds: float
    rerank_seconds: float


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SearchResult(Sequence[Hit]):
    """The hits of one search, best first, with how they came about.

    Attributes:
        query: The query as given.
        hits: The final hits; the result itself iterates, indexes and counts them.
        candidates: The first stage's hits, in its order.
        timings: Seconds spent in each stage.
        truncated_count: Candidates whose text the cross-encoder did not see whole.
        degraded: Why this is not the re-ranked result that was asked for; None if it is. It is about the re-ranking: a
            retriever that a `HybridRetriever` with `on_error="skip"` left out shows in its `DegradedWarning` only.

    Example:
        >>> from retrieve_rerank import Hit, Passage, SearchResult, Timings
        >>> hit = Hit(Passage("a", "Paris is a city."), rank=1, score=0.98)
        >>> result = SearchResult("what is Paris?", (hit,), (hit,), Timings(0.01, 0.2))
        >>> result
        <SearchResult 'what is Paris?': 1 of 1 candidates, best 0.980, retrieve 0.010 s, re-rank 0.200 s>
        >>> [hit.passage.id for hit in result]
        ['a']
    """

    query: str
    hits: tuple[Hit, ...]
    candidates: tuple[Hit, ...]
    timings: Timings
    truncated_count: int = 0
    degraded: str | None = None

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Hit]: ...
    def __getitem__(self, index: int | slice) -> Hit | Sequence[Hit]:
        return self.hits[index]

    def __repr__(self) -> str:
        query = self.query if len(self.query) <= 50 else self.query[:49] + "…"
        best = f", best {self.hits[0].score:.3f}" if self.hits else ""
        if self.hits and (combined := self.hits[0].combined_score) is not None:
            best += f" (combined {combined:.3f})"
        degraded = f", degraded: {self.degraded}" if self.degraded else ""
        truncated = f", {self.truncated_count} truncated" if self.truncated_count else ""
        return (
            f"<SearchResult {query!r}: {len(self.hits)} of {len(self.candidates)} candidates{best}, "
            f"retrieve {self.timings.retrieve_seconds:.3f} s, re-rank {self.timings.rerank_seconds:.3f} s"
            f"{truncated}{degraded}>"
        )

    def to_html(self) -> str:
        """Return the search as a page of its own: candidates and hits side by side, with what moved and why.

        The page loads nothing and runs no script; everything that came from outside is escaped. Write it in UTF-8.
        """
        return _PAGE.format(title=escaped(cut(self.query, 80)), body=self._repr_html_())

    def _repr_html_(self) -> str:
        note = "" if self.degraded is None else f'<div class="rr-note"><b>Degraded:</b> {escaped(self.degraded)}</div>'
        return (
            f'<div class="rr-result"><style>{css()}</style>'
            f"{_query(self.query)}"
            f'<div class="rr-sum">{_summary(self)}</div>{note}'
            f'<div class="rr-sides">{_before(self)}'
            f"{side('after', 'Re-ranked', [hit_row(hit) for hit in self.hits], 'Nothing was kept.')}</div></div>"
        )


@functools.cache
def css() -> str:
    """Return the style of a search, wherever it is shown."""
    from importlib.resources import files  # only who looks pays for it

    return files("retrieve_rerank").joinpath("search_result.css").read_text(encoding="utf-8")


def _query(query: str) -> str:
    head = f'<div class="rr-query" dir="auto">{escaped(cut(query, _WHOLE))}</div>'
    if len(query) <= _WHOLE:
        return head
    return (
        f'{head}<details><summary>whole query</summary><div class="rr-text" dir="auto">{escaped(query)}</div></details>'
    )


def _summary(result: SearchResult) -> str:
    found, kept = len(result.candidates), len(result.hits)
    parts = [
        f"{kept} of {found} candidate{'s' * (found != 1)} kept",
        f"retrieve {_seconds(result.timings.retrieve_seconds)}",
        f"re-rank {_seconds(result.timings.rerank_seconds)}",
    ]
    if result.truncated_count:
        parts.append(f"{result.truncated_count} truncated")
    return " · ".join(parts)


def _before(result: SearchResult) -> str:
    final = {(hit.passage.id, hit.retrieval_rank): hit.rank for hit in result.hits}
    best = max((hit.score for hit in result.candidates if math.isfinite(hit.score)), default=0.0)
    rows = [candidate_row(hit, best, final.get((hit.passage.id, hit.retrieval_rank))) for hit in result.candidates]
    return side("before", "First stage", rows, "The first stage found nothing.")


def side(name: str, title: str, rows: Sequence[str], nothing: str) -> str:
    """Return one side, `before` or `after`: its rows under its title."""
    body = "".join(rows[:_SHOWN]) or f'<div class="rr-none">{nothing}</div>'
    if len(rows) > _SHOWN:
        rest = rows[_SHOWN:]
        kept = sum("rr-kept" in row[:40] for row in rest)
        also = f", {kept} of them kept" if kept else ""
        body += f"<details><summary>{len(rest)} more{also}</summary>{''.join(rest)}</details>"
    return f'<div class="rr-{name}" role="list" aria-label="{title}"><div class="rr-head">{title}</div>{body}</div>'


def candidate_row(hit: Hit, best: float, final: int | None, badge: str = "") -> str:
    """Return a row of the first stage's side.

    Args:
        hit: What the first stage found.
        best: The score that fills the bar.
        final: Rank after re-ranking; None if it was left out.
        badge: HTML beside the id.
    """
    fate = '<span class="rr-soft">left out</span>' if final is None else f"→ <b>{final}</b>"
    return _row(
        hit.rank,
        f'{_id(hit)}{badge}<span class="rr-fate">{fate}</span>',
        _bar(hit.score / best if best > 0 else 0.0, _number(hit.score)),
        f'<div class="rr-clip" dir="auto">{escaped(cut(hit.passage.text, 160))}</div>',
        kept=final is not None,
    )


def hit_row(hit: Hit, badge: str = "") -> str:
    """Return a row of the re-ranked side, with HTML beside the id."""
    if hit.logit is None:
        known = "" if math.isnan(hit.score) else f'{_number(hit.score)} <span class="rr-soft">retrieval</span>'
        badge += '<span class="rr-badge">not scored</span>'
        bar = _bar(0.0, known)
    else:
        both = "" if hit.combined_score is None else f", combined {_number(hit.combined_score)}"
        known = f'<span class="rr-soft">logit {minus(f"{hit.logit:.2f}")}{both}</span>'
        bar = _bar(hit.score, f"{_number(hit.score)} {known}")
    if hit.truncated:
        badge += '<span class="rr-badge">truncated</span>'
    return _row(hit.rank, f"{_id(hit)}{_move(hit)}{badge}", bar, _passage(hit), _facts(hit))


def _row(rank: int, line: str, *parts: str, kept: bool = False) -> str:
    return (
        f'<div class="rr-row{" rr-kept" * kept}" role="listitem"><div class="rr-rank">{rank}</div>'
        f'<div><div class="rr-line">{line}</div>{"".join(parts)}</div></div>'
    )


def _id(hit: Hit) -> str:
    return f'<bdi class="rr-id">{escaped(cut(hit.passage.id, 120))}</bdi>'


def _move(hit: Hit) -> str:
    if hit.retrieval_rank is None:
        return ""
    up = hit.retrieval_rank - hit.rank
    if up == 0:
        return f'<span class="rr-soft">= was {hit.retrieval_rank}</span>'
    kind, arrow = ("up", "▲") if up > 0 else ("down", "▼")
    return f'<span class="rr-{kind}">{arrow} {abs(up)}</span> <span class="rr-soft">was {hit.retrieval_rank}</span>'


def _bar(share: float, label: str) -> str:
    width = 100 * min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    return (
        f'<div class="rr-score"><div class="rr-track"><div class="rr-bar" style="width:{width:.1f}%"></div></div>'
        f'<div class="rr-number">{label}</div></div>'
    )


def _passage(hit: Hit) -> str:
    """Return the text, or the part of it that matters with the whole folded away."""
    text = hit.passage.text
    start, end = hit.window if hit.window is not None else (0, 0)
    start, end = max(0, min(start, len(text))), max(0, min(end, len(text)))
    if len(text) <= _WHOLE:
        return f'<div class="rr-text" dir="auto">{_marked(text, start, end)}</div>'
    first = max(0, start - _AROUND)
    last = min(len(text), max(first + _WHOLE, min(end, start + 2 * _WHOLE) + _AROUND))
    excerpt = _marked(text[first:last], start - first, min(end, last) - first)
    excerpt = f"{'…' * (first > 0)}{excerpt}{'…' * (last < len(text))}"
    return (
        f'<div class="rr-text" dir="auto">{excerpt}</div>'
        f"<details><summary>whole text, {len(text):,} characters</summary>"
        f'<div class="rr-text" dir="auto">{_marked(text, start, end)}</div></details>'
    )


def _marked(text: str, start: int, end: int) -> str:
    if end <= start:
        return escaped(text)
    return f"{escaped(text[:start])}<mark>{escaped(text[start:end])}</mark>{escaped(text[end:])}"


def _facts(hit: Hit) -> str:
    facts: list[str] = []
    if any(rank is not None for rank in hit.retrieval_ranks):
        ranks = ", ".join("–" if rank is None else str(rank) for rank in hit.retrieval_ranks)
        facts.append(f"rank in each list: {ranks}")
    metadata = hit.passage.metadata.items()
    shown = [f"{escaped(cut(str(key), _FACT))}: {escaped(cut(str(value), _FACT))}" for key, value in metadata]
    facts += shown if len(shown) <= _FACTS else [*shown[:_FACTS], f"{len(shown) - _FACTS} more"]
    return f'<div class="rr-facts" dir="auto">{" · ".join(facts)}</div>' if facts else ""


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return minus(f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}")


def minus(number: str) -> str:
    """Return a number as text with a true minus sign."""
    return number.replace("-", "−")


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def cut(text: str, length: int) -> str:
    """Return the start of a text that is longer than `length`, marked."""
    return text if len(text) <= length else text[: length - 1] + "…"


def escaped(text: str) -> str:
    """Return text for a page: escaped, and without lone surrogates, which no file can hold."""
    return escape(text.encode("utf-8", "replace").decode("utf-8"))
