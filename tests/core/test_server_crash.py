"""Chroma's server killed while passages are written and searched; and many processes that write to one."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from retrieve_rerank import ChromaIndex, Passage
from retrieve_rerank.indexes.nearest import Vectors
from retrieve_rerank.types import Metric
from tests.chroma_server import ChromaServer, close

# More of each, for a longer look: how often the server is killed, passages, writing processes.
KILLS = int(os.environ.get("SERVER_KILLS", "2"))
PASSAGES = int(os.environ.get("SERVER_PASSAGES", "3000"))
WRITERS = [int(count) for count in os.environ.get("SERVER_WRITERS", "2").split(",")]
DOWN = 0.5  # seconds

# In each process, rows of its own and rows that all of them write.
WRITER = """
import sys, chromadb
from retrieve_rerank import ChromaIndex, Passage
from tests.core.test_server_crash import Numbers
port, number, count = map(int, sys.argv[1:])
client = chromadb.HttpClient("127.0.0.1", port)
with ChromaIndex(Numbers(), "written", client=client) as index:
    index.add([Passage(f"{number}-{row}", str(number * count + row)) for row in range(count)], batch_size=50)
    index.add([Passage(f"shared-{row}", str(-row - 1), {"row": row}) for row in range(count)], batch_size=50)
"""


class Numbers:
    """Gives every number a direction of its own, at no cost."""

    dimension = 16
    metric: Metric = "cosine"
    fingerprint: ClassVar[dict[str, str]] = {"model": "numbers"}

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        rows = [np.random.default_rng(abs(int(text)) * 2 + (int(text) < 0)).standard_normal(16) for text in texts]
        vectors = np.asarray(rows, np.float32).reshape(-1, 16)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    encode_queries = encode_documents


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChromaServer]:
    with ChromaServer(tmp_path / "server") as server:
        yield server


def check(index: ChromaIndex, expected: dict[str, str]) -> None:
    """Everything is stored once, and what is found is what is stored: each passage is nearest to itself."""
    assert {record.id: record.text for record in index.collection.read()} == expected
    assert index.count() == len(expected)
    texts = list(dict.fromkeys(expected.values()))
    found = index.retrieve_many(texts, k=1)
    missed = [text for text, hits in zip(texts, found, strict=True) if not hits or hits[0].passage.text != text]
    assert not missed, f"{len(missed)} of {len(texts)} passages are not found, such as {missed[:3]}"


def killing(server: ChromaServer, done: threading.Event, pause: Callable[[], float]) -> int:
    """Kill the server and start it again, until it was killed often enough."""
    kills = 0
    while kills < KILLS and not done.wait(pause()):
        server.kill()
        time.sleep(DOWN)
        server.start()
        kills += 1
    return kills


def test_a_server_killed_while_passages_are_added(server: ChromaServer) -> None:
    client, done = server.client(), threading.Event()
    index = ChromaIndex(Numbers(), "killed", client=client)
    expected = {f"p{number}": str(number) for number in range(PASSAGES)}
    rng = np.random.default_rng(1)
    with ThreadPoolExecutor(1) as pool:
        killer = pool.submit(killing, server, done, lambda: float(rng.uniform(0.05, 0.4)))
        rounds, reports = 0, []
        while rounds == 0 or not killer.done():  # the same passages under new ids, until there were enough kills
            wanted = [Passage(id_ if rounds == 0 else f"{id_}/{rounds}", text) for id_, text in expected.items()]
            reports.append(index.add(wanted, batch_size=100))
            rounds += 1
        assert killer.result() == KILLS
    assert [report.added for report in reports] == [PASSAGES] * rounds
    again = {f"{id_}/{round_}": text for round_ in range(1, rounds) for id_, text in expected.items()}
    check(index, expected | again)
    close(client)


async def test_a_server_killed_while_it_is_searched(server: ChromaServer) -> None:
    client, done = server.client(), threading.Event()
    index = ChromaIndex(Numbers(), "searched", client=client)
    texts = [str(number) for number in range(300)]
    index.add([Passage(text, text) for text in texts])
    answered = [0, 0]

    async def side_by_side() -> None:
        while not done.is_set():
            part = texts[answered[0] % 300 : answered[0] % 300 + 10]
            found = await asyncio.gather(*(index.aretrieve(text, k=3) for text in part))
            assert [hits[0].passage.id for hits in found] == part
            answered[0] += len(part)

    def one_by_one() -> None:
        while not done.is_set():
            text = texts[answered[1] % 300]
            assert index.retrieve(text, k=3)[0].passage.id == text
            answered[1] += 1

    try:
        searches = asyncio.gather(side_by_side(), asyncio.to_thread(one_by_one))
        kills = await asyncio.to_thread(killing, server, done, lambda: 0.3)
    finally:
        before = list(answered)
        await asyncio.sleep(0.5)
        done.set()
    await searches
    assert kills == KILLS
    assert answered[0] > before[0]
    check(index, {text: text for text in texts})
    close(client)


def test_what_a_killed_server_confirmed_is_there_without_another_write(server: ChromaServer) -> None:
    client = server.client()
    index = ChromaIndex(Numbers(), "confirmed", client=client)
    expected = {}
    for round_ in range(KILLS):
        wanted = {f"{round_}-{number}": str(round_ * 1_700 + number) for number in range(1_700)}
        index.add([Passage(id_, text) for id_, text in wanted.items()], batch_size=100)
        expected |= wanted
        server.kill()  # no sooner confirmed than killed
        server.start()
        check(index, expected)
    close(client)


@pytest.mark.parametrize("writers", WRITERS)
def test_many_processes_write_to_one_server(server: ChromaServer, writers: int) -> None:
    count = 400
    arguments = [[str(server.port), str(number), str(count)] for number in range(writers)]
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, *words], cwd=Path(__file__).parents[2]) for words in arguments
    ]
    assert [process.wait(300) for process in processes] == [0] * writers
    own = {f"{number}-{row}": str(number * count + row) for number in range(writers) for row in range(count)}
    client = server.client()
    check(
        ChromaIndex(Numbers(), "written", client=client), own | {f"shared-{row}": str(-row - 1) for row in range(count)}
    )
    close(client)
