"""Small inference servers that answer in the recorded forms of real ones, with numbers and faults of a test's choosing.

What they compute is looked up; what is between, HTTP and all, is real. With `upstream` a real server is asked as well,
and only the numbers in its answers are replaced.
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from retrieve_rerank.testing import LetterEncoder, TableScorer

Rows = list[dict[str, Any]]
MODEL = "some/model"
KEY = "key-of-the-test"


class Refusal(Exception):
    """An answer with an error's status."""

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(str(body))
        self.status, self.body, self.headers = status, body, headers or {}


class InferenceServer:
    """A server's behaviour, what it was asked, and what goes wrong.

    Args:
        form: "tei", "infinity", "vllm", "old vllm", which passes every score through a sigmoid, "openai", which takes
            nothing but the standard's fields, "identity", a vLLM whose model has no activation, or "page",
            a web site.

    Attributes:
        task: What its model is for, "rerank" or "embed".
        scorer: Whose logits are answered.
        encoder: Whose vectors are answered.
        words: Words that the model reads; one more for every special token.
        items: Texts that are taken in one request.
        key: What must come in the Authorization header, or None.
        asked: Path and body of each POST.
        headers: The headers of each request.
        faults: What goes wrong with the next POSTs, one each; "" is nothing.
        broken: What goes wrong with every POST.
        seconds: How long each POST takes.
        most: The most POSTs that were under way at once.
        upstream: Address of a real server of the same form, which is asked first.
    """

    def __init__(self, form: str = "tei") -> None:
        self.form = form
        self.task = "rerank"
        self.scorer: Any = TableScorer({})
        self.encoder: Any = LetterEncoder()
        self.words, self.items = 512, 32
        self.key: str | None = None
        self.asked: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.faults: list[str] = []
        self.broken = ""
        self.seconds = 0.0
        self.models = [MODEL]
        self.info: dict[str, Any] = {}
        self.upstream = ""
        self.under_way = self.most = self.dropped = 0
        self.url = ""
        self.lock = threading.Lock()

    def get(self, path: str) -> Any:
        if self.upstream:
            return self._forwarded("GET", path, None)
        if self.form == "page":
            return "<html>"
        if self.form == "tei" and path == "/info":
            label: dict[str, Any] = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
            kind = {"reranker": label} if self.task == "rerank" else {"embedding": {"pooling": "mean"}}
            return {
                "model_id": MODEL,
                "model_sha": "f00d",
                "model_dtype": "float16",
                "model_type": kind,
                "max_concurrent_requests": 512,
                "max_input_length": self.words,
                "max_batch_tokens": 16384,
                "max_batch_requests": None,
                "max_client_batch_size": self.items,
                "auto_truncate": False,
                "tokenization_workers": 4,
                "version": "1.8.2",
                **self.info,
            }
        if "vllm" in self.form or self.form == "identity":
            if path == "/v1/models":
                shape = {"object": "model", "owned_by": "vllm", "max_model_len": self.words, "parent": None}
                return {"object": "list", "data": [{"id": name, "root": name, **shape} for name in self.models]}
        elif self.form == "infinity" and path == "/models":
            return {
                "data": [
                    {"id": name, "stats": {}, "object": "model", "owned_by": "infinity", "capabilities": [self.task]}
                    for name in self.models
                ],
                "object": "list",
            }
        raise Refusal(404, {"detail": "Not Found"})

    def post(self, path: str, body: Any) -> Any:
        self.asked.append((path, body))
        if self.upstream:
            return self._replaced(path, body, self._forwarded("POST", path, body))
        name = path.removeprefix("/v1")
        if self.form == "tei" and path == "/rerank":
            return self._tei_rerank(body)
        if self.form == "tei" and path == "/embed":
            return self._tei_embed(body)
        if self.form != "tei" and name in ("/rerank", "/embeddings"):
            if body["model"] not in self.models:
                raise Refusal(404, _openai_error(f"The model `{body['model']}` does not exist.", "NotFoundError", 404))
            return self._rerank(body) if name == "/rerank" else self._embeddings(body)
        raise Refusal(404, {"detail": "Not Found"})

    # Text Embeddings Inference

    def _tei_rerank(self, body: Any) -> Rows:
        texts = self._tei_checked(body["texts"], body["truncate"], len(body["query"].split()) + 3)
        rows = [
            {"index": index, "score": score if body["raw_scores"] else _sigmoid(score)}
            for index, score in enumerate(self._scores(body["query"], texts))
        ]
        return sorted(rows, key=lambda row: -row["score"])

    def _tei_embed(self, body: Any) -> list[list[float]]:
        if not all(body["inputs"]):
            raise Refusal(413, _tei_error("Input validation error: `inputs` cannot be empty", "Validation"))
        texts = self._tei_checked(body["inputs"], body["truncate"], 2)
        vectors = np.asarray(self.encoder.encode_documents(texts))
        if body.get("normalize", True):
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors.tolist()  # type: ignore[no-any-return]

    def _tei_checked(self, texts: list[str], truncate: bool, around: int) -> list[str]:
        if len(texts) > self.items:
            message = f"batch size {len(texts)} > maximum allowed batch size {self.items}"
            raise Refusal(413, _tei_error(message, "Validation"))
        for text in texts:
            if len(text.split()) + around > self.words and not truncate:
                given = len(text.split()) + around
                message = f"Input validation error: `inputs` must have less than {self.words} tokens. Given: {given}"
                raise Refusal(413, _tei_error(message, "Validation"))
        return [" ".join(text.split()[: self.words - around]) if truncate else text for text in texts]

    # Infinity, vLLM and others

    def _rerank(self, body: Any) -> Any:
        standard = {"model", "query", "documents"}
        if self.form == "openai" and set(body) != standard:
            raise Refusal(422, {"message": f"unknown fields {set(body) - standard}"})
        texts = self._openai_checked(body, body["documents"], len(body["query"].split()) + 3)
        raw = {
            "infinity": body.get("raw_scores", False),
            "vllm": body.get("use_activation") is False,
            "identity": True,
        }.get(self.form, False)
        scores = [score if raw else _sigmoid(score) for score in self._scores(body["query"], texts)]
        rows = [
            {"index": index, "relevance_score": score, "document": {"text": text}}
            for index, (score, text) in enumerate(zip(scores, [*texts, *texts], strict=False))
        ]
        rows.sort(key=lambda row: -row["relevance_score"])
        return {"id": "rerank-1", "model": body["model"], "usage": {"total_tokens": 9}, "results": rows}

    def _embeddings(self, body: Any) -> Any:
        texts = self._openai_checked(body, body["input"], 2)
        vectors = np.asarray(self.encoder.encode_documents(texts), np.float32)
        rows: Rows = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
                if body.get("encoding_format") == "base64"
                else vector.tolist(),
            }
            for index, vector in enumerate(vectors)
        ]
        return {"object": "list", "data": rows, "model": body["model"], "usage": {"total_tokens": 9}}

    def _openai_checked(self, body: Any, texts: list[str], around: int) -> list[str]:
        if len(texts) > self.items:
            message = f"List should have at most {self.items} items after validation, not {len(texts)}"
            raise Refusal(422, {"detail": [{"type": "too_long", "loc": ["body"], "msg": message, "input": texts}]})
        if "vllm" not in self.form:
            return [" ".join(text.split()[: self.words - around]) for text in texts]
        if body.get("truncate_prompt_tokens") == -1:
            return [" ".join(text.split()[: self.words - around]) for text in texts]
        for text in texts:
            if len(text.split()) + around > self.words:
                message = f"This model's maximum context length is {self.words} tokens. However, you requested more."
                raise Refusal(400, _openai_error(message, "BadRequestError", 400))
        return texts

    # Both

    def _scores(self, query: str, texts: Sequence[str]) -> list[float]:
        table = getattr(self.scorer, "table", None)
        if table is not None and not set(texts) <= set(table):  # what a client asks to see how the scores look
            return [3.0 - 7.0 * index for index in range(len(texts))]
        try:
            return [float(score) for score in self.scorer.score(query, texts)]
        except Exception as error:
            raise Refusal(500, _openai_error(str(error), "InternalServerError", 500)) from error

    def _forwarded(self, method: str, path: str, body: Any) -> Any:
        parts = urlsplit(self.upstream)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        try:
            headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status != 200:
            raise Refusal(answer.status, content)
        return content

    def _replaced(self, path: str, body: Any, answer: Any) -> Any:
        scores = self._scores(body["query"], body["documents"])
        by_index = {row["index"]: row for row in answer["results"]}
        rows = [
            {**by_index.get(index, {}), "index": index, "relevance_score": score} for index, score in enumerate(scores)
        ]
        return {**answer, "results": sorted(rows, key=lambda row: -row["relevance_score"])}


def spoil(answer: Any, how: str) -> Any:
    """Return a server's answer with something wrong in it."""
    rows = answer["results"] if isinstance(answer, dict) and "results" in answer else answer
    rows = rows["data"] if isinstance(rows, dict) else rows
    if isinstance(rows[0], list):  # bare vectors, which have no index
        return {"too few": rows[:-1], "too many": [*rows, rows[0]], "nan": [[math.nan] * 4, *rows[1:]]}[how]
    key = next(name for name in ("score", "relevance_score", "embedding", "") if not name or name in rows[0])
    changes: dict[str, Callable[[], object]] = {
        "too few": lambda: rows.pop(),
        "too many": lambda: rows.append({**rows[0], "index": len(rows)}),
        "twice the same index": lambda: rows[0].update(index=rows[1]["index"]),
        "index out of range": lambda: rows[0].update(index=99),
        "negative index": lambda: rows[0].update(index=-1),
        "index is text": lambda: rows[0].update(index="0"),
        "no index": lambda: rows[0].pop("index"),
        "nan": lambda: rows[0].update({key: math.nan}),
        "null": lambda: rows[0].update({key: None}),
        "text for a number": lambda: rows[0].update({key: "0.5"}),
        "reversed": lambda: rows.reverse(),
    }
    changes[how]()
    return answer


@contextmanager
def inference_server(form: str = "tei", **settings: Any) -> Iterator[InferenceServer]:
    """Run a server on a free port of this machine."""
    state = InferenceServer(form)
    for name, value in settings.items():
        setattr(state, name, value)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.state = state
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # clients keep their connections
    request_queue_size = 128
    state: InferenceServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet: clients that give up leave broken connections behind."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    @property
    def state(self) -> InferenceServer:
        return self.server.state

    def do_GET(self) -> None:
        self._answer(lambda: self.state.get(self.path))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.state.lock:
            self.state.under_way += 1
            self.state.most = max(self.state.most, self.state.under_way)
            fault = self.state.faults.pop(0) if self.state.faults else self.state.broken
        try:
            self._post(body, fault)
        finally:
            with self.state.lock:
                self.state.under_way -= 1

    def _post(self, body: Any, fault: str) -> None:
        time.sleep(self.state.seconds)
        if fault == "slow":
            time.sleep(1.0)
        if fault == "reset":
            # A reset, not an end: whatever is on the way is thrown away.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n[{")
            self.connection.close()
            self.close_connection = True
            return
        if fault[:3].isdigit():
            status, _, wait = fault.partition(" ")
            headers = {"Retry-After": wait} if wait else {}
            self._send(int(status), {"error": f"told to answer {status}", "sent": dict(self.headers)}, headers)
            return
        self._answer(lambda: self.state.post(self.path, body), fault)

    def _answer(self, call: Callable[[], Any], fault: str = "") -> None:
        self.state.headers.append({name.lower(): value for name, value in self.headers.items()})
        try:
            if self.state.key is not None and self.headers.get("Authorization") != f"Bearer {self.state.key}":
                raise Refusal(401, {"detail": "Unauthorized"})
            answer = call()
        except Refusal as refusal:
            self._send(refusal.status, refusal.body, refusal.headers)
            return
        if fault in ("", "slow", "cut off", "half of the JSON"):
            self._send(200, answer, fault=fault)
        else:
            self._send(200, spoil(answer, fault))

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None, fault: str = "") -> None:
        payload = json.dumps(answer).encode()
        if fault == "half of the JSON":
            payload = payload[: len(payload) // 2]
        if self.state.form == "page":
            payload = b"<html>"
        self.send_response(status)
        kind = "text/html" if self.state.form == "page" else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(payload)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if fault == "cut off":
            self.wfile.write(payload[: len(payload) // 2])
            self.close_connection = True
            return
        try:
            self.wfile.write(payload)
        except OSError:
            self.state.dropped += 1

    def log_message(self, *arguments: Any) -> None:
        """Keep quiet."""


def _sigmoid(logit: float) -> float:
    return float(np.float32(1 / (1 + math.exp(-logit)))) if not math.isnan(logit) else logit


def _tei_error(message: str, kind: str) -> dict[str, str]:
    return {"error": message, "error_type": kind}


def _openai_error(message: str, kind: str, code: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
