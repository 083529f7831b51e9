"""A Chroma server behind its client: asked again when it fails for a while, and never asked for too much at once.

Chroma's client sends each request once, waits for ever, and says nothing of the status of an answer that it does not
know. So a client, or a collection, of a server is used through a `Patient`, which repeats what Chroma's own methods are
asked for. Everything may be asked twice: writing is an upsert, deleting what is gone is no error, and a collection
whose making was not confirmed is found (`find_or_create`).
"""

from __future__ import annotations

import json
import math
import re
import time
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

import numpy as np

from retrieve_rerank.errors import InvalidInputError, RemoteError, in_one_line

if TYPE_CHECKING:
    import tenacity
    from chromadb.api import ClientAPI

T = TypeVar("T")

RETRY_SECONDS = 30.0

_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 300.0  # a write may wait for an index of gigabytes; a machine that is gone never answers
_LARGEST = 16 * 2**20  # bytes of one request; `chroma run` takes 40 MiB, and may hang up on more before it says so
_LONGEST_PAUSE = 5.0
# What a server, or a proxy before it, says while it is busy, starting or being replaced.
_FOR_NOW = frozenset({408, 425, 429, 502, 503, 504})
_REFUSED = frozenset({401, 403, 407})
_TOO_LARGE = 413
_SHORTEST_SECRET = 8  # characters
_SECRET_NAME = re.compile(r"(?i)auth|token|key|cookie|secret|passw")
_PLAIN_HEADERS = frozenset({"accept", "accept-encoding", "connection", "content-type", "user-agent", "host"})

# Of which arguments a method of a collection takes one for every record, and can be asked in parts.
_ROWS = {
    "upsert": ("ids", "embeddings", "metadatas", "documents"),
    "update": ("ids", "embeddings", "metadatas", "documents"),
    "query": ("query_embeddings",),
    "get": ("ids",),
    "delete": ("ids",),
}


def is_server(client: object) -> bool:
    """Whether a Chroma client, or what a collection calls its client, speaks to a server."""
    from chromadb.api.base_http_client import BaseHTTPClient

    return isinstance(getattr(client, "_server", client), BaseHTTPClient)


def with_patience(client: ClientAPI, seconds: float) -> ClientAPI:
    """Return a client whose requests to a server are repeated for up to `seconds`; one of a directory as it is.

    An async client gets a sync one of the same server, tenant, database and settings.

    Raises:
        InvalidInputError: If it is the coroutine that `chromadb.AsyncHttpClient` returns.
    """
    from chromadb.api.async_client import AsyncClient

    if isinstance(client, Coroutine):
        client.close()
        raise InvalidInputError(
            "the client is a coroutine, as chromadb.AsyncHttpClient(…) makes one; await it, or give "
            "chromadb.HttpClient(…), which serves sync and async calls alike"
        )
    if isinstance(client, AsyncClient):
        client = _sync_twin(client)
    return cast("ClientAPI", Patient(client, seconds)) if is_server(client) else client


def _sync_twin(client: Any) -> ClientAPI:
    import chromadb

    settings = client._system.settings.model_copy()  # noqa: SLF001 - there is no public way to it
    made: Any = chromadb.HttpClient(
        settings.chroma_server_host,
        settings.chroma_server_http_port,
        settings.chroma_server_ssl_enabled,
        settings.chroma_server_headers,
        settings,
        client.tenant,
        client.database,
    )
    for part in (made._server, made._admin_client._server):  # noqa: SLF001 - nobody else closes its connections
        weakref.finalize(made, part._session.close)  # noqa: SLF001
    return cast("ClientAPI", made)


class TooMuchError(Exception):
    """The server takes no request of this size, or with so many records."""


class Patient:
    """A client or a collection of Chroma's, of a server: the same methods, whose requests are repeated and divided.

    Args:
        asked: Chroma's object.
        seconds: For how long a request that fails is repeated.
    """

    def __init__(self, asked: Any, seconds: float) -> None:
        import httpx

        self._asked = asked
        self._seconds = seconds
        self._server = getattr(asked, "_server", None) or asked._client  # noqa: SLF001 - there is no public way to it
        session = self._server._session  # noqa: SLF001
        if session.timeout == httpx.Timeout(None):  # Chroma's default: for ever
            session.timeout = httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS, pool=None)

    def like(self, asked: Any) -> Any:
        """Return another object of the same server with the same patience."""
        return Patient(asked, self._seconds)

    @property
    def plain(self) -> Any:
        """Chroma's own object."""
        return self._asked

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self._asked, name)
        return found if name.startswith("_") or not callable(found) else partial(self._whole, name, found)

    def _whole(self, name: str, call: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
        """Return the answer to a request, which may be sent in several, and each of these several times."""
        parts = _halves(name, options) if name in _ROWS and _size_of(options) > _LARGEST else []
        if not parts:
            try:
                return self._again(partial(call, *arguments, **options))
            except TooMuchError as error:
                parts = _halves(name, options)
                if not parts:
                    ids = options.get("ids") or []
                    which = f"the passage {ids[0]!r}" if name in ("upsert", "update") and ids else "the request"
                    raise InvalidInputError(
                        f"the server does not take {which}: {error}. Split it, or raise the limit"
                    ) from error
        return _joined([self._whole(name, call, *arguments, **part) for part in parts])

    def _again(self, call: Callable[[], Any]) -> Any:
        import tenacity

        start = time.monotonic()
        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_for_now),
            wait=partial(_pause, self._seconds),
            stop=partial(_is_up, self._seconds),
        )
        try:
            return tries(call)
        except tenacity.RetryError as ended:
            error = ended.last_attempt.exception()
            raise self._gave_up(cast(Exception, error), ended.last_attempt.attempt_number, start) from error
        except Exception as error:
            raise self._told(error) from error

    def _gave_up(self, error: Exception, tries: int, start: float) -> RemoteError:
        spent = time.monotonic() - start
        tried = "once" if tries == 1 else f"{tries} times in {spent:.0f} s"
        asked = _asked_pause(error)
        waits = f", and asks to wait {asked:.0f} s" if asked > max(self._seconds - spent, 0.0) else ""
        status = _status(error)
        reason = in_one_line(error, self._hide) if status is None else f"status {status}{self._said(error)}"
        if isinstance(error, json.JSONDecodeError):
            reason = "an answer that is not JSON"
        return RemoteError(
            f"{self._name} does not answer: tried {tried}, the last time {reason}{waits}. Is it running? Once it is, "
            "make the same call again: what was written before is stored, and nothing is written twice"
        )

    def _told(self, error: Exception) -> Exception:
        """Return what to raise for an error that another try does not mend: Chroma's own errors as they are."""
        from chromadb.errors import AuthorizationError, ChromaAuthError, ChromaError, QuotaError
        from httpx import TransportError

        status = _status(error)
        if isinstance(error, QuotaError) or status == _TOO_LARGE:
            said = self._said(error)
            return TooMuchError(said.removeprefix(": ") if status is None else f"status {status}{said}")
        if isinstance(error, (AuthorizationError, ChromaAuthError)) or status in _REFUSED:
            said = "" if status is None else f" (status {status})"
            return RemoteError(
                f"{self._name} refuses the credentials{said}{self._said(error)}; give them to the client: "
                "chromadb.HttpClient(…, headers=…) or chromadb.CloudClient(api_key=…)"
            )
        if isinstance(error, TransportError):
            return RemoteError(f"{self._name} cannot be spoken to: {in_one_line(error, self._hide)}")
        if status is not None and not isinstance(error, ChromaError):
            return RemoteError(f"{self._name} failed: status {status}{self._said(error)}")
        return error

    @property
    def _name(self) -> str:
        parts = urlsplit(self._server.get_api_url())
        return f"the Chroma server at {parts.hostname}" + (f":{parts.port}" if parts.port else "")

    def _said(self, error: Exception) -> str:
        """Return a server's own words, short, in one line and without secrets, after a colon; or nothing."""
        text = in_one_line(error, self._hide).removeprefix(type(error).__name__).removeprefix(": ")
        return f": {text}" if text else ""

    def _hide(self, text: str) -> str:
        for name, value in self._server.get_request_headers().items():
            for secret in value.split()[-1:]:  # a scheme such as "Bearer" is none
                # Nor is what is short, and part of many words, unless its name says so.
                if len(secret) >= _SHORTEST_SECRET or _SECRET_NAME.search(name):
                    text = text if name.lower() in _PLAIN_HEADERS else text.replace(secret, "***")
        return text


def _status(error: BaseException) -> int | None:
    """Return the status of an answer that Chroma made an error of without knowing it; None of any other error."""
    response = getattr(error.__context__, "response", None)
    return None if response is None else int(response.status_code)


def _is_for_now(error: BaseException) -> bool:
    from chromadb.errors import RateLimitError
    from httpx import LocalProtocolError, TransportError, UnsupportedProtocol

    if isinstance(error, TransportError):
        never = isinstance(error, (UnsupportedProtocol, LocalProtocolError))
        return not never and "CERTIFICATE_VERIFY_FAILED" not in str(error)
    return isinstance(error, (RateLimitError, json.JSONDecodeError)) or _status(error) in _FOR_NOW


def _asked_pause(error: BaseException | None) -> float:
    """Return the seconds that a server asks to wait; a date, which few send, is left to our own pauses."""
    response = getattr(getattr(error, "__context__", None), "response", None)
    try:
        seconds = float(response.headers.get("Retry-After", 0)) if response is not None else 0.0
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _error_of(state: tenacity.RetryCallState) -> BaseException | None:
    return None if state.outcome is None else state.outcome.exception()


def _pause(seconds: float, state: tenacity.RetryCallState) -> float:
    """Return how long to wait: longer each time, never all callers at once, and not beyond the end."""
    from tenacity import wait_exponential, wait_random

    pause = wait_exponential(multiplier=0.25, max=_LONGEST_PAUSE)(state) * wait_random(0.5, 1.0)(state)
    left = seconds - (state.seconds_since_start or 0.0)
    return max(0.0, min(max(pause, _asked_pause(_error_of(state))), left))


def _is_up(seconds: float, state: tenacity.RetryCallState) -> bool:
    left = seconds - (state.seconds_since_start or 0.0)
    return left <= 0 or _asked_pause(_error_of(state)) > left


def _size_of(options: Mapping[str, Any]) -> int:
    """Return about how many bytes a request has, as JSON."""
    import orjson  # what Chroma's client writes with

    texts = [value for name, value in options.items() if name in ("ids", "documents", "metadatas")]
    numbers = sum(np.size(value) for name, value in options.items() if name.endswith("embeddings"))
    return len(orjson.dumps(texts)) + 12 * int(numbers)


def _halves(name: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a request as two of half as many records each; none if there are not two to divide."""
    rows = {row: options[row] for row in _ROWS.get(name, ()) if options.get(row) is not None}
    count = max((len(row) for row in rows.values()), default=0)
    if count < 2 or options.get("limit") is not None:
        return []
    parts = (slice(0, count // 2), slice(count // 2, None))
    return [{**options, **{row: values[part] for row, values in rows.items()}} for part in parts]


def _joined(answers: Sequence[Any]) -> Any:
    """Return the answers to the parts of a request as the answer to all of it."""
    first = answers[0]
    if not isinstance(first, Mapping):
        return first
    return {
        name: value if value is None or name == "included" else [row for answer in answers for row in answer[name]]
        for name, value in first.items()
    }
