"""Where an inference server is, how it is asked, and the key that must not be seen."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Literal, get_args
from urllib.parse import urlsplit

from retrieve_rerank.checks import check_count, check_seconds
from retrieve_rerank.errors import InvalidInputError

Protocol = Literal["tei", "infinity", "vllm", "openai"]
TIMEOUT = 60.0  # seconds
MAX_CONCURRENCY = 8

KEY_VARIABLE = "RETRIEVE_RERANK_API_KEY"  # looked at if no key is given, as in a process that got no pickled one


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An inference server, as the user gave it.

    Attributes:
        url: Without a slash at its end; never with a user or a password in it.
        api_key: None takes the environment's RETRIEVE_RERANK_API_KEY, if there is one.
        protocol: What it speaks; None asks it.
        timeout: Seconds that one answer may take.
        max_concurrency: Requests that are under way at once.

    Raises:
        InvalidInputError: If one of them cannot be used.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    protocol: Protocol | None = None
    timeout: float = TIMEOUT
    max_concurrency: int = MAX_CONCURRENCY

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _checked_url(self.url))
        if self.api_key is not None and (not isinstance(self.api_key, str) or not _sendable(self.api_key)):
            raise InvalidInputError("api_key must be a string of ASCII characters in one line; what was given is not")
        if self.protocol is not None and self.protocol not in get_args(Protocol):
            raise InvalidInputError(f"protocol must be one of {', '.join(get_args(Protocol))}; got {self.protocol!r}")
        if check_seconds(self.timeout, "timeout") is None:
            raise InvalidInputError("timeout must be a number of seconds above 0, got None")
        check_count(self.max_concurrency, "max_concurrency")

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        key = self._key
        if not key:
            return {}
        if not _sendable(key):
            raise InvalidInputError(
                f"{KEY_VARIABLE} must be ASCII characters in one line; what the environment has is not"
            )
        return {"Authorization": key if key.startswith(("Bearer ", "Basic ")) else f"Bearer {key}"}

    def without_key(self) -> Endpoint:
        """Return the same without its key, for what is written down."""
        return replace(self, api_key=None)

    def hide(self, text: str) -> str:
        """Return `text` without the key."""
        key = self._key
        if not key:
            return text
        return text.replace(key, "***").replace(key.split(" ", 1)[-1], "***")

    @property
    def _key(self) -> str | None:
        return self.api_key or os.environ.get(KEY_VARIABLE) or None


def _sendable(key: str) -> bool:
    return key.isascii() and key.isprintable() and key == key.strip() and bool(key)


def _checked_url(url: str) -> str:
    # Never shown in an error: there may be a password in it.
    if not isinstance(url, str):
        raise InvalidInputError(f"endpoint must be a URL such as 'http://localhost:8080', got {type(url).__name__}")
    try:
        parts = urlsplit(url.strip())
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise InvalidInputError("endpoint must be a URL such as 'http://localhost:8080'; what was given is none")
    if "@" in parts.netloc:
        raise InvalidInputError(
            "endpoint has a user or a password in it, which would be written wherever an address is; give it as "
            "api_key='Basic …', with user:password in base64"
        )
    if parts.query or parts.fragment:
        raise InvalidInputError("endpoint must end with its path: no ?query and no #fragment; give a key as api_key")
    return url.strip().rstrip("/")
