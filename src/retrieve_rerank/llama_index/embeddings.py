"""The bi-encoder as an embedding model."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.storage.kvstore.types import BaseKVStore
from typing_extensions import Self

from retrieve_rerank.checks import check_count, check_texts
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.llama_index.compat import HUGGING_FACE_EMBEDDING, in_place_of
from retrieve_rerank.llama_index.serialization import Restorable
from retrieve_rerank.models.bi_encoder import DEFAULT_MODEL, BiEncoder
from retrieve_rerank.models.settings import BiEncoderOptions, BiEncoderSettings, documented
from retrieve_rerank.models.threads import run_beside

if TYPE_CHECKING:
    from llama_index.core.rate_limiter import BaseRateLimiter
    from typing_extensions import Unpack

_CACHED_QUERIES = "query_embeddings"  # the base class keeps texts under "embeddings"
_LARGEST_BATCH = 2048  # the base class's own limit

dispatcher = get_dispatcher(__name__)


@documented(BiEncoderSettings)
class BiEncoderEmbedding(BiEncoderSettings, BaseEmbedding, Restorable):
    """Embeds queries and nodes with a sentence-transformers bi-encoder.

    Queries get the model's query prompt, nodes its document prompt. A batch is one call of the encoder, which sorts by
    length and never blocks an event loop in the async methods. What is configured cannot be changed afterwards, so the
    hash that an ingestion cache goes by always fits the vectors.

    Args:
        model_name: A hub name or a folder. `model` is accepted as well.
        model: Another name for `model_name`.
        **settings: Every other argument is explained in `retrieve_rerank.models.settings`.
        embed_batch_size: Nodes in one call of the encoder, at most 2048. The encoder makes its own, smaller, batches.
        callback_manager: LlamaIndex's callbacks.
        num_workers: Batches that an async call hands over at once. One model computes one batch at a time all the same.
        embeddings_cache: A LlamaIndex key-value store for vectors. Queries and texts are kept apart in it; vectors of
            different models are not.
        rate_limiter: LlamaIndex's rate limiter; a local model needs none.

    Raises:
        InvalidInputError: If an argument cannot be used.
        ModelError: At the first use, if the model cannot be loaded.

    Example:
        >>> from retrieve_rerank.llama_index import BiEncoderEmbedding
        >>> embed_model = BiEncoderEmbedding(bi_encoder_path)
        >>> vector = embed_model.get_query_embedding("What is the capital of France?")
        >>> len(vector) == embed_model.encoder.dimension, type(vector[0])
        (True, <class 'float'>)
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # there may be a key in it

    model_name: str = Field(frozen=True)
    rate_limiter: Any = Field(default=None, exclude=True)  # older versions of the base class have no such field

    _encoder: BiEncoder = PrivateAttr()

    @in_place_of(HUGGING_FACE_EMBEDDING)
    def __init__(
        self,
        model_name: str | os.PathLike[str] | None = None,
        *,
        model: str | os.PathLike[str] | None = None,
        embed_batch_size: int = 512,
        callback_manager: CallbackManager | None = None,
        num_workers: int | None = None,
        embeddings_cache: BaseKVStore | None = None,
        rate_limiter: BaseRateLimiter | None = None,
        **settings: Unpack[BiEncoderOptions],
    ) -> None:
        for name, given in (("model_name", model_name), ("model", model)):
            if given is not None and not isinstance(given, (str, os.PathLike)):
                raise InvalidInputError(f"{name} must be a name or a folder, got {type(given).__name__}")
        if model_name is not None and model is not None and os.fspath(model_name) != os.fspath(model):
            raise InvalidInputError(
                f"model_name ({model_name!r}) and model ({model!r}) are two names for one thing; give one"
            )
        if check_count(embed_batch_size, "embed_batch_size") > _LARGEST_BATCH:
            raise InvalidInputError(f"embed_batch_size must be <= {_LARGEST_BATCH}, got {embed_batch_size}")
        chosen = model_name if model_name is not None else model if model is not None else DEFAULT_MODEL
        fields: dict[str, Any] = {
            "model_name": os.fspath(chosen),
            "embed_batch_size": embed_batch_size,
            "callback_manager": callback_manager or CallbackManager([]),
            "num_workers": num_workers,
            "embeddings_cache": embeddings_cache,
            "rate_limiter": rate_limiter,
            **BiEncoderSettings.of(settings).arguments,
        }
        super().__init__(**fields)
        # What a server serves is no default of ours, and is what is written down.
        self._encoder = self.make(BiEncoder, chosen)
        self.__dict__["model_name"] = self._encoder.model

    @classmethod
    def class_name(cls) -> str:
        return "BiEncoderEmbedding"

    def to_payload(self) -> dict[str, Any]:
        """Return what events say of this model; no token."""
        return {
            "class_name": self.class_name(),
            "model_name": self.model_name,
            "embed_batch_size": self.embed_batch_size,
        }

    @property
    def encoder(self) -> BiEncoder:
        """The encoder, with its `metric`, `dimension` and `fingerprint`. It loads its model at the first use."""
        return self._encoder

    def get_query_embedding(self, query: str) -> Embedding:
        """Embed a query, with the model's query prompt."""
        return self.get_query_embeddings([query])[0]

    async def aget_query_embedding(self, query: str) -> Embedding:
        """As `get_query_embedding`, without blocking the event loop."""
        return (await self.aget_query_embeddings([query]))[0]

    def get_query_embeddings(self, queries: Sequence[str]) -> list[Embedding]:
        """Embed queries, in one call of the encoder, but for those that the cache has.

        The base class's own method would look a query up among the cached texts, and find the vector of an equal text:
        the wrong one where queries and texts have different prompts.
        """
        queries = check_texts(queries, "queries")
        if not queries:
            return []
        with self._reported(queries) as found:
            cache = self.embeddings_cache
            stored = {} if cache is None else {query: cache.get(query, _CACHED_QUERIES) for query in queries}
            known: dict[str, Embedding] = {
                query: next(iter(value.values())) for query, value in stored.items() if value
            }
            if missing := [query for query in dict.fromkeys(queries) if query not in known]:
                if self.rate_limiter is not None:
                    self.rate_limiter.acquire()
                known.update(zip(missing, self._encoder.encode_queries(missing).tolist(), strict=True))
            if cache is not None:
                for query in missing:
                    cache.put(query, {str(uuid.uuid4()): known[query]}, _CACHED_QUERIES)
            found += [known[query] for query in queries]
            return found

    async def aget_query_embeddings(self, queries: Sequence[str]) -> list[Embedding]:
        """As `get_query_embeddings`, without blocking the event loop."""
        if self.embeddings_cache is not None or self.rate_limiter is not None or not queries:
            call = partial(self.get_query_embeddings, queries)
            return await asyncio.wrap_future(run_beside("retrieve-rerank embedding", call))
        with self._reported(queries) as found:
            found += (await self._encoder.aencode_queries(queries)).tolist()
            return found

    def _to_pickle(self) -> Self:
        # The constructor makes a new encoder from the fields.
        slim = super()._to_pickle()
        slim.__pydantic_private__ = None
        return slim

    def _get_query_embedding(self, query: str) -> Embedding:
        return cast(Embedding, self._encoder.encode_queries([query])[0].tolist())

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return cast(Embedding, (await self._encoder.aencode_queries([query]))[0].tolist())

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return cast("list[Embedding]", self._encoder.encode_documents(texts).tolist())

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return cast("list[Embedding]", (await self._encoder.aencode_documents(texts)).tolist())

    @contextmanager
    def _reported(self, queries: Sequence[str]) -> Iterator[list[Embedding]]:
        """Emit the base class's events around the block, which puts the vectors into the yielded list."""
        found: list[Embedding] = []
        model = self.to_payload()
        dispatcher.event(EmbeddingStartEvent(model_dict=model))
        with self.callback_manager.event(CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: model}) as event:
            yield found
            event.on_end(payload={EventPayload.CHUNKS: list(queries), EventPayload.EMBEDDINGS: found})
        dispatcher.event(EmbeddingEndEvent(chunks=list(queries), embeddings=found))
