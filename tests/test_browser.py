"""A search looked at in a real browser: it fits, can be read in light and dark, loads nothing and runs nothing."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank import Hit, Passage, SearchResult, Timings
from tests.browser import browse, needs_browser
from tests.core.test_view import EVIL, candidate, hit

pytestmark = needs_browser

WIDTHS = (360, 1280)
LONG_WORD = "antidisestablishmentarianism" * 40
RIGHT_TO_LEFT = "باريس هي عاصمة فرنسا وأكبر مدنها من حيث عدد السكان."

_LOOK = """
const look = frame => {
  const page = frame.contentDocument, view = frame.contentWindow, width = frame.clientWidth;
  page.querySelectorAll("details").forEach(fold => fold.open = true);
  const all = [...page.body.querySelectorAll("*")].filter(e => e.tagName != "STYLE");
  const worded = all.filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()));
  const read = e => contrast(colour(style(e).color), ground(e));
  return {
    width: width,
    scroll: page.documentElement.scrollWidth,
    beyond: all.filter(e => e.getBoundingClientRect().right > width + 1).map(e => e.className || e.tagName),
    pale: worded.filter(e => read(e) < 4.5).map(e => `${e.className || e.tagName} ${read(e).toFixed(2)}`),
    loaded: view.performance.getEntriesByType("resource").map(e => e.name),
    hacked: view.hacked === 1 || window.hacked === 1,
    scripts: page.querySelectorAll("script, img, iframe, object, link").length,
    marks: [...page.querySelectorAll("mark")].map(e => e.textContent),
    texts: [...page.querySelectorAll(".rr-text")].map(e => e.textContent),
    columns: style(page.querySelector(".rr-sides")).gridTemplateColumns.split(" ").length,
    background: style(page.querySelector(".rr-result")).backgroundColor,
    outside: style(page.querySelector(".outside") || page.body).fontFamily,
  };
};
"""


def look(folder: Path, *pages: str, dark: bool = False) -> list[dict[str, Any]]:
    """Show pages in frames of each width, and return what the browser says of each frame."""
    return browse(folder, pages, WIDTHS, _LOOK, dark=dark)


def ordinary() -> SearchResult:
    text = "x " * 900 + "The answer lies here." + " y" * 900
    found = tuple(candidate(rank, text, source="atlas", page=rank) for rank in range(1, 101))
    hits = (
        hit(found[49], 1, score=0.98, logit=4.0, window=(1800, 1821)),
        hit(found[0], 2, truncated=True),
        replace(found[1], rank=3, score=math.nan),
        hit(found[2], 4, retrieval_ranks=(3, None)),
    )
    return SearchResult("what?", hits, found, Timings(0.01, 1.0), 1, "2 of 100 candidates were scored")


def hostile() -> SearchResult:
    texts = [LONG_WORD, RIGHT_TO_LEFT, EVIL, "", f"def f():\n    return {'y' * 300}"]
    found = tuple(
        Hit(Passage(text or "empty", text, {text: text}), rank=rank, score=math.nan, retrieval_rank=rank)
        for rank, text in enumerate(texts, start=1)
    )
    hits = tuple(hit(one, rank) for rank, one in enumerate(reversed(found), start=1))
    return SearchResult(f"{EVIL} {RIGHT_TO_LEFT} {LONG_WORD}", hits, found, Timings(0.01, 1e9), 0, EVIL)


def empty() -> SearchResult:
    return SearchResult("nothing like it", (), (), Timings(0.0, 0.0))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_can_be_read_and_loads_nothing(tmp_path: Path, dark: bool) -> None:
    pages = [result.to_html() for result in (ordinary(), hostile(), empty())]
    for frame in look(tmp_path, *pages, dark=dark):
        assert frame["scroll"] <= frame["width"]
        assert frame["beyond"] == []
        assert frame["pale"] == []
        assert frame["loaded"] == []
        assert not frame["hacked"]
        assert frame["scripts"] == 0
        red, green, blue = map(int, re.findall(r"\d+", frame["background"])[:3])
        assert (red + green + blue < 200) is dark


def test_the_winning_window_is_highlighted_and_the_sides_stand_side_by_side(tmp_path: Path) -> None:
    phone, laptop = look(tmp_path, ordinary().to_html())
    assert phone["marks"] == laptop["marks"] == ["The answer lies here."] * 2  # in the excerpt and in the whole text
    assert (phone["columns"], laptop["columns"]) == (1, 2)


def test_in_a_notebook_escaping_alone_keeps_scripts_out_and_the_page_keeps_its_style(tmp_path: Path) -> None:
    """No policy forbids scripts there: a page around it that runs its own shows that they would run."""
    around = '<p class="outside" style="font-family:fantasy">before</p>'
    page = f"<!doctype html><script>window.ran = 1</script>{around}{hostile()._repr_html_()}"
    for frame in look(tmp_path, page):
        assert not frame["hacked"]
        assert frame["scripts"] == 1  # the page's own
        assert frame["scroll"] <= frame["width"]
        assert EVIL in frame["texts"]
        assert frame["outside"] == "fantasy"


def test_the_look_itself_finds_faults(tmp_path: Path) -> None:
    """A test of the tests: a page with every fault."""
    bad = (
        '<!doctype html><body><div class="rr-result"><div class="rr-sides">x</div></div>'
        f'<div style="white-space:nowrap">{LONG_WORD}</div><div class="pale" style="color:#ccc">pale</div>'
        '<img src="file:///nothing.png"><script>window.hacked = 1</script></body>'
    )
    for frame in look(tmp_path, bad):
        assert frame["scroll"] > frame["width"]
        assert [name for name in frame["pale"] if name.startswith("pale")]
        assert frame["hacked"]
        assert frame["scripts"] == 2
