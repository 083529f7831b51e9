"""A report looked at in a real browser: it fits every width and paper, can be read, and loads and runs nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank.evaluation import Evaluation, Tuning
from tests.browser import browse, needs_browser
from tests.evaluation import reports

pytestmark = needs_browser

WIDTHS = (320, 390, 768, 1366)
PAPER = 688  # pixels between the margins of A4

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
    heading: page.querySelector("h1").textContent,
    first: page.querySelector(".each bdi")?.textContent ?? "",
    background: style(page.querySelector("header")).backgroundColor,
  };
};
"""

SORT = """
const look = frame => {
  const page = frame.contentDocument, table = page.querySelector(".sortable");
  const rows = column => [...table.tBodies[0].rows].map(row => row.cells[column].dataset.value);
  const seen = {before: rows(0), state: []};
  const press = column => {
    const button = table.tHead.rows[0].cells[column].querySelector("button");
    button.focus();
    const focused = page.activeElement === button;
    button.click();
    seen.state.push([focused, table.tHead.rows[0].cells[column].getAttribute("aria-sort"),
      table.querySelectorAll("[aria-sort]").length, page.querySelector("[role=status]").textContent]);
    return rows(column);
  };
  seen.down = press(1);
  seen.up = press(1);
  seen.change = press(4);
  seen.names = press(0);
  return seen;
};
"""


def page_of(found: Evaluation | Tuning, folder: Path) -> str:
    found.to_html(folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def hostile_tuning() -> Tuning:
    return reports.tuned(reports.HOSTILE, reports.HOSTILE)


def faults(frame: dict[str, Any]) -> dict[str, Any]:
    """Return what should be empty and is not."""
    names = ("beyond", "pale", "covered", "loaded", "hacked", "untitled", "uncaptioned")
    return {name: frame[name] for name in names if frame[name]} | (
        {"scroll": frame["scroll"]} if frame["scroll"] > frame["width"] else {}
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_can_be_read_and_loads_nothing(tmp_path: Path, dark: bool) -> None:
    evaluations = (reports.ordinary(), reports.hostile(), reports.smallest(), reports.first_stages(), hostile_tuning())
    widths = WIDTHS[1::2] if dark else WIDTHS  # the colours are the same at every width
    for frame in browse(tmp_path, [page_of(one, tmp_path) for one in evaluations], widths, LOOK, dark=dark):
        assert faults(frame) == {}
        assert frame["buttons"] > 0  # its own script did run
        red, green, blue = map(int, re.findall(r"\d+", frame["background"])[:3])
        assert (red + green + blue < 200) is dark


def test_on_paper_nothing_is_cut_off(tmp_path: Path) -> None:
    """Paper cannot be scrolled: what the print style shows must fit, tables too."""
    pages = [
        page_of(one, tmp_path).replace("@media print", "@media all") for one in (reports.ordinary(), reports.hostile())
    ]
    for frame in browse(tmp_path, pages, [PAPER], LOOK):
        assert faults(frame) == {}
        assert frame["cut"] == []


def test_a_click_on_a_head_sorts_by_its_numbers(tmp_path: Path) -> None:
    evaluation = reports.ordinary()
    (seen,) = browse(tmp_path, [page_of(evaluation, tmp_path)], [1366], SORT)
    means = [str(system.means["nDCG@10"]) for system in evaluation.systems]
    assert seen["down"] == sorted(means, key=float, reverse=True)
    assert seen["up"] == sorted(means, key=float)
    changes = [str(evaluation.comparison(system.name).difference) for system in evaluation.systems[3:]]
    assert seen["change"] == [*sorted(changes, key=float, reverse=True), "", "", ""]  # what has none comes last
    assert seen["names"] == sorted(seen["before"])
    assert [state[:3] for state in seen["state"]] == [
        [True, "descending", 1],
        [True, "ascending", 1],
        [True, "descending", 1],
        [True, "ascending", 1],
    ]
    assert seen["state"][0][3] == "sorted by nDCG@10, descending"


def test_escaping_alone_keeps_scripts_out(tmp_path: Path) -> None:
    """Without the policy that forbids them: the page's own script runs, and nothing that a text holds."""
    page = re.sub(r"<meta http-equiv=[^>]*>", "", page_of(reports.hostile(), tmp_path))
    assert "Content-Security-Policy" not in page
    (frame,) = browse(tmp_path, [page], [1366], LOOK)
    assert not frame["hacked"]
    assert frame["buttons"] > 0
    assert reports.HOSTILE in frame["heading"]
    assert reports.HOSTILE[:100] in frame["first"]


def test_the_policy_alone_keeps_scripts_out(tmp_path: Path) -> None:
    """As if a text had not been escaped."""
    page = page_of(reports.smallest(), tmp_path)
    (frame,) = browse(tmp_path, [page.replace("<h1>", "<h1><script>window.hacked = 1</script>")], [1366], LOOK)
    assert not frame["hacked"]
    assert frame["buttons"] > 0
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy.group(1).startswith("default-src 'none'; ")


def test_the_look_itself_finds_faults(tmp_path: Path) -> None:
    """A test of the tests: a page with every fault."""
    ticks = '<text class="tick" x="5" y="20">one</text><text class="tick" x="9" y="20">two</text>'
    bad = (
        f'<!doctype html><body><header></header><h1></h1><div style="width:900px">{reports.LONG_WORD}</div>'
        '<p style="color:#ccc">pale</p><table><caption></caption></table>'
        f'<svg role="img" width="90" height="30"><title></title>{ticks}</svg>'
        '<div style="width:20px;overflow:hidden"><b style="display:block;width:40px">cut</b></div>'
        '<img src="file:///nothing.png"><script>window.hacked = 1</script></body>'
    )
    (frame,) = browse(tmp_path, [bad], [320], LOOK)
    assert set(faults(frame)) >= {"beyond", "pale", "covered", "hacked", "untitled", "uncaptioned", "scroll"}
    assert frame["cut"]
