"""What each kind of server is asked, what is made of its answers, and what it is asked when a text is too long."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import ssl
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from retrieve_rerank import (
    BiEncoder,
    CrossEncoder,
    InvalidInputError,
    ModelError,
    RemoteError,
    TruncationWarning,
)
from retrieve_rerank.models.connection import Connection, RefusedError
from retrieve_rerank.models.server import find_server
from retrieve_rerank.models.settings import Endpoint
from retrieve_rerank.testing import LetterEncoder, TableScorer
from tests.core.stubs import letters, run_python
from tests.inference_server import Refusal, inference_server

TABLE = {"low": -2.0, "high": 3.0, "middle": 0.0, "sure": 30.0}
TEXTS = list(TABLE)
LONG = "word " * 30 + "end"


class Unit(LetterEncoder):
    """The letters, as vectors of length 1."""

    def _encode(self, texts: Any) -> Any:
        vectors = super()._encode(texts)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# Scores


@pytest.mark.parametrize(
    ("form", "scale"),
    [
        *((form, "logits") for form in ("tei", "infinity", "vllm", "identity")),
        ("openai", "probabilities"),
    ],
)
def test_logits_come_out_whatever_comes_in(form: str, scale: str) -> None:
    with inference_server(form, scorer=TableScorer(TABLE)) as server:
        settings: dict[str, Any] = {"protocol": "openai"} if form == "openai" else {}
        with CrossEncoder("some/model", endpoint=server.url, **settings) as model:
            scores = model.score("q", TEXTS)
            np.testing.assert_allclose(scores[:3], [-2.0, 3.0, 0.0], atol=1e-5)
            # A sigmoid in float32 has reached 1 by 30: the best that can be said is that it is far up.
            assert scores[3] == 30.0 if scale == "logits" else scores[3] > 16
            assert f"gives {scale}" in repr(model)


def test_scores_that_may_not_be_what_was_asked_for_are_told_of_once() -> None:
    """Old versions of vLLM pass every score through a sigmoid, whatever they are asked."""
    with (
        inference_server("old vllm", scorer=TableScorer(TABLE)) as server,
        CrossEncoder(endpoint=server.url) as model,
    ):
        with pytest.warns(UserWarning, match=r"lies in \[0, 1\].*give server_scores='probabilities'"):
            model.score("q", TEXTS)
        np.testing.assert_allclose(model.score("q", TEXTS)[2], 0.5)


def test_what_the_scores_are_can_be_said() -> None:
    with (
        inference_server("old vllm", scorer=TableScorer(TABLE)) as server,
        CrossEncoder(endpoint=server.url, server_scores="probabilities") as model,
        CrossEncoder(endpoint=server.url, server_scores="logits") as plain,
    ):
        np.testing.assert_allclose(model.score("q", ["high"]), [3.0], atol=1e-5)
        assert len(server.asked) == 1  # nothing was tried out
        np.testing.assert_allclose(plain.score("q", ["middle"]), [0.5])
        assert model.settings["server_scores"] == "probabilities"
        assert model.fingerprint != plain.fingerprint  # or a cache of scores would take one for the other


def test_probabilities_outside_of_their_range_are_refused() -> None:
    with (
        inference_server("infinity", scorer=TableScorer(TABLE)) as server,
        CrossEncoder(endpoint=server.url, server_scores="probabilities") as model,
        pytest.raises(RemoteError, match="gave the score -2, where its scores were taken for probabilities"),
    ):
        model.score("q", ["low", "middle"])


# Which model


def test_the_model_is_the_one_that_was_asked_for() -> None:
    names = ["BAAI/bge-reranker-base", "other/reranker"]
    with inference_server("vllm", scorer=TableScorer(TABLE), models=names) as server:
        for name in ("other/reranker", "reranker", "folder/other/reranker"):
            with CrossEncoder(name, endpoint=server.url) as model:
                assert model.fingerprint["model"] == "other/reranker"
        for name in (None, "unknown/reranker-base", "er-base"):
            given = () if name is None else (name,)
            refused = pytest.raises(ModelError, match="serves 'BAAI/bge-reranker-base', 'other/reranker', and")
            with CrossEncoder(*given, endpoint=server.url) as model, refused:
                model.score("q", TEXTS)
    refused = pytest.raises(ModelError, match="serves 'some/model', and model='other/model' was asked for")
    with inference_server("tei") as server, CrossEncoder("other/model", endpoint=server.url) as model, refused:
        model.score("q", TEXTS)


@pytest.mark.parametrize("form", ["tei", "infinity"])
def test_a_model_of_the_other_kind_is_refused(form: str) -> None:
    refused = pytest.raises(ModelError, match="expected a bi-encoder")
    with inference_server(form) as server, BiEncoder(endpoint=server.url) as encoder, refused:
        encoder.encode_queries(["q"])
    refused = pytest.raises(ModelError, match="expected a cross-encoder")
    with inference_server(form, task="embed") as server, CrossEncoder(endpoint=server.url) as model, refused:
        model.score("q", TEXTS)


def test_a_servers_tokens_are_not_counted_with_another_model() -> None:
    with inference_server("tei", task="embed") as server, BiEncoder(endpoint=server.url) as encoder:
        with pytest.raises(InvalidInputError, match="count with a BiEncoder of the same model and without endpoint"):
            encoder.count_tokens(["a"])
        assert server.asked == []


@pytest.mark.parametrize("form", ["openai", "page"])  # the latter answers everything with a page
def test_a_web_site_is_no_inference_server(form: str) -> None:
    refused = pytest.raises(RemoteError, match="answers neither /info as Text Embeddings Inference nor /models")
    with inference_server(form) as server, CrossEncoder(endpoint=server.url) as model, refused:
        model.score("q", TEXTS)


def test_an_error_of_a_server_can_be_pickled() -> None:
    with (
        inference_server("tei", broken="500") as server,
        CrossEncoder(endpoint=server.url) as model,
        pytest.raises(RemoteError) as caught,
    ):
        model.score("q", TEXTS)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_server_that_was_not_there_is_asked_anew(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    with inference_server("tei", scorer=TableScorer(TABLE)) as server, CrossEncoder(endpoint=server.url) as model:
        get = server.get
        server.get = lambda path: "not yet"  # type: ignore[method-assign]
        with pytest.raises(RemoteError):
            model.score("q", TEXTS)
        server.get = get  # type: ignore[method-assign]
        assert model.score("q", ["high"]).tolist() == [3.0]
        assert model.loaded_precision == "float16"


# How much at once


@pytest.mark.parametrize(("form", "told"), [("tei", True), ("infinity", False), ("vllm", False)])
def test_requests_are_as_large_as_the_server_takes(form: str, told: bool) -> None:
    texts = [f"text {number}" for number in range(40)]
    table = {text: float(number) for number, text in enumerate(texts)}
    with (
        inference_server(form, scorer=TableScorer(table), items=5) as server,
        CrossEncoder(endpoint=server.url, server_scores="logits") as model,
    ):
        assert model.score("q", texts).tolist() == list(table.values())
        sizes = [len(body.get("texts") or body["documents"]) for _, body in server.asked]
        assert (max(sizes) <= 5) == told
        server.asked.clear()
        assert model.score("q", texts).tolist() == list(table.values())
        assert [len(body.get("texts") or body["documents"]) for _, body in server.asked] == [5] * 8  # learnt


def test_nothing_to_do_asks_nothing() -> None:
    with inference_server("tei") as server, CrossEncoder(endpoint=server.url) as model:
        assert model.score("q", []).shape == (0,)
        assert model.rank("q", []) == []
        assert model.rank_many(["q", "r"], [[], []]) == [[], []]
        assert not server.headers


def test_a_text_may_be_empty() -> None:
    """Text Embeddings Inference refuses such, and with it all others of the request."""
    with inference_server("tei", task="embed") as server, BiEncoder(endpoint=server.url) as model:
        found = model.encode_documents(["abba", "", "cab"])
        assert len(found) == 3
        assert np.array_equal(found[[0, 2]], model.encode_documents(["abba", "cab"]))


# Too long


@pytest.mark.parametrize("form", ["tei", "vllm"])
def test_what_a_server_cut_is_known(form: str) -> None:
    texts = ["high", LONG, "low", f"{LONG} again", *(f"text {number}" for number in range(40))]
    cut = {f"{'word ' * 16}".strip(): 1.5}
    scorer = TableScorer(dict.fromkeys(texts, 2.5) | cut)
    with inference_server(form, scorer=scorer, words=20) as server, CrossEncoder(endpoint=server.url) as model:
        with pytest.warns(TruncationWarning, match="2 of 44 passages were too long for"):
            hits = model.rank("q", texts)
        assert {hit.passage.text for hit in hits if hit.truncated} == {LONG, f"{LONG} again"}
        assert {hit.logit for hit in hits if hit.truncated} == {1.5}
        assert {hit.logit for hit in hits if not hit.truncated} == {2.5}


@pytest.mark.parametrize("form", ["tei", "vllm"])
def test_what_a_server_cut_of_texts_to_encode_is_known(form: str) -> None:
    with (
        inference_server(form, task="embed", encoder=Unit(), words=20) as server,
        BiEncoder(endpoint=server.url) as encoder,
    ):
        with pytest.warns(TruncationWarning, match=r"1 of 3 texts are longer than .* reads \(20 tokens\)"):
            found = encoder.encode_documents(["abc", LONG, "b"])
        np.testing.assert_allclose(found, Unit().encode_documents(["abc", "word " * 18, "b"]), atol=1e-6)


def test_a_server_that_says_nothing_of_it_is_told_of_once() -> None:
    long = "x" * 1_001
    with (
        inference_server("infinity", scorer=TableScorer({"high": 1.0, long: 2.0})) as server,
        CrossEncoder(endpoint=server.url) as model,
    ):
        model.score("q", ["high"])
        with pytest.warns(TruncationWarning, match="does not say whether it cut a text, and one of these has 1001"):
            hits = model.rank("q", ["high", long])
        assert not any(hit.truncated for hit in hits)
        model.rank("q", ["high", long])  # once
        assert "does not say what it cuts" in repr(model)


def test_the_text_that_a_server_will_not_take_shows_what_is_wrong() -> None:
    texts = [*(f"text {number}" for number in range(20)), "bad"]
    with (
        inference_server("tei", scorer=TableScorer(dict.fromkeys(texts, 0.0))) as server,
        CrossEncoder(endpoint=server.url) as model,
    ):
        checked = server._tei_checked

        def refuse(given: list[str], truncate: bool, around: int) -> list[str]:
            if "bad" in given:
                raise Refusal(422, {"error": "Tokenization error: bad text", "error_type": "Tokenizer"})
            return checked(given, truncate, around)

        server._tei_checked = refuse  # type: ignore[method-assign]
        with pytest.raises(RemoteError, match="answered 422: Tokenization error: bad text"):
            model.score("q", texts)


# Vectors


@pytest.mark.parametrize("form", ["tei", "infinity", "vllm"])
def test_vectors_arrive_as_they_are(form: str) -> None:
    texts = [f"{'abcdef'[number % 6]}{'gh' * number}" for number in range(70)]
    with (
        inference_server(form, task="embed", encoder=Unit()) as server,
        BiEncoder(endpoint=server.url, query_prompt="q ", document_prompt="d ") as encoder,
    ):
        found = encoder.encode_documents(texts)
        np.testing.assert_allclose(found, Unit().encode_documents([f"d {text}" for text in texts]), atol=1e-6)
        assert found.dtype == np.float32
        found = asyncio.run(encoder.aencode_queries(texts))
        np.testing.assert_allclose(found, Unit().encode_queries([f"q {text}" for text in texts]), atol=1e-6)
        assert encoder.encode_documents([]).shape == (0, encoder.dimension) == (0, LetterEncoder().dimension)
        assert encoder.metric == "cosine"


def test_vectors_of_any_length_need_a_metric() -> None:
    with inference_server("infinity", task="embed") as server:
        with BiEncoder(endpoint=server.url) as encoder, pytest.raises(InvalidInputError, match="give metric='dot'"):
            encoder.metric  # noqa: B018 - asking is what fails
        with BiEncoder(endpoint=server.url, metric="dot") as encoder:
            assert encoder.metric == "dot"
            np.testing.assert_array_equal(encoder.encode_documents(["ab"]), LetterEncoder().encode_documents(["ab"]))
        with BiEncoder(endpoint=server.url, normalize=True, truncate_dim=4) as encoder:
            assert (encoder.metric, encoder.dimension) == ("cosine", 4)
            assert np.linalg.norm(encoder.encode_documents(["ab"])) == pytest.approx(1.0)
        refused = pytest.raises(RemoteError, match="normalize=False")
        with BiEncoder(endpoint=server.url, normalize=False) as encoder, refused:
            encoder.encode_documents(["ab"])
    with (
        inference_server("tei", task="embed") as server,
        BiEncoder(endpoint=server.url, normalize=False, metric="dot") as encoder,
    ):
        np.testing.assert_array_equal(encoder.encode_documents(["ab"]), LetterEncoder().encode_documents(["ab"]))


@pytest.mark.parametrize("metric", ["dot", "euclidean", "cosine"])
def test_a_metric_that_looks_at_lengths_gets_them(metric: Any) -> None:
    """Text Embeddings Inference scales unless it is told not to: a dot-product model was searched by the cosine."""
    with inference_server("tei", task="embed") as server, BiEncoder(endpoint=server.url, metric=metric) as encoder:
        length = float(np.linalg.norm(encoder.encode_documents(["aab"])))
        assert length == pytest.approx(1.0 if metric == "cosine" else float(np.linalg.norm(letters("aab"))))


def test_a_server_that_changes_its_model_under_us_is_noticed() -> None:
    with inference_server("tei", task="embed", encoder=Unit()) as server, BiEncoder(endpoint=server.url) as encoder:
        encoder.encode_documents(["a"])

        class Short(Unit):
            def _encode(self, texts: Any) -> Any:
                return super()._encode(texts)[:, :2]

        server.encoder = Short()
        with pytest.raises(RemoteError, match="gave vectors of length 2, and of 4"):
            encoder.encode_documents(["a"])


# The thread


def test_a_model_travels_without_its_key_and_takes_it_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "key-that-is-secret"
    settings: dict[str, Any] = {"api_key": key, "timeout": 7, "max_concurrency": 2}
    with inference_server("tei", scorer=TableScorer(TABLE), key=key) as server:
        with CrossEncoder("some/model", endpoint=server.url, **settings) as model:
            assert model.score("q", ["high"]).tolist() == [3.0]
            pickled = pickle.dumps(model)
            assert key.encode() not in pickled
        with pickle.loads(pickled) as copy:
            assert copy.settings == model.settings
            with pytest.raises(RemoteError, match="401"):
                copy.score("q", ["high"])
        monkeypatch.setenv("RETRIEVE_RERANK_API_KEY", key)
        with (
            pickle.loads(pickled) as copy,
            pytest.raises(RemoteError, match=r"not sent, .* set RETRIEVE_RERANK_ENDPOINT to it"),
        ):
            copy.score("q", ["high"])
        monkeypatch.setenv("RETRIEVE_RERANK_ENDPOINT", f"{server.url}/")
        with pickle.loads(pickled) as copy:
            assert copy.score("q", ["high"]).tolist() == [3.0]
        with CrossEncoder(**model.settings) as again:  # type: ignore[arg-type]
            assert again.score("q", ["high"]).tolist() == [3.0]


def test_a_closed_model_connects_again() -> None:
    with inference_server("tei", scorer=TableScorer(TABLE)) as server:
        model = CrossEncoder(endpoint=server.url)
        for _ in range(2):
            assert model.score("q", ["high"]).tolist() == [3.0]
            model.close()
        assert "not connected" in repr(model)


def test_closing_waits_for_calls_under_way() -> None:
    with inference_server("tei", scorer=TableScorer(TABLE)) as server, CrossEncoder(endpoint=server.url) as model:
        assert model.precision == "float16"
        server.seconds = 0.3
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(model.score("q", ["high"]).tolist()))
        thread.start()
        time.sleep(0.1)
        model.close()
        thread.join()
        assert found == [[3.0]]


def test_a_model_that_nobody_holds_lets_go_of_its_thread_and_connections() -> None:
    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if server.url in thread.name]

    with inference_server("tei", scorer=TableScorer(TABLE)) as server:
        model: Any = CrossEncoder(endpoint=server.url)
        model.score("q", ["high"])
        [thread] = threads()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a connection that was left open would warn
            del model
            gc.collect()
            thread.join(5)
            gc.collect()
        assert not threads()


@pytest.mark.parametrize("waits", [0.0, 0.2])
def test_an_event_loop_is_never_held_up(waits: float) -> None:
    with inference_server("tei", scorer=TableScorer(TABLE)) as server, CrossEncoder(endpoint=server.url) as model:
        server.seconds = waits

        async def ticks() -> float:
            worst = 0.0
            call = asyncio.ensure_future(model.arank("q", TEXTS))
            while not call.done():
                begin = time.perf_counter()
                await asyncio.sleep(0.005)
                worst = max(worst, time.perf_counter() - begin)
            assert len(call.result()) == 4
            return worst

        assert asyncio.run(ticks()) < 0.15


def test_one_model_serves_many_loops_and_threads() -> None:
    with inference_server("tei", scorer=TableScorer(TABLE)) as server, CrossEncoder(endpoint=server.url) as model:
        found: list[list[float]] = []
        ways: list[Callable[[], Any]] = [
            lambda: model.score("q", TEXTS),
            lambda: asyncio.run(model.ascore("q", TEXTS)),
        ]
        threads = [
            threading.Thread(target=lambda way=way: found.append(way().tolist()))
            for way in ways * 6  # type: ignore[misc]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [list(TABLE.values())] * 12
        held = [thread for thread in threading.enumerate() if server.url in thread.name]
        assert len(held) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_connects_for_itself() -> None:
    with inference_server("tei", scorer=TableScorer(TABLE)) as server, CrossEncoder(endpoint=server.url) as model:
        assert model.score("q", ["high"]).tolist() == [3.0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of forks in processes with threads
            child = os.fork()
        if child == 0:  # pragma: no cover - another process
            os._exit(0 if model.score("q", ["high"]).tolist() == [3.0] else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert model.score("q", ["low"]).tolist() == [-2.0]


def test_a_query_does_not_wait_for_a_whole_index() -> None:
    """All requests of a long call stood before the server, and a query behind them."""
    with (
        inference_server("tei", task="embed", encoder=Unit(), items=4) as server,
        BiEncoder(endpoint=server.url) as encoder,
    ):
        encoder.encode_queries(["warm"])
        server.seconds = 0.05
        bulk = threading.Thread(target=encoder.encode_documents, args=(["text"] * 1200,))
        bulk.start()
        time.sleep(0.3)
        start = time.perf_counter()
        encoder.encode_queries(["q"])
        took = time.perf_counter() - start
        assert bulk.is_alive()
        assert took < 0.7  # the bulk takes two seconds
        bulk.join()


class Answering(Connection):
    """A connection to a server that answers from a table; a number is a status."""

    def __init__(self, endpoint: Endpoint, answers: dict[str, Any]) -> None:
        super().__init__(endpoint)
        self.answers = answers

    async def ask(self, method: str, path: str, body: Any = None, *_: Any, **__: Any) -> Any:
        answer = self.answers.get(path, 404)
        if isinstance(answer, int):
            raise RefusedError(f"answered {answer}", answer)
        return answer


async def test_what_a_server_lists_of_a_model_is_infinitys_only_in_a_list() -> None:
    rows = [{"id": "m", "object": "model", "capabilities": {"completion_chat": False, "vision": False}}]
    there = Answering(Endpoint("http://localhost"), {"/v1/models": {"data": rows}})
    form = await find_server(there, "m", "embed")
    assert form.served.model == "m"
    rows[0]["capabilities"] = ["rerank"]  # type: ignore[assignment]
    with pytest.raises(ModelError, match="is something else; expected a bi-encoder"):
        await find_server(there, "m", "embed")


@pytest.mark.parametrize("status", [401, 403, 404, 501])
async def test_a_server_need_not_list_what_it_has(status: int) -> None:
    """A key may be good for embeddings and not for the list."""
    told = Endpoint("http://localhost", protocol="openai", api_key="key")
    answers = {"/v1/models": status, "/models": status}
    assert (await find_server(Answering(told, answers), "m", "embed")).served.model == "m"
    with pytest.raises(RemoteError):
        await find_server(Answering(Endpoint("http://localhost", api_key="key"), answers), "m", "embed")


@pytest.mark.parametrize("url", ["HTTPS://a.example", "https://a.example"])
async def test_certificates_are_checked_however_https_is_written(url: str) -> None:
    client = Connection(Endpoint(url))._open()
    context = client._transport._pool._ssl_context  # type: ignore[attr-defined]
    assert context.verify_mode == ssl.CERT_REQUIRED
    await client.aclose()


def test_a_call_made_while_the_interpreter_ends_is_answered_or_refused() -> None:
    """By then the first thread and its event loop are gone."""
    script = """
        import atexit, sys
        def late():
            try:
                print(len(model.encode_documents(["abba"])))
            except RuntimeError as error:  # Python 3.12: no new threads any more
                assert "thread" in str(error), error
                print(1)
        atexit.register(late)  # before ours, and so called after it
        from retrieve_rerank import BiEncoder
        model = BiEncoder(endpoint=sys.argv[1])
        print(len(model.encode_documents(["a", "b"])))
    """
    with inference_server("tei", task="embed") as server:
        assert run_python(script, server.url).split() == ["2", "1"]
