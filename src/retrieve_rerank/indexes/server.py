"""A Chroma server behind its client: asked again when it fails for a while, in sync code and in async code.

Chroma's client sends each request once, waits for ever, and says nothing of the status of an answer that it does not
know. Its async one checks no certificate, sends no token of an auth provider, and in one event loop sends the headers
of one server to the next. So the client's own requests are replaced here, in one place, by the ones of `Requests` and
`AsyncRequests`; what Chroma's classes make of the answers stays theirs.

Everything that is asked may be asked twice: writing is an upsert, deleting what is gone is no error, and a collection
whose making was not confirmed is found (`find_or_create`).
"""

from __future__ import annotations

import asyncio
import copy
import math
import time
import weakref
from collections.abc import AsyncGenerator, Coroutine
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar, cast

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.answers import Patience, TooMuchError, halves, joined, read_answer

if TYPE_CHECKING:
    import chromadb
    import httpx
    from chromadb.api import ClientAPI
    from chromadb.api.async_fastapi import AsyncFastAPI
    from chromadb.api.fastapi import FastAPI
    from chromadb.api.models.AsyncCollection import AsyncCollection

T = TypeVar("T")

RETRY_SECONDS = 30.0

_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 300.0  # a write may wait for an index of gigabytes; a machine that is gone never answers
_LARGEST = 16 * 2**20  # bytes of one request; `chroma run` takes 40 MiB, and may hang up on more before it says so


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that never waits: code that is written once, for both kinds of callers."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast(T, end.value)
    coroutine.close()
    raise RuntimeError("a call that must not wait did")


def check_patience(seconds: float) -> float:
    """Return the seconds for which a failed request is repeated, or raise InvalidInputError."""
    if isinstance(seconds, bool) or not isinstance(seconds, Real) or not 0 <= seconds < math.inf:
        raise InvalidInputError(
            f"retry_seconds must be a number of seconds from 0 on, for which a server is asked again; got {seconds!r}"
        )
    return float(seconds)


def is_server(client: object) -> bool:
    """Whether a Chroma client, or what a collection calls its client, speaks to a server."""
    from chromadb.api.base_http_client import BaseHTTPClient

    return isinstance(getattr(client, "_server", client), BaseHTTPClient)


def with_patience(client: ClientAPI, seconds: float) -> ClientAPI:
    """Return a client of the same server, tenant and database, whose requests are repeated for up to `seconds`.

    An async client gets a sync one with its settings. What is given stays as it is.

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
    twin = isinstance(client, AsyncClient)
    if not is_server(client):
        return client
    made = copy.copy(cast("Any", _sync_twin(client) if twin else client))
    made._server = _patient(made._server, seconds)  # noqa: SLF001 - there is no public way to Chroma's requests
    if twin:  # nobody else closes its connections, and Chroma's own close does not
        for part in (made._server, made._admin_client._server):  # noqa: SLF001
            weakref.finalize(made, part._session.close)  # noqa: SLF001
    return cast("ClientAPI", made)


def collection_with_patience(handle: chromadb.Collection, seconds: float) -> chromadb.Collection:
    """Return the same live collection, with requests as `with_patience` makes them."""
    made = copy.copy(handle)
    made._client = _patient(cast("FastAPI", handle._client), seconds)  # noqa: SLF001
    return made


def async_collection(handle: chromadb.Collection) -> AsyncCollection:
    """Return the async form of a collection that `with_patience` found: same server, headers and patience."""
    from chromadb.api.async_fastapi import AsyncFastAPI
    from chromadb.api.models.AsyncCollection import AsyncCollection

    server = cast("FastAPI", handle._client)  # noqa: SLF001
    made: Any = AsyncFastAPI(server._system)  # noqa: SLF001
    made._make_request = AsyncRequests(server, cast("Any", server)._make_request.seconds)  # noqa: SLF001
    return AsyncCollection(cast("AsyncFastAPI", made), handle._model, embedding_function=None)  # noqa: SLF001


def _sync_twin(client: Any) -> ClientAPI:
    import chromadb

    settings = client._system.settings.model_copy()  # noqa: SLF001
    return chromadb.HttpClient(
        settings.chroma_server_host,
        settings.chroma_server_http_port,
        settings.chroma_server_ssl_enabled,
        settings.chroma_server_headers,
        settings,
        client.tenant,
        client.database,
    )


def _patient(server: FastAPI, seconds: float) -> FastAPI:
    made: Any = copy.copy(server)
    made._make_request = Requests(server, seconds)  # noqa: SLF001
    return cast("FastAPI", made)


class _Requests:
    """What a request does, whoever sends it.

    Args:
        server: Chroma's own way to the server: address, headers, connections.
        seconds: For how long a request that fails is repeated.
    """

    def __init__(self, server: FastAPI, seconds: float) -> None:
        self.server, self.seconds = server, seconds

    async def asked(self, method: str, path: str, body: Any, params: Any) -> Any:
        """Return the answer to a request, which may be sent in several, and each of these several times."""
        import orjson  # what Chroma's client writes and reads with

        content = None if body is None else orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        parts = halves(path, body) if content is not None and len(content) > _LARGEST else []
        if not parts:
            try:
                return await self._one(method, path, content, params)
            except TooMuchError as error:
                parts = halves(path, body)
                if not parts:
                    raise error.of(path, body) from error
        return joined([await self.asked(method, path, part, params) for part in parts])

    async def _one(self, method: str, path: str, content: bytes | None, params: Any) -> Any:
        import httpx

        patience = Patience(self.server.get_api_url(), self.server.get_request_headers(), self.seconds)
        while True:
            try:
                response = await self.send(method, self.server.get_api_url() + _quoted(path), content, params)
            except httpx.HTTPError as error:
                pause = patience.after(error)
            else:
                answer, failed = read_answer(response, patience)
                if not failed:
                    return answer
                pause = patience.after_answer(response)
            await self.sleep(pause)

    async def send(self, method: str, url: str, content: bytes | None, params: Any) -> httpx.Response:
        """Send one request."""
        raise NotImplementedError

    async def sleep(self, seconds: float) -> None:
        """Wait for the next try."""
        raise NotImplementedError


class Requests(_Requests):
    """Takes the place of `FastAPI._make_request`."""

    def __call__(self, method: str, path: str, *, json: Any = None, params: Any = None) -> Any:
        """Return the answer to a request."""
        return at_once(self.asked(method, path, json, params))

    async def send(self, method: str, url: str, content: bytes | None, params: Any) -> httpx.Response:
        """Send one request, without waiting as a coroutine does."""
        session = self.server._session  # noqa: SLF001
        return session.request(method, url, content=content, params=params, timeout=_timeout())

    async def sleep(self, seconds: float) -> None:
        """Wait, without waiting as a coroutine does."""
        time.sleep(seconds)


class AsyncRequests(_Requests):
    """Takes the place of `AsyncFastAPI._make_request`: connections of its own for each event loop."""

    def __init__(self, server: FastAPI, seconds: float) -> None:
        super().__init__(server, seconds)
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient]
        self._clients = weakref.WeakKeyDictionary()

    async def __call__(self, method: str, path: str, *, json: Any = None, params: Any = None) -> Any:
        """Return the answer to a request."""
        return await self.asked(method, path, json, params)

    async def send(self, method: str, url: str, content: bytes | None, params: Any) -> httpx.Response:
        """Send one request."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = _new_client(self.server)
            await _close_with(loop, self._clients[loop])
        headers = self.server.get_request_headers()  # of today: a token may have been renewed
        return await self._clients[loop].request(method, url, content=content, params=params, headers=headers)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


# One for each client. Nobody may come to close a client, but an event loop that ends ends its generators.
_ends: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[AsyncGenerator[None, None]]]
_ends = weakref.WeakKeyDictionary()


def _new_client(server: FastAPI) -> httpx.AsyncClient:
    import httpx

    verify = server._settings.chroma_server_ssl_verify  # noqa: SLF001
    return httpx.AsyncClient(verify=True if verify is None else verify, limits=server.http_limits, timeout=_timeout())


async def _close_with(loop: asyncio.AbstractEventLoop, client: httpx.AsyncClient) -> None:
    """Have a client closed at the end of an event loop: a task of its own would be cancelled then."""

    async def last() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            _ends.pop(loop, None)  # whose generators know the loop: it would stay for ever
            await client.aclose()

    end = last()
    _ends.setdefault(loop, []).append(end)
    await anext(end)


def _quoted(path: str) -> str:
    from urllib.parse import quote

    return quote(path, safe="/")


def _timeout() -> httpx.Timeout:
    import httpx

    return httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS, pool=None)
