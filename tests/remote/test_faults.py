"""What goes wrong between us and a server ends as an error that says so, or is tried again; never in wrong numbers."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from retrieve_rerank import (
    BiEncoder,
    CrossEncoder,
    DegradedWarning,
    Hit,
    InvalidInputError,
    RemoteError,
    RetrieveRerank,
)
from retrieve_rerank.models import connection
from retrieve_rerank.testing import ListRetriever, TableScorer
from tests.inference_server import InferenceServer, inference_server

TABLE = {"low": -2.0, "high": 3.0, "middle": 0.0}
TEXTS = list(TABLE)
LOGITS = [-2.0, 3.0, 0.0]
FORMS = ["tei", "infinity", "vllm"]


@pytest.fixture(params=FORMS)
def server(request: pytest.FixtureRequest) -> Iterator[InferenceServer]:
    with inference_server(request.param, scorer=TableScorer(TABLE)) as running:
        yield running


@pytest.fixture
def model(server: InferenceServer) -> Iterator[CrossEncoder]:
    """A cross-encoder that has found out already whom it talks to."""
    with CrossEncoder(endpoint=server.url, server_scores="logits", timeout=0.5) as made:
        assert made.precision in ("float16", "unknown")
        yield made


@pytest.fixture
def tei() -> Iterator[InferenceServer]:
    with inference_server("tei", scorer=TableScorer(TABLE)) as running:
        yield running


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", ["reset", "cut off", "half of the JSON", "429", "429 0", "502", "503", "504"])
def test_what_passes_is_tried_again(server: InferenceServer, model: CrossEncoder, fault: str) -> None:
    server.faults = [fault, fault]
    assert model.score("q", TEXTS).tolist() == LOGITS
    assert not server.faults


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("reset", "/rerank failed (ReadError"),
        ("cut off", "/rerank failed (RemoteProtocolError: peer closed connection"),
        ("half of the JSON", "/rerank answered something that is no JSON, or only a part of it"),
        ("429", "/rerank answered 429 (told to answer 429)"),
        ("503", "/rerank answered 503 (told to answer 503)"),
    ],
)
def test_what_stays_is_an_error_in_the_end(tei: InferenceServer, fault: str, told: str) -> None:
    tei.broken = fault
    with CrossEncoder(endpoint=tei.url) as model, pytest.raises(RemoteError) as caught:
        model.score("q", TEXTS)
    assert told in str(caught.value)
    assert "5 times. " in str(caught.value)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("status", ["400", "401", "403", "404", "424", "500", "501"])
def test_what_will_not_pass_is_asked_once(server: InferenceServer, model: CrossEncoder, status: str) -> None:
    server.faults = [status]
    with pytest.raises(RemoteError, match=f"answered {status}: told to answer {status}"):
        model.score("q", TEXTS)
    assert not server.asked
    assert model.score("q", TEXTS).tolist() == LOGITS  # and the next call is not the worse for it


def test_a_server_that_is_not_there(quick: None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with CrossEncoder(endpoint=address) as model, pytest.raises(RemoteError, match=r"5 times\. Is the server running"):
        model.score("q", TEXTS)
    with BiEncoder(endpoint=address) as encoder, pytest.raises(RemoteError, match=r"5 times\. Is the server running"):
        encoder.encode_queries(["q"])


def test_a_slow_server_is_not_asked_again(server: InferenceServer, model: CrossEncoder) -> None:
    server.faults = ["slow"]
    begin = time.monotonic()
    with pytest.raises(RemoteError, match=r"gave no answer within 0\.5 s. Raise timeout"):
        model.score("q", TEXTS)
    assert 0.4 < time.monotonic() - begin < 0.95
    assert model.score("q", TEXTS).tolist() == LOGITS


def test_retry_after_is_respected_unless_it_is_long(
    server: InferenceServer, model: CrossEncoder, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(connection.asyncio, "sleep", sleep)
    server.faults = ["429 7", "503 Wed, 21 Oct 2015 07:28:00 GMT"]
    assert model.score("q", TEXTS).tolist() == LOGITS
    assert slept == [7.0, 0.01]
    server.faults = ["429 3600"]
    with pytest.raises(RemoteError, match="It asks to come back in 3600 s"):
        model.score("q", TEXTS)


@pytest.mark.parametrize(
    "fault",
    [
        *("too few", "too many", "twice the same index", "index out of range", "negative index", "index is text"),
        *("no index", "nan", "null", "text for a number"),
    ],
)
def test_an_answer_that_does_not_fit_is_never_guessed_at(
    server: InferenceServer, model: CrossEncoder, fault: str
) -> None:
    server.faults = [fault]
    with pytest.raises(RemoteError, match="Nothing of it is used"):
        model.score("q", TEXTS)
    assert len(server.asked) == 1


def test_scores_go_by_index_whatever_their_order(server: InferenceServer, model: CrossEncoder) -> None:
    server.broken = "reversed"
    assert model.score("q", TEXTS).tolist() == LOGITS
    assert [hit.passage.text for hit in model.rank("q", TEXTS)] == ["high", "middle", "low"]


@pytest.mark.parametrize("form", ["tei", "infinity", "openai"])
@pytest.mark.parametrize("fault", ["too few", "too many", "twice the same index", "nan", "reversed"])
def test_vectors_that_do_not_fit(form: str, fault: str) -> None:
    if form == "tei" and fault in ("twice the same index", "reversed"):
        return  # its answer is a bare list of vectors
    protocol: Any = "openai" if form == "openai" else None
    with (
        inference_server(form, task="embed") as running,
        BiEncoder("some/model", endpoint=running.url, protocol=protocol, metric="dot") as encoder,
    ):
        expected = encoder.encode_documents(["ab", "c", "a"])
        running.faults = [fault]
        if fault == "reversed":
            np.testing.assert_array_equal(encoder.encode_documents(["ab", "c", "a"]), expected)
        else:
            with pytest.raises(RemoteError, match="Nothing of it is used"):
                encoder.encode_documents(["ab", "c", "a"])


def test_a_failing_server_costs_the_re_ranking_and_nothing_else(tei: InferenceServer, quick: None) -> None:
    with CrossEncoder(endpoint=tei.url) as model:
        search = RetrieveRerank(ListRetriever(TEXTS), model, on_error="retrieval_order")
        tei.broken = "503"
        with pytest.warns(DegradedWarning, match="re-ranking failed: RemoteError: .*answered 503"):
            result = search.search("q")
        assert [hit.passage.text for hit in result] == TEXTS
        tei.broken = ""
        assert [hit.passage.text for hit in search.search("q")] == ["high", "middle", "low"]


def test_a_key_is_told_to_the_server_only(tei: InferenceServer, quick: None) -> None:
    key = "key-that-is-secret"
    tei.key = key
    with CrossEncoder(endpoint=tei.url, api_key=key) as model:
        assert model.score("q", TEXTS).tolist() == LOGITS
        assert {headers["authorization"] for headers in tei.headers} == {f"Bearer {key}"}
        told: list[str] = [repr(model), str(model.settings), str(model.fingerprint), model.redacted(f"a {key}")]
        for fault in ("500", "503", "reset"):
            tei.broken = fault  # the body repeats the headers that it got
            with pytest.raises(RemoteError) as caught:
                model.score("q", TEXTS)
            told.append(str(caught.value))
        assert key not in " ".join(told)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"endpoint": "localhost:8080"}, "endpoint must be a URL such as"),
        ({"endpoint": "http://me:secret-1@host"}, "has a user or a password in it"),
        ({"endpoint": "http://host/?key=secret-1"}, "no \\?query"),
        ({"endpoint": "http://host", "api_key": "secret-1\nX: y"}, "api_key must be a string of ASCII"),
        ({"endpoint": "http://host", "protocol": "grpc"}, "protocol must be 'tei', 'infinity', 'vllm' or 'openai'"),
        ({"endpoint": "http://host", "timeout": 0}, "timeout must be a number of seconds"),
        ({"endpoint": "http://host", "max_concurrency": 0}, "max_concurrency must be >= 1"),
        ({"endpoint": "http://host", "device": "cpu", "precision": "float32"}, "device cannot be given together"),
        ({"endpoint": "http://host", "prompt": "x"}, "prompt cannot be given together with endpoint"),
        ({"endpoint": "http://host", "long_passages": "windows"}, "needs the model's tokenizer"),
        ({"endpoint": "http://host", "server_scores": "stars"}, "server_scores must be 'logits' or"),
        ({"api_key": "secret-1"}, "for a server only; give endpoint, too"),
        ({"server_scores": "logits"}, "for a server only; give endpoint, too"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInputError, match=match) as caught:
        CrossEncoder(**given)
    assert "secret-1" not in str(caught.value)


def test_a_metric_is_a_servers() -> None:
    with pytest.raises(InvalidInputError, match="give endpoint, too"):
        BiEncoder("some/model", metric="dot")


def test_the_time_budget_holds_and_the_first_come_first(tei: InferenceServer) -> None:
    texts = [f"text {number}" for number in range(200)]
    tei.scorer = TableScorer({text: float(number) for number, text in enumerate(texts)})
    tei.seconds = 0.1
    with CrossEncoder(endpoint=tei.url, max_concurrency=1) as model:
        begin = time.monotonic()
        hits = model.rank("q", texts, time_budget=0.45)
        assert time.monotonic() - begin < 0.8
        scored = [hit.passage.text for hit in hits if hit.logit is not None]
        assert 8 <= len(scored) <= 40
        assert sorted(scored) == sorted(texts[: len(scored)])
        assert [hit.passage.text for hit in hits[len(scored) :]] == texts[len(scored) :]
        tei.seconds = 0.0
        assert model.rank("q", texts)[0].passage.text == texts[-1]


def test_a_budget_counts_a_server_that_does_not_answer() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with CrossEncoder(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}") as model:
            begin = time.monotonic()
            [hit] = model.rank("q", ["a"], time_budget=0.2)
            assert time.monotonic() - begin < 1
            assert hit.logit is None
        assert time.monotonic() - begin < 2  # nor does closing wait for it


def test_a_cancelled_call_drops_its_requests(tei: InferenceServer) -> None:
    texts = [f"text {number}" for number in range(320)]
    tei.scorer = TableScorer(dict.fromkeys(texts, 1.0))
    with CrossEncoder(endpoint=tei.url, max_concurrency=2) as model:
        assert model.precision == "float16"
        tei.seconds = 0.1

        async def cancel() -> None:
            call = asyncio.ensure_future(model.arank("q", texts))
            await asyncio.sleep(0.15)
            call.cancel()
            await asyncio.wait([call])

        asyncio.run(cancel())
        asked = len(tei.asked)
        assert asked < 6
        time.sleep(0.3)
        assert len(tei.asked) <= asked + 2  # what was under way, and no more
        tei.seconds = 0.0
        assert len(model.rank("q", texts)) == 320


def test_requests_are_bounded_for_all_callers_together(tei: InferenceServer) -> None:
    texts = [f"text {number}" for number in range(64)]
    tei.scorer = TableScorer(dict.fromkeys(texts, 1.0))
    tei.items = 4
    with CrossEncoder(endpoint=tei.url, max_concurrency=3) as model:
        assert model.precision == "float16"
        tei.seconds = 0.01

        async def many() -> None:
            await asyncio.gather(*(model.arank("q", texts) for _ in range(3)))

        calls: list[Callable[[], object]] = [lambda: asyncio.run(many()), lambda: model.rank("q", texts)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda call: call(), calls * 2))
        assert 2 <= tei.most <= 3
        assert len(tei.asked) == 8 * 16


async def test_a_server_that_is_down_is_not_asked_again_for_each_of_many_queries() -> None:
    """Three seconds of tries a query, one after another."""

    class Many(ListRetriever):
        def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
            return [self.retrieve(query, k) for query in queries]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = CrossEncoder("some/model", endpoint=f"http://127.0.0.1:{port}")
    search = RetrieveRerank(Many(["low", "high"]), model, on_error="retrieval_order")
    start = time.perf_counter()
    with pytest.warns(DegradedWarning, match="re-ranking failed"):
        search.search("q")
    once = time.perf_counter() - start
    start = time.perf_counter()
    with pytest.warns(DegradedWarning, match="re-ranking failed"):
        found = [*search.search_many([f"q{n}" for n in range(20)]), *await search.asearch_many(["a", "b", "c"])]
    assert time.perf_counter() - start < 3 * once + 1
    assert [len(result) for result in found] == [2] * 23
    assert all(result.degraded for result in found)
    model.close()
