"""What both models share: settings, where they run (a thread of this process, or a server), loading once, freeing."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from retrieve_rerank.errors import InvalidInputError, ModelError, TruncationWarning, shown, warn_caller
from retrieve_rerank.models.precision import Choice
from retrieve_rerank.models.settings import LEFT_BEHIND, Argument, Endpoint, ModelSettings, vouched
from retrieve_rerank.models.threads import EventLoopThread, Worker
from retrieve_rerank.types import Closeable

if TYPE_CHECKING:
    from typing_extensions import Self

    from retrieve_rerank.models.engine import Engine
    from retrieve_rerank.models.loading import Checkpoint
    from retrieve_rerank.models.reading import Limits
    from retrieve_rerank.models.server import RemoteModel, Served

E = TypeVar("E", bound="Engine")
R = TypeVar("R", bound="RemoteModel")
T = TypeVar("T")

_LONG = 1_000  # characters; a text that has more may be longer than a model reads


class DefaultName(str):
    """The name of a model that is taken if none is given; a server's own one is taken instead of it."""

    __slots__ = ()


class Model(Closeable, ABC, Generic[E, R]):
    """A model that is loaded at its first use and runs on a thread of its own, or one behind an inference server.

    Attributes:
        model: Its name or folder; of a server that was asked for no model by name, its address.
    """

    def __init__(self, model: str | os.PathLike[str], settings: ModelSettings) -> None:
        if not isinstance(model, (str, os.PathLike)) or not os.fspath(model).strip():
            raise InvalidInputError(f"model must be a hub name or a folder, got {shown(model)}")
        self.model = str(os.fspath(model))
        given = vouched(self.model, settings.arguments)
        self._endpoint: Endpoint | None = None
        self._wanted: str | None = None  # of a server; None is the only one that it serves
        if settings.endpoint is not None:
            self._endpoint = Endpoint(
                settings.endpoint,
                settings.api_key,
                settings.protocol,
                settings.timeout,
                settings.max_concurrency,
                vouched=given,
            )
            # An address says no more than endpoint does: that is how a model without a name is written down.
            unnamed = isinstance(model, DefaultName) or self.model.startswith(("http://", "https://"))
            self._wanted = None if unnamed else self.model
            self.model = self._wanted or self._endpoint.url
        device = {"device": "cpu"} if settings.backend == "openvino" else {}
        self._settings: dict[str, Any] = {"model": self.model, **settings.arguments, **device}
        self._shown: dict[str, Any] = {"model": self.model, **settings.shown, **device}
        self._start()

    def _start(self) -> None:
        """Make what runs the model; nothing is loaded, and no thread started, before the first call."""
        self._worker = Worker(f"retrieve-rerank {self.model}")
        self._remote: EventLoopThread[R] | None = None
        if self._endpoint is not None:
            self._remote = EventLoopThread(f"retrieve-rerank {self.model}", self._connection(self._endpoint))
        self._engine: E | None = None
        self._limits: Limits | None = None  # the engine's, for warnings, which must not wait for the thread
        self._unsure = True  # whether it must still be said that a server does not say what it cuts
        self._untold: list[str] = []  # what loading found out and the next caller should know

    @property
    def settings(self) -> dict[str, Argument]:
        """The arguments that this model was made with, but for secrets: `CrossEncoder(**settings)` makes another."""
        return dict(self._shown)

    @property
    def loaded_precision(self) -> str | None:
        """The precision that the model computes in, or None before its first use. Loads nothing and never waits.

        Of a model behind a server it is None as well where the server does not say it.
        """
        if self._endpoint is not None:
            served = self._served
            return None if served is None else served.dtype
        engine = self._engine
        return None if engine is None else engine.precision.name

    def redacted(self, text: str) -> str:
        """Return `text` without this model's secrets, for messages that leave the process."""
        if self._endpoint is not None:
            text = self._endpoint.hide(text)
        token = self._settings["token"]
        return text.replace(token, "***") if isinstance(token, str) and token else text

    @property
    def precision(self) -> str:
        """The precision that the model computes in; "unknown" where a server does not say it. Loads the model."""
        if self._endpoint is not None:
            return self._known().dtype or "unknown"
        return self._worker.run_soon(self._loaded).precision.name

    @property
    def device(self) -> str:
        """The device that the model is on, or the server's address. Loads the model."""
        if self._endpoint is not None:
            return self._endpoint.url
        return str(self._worker.run_soon(self._loaded).device)

    @property
    def max_length(self) -> int | None:
        """Tokens that the model reads at once; None is no limit, or none that a server tells. Loads the model."""
        if self._endpoint is not None:
            return self._known().max_length
        return self._worker.run_soon(self._loaded).max_length

    def close(self) -> None:
        """Free the model, or the connections, once the calls already made are done. A later call loads it again."""
        self._worker.close(last=self._unload)
        if self._remote is not None:
            self._remote.close()

    def __getstate__(self) -> dict[str, Any]:
        # The settings are the object; what runs it stays behind, and so do secrets and trust.
        state = {**self.__dict__, "_remote": None, "_engine": None, "_settings": {**self._settings, **LEFT_BEHIND}}
        state["_shown"] = {name: LEFT_BEHIND.get(name, value) for name, value in self._shown.items()}
        state["_endpoint"] = None if self._endpoint is None else self._endpoint.pickled()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __copy__(self) -> Self:
        # Nobody else's: what a pickle leaves behind goes with it.
        kept = {name: self.__dict__[name] for name in ("_settings", "_shown", "_endpoint")}
        made = object.__new__(type(self))
        made.__setstate__({**self.__getstate__(), **kept})
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __repr__(self) -> str:
        if self._endpoint is not None:
            served = self._served
            named = "" if self._wanted is None else f"{self.model!r}, "
            state = "not connected" if served is None else self._described(served)
            return f"{type(self).__name__}({named}endpoint={self._endpoint.url!r}, {state})"
        engine = self._engine  # once: `close` may come in between
        state = "not loaded" if engine is None else engine.describe()
        return f"{type(self).__name__}({self.model!r}, {state})"

    def _described(self, served: Served) -> str:
        """Return what a repr should say of a served model."""
        length = f"max_length={served.max_length}" if served.tells_length else "does not say what it cuts"
        return f"{served.product} serves {served.model!r}, {length}"

    @property
    def _served(self) -> Served | None:
        """What the server said of itself, if it has been asked."""
        resource = None if self._remote is None else self._remote.resource
        return None if resource is None else resource.served

    def _known(self) -> Served:
        """Return what the server says of itself, asking it if need be."""
        if self._remote is None:
            raise TypeError("a local model has no server")  # what the callers make sure of
        return self._remote.run(_served_of)

    def _tell_once(self, texts: Sequence[str]) -> None:
        """Warn of what was found while loading, and if a server may have cut one of these texts without saying so."""
        while self._untold:
            warn_caller(f"{self._untold.pop(0)}. This is said once", UserWarning)
        served = self._served
        if not self._unsure or served is None or served.tells_length:
            return
        longest = max(map(len, texts), default=0)
        if longest > _LONG:
            self._unsure = False
            warn_caller(
                f"{self.device} does not say whether it cut a text, and one of these has {longest} characters: its end "
                "may not have been read. Split such texts into shorter passages. This is said once",
                TruncationWarning,
            )

    @abstractmethod
    def _connection(self, endpoint: Endpoint) -> Callable[[], R]:
        """Return what makes the side that asks the server; it must not hold this object."""

    @abstractmethod
    def _make_engine(self, checkpoint: Checkpoint) -> E:
        """Load the model; called on the worker's thread."""

    def _run(self, here: Callable[[], T], there: Callable[[R], Coroutine[Any, Any, T]], *, short: bool = False) -> T:
        """Return what a call gives, on the model's thread or at its server; a long call lets a short one in."""
        if self._remote is not None:
            return self._remote.run(there)
        return self._worker.run_soon(here) if short else self._worker.run(here)

    async def _arun(
        self, here: Callable[[], T], there: Callable[[R], Coroutine[Any, Any, T]], *, short: bool = False
    ) -> T:
        """As `_run`, without blocking the event loop."""
        if self._remote is not None:
            return await self._remote.arun(there)
        return await (self._worker.arun_soon(here) if short else self._worker.arun(here))

    def _loaded(self) -> E:
        """Return the running model; called on the worker's thread only, so that it loads once."""
        if self._engine is None:
            from retrieve_rerank.models.loading import Checkpoint  # with all of torch behind it

            checkpoint = Checkpoint(**{part.name: self._settings[part.name] for part in fields(Checkpoint)})
            engine = self._load(checkpoint)
            if self._settings["batch_tokens"] is not None:
                engine.token_budget = self._settings["batch_tokens"]
            self._engine, self._limits = engine, engine.limits
        return self._engine

    def _load(self, checkpoint: Checkpoint) -> E:
        """Return an engine that runs: by OpenVINO where it can, if the backend is "auto"."""
        from retrieve_rerank.models.openvino import choose_backend

        precision, wanted = self._settings["precision"], self._settings["backend"]
        engine = self._make_engine(checkpoint)
        backend = choose_backend(wanted, engine.model, precision)
        try:
            engine.start(backend, precision, checkpoint)
        except ModelError as error:
            if wanted != "auto":
                raise
            self._untold.clear()  # loading it once more finds it out again
            engine = self._make_engine(checkpoint)
            self._untold.append(f"torch computes {self.model!r}, which is slower than OpenVINO, because: {error}")
            engine.start(Choice("torch", "OpenVINO failed, as a warning said"), precision, checkpoint)
        return engine

    def _unload(self) -> None:
        engine, self._engine = self._engine, None
        if engine is None:
            return
        from retrieve_rerank.models.engine import release

        device = engine.device
        del engine
        release(device)


async def _served_of(remote: RemoteModel) -> Served:
    return (await remote.server()).served
