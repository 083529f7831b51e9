"""What a caller configures reaches the retrievers that ours ask, as LangChain's own hand it on."""

from __future__ import annotations

import time
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableField, RunnableConfig
from langchain_core.vectorstores import InMemoryVectorStore

from retrieve_rerank.langchain import CrossEncoderReranker, HybridRetriever, RetrieveRerankRetriever
from tests.langchain.stubs import ListRetriever, TableCrossEncoder, WordEmbeddings


def only_b(document: Document) -> bool:
    return document.metadata["tenant"] == "B"


CONFIG: RunnableConfig = {"configurable": {"kwargs": {"filter": only_b}}}


def tenants() -> Any:
    """A retriever whose filter is chosen at the call."""
    store = InMemoryVectorStore(WordEmbeddings())
    store.add_documents([Document("a", id=tenant, metadata={"tenant": tenant}) for tenant in "ABAB"])
    return store.as_retriever().configurable_fields(search_kwargs=ConfigurableField(id="kwargs"))


@pytest.fixture(params=["hybrid", "re-ranked", "re-ranked hybrid", "rewritten"])
def retriever(request: pytest.FixtureRequest) -> Any:
    first: Any = tenants()
    if "hybrid" in request.param:
        first = HybridRetriever(retrievers=[first, ListRetriever(documents=[])])
    if "re" not in request.param:
        return first
    reranker = CrossEncoderReranker(model=TableCrossEncoder({"a": 1.0}))
    made = RetrieveRerankRetriever(base_retriever=first, reranker=reranker)
    return made.bind(rewrites=["a a"]) if request.param == "rewritten" else made


def found(documents: list[Document]) -> set[str]:
    return {document.metadata["tenant"] for document in documents}


async def test_a_filter_chosen_at_the_call(retriever: Any) -> None:
    assert found(retriever.invoke("a")) == {"A", "B"}
    assert found(retriever.invoke("a", CONFIG)) == {"B"}
    assert found(await retriever.ainvoke("a", CONFIG)) == {"B"}
    assert [found(documents) for documents in retriever.batch(["a", "a"], [CONFIG, {}])] == [{"B"}, {"A", "B"}]
    assert found(retriever.with_config(CONFIG).invoke("a")) == {"B"}
    assert found(retriever.invoke("a")) == {"A", "B"}  # it was of that call


def test_rewrites_are_asked_no_more_at_once_than_the_caller_allows() -> None:
    at_once = []

    class Counting(ListRetriever):
        running: int = 0

        def _get_relevant_documents(self, query: str, *, run_manager: object) -> list[Document]:
            self.running += 1
            at_once.append(self.running)
            time.sleep(0.05)
            self.running -= 1
            return []

    reranker = CrossEncoderReranker(model=TableCrossEncoder({}))
    made = RetrieveRerankRetriever(base_retriever=Counting(documents=[]), reranker=reranker)
    made.invoke("a", {"max_concurrency": 1}, rewrites=["b", "c", "d"])
    assert at_once == [1, 1, 1, 1]
