"""The pool of workers: how many, what each may use, and Ray's errors in our words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError

from retrieve_rerank.checks import check_count
from retrieve_rerank.errors import InvalidInputError, RetrieveRerankError, in_one_line
from retrieve_rerank.ray.outcome import Fault
from retrieve_rerank.types import Encoder

_MANY = 10_000  # workers on a node


@dataclass(frozen=True, slots=True)
class Pool:
    """How many workers, and what each may use. None: as many as there is room for, one CPU each."""

    concurrency: int | tuple[int, int] | None = None
    num_cpus: float | None = None
    num_gpus: float = 0.0

    def sized(self, spare: float = 1.0) -> tuple[int, int, float]:
        """Return the least and the most workers, and the CPUs of each.

        Args:
            spare: CPUs that the workers must leave for others.

        Raises:
            InvalidInputError: If the least workers leave less: Ray would wait for ever.
        """
        if not ray.is_initialized():
            ray.init()
        cluster: Any = ray.cluster_resources  # untyped in Ray
        there: dict[str, float] = cluster()
        total = there.get("CPU", 0.0)
        free = max(0.0, total - spare)
        cpus = self.num_cpus if self.num_cpus is not None else min(1.0, free)
        if isinstance(self.concurrency, tuple):
            least, most = (check_count(number, "concurrency") for number in self.concurrency)
        elif self.concurrency is not None:
            least, most = 1, check_count(self.concurrency, "concurrency")
        else:
            fit = there.get("GPU", 0.0) / self.num_gpus if self.num_gpus else free / cpus if cpus else 1.0
            least, most = 1, max(1, int(fit))
        if least > most:
            raise InvalidInputError(f"concurrency must be (least, most), got {self.concurrency!r}")
        gpus = there.get("GPU", 0.0)
        if least * self.num_gpus > gpus:
            raise InvalidInputError(
                f"{least} workers of {self.num_gpus:g} GPUs are more than the {gpus:g} that the cluster has: give less "
                "concurrency or a smaller num_gpus"
            )
        if least * cpus > free:
            raise InvalidInputError(
                f"{least} workers of {cpus:g} CPUs are more than the {free:g} of the cluster's {total:g} that are free"
                f"{' when one is kept to read the passages with' if spare else ''}: give less concurrency or a smaller "
                "num_cpus"
            )
        return least, most, cpus

    def places(self, cpus: float) -> int:
        """Return how many workers of so many CPUs the cluster's nodes have room for; at least one."""
        nodes: Any = ray.nodes  # untyped in Ray
        rooms = [
            min(
                node["Resources"].get("CPU", 0.0) / cpus if cpus else math.inf,
                node["Resources"].get("GPU", 0.0) / self.num_gpus if self.num_gpus else math.inf,
            )
            for node in nodes()
            if node["Alive"]
        ]
        room = sum(math.floor(min(each, _MANY)) for each in rooms)
        return max(1, room)

    def over(self, dataset: ray.data.Dataset, worker: type, arguments: Sequence[object], size: int) -> ray.data.Dataset:
        """Return what workers make of the dataset's batches, each a task of its own: what a lost worker costs.

        Ray starts a lost worker again, and its task, as often as it takes.
        """
        least, most, cpus = self.sized()
        mapped: ray.data.Dataset = dataset.repartition(target_num_rows_per_block=size).map_batches(
            worker,
            fn_constructor_args=tuple(arguments),
            batch_size=size,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
            num_cpus=cpus,
            num_gpus=self.num_gpus,
        )
        return mapped


def encoder_of(encoder: Encoder | Callable[[], Encoder]) -> Encoder:
    """Return an encoder, made by the factory if it is one."""
    if hasattr(encoder, "encode_documents"):
        return cast("Encoder", encoder)
    return encoder()


def check_travels(thing: object, what: str) -> None:
    """Raise InvalidInputError if `thing` cannot be sent to a worker."""
    try:
        dumps: Any = ray.cloudpickle.dumps  # untyped in Ray
        dumps(thing)
    except Exception as error:  # whatever a class raises that cannot be pickled
        raise InvalidInputError(
            f"{what} cannot be sent to the workers: {in_one_line(error)}. Give a function that makes it there"
        ) from error


def blocks(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    """Yield the blocks of a dataset as they are done.

    Raises:
        RetrieveRerankError: If Ray fails.
    """
    dataset.context.enable_progress_bars = False
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except RayError as error:
        raise translated(error) from error


def translated(error: RayError) -> RetrieveRerankError:
    """Return an error of Ray's as ours, where it says which of ours it was made of, and in one line."""
    # Ray writes down the traceback of the other process; what was raised there last is what caused this.
    if ours := re.findall(r"^retrieve_rerank\.errors\.(\w+): (.*)$", str(error), re.MULTILINE):
        return Fault(*ours[-1]).error()
    return RetrieveRerankError(f"Ray failed: {in_one_line(error)}")
