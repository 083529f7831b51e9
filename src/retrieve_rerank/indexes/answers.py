"""What a Chroma server's answer means: a result, a failure worth another try, one that is not, or too much at once."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from retrieve_rerank.errors import InvalidInputError, RemoteError, in_one_line
from retrieve_rerank.retrying import pauses

if TYPE_CHECKING:
    import httpx

# What a server, or a proxy before it, says while it is busy, starting or being replaced.
_FOR_NOW = frozenset({408, 425, 429, 502, 503, 504})
_REFUSED = frozenset({401, 403, 407})
_TOO_LARGE = 413
_MANY = 1_000_000  # tries: it is the seconds that end them
_LONGEST_PAUSE = 5.0
_SHORTEST_SECRET = 8  # characters
_SECRET_NAME = re.compile(r"(?i)auth|token|key|cookie|secret|passw")
_PLAIN_HEADERS = frozenset({"accept", "accept-encoding", "connection", "content-type", "user-agent", "host"})

# What each request holds one of for every record, by the last part of its path.
_ROWS = {
    "upsert": ("ids", "embeddings", "metadatas", "documents", "uris"),
    "update": ("ids", "embeddings", "metadatas", "documents", "uris"),
    "query": ("query_embeddings",),
    "get": ("ids",),
    "delete": ("ids",),
}


class Patience:
    """How long one request has been tried, when it is tried again, and what is said when that ends.

    Args:
        url: The server's.
        headers: Of every request; their values appear in no message.
        seconds: For how long.
    """

    def __init__(self, url: str, headers: Mapping[str, str], seconds: float) -> None:
        parts = urlsplit(url)
        self.server = f"the Chroma server at {parts.hostname}" + (f":{parts.port}" if parts.port else "")
        # A scheme such as "Bearer" is none; nor is what is short, and part of many words, unless its name says so.
        self._secrets = [
            word
            for name, value in headers.items()
            for word in value.split()[-1:]
            if name.lower() not in _PLAIN_HEADERS and (len(word) >= _SHORTEST_SECRET or _SECRET_NAME.search(name))
        ]
        self._seconds = seconds
        self._start = time.monotonic()
        self._pauses = pauses(_MANY, longest=_LONGEST_PAUSE)
        self._tries = 0

    def after(self, error: httpx.HTTPError) -> float:
        """Return the seconds to wait after a connection that failed.

        Raises:
            RemoteError: If it is not worth another try, or the time is up.
        """
        import httpx

        reason = self.hidden(error)
        certificate = "CERTIFICATE_VERIFY_FAILED" in str(error)
        if certificate or isinstance(error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)):
            raise RemoteError(f"{self.server} cannot be spoken to: {reason}") from error
        return self._after(reason, 0.0, error)

    def after_answer(self, response: httpx.Response) -> float:
        """Return the seconds to wait after an answer that tells of a failure for now, or is none.

        Raises:
            RemoteError: If the time is up, or the server asks for more of it.
        """
        reason = f"status {response.status_code}{self.said(response)}"
        if response.is_success:
            reason = "an answer that is not JSON"
        return self._after(reason, _retry_after(response), None)

    def said(self, response: httpx.Response) -> str:
        """Return a server's own words, short, in one line and without secrets, after a colon; or nothing."""
        text = self.hidden(Exception(response.text)).removeprefix("Exception").removeprefix(": ")
        return f": {text}" if text else ""

    def hidden(self, error: Exception) -> str:
        """Return an error in one line, without secrets."""
        return in_one_line(error, self._hide)

    def _hide(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _after(self, reason: str, asked: float, cause: Exception | None) -> float:
        self._tries += 1
        spent = time.monotonic() - self._start
        left = self._seconds - spent
        if left <= 0 or asked > left:
            tried = "once" if self._tries == 1 else f"{self._tries} times in {spent:.0f} s"
            waits = f", and asks to wait {asked:.0f} s" if asked > max(left, 0.0) else ""
            raise RemoteError(
                f"{self.server} does not answer: tried {tried}, the last time {reason}{waits}. Is it running? Once it "
                "is, make the same call again: what was written before is stored, and nothing is written twice"
            ) from cause
        return min(max(next(self._pauses), asked), left)


class TooMuchError(Exception):
    """The server takes no request of this size, or with so many records."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said

    def of(self, path: str, body: Mapping[str, Any] | None) -> InvalidInputError:
        """Return what to tell of a request that cannot be made smaller."""
        ids = (body or {}).get("ids") or []
        which = f"the passage {ids[0]!r}" if path.endswith(("/upsert", "/update")) and ids else "the request"
        return InvalidInputError(f"the server does not take {which}: {self.said}. Split it, or raise the limit")


def read_answer(response: httpx.Response, patience: Patience) -> tuple[Any, bool]:
    """Return an answer, and whether it is a failure that is worth another try.

    Raises:
        ChromaError: What the server says of the request.
        TooMuchError: If the request was too large.
        RemoteError: Whatever else the server says.
    """
    import orjson
    from chromadb.api.base_http_client import BaseHTTPClient
    from chromadb.errors import ChromaError, QuotaError

    status = response.status_code
    if status in _FOR_NOW:
        return None, True
    if status == _TOO_LARGE:
        raise TooMuchError(f"status {status}{patience.said(response)}")
    if status in _REFUSED:
        raise RemoteError(
            f"{patience.server} refuses the credentials (status {status}{patience.said(response)}); give them to the "
            "client: chromadb.HttpClient(…, headers=…) or chromadb.CloudClient(api_key=…)"
        )
    if response.is_success:
        try:
            return orjson.loads(response.content), False
        except ValueError:
            return None, True
    try:
        BaseHTTPClient._raise_chroma_error(response)  # noqa: SLF001 - it knows which error is which
    except QuotaError as error:
        raise TooMuchError(patience.hidden(error)) from error
    except ChromaError:
        raise
    except Exception as error:
        raise RemoteError(f"{patience.server} failed: status {status}{patience.said(response)}") from error
    raise RemoteError(f"{patience.server} sent an answer of status {status}, which is none to this request")


def halves(path: str, body: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return a request as two of half as many records each; none if there are not two to divide."""
    kind = path.rsplit("/", 1)[-1]
    if body is None or (kind in ("get", "delete") and body.get("limit") is not None):
        return []
    rows = {name: body[name] for name in _ROWS.get(kind, ()) if body.get(name) is not None}
    count = max((len(row) for row in rows.values()), default=0)
    if count < 2:
        return []
    parts = (slice(0, count // 2), slice(count // 2, None))
    return [{**body, **{name: row[part] for name, row in rows.items()}} for part in parts]


def joined(answers: Sequence[Any]) -> Any:
    """Return the answers to the parts of a request as the answer to all of it."""
    first = answers[0]
    if not isinstance(first, Mapping):
        return first
    whole: dict[str, Any] = {}
    for name, value in first.items():
        values = [answer.get(name) for answer in answers]
        if isinstance(value, list) and name != "include":
            whole[name] = [row for part in values for row in part or ()]
        else:
            whole[name] = sum(values) if name == "deleted" else value
    return whole


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds that a server asks to wait; a date, which few send, is left to our own pauses."""
    try:
        seconds = float(response.headers.get("Retry-After", 0))
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
