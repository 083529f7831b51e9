"""Models behind an inference server: what is asked, in how many requests, and what is made of the answers.

Everything here runs on a `LoopThread`; many callers share it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from retrieve_rerank.errors import InvalidInputError, RemoteError
from retrieve_rerank.models.connection import Connection, RefusedError
from retrieve_rerank.models.ranking import Scoring, from_probabilities
from retrieve_rerank.models.server_forms import Form, Served, Task, Vectors, find_form
from retrieve_rerank.models.settings import Endpoint
from retrieve_rerank.types import Metric, Scale

_IN_TIME = 8  # texts in a request where there is a deadline: few enough for the first to be there in time
_TEXTS = ("dimension", "a back-up of the bicycle")
_PROBE = ("what is the capital of France", ("Paris is the capital of France.", "Bread is baked in an oven."))
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
_SAME = 0.02  # how much two computations of one vector may differ, as a part of its length
_PER_TOKEN = 3  # characters; a text with fewer a token is seldom too long

T = TypeVar("T")


class RemoteModel:
    """What both kinds share: finding out whom one talks to, once, and dividing what is asked.

    Args:
        endpoint: The server.
        model: As `find_form` takes it.
        task: What the model is for.
    """

    def __init__(self, endpoint: Endpoint, model: str | None, task: Task) -> None:
        self._connection = Connection(endpoint)
        # Of one call; the rest waits out here and not before the server, where a short call would wait behind it.
        self._at_once = max(1, endpoint.max_concurrency - 1)
        self._model, self._task = model, task
        self._finding: asyncio.Task[Form] | None = None
        self.served: Served | None = None  # once known

    async def form(self) -> Form:
        """Return how the server is asked. Found out once, by whoever comes first, even if that one gives up."""
        if self._finding is None or (self._finding.done() and (self._finding.cancelled() or self._finding.exception())):
            self._finding = asyncio.ensure_future(self._find())
            self._finding.add_done_callback(_look_at)
        return await asyncio.shield(self._finding)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._connection.aclose()

    async def _find(self) -> Form:
        form = await find_form(self._connection, self._model, self._task)
        await self._learn(form)
        self.served = form.served
        return form

    async def _learn(self, form: Form) -> None:
        """Find out what else must be known of the model."""

    async def _answers(
        self, form: Form, texts: Sequence[str], send: Callable[[Sequence[str], bool], Awaitable[Sequence[T]]]
    ) -> tuple[list[T], list[bool]]:
        """Return what the server answers to each text, and which texts it had to cut.

        A request that holds too much is halved. A text that is too long by itself is sent again to be cut.
        """
        try:
            return list(await send(texts, False)), [False] * len(texts)  # noqa: FBT003 - strictly
        except RefusedError as error:
            if len(texts) == 1 and form.too_long(error):
                return list(await send(texts, True)), [True]  # noqa: FBT003
            if len(texts) == 1 or not form.divisible(error):
                raise
        half = len(texts) // 2
        first, second = self._answers(form, texts[:half], send), self._answers(form, texts[half:], send)
        (left, cut_left), (right, cut_right) = await together([first, second])
        return left + right, cut_left + cut_right


class RemoteCrossEncoder(RemoteModel):
    """Scores behind a server.

    Args:
        endpoint: The server.
        model: As `find_form` takes it.
        scale: What its scores are; None finds out.
    """

    def __init__(self, endpoint: Endpoint, model: str | None, scale: Scale | None) -> None:
        super().__init__(endpoint, model, "rerank")
        self._given = scale
        self.scale: Scale = scale or "logits"

    async def score(self, scorings: Sequence[Scoring]) -> None:
        """Score the texts of one or more queries, the first requests for the first texts."""
        if not any(scoring.texts for scoring in scorings):
            return
        form = await self.form()
        await together(
            [
                self._score(form, scoring, part)
                for scoring in scorings
                for part in _parts(form, scoring.texts, scoring.query, _IN_TIME if scoring.deadline else form.items)
            ],
            self._at_once,
        )

    async def _score(self, form: Form, scoring: Scoring, positions: Sequence[int]) -> None:
        async def send(texts: Sequence[str], cut: bool) -> Sequence[float]:  # noqa: FBT001
            return await form.scores(scoring.query, texts, cut=cut)

        scores, cut = await self._answers(form, [scoring.texts[position] for position in positions], send)
        for position, logit, truncated in zip(positions, self._logits(scores), cut, strict=True):
            scoring.put(position, float(logit), truncated=truncated)

    def _logits(self, scores: Sequence[float]) -> npt.NDArray[np.float64]:
        numbers = np.asarray(scores, np.float64)
        if self.scale == "logits":
            return numbers
        if ((numbers < 0) | (numbers > 1)).any():
            raise RemoteError(
                f"{self._connection.endpoint.url} gave the score {numbers[(numbers < 0) | (numbers > 1)][0]:g}, where "
                "its scores were taken for probabilities. If they are logits, give server_scores='logits'"
            )
        return from_probabilities(numbers)

    async def _learn(self, form: Form) -> None:
        if self._given is not None:
            return
        if form.has_logits:
            self.scale = "logits"
            return
        # Some servers pass a score through a sigmoid whatever they are asked; two texts show it.
        raw = await form.scores(*_PROBE)
        plain = await form.scores(*_PROBE, raw=False) if form.served.product == "vllm" else raw
        inside = all(0 <= score <= 1 for score in raw)
        self.scale = "probabilities" if inside and np.allclose(raw, plain, atol=1e-3) else "logits"


class RemoteBiEncoder(RemoteModel):
    """Vectors from behind a server.

    Args:
        endpoint: The server.
        model: As `find_form` takes it.
        prompts: Texts put before queries and before passages; None takes what the server has, if it has any.
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
        self._lengths_count = metric in ("dot", "euclidean")
        self._prompts = prompts
        self._normalize, self._truncate_dim = normalize, truncate_dim
        self._names: dict[str, str | None] = {}
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
        form = await self.form()
        prompt = self._prompts[task == "document"] or ""
        found = np.zeros((len(texts), self._dimension), np.float32)

        async def part(positions: Sequence[int]) -> int:
            rows, cut = await self._answers(form, [f"{prompt}{texts[position]}" for position in positions], send)
            if any(len(row) != self._dimension for row in rows):
                raise RemoteError(
                    f"{self._connection.endpoint.url} gave vectors of length {len(rows[0])}, and of {self._dimension} "
                    "before. Does it still serve the same model? Make the encoder again"
                )
            found[list(positions)] = rows
            if told is not None:
                told(len(positions))
            return sum(cut)

        async def send(part: Sequence[str], cut: bool) -> Sequence[npt.NDArray[np.float32]]:  # noqa: FBT001
            return list(await self._vectors(form, part, cut=cut, prompt_name=self._names[task]))

        parts = _parts(form, texts, prompt, form.items)
        cuts = await together([part(positions) for positions in parts], self._at_once)
        return found, sum(cuts)

    async def facts(self) -> dict[str, str | int | float | bool]:
        """Return what tells this encoder's passage vectors from another's, as far as it can be known."""
        served = (await self.form()).served
        known: dict[str, str | int | float | bool | None] = {
            "served_by": served.product,
            "model": served.model,
            "revision": served.revision,
            "dimension": self._dimension,
            "document_prompt": self._prompts[1],
            "document_prompt_name": self._names["document"],
            "normalize": self._unit,
            "max_length": served.max_length,
        }
        return {name: value for name, value in known.items() if value is not None}

    async def metric(self) -> Metric:
        """Return what the vectors are compared by, where they tell."""
        await self.form()
        if not self._unit:
            raise InvalidInputError(
                f"{self._connection.endpoint.url} gives vectors of different lengths and does not say what they are "
                "compared by; give metric='dot', 'cosine' or 'euclidean', or normalize=True"
            )
        return "cosine"

    async def _vectors(self, form: Form, texts: Sequence[str], *, cut: bool, prompt_name: str | None) -> Vectors:
        vectors = await form.vectors(texts, cut=cut, normalize=self._scaling(form), prompt_name=prompt_name)
        vectors = vectors[:, : self._truncate_dim]
        if self._normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def _scaling(self, form: Form) -> bool | None:
        """Return what the server is told: Text Embeddings Inference scales all vectors unless it is told not to."""
        if self._normalize is None and self._lengths_count and form.served.product == "tei":
            return False
        return self._normalize

    async def _learn(self, form: Form) -> None:
        plain = await self._probe(form, None)
        lengths = np.linalg.norm(plain, axis=1)
        self._unit = bool(self._normalize) or bool(np.allclose(lengths, 1.0, atol=1e-2))
        self._dimension = plain[:, : self._truncate_dim].shape[1]
        for task, given, names in (
            ("query", self._prompts[0], ("query",)),
            ("document", self._prompts[1], _DOCUMENT_PROMPTS),
        ):
            self._names[task] = None
            for name in names if given is None and form.served.product == "tei" else ():
                try:
                    told = await self._probe(form, name)
                except RefusedError:  # it has no such prompt
                    continue
                # One of a version that knows none does as if none had been asked for.
                if (np.linalg.norm(told - plain, axis=1) > _SAME * lengths).any():
                    self._names[task] = name
                    break

    async def _probe(self, form: Form, prompt_name: str | None) -> Vectors:
        async def send(texts: Sequence[str], cut: bool) -> Sequence[npt.NDArray[np.float32]]:  # noqa: FBT001
            return list(await form.vectors(texts, cut=cut, normalize=self._scaling(form), prompt_name=prompt_name))

        return np.array((await self._answers(form, _TEXTS, send))[0])


def _look_at(task: asyncio.Task[Any]) -> None:
    # An error that nobody waited for is no news: the next caller finds out anew.
    if not task.cancelled():
        task.exception()


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


def _parts(form: Form, texts: Sequence[str], beside: str, size: int) -> list[list[int]]:
    """Return the positions of the texts that go into each request: what may be too long does not go with the rest."""
    limit = form.served.max_length
    groups: tuple[list[int], list[int]] = ([], [])
    for position, text in enumerate(texts):
        groups[limit is not None and len(beside) + len(text) > _PER_TOKEN * limit].append(position)
    size = min(size, form.items)
    parts = [group[start : start + size] for group in groups for start in range(0, len(group), size)]
    return sorted(parts)  # by their first text, which is where the best candidates are
