"""Models behind an inference server: how one is asked, and what is made of its answers.

Two forms of requests are known: that of Text Embeddings Inference, and the one that OpenAI, Cohere and Jina began and
that Infinity, vLLM and others speak. No number is taken for a text's unless the server says by its index that it is.
Everything here runs on one event loop, which many callers share.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import AliasChoices, Field, TypeAdapter
from typing_extensions import TypedDict

from retrieve_rerank.errors import InvalidInputError, ModelError, RemoteError, warn_caller
from retrieve_rerank.models.calibration import from_probabilities
from retrieve_rerank.models.connection import Connection, NoJsonError, RefusedError
from retrieve_rerank.models.ranking import Scoring
from retrieve_rerank.models.settings import Endpoint
from retrieve_rerank.types import Metric, Scale

Task = Literal["embed", "rerank"]
Vectors: TypeAlias = npt.NDArray[np.float32]
T = TypeVar("T")
Send: TypeAlias = Callable[[Sequence[str], bool], Awaitable[Sequence[T]]]  # texts, and whether they may be cut

_ITEMS = 32  # texts in one request, where the server does not say how many it takes
_MOST_ITEMS = 256  # whatever it says: one answer must not be too large
_SCORE, _NUMBER, _WIDEST = 256, 32, 8_192  # bytes that a score takes, and a number of a vector, and numbers of one
_IN_TIME = 8  # texts in a request where there is a deadline: few enough for the first to be there in time
_PER_TOKEN = 3  # characters; a text with fewer a token is seldom too long
_TOO_LONG = re.compile(r"(?i)less than \d+ (?:tokens|characters)|maximum context length|longer than the maximum")
_TOO_MANY = re.compile(r"(?i)maximum allowed batch size (\d+)|at most (\d+) items?\b")
_DIVIDE = (413, 422)  # statuses after which half as much may be taken, and one text alone shows what is wrong

_SHORTEST, _LONGEST = 1e-12, 1e18  # vectors; beyond, float32 cannot hold the square of a length

_Number: TypeAlias = Annotated[float, Field(ge=-3e38, le=3e38, allow_inf_nan=False)]  # what float32 can hold
_Numbers: TypeAlias = Annotated[list[_Number], Field(fail_fast=True)]


class _Row(TypedDict):
    """What an answer says of one text."""

    index: int
    value: Annotated[
        _Number | _Numbers | str, Field(validation_alias=AliasChoices("score", "relevance_score", "embedding"))
    ]


class _Rows(TypedDict):
    rows: Annotated[list[_Row], Field(fail_fast=True, validation_alias=AliasChoices("results", "data"))]


_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)
_BARE_ROWS: TypeAdapter[list[_Row]] = TypeAdapter(Annotated[list[_Row], Field(fail_fast=True)])
_ROWS: TypeAdapter[_Rows] = TypeAdapter(_Rows)
_VECTORS: TypeAdapter[list[Any]] = TypeAdapter(Annotated[list[_Numbers], Field(fail_fast=True)])


@dataclass(frozen=True, slots=True)
class Served:
    """What a server says of itself.

    Attributes:
        product: "tei", "infinity", "vllm" or "openai".
        model: The name it serves the model under.
        revision: The checkpoint's commit, if it says so.
        dtype: What it computes in, if it says so.
        max_length: Tokens that the model reads, if it says so.
        items: Texts that it takes in one request.
        prefix: What stands before its paths.
    """

    product: str
    model: str
    revision: str | None = None
    dtype: str | None = None
    max_length: int | None = None
    items: int = _ITEMS
    prefix: str = ""

    @property
    def tells_length(self) -> bool:
        """Whether it says that a text is too long, unless it is asked to cut it."""
        return self.product in ("tei", "vllm")


class Server:
    """A server of which it is known what it serves: asks in its form, and reads what it answers.

    Args:
        connection: To the server.
        served: What it says of itself.

    Attributes:
        items: Texts to put into one request; less once the server refused as many.
        width: Length of its vectors, once known.
    """

    def __init__(self, connection: Connection, served: Served) -> None:
        self.connection = connection
        self.served = served
        self.items = served.items
        self.width = 0

    async def scores(self, query: str, texts: Sequence[str], *, cut: bool = False) -> list[float]:
        """Return a score a text, in their order; `cut` lets the server cut what is too long."""
        room = _SCORE * len(texts)
        if self.served.product == "tei":
            body: dict[str, Any] = {"query": query, "texts": list(texts), "raw_scores": True, "truncate": cut}
            rows = await self.connection.ask("POST", "/rerank", _BARE_ROWS, body, room)
        else:
            # Both of vLLM: the latter in versions before 0.12.
            raw = {"infinity": {"raw_scores": True}, "vllm": {"use_activation": False, "activation": False}}
            body = {"model": self.served.model, "query": query, "documents": list(texts), **self._cutting(cut=cut)}
            body |= raw.get(self.served.product, {})
            path = f"{self.served.prefix}/rerank"
            rows = (await self.connection.ask("POST", path, _ROWS, body, room))["rows"]
        scores = self._by_index(rows, len(texts))
        return [score if isinstance(score, float) else self._refuse("a score that is no number") for score in scores]

    async def vectors(
        self, texts: Sequence[str], *, cut: bool = False, normalize: bool | None = None
    ) -> npt.NDArray[np.float32]:
        """Return an array (len(texts), width); `normalize` goes to servers that know it."""
        room = _NUMBER * (self.width or _WIDEST) * len(texts)
        if self.served.product == "tei":
            # In the order of the texts by definition. "" is refused; tokenizers read it as they read a space.
            body: dict[str, Any] = {"inputs": [text or " " for text in texts], "truncate": cut}
            body |= {} if normalize is None else {"normalize": normalize}
            rows: list[Any] = await self.connection.ask("POST", "/embed", _VECTORS, body, room)
        elif normalize is False:
            raise RemoteError(
                f"normalize=False cannot be asked of {self.connection.endpoint.url}: this kind of server gives its "
                "vectors as it does. Leave normalize out"
            )
        else:
            # base64 is exact, and a fraction of the time to read.
            encoding = {} if self.served.product == "openai" else {"encoding_format": "base64"}
            body = {"model": self.served.model, "input": list(texts), **encoding, **self._cutting(cut=cut)}
            path = f"{self.served.prefix}/embeddings"
            answer = await self.connection.ask("POST", path, _ROWS, body, room)
            rows = [self._decoded(row) for row in self._by_index(answer["rows"], len(texts))]
        widths = sorted({len(row) for row in rows})
        if len(rows) != len(texts) or len(widths) != 1 or not widths[0]:
            self._refuse(f"{len(rows)} vectors of {self.connection.shown(widths)} numbers for {len(texts)} texts")
        self.width = self.width or widths[0]
        if widths != [self.width]:
            raise RemoteError(
                f"{self.connection.endpoint.url} gave vectors of length {widths[0]}, and of {self.width} before. Does "
                "it still serve the same model? Make the encoder again"
            )
        array = np.asarray(rows, np.float32)
        lengths = np.linalg.norm(array.astype(np.float64), axis=1)
        if bad := [length for length in lengths if not _SHORTEST < length < _LONGEST]:
            self._refuse(f"a vector whose length is {bad[0]:g}; no distance can be taken from it")
        return array

    async def divided(self, texts: Sequence[str], send: Send[T]) -> tuple[list[T], list[bool]]:
        """Return what the server answers to each text, and which texts it had to cut.

        A request that holds too much is halved. A text that is too long by itself is sent again to be cut.
        """
        try:
            return list(await send(texts, False)), [False] * len(texts)  # noqa: FBT003 - strictly
        except RefusedError as error:
            told = _TOO_MANY.search(error.said)
            if told:
                self.items = min(self.items, max(1, int(told[1] or told[2])))
            may_be_long = self.served.tells_length and error.status in (400, *_DIVIDE)
            too_long = may_be_long and _TOO_LONG.search(error.said)
            if len(texts) == 1 and too_long:
                return list(await send(texts, True)), [True]  # noqa: FBT003
            if len(texts) == 1 or not (told or too_long or error.status in _DIVIDE):
                raise
        half = len(texts) // 2
        parts = await together([self.divided(part, send) for part in (texts[:half], texts[half:])])
        return [row for rows, _ in parts for row in rows], [cut for _, cuts in parts for cut in cuts]

    def parts(self, texts: Sequence[str], beside: str, size: int) -> list[list[int]]:
        """Return the positions of the texts of each request: what may be too long does not go with the rest."""
        limit = self.served.max_length
        groups: tuple[list[int], list[int]] = ([], [])
        for position, text in enumerate(texts):
            groups[limit is not None and len(beside) + len(text) > _PER_TOKEN * limit].append(position)
        size = min(size, self.items)
        parts = [group[start : start + size] for group in groups for start in range(0, len(group), size)]
        return sorted(parts)  # by their first text, which is where the best candidates are

    def _cutting(self, *, cut: bool) -> dict[str, int]:
        return {"truncate_prompt_tokens": -1} if cut and self.served.product == "vllm" else {}

    def _by_index(self, rows: Sequence[_Row], count: int) -> list[float | list[float] | str]:
        """Return what rows say, in the order of the texts."""
        found = {row["index"]: row["value"] for row in rows}
        if len(rows) != count or found.keys() != set(range(count)):
            shown = self.connection.shown([row["index"] for row in rows[:count]])
            self._refuse(f"the indices {shown} for {count} texts; expected each from 0 to {count - 1} once")
        return [found[index] for index in range(count)]

    def _decoded(self, row: float | list[float] | str) -> Sequence[float] | npt.NDArray[np.float32]:
        try:
            if isinstance(row, str):
                return np.frombuffer(base64.b64decode(row, validate=True), "<f4")
        except ValueError:
            self._refuse("a vector that is no base64 of float32")
        return row if isinstance(row, list) else self._refuse("a vector that is no list of numbers")

    def _refuse(self, what: str) -> NoReturn:
        raise self.connection.odd(what)


async def find_server(connection: Connection, model: str | None, task: Task) -> Server:
    """Ask a server what it is and what it serves.

    Args:
        connection: To the server, whose endpoint may say the protocol.
        model: The model that is wanted; None is the only one that fits.
        task: What it is wanted for.

    Raises:
        ModelError: If the server has no such model, or one of another kind.
        RemoteError: If it cannot be asked, or speaks nothing known here.
    """
    protocol = connection.endpoint.protocol
    if protocol in (None, "tei"):
        info = await _look(connection, "/info")
        if isinstance(info, dict) and _text(info.get("model_id")):
            return Server(connection, _served_by_tei(connection, info, model, task))
    if protocol != "tei":
        told = protocol is not None and model is not None  # it need not list what it has, nor let everybody see it
        for prefix in ("",) if connection.endpoint.url.endswith("/v1") else ("/v1", ""):
            models = await _look(connection, f"{prefix}/models", lenient=told)
            rows = models.get("data") if isinstance(models, dict) else None
            if isinstance(rows, list) and rows and all(isinstance(row, dict) and _text(row.get("id")) for row in rows):
                return Server(connection, _served_by_name(connection, rows, model, task, prefix))
        if protocol is not None and model is not None:
            return Server(connection, Served(protocol, model))
    raise RemoteError(
        f"{connection.endpoint.url} answers neither /info as Text Embeddings Inference nor /models or /v1/models as "
        "Infinity and vLLM do. Check endpoint; for another server with /rerank and /embeddings give "
        "protocol='openai' and the model's name"
    )


async def _look(connection: Connection, path: str, *, lenient: bool = False) -> Any:
    """Return what a path answers, or None where there is no such path, or with `lenient`, where it is refused."""
    try:
        return await connection.ask("GET", path, _ANYTHING)
    except NoJsonError:
        return None
    except RefusedError as error:
        if lenient or error.status in (404, 405):
            return None
        raise


def _served_by_tei(connection: Connection, info: Mapping[str, Any], model: str | None, task: Task) -> Served:
    kind = info.get("model_type")
    kinds = [str(key).lower() for key in (kind if isinstance(kind, dict) else [kind] if kind else [])]
    able = not kinds or {"rerank": "reranker", "embed": "embedding"}[task] in kinds
    name = _chosen(connection, [(info["model_id"], "", able)], model, task)
    return Served(
        "tei",
        name,
        revision=_text(info.get("model_sha")),
        dtype=_text(info.get("model_dtype")),
        max_length=_count(info.get("max_input_length")),
        items=min(_count(info.get("max_client_batch_size")) or _ITEMS, _MOST_ITEMS),
    )


def _served_by_name(
    connection: Connection, rows: Sequence[Mapping[str, Any]], model: str | None, task: Task, prefix: str
) -> Served:
    known = [
        # A list is Infinity's; others have something else under this name.
        (row["id"], _text(row.get("root")) or "", not isinstance(can := row.get("capabilities"), list) or task in can)
        for row in rows
    ]
    name = _chosen(connection, known, model, task)
    row = next(row for row in rows if row["id"] == name)
    owner = row.get("owned_by")
    product = connection.endpoint.protocol or (owner if owner in ("infinity", "vllm") else "openai")
    return Served(product, name, max_length=_count(row.get("max_model_len")), prefix=prefix)


def _chosen(connection: Connection, known: Sequence[tuple[str, str, bool]], model: str | None, task: Task) -> str:
    """Return the one of the served models (name, other name, whether it is of the wanted kind) that is asked for."""
    asked = [each for each in known if model in (None, each[0])]
    asked = asked or [each for each in known if _same(model or "", each[0]) or _same(model or "", each[1])]
    fitting = [name for name, _, able in asked if able]
    if len(fitting) == 1:
        return fitting[0]
    names = connection.shown(", ".join(repr(name) for name, _, _ in known))
    if asked and not fitting:
        wanted = "a cross-encoder, for re-ranking" if task == "rerank" else "a bi-encoder, for embeddings"
        raise ModelError(
            f"{connection.endpoint.url} serves {names}, and what was asked for is something else; expected {wanted}"
        )
    told = "no model was named" if model is None else f"model={model!r} was asked for"
    raise ModelError(f"{connection.endpoint.url} serves {names}, and {told}. Give one of these as model")


def _same(asked: str, served: str) -> bool:
    """Whether two names are one, where one of them may have folders before it."""
    one, other = asked.rstrip("/"), served.rstrip("/")
    return bool(other) and (one == other or one.endswith(f"/{other}") or other.endswith(f"/{one}"))


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 < value < 1 << 31 else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.isprintable() and 0 < len(value) <= 300 else None


class RemoteModel:
    """What both kinds share: finding out whom one talks to, once.

    Args:
        endpoint: The server.
        model: As `find_server` takes it.
        task: What the model is for.

    Attributes:
        served: What the server says of itself, once known.
    """

    def __init__(self, endpoint: Endpoint, model: str | None, task: Task) -> None:
        self._connection = Connection(endpoint)
        # Of one call; the rest waits out here and not before the server, where a short call would wait behind it.
        self._at_once = max(1, endpoint.max_concurrency - 1)
        self._model, self._task = model, task
        self._finding: asyncio.Task[Server] | None = None
        self.served: Served | None = None

    async def server(self) -> Server:
        """Return the server. Found out once, by whoever comes first, even if that one gives up."""
        if self._finding is None or (self._finding.done() and (self._finding.cancelled() or self._finding.exception())):
            self._finding = asyncio.ensure_future(self._find())
            # An error that nobody waited for is no news: the next caller finds out anew.
            self._finding.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._finding)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._connection.aclose()

    async def _find(self) -> Server:
        server = await find_server(self._connection, self._model, self._task)
        self.served = server.served
        return server


class RemoteCrossEncoder(RemoteModel):
    """Scores behind a server.

    Args:
        endpoint: The server.
        model: As `find_server` takes it.
        scale: What its scores are; None is what it gives where logits are asked for.
    """

    def __init__(self, endpoint: Endpoint, model: str | None, scale: Scale | None) -> None:
        super().__init__(endpoint, model, "rerank")
        self._given = scale

    @property
    def scale(self) -> Scale:
        """What the scores are. A server that only speaks the standard, which knows no logits, gives probabilities."""
        standard = self.served is not None and self.served.product == "openai"
        return self._given or ("probabilities" if standard else "logits")

    async def score(self, scorings: Sequence[Scoring]) -> None:
        """Score the texts of one or more queries, the first requests for the first texts."""
        if not any(scoring.texts for scoring in scorings):
            return
        server = await self.server()
        calls = [
            self._score(server, scoring, part)
            for scoring in scorings
            for part in server.parts(scoring.texts, scoring.query, _IN_TIME if scoring.deadline else server.items)
        ]
        await together(calls, self._at_once)

    async def _score(self, server: Server, scoring: Scoring, positions: Sequence[int]) -> None:
        async def send(texts: Sequence[str], cut: bool) -> Sequence[float]:  # noqa: FBT001
            return await server.scores(scoring.query, texts, cut=cut)

        scores, cut = await server.divided([scoring.texts[position] for position in positions], send)
        for position, logit, truncated in zip(positions, self._logits(np.array(scores)), cut, strict=True):
            scoring.put(position, float(logit), truncated=truncated)

    def _logits(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        inside = (scores >= 0) & (scores <= 1)
        if self.scale == "probabilities":
            if not inside.all():
                raise RemoteError(
                    f"{self._connection.endpoint.url} gave the score {scores[~inside][0]:g}, where its scores were "
                    "taken for probabilities. If they are logits, give server_scores='logits'"
                )
            return from_probabilities(scores)
        if self._given is None and self.served and self.served.product == "vllm" and len(scores) > 1 and inside.all():
            self._given = "logits"  # said once
            warn_caller(
                f"every score that {self._connection.endpoint.url} gave lies in [0, 1], as probabilities do, and is "
                "taken for a logit, which is what was asked for. Old versions of vLLM give probabilities whatever they "
                "are asked: if these are such, give server_scores='probabilities', else server_scores='logits'",
                UserWarning,
            )
        return scores


class RemoteBiEncoder(RemoteModel):
    """Vectors from behind a server.

    Args:
        endpoint: The server.
        model: As `find_server` takes it.
        prompts: Texts put before queries and before passages; None is none.
        normalize: As `BiEncoder` takes it.
        truncate_dim: As `BiEncoder` takes it.
        metric: As `BiEncoder` takes it.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str | None,
        prompts: tuple[str | None, str | None],
        normalize: bool | None,  # noqa: FBT001
        truncate_dim: int | None,
        metric: Metric | None,
    ) -> None:
        super().__init__(endpoint, model, "embed")
        self._prompts = prompts
        self._normalize, self._truncate_dim, self._metric = normalize, truncate_dim, metric
        self._dimension = 0
        self._unit = False

    async def encode(
        self, texts: Sequence[str], task: str, told: Callable[[int], object] | None = None
    ) -> tuple[Vectors, int]:
        """Return vectors (n, dimension), and how many texts were cut.

        Args:
            texts: May be empty.
            task: "query" or "document".
            told: Is called with the number of texts that are done.
        """
        server = await self.server()
        prompt = self._prompts[task == "document"] or ""
        found = np.zeros((len(texts), self._dimension), np.float32)

        async def part(positions: Sequence[int]) -> int:
            rows, cut = await self._vectors(server, [f"{prompt}{texts[position]}" for position in positions])
            rows = rows[:, : self._dimension]
            if self._normalize:
                rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _SHORTEST)
            found[list(positions)] = rows
            if told is not None:
                told(len(positions))
            return sum(cut)

        parts = server.parts(texts, prompt, server.items)
        cuts = await together([part(positions) for positions in parts], self._at_once)
        return found, sum(cuts)

    async def facts(self) -> dict[str, str | int | float | bool]:
        """Return what tells this encoder's passage vectors from another's, as far as it can be known."""
        served = (await self.server()).served
        known: dict[str, str | int | float | bool | None] = {
            "served_by": served.product,
            "model": served.model,
            "revision": served.revision,
            "dimension": self._dimension,
            "document_prompt": self._prompts[1],
            "normalize": self._unit,
            "max_length": served.max_length,
        }
        return {name: value for name, value in known.items() if value is not None}

    async def metric(self) -> Metric:
        """Return what the vectors are compared by, where they tell."""
        await self.server()
        if not self._unit:
            raise InvalidInputError(
                f"{self._connection.endpoint.url} gives vectors of different lengths and does not say what they are "
                "compared by; give metric='dot', 'cosine' or 'euclidean', or normalize=True"
            )
        return "cosine"

    async def _find(self) -> Server:
        server = await super()._find()
        rows, _ = await self._vectors(server, ["dimension", "a back-up of the bicycle"])
        self._dimension = rows[:, : self._truncate_dim].shape[1]
        self._unit = bool(self._normalize) or bool(np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-2))
        return server

    async def _vectors(self, server: Server, texts: Sequence[str]) -> tuple[Vectors, list[bool]]:
        # Text Embeddings Inference scales all vectors unless it is told not to.
        unscaled = self._normalize is None and self._metric in ("dot", "euclidean") and server.served.product == "tei"
        scaling = False if unscaled else self._normalize

        async def send(part: Sequence[str], cut: bool) -> Sequence[Vectors]:  # noqa: FBT001
            return list(await server.vectors(part, cut=cut, normalize=scaling))

        found, cut = await server.divided(texts, send)
        return np.stack(found), cut


async def together(calls: Sequence[Coroutine[Any, Any, T]], at_once: int | None = None) -> list[T]:
    """Return what all calls return, in their order; if one fails, the others are cancelled.

    Args:
        calls: Not begun.
        at_once: How many of them may be under way; None is no limit.
    """
    gate = asyncio.Semaphore(at_once or len(calls) or 1)

    async def in_turn(call: Coroutine[Any, Any, T]) -> T:
        try:
            async with gate:
                return await call
        finally:
            call.close()  # one that was cancelled before its turn

    tasks = [asyncio.ensure_future(in_turn(call)) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
