"""The second stage as a node postprocessor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from retrieve_rerank.checks import check_choice, check_count, check_query, check_seconds, check_threshold
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.llama_index.compat import SENTENCE_TRANSFORMER_RERANK, in_place_of
from retrieve_rerank.llama_index.convert import hits_to_nodes, nodes_to_hits
from retrieve_rerank.llama_index.serialization import Restorable
from retrieve_rerank.models.cross_encoder import DEFAULT_MODEL, CrossEncoder
from retrieve_rerank.models.interpolation import check_weight
from retrieve_rerank.models.ranking import Ranker, ScorerRanker, as_ranker, check_scale, scorer_name
from retrieve_rerank.models.settings import CrossEncoderOptions, CrossEncoderSettings, documented
from retrieve_rerank.retrieval.rerank import OnError, Reranked, SecondStage, check_on_error, reason
from retrieve_rerank.types import Scale, Scorer

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

_SETTINGS = CrossEncoderSettings.model_fields

dispatcher = get_dispatcher(__name__)


@documented(CrossEncoderSettings)
class CrossEncoderRerank(CrossEncoderSettings, BaseNodePostprocessor, Restorable):
    """Orders retrieved nodes by a cross-encoder and keeps the best.

    The nodes that come in are never modified: new `RerankedNode` objects around the same nodes go out. Nodes with equal
    text are scored once; ties keep the order of the first stage. A ReRankStartEvent and a ReRankEndEvent are emitted
    for every call, also for no nodes and when scoring fails. The latter's tags have `model`, `precision`, `candidates`,
    `scored`, `truncated`, `seconds` and `degraded`, or `error`.

    Args:
        model: A hub name or a folder; or a `CrossEncoder`; or anything with `score(query, texts)`, whose scores are
            logits unless `scores` says otherwise. An object is shared, not copied. `to_dict` keeps all settings of a
            `CrossEncoder` but its token, and of another scorer the name only, which cannot be made a scorer of again.
        top_n: How many nodes to return at most; None returns all.
        score_threshold: Nodes whose relevance score, in [0, 1], is below are left out; an empty result is a result.
            Nodes that the model did not score stay.
        metadata_mode: What the cross-encoder reads of a node: EMBED is the text with the metadata that the embedding
            model sees, NONE the bare text.
        time_budget: Seconds that a call may take, never more than one batch over. Nodes that were not scored in time
            follow those that were.
        on_error: What happens when the model cannot be loaded or fails, or cannot read the query, being too long for
            it. "raise" raises the cause; "retrieval_order" gives the nodes in the order given, marked, with a
            `DegradedWarning`. An empty query and settings that cannot be used raise in any case.
        scores: What a scorer that is no `CrossEncoder` returns: "logits", or "probabilities" in [0, 1].
        rerank_weight: How much the model counts in the order, from 0 (the order given) to 1 (the model's alone).
            Between them both vote; see `retrieve_rerank.RetrieveRerank`. The first stage votes by the nodes' scores
            where these fall from node to node, else by their ranks.
        scorer: The kind of scorer that this was made with, which `to_dict` writes down where it was no `CrossEncoder`.
            Not to be given: such a dictionary is not enough to make one of.
        callback_manager: LlamaIndex's callbacks.
        **settings: Every other argument is explained in `retrieve_rerank.models.settings`.

    The settings of the model are for one given by name.

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

    model_config = ConfigDict(hide_input_in_errors=True)  # there may be a key in it

    # What the model was made of cannot change under it; what a call does with it can.
    model: str = Field(frozen=True)
    top_n: int | None
    score_threshold: float | None
    metadata_mode: MetadataMode
    time_budget: float | None
    on_error: OnError
    scores: Scale = Field(frozen=True)
    rerank_weight: float
    scorer: str | None = Field(frozen=True)
    _ranker: Ranker = PrivateAttr()
    _spent: float = PrivateAttr(default=0.0)  # seconds of the time budget that are gone when a call begins

    @in_place_of(SENTENCE_TRANSFORMER_RERANK)
    def __init__(
        self,
        model: str | os.PathLike[str] | Scorer = DEFAULT_MODEL,
        top_n: int | None = 5,
        *,
        score_threshold: float | None = None,
        metadata_mode: MetadataMode = MetadataMode.EMBED,
        time_budget: float | None = None,
        on_error: OnError = "raise",
        scores: Scale = "logits",
        rerank_weight: float = 1.0,
        scorer: str | None = None,
        callback_manager: CallbackManager | None = None,
        **settings: Unpack[CrossEncoderOptions],
    ) -> None:
        if scorer is not None and isinstance(model, (str, os.PathLike)):
            raise InvalidInputError(
                f"this was written down with a {scorer} as its model, which cannot be made again; give "
                "CrossEncoderRerank(model=…) the object"
            )
        fields: dict[str, Any] = {
            "callback_manager": callback_manager or CallbackManager(),
            "model": "",
            "scorer": None,
            "scores": check_scale(scores),
            "time_budget": check_seconds(time_budget, "time_budget"),
            "on_error": check_on_error(on_error),
            "rerank_weight": check_weight(rerank_weight),
            "top_n": None if top_n is None else check_count(top_n, "top_n"),
            "score_threshold": check_threshold(score_threshold),
            "metadata_mode": check_choice(metadata_mode, [mode.value for mode in MetadataMode], "metadata_mode"),
            **CrossEncoderSettings.of(settings).arguments,
        }
        super().__init__(**fields)
        self._rank_by(model, settings)

    @classmethod
    def class_name(cls) -> str:
        return "CrossEncoderRerank"

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; one with another model, or other settings of it, ranks with that. Any other shares the model.

        A model that is given by name gets the settings of this one, but for those in `update`.
        """
        copied = super().model_copy(update=update, deep=deep)
        given = {name: value for name, value in (update or {}).items() if name in ("model", "scores", *_SETTINGS)}
        if all(value == getattr(self, name) for name, value in given.items()):
            return copied
        ranker = copied._ranker.scorer if isinstance(copied._ranker, ScorerRanker) else copied._ranker  # noqa: SLF001
        model = given.pop("model", self.model if self.scorer is None else ranker)
        copied._rank_by(model, {name: value for name, value in given.items() if name in _SETTINGS})  # noqa: SLF001
        return copied

    def _rank_by(self, model: str | os.PathLike[str] | Scorer, given: Mapping[str, Any]) -> None:
        """Make, or take, what ranks, and the fields that say what it is; `given` are settings of a model by name."""
        if isinstance(model, (str, os.PathLike)):
            encoder = self.make(CrossEncoder, model)
            self.__dict__.update(encoder.settings, scorer=None)
            self._ranker = as_ranker(encoder, self.scores)
            return
        if names := [name for name, value in given.items() if value != _SETTINGS[name].default]:
            raise InvalidInputError(
                f"{', '.join(names)} can be given with a model's name only; set it where the {type(model).__name__} is "
                "made"
            )
        # What a CrossEncoder was made with is what is written down; of another scorer nothing is known.
        known = type(model) is CrossEncoder
        told = model.settings if isinstance(model, CrossEncoder) and known else {}
        defaults = {name: setting.default for name, setting in _SETTINGS.items()}
        kind = None if known else type(model).__name__
        self.__dict__.update({**defaults, **told, "model": scorer_name(model), "scorer": kind})
        self._ranker = as_ranker(model, self.scores)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, candidates = _query_of(query_bundle), nodes_to_hits(nodes, self.metadata_mode)
        with self._reported(query, nodes) as keep:
            return keep(self._second_stage().run(query, candidates, spent=self._spent))

    @dispatcher.span  # the base class does it for the sync method only
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, candidates = _query_of(query_bundle), nodes_to_hits(nodes, self.metadata_mode)
        with self._reported(query, nodes) as keep:
            return keep(await self._second_stage().arun(query, candidates, spent=self._spent))

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "_ranker" not in (state["__pydantic_private__"] or {}):  # which would be good for nothing
            raise InvalidInputError(f"this re-ranker's {self.model} cannot be pickled, so it cannot either")
        return state

    def after(self, seconds: float) -> CrossEncoderRerank:
        """Return this re-ranker with that much of its time budget gone when a call begins."""
        copied = self.model_copy()
        copied._spent = seconds  # noqa: SLF001 - a copy of our own
        return copied

    def _second_stage(self) -> SecondStage:
        limits = (self.top_n, self.score_threshold, self.time_budget)
        return SecondStage(self._ranker, *limits, self.on_error, self.rerank_weight)

    @contextmanager
    def _reported(self, query: str, nodes: list[NodeWithScore]) -> Iterator[Callable[[Reranked], list[NodeWithScore]]]:
        """Emit the start and, however the block ends, the end; the block's result goes through the yielded function."""
        result: list[NodeWithScore] = list(nodes)  # what the end event has if the block fails
        tags: dict[str, Any] = {}

        def keep(reranked: Reranked) -> list[NodeWithScore]:
            result[:] = hits_to_nodes(reranked.hits, nodes, reranked.degraded)
            tags.update(reranked.facts())
            return list(result)

        top_n = len(nodes) if self.top_n is None else self.top_n  # the event takes a number
        dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=top_n, model_name=self.model))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: top_n,
        }
        try:
            with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
                yield keep
                event.on_end(payload={EventPayload.NODES: result})
        except BaseException as error:
            tags["error"] = reason(error, self._ranker)
            raise
        finally:
            dispatcher.event(ReRankEndEvent(nodes=result, tags=tags))


def _query_of(bundle: QueryBundle | None) -> str:
    if bundle is None:
        raise InvalidInputError(
            "re-ranking needs the query; call postprocess_nodes(nodes, query_str=…) or pass a query_bundle"
        )
    return check_query(bundle.query_str)
