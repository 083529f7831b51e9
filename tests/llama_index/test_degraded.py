"""What LlamaIndex's users see when the re-ranking fails or its time is up, and of other people's scores."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import NodeWithScore

from retrieve_rerank.llama_index import CrossEncoderRerank, RetrieveRerankRetriever
from tests.llama_index.stubs import ListRetriever, TableScorer, scored

LOGITS = {"a": -1.0, "b": 2.0, "c": 0.0}
LATE = "time budget of 0.1 s: 0 of 3 candidates scored"


def pipeline(scorer: Any, seconds: float = 0.0, reranker: dict[str, Any] | None = None, **options: Any) -> Any:
    first = ListRetriever(scored("a", "b", "c"), 3, seconds=seconds)
    return RetrieveRerankRetriever(first, CrossEncoderRerank(scorer, **(reranker or {})), **options)


def marks(nodes: Sequence[Any]) -> set[str | None]:
    return {node.degraded for node in nodes}


@pytest.mark.parametrize("call", ["sync", "async"])
def test_a_first_stages_score_is_no_relevance(call: str) -> None:
    """A cosine of 0.8 beside relevances would pass for a good answer, and a cutoff would keep it before them."""
    logits = {str(number): -2.0 for number in range(40)} | {"0": 2.0}
    reranker = CrossEncoderRerank(TableScorer(logits, seconds=0.3), top_n=40, time_budget=0.8)
    nodes = [NodeWithScore(node=node.node, score=0.8) for node in scored(*logits)]
    found: Any = (
        reranker.postprocess_nodes(nodes, query_str="q")
        if call == "sync"
        else asyncio.run(reranker.apostprocess_nodes(nodes, query_str="q"))
    )
    assert 0 < sum(node.logit is None for node in found) < len(found) == 40
    assert all((node.score is None) == (node.logit is None) for node in found)
    assert {node.retrieval_score for node in found} == {0.8}
    kept = SimilarityPostprocessor(similarity_cutoff=0.5).postprocess_nodes(found)
    assert [node.node_id for node in kept] == ["0"]


@pytest.mark.parametrize("call", ["sync", "async"])
def test_the_budget_of_the_retriever_is_for_the_whole_search(call: str) -> None:
    def found(retriever: Any) -> Any:
        return retriever.retrieve("q") if call == "sync" else asyncio.run(retriever.aretrieve("q"))

    scorer = TableScorer(LOGITS)
    late = pipeline(scorer, seconds=0.15, time_budget=0.1)
    assert [node.node_id for node in found(late)] == ["a", "b", "c"]
    assert marks(found(late)) == {LATE}
    assert scorer.calls == []
    late.time_budget = 30
    assert marks(found(late)) == {None}
    # The re-ranker's own budget is for the re-ranking, however long the first stage took.
    assert marks(found(pipeline(scorer, seconds=0.15, reranker={"time_budget": 0.1}))) == {None}
    slow = pipeline(TableScorer(LOGITS, seconds=0.4), reranker={"time_budget": 0.1})
    assert marks(found(slow)) == {LATE}
    assert slow.reranker._spent == 0.0
