"""The second stage as a node postprocessor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from retrieve_rerank.checks import check_count, check_query, check_threshold
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.llama_index._convert import hits_to_nodes, nodes_to_hits
from retrieve_rerank.models.backend import Backend
from retrieve_rerank.models.cross_encoder import CrossEncoder
from retrieve_rerank.models.precision import Precision
from retrieve_rerank.models.ranking import Ranker, as_ranker
from retrieve_rerank.types import Hit, Scorer

_MODEL = "cross-encoder/ms-marco-MiniLM-L6-v2"

dispatcher = get_dispatcher(__name__)


class CrossEncoderRerank(BaseNodePostprocessor):
    """Orders retrieved nodes by a cross-encoder and keeps the best.

    The nodes that come in are never modified: new `RerankedNode` objects around the same nodes go out. Nodes with equal
    text are scored once; ties keep the order of the first stage. A ReRankStartEvent and a ReRankEndEvent are emitted
    for every call, also for no nodes and when scoring fails.

    Args:
        model: A hub name or a folder; or a `CrossEncoder`; or anything with `score(query, texts)`, whose scores are
            taken as logits. An object is shared, not copied, and `to_dict` keeps its name only.
        top_n: How many nodes to return at most.
        score_threshold: Nodes whose relevance score, in [0, 1], is below are left out; an empty result is a result.
        metadata_mode: What the cross-encoder reads of a node: EMBED is the text with the metadata that the embedding
            model sees, NONE the bare text.
        device: As in `CrossEncoder`; this and all below are for a model given by name.
        precision: As in `CrossEncoder`.
        backend: As in `CrossEncoder`.
        revision: As in `CrossEncoder`.
        cache_folder: As in `CrossEncoder`.
        local_files_only: As in `CrossEncoder`.
        token: As in `CrossEncoder`. Never dumped.
        trust_remote_code: As in `CrossEncoder`.
        prompt: As in `CrossEncoder`.
        max_length: As in `CrossEncoder`.
        callback_manager: LlamaIndex's callbacks.

    Raises:
        InvalidInputError: If an argument cannot be used, or, when called, if there is no query.
        ModelError: When called, if the model cannot be loaded or gives NaN.

    Example:
        >>> from llama_index.core.schema import NodeWithScore, TextNode
        >>> from retrieve_rerank.llama_index import CrossEncoderRerank
        >>> texts = ["Rome is in Italy.", "Paris is the capital of France."]
        >>> nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in texts]
        >>> reranker = CrossEncoderRerank(model=cross_encoder_path, top_n=1)
        >>> best = reranker.postprocess_nodes(nodes, query_str="What is the capital of France?")[0]
        >>> best.text, best.retrieval_rank, best.rerank_rank, best.retrieval_score
        ('Paris is the capital of France.', 2, 1, 0.5)
    """

    # What the model was made of cannot change under it; what a call does with it can.
    model: str = Field(frozen=True)
    top_n: int
    score_threshold: float | None
    metadata_mode: MetadataMode
    device: str | None = Field(frozen=True)
    precision: Precision = Field(frozen=True)
    backend: Backend = Field(frozen=True)
    revision: str | None = Field(frozen=True)
    cache_folder: str | None = Field(frozen=True)
    local_files_only: bool = Field(frozen=True)
    token: str | bool | None = Field(frozen=True, exclude=True, repr=False)
    trust_remote_code: bool = Field(frozen=True)
    prompt: str | None = Field(frozen=True)
    max_length: int | None = Field(frozen=True)

    _ranker: Ranker = PrivateAttr()

    def __init__(
        self,
        model: str | os.PathLike[str] | Scorer = _MODEL,
        top_n: int = 5,
        *,
        score_threshold: float | None = None,
        metadata_mode: MetadataMode = MetadataMode.EMBED,
        device: str | None = None,
        precision: Precision = "auto",
        backend: Backend = "torch",
        revision: str | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        trust_remote_code: bool = False,
        prompt: str | None = None,
        max_length: int | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        settings: dict[str, Any] = {
            "device": device,
            "precision": precision,
            "backend": backend,
            "revision": revision,
            "cache_folder": None if cache_folder is None else os.fspath(cache_folder),
            "local_files_only": local_files_only,
            "token": token,
            "trust_remote_code": trust_remote_code,
            "prompt": prompt,
            "max_length": max_length,
        }
        name, ranker = _ranker_of(model, settings)
        settings.update(
            model=name,
            top_n=check_count(top_n, "top_n"),
            score_threshold=check_threshold(score_threshold),
            metadata_mode=_mode(metadata_mode),
        )
        super().__init__(callback_manager=callback_manager or CallbackManager(), **settings)
        self._ranker = ranker

    @classmethod
    def class_name(cls) -> str:
        return "CrossEncoderRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, candidates = _query_of(query_bundle), nodes_to_hits(nodes, self.metadata_mode)
        with self._reported(query, nodes) as keep:
            return keep(self._ranker.rank(query, candidates, top_n=self.top_n, score_threshold=self.score_threshold))

    @dispatcher.span  # the base class does it for the sync method only
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, candidates = _query_of(query_bundle), nodes_to_hits(nodes, self.metadata_mode)
        with self._reported(query, nodes) as keep:
            return keep(
                await self._ranker.arank(query, candidates, top_n=self.top_n, score_threshold=self.score_threshold)
            )

    @contextmanager
    def _reported(
        self, query: str, nodes: list[NodeWithScore]
    ) -> Iterator[Callable[[Sequence[Hit]], list[NodeWithScore]]]:
        """Emit the start and, however the block ends, the end; the block's result goes through the yielded function."""
        result: list[NodeWithScore] = list(nodes)  # what the end event has if the block fails

        def keep(hits: Sequence[Hit]) -> list[NodeWithScore]:
            result[:] = hits_to_nodes(hits, nodes)
            return list(result)

        dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=self.top_n, model_name=self.model))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: self.top_n,
        }
        try:
            with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
                yield keep
                event.on_end(payload={EventPayload.NODES: result})
        finally:
            dispatcher.event(ReRankEndEvent(nodes=result))


def _mode(mode: MetadataMode | str) -> MetadataMode:
    try:
        return MetadataMode(mode)
    except ValueError as error:
        known = ", ".join(item.value for item in MetadataMode)
        raise InvalidInputError(f"metadata_mode must be one of {known}; got {mode!r}") from error


def _ranker_of(model: str | os.PathLike[str] | Scorer, settings: Mapping[str, Any]) -> tuple[str, Ranker]:
    if isinstance(model, (str, os.PathLike)):
        encoder = CrossEncoder(model, **settings)
        return encoder.model, encoder
    given = [name for name, value in settings.items() if value not in (None, False, "auto")]
    if given:
        raise InvalidInputError(
            f"{', '.join(given)} can be given with a model's name only; set it where the {type(model).__name__} is made"
        )
    ranker = as_ranker(model)
    return str(getattr(model, "model", None) or type(model).__name__), ranker


def _query_of(bundle: QueryBundle | None) -> str:
    if bundle is None:
        raise InvalidInputError(
            "re-ranking needs the query; call postprocess_nodes(nodes, query_str=…) or pass a query_bundle"
        )
    return check_query(bundle.query_str)
