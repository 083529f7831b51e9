"""One server's connections: requests within a bound, tried again where that helps, with errors that say what failed."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from retrieve_rerank.errors import RemoteError, in_one_line
from retrieve_rerank.models.settings import Endpoint
from retrieve_rerank.retrying import TRIES, pauses

_CONNECT = 5.0  # seconds to wait for a connection
_LONGEST_WAIT = 60.0  # seconds that a server may tell a client to wait
_LONGEST_BODY = 200  # characters of an error's body that are shown
_PASSING = frozenset({429, 502, 503, 504})  # overloaded, or starting, or behind a proxy that is
_BROKEN = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
_ADVICE = {
    404: "Check endpoint, and protocol if it is given",
    429: "Lower max_concurrency, or give the server more room",
}


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


class ForeignError(RemoteError):
    """What answers is something else than an inference server, such as a web site."""


@dataclass(frozen=True, slots=True)
class _Passing:
    """A failure that may be gone at the next try: what, what to do if not, and the seconds that the server asks for."""

    what: str
    advice: str
    wait: float = 0.0
    cause: Exception | None = None


class Connection:
    """Asks one server, from one event loop.

    Args:
        endpoint: The server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._client: httpx.AsyncClient | None = None
        self._slots = asyncio.Semaphore(endpoint.max_concurrency)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return what the server answers, read from JSON.

        A refused or broken connection, an answer that is cut off and the statuses 429, 502, 503 and 504 are tried again
        a few times, after pauses or after what the server asks for; nothing else is.

        Raises:
            RefusedError: If the server answers with an error.
            ForeignError: If what answers is no inference server.
            RemoteError: If it cannot be reached, is too slow, or answers something that is no JSON.
        """
        url = f"{self.endpoint.url}{path}"
        waits = pauses()
        async with self._slots:
            while True:
                answer = await self._once(method, url, body)
                if not isinstance(answer, _Passing):
                    return answer
                wait = next(waits, None)
                if wait is None:
                    raise RemoteError(f"{url} {answer.what}, {TRIES} times. {answer.advice}") from answer.cause
                await asyncio.sleep(max(wait, answer.wait))

    async def aclose(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _once(self, method: str, url: str, body: Any) -> Any:
        content = None if body is None else json.dumps(body).encode()
        try:
            response = await asyncio.wait_for(self._open().request(method, url, content=content), self.endpoint.timeout)
        except (asyncio.TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise RemoteError(
                f"{url} gave no answer within {self.endpoint.timeout:g} s. Raise timeout, or see why the server is slow"
            ) from error
        except _BROKEN as error:
            return _Passing(f"failed ({self._told(error)})", "Is the server running there?", cause=error)
        except httpx.HTTPError as error:
            raise RemoteError(f"{url} cannot be asked: {self._told(error)}") from error
        if not response.is_success:
            return self._refused(url, response)
        try:
            return response.json()
        except ValueError as error:
            if "json" not in response.headers.get("Content-Type", ""):
                raise ForeignError(f"{url} answered something that is no JSON. Check endpoint") from error
            what = "answered something that is no JSON, or only a part of it"
            return _Passing(what, "Is it an inference server?", cause=error)

    def _refused(self, url: str, response: httpx.Response) -> _Passing:
        """Return that it may pass, or raise that it will not."""
        status, said = response.status_code, self._said(response)
        advice = _ADVICE.get(status, "See the server's log" if status >= 500 else "")
        if status in (401, 403):
            advice = self.endpoint.key_advice
        if status in _PASSING:
            wait = _retry_after(response.headers.get("Retry-After", ""))
            if wait <= _LONGEST_WAIT:
                return _Passing(f"answered {status} ({said})", advice, wait)
            advice = f"It asks to come back in {wait:.0f} s"
        if response.is_redirect:
            advice = "It redirects elsewhere, where the key must not go: give that address as endpoint"
        raise RefusedError(f"{url} answered {status}: {said}. {advice}".rstrip(". ") + ".", status, said)

    def _said(self, response: httpx.Response) -> str:
        try:
            found = _message(response.json())
        except ValueError:
            found = response.text
        text = self.endpoint.hide(" ".join(found.split())).rstrip(".")
        return text if len(text) <= _LONGEST_BODY else text[: _LONGEST_BODY - 1] + "…"

    def _told(self, error: Exception) -> str:
        return in_one_line(error, self.endpoint.hide)

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            count = self.endpoint.max_concurrency
            self._client = httpx.AsyncClient(
                headers={**self.endpoint.headers, "Content-Type": "application/json"},
                limits=httpx.Limits(max_connections=count, max_keepalive_connections=count),
                timeout=httpx.Timeout(None, connect=min(_CONNECT, self.endpoint.timeout)),
                verify=not self.endpoint.url.lower().startswith("http://"),  # reading the certificates takes a while
            )
        return self._client


def _message(answer: Any) -> str:
    """Return the part of an error's body that is for people to read."""
    for key in ("error", "message", "detail", "msg"):
        if isinstance(answer, dict) and answer.get(key):
            return _message(answer[key])
    if isinstance(answer, list) and answer:
        return _message(answer[0])
    return answer if isinstance(answer, str) else json.dumps(answer)


def _retry_after(value: str) -> float:
    """Return the seconds that a Retry-After header asks for; 0.0 if it asks for none."""
    if re.fullmatch(r"\s*\d+\s*", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
