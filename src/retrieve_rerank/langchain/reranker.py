"""The cross-encoder as a LangChain document compressor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

from langchain_core.callbacks import Callbacks
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from pydantic import AfterValidator, BeforeValidator, ConfigDict, PrivateAttr
from typing_extensions import TypedDict

from retrieve_rerank.checks import check_query
from retrieve_rerank.errors import InvalidInputError, shown
from retrieve_rerank.langchain.convert import (
    LangChainCrossEncoder,
    PairScorer,
    check_template,
    checked_documents,
    render,
    to_hits,
    to_reranked,
)
from retrieve_rerank.langchain.serialization import Component, Count, Seconds, Threshold, Weight, model_of, restorable
from retrieve_rerank.models.cross_encoder import DEFAULT_MODEL, CrossEncoder
from retrieve_rerank.models.ranking import Ranker, as_ranker
from retrieve_rerank.models.settings import KEY_VARIABLE, CrossEncoderSettings, documented
from retrieve_rerank.retrieval.rerank import OnError, Reranked, SecondStage
from retrieve_rerank.types import Hit, Scale, Scorer

if TYPE_CHECKING:
    from typing_extensions import Self

_OPTIONS = ("top_n", "score_threshold", "time_budget", "on_error", "rerank_weight")  # of a call


class RerankInput(TypedDict):
    """What the runnable takes."""

    query: str
    documents: Sequence[Document]


@restorable
@documented(CrossEncoderSettings)
class CrossEncoderReranker(Component, CrossEncoderSettings, BaseDocumentCompressor):
    """Order documents by a cross-encoder and keep the best, with their scores.

    Args:
        model: A cross-encoder's hub name or folder; a `retrieve_rerank.CrossEncoder`, to set its device or precision
            or to share one; any `BaseCrossEncoder`; or anything else with `score(query, texts)`, see
            `retrieve_rerank.Scorer`.
        top_n: How many documents to keep; None keeps all.
        score_threshold: Documents whose relevance score is below are left out; 0.0 leaves out none. Documents that the
            model did not score stay.
        text_template: What the model reads of a document, such as "{title}. {page_content}", filled from the
            metadata, whose keys every document must have; None reads the page content.
        time_budget: Seconds that a call may take, never more than one batch over. Documents that were not scored in
            time follow those that were.
        on_error: What happens when the model cannot be loaded or fails, or cannot read the query, being too long for
            it. "raise" raises the cause; "retrieval_order" gives the documents in the order given, marked, with a
            `DegradedWarning`. An empty query and settings that cannot be used raise in any case.
        scores: What a model that is not ours returns: "logits", or "probabilities" in [0, 1], as
            langchain-community's `HuggingFaceCrossEncoder` does for most models.
        rerank_weight: How much the model counts in the order, from 0 (the order given) to 1 (the model's alone).
            Between them both vote; see `retrieve_rerank.RetrieveRerank`. The first stage votes by the documents'
            `retrieval_score`, or else by their ranks.
        **settings: Every other argument is explained in `retrieve_rerank.models.settings`.

    The settings of the model are for one given by name. The API key is never written down: a dump names the
    environment's RETRIEVE_RERANK_API_KEY instead.

    The result holds copies, best first. Their metadata has, beside what was there, `relevance_score` (in [0, 1], means
    the same for every model), `rerank_logit`, `rerank_rank` and `retrieval_rank` (1-based), and `retrieval_score` where
    the first stage gave one; documents that carry a `retrieval_rank` already keep it. `Document.id` stays.
    Where it applies, there are also `combined_score`, which the order is by where both stages voted; `rerank_window`,
    the character span of the scored text that won, as [start, end]; `rerank_truncated`, True where a part of the text
    was not read; and `rerank_degraded`, which says why the call did not score everything: the scores of documents that
    were not scored are None then.

    The call is a run of its own in a trace. Its outputs are the documents and `model`, `precision`, `candidates`,
    `scored`, `truncated`, `seconds` and `degraded`.

    Example:
        >>> from langchain_core.documents import Document
        >>> from retrieve_rerank.langchain import CrossEncoderReranker
        >>> reranker = CrossEncoderReranker(model=str(cross_encoder_path), top_n=1)
        >>> documents = [Document("Rome is in Italy."), Document("Paris is the capital of France.")]
        >>> best = reranker.compress_documents(documents, "capital of France")[0]
        >>> best.page_content, best.metadata["retrieval_rank"], best.metadata["rerank_rank"]
        ('Paris is the capital of France.', 2, 1)
    """

    positional = holds = ("model",)

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        hide_input_in_errors=True,  # there may be a key in it
    )

    model: Annotated[str | CrossEncoder | BaseCrossEncoder | Scorer, BeforeValidator(model_of)] = DEFAULT_MODEL
    top_n: Count | None = 5
    score_threshold: Threshold | None = None
    text_template: Annotated[str | None, AfterValidator(check_template)] = None
    time_budget: Seconds | None = None
    on_error: OnError = "raise"
    scores: Scale = "logits"
    rerank_weight: Weight = 1.0

    _ranker: Ranker = PrivateAttr()

    @property
    def lc_secrets(self) -> dict[str, str]:
        """What `dumpd` writes instead of the key."""
        return {"api_key": KEY_VARIABLE}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; one with another model, or another way to use it, ranks with that."""
        copied = super().model_copy(update=update, deep=deep)
        if update and {"model", "scores", *CrossEncoderSettings.model_fields} & set(update):
            copied.model_post_init(None)
        return copied

    def model_post_init(self, context: Any, /) -> None:
        """Build what ranks; a model given by name loads at its first use."""
        super().model_post_init(context)
        model = self.model.cross_encoder if isinstance(self.model, LangChainCrossEncoder) else self.model
        if isinstance(model, str):
            made = self.make(CrossEncoder, model)
            self._ranker = as_ranker(made, self.scores)
            if self.endpoint is not None:  # what a server serves is no default of ours
                self.__dict__["model"] = made.model
            return
        if given := self.changed_settings:
            raise InvalidInputError(
                f"{', '.join(given)} can be given with a model's name only; set them where the "
                f"{type(model).__name__} is made"
            )
        self._ranker = as_ranker(PairScorer(model) if isinstance(model, BaseCrossEncoder) else model, self.scores)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Return copies of the best documents, best first. The call is traced as a run of its own.

        Raises:
            InvalidInputError: If the query is empty or an item is not a document.
            ModelError: If the model cannot be loaded or gives unusable scores.
        """
        return self.step().invoke({"query": query, "documents": documents}, {"callbacks": callbacks})

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """As `compress_documents`, without blocking the event loop."""
        return await self.step().ainvoke({"query": query, "documents": documents}, {"callbacks": callbacks})

    def as_runnable(
        self,
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        time_budget: float | None = None,
        on_error: OnError | None = None,
        rerank_weight: float | None = None,
    ) -> Runnable[RerankInput, list[Document]]:
        """Return a step for a chain: `{"query": …, "documents": […]}` in, the best documents out.

        Args:
            top_n: Instead of the re-ranker's own; None keeps that. So are the four below.
            score_threshold: As for the class.
            time_budget: As for the class.
            on_error: As for the class.
            rerank_weight: As for the class.
        """
        values = (top_n, score_threshold, time_budget, on_error, rerank_weight)
        given = {name: value for name, value in zip(_OPTIONS, values, strict=True) if value is not None}
        if not given:
            return self.step()
        self.second_stage(**given)  # whose checks say now what cannot be used
        return RerankStep(reranker=self.model_copy(update=given))

    def step(self) -> RerankStep:
        """Return what runs a re-ranking as a run of its own."""
        return RerankStep.model_construct(reranker=self)

    def second_stage(self, **options: Any) -> SecondStage:
        """Return how this re-ranker ranks, without LangChain.

        Args:
            **options: Those of `as_runnable`, instead of the re-ranker's own; None keeps that.

        Raises:
            InvalidInputError: If there is no such option, or its value cannot be used.
        """
        if unknown := sorted(set(options) - set(_OPTIONS)):
            raise InvalidInputError(
                f"re-ranking has no option {', '.join(map(repr, unknown))} of a call; it takes {', '.join(_OPTIONS)}. "
                "Set others where the re-ranker is made"
            )
        own = {name: getattr(self, name) for name in _OPTIONS}
        given = {name: value for name, value in options.items() if value is not None}
        return SecondStage(self._ranker, **{**own, **given})


@restorable
class RerankStep(RunnableSerializable[RerankInput, list[Document]]):
    """A `CrossEncoderReranker` as a step of a chain; made by its `as_runnable`."""

    reranker: CrossEncoderReranker

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether `dumpd` writes this down."""
        return True

    def get_name(self, suffix: str | None = None, *, name: str | None = None) -> str:
        """Return what traces call it: the re-ranker's class."""
        return super().get_name(suffix, name=name or self.name or type(self.reranker).__name__)

    def invoke(
        self,
        input: RerankInput,
        config: RunnableConfig | None = None,
        *,
        stage: SecondStage | None = None,
        spent: float = 0.0,
        **options: Any,
    ) -> list[Document]:
        """Return copies of the best documents.

        Args:
            input: The query and the documents.
            config: LangChain's.
            stage: How they are ranked; None is how the re-ranker and the options say.
            spent: Seconds of the time budget that are gone already.
            **options: Those of `as_runnable`, for this call; another one raises.
        """
        # The run ends with the facts beside the documents: they are known at its end only.
        rerank: Any = self._rerank
        stage = stage or self.reranker.second_stage(**options)
        outputs: Any = self._call_with_config(rerank, input, config, stage=stage, spent=spent)
        return cast("list[Document]", outputs["documents"])

    async def ainvoke(
        self,
        input: RerankInput,
        config: RunnableConfig | None = None,
        *,
        stage: SecondStage | None = None,
        spent: float = 0.0,
        **options: Any,
    ) -> list[Document]:
        """As `invoke`, without blocking the event loop."""
        rerank: Any = self._arerank
        stage = stage or self.reranker.second_stage(**options)
        outputs: Any = await self._acall_with_config(rerank, input, config, stage=stage, spent=spent)
        return cast("list[Document]", outputs["documents"])

    def _rerank(self, job: RerankInput, *, stage: SecondStage, spent: float) -> dict[str, Any]:
        documents, hits = self._prepare(job)
        return _outputs(documents, stage.run(job["query"], hits, spent=spent))

    async def _arerank(self, job: RerankInput, *, stage: SecondStage, spent: float) -> dict[str, Any]:
        documents, hits = self._prepare(job)
        return _outputs(documents, await stage.arun(job["query"], hits, spent=spent))

    def _prepare(self, job: RerankInput) -> tuple[list[Document], list[Hit]]:
        if not isinstance(job, Mapping) or not {"query", "documents"} <= set(job):
            raise InvalidInputError(f"expected a mapping with 'query' and 'documents', got {shown(job)}")
        check_query(job["query"])
        documents = checked_documents(job["documents"])
        return documents, to_hits(documents, [render(document, self.reranker.text_template) for document in documents])


def _outputs(documents: list[Document], reranked: Reranked) -> dict[str, Any]:
    return {
        "documents": [to_reranked(documents[hit.index or 0], hit, reranked.degraded) for hit in reranked.hits],
        **reranked.facts(),
    }
