"""Chroma's own server, `chroma run`, on a free port of this machine: started, killed, and started again on it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

# The command line's own script imports all of chromadb first, which takes a second.
_RUN = "import sys, chromadb_rust_bindings; chromadb_rust_bindings.cli(['chroma', 'run', *sys.argv[1:]])"
_PATIENCE = 30.0  # seconds for a start


class ChromaServer:
    """A server of its own process group. In a `with` block it is started, and stopped at the end.

    Args:
        folder: Where it stores; what a killed one stored is there at the next start.
        port: None is a free one.

    Example:
        with ChromaServer(tmp_path / "server") as server:
            index = ChromaIndex(encoder, client=server.client())
            server.kill()
            server.start()
    """

    host = "127.0.0.1"

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = free_port() if port is None else port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.host}:{self.port}"

    def client(self, **options: str) -> ClientAPI:
        """Return a new client of the server."""
        import chromadb

        return chromadb.HttpClient(self.host, self.port, **options)

    def start(self) -> None:
        """Start it, on the same port as before, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arguments = ["--path", str(self.folder), "--host", self.host, "--port", str(self.port)]
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _RUN, *arguments], stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + _PATIENCE
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"chroma run does not start: {Path(log.name).read_text()[-2000:]}")
            time.sleep(0.05)

    def answers(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v2/heartbeat", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """End it at once, as `kill -9` does, in the middle of whatever it does."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            os.killpg(process.pid, number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def __enter__(self) -> ChromaServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def close(client: ClientAPI) -> None:
    """Close a client and its connections, which Chroma's own `close` leaves open."""
    known: Any = client
    for part in (known._server, known._admin_client._server):
        part._session.close()
    known.close()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((ChromaServer.host, 0))
        return int(probe.getsockname()[1])
