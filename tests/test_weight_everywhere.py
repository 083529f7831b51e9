"""`rerank_weight` at every door: one order, one combined score, kept by what writes components down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumps
from llama_index.core.schema import NodeWithScore, TextNode

from retrieve_rerank import CrossEncoder, InvalidInputError, RetrieveRerank, SavedSetting, load_setting
from retrieve_rerank.langchain import CrossEncoderReranker, load
from retrieve_rerank.langchain import RetrieveRerankRetriever as LangChainRetriever
from retrieve_rerank.llama_index import CrossEncoderRerank, RerankedNode
from retrieve_rerank.llama_index import RetrieveRerankRetriever as LlamaIndexRetriever
from retrieve_rerank.retrieval.saved import save_setting
from tests.core.stubs import ListRetriever, TableScorer
from tests.langchain.stubs import ListRetriever as LangChainList
from tests.llama_index.stubs import ListRetriever as LlamaIndexList

# The best logit is last in the first stage.
LOGITS = {"a": -3.0, "b": 2.0, "c": 2.5}
ORDERS = {0.0: "abc", 0.3: "abc", 0.6: "bca", 1.0: "cba"}
Found = list[tuple[str, float, float | None]]
Door = Callable[..., Found]


def core(weight: float, **options: Any) -> Found:
    search = RetrieveRerank(ListRetriever(list(LOGITS)), TableScorer(LOGITS), rerank_weight=weight)
    found = [search.search("q", **options), asyncio.run(search.asearch("q", **options))]
    assert list(found[0]) == list(found[1])
    return [(hit.passage.text, hit.score, hit.combined_score) for hit in found[0]]


def of_documents(found: Sequence[Document]) -> Found:
    facts = [(one.page_content, one.metadata) for one in found]
    assert [data["rerank_rank"] for _, data in facts] == list(range(1, len(facts) + 1))
    return [(text, data["relevance_score"], data.get("combined_score")) for text, data in facts]


def documents(*, scored: bool = True) -> list[Document]:
    return [
        Document(text, id=text, metadata={"retrieval_score": 1.0 - rank / 10} if scored else {})
        for rank, text in enumerate(LOGITS, start=1)
    ]


def langchain(weight: float, **options: Any) -> Found:
    retriever = LangChainRetriever(
        base_retriever=LangChainList(documents=documents(scored=False), k=3),
        reranker=CrossEncoderReranker(model=TableScorer(LOGITS)),
        rerank_weight=weight,
    )
    found = [
        retriever.invoke("q", **options),
        asyncio.run(retriever.ainvoke("q", **options)),
        retriever.batch(["q", "r"], **options)[1],
    ]
    assert found[0] == found[1] == found[2]
    return of_documents(found[0])


def langchain_reranker(weight: float, **options: Any) -> Found:
    reranker = CrossEncoderReranker(model=TableScorer(LOGITS), rerank_weight=weight)
    step = reranker.as_runnable(**options)
    found = step.invoke({"query": "q", "documents": documents()})
    assert step.invoke({"query": "q", "documents": found}) == found
    assert found == asyncio.run(step.ainvoke({"query": "q", "documents": documents()}))
    return of_documents(found)


def nodes(*, scored: bool) -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(id_=text, text=text), score=1.0 - rank / 10 if scored else None)
        for rank, text in enumerate(LOGITS, start=1)
    ]


def llama_index(weight: float, rerank_weight: float | None = None) -> Found:
    reranker = CrossEncoderRerank(TableScorer(LOGITS), rerank_weight=weight)
    retriever = LlamaIndexRetriever(LlamaIndexList(nodes(scored=True)), reranker, rerank_weight=rerank_weight)
    found = [retriever.retrieve("q"), asyncio.run(retriever.aretrieve("q"))]
    assert [node.model_dump() for node in found[0]] == [node.model_dump() for node in found[1]]
    given = weight if rerank_weight is None else rerank_weight
    again = reranker.model_copy(update={"rerank_weight": given}).postprocess_nodes(found[0], query_str="q")
    assert [node.model_dump() for node in again] == [node.model_dump() for node in found[0]]
    reranked = [node for node in found[0] if isinstance(node, RerankedNode)]
    return [(node.text, node.score or 0.0, node.combined_score) for node in reranked]


DOORS = [core, langchain, langchain_reranker, llama_index]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("weight", ORDERS)
def test_it_gives_one_order_at_every_door_made_with_it_or_called_with_it(door: Door, weight: float) -> None:
    made, called = door(weight), door(0.5, rerank_weight=weight)
    assert made == called
    assert "".join(text for text, _, _ in made) == ORDERS[weight]
    combined = [number for _, _, number in made]
    if weight == 1:
        assert combined == [None] * 3
    else:
        assert combined == sorted(combined, reverse=True)  # type: ignore[type-var]
    assert {text: score for text, score, _ in made} == {text: score for text, score, _ in door(1.0)}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("wrong", [1.5, "much", True, float("nan")])
def test_what_is_no_weight_is_refused_at_every_door(door: Door, wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match="rerank_weight"):
        door(wrong)
    with pytest.raises(InvalidInputError, match="rerank_weight"):
        door(1.0, rerank_weight=wrong)


def test_a_users_own_combined_score_stays_unless_a_re_ranking_wrote_it() -> None:
    reranker = CrossEncoderReranker(model=TableScorer(LOGITS))
    own = [Document("a", metadata={"combined_score": "mine"}), Document("b", metadata={})]
    assert reranker.compress_documents(own, "q")[1].metadata["combined_score"] == "mine"
    voted = reranker.model_copy(update={"rerank_weight": 0.5}).compress_documents(documents(), "q")
    assert all("combined_score" in found.metadata for found in voted)
    assert not any("combined_score" in found.metadata for found in reranker.compress_documents(voted, "q"))


def test_what_is_written_down_keeps_it(tiny_cross_encoder: Path) -> None:
    reranker = CrossEncoderReranker(model=str(tiny_cross_encoder), rerank_weight=0.25)
    assert load(json.loads(dumps(reranker))).rerank_weight == 0.25
    node_reranker = CrossEncoderRerank(tiny_cross_encoder, rerank_weight=0.25)
    assert CrossEncoderRerank.from_dict(json.loads(json.dumps(node_reranker.to_dict()))).rerank_weight == 0.25
    found = node_reranker.postprocess_nodes(nodes(scored=True), query_str="q")[0]
    assert isinstance(found, RerankedNode)
    assert found.to_dict()["combined_score"] == found.combined_score is not None


def test_a_setting_carries_it_to_every_door(tiny_cross_encoder: Path, tmp_path: Path) -> None:
    file = tmp_path / "setting.json"
    save_setting(SavedSetting("list", 3, "tiny", {"model": str(tiny_cross_encoder)}, rerank_weight=0.3), file)
    search = RetrieveRerank.load(file, ListRetriever(list(LOGITS)))
    assert (search.rerank_weight, search.fetch_k) == (0.3, 3)
    assert RetrieveRerank.load(file, ListRetriever([]), TableScorer({}), rerank_weight=1.0).rerank_weight == 1.0
    setting = load_setting(file)
    retriever = LangChainRetriever(
        base_retriever=LangChainList(documents=documents(), k=3),
        reranker=setting.make_cross_encoder(),
        rerank_weight=setting.rerank_weight,
    )
    assert isinstance(retriever.reranker.model, CrossEncoder)
    found = of_documents(retriever.invoke("q"))
    assert None not in {*(number for _, _, number in found), *(hit.combined_score for hit in search.search("q"))}
    file.write_text(file.read_text().replace("0.3", "3"))
    with pytest.raises(InvalidInputError, match="rerank_weight must be a number from 0"):
        load_setting(file)
