"""What inference servers speak: Text Embeddings Inference's own form, and the one that OpenAI, Cohere and Jina began.

A form makes requests and reads answers: no number is taken for a text's unless the server says by its index that it
is. `find_form` asks a server which it is.
"""

from __future__ import annotations

import base64
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from retrieve_rerank.errors import ModelError, RemoteError
from retrieve_rerank.models.connection import Connection, ForeignError, RefusedError

Task = Literal["embed", "rerank"]
Vectors = npt.NDArray[np.float32]

_ITEMS = 32  # texts in one request, where the server does not say how many it takes
_TOO_LONG = re.compile(r"(?i)less than \d+ (?:tokens|characters)|maximum context length|longer than the maximum")
_TOO_MANY = re.compile(r"(?i)maximum allowed batch size (\d+)|at most (\d+) items?\b")
_DIVIDE = (413, 422)  # statuses after which half as much may be taken, and one text alone shows what is wrong


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


class Form(ABC):
    """How a server is asked and how its answers are read.

    Args:
        connection: To the server.
        served: What it says of itself.

    Attributes:
        items: Texts to put into one request; less once the server refused as many.
    """

    has_logits = False  # whether raw scores are always logits

    def __init__(self, connection: Connection, served: Served) -> None:
        self._connection = connection
        self.served = served
        self.items = served.items

    @abstractmethod
    async def scores(self, query: str, texts: Sequence[str], *, cut: bool = False, raw: bool = True) -> list[float]:
        """Return a score a text, in their order; `cut` lets the server cut what is too long."""

    @abstractmethod
    async def vectors(
        self, texts: Sequence[str], *, cut: bool = False, normalize: bool | None = None, prompt_name: str | None = None
    ) -> Vectors:
        """Return an array (len(texts), dimension); `normalize` and `prompt_name` go to servers that know them."""

    def too_long(self, error: RefusedError) -> bool:
        """Whether a server refused because a text is longer than the model reads."""
        return self.served.tells_length and error.status in (400, *_DIVIDE) and bool(_TOO_LONG.search(error.said))

    def divisible(self, error: RefusedError) -> bool:
        """Whether a server may take half of what it refused; remembers how many texts it takes, if it says so."""
        if found := _TOO_MANY.search(error.said):
            self.items = min(self.items, max(1, int(found[1] or found[2])))
        return bool(found) or error.status in _DIVIDE or self.too_long(error)

    async def _ask(self, path: str, body: Mapping[str, Any]) -> Any:
        return await self._connection.ask("POST", f"{self.served.prefix}{path}", body)

    def _by_index(self, rows: Any, count: int, key: str) -> list[Any]:
        """Return what rows {"index": …, key: …} hold under `key`, by their index."""
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            raise self._odd(f"something else than a list of objects with index and {key}")
        places = [row.get("index") for row in rows]
        if any(isinstance(place, bool) or not isinstance(place, int) for place in places):
            raise self._odd("an index that is no whole number")
        if sorted(places) != list(range(count)):
            raise self._odd(
                f"the indices {_shortly(places)} for {count} texts; expected each from 0 to {count - 1} once"
            )
        found: list[Any] = [None] * count
        for place, row in zip(places, rows, strict=True):
            found[place] = row.get(key)
        return found

    def _finite(self, numbers: Sequence[Any]) -> list[float]:
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
                raise self._odd(f"the score {number!r:.40}; expected a finite number")
        return [float(number) for number in numbers]

    def _array(self, rows: Sequence[Any], count: int) -> Vectors:
        try:
            array = np.asarray(rows, dtype=np.float32)
        except (ValueError, TypeError) as error:
            raise self._odd(f"vectors that cannot be read: {error}") from error
        if array.ndim != 2 or len(array) != count or array.shape[1] == 0:
            raise self._odd(f"vectors of shape {array.shape} for {count} texts")
        if not np.isfinite(array).all():
            raise self._odd("a vector with NaN or infinity in it")
        return array

    def _odd(self, what: str) -> RemoteError:
        return RemoteError(
            f"{self._connection.endpoint.url} answered with {what}. Nothing of it is used; see whether the server "
            "serves the right kind of model"
        )


class TeiForm(Form):
    """Text Embeddings Inference."""

    has_logits = True

    async def scores(self, query: str, texts: Sequence[str], *, cut: bool = False, raw: bool = True) -> list[float]:
        """Ask /rerank."""
        body = {"query": query, "texts": list(texts), "raw_scores": raw, "truncate": cut}
        return self._finite(self._by_index(await self._ask("/rerank", body), len(texts), "score"))

    async def vectors(
        self, texts: Sequence[str], *, cut: bool = False, normalize: bool | None = None, prompt_name: str | None = None
    ) -> Vectors:
        """Ask /embed, whose answer has no indices: it is in the order of the texts by definition."""
        options = {"normalize": normalize, "prompt_name": prompt_name}
        given = {name: value for name, value in options.items() if value is not None}
        # It refuses "", which tokenizers read as they read a space: as nothing.
        rows = await self._ask("/embed", {"inputs": [text or " " for text in texts], "truncate": cut, **given})
        return self._array(rows, len(texts))


class OpenAIForm(Form):
    """Infinity, vLLM, and what else has /embeddings and /rerank."""

    def __init__(self, connection: Connection, served: Served) -> None:
        super().__init__(connection, served)
        self.has_logits = served.product == "infinity"

    async def scores(self, query: str, texts: Sequence[str], *, cut: bool = False, raw: bool = True) -> list[float]:
        """Ask /rerank."""
        body: dict[str, Any] = {"model": self.served.model, "query": query, "documents": list(texts)}
        if self.served.product == "infinity":
            body["raw_scores"] = raw
        elif self.served.product == "vllm":
            body |= {"use_activation": not raw, "activation": not raw}  # the latter in versions before 0.12
        answer = await self._ask("/rerank", {**body, **self._cut(cut=cut)})
        rows = answer.get("results") if isinstance(answer, Mapping) else answer
        return self._finite(self._by_index(rows, len(texts), "relevance_score"))

    async def vectors(
        self, texts: Sequence[str], *, cut: bool = False, normalize: bool | None = None, prompt_name: str | None = None
    ) -> Vectors:
        """Ask /embeddings."""
        if normalize is False:
            raise RemoteError(
                f"normalize=False cannot be asked of {self._connection.endpoint.url}: this kind of server gives its "
                "vectors as it does. Leave normalize out"
            )
        body: dict[str, Any] = {"model": self.served.model, "input": list(texts)}
        if self.served.product != "openai":
            body["encoding_format"] = "base64"  # exact, and a fraction of the time to read
        answer = await self._ask("/embeddings", {**body, **self._cut(cut=cut)})
        rows = self._by_index(answer.get("data") if isinstance(answer, Mapping) else answer, len(texts), "embedding")
        return self._array([self._decoded(row) for row in rows], len(texts))

    def _cut(self, *, cut: bool) -> dict[str, int]:
        return {"truncate_prompt_tokens": -1} if cut and self.served.product == "vllm" else {}

    def _decoded(self, row: Any) -> Any:
        if not isinstance(row, str):
            return row
        try:
            return np.frombuffer(base64.b64decode(row, validate=True), "<f4")
        except ValueError as error:
            raise self._odd("a vector that is no base64 of float32") from error


async def find_form(connection: Connection, model: str | None, task: Task) -> Form:
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
        if isinstance(info, Mapping) and "model_id" in info:
            return TeiForm(connection, _served_by_tei(connection, info, model, task))
    if protocol != "tei":
        told = protocol is not None and model is not None  # it need not list what it has, nor let everybody see it
        version = [] if connection.endpoint.url.endswith("/v1") else ["/v1"]
        for prefix in (*version, ""):
            models = await _look(connection, f"{prefix}/models", lenient=told)
            rows = models.get("data") if isinstance(models, Mapping) else None
            if isinstance(rows, list) and rows and all(isinstance(row, Mapping) and "id" in row for row in rows):
                return OpenAIForm(connection, _served_by_name(connection, rows, model, task, prefix))
        if protocol is not None and model is not None:
            return OpenAIForm(connection, Served(protocol, model))
    raise RemoteError(
        f"{connection.endpoint.url} answers neither /info as Text Embeddings Inference nor /models or /v1/models as "
        "Infinity and vLLM do. Check endpoint; for another server with /rerank and /embeddings give "
        "protocol='openai' and the model's name"
    )


async def _look(connection: Connection, path: str, *, lenient: bool = False) -> Any:
    """Return what a path answers, or None where there is no such path, or with `lenient`, where it is refused."""
    try:
        return await connection.ask("GET", path)
    except ForeignError:
        return None
    except RefusedError as error:
        if lenient or error.status in (404, 405):
            return None
        raise


def _served_by_tei(connection: Connection, info: Mapping[str, Any], model: str | None, task: Task) -> Served:
    name = str(info["model_id"])
    if model is not None and not _same(model, name):
        raise ModelError(_unknown(connection, model, [name]))
    kind = info.get("model_type")
    kinds = [str(key).lower() for key in (kind if isinstance(kind, Mapping) else [kind] if kind else [])]
    wanted = "reranker" if task == "rerank" else "embedding"
    if kinds and wanted not in kinds:
        raise ModelError(_wrong_kind(connection, name, f"a {kinds[0]}", task))
    return Served(
        "tei",
        name,
        revision=info.get("model_sha"),
        dtype=info.get("model_dtype"),
        max_length=_count(info.get("max_input_length")),
        items=_count(info.get("max_client_batch_size")) or _ITEMS,
    )


def _served_by_name(
    connection: Connection, rows: Sequence[Mapping[str, Any]], model: str | None, task: Task, prefix: str
) -> Served:
    names = [str(row["id"]) for row in rows]
    # A list is Infinity's; others have something else under this name.
    able = [row for row in rows if not isinstance(row.get("capabilities"), list) or task in row["capabilities"]]
    fitting = able if model is None else [row for row in rows if model == row["id"]]
    if model is not None and not fitting:
        fitting = [row for row in rows if _same(model, str(row["id"])) or _same(model, str(row.get("root") or ""))]
    if not fitting and model is None:
        raise ModelError(_wrong_kind(connection, ", ".join(names), "no such model", task))
    if len(fitting) != 1:
        raise ModelError(_unknown(connection, model, [str(row["id"]) for row in able] or names))
    [row] = fitting
    if row not in able:
        raise ModelError(_wrong_kind(connection, str(row["id"]), f"for {', '.join(row['capabilities'])} only", task))
    product = connection.endpoint.protocol or {"infinity": "infinity", "vllm": "vllm"}.get(
        str(row.get("owned_by")), "openai"
    )
    return Served(product, str(row["id"]), max_length=_count(row.get("max_model_len")), prefix=prefix)


def _same(asked: str, served: str) -> bool:
    """Whether two names are one, where one of them may have folders before it."""
    one, other = asked.rstrip("/"), served.rstrip("/")
    return bool(other) and (one == other or one.endswith(f"/{other}") or other.endswith(f"/{one}"))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _unknown(connection: Connection, model: str | None, names: Sequence[str]) -> str:
    asked = "no model was named" if model is None else f"model={model!r} was asked for"
    return f"{connection.endpoint.url} serves {', '.join(map(repr, names))}, and {asked}. Give one of these as model"


def _wrong_kind(connection: Connection, name: str, what: str, task: Task) -> str:
    wanted = "a cross-encoder, for re-ranking" if task == "rerank" else "a bi-encoder, for embeddings"
    return f"{connection.endpoint.url} serves {name!r}, which is {what}; expected {wanted}"


def _shortly(places: Sequence[Any]) -> str:
    shown = ", ".join(map(str, places[:8]))
    return f"{shown}, … ({len(places)} in all)" if len(places) > 8 else shown or "(none)"
