"""LlamaIndex components whose results can be computed by hand, and ways to watch what ours do."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

T = TypeVar("T")


class WordEmbedding(BaseEmbedding):
    """Counts of the words a, b and c; queries and texts alike."""

    def _count(self, text: str) -> list[float]:
        words = text.split()
        return [float(words.count(word)) for word in "abc"]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._count(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._count(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._count(text)


class TableScorer:
    """Looks each text's logit up in a table, after a while; remembers what it was asked, and on which thread."""

    def __init__(self, logits: Mapping[str, float], seconds: float = 0.0) -> None:
        self.logits = logits
        self.seconds = seconds
        self.calls: list[list[str]] = []
        self.threads: list[str] = []

    def score(self, query: str, texts: Sequence[str]) -> np.ndarray:
        self.calls.append(list(texts))
        self.threads.append(threading.current_thread().name)
        time.sleep(self.seconds)
        return np.array([self.logits[text] for text in texts], np.float32)


class BrokenScorer:
    """Fails."""

    def score(self, query: str, texts: Sequence[str]) -> np.ndarray:
        raise RuntimeError("out of memory")


class ListRetriever(BaseRetriever):
    """Returns its nodes, `similarity_top_k` of them, after a while. Sync only, as many retrievers are."""

    def __init__(self, nodes: list[NodeWithScore], similarity_top_k: int = 2, seconds: float = 0.0) -> None:
        super().__init__()
        self.nodes = nodes
        self.similarity_top_k = similarity_top_k
        self.seconds = seconds

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        time.sleep(self.seconds)
        return self.nodes[: self.similarity_top_k]


class SlowAsync(ListRetriever):
    """Has an async method of its own."""

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        await asyncio.sleep(self.seconds)
        return self.nodes[: self.similarity_top_k]


async def both_ways(retriever: BaseRetriever, query: str | QueryBundle) -> list[list[NodeWithScore]]:
    """What a retriever finds, asked by both of its methods."""
    return [retriever.retrieve(query), await retriever.aretrieve(query)]


def ids(nodes: Sequence[NodeWithScore]) -> list[str]:
    return [node.node_id for node in nodes]


def text_node(
    id_: str, text: str | None = None, embedding: Sequence[float] | None = None, **metadata: object
) -> TextNode:
    return TextNode(
        id_=id_,
        text=id_ if text is None else text,
        embedding=None if embedding is None else list(embedding),
        metadata=metadata,
    )


def scored(*texts: str) -> list[NodeWithScore]:
    """Nodes with the texts as ids, and falling scores: 0.9, 0.8, …"""
    return [NodeWithScore(node=text_node(text), score=0.9 - position / 10) for position, text in enumerate(texts)]


async def ticks_during(call: Awaitable[T]) -> tuple[T, int]:
    """Return a call's result and how often another task on the event loop ran meanwhile (200 times a second)."""
    count = 0

    async def tick() -> None:
        nonlocal count
        while True:
            await asyncio.sleep(0.005)
            count += 1

    task = asyncio.create_task(tick())
    try:
        return await call, count
    finally:
        task.cancel()


class Recorder(BaseEventHandler):
    """Keeps the events of the given kinds."""

    kinds: tuple[str, ...]
    events: list[BaseEvent] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Recorder"

    def handle(self, event: BaseEvent, **kwargs: object) -> None:
        if event.class_name() in self.kinds:
            self.events.append(event)

    @property
    def names(self) -> list[str]:
        return [event.class_name() for event in self.events]


@contextmanager
def recorded(*kinds: str) -> Iterator[Recorder]:
    """Record what the root dispatcher hears."""
    recorder = Recorder(kinds=kinds)
    handlers = get_dispatcher().event_handlers
    handlers.append(recorder)
    try:
        yield recorder
    finally:
        handlers.remove(recorder)
