"""Pages shown in a real browser, and what a script in the page around them says of each."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

LONG_WORD = "antidisestablishmentarianism" * 40
# A test of the tests: a page with every fault.
FAULTY = (
    f'<!doctype html><body><header></header><h1></h1><div style="width:900px">{LONG_WORD}</div>'
    '<p style="color:#ccc">pale</p><table><caption></caption></table>'
    '<svg role="img" width="90" height="30"><title></title>'
    '<text class="tick" x="5" y="20">one</text><text class="tick" x="9" y="20">two</text></svg>'
    '<div style="width:20px;overflow:hidden"><b style="display:block;width:40px">cut</b></div>'
    '<img src="file:///nothing.png"><script>window.hacked = 1</script></body>'
)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH")

# Runs in the page around the frames, before `look(frame)`, which says what became of a frame.
_HELPERS = """
const channel = c => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4 };
const light = rgb => 0.2126 * channel(rgb[0]) + 0.7152 * channel(rgb[1]) + 0.0722 * channel(rgb[2]);
const colour = text => text.match(/[\\d.]+/g).map(Number);
const style = e => e.ownerDocument.defaultView.getComputedStyle(e);
const ground = e => {
  for (; e; e = e.parentElement) {
    const back = colour(style(e).backgroundColor);
    if (back.length == 3 || back[3] > 0) return back;
  }
  return [255, 255, 255];
};
const contrast = (front, back) => {
  const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
};
"""
# What is seen of a frame. What can be scrolled by itself (`.scroll`, `pre`) may be wider than the page.
LOOK = """
const look = frame => {
  const page = frame.contentDocument, view = frame.contentWindow, width = frame.clientWidth;
  page.querySelectorAll("details").forEach(fold => fold.open = true);
  const unseen = ["STYLE", "SCRIPT", "TITLE"];
  const all = [...page.body.querySelectorAll("*")].filter(e => !unseen.includes(e.tagName.toUpperCase()));
  const name = e => `${e.tagName} ${e.getAttribute("class")} ${e.textContent.slice(0, 30)}`;
  const free = all.filter(e => !e.closest(".scroll, pre, .hidden"));
  const worded = all.filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()));
  const read = e => {
    if (!e.closest("svg")) return contrast(colour(style(e).color), ground(e));
    const disc = e.closest(".disc");
    return contrast(colour(style(e).fill), disc ? colour(style(disc.querySelector("circle")).fill) : ground(e));
  };
  const boxes = [...page.querySelectorAll("svg")].filter(svg => !svg.parentElement.closest("svg")).map(svg =>
    [...svg.querySelectorAll(".tick, .disc circle")].map(e => [name(e), e.getBoundingClientRect()]));
  const outside = box => box.width && (box.right > width + 1 || box.left < -1);
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  return {
    width: width,
    scroll: page.documentElement.scrollWidth,
    beyond: free.filter(e => outside(e.getBoundingClientRect())).map(name),
    cut: all.filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth && style(e).overflowX != "visible" &&
      !e.closest(".rr-clip, .hidden")).map(name),
    pale: worded.filter(e => read(e) < 4.5).map(e => `${name(e)} ${read(e).toFixed(2)}`),
    covered: boxes.flatMap(found => found.flatMap(([a, x], i) => found.slice(i + 1).filter(([b, y]) => meet(x, y))
      .map(([b]) => `${a} / ${b}`))),
    loaded: view.performance.getEntriesByType("resource").map(e => e.name),
    hacked: view.hacked === 1 || window.hacked === 1,
    buttons: page.querySelectorAll(".sortable button").length,
    untitled: [...page.querySelectorAll("svg[role=img]")].filter(e => !e.querySelector("title").textContent).length,
    uncaptioned: [...page.querySelectorAll("table")].filter(e => !e.caption.textContent).length,
    heading: page.querySelector("h1")?.textContent,
    first: page.querySelector(".each bdi")?.textContent,
    background: style(page.querySelector("header, .rr-result")).backgroundColor,
    scripts: page.querySelectorAll("script, img, iframe, object, link").length,
    marks: [...page.querySelectorAll("mark")].map(e => e.textContent),
    texts: [...page.querySelectorAll(".rr-text")].map(e => e.textContent),
    columns: style(page.querySelector(".rr-sides") || page.body).gridTemplateColumns.split(" ").length,
    outside: style(page.querySelector(".outside") || page.body).fontFamily,
  };
};
"""
_AROUND = """
addEventListener("load", async () => {
  const seen = [];
  for (const frame of document.querySelectorAll("iframe")) seen.push(await look(frame));
  document.getElementById("out").textContent = JSON.stringify(seen);
});
"""
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1400,1000 --dump-dom"
)


def browse(
    folder: Path, pages: Sequence[str], widths: Sequence[int], script: str, *, dark: bool = False
) -> list[dict[str, Any]]:
    """Show pages in frames of each width, and return what `look(frame)` of the script returns of each frame."""
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(page)}"></iframe>'
        for page in pages
        for width in widths
    )
    code = f"{_HELPERS}{script}{_AROUND}"
    file = folder / "look.html"
    file.write_text(
        f'<!doctype html><meta charset="utf-8"><script>{code}</script>{frames}<pre id="out"></pre>',
        encoding="utf-8",
    )
    process = subprocess.run(
        [
            str(BROWSER),
            *_FLAGS.split(),
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
    out = re.search(r'<pre id="out">(.+?)</pre>', process.stdout, re.DOTALL)
    assert out, process.stderr[-2000:]
    seen: list[dict[str, Any]] = json.loads(html.unescape(out.group(1)))
    assert len(seen) == len(pages) * len(widths)
    return seen


def faults(frame: dict[str, Any]) -> dict[str, Any]:
    """Return what should be empty in what `LOOK` saw, and is not."""
    names = ("beyond", "pale", "covered", "loaded", "hacked", "untitled", "uncaptioned")
    return {name: frame[name] for name in names if frame[name]} | (
        {"scroll": frame["scroll"]} if frame["scroll"] > frame["width"] else {}
    )


def is_dark(frame: dict[str, Any]) -> bool:
    """Whether the page has a dark ground."""
    return sum(map(int, re.findall(r"\d+", frame["background"])[:3])) < 200
