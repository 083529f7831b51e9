"""A search as HTML: what is shown of it. How it looks is tested in a browser (tests/test_browser.py)."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from retrieve_rerank import Hit, Passage, SearchResult, Timings

EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\"&amp;"


def candidate(rank: int, text: str = "text", **metadata: Any) -> Hit:
    passage = Passage(f"id-{rank}", text, metadata)
    return Hit(passage, rank=rank, score=0.9 - rank / 1000, retrieval_rank=rank, retrieval_score=0.9 - rank / 1000)


def hit(found: Hit, rank: int, **changes: Any) -> Hit:
    return replace(found, rank=rank, **{"score": 0.5, "logit": 0.0, **changes})


def shown(*hits: Hit, candidates: tuple[Hit, ...] = (), query: str = "what?", **more: Any) -> str:
    return SearchResult(query, hits, candidates or hits, Timings(0.0123, 1.5), **more)._repr_html_()


def rows(html: str, side: str) -> list[str]:
    part = html.split(f'class="rr-{side}"')[1].split('class="rr-after"')[0]
    return part.split('role="listitem">')[1:]


def plain(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def test_moves_are_said_in_words_and_numbers() -> None:
    found = tuple(candidate(rank) for rank in range(1, 5))
    html = shown(hit(found[2], 1), hit(found[1], 2), hit(found[0], 3), candidates=found)
    assert [re.search(r"[▲▼=] .*?was \d", plain(row)).group() for row in rows(html, "after")] == [  # type: ignore[union-attr]
        "▲ 2 was 3",
        "= was 2",
        "▼ 2 was 1",
    ]
    fates = [re.search(r"→ (\d)|left out", plain(row).replace("→  ", "→ ")).group() for row in rows(html, "before")]  # type: ignore[union-attr]
    assert fates == ["→ 3", "→ 2", "→ 1", "left out"]
    assert "3 of 4 candidates kept · retrieve 12 ms · re-rank 1.50 s" in html


def test_bars_are_scores() -> None:
    found = tuple(candidate(rank) for rank in (1, 2))
    html = shown(hit(found[0], 1, score=0.75, logit=1.0986), hit(found[1], 2, score=0.25, logit=-1.0986))
    assert re.findall(r"width:([\d.]+)%", html.split('class="rr-after"')[1]) == ["75.0", "25.0"]
    assert "0.750" in html
    assert "logit −1.10" in html


def test_a_first_stages_bars_are_shares_of_its_best_score() -> None:
    found = [replace(candidate(rank), score=score) for rank, score in ((1, 40.0), (2, 10.0), (3, -5.0), (4, math.nan))]
    html = shown(candidates=tuple(found))
    assert re.findall(r"width:([\d.]+)%", html) == ["100.0", "25.0", "0.0", "0.0"]


def test_the_window_is_marked() -> None:
    text = "x" * 3000 + "THE ANSWER" + "y" * 3000
    html = shown(hit(candidate(1, text), 1, window=(3000, 3010)))
    excerpt, whole = re.findall(r'class="rr-text" dir="auto">(.*?)</div>', html)
    assert "x<mark>THE ANSWER</mark>y" in excerpt
    assert excerpt.startswith("…")
    assert excerpt.endswith("…")
    assert len(excerpt) < 700
    assert whole == f"{'x' * 3000}<mark>THE ANSWER</mark>{'y' * 3000}"
    assert "whole text, 6,010 characters" in html


@pytest.mark.parametrize("window", [(0, 4), (2, 10_000), (-3, 2), (9_000, 9_001), (3, 3)])
def test_a_window_is_never_more_than_the_text(window: tuple[int, int]) -> None:
    text = "some text"
    [row] = re.findall(r'class="rr-text" dir="auto">(.*?)</div>', shown(hit(candidate(1, text), 1, window=window)))
    assert re.sub(r"</?mark>", "", row) == text


def test_a_window_longer_than_an_excerpt_is_whole_in_the_whole_text() -> None:
    text = "a" * 100 + "b" * 4000 + "c" * 100
    html = shown(hit(candidate(1, text), 1, window=(100, 4100)))
    excerpt, whole = re.findall(r'class="rr-text" dir="auto">(.*?)</div>', html)
    assert f"<mark>{'b' * 4000}</mark>" in whole
    assert len(excerpt) < 1200


def test_what_is_not_the_whole_truth_is_marked() -> None:
    found = tuple(candidate(rank) for rank in (1, 2, 3))
    html = shown(
        hit(found[0], 1, truncated=True),
        replace(found[1], rank=2),
        replace(found[2], rank=3, score=math.nan, retrieval_score=None),
        truncated_count=1,
        degraded="1 of 3 was scored",
    )
    first, second, third = rows(html, "after")
    assert "truncated" in first
    assert "not scored" not in first
    assert "not scored" in second
    assert "0.898 retrieval" in plain(second)
    assert "not scored" in third
    assert "nan" not in plain(html).lower()
    assert "<b>Degraded:</b> 1 of 3 was scored" in html
    assert "1 truncated" in html


def test_everything_that_came_from_outside_is_escaped() -> None:
    found = Hit(Passage(EVIL, EVIL, {EVIL: EVIL}), rank=1, score=0.5, retrieval_rank=1)
    for html in (shown(hit(found, 1, window=(3, 60)), query=EVIL, degraded=EVIL), shown(candidates=(found,))):
        assert "<script" not in html
        assert "<img" not in html
    page = SearchResult(EVIL, (), (), Timings(0, 0)).to_html()
    assert "<title>&lt;script&gt;" in page
    assert "<script" not in page


def test_nothing_is_loaded_from_outside() -> None:
    page = SearchResult("q", (), (candidate(1, "https://example.org/x.png"),), Timings(0, 0)).to_html()
    assert not re.findall(r"\b(?:src|href|action)\s*=|@import|url\(", page)
    assert "default-src 'none'" in page
    assert page.startswith("<!doctype html>")


def test_styles_touch_nothing_else_on_a_page() -> None:
    style = re.search(r"<style>(.*?)</style>", shown(), re.DOTALL).group(1)  # type: ignore[union-attr]
    selectors = re.findall(r"(?:^|[}{])\s*([^{}@]+)\{", re.sub(r"@\w+\s*\([^)]*\)", "", style))
    assert len(selectors) > 20
    assert {selector.split()[0] for selector in selectors if selector.strip()} == {".rr-result"}


def test_much_is_folded_away_and_says_what_of_it_was_kept() -> None:
    found = tuple(candidate(rank, "word " * 2000) for rank in range(1, 101))
    html = shown(hit(found[49], 1), hit(found[0], 2), candidates=found)
    assert "90 more, 1 of them kept" in html
    assert len(html) < 200_000


def test_metadata_and_ranks_of_several_lists_are_shown_in_short() -> None:
    found = candidate(1, "text", **{f"key{number}": "v" * 500 for number in range(9)})
    html = shown(hit(found, 1, retrieval_ranks=(3, None, 1)))
    assert "rank in each list: 3, –, 1" in html
    assert "key5: vvv" in html
    assert "key6" not in html
    assert "3 more" in html
    assert len(html) < 8_000


def test_nothing_found_and_nothing_kept() -> None:
    assert "The first stage found nothing." in shown()
    assert "0 of 0 candidates kept" in shown()
    assert "0 of 1 candidate kept" in shown(candidates=(candidate(1),))
    assert "Nothing was kept." in shown(candidates=(candidate(1),))


def test_text_that_is_not_unicode_can_be_written() -> None:
    found = hit(candidate(1, "cut \ud83d off"), 1)
    page = SearchResult("q \ud83d", (found,), (found,), Timings(0, 0)).to_html()
    assert page.encode("utf-8")
    assert "cut ? off" in page
