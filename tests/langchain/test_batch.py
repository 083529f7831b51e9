"""Many queries at once, one query in other words, and diversity, through LangChain's doors."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableConfig
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from retrieve_rerank import BiEncoder, ChromaIndex, CrossEncoder, InvalidInputError, Passage
from retrieve_rerank.langchain import (
    BiEncoderEmbeddings,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderReranker,
    RetrieveRerankRetriever,
)
from retrieve_rerank.models.engine import CrossEngine
from tests.core.stubs import LetterEncoder
from tests.langchain.stubs import ListRetriever, TableCrossEncoder, WordEmbeddings, ids

TEXTS = ["a a a", "a a b", "c", "b b a"]
SCORES = {"a a a": -1.0, "a a b": 2.0, "c": 4.0, "b b a": 1.0}
QUERIES = ["a", "b", "c", "a b"]


@pytest.fixture
def store() -> Iterator[ChromaVectorStore]:
    metadatas = [{"n": number} for number in range(4)]
    store = ChromaVectorStore.from_texts(TEXTS, WordEmbeddings(), metadatas, ids=["0", "1", "2", "3"])
    yield store
    store.close()


def pipeline(base: Any, **options: Any) -> RetrieveRerankRetriever:
    reranker = CrossEncoderReranker(model=TableCrossEncoder(SCORES))
    return RetrieveRerankRetriever(base_retriever=base, reranker=reranker, **options)


def told(documents: list[Document]) -> list[tuple[str | None, dict[str, Any]]]:
    return [(document.id, document.metadata) for document in documents]


async def both(retriever: Any, queries: list[Any], *arguments: Any, **options: Any) -> list[Any]:
    return [retriever.batch(queries, *arguments, **options), await retriever.abatch(queries, *arguments, **options)]


# batch


async def test_a_batch_gives_what_each_query_gives(store: ChromaVectorStore) -> None:
    options: list[dict[str, Any]] = [{}, {"filter": {"n": {"$gt": 0}}}, {"where_document": {"$contains": "b"}}]
    both_stages = {"top_n": 1, "fetch_k": 3, "score_threshold": 0.1, "time_budget": 60, "on_error": "raise"}
    for retriever, more in (
        (ChromaRetriever(vectorstore=store), {"k": 2}),
        (pipeline(store), {"lambda_mult": 0.3}),
        (pipeline(ChromaRetriever(vectorstore=store, k=1)), both_stages),
    ):
        for option in [*options, more]:
            expected = [retriever.invoke(query, **option) for query in QUERIES]
            for results in await both(retriever, QUERIES, **option):
                assert [told(found) for found in results] == [told(found) for found in expected]
    assert await both(pipeline(store), []) == [[], []]


def test_the_queries_of_a_batch_meet_in_the_models_batches(
    tiny_bi_encoder: Any, tiny_cross_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LangChain's threads ask one by one; the cross-encoder scores the pairs of those that wait together."""
    rounds: list[int] = []
    score = CrossEngine.score

    def counting(self: CrossEngine, scorings: Sequence[Any]) -> None:
        rounds.append(len(scorings))
        time.sleep(0.02)
        score(self, scorings)

    with BiEncoder(tiny_bi_encoder) as encoder, CrossEncoder(tiny_cross_encoder) as cross_encoder:
        store = ChromaVectorStore.from_texts(TEXTS, BiEncoderEmbeddings(model=encoder))
        retriever = RetrieveRerankRetriever(base_retriever=store, reranker=cross_encoder)
        expected = [ids(retriever.invoke(query)) for query in QUERIES * 4]
        monkeypatch.setattr(CrossEngine, "score", counting)
        assert [ids(found) for found in retriever.batch(QUERIES * 4)] == expected
    assert sum(rounds) == 4 * len(QUERIES)
    assert len(rounds) < 2 * len(QUERIES)


# A query in other words


async def test_rewrites_over_any_first_stage_and_documents_without_ids() -> None:
    class ByQuery(ListRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: object) -> list[Document]:
            return [Document(TEXTS[int(number)]) for number in query][: self.k]

    retriever = pipeline(ByQuery(documents=[]), fetch_k=3)
    for documents in (
        retriever.invoke("01", rewrites=["12"]),
        await retriever.ainvoke("01", rewrites=["12"]),
        retriever.batch(["01"], rewrites=["12"])[0],
        (await retriever.abatch(["01"], rewrites=["12"]))[0],
    ):
        assert [(document.page_content, document.metadata["retrieval_ranks"]) for document in documents] == [
            ("c", [None, 2]),
            ("a a b", [2, 1]),
            ("a a a", [1, None]),
        ]
    assert "retrieval_ranks" not in retriever.invoke("01", rewrites=[])[0].metadata
    with pytest.raises(InvalidInputError, match="rewrites must be a list"):
        retriever.invoke("01", rewrites="12")


# Diversity


VECTORS = {"a": [1.0, 0.1], "b": [1.0, 0.11], "c": [0.8, -0.6], "d": [-1.0, 0.0], "q": [1.0, 0.0]}


class TableEmbeddings(WordEmbeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [VECTORS[text] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return VECTORS[text]


@pytest.fixture(params=["cosine", "dot", "euclidean"])
def diverse_store(request: pytest.FixtureRequest) -> Iterator[ChromaVectorStore]:
    texts = list("abcd")
    store = ChromaVectorStore.from_texts(texts, TableEmbeddings(), ids=texts, metric=request.param)
    yield store
    store.close()


async def test_diverse_documents_come_in_the_order_chosen(diverse_store: ChromaVectorStore) -> None:
    """lc#5061, V2: the incumbent returns those chosen in the order of nearness: a, b, c."""
    retriever = ChromaRetriever(vectorstore=diverse_store, k=3, lambda_mult=0.5)
    with ChromaIndex(LetterEncoder(diverse_store.metric, vector=VECTORS.__getitem__, dimension=2)) as index:
        index.add([Passage(text, text) for text in "abcd"])
        for documents in (retriever.invoke("q"), await retriever.ainvoke("q"), retriever.batch(["q", "a"])[0]):
            hits = index.retrieve("q", 3, mmr_lambda=0.5)
            assert ids(documents) == [hit.passage.id for hit in hits]
            assert [document.metadata["retrieval_rank"] for document in documents] == [1, 2, 3]
            assert [document.metadata["retrieval_score"] for document in documents] == pytest.approx(
                [hit.retrieval_score for hit in hits]
            )
    if diverse_store.metric == "cosine":
        assert ids(retriever.invoke("q")) == ["a", "c", "b"]
    assert ids(retriever.invoke("q", k=10)) != ids(ChromaRetriever(vectorstore=diverse_store).invoke("q"))  # X6
    assert ids(retriever.invoke("q", lambda_mult=1.0)) == ids(
        ChromaRetriever(vectorstore=diverse_store, k=3).invoke("q")
    )
    assert ids(retriever.invoke("q", k=2, lambda_mult=0.0)) == ["a", "d"]
    assert len(retriever.invoke("q", k=2, lambda_mult=0.0, fetch_k=2)) == 2


async def test_it_is_an_option_of_both_stages(diverse_store: ChromaVectorStore) -> None:
    reranker = CrossEncoderReranker(model=TableCrossEncoder({"a": 0.0, "b": 3.0, "c": 2.0, "d": 1.0}))
    retriever = RetrieveRerankRetriever(base_retriever=diverse_store, reranker=reranker, fetch_k=2)
    for documents in (
        retriever.invoke("q", lambda_mult=0.0),
        await retriever.ainvoke("q", lambda_mult=0.0),
        retriever.batch(["q"], lambda_mult=0.0)[0],
    ):
        assert [(document.id, document.metadata["retrieval_rank"]) for document in documents] == [("d", 2), ("a", 1)]
    base = ChromaRetriever(vectorstore=diverse_store, lambda_mult=0.0, fetch_k=3)
    both_stages = RetrieveRerankRetriever(base_retriever=base, reranker=reranker)
    # What both stages call fetch_k is two things: here the candidates, there what they are chosen from.
    assert both_stages.batch(["q"], fetch_k=2) == [both_stages.invoke("q", fetch_k=2)]
    assert ids(both_stages.invoke("q", fetch_k=2)) != ids(both_stages.invoke("q", fetch_k=2, lambda_mult=1.0))


def test_the_stores_own_method_chooses_as_langchain_does(diverse_store: ChromaVectorStore) -> None:
    """Its helper compares by the cosine in every space; fewer documents than asked for are no reason to stop."""
    vectors: list[Any] = [np.array(VECTORS[text], np.float32) for text in "abcd"]
    for k, weight in ((3, 0.5), (4, 0.2), (9, 0.9), (2, 0.0), (3, 1.0)):
        chosen = maximal_marginal_relevance(np.array(VECTORS["q"]), vectors, lambda_mult=weight, k=k)
        found = diverse_store.max_marginal_relevance_search("q", k=k, lambda_mult=weight)
        assert ids(found) == ["abcd"[position] for position in chosen]


@pytest.mark.parametrize("options", [{"lambda_mult": 2}, {"lambda_mult": True}, {"fetch_k": 0}])
def test_options_that_cannot_be_used(store: ChromaVectorStore, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        ChromaRetriever(vectorstore=store, **options)
    with pytest.raises(InvalidInputError, match=f"{next(iter(options))} must be"):
        ChromaRetriever(vectorstore=store).invoke("a", **options)


async def test_queries_of_other_embeddings_are_embedded_side_by_side(tmp_path: Path) -> None:
    class Meeting(WordEmbeddings):
        def embed_query(self, text: str) -> list[float]:
            met.wait(timeout=10)  # until both are here
            return super().embed_query(text)

    met = threading.Barrier(2)
    store = ChromaVectorStore.from_texts(TEXTS, WordEmbeddings(), persist_directory=tmp_path)
    meeting = ChromaVectorStore(embedding_function=Meeting(), persist_directory=tmp_path, assume_compatible=True)
    for found in itertools.chain.from_iterable(await both(ChromaRetriever(vectorstore=meeting), ["a", "b"])):
        assert len(found) == 4
    meeting.close()
    store.close()


@pytest.mark.parametrize("several", [False, True])
async def test_no_more_queries_are_embedded_at_once_than_the_config_says(several: bool) -> None:
    """A paid service refuses those beyond its rate."""

    class Counting(WordEmbeddings):
        def embed_query(self, text: str) -> list[float]:
            with lock:
                now.append(text)
                most.append(len(now))
            time.sleep(0.02)
            with lock:
                now.remove(text)
            return super().embed_query(text)

    now: list[str] = []
    most: list[int] = []
    lock = threading.Lock()
    store = ChromaVectorStore.from_texts(TEXTS, Counting())
    queries = [f"a{' b' * number}" for number in range(8)]
    limit: RunnableConfig = {"max_concurrency": 2}
    config = [limit] * len(queries) if several else limit
    expected = [ChromaRetriever(vectorstore=store).invoke(query) for query in queries]
    most.clear()
    retriever = ChromaRetriever(vectorstore=store)
    assert retriever.batch(queries, config) == expected
    assert await retriever.abatch(queries, config) == expected
    pipeline(store).batch(queries, config)
    await pipeline(store).abatch(queries, config)
    assert len(most) == 4 * len(queries)
    assert max(most) == 2
    assert retriever.batch([], []) == []
    store.close()
