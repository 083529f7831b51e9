from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

from retrieve_rerank import CrossEncoder, InvalidInputError, TruncationWarning
from retrieve_rerank.llama_index import CrossEncoderRerank, RerankedNode
from tests.llama_index.stubs import TableScorer, recorded, scored, text_node, ticks_during

RERANK = ("ReRankStartEvent", "ReRankEndEvent")
LOGITS = {"a": -1.0, "b": 2.0, "c": 0.0, "d": -8.0}


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def test_the_scores_touch_neither_the_node_nor_what_others_read_of_it() -> None:
    """L2: the peer writes into metadata: another hash, and a score in the text of the next pass and of the LLM."""
    node = text_node("n", "text", title="t")
    before = (node.hash, dict(node.metadata), *(node.get_content(metadata_mode=mode) for mode in MetadataMode))
    scorer = TableScorer({"title: t\n\ntext": 1.0})
    reranker = CrossEncoderRerank(scorer)
    once = reranker.postprocess_nodes([NodeWithScore(node=node, score=0.7)], query_str="q")
    twice = reranker.postprocess_nodes(once, query_str="q")
    assert scorer.calls == [["title: t\n\ntext"]] * 2
    for result in (once, twice):
        assert result[0].node is node
        assert (result[0].score, result[0].retrieval_score) == (sigmoid(1.0), 0.7)
    assert before == (node.hash, dict(node.metadata), *(node.get_content(metadata_mode=mode) for mode in MetadataMode))


def test_the_default_model_ranks_passages() -> None:
    """L3: the peer's default is a similarity model, and it keeps two nodes."""
    reranker = CrossEncoderRerank()
    assert (reranker.model, reranker.top_n) == ("cross-encoder/ms-marco-MiniLM-L6-v2", 5)
    assert reranker.trust_remote_code is False  # L8: the peer runs the hub's code unasked


async def test_events_come_in_pairs_when_the_call_is_cancelled() -> None:
    reranker = CrossEncoderRerank(TableScorer(LOGITS, seconds=0.3))
    with recorded(*RERANK) as recorder, pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(reranker.apostprocess_nodes(scored("a"), query_str="q"), timeout=0.05)
    assert recorder.names == [*RERANK]


def test_a_copy_with_another_model_ranks_with_it(tiny_cross_encoder: Path) -> None:
    """Else the copy says one model and ranks with another."""
    nodes = scored("a", "b")
    original = CrossEncoderRerank(TableScorer({"a": 1.0, "b": 0.0}), top_n=1, score_threshold=0.0)
    turned = original.model_copy(update={"model": TableScorer({"a": 0.0, "b": 1.0}), "top_n": 2})
    assert [node.node_id for node in turned.postprocess_nodes(nodes, query_str="q")] == ["b", "a"]
    assert [node.node_id for node in original.postprocess_nodes(nodes, query_str="q")] == ["a"]
    by_name = turned.model_copy(update={"model": tiny_cross_encoder})
    assert (by_name.model, by_name.scorer, by_name.top_n) == (str(tiny_cross_encoder), None, 2)
    assert by_name.to_dict() == CrossEncoderRerank(tiny_cross_encoder, 2, score_threshold=0.0).to_dict()
    assert by_name.postprocess_nodes(nodes, query_str="q") == CrossEncoderRerank(tiny_cross_encoder).postprocess_nodes(
        nodes, query_str="q"
    )
    told = original.model_copy(update={"scores": "probabilities"}).postprocess_nodes(nodes, query_str="q")
    assert told[0].score == pytest.approx(1.0)
    with pytest.raises(InvalidInputError, match="device can be given with a model's name only"):
        original.model_copy(update={"device": "cpu"})


@pytest.mark.parametrize("given", [CrossEncoder, str])
def test_a_copy_with_other_settings_of_the_model_uses_them(given: type, tiny_cross_encoder: Path) -> None:
    original = CrossEncoderRerank(given(tiny_cross_encoder), top_n=3)
    changed = original.model_copy(update={"long_passages": "windows", "max_windows": 4})
    assert (changed.top_n, changed.model, changed.long_passages) == (3, original.model, "windows")
    nodes = scored("bread. " * 60)
    found: object = changed.postprocess_nodes(nodes, query_str="capital")[0]  # truncation would warn
    assert isinstance(found, RerankedNode)
    assert found.window is not None
    with pytest.warns(TruncationWarning):
        original.postprocess_nodes(nodes, query_str="capital")
    with pytest.raises(InvalidInputError, match="max_windows"):
        original.model_copy(update={"max_windows": 0})


@pytest.mark.parametrize("update", [None, {"top_n": 2, "time_budget": 3.0, "max_length": None}])
def test_any_other_copy_shares_the_model(update: dict[str, object] | None, tiny_cross_encoder: Path) -> None:
    for model in (tiny_cross_encoder, CrossEncoder(tiny_cross_encoder), TableScorer({})):
        original = CrossEncoderRerank(model)
        assert original.model_copy(update=update)._ranker is original._ranker


def test_what_the_model_reads_follows_metadata_mode() -> None:
    node = TextNode(text="body", metadata={"title": "t", "id": 7}, excluded_embed_metadata_keys=["id"])
    seen = {"title: t\n\nbody": 0.0, "body": 0.0, "title: t\nid: 7\n\nbody": 0.0}
    for mode, text in zip(("embed", MetadataMode.NONE, MetadataMode.LLM), seen, strict=True):
        scorer = TableScorer(seen)
        CrossEncoderRerank(scorer, metadata_mode=mode).postprocess_nodes([NodeWithScore(node=node)], query_str="q")
        assert scorer.calls == [[text]]


def test_everything_that_comes_out_is_plain_python(tiny_cross_encoder: Path) -> None:
    nodes = scored("paris", "rome")
    nodes[0].score = np.float32(0.5)  # type: ignore[assignment]  # assignment is not validated by the framework
    nodes[1].score = None
    for node in CrossEncoderRerank(tiny_cross_encoder).postprocess_nodes(nodes, query_str="q"):
        assert isinstance(node, RerankedNode)
        assert (type(node.score), type(node.logit)) == (float, float)
        assert (type(node.retrieval_rank), type(node.rerank_rank)) == (int, int)
        assert node.retrieval_score in (0.5, None)
        assert RerankedNode.from_dict({**json.loads(node.to_json()), "node": node.node}) == node


def test_a_metadata_mode_that_there_is_not() -> None:
    with pytest.raises(InvalidInputError, match="metadata_mode"):
        CrossEncoderRerank(metadata_mode="everything")


@pytest.mark.parametrize("bundle", [None, QueryBundle(""), QueryBundle("  ")])
async def test_without_a_query_nothing_starts(bundle: QueryBundle | None) -> None:
    reranker = CrossEncoderRerank(TableScorer(LOGITS))
    with recorded(*RERANK) as recorder:
        with pytest.raises(InvalidInputError, match="query"):
            reranker.postprocess_nodes(scored("a"), query_bundle=bundle)
        with pytest.raises(InvalidInputError, match="query"):
            await reranker.apostprocess_nodes(scored("a"), query_bundle=bundle)
    assert recorder.names == []


async def test_the_event_loop_is_not_blocked_and_the_default_pool_not_used() -> None:
    scorer = TableScorer(LOGITS, seconds=0.2)
    result, ticks = await ticks_during(CrossEncoderRerank(scorer).apostprocess_nodes(scored("a", "b"), query_str="q"))
    assert ticks >= 5
    assert [node.node_id for node in result] == ["b", "a"]
    assert all(name.startswith("retrieve-rerank") for name in scorer.threads)
