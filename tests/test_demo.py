"""The demo cross-encoder is made once, and again where it is not what was made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from retrieve_rerank import demo


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where merges were made; each takes no time, and none meets the user's cache."""
    targets: list[Path] = []

    def merge(base: Path, target: Path) -> None:
        targets.append(target)
        target.mkdir()
        (target / "config.json").write_text("{}")
        (target / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setenv("RETRIEVE_RERANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "_bi_encoder", lambda: tmp_path / "base")
    monkeypatch.setattr(demo, "_merge", merge)
    return targets


def opened() -> Path:
    """Return the cross-encoder's folder as a new process finds it, which is whole."""
    folder = demo.demo_models.__wrapped__()[1]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert (folder / "config.json").read_text() == "{}"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    return folder


SPOILERS: list[Callable[[Path], object]] = [
    lambda folder: (folder / "model.safetensors").write_bytes(b"w\0ights"),
    lambda folder: (folder / "model.safetensors").unlink(),
    lambda folder: (folder / "config.json").unlink(),
    lambda folder: (folder / "config.json").write_text(""),
    lambda folder: (folder / "SHA256SUMS").unlink(),  # as an older version left it
    lambda folder: (folder / "SHA256SUMS").write_text("rubbish\n"),
    shutil.rmtree,
]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_what_is_spoilt_is_made_again(made: list[Path], spoil: Callable[[Path], object]) -> None:
    folder = opened()
    opened()
    assert len(made) == 1
    spoil(folder)
    opened()
    assert len(made) == 2
    (folder / "mine.txt").write_text("a note")
    opened()
    assert len(made) == 2


def test_another_process_that_was_faster_is_not_disturbed(made: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = opened()
    first = folder.stat().st_ino
    looks = iter([False, True])
    monkeypatch.setattr(demo, "_is_whole", lambda _: next(looks))
    opened()
    assert len(made) == 2
    assert folder.stat().st_ino == first
