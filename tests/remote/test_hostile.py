"""A server that is broken, or wishes us ill: each answer ends as a `RemoteError`, in time and in bounded memory."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from retrieve_rerank import BiEncoder, CrossEncoder, ModelError, RemoteError

Part = bytes | float  # what is sent, or the seconds to wait
INFO: dict[str, Any] = {"model_id": "m", "model_type": {"reranker": {}}, "max_input_length": 512}
EMBED: dict[str, Any] = {**INFO, "model_type": {"embedding": {}}}


def answer(body: bytes, *headers: str, status: int = 200, length: int | None = None) -> list[Part]:
    lines = [
        f"HTTP/1.1 {status} X",
        "Content-Type: application/json",
        *headers,
        f"Content-Length: {length or len(body)}",
    ]
    return ["\r\n".join([*lines, "", ""]).encode() + body]


@contextmanager
def hostile(
    *posts: list[Part], info: object = INFO, probe: bytes = b"[[0,1],[1,0]]"
) -> Iterator[tuple[str, list[str]]]:
    """A server that answers /info as it should, a first /embed with `probe`, and then `posts`, the last one for ever.

    Yields its address and the first lines of what it was asked.
    """
    asked: list[str] = []
    left = list(posts)

    def serve(connection: socket.socket) -> None:
        with connection:
            stream = connection.makefile("rb")
            asked.append(stream.readline().decode().strip())
            length = 0
            while line := stream.readline().decode().strip():
                name, _, value = line.partition(": ")
                length = int(value) if name.lower() == "content-length" else length
            stream.read(length)
            if "/info" in asked[-1]:
                parts = answer(json.dumps(info).encode(), "Connection: close")
            elif "/embed" in asked[-1] and asked.count(asked[-1]) == 1:
                parts = answer(probe, "Connection: close")
            else:
                parts = left.pop(0) if len(left) > 1 else left[0]
            try:
                for part in parts:
                    connection.sendall(part) if isinstance(part, bytes) else time.sleep(part)
            except OSError:  # the client had enough
                return

    def listen() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        server.shutdown(socket.SHUT_RDWR)


def score(*posts: list[Part], timeout: float = 2.0, texts: tuple[str, ...] = ("a", "b"), info: object = INFO) -> str:
    """Return the error that a re-ranking ends in."""
    begin = time.monotonic()
    with hostile(*posts, info=info) as (url, asked), CrossEncoder(endpoint=url, timeout=timeout) as model:
        with pytest.raises(RemoteError) as caught:
            model.score("q", texts)
        assert time.monotonic() - begin < 5
        assert sum("POST" in line for line in asked) <= 1
    assert len(str(caught.value)) < 700
    return str(caught.value)


def scores(value: str, index: str = "0") -> bytes:
    return f'[{{"index": {index}, "score": {value}}}, {{"index": 1, "score": 1}}]'.encode()


@pytest.mark.parametrize(
    "body",
    [
        *(scores(value) for value in ("1" + "0" * 400, "1" + "0" * 5_000, "1e400", "1e39", "NaN", "-Infinity", "true")),
        *(scores(value) for value in ('"0.5"', "null", "[1]", "{}", '"' + "x" * 100_000 + '"')),
        *(scores("1", index) for index in ("1", "-1", "2", "1" + "0" * 400, "true", "0.0", '"0"', "null", "[]")),
        *(b"[" * count for count in (500, 1_000_000)),
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
        *(b"{}", b"null", b"[]", b"[null, null]", b"[[1], [2]]", b'[{"score": 1}, {"index": 1}]', b'"\xff\xfe"'),
        b"[" + b'{"index": 0, "score": 1},' * 10_000 + b'{"index": 1, "score": 1}]',
    ],
    ids=lambda body: body[:40].decode(errors="replace"),
)
def test_scores_that_are_none(body: bytes) -> None:
    assert "Nothing of it is used" in score(answer(body))


@pytest.mark.parametrize(
    "body",
    [
        *(b"[[1, 2], [1]]", b"[[1, 2, 3], [1, 2, 3]]", b"[[0, 0], [1, 0]]", b"[[0.0, -0.0], [1e-30, 0]]", b"[[], []]"),
        *(b"[[1e39, 1], [1, 2]]", b'[["1", "2"], ["1", "2"]]', b"[[true, false], [1, 2]]", b"[[null, 1], [1, 2]]"),
        *(b"[[1, 2]]", b"[[1, 2], [1, 2], [1, 2]]", b"[[[1, 2]], [[1, 2]]]", b"[1, 2]"),
        *(b'{"0": [1, 2]}', b"[[NaN, 1], [1, 2]]"),
        b"[[1" + b"0" * 400 + b", 2], [1, 2]]",
        b"[[1e30, 1e30], [1, 2]]",
    ],
    ids=lambda body: body[:30].decode(),
)
@pytest.mark.parametrize("options", [{}, {"truncate_dim": 1}, {"normalize": True}], ids=str)
def test_vectors_that_are_none(body: bytes, options: dict[str, Any]) -> None:
    with hostile(answer(body), info=EMBED) as (url, _), BiEncoder(endpoint=url, metric="dot", **options) as encoder:
        assert encoder.dimension in (1, 2)
        with pytest.raises(RemoteError):
            encoder.encode_documents(["a", "b"])


def test_a_first_answer_of_vectors_that_are_none() -> None:
    for probe in (b"[[0, 0], [0, 0]]", b"[[1, 2], [1]]", b"[[],[]]"):
        refused = pytest.raises(RemoteError, match="Nothing of it is used")
        with hostile([b""], info=EMBED, probe=probe) as (url, _), BiEncoder(endpoint=url) as encoder, refused:
            encoder.encode_documents(["a"])


@pytest.mark.parametrize(
    ("packing", "body"),
    [
        ("gzip", gzip.compress(bytes(100_000_000))),
        ("gzip", gzip.compress(scores("1"))),
        ("deflate", zlib.compress(bytes(100_000_000))),
        *((packing, b"\x00" * 1_000) for packing in ("br", "zstd", "gzip, gzip", "x" * 5_000)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_is_unpacked(packing: str, body: bytes) -> None:
    tracemalloc.start()
    try:
        told = score(answer(body, f"Content-Encoding: {packing}"))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert "which was not asked for" in told


def test_what_is_packed_as_nothing_is_read() -> None:
    plain = answer(b'[{"index": 0, "score": 2.5}]', "Content-Encoding: Identity", "Connection: close")
    with hostile(plain) as (url, _), CrossEncoder(endpoint=url) as model:
        assert model.score("q", ["a"]).tolist() == [2.5]


def test_a_server_does_not_say_how_large_its_answers_may_be() -> None:
    """By the number of texts that it wants in one request."""
    greedy = hostile(answer(b" " * 6_000_000), info=EMBED | {"max_client_batch_size": 10**6})
    with greedy as (url, asked), BiEncoder(endpoint=url, metric="dot") as encoder:
        with pytest.raises(RemoteError, match="more than"):
            encoder.encode_documents([str(number) for number in range(5_000)])
        assert 1 < len(asked) < 20


def test_an_answer_without_end_is_left() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert "more than" in score([head, *[b"100000\r\n" + b" " * 0x100000 + b"\r\n"] * 100])
    assert "more than" in score(answer(b" " * 20_000_000, status=400))
    assert "no answer within 0.5 s" in score([head, *[b"1\r\n \r\n", 0.05] * 100], timeout=0.5)
    assert "no answer within 0.5 s" in score([b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n", 0.05] * 100], timeout=0.5)


@pytest.mark.parametrize(
    "wait",
    [
        *("1" + "0" * 400, "9" * 20, "61", "Fri, 31 Dec 9999 23:59:59 GMT"),
        *("Fri, 31 Dec 99999 23:59:59 GMT", "-5", "NaN", "inf", "1e9", "", "0x10", "\xb2"),
        "Wed, 99 Foo 2015 07:28:00 GMT",
    ],
)
def test_a_server_cannot_make_a_call_wait(wait: str, quick: None) -> None:
    begin = time.monotonic()
    busy, refused = answer(b"{}", f"Retry-After: {wait}", status=503), pytest.raises(RemoteError, match="answered 503")
    with hostile(busy) as (url, _), CrossEncoder(endpoint=url) as model, refused:
        model.score("q", ["a"])
    assert time.monotonic() - begin < 5


def test_waits_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from retrieve_rerank.models import connection

    monkeypatch.setattr(connection, "_LONGEST_WAIT", 2.5)
    begin = time.monotonic()
    busy, refused = answer(b"{}", "Retry-After: 1", status=429), pytest.raises(RemoteError, match="answered 429")
    with hostile(busy) as (url, _), CrossEncoder(endpoint=url) as model, refused:
        model.score("q", ["a"])
    assert time.monotonic() - begin < 3.5


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_takes_the_key_nowhere(status: int) -> None:
    with hostile([b""]) as (elsewhere, asked):
        told = score(answer(b"", f"Location: {elsewhere}/rerank", "Connection: close", status=status))
        assert "give that address as endpoint" in told
        assert asked == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": ' * 90 + b'"deep"' + b"}" * 90,
        b"[" * 100_000,
        b'{"error": {"message": ["a", {"msg": 1}]}}',
        b"\xff\xfe",
        b'{"error": "\\u001b[31mred\\ud800"}',
        b'{"error": "' + b"x" * 100_000 + b'"}',
    ],
    ids=lambda body: body[:30].decode(errors="replace"),
)
def test_an_error_is_shown_in_one_short_line(body: bytes) -> None:
    told = score(answer(body, status=400), texts=("a",))
    assert "\x1b" not in told
    told.encode()


@pytest.mark.parametrize(
    "change",
    [
        *({"model_id": value} for value in (None, 5, [], "x" * 100_000, {"a": 1})),
        *({"model_type": value} for value in (5, ["reranker"], "x" * 100_000, {"reranker": None})),
        *(
            {name: value}
            for name in ("max_input_length", "max_client_batch_size")
            for value in (-1, 0, 1.5, "8", 10**300, [])
        ),
        *({name: value} for name in ("model_sha", "model_dtype") for value in (5, [], "\x1b[31m", "x" * 100_000)),
    ],
    ids=lambda change: str(change)[:40],
)
def test_what_a_server_says_of_itself_is_not_trusted(change: dict[str, Any]) -> None:
    rows = b'[{"index": 0, "score": 2.5}]'
    with (
        hostile(answer(rows, "Connection: close"), info=INFO | change) as (url, _),
        CrossEncoder(endpoint=url) as model,
    ):
        try:
            found = model.score("q", ["a"]).tolist()
        except (RemoteError, ModelError) as error:
            shown = str(error)
        else:
            assert found == [2.5]
            shown = json.dumps(model.fingerprint | {"repr": repr(model)})
    assert len(shown) < 700
    assert "\\u001b" not in shown
