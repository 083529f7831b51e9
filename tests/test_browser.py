"""Searches and reports looked at in a real browser: they fit, can be read in light and dark, load and run nothing."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank import Hit, Passage, SearchResult, Timings
from retrieve_rerank.evaluation import Evaluation, Tuning
from tests.browser import FAULTY, LONG_WORD, LOOK, browse, faults, is_dark, needs_browser
from tests.core.test_search_result import EVIL, candidate, hit
from tests.evaluation import reports

pytestmark = needs_browser

RIGHT_TO_LEFT = "باريس هي عاصمة فرنسا وأكبر مدنها من حيث عدد السكان."


def look(folder: Path, *pages: str, dark: bool = False) -> list[dict[str, Any]]:
    """Show pages in frames of each width, and return what the browser says of each frame."""
    return browse(folder, pages, (360, 1280), LOOK, dark=dark)


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
def test_a_search_fits_can_be_read_and_loads_nothing(tmp_path: Path, dark: bool) -> None:
    pages = [result.to_html() for result in (ordinary(), hostile(), empty())]
    for frame in look(tmp_path, *pages, dark=dark):
        assert faults(frame) == {}
        assert frame["scripts"] == 0
        assert is_dark(frame) is dark


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
    """A test of the tests."""
    (frame,) = browse(tmp_path, [FAULTY], [320], LOOK)
    assert set(faults(frame)) >= {"beyond", "pale", "covered", "hacked", "untitled", "uncaptioned", "scroll"}
    assert frame["cut"]
    assert frame["scripts"] == 2


WIDTHS = (320, 390, 768, 1366)
PAPER = 688  # pixels between the margins of A4

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


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_report_fits_can_be_read_and_loads_nothing(tmp_path: Path, dark: bool) -> None:
    evaluations = (reports.ordinary(), reports.hostile(), reports.smallest(), reports.first_stages(), hostile_tuning())
    widths = WIDTHS[1::2] if dark else WIDTHS  # the colours are the same at every width
    for frame in browse(tmp_path, [page_of(one, tmp_path) for one in evaluations], widths, LOOK, dark=dark):
        assert faults(frame) == {}
        assert frame["buttons"] > 0  # its own script did run
        assert is_dark(frame) is dark


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


def test_escaping_alone_keeps_scripts_out_of_a_report(tmp_path: Path) -> None:
    """Without the policy that forbids them: the page's own script runs, and nothing that a text holds."""
    page = re.sub(r"<meta http-equiv=[^>]*>", "", page_of(reports.hostile(), tmp_path))
    assert "Content-Security-Policy" not in page
    (frame,) = browse(tmp_path, [page], [1366], LOOK)
    assert not frame["hacked"]
    assert frame["buttons"] > 0
    assert reports.HOSTILE in frame["heading"]
    assert reports.HOSTILE[:100] in frame["first"]


def test_the_policy_alone_keeps_scripts_out_of_a_report(tmp_path: Path) -> None:
    """As if a text had not been escaped."""
    page = page_of(reports.smallest(), tmp_path)
    (frame,) = browse(tmp_path, [page.replace("<h1>", "<h1><script>window.hacked = 1</script>")], [1366], LOOK)
    assert not frame["hacked"]
    assert frame["buttons"] > 0
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy.group(1).startswith("default-src 'none'; ")
