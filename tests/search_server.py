"""A tiny server that speaks as much of the search engines' REST interface as a first stage needs.

It keeps what it is asked, and answers in the real format: what was indexed last, in the order and with the scores that
it was told. It understands no query; whether the queries are right is for the tests to say, from what was asked.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class SearchServer:
    """What was asked, and what a search answers.

    Attributes:
        scores: The score of each document that a search finds, by id, best first; None where it was not scored.
        product: "elasticsearch" or "opensearch", which say so differently.
        asked: Method, path and body of each request.
        stored: What was indexed, by id.
    """

    scores: Mapping[str, float | None]
    product: str
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    stored: dict[str, dict[str, Any]] = field(default_factory=dict)
    url: str = ""

    def searches(self) -> list[Any]:
        """Return the bodies of the searches."""
        return [body for _, path, body in self.asked if path.endswith("/_search")]

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Return status and body of the answer."""
        self.asked.append((method, path, body))
        if path == "/":
            number = {"elasticsearch": "8.19.0", "opensearch": "3.2.0"}[self.product]
            version = {"number": number, "build_flavor": "default", "distribution": self.product}
            return 200, {"name": "node", "cluster_name": "cluster", "version": version, "tagline": "search"}
        if path.endswith("/_bulk"):
            items = []
            for action, source in zip(body[::2], body[1::2], strict=True):
                ((name, target),) = action.items()
                self.stored[target["_id"]] = source
                items.append({name: {"_index": target["_index"], "_id": target["_id"], "status": 201}})
            return 200, {"took": 1, "errors": False, "items": items}
        if path.endswith("/_search"):
            hits = [
                {"_index": path.split("/")[1], "_id": id_, "_score": score, "_source": self.stored[id_]}
                for id_, score in self.scores.items()
                if id_ in self.stored
            ]
            total = {"value": len(hits), "relation": "eq"}
            best = max(filter(None, self.scores.values()), default=None)
            return 200, {
                "took": 1,
                "timed_out": False,
                "_shards": {"total": 1, "successful": 1, "skipped": 0, "failed": 0},
                "hits": {"total": total, "max_score": best, "hits": hits},
            }
        if method == "HEAD":
            return 200 if self.stored else 404, None
        return 200, {"acknowledged": True}


@contextmanager
def search_server(scores: Mapping[str, float | None], product: str) -> Iterator[SearchServer]:
    """Run a server on a free port of this machine."""
    state = SearchServer(scores, product)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            path = urlsplit(self.path).path
            lines = [json.loads(line) for line in text.splitlines() if line] if path.endswith("/_bulk") else None
            status, answer = state.answer(self.command, path, lines or (json.loads(text) if text else None))
            payload = b"" if answer is None else json.dumps(answer).encode()
            self.send_response(status)
            if state.product == "elasticsearch":
                self.send_header("X-Elastic-Product", "Elasticsearch")
                self.send_header("Content-Type", "application/vnd.elasticsearch+json;compatible-with=8")
            else:
                self.send_header("Content-Type", "application/json; charset=UTF-8")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _any

        def log_message(self, *arguments: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
