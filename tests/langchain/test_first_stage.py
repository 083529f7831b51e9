from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from langchain_core.callbacks import CallbackManager
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore, VectorStoreRetriever

from retrieve_rerank import IndexMismatchError, InvalidInputError
from retrieve_rerank.langchain import (
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderReranker,
    RetrieveRerankRetriever,
)
from retrieve_rerank.langchain.compat import similarity_of
from retrieve_rerank.langchain.first_stage import first_stage
from retrieve_rerank.testing import TableScorer
from tests.langchain.stubs import ListRetriever, WordEmbeddings
from tests.search_server import search_server

pytestmark = [
    # At import: the store classes that these tests are about have no other home.
    pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset:DeprecationWarning"),
]

# Not of unit length: to the query "a" the dot products are 3, 2, 0 and 1, which LangChain's relevance turns around.
TEXTS = ["a a a", "a a b", "c", "b b a"]
METADATAS = [{"name": str(number), "odd": number % 2} for number in range(4)]
DOTS = [("0", 3.0), ("1", 2.0), ("3", 1.0), ("2", 0.0)]
COSINES = [("0", 1 / 1.25**0.5), ("1", 0.8), ("3", 0.4), ("2", 0.0)]
DISTANCES = [("1", 1.5), ("2", 1.5), ("0", 4.25**0.5), ("3", 4.25**0.5)]
INVERSES = [(name, 1 / (1 + distance)) for name, distance in DISTANCES]


def faiss(**options: Any) -> Any:
    from langchain_community.vectorstores import FAISS

    return FAISS.from_texts(TEXTS, WordEmbeddings(), METADATAS, **options)


def qdrant(distance: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        from langchain_qdrant import QdrantVectorStore
        from qdrant_client.models import Distance

        return QdrantVectorStore.from_texts(
            TEXTS, WordEmbeddings(), METADATAS, location=":memory:", distance=Distance(distance)
        )

    return make


def lancedb(folder: Path) -> Any:
    from langchain_community.vectorstores import LanceDB

    store = LanceDB(uri=str(folder), embedding=WordEmbeddings(), distance="cosine")  # which it does not heed
    store.add_texts(TEXTS, METADATAS)
    return store


def in_memory(folder: Path | None = None) -> InMemoryVectorStore:
    return InMemoryVectorStore.from_texts(TEXTS, WordEmbeddings(), METADATAS)


def ours(metric: Any) -> Callable[[Path], Any]:
    return lambda folder: ChromaVectorStore.from_texts(TEXTS, WordEmbeddings(), METADATAS, metric=metric)


def invoke(base: Any, fetch_k: int = 4, **options: Any) -> list[Document]:

    return first_stage(base, fetch_k, options).invoke("a", CallbackManager([]))


async def ainvoke(base: Any, fetch_k: int = 4, **options: Any) -> list[Document]:
    from langchain_core.callbacks import AsyncCallbackManager

    return await first_stage(base, fetch_k, options).ainvoke("a", AsyncCallbackManager([]))


def scores(documents: list[Document]) -> list[Any]:
    return [document.metadata.get("retrieval_score") for document in documents]


def names(documents: list[Document]) -> list[str]:
    return [document.metadata["name"] for document in documents]


@pytest.mark.parametrize(
    ("make", "options", "expected"),
    [
        (ours("euclidean"), {}, INVERSES),
        (qdrant("Manhattan"), {}, [(str(number), 1 / 3.5) for number in range(4)]),
        (lancedb, {}, INVERSES),
        (lancedb, {"metrics": "dot"}, DOTS),
        (lancedb, {"metrics": "cosine"}, COSINES),
        (in_memory, {}, COSINES),
    ],
)
@pytest.mark.parametrize("shape", ["store", "retriever"])
async def test_each_stores_scores_become_similarities(
    make: Callable[[Path], Any], options: dict[str, Any], expected: list[tuple[str, float]], shape: str, tmp_path: Path
) -> None:
    store = make(tmp_path)
    base = store if shape == "store" else store.as_retriever(search_kwargs=options)
    given = options if shape == "store" else {}
    for found in (invoke(base, **given), await ainvoke(base, **given)):
        assert sorted(zip(names(found), scores(found), strict=True)) == [
            (name, pytest.approx(score, abs=1e-6)) for name, score in sorted(expected)
        ]
        assert scores(found) == sorted(scores(found), reverse=True)


class Unknown(VectorStore):
    """A store that nothing is known of: it finds three documents and has these raw scores."""

    def __init__(self, raw: list[float], relevance: Any = None) -> None:
        self.raw = raw
        self.relevance = relevance

    def similarity_search(self, query: str, k: int = 4, filter: Any = None, **kwargs: Any) -> list[Document]:
        stale = {"retrieval_score": 0.99}
        return [Document(text, metadata={"name": str(number), **stale}) for number, text in enumerate(TEXTS[:3])]

    def similarity_search_with_score(self, *args: Any, **kwargs: Any) -> list[tuple[Document, float]]:
        if not self.raw:
            raise NotImplementedError
        return list(zip(self.similarity_search(*args, **kwargs), self.raw, strict=True))

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        if self.relevance is None:
            raise NotImplementedError
        return self.relevance

    @classmethod
    def from_texts(cls, *args: Any, **kwargs: Any) -> Unknown:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        (Unknown([0.1, 0.2, 0.3], lambda distance: 1 - distance), [0.9, 0.8, 0.7]),
        (Unknown([0.5, 3.0, 4.0], lambda squared: 1 - squared / math.sqrt(2)), [0.6464, -1.1213, -1.8284]),
        (Unknown([0.9, 0.5, 0.2], lambda similarity: 1 - similarity), None),  # takes a similarity for a distance
        (Unknown([1.0, 2.0, 3.0], lambda distance: distance), None),
        (Unknown([0.1, 0.2, 0.3]), None),
        (Unknown([], lambda distance: distance), None),
        (Unknown([0.1, math.nan, 0.3], lambda distance: 1 - distance), None),
    ],
)
async def test_of_an_unknown_store_only_scores_that_fall_are_taken(store: Unknown, expected: Any) -> None:
    """And never with the warning that relevance must lie in 0..1: warnings are errors here."""
    for found in (invoke(store), await ainvoke(store), invoke(store.as_retriever())):
        assert names(found) == ["0", "1", "2"]
        assert scores(found) == ([None] * 3 if expected is None else pytest.approx(expected, abs=1e-4))


def test_a_known_store_that_was_changed_is_not_believed_against_its_order() -> None:
    class FAISS(Unknown):
        index: Any = type("Index", (), {"metric_type": 0})

    assert scores(invoke(FAISS([0.1, 0.2, 0.3]))) == [None] * 3
    FAISS.index = None  # a version that keeps it elsewhere: the relevance function is asked
    assert scores(invoke(FAISS([0.1, 0.2, 0.3], lambda distance: 1 - distance))) == pytest.approx([0.9, 0.8, 0.7])


def test_a_stores_retriever_stays_what_it_is() -> None:
    base = in_memory().as_retriever(search_kwargs={"k": 1, "filter": lambda found: found.metadata["odd"] == 1})
    stage = first_stage(base, 4, {})
    assert names(stage.invoke("a", None)) == ["1", "3"]  # type: ignore[arg-type]
    asked: Any = stage.runnable.runnable  # type: ignore[attr-defined]
    assert asked.get_name() == "VectorStoreRetriever"
    assert asked.tags == base.tags == ["InMemoryVectorStore", "WordEmbeddings"]
    assert base.search_kwargs["k"] == 1
    named = base.model_copy(update={"name": "mine", "metadata": {"team": "search"}})
    asked = first_stage(named, 4, {}).runnable.runnable  # type: ignore[attr-defined]
    assert (asked.get_name(), asked.metadata) == ("mine", {"team": "search"})


def test_a_retriever_class_of_its_own_is_asked_as_it_is() -> None:
    class Mine(VectorStoreRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any, **kwargs: Any) -> list[Document]:
            return [Document("mine", metadata={"name": "m", "retrieval_score": 0.9})]

    assert [(document.page_content, *scores([document])) for document in invoke(Mine(vectorstore=in_memory()), 1)] == [
        ("mine", None)
    ]


@pytest.mark.filterwarnings("ignore:Relevance scores must be between:UserWarning")  # LangChain's; it was asked for
async def test_the_other_search_types_keep_their_meaning() -> None:
    store = faiss()
    threshold = store.as_retriever(search_type="similarity_score_threshold", search_kwargs={"score_threshold": -1.0})
    for found in (invoke(threshold), await ainvoke(threshold)):
        assert names(found) == ["1", "2"]
        assert scores(found) == pytest.approx([1 - 2.25 / 2**0.5] * 2)
    diverse = store.as_retriever(search_type="mmr", search_kwargs={"lambda_mult": 0.0})
    for found in (invoke(diverse, 2), await ainvoke(diverse, 2)):
        assert len(found) == 2
        assert scores(found) == [None, None]


def many() -> Any:
    """Two documents that match among fifty that are nearer to the query "a"."""
    from langchain_community.vectorstores import FAISS

    texts = ["a"] * 50 + ["a c", "a b"]
    return FAISS.from_texts(texts, WordEmbeddings(), [{"name": str(n), "rare": n > 49} for n in range(52)])


def test_faiss_filters_the_whole_index() -> None:
    store, chosen = many(), {"filter": {"rare": True}}
    assert store.similarity_search("a", k=2, **chosen) == []  # it fetches 20, and filters these
    assert sorted(names(invoke(store, 2, **chosen))) == ["50", "51"]
    assert sorted(names(invoke(store.as_retriever(search_kwargs=chosen), 2))) == ["50", "51"]
    assert sorted(names(invoke(store.as_retriever(search_kwargs={"fetch_k": 5}), 2, **chosen))) == ["50", "51"]
    diverse = store.as_retriever(search_type="mmr", search_kwargs={"fetch_k": 20})
    assert sorted(names(invoke(diverse.bind(**chosen), 2))) == ["50", "51"]


@pytest.mark.filterwarnings("ignore:No results found:UserWarning")  # LanceDB's
def test_lancedb_filters_before_it_searches(tmp_path: Path) -> None:
    store, chosen = lancedb(tmp_path), {"filter": "metadata.name = '3'"}
    assert store.similarity_search("a", k=1, **chosen) == []
    assert names(invoke(store, 1, **chosen)) == ["3"]
    assert names(invoke(store.as_retriever(search_kwargs=chosen), 1)) == ["3"]
    with pytest.raises(InvalidInputError, match="LanceDB's mmr search filters what it has found"):
        invoke(store.as_retriever(search_type="mmr"), 1, **chosen)
    assert similarity_of(store, {"query_type": "fts"}) is None  # it returns documents alone then


@pytest.mark.parametrize("option", ["where", "expr", "filters", "pre_filter"])
def test_a_filter_by_another_stores_name_is_not_dropped(option: str) -> None:
    for base in (in_memory(), in_memory().as_retriever(), in_memory().as_retriever(search_kwargs={option: {"n": 1}})):
        with pytest.raises(InvalidInputError, match=f"InMemoryVectorStore has no option '{option}'.*given as filter"):
            invoke(base, **{option: {"n": 1}})
    assert len(invoke(in_memory(), **{option: None})) == 4


class Scored(BaseRetriever):
    """Says where it leaves its scores."""

    score_key: ClassVar[str] = "bm25"
    found: list[Any]

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [Document("text", metadata={"bm25": score, "retrieval_score": 0.5}) for score in self.found]


def test_a_retriever_says_where_its_scores_are() -> None:
    assert scores(invoke(Scored(found=[7.5, 3]), 2)) == [7.5, 3.0]
    assert scores(invoke(Scored(found=[None, "high", math.nan]), 3)) == [None] * 3
    assert scores(invoke(Scored(found=[True, 10**400]), 2)) == [None] * 2
    found = scores(invoke(Scored(found=[np.float32(7.5), np.int64(3), Fraction(1, 2), np.float32("inf")])))
    assert found == [7.5, 3.0, 0.5, None]
    assert {type(score) for score in found[:3]} == {float}
    silent = ListRetriever(documents=[Document("text", metadata={"_score": 3.0, "retrieval_score": 0.5})])
    assert scores(invoke(silent)) == [None]


class Ours(BaseRetriever):
    """Says that it leaves its scores where ours do."""

    score_key: ClassVar[str] = "retrieval_score"
    found: list[Any]

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [Document("text", metadata={"retrieval_score": score}) for score in self.found]


def test_scores_under_our_own_key_are_plain_numbers_too() -> None:
    found = scores(invoke(Ours(found=[np.float32(0.5), 2, math.nan, "high"])))
    assert found == [0.5, 2.0, None, None]
    assert json.dumps(found[:2]) == "[0.5, 2.0]"


def hits(query: str) -> dict[str, Any]:
    return {"query": {"match": {"text": query}}, "size": 10}


async def test_elasticsearch_retrievers_scores_are_the_servers() -> None:
    from elasticsearch import AsyncElasticsearch, Elasticsearch
    from langchain_elasticsearch import AsyncElasticsearchRetriever, ElasticsearchRetriever

    with search_server({"1": 2.5, "2": 0.5, "3": None}, "elasticsearch") as server:
        # A document cannot say its own score: what is stored lies elsewhere.
        server.stored = {id_: {"text": f"text {id_}", "_score": 99.0, "retrieval_score": 99.0} for id_ in "123"}
        client = Elasticsearch(server.url)
        found = invoke(ElasticsearchRetriever("index", hits, content_field="text", client=client), 3)
        client.close()
        aclient = AsyncElasticsearch(server.url)
        afound = await ainvoke(AsyncElasticsearchRetriever("index", hits, content_field="text", client=aclient), 3)
        await aclient.close()
    assert scores(found) == scores(afound) == [2.5, 0.5, None]
    assert [document.metadata["_id"] for document in found] == ["1", "2", "3"]
    assert server.searches() == [hits("a")] * 2


def test_elasticsearch_store_has_no_scores_in_hybrid_mode() -> None:
    from elasticsearch import Elasticsearch
    from langchain_elasticsearch import DenseVectorStrategy, ElasticsearchStore

    with search_server({"1": 2.5}, "elasticsearch") as server:
        server.stored = {"1": {"text": "text", "metadata": {}}}
        client = Elasticsearch(server.url)
        for hybrid, expected in ((True, None), (False, 2.5)):
            strategy = DenseVectorStrategy(hybrid=hybrid)
            store = ElasticsearchStore("index", client=client, embedding=WordEmbeddings(), strategy=strategy)
            assert scores(invoke(store, filter=[{"term": {"n": 1}}])) == [expected]
        client.close()
    assert server.searches()[1]["knn"]["filter"] == [{"term": {"n": 1}}]


def test_embeddings_with_a_cache_around_them_are_those_within(tmp_path: Path) -> None:
    class Cached(Embeddings):
        def __init__(self, within: Embeddings) -> None:
            self.underlying_embeddings = within

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return self.underlying_embeddings.embed_documents(texts)

        def embed_query(self, text: str) -> list[float]:
            return self.underlying_embeddings.embed_query(text)

    store = ChromaVectorStore.from_texts(["a"], WordEmbeddings(), persist_directory=tmp_path)
    again = ChromaVectorStore(embedding_function=Cached(Cached(WordEmbeddings())), persist_directory=tmp_path)
    assert len(again.similarity_search("a")) == 1
    others = Cached(WordEmbeddings("others"))
    with pytest.raises(IndexMismatchError, match="others"):
        ChromaVectorStore(embedding_function=others, persist_directory=tmp_path).similarity_search("a")
    store.close()


async def test_mmr_chooses_from_more_than_are_asked_for() -> None:
    """From as many as are asked for, all would be chosen, and diversity would be lost without a word."""
    from langchain_community.vectorstores import FAISS

    store = FAISS.from_texts(["a a"] * 6 + ["a b", "a c"], WordEmbeddings(), [{"name": str(n)} for n in range(8)])
    for pool in ({}, {"k": 4, "fetch_k": 16}):
        diverse = store.as_retriever(search_type="mmr", search_kwargs={"lambda_mult": 0.1, **pool})
        for found in (invoke(diverse, 3), await ainvoke(diverse, 3)):
            assert {"6", "7"} < set(names(found))


@pytest.mark.parametrize(
    ("given", "pool"),
    [({}, 500), ({"k": None}, 500), ({"k": 20, "fetch_k": 30}, 150), ({"k": 5, "fetch_k": 1000}, 1000)],
)
def test_the_pool_of_mmr_is_as_many_times_larger_as_it_was_but_bounded(given: dict[str, Any], pool: int) -> None:
    diverse = faiss().as_retriever(search_type="mmr", search_kwargs=given)
    asked: Any = first_stage(diverse, 100, {}).runnable
    assert asked.runnable.search_kwargs == {**given, "k": 100, "fetch_k": pool}


async def test_the_pool_of_our_own_retriever_grows_with_the_depth() -> None:
    """With a pool of its own it would choose 100 out of 100."""
    store = ChromaVectorStore(embedding_function=WordEmbeddings())
    diverse = ChromaRetriever(vectorstore=store, k=4, fetch_k=16, lambda_mult=0.1)
    asked: Any = first_stage(diverse, 100, {}).runnable.runnable  # type: ignore[attr-defined]
    assert isinstance(asked, ChromaRetriever)
    assert (asked.k, asked.fetch_k, diverse.fetch_k) == (100, 400, 16)
    store.add_texts(["a a"] * 6 + ["a b", "a c"], [{"name": str(n)} for n in range(8)])
    narrow = diverse.model_copy(update={"k": 1, "fetch_k": 4})
    for found in (invoke(narrow, 3), await ainvoke(narrow, 3)):
        assert {"6", "7"} < set(names(found))


class OnlySync(BaseRetriever):
    """What most people write: no async method, and an option."""

    k: int = 4

    def _get_relevant_documents(self, query: str, *, run_manager: Any, k: int = 4, topic: str = "") -> list[Document]:
        return [Document(f"{topic} {number}", id=str(number)) for number in range(k)]


async def test_options_reach_a_retriever_without_an_async_method() -> None:
    """LangChain's own async method for it takes none."""
    retriever = RetrieveRerankRetriever(
        base_retriever=OnlySync(),
        reranker=CrossEncoderReranker(
            model=TableScorer({f"rome {n}": n for n in range(6)} | {f" {n}": n for n in range(6)})
        ),
        fetch_k=6,
        top_n=6,
    )
    asked = [
        await retriever.ainvoke("q", topic="rome"),
        *await retriever.abatch(["q", "r"], topic="rome"),
        await retriever.ainvoke("q", topic="rome", rewrites=["r"]),
    ]
    for documents in asked:
        assert {document.page_content for document in documents} == {f"rome {number}" for number in range(6)}
    assert len(await retriever.ainvoke("q")) == 6
