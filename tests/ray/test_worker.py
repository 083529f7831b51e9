"""A batch that kills its worker is given up and named; whatever a sink raises is told, not raised."""

from __future__ import annotations

import pytest

from retrieve_rerank import AddReport, ModelError, Passage

pytest.importorskip("ray.data")

import ray

from retrieve_rerank.ray.outcome import Outcome
from retrieve_rerank.ray.sources import to_table
from retrieve_rerank.ray.worker import Attempts, Storing

pytestmark = pytest.mark.usefixtures("cluster")

TABLE = to_table([Passage("1", "a"), Passage("2", "b")])


class Sink:
    def store(self, passages: list[Passage]) -> AddReport:
        return AddReport(added=len(passages))


def outcome(worker: Storing) -> Outcome:
    return Outcome.from_json(worker(TABLE)["outcome"][0].as_py())[0]


def test_a_batch_whose_worker_was_lost_five_times_is_given_up() -> None:
    attempts = ray.remote(Attempts).options(num_cpus=0).remote()
    batches: list[bytes] = []

    class Dying(Sink):
        def store(self, passages: list[Passage]) -> AddReport:
            raise KeyboardInterrupt  # as little of it is seen again as of a process that was killed

    class Losing:
        """Loses what says that a batch is done, as the death of a process does."""

        begin = attempts.begin

        class end:
            @staticmethod
            def remote(batch: bytes) -> None:
                batches.append(batch)

    worker = Storing(Dying, Losing)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            worker(TABLE)
    given_up = outcome(worker)
    assert list(given_up.failures) == ["1", "2"]
    assert "lost 5 times" in given_up.failures["1"]
    assert len(set(batches)) == 1


def test_a_batch_that_was_done_may_come_again() -> None:
    attempts = ray.remote(Attempts).options(num_cpus=0).remote()
    worker = Storing(Sink, attempts)
    assert [outcome(worker).report.added for _ in range(7)] == [2] * 7


def test_a_sink_that_cannot_be_opened_is_an_error_of_all() -> None:
    def make() -> Sink:
        raise ModelError("no such model")

    fault = outcome(Storing(make, None)).fault
    assert fault is not None
    with pytest.raises(ModelError, match="no such model"):
        raise fault.error()
