"""Stands before a real server, passes requests on, keeps what it is asked, and fails as it is told."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Fault:
    """What becomes of a request.

    Attributes:
        path: How the path of the requests ends that it is for.
        status: Answered instead of passing the request on; 0 hangs up instead.
        body: Of that answer.
        headers: Of that answer.
        passed_on: Whether the server gets the request all the same, and only its answer is lost.
        cut: Whether the connection breaks in the middle of the server's own answer.
    """

    path: str
    status: int = 0
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    passed_on: bool = False
    cut: bool = False


@dataclass
class FlakyServer:
    """What was asked, and what fails next.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        faults: Each is for one request, in order.
        slow: Seconds that every request waits whose path ends as said.
        asked: Method, path and headers of each request; names of headers in lower case.
    """

    port: int = 0
    faults: list[Fault] = field(default_factory=list)
    slow: tuple[str, float] = ("", 0.0)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, path: str) -> int:
        """Return how many requests had a path that ends so."""
        return sum(asked.endswith(path) for _, asked, _ in self.asked)

    def fault_of(self, path: str) -> Fault | None:
        """Return what a request's fate is, once."""
        with self.lock:
            for position, fault in enumerate(self.faults):
                if path.endswith(fault.path):
                    return self.faults.pop(position)
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _any(self) -> None:
        state, path = self.server.state, self.path.split("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with state.lock:
            state.asked.append((self.command, path, {name.lower(): value for name, value in self.headers.items()}))
        if state.slow[1] and path.endswith(state.slow[0]):
            time.sleep(state.slow[1])
        fault = state.fault_of(path)
        if fault is None:
            self._answer(*self._pass_on(body))
        elif fault.status:
            self._answer(fault.status, {"Content-Type": "text/html", **fault.headers}, fault.body.encode())
        else:
            if fault.cut:
                status, headers, content = self._pass_on(body)
                self._answer(status, headers, content, sent=len(content) // 2)
            elif fault.passed_on:
                self._pass_on(body)
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_DELETE = _any

    def _pass_on(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        link = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=30)
        try:
            link.request(self.command, self.path, body, {"Content-Type": "application/json"})
            response = link.getresponse()
            return response.status, {"Content-Type": "application/json"}, response.read()
        finally:
            link.close()

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes, sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])

    def log_message(self, *arguments: Any) -> None:
        """Keep quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target: int, state: FlakyServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.state = target, state

    def handle_error(self, *arguments: Any) -> None:
        """Keep quiet: clients and servers that hang up are what this is for."""


@contextmanager
def flaky_server(port: int) -> Iterator[FlakyServer]:
    """Stand before the server on `port` of this machine."""
    state = FlakyServer()
    server = _Server(port, state)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    state.port = server.server_port
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
