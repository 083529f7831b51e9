"""An evaluation written as JSON and read back is the same, and no other file is taken for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank import InvalidInputError
from retrieve_rerank.evaluation import Evaluation
from tests.evaluation import reports


@pytest.mark.parametrize("make", [reports.ordinary, reports.hostile, reports.smallest, reports.first_stages])
def test_what_was_written_is_read(tmp_path: Path, make: Any) -> None:
    """The hostile one holds half a character, which UTF-8 cannot write."""
    evaluation = make()
    evaluation.to_json(tmp_path / "one.json")
    read = Evaluation.from_json(tmp_path / "one.json")
    assert read == evaluation
    assert read.to_markdown() == evaluation.to_markdown()
    for name, found in (("a", evaluation), ("b", read)):
        found.to_html(tmp_path / f"{name}.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    read.to_json(tmp_path / "two.json")
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()


def test_the_file_grows_by_a_few_bytes_a_candidate(tmp_path: Path) -> None:
    evaluation = reports.ordinary(questions=40, depth=60)
    evaluation.to_json(tmp_path / "evaluation.json")
    candidates = sum(len(ids) for system in evaluation.systems for ids in system.run.values())
    assert (tmp_path / "evaluation.json").stat().st_size < 40 * candidates


def test_texts_are_kept_of_what_is_shown_only() -> None:
    evaluation = reports.ordinary(questions=120, depth=20)
    assert len(evaluation.queries) == 120
    assert 0 < len(evaluation.texts) < 360  # of 360 passages
    assert max(map(len, evaluation.texts.values())) <= 240


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no json", "cannot be read as an evaluation"),
        ("[]", "format None, expected 1"),
        ("{}", "format None, expected 1"),
        ('{"format": 2}', "format 2, expected 1.*write it anew with Evaluation.to_json"),
        ('{"format": 1}', "is no evaluation: it has no systems"),
        ('{"format": 1, "systems": []}', "is not a whole evaluation: dataset: Field required"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(InvalidInputError, match=rf"file\.json .*{said}"):
        Evaluation.from_json(tmp_path / "file.json")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"nothing\.json cannot be read"):
        Evaluation.from_json(tmp_path / "nothing.json")


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"format": 1, "systems": ' + "[" * 100_000, '{"a":' * 50_000])
def test_a_file_that_is_nested_too_deep_is_refused(tmp_path: Path, deep: str) -> None:
    (tmp_path / "file.json").write_text(deep)
    with pytest.raises(InvalidInputError, match=r"file\.json cannot be read as an evaluation"):
        Evaluation.from_json(tmp_path / "file.json")


@pytest.mark.parametrize("place", ["format", "systems", "texts", "machine"])
def test_a_part_that_is_nested_deep_is_refused(tmp_path: Path, place: str) -> None:
    """Deep enough to be read, and too deep to be shown."""
    file = tmp_path / "evaluation.json"
    reports.smallest().to_json(file)
    content = json.loads(file.read_text(encoding="utf-8"))
    for depth in range(50, 1000, 75):
        deep = json.dumps({**content, place: "deep"}).replace('"deep"', "[" * depth + "]" * depth)
        file.write_text(deep)
        with pytest.raises(InvalidInputError, match=r"evaluation\.json "):
            Evaluation.from_json(file)


def damaged(content: dict[str, Any], *path: str | int, value: Any) -> dict[str, Any]:
    place: Any = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("systems", 0, "means", "nDCG@10"), "high", "systems.0.means.nDCG@10: Input should be a valid number"),
        (("systems", 0, "fetch_k"), 1.5, "systems.0.fetch_k: Input should be a valid integer"),
        (("systems", 1, "baseline"), "another", "no system is called 'another'"),
        (("systems", 0, "run"), {}, "has other questions than the judgements"),
        (("systems", 0, "run"), ["q"], "systems.0.run: Input should be a valid"),
        (("systems", 0, "run", "q"), "a", "systems.0.run.q: Input should be a valid tuple"),
        (("systems", 0, "per_query"), {}, "KeyError 'nDCG@10'"),
        (("comparisons", 0, "system"), None, "comparisons.0.system: Input should be a valid string"),
        (("systems",), [], "no system is called 'search'"),
        (("measures",), [], "IndexError"),
        (("judgements",), {}, "other questions"),
        (("systems", 1, "run", "q"), ["b"], "'search' ranks other passages than its first stage"),
        (("systems", 0, "ceiling"), {}, "KeyError 'nDCG@10'"),
        (("comparisons",), [], "'search' is not compared on 'nDCG@10'"),
    ],
)
def test_a_damaged_file_is_refused_at_once(tmp_path: Path, path: tuple[str | int, ...], value: Any, said: str) -> None:
    """Not when the report is half written."""
    file = tmp_path / "evaluation.json"
    reports.smallest().to_json(file)
    file.write_text(json.dumps(damaged(json.loads(file.read_text(encoding="utf-8")), *path, value=value)))
    with pytest.raises(InvalidInputError, match=said):
        Evaluation.from_json(file)
