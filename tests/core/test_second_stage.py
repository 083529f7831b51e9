"""The second stage of one search: what it does when the model fails, or the time is up."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank import CrossEncoder, DegradedWarning, Hit, InvalidInputError, Passage, RetrieveRerank
from retrieve_rerank.models.calibration import sigmoid
from retrieve_rerank.models.ranking import as_ranker
from retrieve_rerank.retrieval.rerank import SecondStage
from tests.core.stubs import ListRetriever, SlowRetriever, TableScorer, found

TEXTS = ["a", "b", "c", "d"]
TABLE = {"a": -1.0, "b": 2.0, "c": 0.0, "d": 3.0}


class Failing:
    """Raises what it is given."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def score(self, query: str, texts: Sequence[str]) -> Any:
        raise self.error


def stage(scorer: Any = None, **options: Any) -> SecondStage:
    return SecondStage(as_ranker(TableScorer(TABLE) if scorer is None else scorer), **options)


def search(scorer: Any, **options: Any) -> RetrieveRerank:
    return RetrieveRerank(ListRetriever(TEXTS), scorer, **options)


def names(hits: Sequence[Hit]) -> str:
    return "".join(hit.passage.text for hit in hits)


def test_all_are_ranked_and_counted_and_then_cut() -> None:
    result = stage(top_n=2, score_threshold=0.9).run("q", found(TEXTS))
    assert names(result.hits) == "d"
    assert result.facts() == {
        "model": "TableScorer",
        "precision": None,
        "candidates": 4,
        "scored": 4,
        "truncated": 0,
        "seconds": result.seconds,
        "degraded": None,
    }
    assert result.seconds >= 0


def test_the_first_stages_order_is_marked_and_warned_of_once() -> None:
    degraded = stage(Failing(ValueError("broken\nbadly")), top_n=3, score_threshold=0.99, on_error="retrieval_order")
    candidates = found(TEXTS)
    for run in (degraded.run, lambda *given: asyncio.run(degraded.arun(*given))):
        with pytest.warns(
            DegradedWarning, match="re-ranking failed: ValueError: broken badly; the result is"
        ) as warned:
            result = run("q", candidates)
        assert len(warned) == 1
        assert names(result.hits) == "abc"  # no threshold: there are no scores to compare with it
        assert [(hit.rank, hit.retrieval_rank, hit.score, hit.retrieval_score, hit.logit) for hit in result.hits] == [
            (rank, rank, hit.retrieval_score, hit.retrieval_score, None) for rank, hit in enumerate(candidates[:3], 1)
        ]
        assert (result.degraded, result.scored, result.candidates) == (
            "re-ranking failed: ValueError: broken badly",
            0,
            4,
        )
    assert candidates == found(TEXTS)


def test_a_hit_without_a_retrieval_score_has_none_at_all() -> None:
    old = Hit(Passage("1", "a"), rank=7, score=0.5, logit=0.0, window=(0, 1), truncated=True)
    with pytest.warns(DegradedWarning):
        result = stage(Failing(ValueError()), on_error="retrieval_order").run("q", [old])
    hit = result.hits[0]
    assert math.isnan(hit.score)
    assert (hit.rank, hit.logit, hit.window, hit.truncated) == (1, None, None, False)
    assert result.degraded == "re-ranking failed: ValueError"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
async def test_what_is_no_error_passes(error: type[BaseException]) -> None:
    degraded = stage(Failing(error()), on_error="retrieval_order")
    with pytest.raises(error):
        degraded.run("q", found(TEXTS))


async def test_a_cancelled_call_ends_as_cancelled() -> None:
    class Slow:
        async def ascore(self, query: str, texts: Sequence[str]) -> Any:
            await asyncio.sleep(30)

        def score(self, query: str, texts: Sequence[str]) -> Any:
            time.sleep(0.3)
            return [TABLE[text] for text in texts]

    degraded = stage(Slow(), on_error="retrieval_order")
    task = asyncio.create_task(degraded.arun("q", found(TEXTS)))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(degraded.run("q", found(TEXTS)).hits) == "dbca"


@pytest.mark.parametrize("on_error", ["raise", "retrieval_order"])
async def test_bad_arguments_raise_in_both_modes(on_error: Any) -> None:
    checked = stage(on_error=on_error)
    for query in ("", "  ", None, 3):
        with pytest.raises(InvalidInputError, match="query"):
            checked.run(query, found(TEXTS))  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="query"):
            await checked.arun(query, found(TEXTS))  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="query"):
            search(TableScorer(TABLE), on_error=on_error).search(query)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"candidates\[1\] is a str"):
        checked.run("q", [found(TEXTS)[0], "b"])  # type: ignore[list-item]
    with pytest.raises(InvalidInputError, match="top_n"):
        search(TableScorer(TABLE), on_error=on_error).search("q", top_n=0)


def test_a_query_too_long_for_the_model_is_a_failure_of_that_search_alone(tiny_cross_encoder: Path) -> None:
    model, long = CrossEncoder(tiny_cross_encoder), "france " * 600
    with pytest.raises(InvalidInputError, match="shorten the query"):
        search(model).search(long)
    degraded = search(model, on_error="retrieval_order")
    with pytest.warns(DegradedWarning, match="shorten the query"):
        result = degraded.search(long)
    assert names(result) == "abcd"
    assert "shorten the query" in (result.degraded or "")
    with pytest.warns(DegradedWarning) as warned:
        together = stage(model, on_error="retrieval_order").run_many(
            ["france", long], [found(TEXTS), found(TEXTS)], spent=0.0
        )
    assert [done.scored for done in together] == [4, 0]
    assert len(warned) == 1


def test_the_reason_shows_no_secret() -> None:
    error = ConnectionError("http://me:hunter2@host/\nAuthorization: ApiKey c2VjcmV0")
    with pytest.warns(DegradedWarning) as warned:
        result = search(Failing(error), on_error="retrieval_order").search("q")
    expected = "re-ranking failed: ConnectionError: http://***@host/ Authorization: ***"
    assert result.degraded == expected
    assert str(warned[0].message).startswith(expected)


def test_the_tokens_of_the_model_and_of_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "environment marker")
    model = CrossEncoder("some/model", token="marker-of-mine")

    def load(*checkpoint: object) -> Any:
        raise RuntimeError("hub said no to marker-of-mine and environment marker\nand more\nand more" + " x" * 400)

    monkeypatch.setattr(model, "_load", load)
    with pytest.warns(DegradedWarning) as warned:
        result = search(model, on_error="retrieval_order").search("q")
    for text in (str(warned[0].message), result.degraded or "", repr(result)):
        assert "marker" not in text
        assert "\n" not in text
        assert "hub said no to *** and *** and more" in text
    assert len(result.degraded or "") < 350


# Time


async def test_nothing_left_of_the_budget_is_the_first_stages_order_without_a_warning() -> None:
    scorer = TableScorer(TABLE)
    late = stage(scorer, time_budget=0.2, top_n=3, score_threshold=0.99)
    for result in (late.run("q", found(TEXTS), spent=0.2), await late.arun("q", found(TEXTS), spent=5)):
        assert names(result.hits) == "abc"
        assert result.degraded == "time budget of 0.2 s: 0 of 4 candidates scored"
    assert scorer.asked == []
    assert late.run("q", [], spent=5).degraded is None


def test_the_budget_is_for_the_whole_search() -> None:
    scorer = TableScorer(TABLE)
    slow = RetrieveRerank(SlowRetriever(TEXTS, 0.25), scorer, time_budget=0.2)
    result = slow.search("q")
    assert (names(result), result.degraded) == ("abcd", "time budget of 0.2 s: 0 of 4 candidates scored")
    assert scorer.asked == []
    enough = slow.search("q", time_budget=20)
    assert (names(enough), enough.degraded) == ("dbca", None)
    assert slow.search_many(["q"])[0].degraded == result.degraded


def test_what_was_not_scored_follows_and_stays_above_any_threshold() -> None:
    texts = [f"t{number}" for number in range(40)]

    class Slowing(TableScorer):
        def score(self, query: str, texts: Sequence[str]) -> Any:
            if len(self.asked) == 1:
                time.sleep(1)
            return super().score(query, texts)

    scorer = Slowing({text: number / 10 - 1 for number, text in enumerate(texts)})
    run = stage(scorer, time_budget=0.5, score_threshold=0.5, top_n=10).run("q", found(texts))
    scored = run.scored
    assert 0 < scored < 40
    assert run.degraded == f"time budget of 0.5 s: {scored} of 40 candidates scored"
    kept = [number for number in reversed(range(scored)) if sigmoid(number / 10 - 1) >= 0.5]
    assert names(run.hits) == "".join([f"t{number}" for number in [*kept, *range(scored, 40)]][:10])
    assert [hit.rank for hit in run.hits] == list(range(1, 11))
    assert [hit.logit is None for hit in run.hits] == [False] * len(kept) + [True] * (10 - len(kept))


def test_options_of_a_call_go_before_the_pipelines() -> None:
    pipeline = search(TableScorer(TABLE), top_n=1, score_threshold=0.99)
    assert names(pipeline.search("q", top_n=3, score_threshold=0.0)) == "dbc"
    assert names(pipeline.search("q")) == ""


# Copies


def test_the_pipeline_and_its_results_can_be_pickled() -> None:
    original = search(
        TableScorer(TABLE), fetch_k=3, top_n=2, time_budget=5, on_error="retrieval_order", scores="logits"
    )
    expected = original.search("q")
    for copied in (pickle.loads(pickle.dumps(original)), copy.deepcopy(original)):
        assert (copied.fetch_k, copied.top_n, copied.time_budget, copied.on_error) == (3, 2, 5, "retrieval_order")
        assert copied.search("q").hits == expected.hits
    restored = pickle.loads(pickle.dumps(expected))
    assert (restored.hits, restored.candidates, restored.timings) == (
        expected.hits,
        expected.candidates,
        expected.timings,
    )


def test_a_warning_names_the_line_of_the_caller() -> None:
    degraded = search(Failing(ValueError()), on_error="retrieval_order")
    with pytest.warns(DegradedWarning) as warned:
        degraded.search("q")
    assert warned[0].filename == __file__


# One passage found twice


async def test_candidates_of_one_id_and_text_are_one() -> None:
    """A first stage that asks several questions finds a passage once for each of them."""

    def hit(name: str, text: str, rank: int | None, score: float | None = None) -> Hit:
        return Hit(Passage(name, text), 1, 0.5, retrieval_rank=rank, retrieval_score=score)

    given = [
        hit("1", "a", 3, 0.3),
        hit("2", "d", None),
        hit("1", "a", 1, 0.9),  # the best of them is kept, in the place of the first
        hit("1", "b", 2),  # another text of that id is another passage, as is another id of that text
        hit("3", "d", 5),
        hit("2", "d", 4),
        hit("1", "a", 1, 0.2),
    ]
    scorer = TableScorer(TABLE)
    for merging in (
        stage(scorer),
        stage(scorer, time_budget=30),
        stage(Failing(ValueError()), on_error="retrieval_order"),
    ):
        failing = merging.on_error != "raise"
        with pytest.warns(DegradedWarning) if failing else contextlib.nullcontext():
            runs = [
                merging.run("q", given),
                await merging.arun("q", given),
                *merging.run_many(["q"], [given], spent=0.0),
            ]
        for run in runs:
            assert run.candidates == 4
            found = {hit.passage.id + hit.passage.text: (hit.index, hit.retrieval_rank) for hit in run.hits}
            assert found == {"1a": (2, 1), "2d": (5, 4), "1b": (3, 2), "3d": (4, 5)}
            assert names(run.hits) == ("adbd" if failing else "ddba")
    assert scorer.asked[0] == ("q", ["a", "d", "b"])
