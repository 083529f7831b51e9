"""A real inference server, Infinity, in a virtual environment of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import tenacity

from retrieve_rerank.models import connection
from tests.inference_server import KEY

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).parent / "infinity.txt"
_INSTALL, _START = 600, 240  # seconds


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tries follow one another at once."""
    monkeypatch.setattr(connection, "_BACKOFF", tenacity.wait_fixed(0.01))


@pytest.fixture(scope="session")
def infinity(
    request: pytest.FixtureRequest,
    bi_encoder_path: Path,
    cross_encoder_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The address of a server with both demo models; it wants `KEY`. Its environment is kept in pytest's cache."""
    folder = _environment(request.config.cache.mkdir("infinity"))
    log = tmp_path_factory.mktemp("infinity") / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    command = [str(folder / "bin" / "infinity_emb"), "v2", "--host", "127.0.0.1", "--port", str(port)]
    for path in (cross_encoder_path, bi_encoder_path):
        command += ["--model-id", str(path)]
    command += ["--engine", "torch", "--device", "cpu", "--dtype", "float32", "--no-bettertransformer"]
    command += ["--no-model-warmup", "--api-key", KEY]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env={**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **quiet},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(address, process, log)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment(cache: Path) -> Path:
    """Return the folder of an environment with Infinity, made at the first time."""
    text = REQUIREMENTS.read_text(encoding="utf-8")
    folder = cache / f"{sha256(f'{text}{sys.executable}{sys.version}'.encode()).hexdigest()[:12]}"
    ready = folder / "ready"
    if ready.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    python = str(folder / "bin" / "python")
    constraints = ["-c", str(ROOT / "constraints.txt")]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [python, "-m", "pip", "install", "-q", "--no-compile", *constraints, "-r", str(REQUIREMENTS)],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"installing Infinity took more than {_INSTALL} s")
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"Infinity cannot be installed: {reason}")
    ready.touch()
    return folder


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START
    question = urllib.request.Request(f"{address}/models", headers={"Authorization": f"Bearer {KEY}"})
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.fail(f"Infinity ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(question, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"Infinity did not start within {_START} s:\n{log.read_text()[-2000:]}")
