"""What both models share: settings, loading once, one thread, freeing."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from retrieve_rerank.checks import check_count
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.models.backend import Backend, check_backend
from retrieve_rerank.models.precision import Precision
from retrieve_rerank.models.worker import Worker

if TYPE_CHECKING:
    from typing_extensions import Self

    from retrieve_rerank.models.engine import Engine
    from retrieve_rerank.models.loading import Checkpoint

E = TypeVar("E", bound="Engine")


class LocalModel(ABC, Generic[E]):
    """A model in this process, loaded at its first use and run on a thread of its own."""

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: str | None,
        precision: Precision,
        backend: Backend,
        revision: str | None,
        cache_folder: str | os.PathLike[str] | None,
        local_files_only: bool,
        token: str | bool | None,
        trust_remote_code: bool,
        max_length: int | None,
        batch_tokens: int | None,
    ) -> None:
        if not isinstance(model, (str, os.PathLike)) or not os.fspath(model).strip():
            raise InvalidInputError(f"model must be a hub name or a folder, got {model!r}")
        check_backend(backend, precision, device)
        if max_length is not None:
            check_count(max_length, "max_length")
        if batch_tokens is not None:
            check_count(batch_tokens, "batch_tokens")
        self.model = os.fspath(model)
        self._settings: dict[str, Any] = {
            "model": self.model,
            "device": device if backend == "torch" else "cpu",
            "revision": revision,
            "cache_folder": None if cache_folder is None else os.fspath(cache_folder),
            "local_files_only": local_files_only,
            "token": token,
            "trust_remote_code": trust_remote_code,
        }
        # Another backend starts from the exact network.
        self._asked_precision: Precision = precision if backend == "torch" else "float32"
        self._backend, self._backend_precision = backend, precision
        self._max_length = max_length
        self._batch_tokens = batch_tokens
        self._worker = Worker(f"retrieve-rerank {self.model}")
        self._engine: E | None = None
        self._home: threading.Thread | None = None  # where the engine was loaded
        self._limit: int | None = None  # the engine's max_length, for warnings, which must not wait for the thread

    @property
    def settings(self) -> dict[str, str | int | bool | None]:
        """The arguments that this model was made with, but for the token: `CrossEncoder(**settings)` makes another."""
        shown = {name: value for name, value in self._settings.items() if name != "token"}
        return {
            **shown,
            "precision": self._backend_precision,
            "backend": self._backend,
            "max_length": self._max_length,
            "batch_tokens": self._batch_tokens,
        }

    @property
    def loaded_precision(self) -> str | None:
        """The precision that the model computes in, or None before its first use. Loads nothing and never waits."""
        engine = self._engine
        return None if engine is None else engine.precision.name

    def redacted(self, text: str) -> str:
        """Return `text` without this model's token, for messages that leave the process."""
        token = self._settings["token"]
        return text.replace(token, "***") if isinstance(token, str) and token else text

    @property
    def precision(self) -> str:
        """The precision that the model computes in. Loads the model."""
        return self._worker.run(self._loaded).precision.name

    @property
    def device(self) -> str:
        """The device that the model is on. Loads the model."""
        return str(self._worker.run(self._loaded).device)

    @property
    def max_length(self) -> int | None:
        """Tokens that the model reads at once; None is no limit. Loads the model."""
        return self._worker.run(self._loaded).max_length

    def close(self) -> None:
        """Free the model once the calls already made are done. A later call loads it again."""
        self._worker.close(last=self._unload)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # The settings are the object; the thread, the loaded model and the secret stay behind.
        state = {**self.__dict__, "_engine": None, "_home": None, "_settings": {**self._settings, "token": None}}
        del state["_worker"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._worker = Worker(f"retrieve-rerank {self.model}")

    def __repr__(self) -> str:
        engine = self._engine  # once: `close` may come in between
        state = "not loaded" if engine is None else engine.describe()
        return f"{type(self).__name__}({self.model!r}, {state})"

    @abstractmethod
    def _load(self, checkpoint: Checkpoint) -> E:
        """Load the model; called on the worker's thread."""

    def _loaded(self) -> E:
        """Return the running model; called on the worker's thread only, so that it loads once."""
        here = threading.current_thread()
        # A thread that took over from one that hangs takes its own copy: the other may still be in the middle of it.
        if self._engine is None or self._home is not here:
            from retrieve_rerank.models.loading import Checkpoint  # with all of torch behind it

            self._engine = None
            checkpoint = Checkpoint(**self._settings)
            engine = self._load(checkpoint)
            if self._batch_tokens is not None:
                engine.token_budget = self._batch_tokens
            if self._backend != "torch":
                from retrieve_rerank.models.network import replace_network

                engine.precision = replace_network(
                    engine.model, checkpoint, self._backend, self._backend_precision, engine.weights
                )
            self._engine, self._home = engine, here
            self._limit = self._engine.max_length
        return self._engine

    def _is_loaded(self) -> bool:
        """Whether the next call finds the model loaded. A guess from any thread, good enough to start a clock by."""
        return self._engine is not None and self._home is self._worker.thread

    def _unload(self) -> None:
        self._engine, self._home = None, None
