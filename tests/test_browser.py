"""A search looked at in a real browser: it fits, can be read in light and dark, loads nothing and runs nothing."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank import Hit, Passage, SearchResult, Timings
from tests.core.test_view import EVIL, candidate, hit

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH")

WIDTHS = (360, 1280)
LONG_WORD = "antidisestablishmentarianism" * 40
RIGHT_TO_LEFT = "باريس هي عاصمة فرنسا وأكبر مدنها من حيث عدد السكان."

# Runs in the page around the frames: what became of each frame.
_LOOK = """
addEventListener("load", () => {
  const channel = c => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4 };
  const light = rgb => 0.2126 * channel(rgb[0]) + 0.7152 * channel(rgb[1]) + 0.0722 * channel(rgb[2]);
  const colour = text => text.match(/[\\d.]+/g).map(Number);
  const seen = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, view = frame.contentWindow, width = frame.clientWidth;
    page.querySelectorAll("details").forEach(fold => fold.open = true);
    const all = [...page.body.querySelectorAll("*")].filter(e => e.tagName != "STYLE");
    const ground = e => {
      for (; e; e = e.parentElement) {
        const back = colour(view.getComputedStyle(e).backgroundColor);
        if (back.length == 3 || back[3] > 0) return back;
      }
      return [255, 255, 255];
    };
    const contrast = e => {
      const [a, b] = [light(colour(view.getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05);
    };
    const worded = all.filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()));
    return {
      width: width,
      scroll: page.documentElement.scrollWidth,
      beyond: all.filter(e => e.getBoundingClientRect().right > width + 1).map(e => e.className || e.tagName),
      pale: worded.filter(e => contrast(e) < 4.5).map(e => `${e.className || e.tagName} ${contrast(e).toFixed(2)}`),
      loaded: view.performance.getEntriesByType("resource").map(e => e.name),
      hacked: view.hacked === 1 || window.hacked === 1,
      scripts: page.querySelectorAll("script, img, iframe, object, link").length,
      marks: [...page.querySelectorAll("mark")].map(e => e.textContent),
      texts: [...page.querySelectorAll(".rr-text")].map(e => e.textContent),
      columns: view.getComputedStyle(page.querySelector(".rr-sides")).gridTemplateColumns.split(" ").length,
      background: view.getComputedStyle(page.querySelector(".rr-result")).backgroundColor,
      outside: view.getComputedStyle(page.querySelector(".outside") || page.body).fontFamily,
    };
  });
  document.getElementById("out").textContent = JSON.stringify(seen);
});
"""


def look(folder: Path, *pages: str, dark: bool = False) -> list[dict[str, Any]]:
    """Show pages in frames of each width, and return what the browser says of each frame."""
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(page)}"></iframe>'
        for page in pages
        for width in WIDTHS
    )
    file = folder / "look.html"
    file.write_text(
        f'<!doctype html><meta charset="utf-8"><script>{_LOOK}</script>{frames}<pre id="out"></pre>', encoding="utf-8"
    )
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1400,1000 --dump-dom"
    )
    process = subprocess.run(
        [
            str(BROWSER),
            *flags.split(),
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--user-data-dir={folder / 'profile'}",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    out = re.search(r'<pre id="out">(.*?)</pre>', process.stdout, re.DOTALL)
    assert out, process.stderr[-2000:]
    seen: list[dict[str, Any]] = json.loads(html.unescape(out.group(1)))
    assert len(seen) == len(pages) * len(WIDTHS)
    return seen


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
