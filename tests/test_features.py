"""Every feature that we claim has a test behind it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "benchmarks" / "FEATURES.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \d+ \|", line)
]


def test_no_row_is_missing_and_each_has_all_columns() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, 37))
    assert {len(row) for row in ROWS} == {10}


@pytest.mark.parametrize("row", ROWS, ids=[row[1] for row in ROWS])
def test_a_claim_names_a_test_that_there_is(row: list[str]) -> None:
    assert row[-1].startswith("yes: ")
    links = re.findall(r"\[`([^`]+)`\]\(([^)]+)\)", row[-1])
    assert links
    for name, target in links:
        file = PAGE.parent / target
        assert file.is_file(), target
        if name.startswith("test_"):
            assert re.search(rf"^(async )?def {name}\(", file.read_text(encoding="utf-8"), re.MULTILINE), name
