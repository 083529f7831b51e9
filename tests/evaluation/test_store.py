"""Scores that outlive the process: read once, kept apart, never mixed up."""

from __future__ import annotations

import sqlite3
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank import CrossEncoder, InvalidInputError, RetrieveRerank
from retrieve_rerank.evaluation import Dataset, Evaluation, evaluate
from retrieve_rerank.evaluation import store as store_module
from retrieve_rerank.evaluation.store import Score, key_of, open_store
from tests.core.stubs import TableScorer
from tests.evaluation.stubs import TEXTS, Shelf, dataset, logits

LISTS = {"one": "cad", "two": "efb"}


class Named(TableScorer):
    def __init__(self, table: Mapping[str, float], name: str = "named") -> None:
        super().__init__(table)
        self.fingerprint = {"weights": name}


def run(scorer: Any, cache: Path | None, fetch_k: int = 3) -> Evaluation:
    return evaluate({"search": RetrieveRerank(Shelf(LISTS), scorer, fetch_k=fetch_k)}, dataset(), cache=cache)


def test_a_second_evaluation_reads_nothing_and_finds_the_same(tmp_path: Path) -> None:
    cache = tmp_path / "scores.sqlite"
    first, second = Named(logits("fbdcae")), Named({})
    before, after = run(first, cache), run(second, cache)
    assert second.asked == []
    assert after["search"].run == before["search"].run == run(Named(logits("fbdcae")), None)["search"].run
    assert after["search"].means == before["search"].means
    assert after["search"].pairs == before["search"].pairs
    assert (before["search"].rerank.estimated, after["search"].rerank.estimated) == (False, True)
    assert after["search"].rerank.p50 == pytest.approx(before["search"].rerank.p50)
    deeper = Named(logits("fbdcae"))
    run(deeper, cache, fetch_k=1)
    assert deeper.asked == []
    wider = Named(logits("abcdef"))
    evaluate({"wider": RetrieveRerank(Shelf({"one": "cae", "two": "efb"}), wider)}, dataset(), cache=cache)
    assert wider.asked == [("one", [TEXTS["e"]])]  # only what is new


def test_what_was_read_before_a_failure_is_kept(tmp_path: Path) -> None:
    class Breaks(Named):
        def score(self, query: str, texts: Sequence[str]) -> Any:
            if query == "two":
                raise RuntimeError("out of memory")
            return super().score(query, texts)

    cache = tmp_path / "scores.sqlite"
    with pytest.raises(RuntimeError, match="out of memory"):
        run(Breaks(logits("abcdef")), cache)
    again = Named(logits("abcdef"))
    run(again, cache)
    assert [query for query, _ in again.asked] == ["two"]


def test_scores_of_different_models_are_kept_apart_whatever_the_order_of_a_fingerprint(tmp_path: Path) -> None:
    cache = tmp_path / "scores.sqlite"
    run(Named(logits("abcdef"), "one"), cache)
    assert run(Named(logits("fedcba"), "another"), cache)["search"].run["q1"] == ("d", "c", "a")
    assert run(Named({}, "one"), cache)["search"].run["q1"] == ("a", "c", "d")
    one, other = Named({}), Named({})
    one.fingerprint, other.fingerprint = {"a": "1", "b": "2"}, {"b": "2", "a": "1"}
    assert key_of("x", one, "logits") == key_of("x", other, "logits")


def test_a_model_says_what_its_scores_depend_on(tmp_path: Path, tiny_cross_encoder: Path) -> None:
    def fingerprint(**options: Any) -> dict[str, object]:
        with CrossEncoder(tiny_cross_encoder, **{"precision": "float32", **options}) as model:
            return model.fingerprint

    plain = fingerprint()
    assert plain == fingerprint()
    assert {**plain, "weights": ""} == {
        "weights": "", "precision": "float32", "backend": "torch", "max_length": 64, "prompt": "", "max_windows": 0
    }  # fmt: skip
    others = ({"precision": "bfloat16"}, {"max_length": 32}, {"prompt": "find: "}, {"long_passages": "windows"})
    assert all(fingerprint(**options) != plain for options in others)


def test_truncation_is_remembered_with_a_real_model(tmp_path: Path, tiny_cross_encoder: Path) -> None:
    texts = {"a": "bread " * 100, "b": "rome"}
    data = Dataset("long", texts, {"q1": "one"}, {"q1": {"a": 1}})
    found = []
    for _ in range(2):
        with CrossEncoder(tiny_cross_encoder) as model:
            search = RetrieveRerank(Shelf({"one": "ab"}, texts), model)
            found.append(evaluate({"search": search}, data, cache=tmp_path / "scores.sqlite")["search"])
    assert [system.truncated for system in found] == [1, 1]
    assert found[0].run == found[1].run


def test_queries_and_texts_are_told_apart(tmp_path: Path) -> None:
    with open_store(tmp_path / "scores.sqlite") as store:
        store.put("model", "ab", {"c": Score(1.0, False, 0.1)})
        assert store.get("model", "a", ["bc"]) == {}
        assert store.get("modela", "b", ["c"]) == {}
        store.put("model", "ab", {"c": Score(float("inf"), True, 0.2), "ä\u2028": Score(-3.5, False, 0.0)})
        assert store.get("model", "ab", ["x", "ä\u2028", "c"]) == {
            "ä\u2028": Score(-3.5, False, 0.0),
            "c": Score(float("inf"), True, 0.2),
        }


def test_a_scorer_that_does_not_say_which_it_is_is_refused_before_any_search(tmp_path: Path) -> None:
    shelf = Shelf(LISTS)
    with pytest.raises(InvalidInputError, match="TableScorer of 'search' has no `fingerprint`"):
        evaluate({"search": RetrieveRerank(shelf, TableScorer({}))}, dataset(), cache=tmp_path / "scores.sqlite")
    assert shelf.asked == []


def test_files_of_something_else_are_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, and long enough to be read as the header of one" * 20)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE notes (note TEXT)")
    connection.close()
    for path, says in (
        (text, "not a database"),
        (other, "something else"),
        (tmp_path / "no" / "folder", "unable to open"),
    ):
        with pytest.raises(InvalidInputError, match=f"{path.name}' cannot be used: .*{says}"):
            run(Named(logits("abcdef")), path)
    assert text.read_text().startswith("not a database")
    with sqlite3.connect(other) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("notes",)]
    connection.close()


def test_scores_on_another_scale_are_not_mixed(tmp_path: Path) -> None:
    """Probabilities kept as if they were logits, and then read as what they are: 0.6 must not pass for a logit."""
    texts = {"a": "aa", "b": "bb", "c": "cc"}
    data = Dataset("scales", texts, {"q1": "one"}, {"q1": {"c": 1}})
    scorer = Named({"aa": 0.6, "bb": 0.7, "cc": 0.99})
    for fetch_k, scores in ((2, "logits"), (3, "probabilities")):
        search = RetrieveRerank(Shelf({"one": "abc"}, texts), scorer, fetch_k=fetch_k, scores=scores)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = evaluate({"search": search}, data, ("RR@10",), fetch_k=fetch_k, cache=tmp_path / "scores.sqlite")
    assert found["search"].means["RR@10"] == 1.0
    assert [query for query, _ in scorer.asked] == ["one", "one"]
    assert scorer.asked[1][1] == ["aa", "bb", "cc"]


def test_two_processes_make_one_file(tmp_path: Path) -> None:
    """One is between the table and the format when the other opens the file."""
    path = tmp_path / "scores.sqlite"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:

        def score() -> dict[str, Score]:
            with open_store(path) as store:
                store.put("x", "q", {"t": Score(1.0, False, 0.5)})
                return store.get("x", "q", ["t"])

        waiting = pool.submit(score)
        time.sleep(0.2)
        other.execute(store_module._TABLE)
        other.execute("PRAGMA user_version = 1")
        other.execute("COMMIT")
        assert waiting.result() == {"t": Score(1.0, False, 0.5)}
    other.close()


def test_loading_the_model_is_no_part_of_what_a_pair_takes(
    tiny_cross_encoder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from retrieve_rerank.models import loading

    real = loading.load_cross_encoder

    def slow(*arguments: Any) -> Any:
        time.sleep(2)
        return real(*arguments)

    monkeypatch.setattr(loading, "load_cross_encoder", slow)
    with CrossEncoder(tiny_cross_encoder) as model:
        run(model, tmp_path / "scores.sqlite")
    scores = sqlite3.connect(tmp_path / "scores.sqlite")
    ((longest,),) = scores.execute("SELECT max(seconds) FROM scores").fetchall()
    scores.close()
    assert longest < 0.5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("ALTER TABLE scores RENAME COLUMN logit TO score", "no such column: logit"),
        ("CREATE TRIGGER no BEFORE INSERT ON scores BEGIN SELECT RAISE(ABORT, 'full'); END", "full"),
    ],
)
def test_a_file_that_breaks_while_it_is_used_is_named(tmp_path: Path, change: str, says: str) -> None:
    cache = tmp_path / "bad.sqlite"
    with open_store(cache):
        pass
    other = sqlite3.connect(cache)
    other.execute(change)
    other.close()
    with pytest.raises(InvalidInputError, match=rf"cache='.*bad\.sqlite' cannot be used: {says}; give another path"):
        run(Named(logits("abcdef")), cache)


@pytest.mark.parametrize("value", ["'high'", "x'00'"])
@pytest.mark.parametrize("column", ["logit", "seconds"])
def test_scores_that_are_no_numbers_are_refused(tmp_path: Path, column: str, value: str) -> None:
    cache = tmp_path / "bad.sqlite"
    run(Named(logits("abcdef")), cache)
    with closing(sqlite3.connect(cache)) as other, other:
        other.execute(f"UPDATE scores SET {column} = {value}")
    with pytest.raises(InvalidInputError, match=r"bad\.sqlite' cannot be used: it holds scores that are no numbers"):
        run(Named(logits("abcdef")), cache)
