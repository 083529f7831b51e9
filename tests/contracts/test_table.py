"""The table of who keeps the contracts: the command that writes it, and what it says of us."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator

import pytest

from tests.contracts import test_core, test_langchain, test_llama_index, test_remote

for _name in ("langchain_chroma", "langchain_classic", "langchain_community", "rank_bm25"):
    if importlib.util.find_spec(_name) is None:
        pytest.skip(f"{_name} is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def command():
    import warnings

    with warnings.catch_warnings():
        from benchmarks import contracts
    return contracts


def tables(report: str) -> Iterator[tuple[list[str], dict[str, list[str]]]]:
    """Yield the names of a table's columns, and its cells by row."""
    for block in re.findall(r"(?:^\|.*\n)+", report, re.MULTILINE):
        rows = [re.split(r"(?<!\\)\| ", line.strip().strip("|")) for line in block.splitlines()]
        cells = [[cell.strip() for cell in row] for row in rows]
        yield cells[0][1:], {row[0]: row[1:] for row in cells[2:-1]}


def test_the_command_prints_a_table(command, capsys):
    report = command.main(["--group", "retrievers", "--ours-only"])
    [(columns, rows)] = tables(report)
    assert report in capsys.readouterr().out
    assert columns == list(command.OURS["retrievers"])
    assert rows["k below one is refused"] == ["pass"] * len(columns)


def test_a_failure_gets_a_cell_of_its_own(command):
    shown = command.table({"x": {"best_first": "FAIL: a | b\n <c>", "k_limits": "n/a: reason"}})
    assert "| best first | FAIL: a \\| b &lt;c> |" in shown
    assert "| k limits | n/a |" in shown
    assert "0 pass, 1 FAIL, 1 n/a" in shown


def test_the_written_table_is_of_these_checks_and_components_and_ours_never_fail(command):
    found = list(tables(command.REPORT.read_text(encoding="utf-8")))
    assert len(found) == len(command.OURS)
    for (columns, rows), group in zip(found, command.OURS, strict=True):
        ours = list(command.OURS[group])
        assert columns == [*ours, *command.STOCK[group]], f"run {command.__name__} --write again"
        checks = [name for kind in command.OURS[group].values() for name in dir(kind) if name.startswith("test_")]
        assert set(rows) == {check.removeprefix("test_").replace("_", " ") for check in checks}
        for check, cells in rows.items():
            assert not [cell for cell in cells[: len(ours)] if cell.startswith("FAIL")], check


def test_every_contract_that_is_tested_is_in_the_table(command):
    shown = {kind for group in command.OURS.values() for kind in group.values()}
    for module in (test_core, test_langchain, test_llama_index, test_remote):
        kinds = {kind for name, kind in vars(module).items() if name.startswith("Test")}
        missing = {kind.__name__ for kind in kinds - shown if not kind.__name__.endswith(("Another", "AnyScorer"))}
        assert not missing, f"{module.__name__}: {missing} are not in the table"
