"""A Chroma server that fails for a while, refuses, or is slow: what becomes of writes, searches and secrets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import pickle
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import chromadb
import numpy as np
import pytest

from retrieve_rerank import ChromaIndex, Passage
from retrieve_rerank.errors import InvalidInputError, RemoteError, RetrieveRerankError
from retrieve_rerank.indexes import chroma_server as server_module
from retrieve_rerank.indexes.chroma_server import Patient
from retrieve_rerank.testing import EncoderEmbedding
from tests.chroma_server import ChromaServer, close, free_port
from tests.core.stubs import LetterEncoder, passages
from tests.flaky_server import Fault, FlakyServer, flaky_server

TOKEN = "s3cret-t0ken"
FOR_NOW = [
    Fault("", 502, "<html>bad gateway</html>"),
    Fault("", 503),
    Fault("", 504),
    Fault("", 429, '{"error": "RateLimitError", "message": "slow down"}', {"Retry-After": "0.2"}),
    Fault(""),
    Fault("", passed_on=True),
    Fault("", cut=True),
    Fault("", 200, "<html>sign in</html>"),
]


@pytest.fixture
def flaky(chroma_server: ChromaServer) -> Iterator[FlakyServer]:
    with flaky_server(chroma_server.port) as flaky:
        yield flaky


@pytest.fixture
def opened(flaky: FlakyServer) -> Iterator[Callable[..., ChromaIndex]]:
    """Opens an index behind the flaky server; every one has a collection of its own, unless named."""
    clients = []

    def open_(name: str | None = None, **options: Any) -> ChromaIndex:
        clients.append(chromadb.HttpClient("127.0.0.1", flaky.port, headers={"Authorization": f"Bearer {TOKEN}"}))
        options = {"retry_seconds": 20.0, **options}
        return ChromaIndex(LetterEncoder(), name or f"c-{uuid.uuid4().hex}", client=clients[-1], **options)

    yield open_
    for client in clients:
        close(client)


def at(path: str, fault: Fault) -> Fault:
    return replace(fault, path=path)


def held(index: ChromaIndex) -> dict[str, str]:
    return {record.id: record.text for record in index.collection.read()}


# Failures for a while


def test_a_write_that_fails_for_a_while_is_written_once(opened: Callable[..., ChromaIndex], flaky: FlakyServer) -> None:
    index = opened()
    for number, fault in enumerate(FOR_NOW):
        flaky.faults = [at("/upsert", fault)]
        assert index.add([Passage(str(number), "a" * number + "b")]).added == 1
        assert flaky.faults == []
        assert flaky.count("/upsert") == 2 * (number + 1)
    assert held(index) == {str(number): "a" * number + "b" for number in range(len(FOR_NOW))}
    assert [hit.passage.id for hit in index.retrieve("b", k=1)] == ["0"]


def test_reading_deleting_and_counting_are_tried_again(opened: Callable[..., ChromaIndex], flaky: FlakyServer) -> None:
    index = opened()
    index.add(passages("aa", "ab", "cc"))
    for path in ("/get", "/count", "/query", "/delete"):
        flaky.faults += [Fault(path, 503), Fault(path, passed_on=True)]
    assert [passage.text for passage in index.get(["1"])] == ["ab"]
    assert index.count() == 3
    assert index.retrieve("cc", k=1)[0].passage.id == "2"
    index.delete(["0", "1"])
    assert flaky.faults == []
    assert held(index) == {"2": "cc"}


async def test_async_searches_are_tried_again(opened: Callable[..., ChromaIndex], flaky: FlakyServer) -> None:
    index = opened()
    index.add(passages("aa", "ab", "cc"))
    for fault in FOR_NOW:
        flaky.faults = [at("/query", fault)]
        assert (await index.aretrieve("cc", k=1))[0].passage.id == "2"
        assert flaky.faults == []


def test_a_collection_whose_making_was_not_confirmed_is_found(
    opened: Callable[..., ChromaIndex], flaky: FlakyServer
) -> None:
    flaky.faults = [Fault("/collections", passed_on=True)]
    index = opened()
    assert flaky.faults == []
    index.add(passages("aa"))
    assert opened(index.collection.name).count() == 1


def test_many_who_make_one_collection_at_once_share_it(opened: Callable[..., ChromaIndex]) -> None:
    name = f"c-{uuid.uuid4().hex}"

    def write(number: int) -> None:
        opened(name).add([Passage(f"{number}-{row}", "ab") for row in range(20)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert opened(name).count() == 160


# Failures that stay


def test_a_server_that_stays_away_is_named_with_what_was_tried(opened: Callable[..., ChromaIndex]) -> None:
    index = opened(retry_seconds=0.8)
    index.collection.client._server._api_url = f"http://127.0.0.1:{free_port()}/api/v2"  # type: ignore[attr-defined]
    start = time.monotonic()
    with pytest.raises(RemoteError, match=r"127.0.0.1:\d+ does not answer: tried .* in \d+ s, .*refused") as caught:
        index.count()
    assert 0.7 < time.monotonic() - start < 5
    assert TOKEN not in str(caught.value)


async def test_no_seconds_ask_once(opened: Callable[..., ChromaIndex], flaky: FlakyServer) -> None:
    index = opened(retry_seconds=0)
    index.add(passages("aa"))
    flaky.faults = [Fault("/query", 503)]
    with pytest.raises(RemoteError, match="tried once, the last time status 503"):
        index.retrieve("aa")
    flaky.faults = [Fault("/query", 503)]
    with pytest.raises(RemoteError, match="tried once, the last time status 503"):
        await index.aretrieve("aa")
    assert flaky.count("/query") == 2


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "3", True])
def test_the_seconds_must_be_some(opened: Callable[..., ChromaIndex], seconds: Any) -> None:
    with pytest.raises(InvalidInputError, match="retry_seconds must be a number of seconds"):
        opened(retry_seconds=seconds)


def test_a_server_that_wants_longer_is_believed(opened: Callable[..., ChromaIndex], flaky: FlakyServer) -> None:
    index = opened()
    flaky.faults = [Fault("/count", 429, headers={"Retry-After": "600"})]
    with pytest.raises(RemoteError, match="asks to wait 600 s"):
        index.count()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, '{"error": "AuthError", "message": "who are you"}', "refuses the credentials: who are you"),
        (403, "", "refuses the credentials .status 403"),
        (400, f"<p>no, {TOKEN}, not so</p>", r"failed: status 400: <p>no, \*\*\*, not so"),
        (404, "not a Chroma", "failed: status 404: not a Chroma"),
        (500, '{"error": "InternalError", "message": "disk full"}', "Chroma failed: disk full"),
    ],
)
def test_a_request_that_is_refused_is_not_made_again(
    opened: Callable[..., ChromaIndex], flaky: FlakyServer, status: int, body: str, said: str
) -> None:
    index = opened()
    flaky.faults, before = [Fault("/count", status, body)], flaky.count("/count")
    with pytest.raises(RetrieveRerankError, match=said) as caught:
        index.count()
    assert flaky.count("/count") == before + 1
    assert TOKEN not in str(caught.value)


def test_a_collection_that_somebody_deleted_is_gone_at_once(
    opened: Callable[..., ChromaIndex], chroma_client: Any
) -> None:
    index = opened()
    chroma_client.delete_collection(index.collection.name)
    start = time.monotonic()
    with pytest.raises(RetrieveRerankError, match="gone, deleted by someone else"):
        index.retrieve("aa")
    assert time.monotonic() - start < 5


# Limits of the server


def test_more_than_a_server_takes_at_once_is_sent_in_parts(
    opened: Callable[..., ChromaIndex], flaky: FlakyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = opened()
    monkeypatch.setattr(server_module, "_LARGEST", 20_000)
    wanted = [Passage(str(number), f"{number} " + "a" * 3_000) for number in range(40)]
    assert index.add(wanted).added == 40
    assert flaky.count("/upsert") >= 8
    assert held(index) == {passage.id: passage.text for passage in wanted}
    found = index.retrieve_many(["a" * 3_000 + "b" * number for number in range(12)], k=3)
    assert [len(hits) for hits in found] == [3] * 12


def test_a_server_that_says_too_large_gets_halves(opened: Callable[..., ChromaIndex], flaky: FlakyServer) -> None:
    index = opened()
    quota = '{"error": "QuotaError", "message": "no more than 2 records"}'
    flaky.faults = [Fault("/upsert", 413, "Payload too large"), Fault("/upsert", 422, quota)]
    index.add(passages("aa", "ab", "cc", "dd"))
    assert flaky.count("/upsert") == 1 + 1 + 2 + 1
    assert held(index) == {"0": "aa", "1": "ab", "2": "cc", "3": "dd"}
    before = flaky.count("/query")
    flaky.faults = [Fault("/query", 413)]
    assert [hits[0].passage.id for hits in index.retrieve_many(["aa", "cc"], k=1)] == ["0", "2"]
    assert flaky.count("/query") == before + 3


def test_a_passage_that_is_too_large_is_named(opened: Callable[..., ChromaIndex], flaky: FlakyServer) -> None:
    index = opened()
    flaky.faults = [Fault("/upsert", 413, "Payload too large")] * 2
    with pytest.raises(InvalidInputError, match="does not take the passage '0': status 413: Payload too large"):
        index.add(passages("aa", "ab"))


def test_the_batch_is_the_servers(opened: Callable[..., ChromaIndex], flaky: FlakyServer) -> None:
    flaky.faults = [Fault("/pre-flight-checks", 200, '{"max_batch_size": 7, "supports_base64_encoding": true}')]
    index = opened()
    assert index.collection.max_batch == 7
    index.add([Passage(str(number), "ab") for number in range(20)])
    assert flaky.count("/upsert") == 3


# Side by side


async def test_searches_overlap_and_the_event_loop_runs(opened: Callable[..., ChromaIndex], flaky: FlakyServer) -> None:
    index = opened()
    index.add(passages("aa", "ab", "cc"))
    await index.aretrieve("aa")
    flaky.slow = ("/query", 0.4)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.02)
            ticks += 1

    ticking = asyncio.create_task(tick())
    start = time.monotonic()
    found = await asyncio.gather(*(index.aretrieve("cc", k=1) for _ in range(32)))
    seconds = time.monotonic() - start
    ticking.cancel()
    assert {hits[0].passage.id for hits in found} == {"2"}
    assert seconds < 32 * 0.4 / 4
    assert ticks >= 5


async def test_a_cancelled_search_harms_no_other(opened: Callable[..., ChromaIndex], flaky: FlakyServer) -> None:
    index = opened()
    index.add(passages("aa", "ab"))
    flaky.slow = ("/query", 0.3)
    cancelled = asyncio.create_task(index.aretrieve("aa"))
    other = asyncio.create_task(index.aretrieve("ab", k=1))
    await asyncio.sleep(0.1)
    cancelled.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await cancelled
    assert (await other)[0].passage.id == "1"


# Clients and their secrets


async def test_an_async_client_serves_both_kinds_of_calls(flaky: FlakyServer) -> None:
    client = await chromadb.AsyncHttpClient("127.0.0.1", flaky.port, headers={"Authorization": f"Bearer {TOKEN}"})
    index = ChromaIndex(LetterEncoder(), f"c-{uuid.uuid4().hex}", client=client)  # type: ignore[arg-type]
    await client._server._cleanup()  # type: ignore[attr-defined]
    flaky.asked.clear()
    await asyncio.to_thread(index.add, passages("aa", "ab"))
    assert (await index.aretrieve("ab", k=1))[0].passage.id == "1"
    assert {headers.get("authorization") for _, _, headers in flaky.asked} == {f"Bearer {TOKEN}"}
    with pytest.raises(InvalidInputError, match=r"coroutine.*await it"):
        ChromaIndex(LetterEncoder(), client=chromadb.AsyncHttpClient("127.0.0.1", flaky.port))  # type: ignore[arg-type]


def test_a_short_header_leaves_a_message_readable(flaky: FlakyServer) -> None:
    """Each "e" of it was replaced."""
    headers = {"X-Tenant": "e", "X-Api-Key": "c3", "Authorization": f"Basic {TOKEN}"}
    client = chromadb.HttpClient("127.0.0.1", flaky.port, headers=headers)
    said = Patient(client, 0.0)._hide(f"Connection refused, key c3, {TOKEN}")
    assert said == "Connection refused, key ***, ***"
    close(client)


async def test_two_servers_in_one_event_loop_get_their_own_headers(flaky: FlakyServer) -> None:
    """With Chroma's own async client the second one sends the first one's token."""
    indexes = []
    for token in ("first", "second"):
        client = chromadb.HttpClient("127.0.0.1", flaky.port, headers={"X-Chroma-Token": token})
        indexes.append((token, ChromaIndex(LetterEncoder(), f"c-{uuid.uuid4().hex}", client=client), client))
    for token, index, client in indexes:
        index.add(passages("aa"))
        flaky.asked.clear()
        await index.aretrieve("aa")
        assert {headers["x-chroma-token"] for _, _, headers in flaky.asked} == {token}
        close(client)


def test_a_cloud_client_sends_its_key_tenant_and_database(flaky: FlakyServer, chroma_client: Any) -> None:
    tenant = f"t-{uuid.uuid4().hex}"
    chroma_client._admin_client.create_tenant(tenant)
    chroma_client._admin_client.create_database("books", tenant)
    # A local server knows nobody, and would say that everybody belongs to the default tenant.
    identity = json.dumps({"user_id": "me", "tenant": tenant, "databases": ["books"]})
    flaky.faults = [Fault("/auth/identity", 200, identity)]
    client = chromadb.CloudClient(
        tenant, "books", TOKEN, cloud_host="127.0.0.1", cloud_port=flaky.port, enable_ssl=False
    )
    index = ChromaIndex(LetterEncoder(), client=client)
    index.add(passages("aa", "ab"))
    assert asyncio.run(index.aretrieve("ab", k=1))[0].passage.id == "1"
    assert {headers["x-chroma-token"] for _, _, headers in flaky.asked} == {TOKEN}
    collection = f"/api/v2/tenants/{tenant}/databases/books/collections"
    assert all(collection in path for _, path, _ in flaky.asked if path.endswith(("/upsert", "/get", "/query")))
    close(client)


def test_a_secret_is_nowhere_to_be_seen(
    opened: Callable[..., ChromaIndex], flaky: FlakyServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        index = opened(retry_seconds=0.3)
        index.add(passages("aa"))
        flaky.faults = [Fault("/count", 502, f"token {TOKEN}")] * 20
        with pytest.raises(RemoteError) as caught:
            index.count()
        flaky.faults = []
    for shown in (repr(index), str(index.collection), repr(vars(index.collection)), str(caught.value)):
        assert TOKEN not in shown
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("retrieve_rerank")]
    assert not any(TOKEN in line for line in ours)
    with pytest.raises(InvalidInputError, match="cannot be pickled"):
        pickle.dumps(index)


def test_the_frameworks_stores_keep_the_secret(flaky: FlakyServer) -> None:
    from langchain_core.load import dumpd

    from retrieve_rerank.langchain import ChromaRetriever, ChromaVectorStore
    from retrieve_rerank.llama_index import ChromaRetriever as LlamaIndexRetriever
    from retrieve_rerank.llama_index import ChromaVectorStore as LlamaIndexStore
    from retrieve_rerank.testing import EncoderEmbeddings

    client = chromadb.HttpClient("127.0.0.1", flaky.port, headers={"Authorization": f"Bearer {TOKEN}"})
    store = ChromaVectorStore(f"c-{uuid.uuid4().hex}", EncoderEmbeddings(LetterEncoder()), client=client)
    other = LlamaIndexStore(collection_name=f"c-{uuid.uuid4().hex}", client=client)
    retriever = LlamaIndexRetriever(other, EncoderEmbedding(LetterEncoder()))
    shown = [repr(store), repr(other), str(dumpd(ChromaRetriever(vectorstore=store))), str(other.model_dump())]
    assert not [text for text in (*shown, repr(retriever)) if TOKEN in text]
    close(client)


def test_vectors_survive_the_way_to_the_server_and_back(opened: Callable[..., ChromaIndex]) -> None:
    index = opened()
    index.add(passages("aab", "c"))
    stored = index.collection.vectors(["0"])["0"]
    assert np.array_equal(stored, LetterEncoder().encode_documents(["aab"])[0])
