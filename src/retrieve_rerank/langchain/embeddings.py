"""The bi-encoder as LangChain embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from langchain_core.embeddings import Embeddings
from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, PrivateAttr

from retrieve_rerank.langchain.serialization import Component, model_of, restorable
from retrieve_rerank.models.bi_encoder import DEFAULT_MODEL, BiEncoder
from retrieve_rerank.models.settings import KEY_VARIABLE, BiEncoderSettings

if TYPE_CHECKING:
    from typing_extensions import Self


@restorable
class BiEncoderEmbeddings(Component, BiEncoderSettings, Embeddings):
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

    positional = holds = ("model",)

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        hide_input_in_errors=True,  # there may be a key in it
    )

    model: Annotated[str | BiEncoder, BeforeValidator(model_of)] = Field(
        default=DEFAULT_MODEL,
        validation_alias=AliasChoices("model", "model_name"),
    )
    _encoder: BiEncoder = PrivateAttr()

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
        self._encoder = self.make(BiEncoder, self.model)
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
