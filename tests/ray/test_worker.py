"""A batch that kills its worker is given up and named; whatever a sink raises is told, not raised."""

from __future__ import annotations

import json
from typing import Any

import pytest

from retrieve_rerank import AddReport, Passage, RemoteError

pytest.importorskip("ray.data")

import pyarrow as pa
import ray

from retrieve_rerank.ray.encoding import to_table
from retrieve_rerank.ray.indexing import _Attempts, _key, _Worker

pytestmark = pytest.mark.usefixtures("cluster")

TABLE = to_table([Passage("1", "a"), Passage("2", "b")])


@pytest.fixture
def attempts() -> Any:
    return ray.remote(_Attempts).options(num_cpus=0).remote()


class Sink:
    def __call__(self, passages: list[Passage]) -> AddReport:
        return AddReport(added=len(passages))


def outcome(worker: _Worker, table: pa.Table = TABLE) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(worker(table)["outcome"][0].as_py())
    return found


def test_a_batch_whose_worker_was_lost_five_times_is_given_up(attempts: Any) -> None:
    batches: list[bytes] = []

    class Dying(Sink):
        def __call__(self, passages: list[Passage]) -> AddReport:
            raise KeyboardInterrupt  # as little of it is seen again as of a process that was killed

    class Losing:
        """Loses what says that a batch is done, as the death of a process does."""

        begin = attempts.begin

        class end:
            @staticmethod
            def remote(batch: bytes) -> None:
                batches.append(batch)

    worker = _Worker(Dying, Losing)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            worker(TABLE)
    given_up = outcome(worker)
    assert list(given_up["failures"]) == ["1", "2"]
    assert "lost 5 times" in given_up["failures"]["1"]
    assert len(set(batches)) == 1


def test_a_batch_that_was_done_may_come_again(attempts: Any) -> None:
    worker = _Worker(Sink, attempts)
    assert [outcome(worker)["report"]["added"] for _ in range(7)] == [2] * 7


def test_a_batch_that_loading_the_model_kills_the_worker_at_is_given_up(attempts: Any) -> None:
    """Else Ray would start workers for it for ever."""

    def make() -> Sink:
        raise KeyboardInterrupt

    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            _Worker(make, attempts)(TABLE)
    assert list(outcome(_Worker(make, attempts))["failures"]) == ["1", "2"]


def test_one_that_fails_keeps_out_no_other(attempts: Any) -> None:
    stored: list[str] = []
    calls = 0

    class Picky(Sink):
        def __call__(self, passages: list[Passage]) -> AddReport:
            nonlocal calls
            calls += 1
            bad = {passage.id for passage in passages} & {"77", "300"}
            if bad:
                raise RuntimeError(f"cannot encode {sorted(bad)[0]}")
            stored.extend(passage.id for passage in passages)
            return super().__call__(passages)

    table = to_table(Passage(str(number), "text") for number in range(500))
    done = outcome(_Worker(Picky, attempts), table)
    assert done["failures"] == {number: f"RuntimeError: cannot encode {number}" for number in ("77", "300")}
    assert done["report"]["added"] == 498
    assert sorted(stored, key=int) == [str(number) for number in range(500) if number not in (77, 300)]
    assert calls < 50


@pytest.mark.parametrize(("error", "most"), [(RemoteError("away"), 1), (RuntimeError("all fail"), 30)])
def test_where_all_fail_it_does_not_go_on_for_long(attempts: Any, error: Exception, most: int) -> None:
    calls = 0

    class Failing(Sink):
        def __call__(self, passages: list[Passage]) -> AddReport:
            nonlocal calls
            calls += 1
            raise error

    table = to_table(Passage(str(number), "text") for number in range(500))
    done = outcome(_Worker(Failing, attempts), table)
    assert len(done["failures"]) == 500
    assert calls <= most


def test_an_id_that_a_batch_has_twice_is_told(attempts: Any) -> None:
    """Its rows may come from two files, in either order: only the driver finds out which is the last."""
    table = to_table([Passage("1", "new"), Passage("2", "b"), Passage("1", "old")])
    keys = _Worker(Sink, attempts)(table)["keys"][0].as_py()
    assert [keys[start : start + 8] for start in (0, 8, 16)] == [_key("1"), _key("2"), _key("1")]
