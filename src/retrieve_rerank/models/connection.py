"""One inference server's connections: requests within bounds, tried again where that helps, with errors that say why.

An answer is not trusted: it has a bound of size and of time, and the form that was expected, or it is a `RemoteError`.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import anyio
import httpx
import tenacity
from pydantic import TypeAdapter, ValidationError

from retrieve_rerank.errors import RemoteError, in_one_line
from retrieve_rerank.models.settings import Endpoint

T = TypeVar("T")

_CONNECT = 5.0  # seconds to wait for a connection
_TRIES = 5
# With some chance in it: callers who failed together do not come back together.
_BACKOFF = tenacity.wait_exponential(multiplier=0.2, max=8) + tenacity.wait_random(0, 0.2)
_LONGEST_WAIT = 60.0  # seconds that a server may let a call wait, all tries together
_PASSING = frozenset({429, 502, 503, 504})  # statuses of a server that is overloaded or starting, or behind a proxy
_BROKEN = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
_ADVICE = {
    404: "Check endpoint, and protocol if it is given",
    429: "Lower max_concurrency, or give the server more room",
}
# Of any answer. Some servers repeat what they were asked.
_ANSWER, _REPEATED = 2 << 20, 2  # bytes, and times as many as were sent
_SHOWN = 200  # characters of what a server says


class RefusedError(RemoteError):
    """A server answered that it will not do what it was asked.

    Attributes:
        status: HTTP's.
        said: What the server said, in one line.
    """

    def __init__(self, message: str, status: int = 0, said: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.said = said


class NoJsonError(RemoteError):
    """What answers does not even call it JSON, such as a web site."""


class _PassingError(Exception):
    """A failure that may be gone at the next try; `wait` is the seconds that the server asks for."""

    def __init__(self, what: str, advice: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.what, self.advice, self.wait = what, advice, wait


class Connection:
    """Asks one server, from one event loop.

    Args:
        endpoint: The server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._client: httpx.AsyncClient | None = None
        self._slots = asyncio.Semaphore(endpoint.max_concurrency)

    async def ask(
        self, method: str, path: str, form: TypeAdapter[T], body: Mapping[str, Any] | None = None, room: int = 0
    ) -> T:
        """Return what the server answers, read from JSON.

        A refused or broken connection, an answer that is cut off and the statuses 429, 502, 503 and 504 are tried again
        a few times, after pauses or after what the server asks for; nothing else is.

        Args:
            method: HTTP's.
            path: Below the endpoint.
            form: Of the answer.
            body: To be sent as JSON.
            room: Bytes that the results may take, beside what any answer may have.

        Raises:
            RefusedError: If the server answers with an error.
            RemoteError: If it cannot be reached, is too slow, or answers something else, or too much.
        """
        url = f"{self.endpoint.url}{path}"
        content = None if body is None else json.dumps(body).encode()
        most = _ANSWER + room + _REPEATED * len(content or b"")
        tries = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_PassingError),
            wait=_pause,
            stop=tenacity.stop_after_attempt(_TRIES) | tenacity.stop_before_delay(_LONGEST_WAIT),
        )
        async with self._slots:
            try:
                return await tries(self._once, method, url, content, form, most)
            except tenacity.RetryError as error:
                count, last = error.last_attempt.attempt_number, error.last_attempt.exception()
                if not isinstance(last, _PassingError):
                    raise
                raise RemoteError(f"{url} {last.what}, {count} times. {last.advice}") from last.__cause__

    async def aclose(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.aclose()

    def shown(self, value: object) -> str:
        """Return what a server sent in a form that an error may have: short, in one line, printable, without keys."""
        text = self.endpoint.hide(" ".join(str(value)[: 20 * _SHOWN].split())).rstrip(".")
        text = "".join(each if each.isprintable() else "\ufffd" for each in text)
        return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"

    def odd(self, what: str) -> RemoteError:
        """Return the error of an answer that cannot be used."""
        return RemoteError(
            f"{self.endpoint.url} answered with {what}. Nothing of it is used; see whether the server serves the right "
            "kind of model"
        )

    async def _once(self, method: str, url: str, content: bytes | None, form: TypeAdapter[T], most: int) -> T:
        response, body = await self._fetch(method, url, content, most)
        if not response.is_success:
            raise self._refused(url, response, body)
        try:
            return form.validate_json(body, strict=True)
        except ValidationError as error:
            wrong = error.errors(include_url=False, include_input=False)[0]
            if wrong["type"] != "json_invalid":
                raise self.odd(f"something unusable ({'.'.join(map(str, wrong['loc']))}: {wrong['msg']})") from error
            if "json" not in response.headers.get("Content-Type", ""):
                raise NoJsonError(f"{url} answered something that is no JSON. Check endpoint") from error
            if "EOF" not in wrong["msg"]:
                raise self.odd(wrong["msg"]) from error
            what = "answered something that is no JSON, or only a part of it"
            raise _PassingError(what, "Is it an inference server?") from error

    async def _fetch(self, method: str, url: str, content: bytes | None, most: int) -> tuple[httpx.Response, bytearray]:
        body = bytearray()
        try:
            with anyio.fail_after(self.endpoint.timeout):
                async with self._open().stream(method, url, content=content) as response:
                    encoding = response.headers.get("Content-Encoding", "").strip().lower()
                    if encoding not in ("", "identity"):  # a few bytes may become any number
                        raise self.odd(f"bytes encoded as {self.shown(encoding)}, which was not asked for")
                    async for part in response.aiter_raw():
                        body += part
                        if len(body) > most:
                            raise self.odd(f"more than {most:,} bytes")
            return response, body
        except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise RemoteError(
                f"{url} gave no answer within {self.endpoint.timeout:g} s. Raise timeout, or see why the server is slow"
            ) from error
        except _BROKEN as error:
            told = in_one_line(error, self.endpoint.hide)
            raise _PassingError(f"failed ({told})", "Is the server running there?") from error
        except httpx.HTTPError as error:
            raise RemoteError(f"{url} cannot be asked: {in_one_line(error, self.endpoint.hide)}") from error

    def _refused(self, url: str, response: httpx.Response, body: bytearray) -> Exception:
        """Return the error of a status, which may pass or not."""
        status, said = response.status_code, self.shown(_message(body))
        advice = _ADVICE.get(status, "See the server's log" if status >= 500 else "")
        if status in (401, 403):
            advice = self.endpoint.key_advice
        if status in _PASSING:
            wait = _retry_after(response.headers.get("Retry-After", ""))
            if wait <= _LONGEST_WAIT:
                return _PassingError(f"answered {status} ({said})", advice, wait)
            advice = f"It asks to come back in {wait:.0f} s"
        if response.is_redirect:
            advice = "It redirects elsewhere, where the key must not go: give that address as endpoint"
        return RefusedError(f"{url} answered {status}: {said}. {advice}".rstrip(". ") + ".", status, said)

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            count = self.endpoint.max_concurrency
            self._client = httpx.AsyncClient(
                headers={**self.endpoint.headers, "Content-Type": "application/json", "Accept-Encoding": "identity"},
                # Our own slots bound the requests. A pool that bounds them, too, may wait for a connection that was not
                # given back when a request was cancelled.
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=count),
                timeout=httpx.Timeout(None, connect=min(_CONNECT, self.endpoint.timeout)),
                verify=not self.endpoint.url.lower().startswith("http://"),  # reading the certificates takes a while
            )
        return self._client


def _pause(state: tenacity.RetryCallState) -> float:
    failure = None if state.outcome is None else state.outcome.exception()
    return max(_BACKOFF(state), failure.wait if isinstance(failure, _PassingError) else 0.0)


def _message(body: bytearray) -> object:
    """Return the part of an error's body that is for people to read."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    for _ in range(_TRIES):  # levels
        if isinstance(found, dict):
            found = next((found[key] for key in ("error", "message", "detail", "msg") if found.get(key)), None)
        elif isinstance(found, list):
            found = found[0] if found else None
    return found if isinstance(found, str) else body.decode(errors="replace")


def _retry_after(value: str) -> float:
    """Return the seconds that a Retry-After header asks for; 0.0 if it asks for none that can be understood."""
    if re.fullmatch(r"\s*\d+\s*", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
