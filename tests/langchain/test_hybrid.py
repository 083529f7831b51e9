"""Several first stages as one LangChain retriever."""

from __future__ import annotations

import contextvars
import json
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.load import dumpd
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda

from retrieve_rerank import DegradedWarning, InvalidInputError
from retrieve_rerank.langchain import (
    BiEncoderEmbeddings,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderReranker,
    HybridRetriever,
    RetrieveRerankRetriever,
    load,
)
from tests.langchain.stubs import ListRetriever, TableCrossEncoder, WordEmbeddings

TEXTS = ["a a a", "a a b", "c", "b b a"]


def listed(ids: str, **options: Any) -> ListRetriever:
    """Return a retriever of documents whose ids are the letters and whose texts are the letters in upper case."""
    return ListRetriever(documents=[Document(id_.upper(), id=id_) for id_ in ids], **options)


def ids(documents: list[Document]) -> str:
    return "".join(str(document.id) for document in documents)


def ranks(documents: list[Document]) -> list[Any]:
    return [document.metadata["retrieval_ranks"] for document in documents]


class Slow(ListRetriever):
    seconds: float = 0.3

    def _get_relevant_documents(self, query: str, *, run_manager: object) -> list[Document]:
        time.sleep(self.seconds)
        return super()._get_relevant_documents(query, run_manager=run_manager)


class Down(BaseRetriever):
    error: BaseException

    def _get_relevant_documents(self, query: str, *, run_manager: object, **options: Any) -> list[Document]:
        raise self.error


async def both_ways(retriever: BaseRetriever, query: str, **options: Any) -> list[list[Document]]:
    return [retriever.invoke(query, **options), await retriever.ainvoke(query, **options)]


async def test_retrievers_run_at_the_same_time() -> None:
    """C13: the peer runs them one after another where it is not async."""
    hybrid = HybridRetriever(retrievers=[Slow(documents=[]), Slow(documents=[]), Slow(documents=[])])
    for call in (lambda: hybrid.invoke("q"), lambda: hybrid.ainvoke("q")):
        start = time.perf_counter()
        result = call()
        assert (result if isinstance(result, list) else await result) == []
        assert 0.29 < time.perf_counter() - start < 0.7


async def test_documents_without_ids_are_merged_by_text_or_refused() -> None:
    """C13: with id_key the peer fails with a KeyError."""
    one_id = [ListRetriever(documents=[Document("same", id="1"), Document("other", id="1")]), listed("a")]
    assert ids(HybridRetriever(retrievers=one_id, merge="text").invoke("q")) == "1a1"
    bare = ListRetriever(documents=[Document("same"), Document("same")])
    by_id = HybridRetriever(retrievers=[listed("a"), bare])
    with pytest.raises(InvalidInputError, match=r'retriever 2 \(ListRetriever\) .* without an id.* merge="text"'):
        by_id.invoke("q")
    with pytest.raises(InvalidInputError, match='merge="text"'):
        await by_id.ainvoke("q")
    by_text = HybridRetriever(retrievers=[bare, ListRetriever(documents=[Document("same", id="1")])], merge="text")
    (document,) = by_text.invoke("q")
    assert (document.id, document.metadata["retrieval_ranks"]) == (None, [1, 1])
    # Where one retriever alone found something, there is nothing to merge.
    assert ids(HybridRetriever(retrievers=[ListRetriever(documents=[]), bare]).invoke("q")) == "None"


async def test_options_go_to_every_retriever_and_are_never_dropped() -> None:
    metadatas = [{"n": number} for number in range(4)]
    stores = [ChromaVectorStore.from_texts(TEXTS, WordEmbeddings(), metadatas, ids=["0", "1", "2", "3"]) for _ in "xy"]
    for documents in await both_ways(HybridRetriever(retrievers=stores), "a", filter={"n": {"$lt": 2}}):
        assert ids(documents) == "01"
        assert ranks(documents) == [[1, 1], [2, 2]]
    for on_error in ("raise", "skip"):
        hybrid = HybridRetriever(retrievers=[stores[0], listed("a")], on_error=on_error)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="ListRetriever takes no options at invoke, got 'filter'"):
            hybrid.invoke("a", filter={"n": 1})
        both = HybridRetriever(retrievers=stores, on_error=on_error)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="ChromaRetriever has no option 'filtre'"):
            await both.ainvoke("a", filtre={"n": 1})


async def test_a_failure_is_raised_as_it_is_and_at_once() -> None:
    hybrid = HybridRetriever(retrievers=[Slow(documents=[], seconds=2.0), Down(error=ConnectionError("no server"))])
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match="no server"):
        hybrid.invoke("q")
    assert time.perf_counter() - start < 1.0
    with pytest.raises(ConnectionError, match="no server"):
        await HybridRetriever(retrievers=[listed("a"), Down(error=ConnectionError("no server"))]).ainvoke("q")


class _Runs(BaseCallbackHandler):
    def __init__(self) -> None:
        self.runs: list[tuple[str, UUID, UUID | None, list[str]]] = []
        self.errors: list[UUID] = []
        self.threads: set[str] = set()

    def on_retriever_start(self, serialized: Any, query: str, *, run_id: UUID, **kwargs: Any) -> None:
        self.runs.append((kwargs["name"], run_id, kwargs.get("parent_run_id"), kwargs.get("tags") or []))
        self.threads.add(threading.current_thread().name)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self.errors.append(run_id)


@pytest.mark.parametrize("call", ["sync", "async"])
async def test_every_retriever_is_a_run_under_the_hybrids_run(call: str) -> None:
    handler = _Runs()
    store = ChromaVectorStore.from_texts(TEXTS, WordEmbeddings(), ids=["0", "1", "2", "3"])
    hybrid = HybridRetriever(retrievers=[store, listed("a"), Down(error=OSError())], on_error="skip")
    config: Any = {"callbacks": [handler], "tags": ["mine"]}
    with pytest.warns(DegradedWarning):
        await hybrid.ainvoke("a", config) if call == "async" else hybrid.invoke("a", config)
    (parent,) = [run for run in handler.runs if run[0] == "HybridRetriever"]
    children = {name: tags for name, _, parent_id, tags in handler.runs if parent_id == parent[1]}
    assert set(children) == {"ChromaRetriever", "ListRetriever", "Down"}
    assert set(children["ListRetriever"]) == {"mine", "retriever_2"}
    assert [run[1] for run in handler.runs if run[0] == "Down"] == handler.errors


def test_the_callers_context_is_seen_by_every_retriever() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="lost")
    seen: list[str] = []

    def look(_: str) -> list[Document]:
        seen.append(variable.get())
        return []

    variable.set("kept")
    HybridRetriever(retrievers=[RunnableLambda(look), RunnableLambda(look)]).invoke("q")
    assert seen == ["kept", "kept"]


# As a first stage


async def test_a_binding_over_a_hybrid_takes_its_options() -> None:
    reranker = CrossEncoderReranker(model=TableCrossEncoder({"A": 0.0, "B": 1.0, "C": 2.0, "D": 3.0}))
    hybrid = HybridRetriever(retrievers=[listed("abcd"), listed("bad")], k=1)
    retriever = RetrieveRerankRetriever(base_retriever=hybrid, reranker=reranker, fetch_k=3, top_n=2)
    for documents in await both_ways(retriever.with_config(tags=["x"]), "q", fetch_k=2):  # type: ignore[arg-type]
        assert ids(documents) == "ba"


async def test_ranks_that_a_stored_document_tells_of_are_not_this_searches() -> None:
    stored = Document("A", id="a", metadata={"retrieval_ranks": [7], "retrieval_score": 9.0})
    hybrid = HybridRetriever(retrievers=[ListRetriever(documents=[stored]), listed("b")])
    for documents in await both_ways(hybrid, "q"):
        assert ranks(documents) == [[1, None], [None, 1]]
    reranker = CrossEncoderReranker(model=TableCrossEncoder({"A": 0.0}))
    for base in (ListRetriever(documents=[stored]), ChromaVectorStore.from_documents([stored], WordEmbeddings())):
        found_ = RetrieveRerankRetriever(base_retriever=base, reranker=reranker).invoke("q")
        assert "retrieval_ranks" not in found_[0].metadata


# Written down


def test_it_comes_back_from_what_was_written_down(tiny_bi_encoder: Path, tmp_path: Path) -> None:
    embeddings = BiEncoderEmbeddings(model=str(tiny_bi_encoder))
    stores = [ChromaVectorStore(name, embeddings, tmp_path) for name in ("one", "two")]
    for place, store in enumerate(stores):
        store.add_texts(["paris", "rome", "bread"][place:], ids=["0", "1", "2"][place:])
    retrievers = [stores[0], ChromaRetriever(vectorstore=stores[1], k=2)]
    hybrid = HybridRetriever(retrievers=retrievers, weights=[1, 2], rrf_k=5, k=3, on_error="skip")
    dumped = json.loads(json.dumps(dumpd(hybrid)))
    restored = load(dumped)
    assert type(restored) is HybridRetriever
    assert restored.invoke("rome") == hybrid.invoke("rome")
    assert list(restored.weights or ()) == [1.0, 2.0]
    assert (restored.rrf_k, restored.k, restored.on_error) == (5, 3, "skip")
    again = HybridRetriever.model_validate(json.loads(hybrid.model_dump_json()))
    assert again.invoke("rome") == hybrid.invoke("rome")


# What cannot be used


async def test_a_name_of_the_peers_and_a_k_that_cannot_be_used() -> None:
    with pytest.raises(ValueError, match="it is called rrf_k"):
        HybridRetriever(retrievers=[listed("a")], c=60)  # type: ignore[call-arg]
    hybrid = HybridRetriever(retrievers=[listed("a")])
    for k in (0, True):
        with pytest.raises(InvalidInputError):
            hybrid.invoke("q", k=k)
        with pytest.raises(InvalidInputError):
            await hybrid.ainvoke("q", k=k)


def test_the_weights_are_kept_as_given() -> None:
    hybrid = HybridRetriever(retrievers=(listed("ab"), listed("ba")), weights=(1, 2))
    assert list(hybrid.weights or ()) == [1.0, 2.0]
    assert ids(hybrid.invoke("q")) == "ba"
    assert ids(hybrid.model_copy(update={"weights": [2, 1]}).invoke("q")) == "ab"
    assert ids(hybrid.model_copy(deep=True).invoke("q")) == "ba"
