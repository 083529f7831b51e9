"""The cross-encoder as a LangChain document compressor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import TYPE_CHECKING, Any, TypedDict

from langchain_core.callbacks import Callbacks
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.load import Serializable
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from pydantic import ConfigDict, PrivateAttr, field_validator

from retrieve_rerank.checks import check_count, check_query, check_threshold
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.langchain._convert import PairScorer, checked_documents, render, to_hits, to_reranked
from retrieve_rerank.models.cross_encoder import CrossEncoder
from retrieve_rerank.models.ranking import Ranker, ScorerRanker
from retrieve_rerank.types import Hit

if TYPE_CHECKING:
    from typing_extensions import Self


class RerankInput(TypedDict):
    """What the runnable takes."""

    query: str
    documents: Sequence[Document]


class CrossEncoderReranker(Serializable, BaseDocumentCompressor):
    """Order documents by a cross-encoder and keep the best, with their scores.

    Args:
        model: A cross-encoder's hub name or folder; a `retrieve_rerank.CrossEncoder`, to set its device or precision
            or to share one; or any `BaseCrossEncoder`, whose scores are taken as logits.
        top_n: How many documents to keep; None keeps all.
        score_threshold: Documents whose relevance score is below are left out; 0.0 leaves out none.
        text_template: What the model reads of a document, such as "{title}. {page_content}", filled from the
            metadata; None reads the page content.

    The result holds copies, best first. Their metadata has, beside what was there, `relevance_score` (in [0, 1], means
    the same for every model), `rerank_logit`, `rerank_rank` and `retrieval_rank` (1-based), and `retrieval_score` where
    the first stage gave one; documents that carry a `retrieval_rank` already keep it. `Document.id` stays.

    Example:
        >>> from langchain_core.documents import Document
        >>> from retrieve_rerank.langchain import CrossEncoderReranker
        >>> reranker = CrossEncoderReranker(model=str(cross_encoder_path), top_n=1)
        >>> documents = [Document("Rome is in Italy."), Document("Paris is the capital of France.")]
        >>> best = reranker.compress_documents(documents, "capital of France")[0]
        >>> best.page_content, best.metadata["retrieval_rank"], best.metadata["rerank_rank"]
        ('Paris is the capital of France.', 2, 1)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, protected_namespaces=())

    model: str | CrossEncoder | BaseCrossEncoder = "cross-encoder/ms-marco-MiniLM-L6-v2"
    top_n: int | None = 5
    score_threshold: float | None = None
    text_template: str | None = None

    _ranker: Ranker = PrivateAttr()

    @field_validator("model", mode="before")
    @classmethod
    def _path_as_text(cls, value: object) -> object:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("top_n", mode="before")
    @classmethod
    def _top_n(cls, value: int | None) -> int | None:
        return None if value is None else check_count(value, "top_n")

    @field_validator("score_threshold")
    @classmethod
    def _score_threshold(cls, value: float | None) -> float | None:
        return check_threshold(value)

    @field_validator("text_template")
    @classmethod
    def _text_template(cls, value: str | None) -> str | None:
        try:
            names = [name for _, name, _, _ in Formatter().parse(value or "") if name is not None]
        except ValueError as error:
            raise InvalidInputError(f"text_template {value!r} cannot be read: {error}") from error
        if wrong := [name for name in names if not name.isidentifier()]:
            raise InvalidInputError(
                f"text_template {value!r} may name metadata keys and page_content only, such as '{{title}}. "
                f"{{page_content}}'; got {wrong[0]!r}"
            )
        return value

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; one with another model ranks with that."""
        copied = super().model_copy(update=update, deep=deep)
        if update and "model" in update:
            copied.model_post_init(None)
        return copied

    def model_post_init(self, context: Any, /) -> None:
        """Build what ranks; a model given by name loads at its first use."""
        super().model_post_init(context)
        if isinstance(self.model, BaseCrossEncoder):
            self._ranker = ScorerRanker(PairScorer(self.model))
        else:
            self._ranker = self.model if isinstance(self.model, CrossEncoder) else CrossEncoder(self.model)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Return copies of the best documents, best first. The call is traced as a run of its own.

        Raises:
            InvalidInputError: If the query is empty or an item is not a document.
            ModelError: If the model cannot be loaded or gives unusable scores.
        """
        return self.as_runnable().invoke({"query": query, "documents": documents}, {"callbacks": callbacks})

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """As `compress_documents`, without blocking the event loop."""
        return await self.as_runnable().ainvoke({"query": query, "documents": documents}, {"callbacks": callbacks})

    def as_runnable(
        self, *, top_n: int | None = None, score_threshold: float | None = None
    ) -> Runnable[RerankInput, list[Document]]:
        """Return a step for a chain: `{"query": …, "documents": […]}` in, the best documents out.

        Args:
            top_n: Instead of the re-ranker's own; None keeps that.
            score_threshold: Instead of the re-ranker's own; None keeps that.
        """
        limit = self.top_n if top_n is None else check_count(top_n, "top_n")
        threshold = self.score_threshold if score_threshold is None else check_threshold(score_threshold)

        def rerank(job: RerankInput, config: RunnableConfig) -> list[Document]:
            documents, hits = self._prepare(job)
            ranked = self._ranker.rank(job["query"], hits, top_n=limit, score_threshold=threshold)
            return _documents(documents, ranked)

        async def arerank(job: RerankInput, config: RunnableConfig) -> list[Document]:
            documents, hits = self._prepare(job)
            ranked = await self._ranker.arank(job["query"], hits, top_n=limit, score_threshold=threshold)
            return _documents(documents, ranked)

        return RunnableLambda(rerank, arerank, name=type(self).__name__)

    def _prepare(self, job: RerankInput) -> tuple[list[Document], list[Hit]]:
        if not isinstance(job, Mapping) or not {"query", "documents"} <= set(job):
            raise InvalidInputError(f"expected a mapping with 'query' and 'documents', got {job!r:.200}")
        check_query(job["query"])
        documents = checked_documents(job["documents"])
        return documents, to_hits(documents, [render(document, self.text_template) for document in documents])


def _documents(documents: list[Document], ranked: list[Hit]) -> list[Document]:
    return [to_reranked(documents[int(hit.passage.id)], hit) for hit in ranked]
