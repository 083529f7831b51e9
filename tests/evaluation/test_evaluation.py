"""What an evaluation looks like: the answer, Markdown, HTML, JSON, which is read back, run files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from retrieve_rerank import InvalidInputError, RetrieveRerank
from retrieve_rerank.evaluation import Dataset, Evaluation, Latency, System, evaluate, tune
from retrieve_rerank.evaluation.words import shown_time
from tests.core.stubs import TableScorer
from tests.evaluation import reports
from tests.evaluation.reports import Page
from tests.evaluation.stubs import TEXTS, Shelf, dataset, logits
from tests.test_files import small_disk

LISTS = {"one": "cad", "two": "efb"}
NASTY = "<script>alert(1)</script>|\n& more"


def evaluation(name: str = "search", order: str = "abcdef", data: Dataset | None = None) -> Evaluation:
    return evaluate({name: RetrieveRerank(Shelf(LISTS), TableScorer(logits(order)), fetch_k=3)}, data or dataset())


def test_the_answer_says_how_much_and_at_what_cost() -> None:
    answer = evaluation().answer
    begin = "Re-ranking makes no clear difference on toy: nDCG@10 goes from 0.585 to 0.975 (+0.390, 95 % interval +"
    assert answer.startswith(begin)
    assert ", over 2 questions, at a cost of " in answer
    assert answer.endswith(" a question (p50 / p95).")
    assert answer.count(". ") == 0  # one sentence


def test_the_answer_on_weak_questions_says_so() -> None:
    weak = evaluation(data=dataset(weak="by guess"))
    assert "on toy (weak questions, made from the passages themselves): nDCG@10" in weak.answer
    assert "The questions are weak: by guess." in weak.to_markdown()
    assert "weak" not in evaluation().to_markdown()


def test_the_answer_where_nothing_was_re_ranked() -> None:
    only = evaluate({"good": Shelf({"one": "ad", "two": "b"}), "poor": Shelf(LISTS)}, dataset())
    assert only.answer == "Nothing was re-ranked on toy; the best first stage is 'good' with nDCG@10 1.000."
    assert only.comparisons == ()


def test_the_repr_is_one_short_line() -> None:
    shown = repr(evaluation())
    found = "'search' makes no clear difference, nDCG@10 +0.390"
    assert shown == f"<Evaluation of 2 systems on 'toy', 2 questions: {found}>"


def test_rows_and_comparisons_are_found_by_name() -> None:
    found = evaluation()
    assert found["search"].baseline == "first stage of search"
    with pytest.raises(
        KeyError, match=r"no system is called 'serach'; there are \['first stage of search', 'search'\]"
    ):
        found["serach"]
    with pytest.raises(InvalidInputError, match=r"'first stage of search' is not compared on 'nDCG@10'"):
        found.comparison("first stage of search")
    with pytest.raises(InvalidInputError, match="'AP'"):
        found.comparison("search", "AP")


def test_markdown_is_a_table_whatever_the_names_are() -> None:
    lines = evaluation(NASTY).to_markdown().split("\n")
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert {line.replace("\\|", "").count("|") for line in table} == {14}
    assert "<script>" not in "".join(table)
    assert table[0].startswith("| system | nDCG@10 | RR@10 | R@100 | change in nDCG@10 | p | wins / ties / losses |")
    assert "| 0.975 | 1.000 | 1.000 | +0.390 [" in table[3]
    assert "| 0.5000 | 2 / 0 / 0 | 1.000 | 1.000 (k = 3) | 1.0 | 0.0% |" in table[3]


HOSTILE = (
    "<script>alert(1)</script>",
    "a | b \\| c",
    "![x](https://example.com/pixel.png)",
    "[click](javascript:alert(1)) [a][b]",
    "# not a title\n\n- no list\n```\nno code",
    "1. no list",
    "&lt;b&gt; `x` *y* _z_ __init__ a_b ~~w~~ \\_",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_what_comes_from_outside_as_text(name: str) -> None:
    """Names, also of the dataset, how it was judged, what a system is: in the sentence, the table and the notes."""

    class Named(Shelf):
        def __repr__(self) -> str:
            return name

    data = Dataset(name, TEXTS, {"q1": "one", "q2": "two"}, {"q1": {"a": 2}, "q2": {"b": 1}}, weak=name)
    pipelines = {name: RetrieveRerank(Named(LISTS), TableScorer(logits("abcdef")), fetch_k=3), f"{name}2": Shelf(LISTS)}
    text = evaluate(pipelines, data).to_markdown()
    found = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    kinds = {token.type for token in found} | {child.type for token in found for child in token.children or ()}
    parts = {"paragraph", "bullet_list", "list_item", "table", "thead", "tbody", "tr", "th", "td"}
    expected = {f"{part}_{end}" for part in parts for end in ("open", "close")}
    assert expected <= kinds <= expected | {"inline", "text", "text_special"}
    shown = "".join(child.content for token in found for child in token.children or ())
    assert shown.count(" ".join(name.split())) >= 6
    assert [token.type for token in found].count("tr_open") == 4


def test_html_is_well_formed_escaped_and_loads_nothing() -> None:
    data = dataset()
    found = evaluation(NASTY, data=Dataset(NASTY, data.passages, data.queries, data.judgements))
    page = Page(found._repr_html_())
    assert page.open == []
    assert set(page.tags) == {"div", "p", "strong", "table", "thead", "tr", "th", "tbody", "td", "ul", "li"}
    assert {name for name, _ in page.attributes} == {"style"}
    assert page.texts[0] == found.answer
    assert NASTY in page.texts
    assert (page.tags.count("tr"), page.tags.count("th")) == (3, 13)


def test_json_holds_everything_per_question(tmp_path: Path) -> None:
    found = evaluation("süß")
    found.to_json(tmp_path / "evaluation.json")
    content = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert content["answer"] == found.answer
    assert content["systems"][1]["name"] == "süß"
    assert content["systems"][1]["per_query"]["RR@10"] == {"q1": 1.0, "q2": 1.0}
    assert content["systems"][1]["run"]["q1"] == ["a", "c", "d"]
    assert content["comparisons"][0]["difference"] == found.comparisons[0].difference
    assert content["seed"] == 0
    assert content["machine"]["cores"] >= 1
    assert set(content["machine"]) >= {"ir-measures", "torch", "retrieve-rerank"}


def test_ir_measures_command_line_reads_the_files_and_agrees(tmp_path: Path) -> None:
    found = evaluation()
    for system, path in zip(found.systems, found.to_runs(tmp_path / "new" / "folder"), strict=True):
        command = [sys.executable, "-m", "ir_measures", str(path.parent / "qrels.txt"), str(path), *found.measures]
        printed = subprocess.run([*command, "-p", "-1"], capture_output=True, text=True, check=True).stdout
        values = dict(line.split("\t") for line in printed.splitlines())
        assert {name: float(value) for name, value in values.items()} == pytest.approx(dict(system.means), abs=1e-9)


def test_ids_with_white_space_survive_the_columns(tmp_path: Path) -> None:
    texts = {"my notes.txt": "x", "100%": "y", "a\u2003b\tc": "z", "my%20notes.txt": "w"}
    judgements = {"first question": {"my notes.txt": 1}, "q%": {"a\u2003b\tc": 2}}
    data = Dataset("odd", texts, {"first question": "one", "q%": "two"}, judgements)
    shelf = Shelf({"one": ["my%20notes.txt", "my notes.txt", "100%"], "two": ["100%", "a\u2003b\tc"]}, texts)
    found = evaluate({"shelf": shelf}, data)
    (path,) = found.to_runs(tmp_path)
    assert (tmp_path / "qrels.txt").read_text(encoding="utf-8").split("\n")[:2] == [
        "first%20question 0 my%20notes.txt 1",
        "q%25 0 a%E2%80%83b%09c 2",
    ]
    first = path.read_text(encoding="utf-8").split("\n")[:2]
    assert first == ["first%20question Q0 my%2520notes.txt 1 3 shelf", "first%20question Q0 my%20notes.txt 2 2 shelf"]
    command = [sys.executable, "-m", "ir_measures", str(tmp_path / "qrels.txt"), str(path), "RR@10"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "RR@10\t0.5000\n"


def test_run_files_have_safe_names_of_their_own(tmp_path: Path) -> None:
    names = ["../a b", "a/b", "A-B", "…", "."]
    found = evaluate({name: Shelf(LISTS) for name in names}, dataset())
    paths = found.to_runs(tmp_path)
    assert [path.name for path in paths] == ["a-b.run", "a-b-2.run", "A-B-3.run", "system.run", "system-2.run"]
    assert {path.parent for path in paths} == {tmp_path}
    assert len({path.name.casefold() for path in tmp_path.iterdir()}) == 6


def test_systems_with_one_description_share_a_line() -> None:
    shelf, scorer = Shelf(LISTS), TableScorer(logits("abcdef"))
    found = evaluate({name: RetrieveRerank(shelf, scorer, fetch_k=k) for name, k in (("a", 2), ("b", 3))}, dataset())
    assert "- first stage of a, first stage of b: Shelf()" in found.to_markdown()
    assert "TableScorer object" in found["a"].description


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0000004, "0 µs"), (0.00025, "250 µs"), (0.0123, "12.3 ms"), (1.234, "1.23 s")]
)
def test_seconds_are_readable(seconds: float, shown: str) -> None:
    assert shown_time(seconds) == shown


def test_an_estimated_latency_is_marked() -> None:
    shelf, scorer = Shelf(LISTS), TableScorer(logits("abcdef"))
    found = evaluate({name: RetrieveRerank(shelf, scorer, fetch_k=3) for name in ("a", "b")}, dataset())
    a, b = (line for line in found.to_markdown().split("\n") if line.startswith(("| a |", "| b |")))
    assert "≈" not in a
    assert "≈" in b


@pytest.mark.skipif(sys.platform == "win32", reason="limits are as POSIX has them")
@pytest.mark.parametrize("name", ["e.json", "e.html", "t.json", "t.html", "setting", "runs"])
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path, name: str) -> None:
    found = evaluate({"shelf": Shelf({"one": "abcdef", "two": "abcdef"})}, dataset())
    tuning = tune({"shelf": Shelf(LISTS)}, TableScorer(logits("abcdef")), dataset(), depths=[2])
    write: dict[str, Callable[[Path], object]] = {
        "e.json": found.to_json,
        "e.html": found.to_html,
        "t.json": tuning.to_json,
        "t.html": tuning.to_html,
        "setting": tuning.save,
        "runs": lambda path: found.to_runs(path.parent),
    }
    file = tmp_path / ("shelf.run" if name == "runs" else name)
    file.write_text("of last week")
    with small_disk(), pytest.raises(OSError, match=r"cannot write the .*too large"):
        write[name](file)
    assert file.read_text() == "of last week"
    write[name](file)
    assert len(file.read_text()) > 100


def test_records_are_plain_and_frozen() -> None:
    system = System("x", None, "x", 1, {"q": ("a",)}, {}, {}, {}, {"q": 0, "r": 1}, Latency(0.1, 0.2))
    assert (system.truncated_share, system.mean_unjudged) == (None, 0.5)
    with pytest.raises(AttributeError):
        system.name = "y"  # type: ignore[misc]


# Written as JSON and read back


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


UNREADABLE = "cannot be read as an evaluation"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("no json", UNREADABLE),
        ("[" * 100_000, UNREADABLE),
        ('{"format": 1, "systems": ' + "[" * 100_000, UNREADABLE),
        ('{"a":' * 50_000, UNREADABLE),
        ("[]", "format None, expected 1"),
        ("{}", "format None, expected 1"),
        ('{"format": 2}', "format 2, expected 1.*write it anew with Evaluation.to_json"),
        ('{"format": 1}', "is no evaluation: it has no systems"),
        ('{"format": 1, "systems": []}', "is not a whole evaluation: dataset: Field required"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_another_file_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "file.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidInputError, match=rf"file\.json .*{said}"):
        Evaluation.from_json(file)


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
