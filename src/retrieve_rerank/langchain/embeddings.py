"""The bi-encoder as LangChain embeddings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.embeddings import Embeddings
from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr, field_validator

from retrieve_rerank.langchain._travel import Travelling, unpacked
from retrieve_rerank.models.backend import Backend
from retrieve_rerank.models.bi_encoder import DEFAULT_MODEL, BiEncoder
from retrieve_rerank.models.endpoint import KEY_VARIABLE, MAX_CONCURRENCY, TIMEOUT, Protocol
from retrieve_rerank.models.precision import Precision
from retrieve_rerank.types import Metric

if TYPE_CHECKING:
    from typing_extensions import Self


class BiEncoderEmbeddings(Travelling, Embeddings):
    """A sentence-transformers bi-encoder as LangChain embeddings.

    Queries and documents get the model's own saved prompts; newlines are kept; in float32, vectors equal the
    model's own. The fields are those of `retrieve_rerank.BiEncoder`, where each is explained; `model_name` is accepted
    for `model`. `model` may also be a `BiEncoder`, to share one that is loaded already; its own settings then apply.
    With `endpoint`, an inference server computes the vectors. The API key is never written down: a dump names the
    environment's RETRIEVE_RERANK_API_KEY instead.

    Example:
        >>> from retrieve_rerank.langchain import BiEncoderEmbeddings
        >>> embeddings = BiEncoderEmbeddings(model=str(bi_encoder_path))
        >>> len(embeddings.embed_query("capital of France")), len(embeddings.embed_documents(["Paris", "Rome"]))
        (384, 2)
    """

    holds: ClassVar[tuple[str, ...]] = ("model",)

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        hide_input_in_errors=True,  # there may be a key in it
    )

    model: str | BiEncoder = Field(
        default=DEFAULT_MODEL,
        validation_alias=AliasChoices("model", "model_name"),
    )
    device: str | None = None
    precision: Precision = "auto"
    backend: Backend = "torch"
    revision: str | None = None
    cache_folder: str | None = None
    local_files_only: bool = False
    token: str | bool | None = Field(default=None, exclude=True, repr=False)
    trust_remote_code: bool = False
    query_prompt: str | None = None
    document_prompt: str | None = None
    normalize: bool | None = None
    truncate_dim: int | None = None
    max_length: int | None = None
    batch_tokens: int | None = None
    endpoint: str | None = None
    api_key: str | None = Field(default=None, exclude=True, repr=False)
    protocol: Protocol | None = None
    timeout: float = TIMEOUT
    max_concurrency: int = MAX_CONCURRENCY
    metric: Metric | None = None

    _encoder: BiEncoder = PrivateAttr()

    @field_validator("model", "cache_folder", mode="before")
    @classmethod
    def _model(cls, value: object) -> object:
        return os.fspath(value) if isinstance(value, os.PathLike) else unpacked(value)

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "token": None, "api_key": None}}  # no secret in a pickle

    @property
    def lc_secrets(self) -> dict[str, str]:
        """What `dumpd` writes instead of the key."""
        return {"api_key": KEY_VARIABLE}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; one with other settings has an encoder of its own."""
        copied = super().model_copy(update=update, deep=deep)
        if update:
            copied.model_post_init(None)
        return copied

    def model_post_init(self, context: Any, /) -> None:
        """Build the encoder, which checks the settings and loads nothing yet."""
        super().model_post_init(context)
        if isinstance(self.model, BiEncoder):
            self._encoder = self.model
            return
        settings = {name: getattr(self, name) for name in type(self).model_fields}
        self._encoder = BiEncoder(settings.pop("model"), **settings)
        if self.endpoint is not None:  # what a server serves is no default of ours
            self.__dict__["model"] = self._encoder.model

    @property
    def encoder(self) -> BiEncoder:
        """The bi-encoder underneath: its metric, fingerprint, dimension and `close()`."""
        return self._encoder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector a text."""
        return self.encoder.encode_documents(texts).tolist()  # type: ignore[no-any-return]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query."""
        return self.encoder.encode_queries([text])[0].tolist()  # type: ignore[no-any-return]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`, without blocking the event loop."""
        return (await self.encoder.aencode_documents(texts)).tolist()  # type: ignore[no-any-return]

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`, without blocking the event loop."""
        return (await self.encoder.aencode_queries([text]))[0].tolist()  # type: ignore[no-any-return]
