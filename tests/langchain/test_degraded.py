"""What LangChain's users see when the re-ranking fails or its time is up, and of other people's scores."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document

from retrieve_rerank import CrossEncoder, DegradedWarning, InvalidInputError, TruncationWarning
from retrieve_rerank.langchain import CrossEncoderReranker, RetrieveRerankRetriever
from tests.langchain.stubs import Broken, ListRetriever, TableCrossEncoder, ids

SCORES = {"low": -2.0, "high": 3.0, "middle": 0.0}
LATE = "time budget of 0.1 s: 0 of 3 candidates scored"


class SlowRetriever(ListRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: object) -> list[Document]:
        time.sleep(0.15)
        return super()._get_relevant_documents(query, run_manager=run_manager)


def documents() -> list[Document]:
    return [Document(text, id=f"id-{text}", metadata={"from": text}) for text in SCORES]


def pipeline(
    model: Any = None,
    first: type[ListRetriever] = ListRetriever,
    reranker: dict[str, Any] | None = None,
    **options: Any,
) -> RetrieveRerankRetriever:
    made = CrossEncoderReranker(model=TableCrossEncoder(SCORES) if model is None else model, **(reranker or {}))
    return RetrieveRerankRetriever(base_retriever=first(documents=documents(), k=3), reranker=made, **options)


def marks(found: Any) -> set[str | None]:
    return {document.metadata.get("rerank_degraded") for document in found}


def test_the_metadata_of_what_was_not_scored() -> None:
    given = documents()
    given[0].metadata["retrieval_score"] = 0.75
    reranker = CrossEncoderReranker(model=Broken(SCORES), on_error="retrieval_order", score_threshold=1.0, top_n=2)
    with pytest.warns(DegradedWarning):
        found = reranker.compress_documents(given, "q")
    assert [document.metadata for document in found] == [
        {
            "from": "low",
            "relevance_score": None,
            "rerank_logit": None,
            "rerank_rank": 1,
            "retrieval_rank": 1,
            "retrieval_score": 0.75,
            "rerank_degraded": "re-ranking failed: ConnectionError: server gone",
        },
        {
            "from": "high",
            "relevance_score": None,
            "rerank_logit": None,
            "rerank_rank": 2,
            "retrieval_rank": 2,
            "rerank_degraded": "re-ranking failed: ConnectionError: server gone",
        },
    ]
    json.dumps([document.metadata for document in found])


@pytest.mark.parametrize("on_error", ["raise", "retrieval_order"])
async def test_a_template_and_an_option_that_cannot_be_used_raise_in_both_modes(on_error: Any) -> None:
    reranker = CrossEncoderReranker(
        model=TableCrossEncoder(SCORES), text_template="{title}: {page_content}", on_error=on_error
    )
    with pytest.raises(InvalidInputError, match="'title'"):
        reranker.compress_documents(documents(), "q")
    with pytest.raises(InvalidInputError, match="top_n"):
        await pipeline(on_error=on_error).ainvoke("q", top_n=0)


@pytest.mark.parametrize("call", ["sync", "async"])
def test_the_budget_of_the_retriever_is_for_the_whole_search(call: str) -> None:
    def found(retriever: RetrieveRerankRetriever, **options: Any) -> list[Document]:
        if call == "sync":
            return retriever.invoke("q", **options)
        return asyncio.run(retriever.ainvoke("q", **options))

    late = pipeline(first=SlowRetriever, time_budget=0.1)
    assert ids(found(late)) == ["id-low", "id-high", "id-middle"]
    assert marks(found(late)) == {LATE}
    assert marks(found(late, time_budget=30)) == {None}
    assert marks(found(pipeline(first=SlowRetriever), time_budget=0.1)) == {LATE}
    # The re-ranker's own budget is for the re-ranking, however long the first stage took.
    assert marks(found(pipeline(first=SlowRetriever, reranker={"time_budget": 0.1}))) == {None}


def test_the_budget_of_a_step() -> None:
    class Slow(TableCrossEncoder):
        def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
            time.sleep(0.4)
            return super().score(text_pairs)

    reranker = CrossEncoderReranker(model=Slow(SCORES))
    job: Any = {"query": "q", "documents": documents()}
    assert marks(reranker.as_runnable(time_budget=0.1).invoke(job)) == {LATE}
    assert marks(reranker.as_runnable().invoke(job)) == {None}
    for options in ({"time_budget": 0}, {"on_error": "never"}, {"score_threshold": 3}, {"top_n": 0}):
        with pytest.raises(InvalidInputError, match=next(iter(options))):
            reranker.as_runnable(**options)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=next(iter(options))):
            CrossEncoderReranker(model=Slow(SCORES), **options)  # type: ignore[arg-type]


def test_the_incumbents_model_gives_probabilities(tiny_cross_encoder: Path) -> None:
    """Its sigmoid and ours on top give 0.5 to 0.73 for everything, and every threshold means something else."""
    community = pytest.importorskip("langchain_community.cross_encoders")
    theirs = community.HuggingFaceCrossEncoder(model_name=str(tiny_cross_encoder))
    given = [Document(text) for text in ("paris is the capital of france", "rome is in italy", "bread")]
    own = CrossEncoderReranker(model=CrossEncoder(tiny_cross_encoder, precision="float32"))
    expected = [document.metadata["relevance_score"] for document in own.compress_documents(given, "capital")]
    told = CrossEncoderReranker(model=theirs, scores="probabilities")
    found = told.compress_documents(given, "capital")
    assert [document.metadata["relevance_score"] for document in found] == pytest.approx(expected, abs=1e-5)
    with pytest.warns(UserWarning, match="that .* gave lies in .0, 1.") as warned:
        wrong = CrossEncoderReranker(model=theirs).compress_documents(given, "capital")
    assert len(warned) == 1
    assert all(document.metadata["relevance_score"] >= 0.5 for document in wrong)


def test_the_scale_of_our_own_model_is_known(tiny_cross_encoder: Path) -> None:
    model = CrossEncoder(tiny_cross_encoder)
    for given in (model, str(tiny_cross_encoder), model.as_langchain()):
        with pytest.raises(ValueError, match="ranks by logits already"):
            CrossEncoderReranker(model=given, scores="probabilities")
    # Our model in LangChain's clothes is our model: its logits in [0, 1] are no reason for a warning.
    assert CrossEncoderReranker(model=model.as_langchain())._ranker is model


def test_long_passages_go_to_a_model_given_by_name(tiny_cross_encoder: Path) -> None:
    reranker = CrossEncoderReranker(model=tiny_cross_encoder, long_passages="windows", max_windows=4)
    text = "bread. " * 60
    metadata = reranker.compress_documents([Document(text)], "capital")[0].metadata  # truncation would warn
    start, end = metadata["rerank_window"]
    assert 0 <= start < end <= len(text)
    assert "rerank_truncated" not in metadata
    with pytest.warns(TruncationWarning):
        cut = CrossEncoderReranker(model=tiny_cross_encoder).compress_documents([Document(text)], "capital")
    assert cut[0].metadata["rerank_truncated"] is True
    again = CrossEncoderReranker(model=TableCrossEncoder({text: 1.5})).compress_documents(cut, "capital")
    assert not {"rerank_truncated", "rerank_window"} & set(again[0].metadata)
    with pytest.raises(ValueError, match="with a model's name only; set them where the CrossEncoder is made"):
        CrossEncoderReranker(model=CrossEncoder(tiny_cross_encoder), long_passages="windows")
    with pytest.raises(ValueError, match="max_windows"):
        CrossEncoderReranker(model=tiny_cross_encoder, max_windows=0)
    changed = CrossEncoderReranker(model=tiny_cross_encoder).model_copy(update={"long_passages": "windows"})
    changed.compress_documents([Document("bread. " * 60)], "capital")
