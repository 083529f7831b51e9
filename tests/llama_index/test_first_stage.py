"""A first stage is asked as deep as is wanted, for what filters let pass, and its scores mean what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bm25s
import faiss
import numpy as np
import pytest
from llama_index.core import SimpleKeywordTableIndex, StorageContext, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.indices.property_graph import PGRetriever
from llama_index.core.indices.query.query_transform.base import IdentityQueryTransform
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.retrievers import (
    AutoMergingRetriever,
    QueryFusionRetriever,
    RecursiveRetriever,
    RouterRetriever,
    TransformRetriever,
    VectorIndexAutoRetriever,
)
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import RetrieverTool
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    VectorStoreInfo,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from llama_index.vector_stores.faiss import FaissVectorStore

from retrieve_rerank import InvalidInputError
from retrieve_rerank.llama_index import (
    BM25Retriever,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderRerank,
    HybridRetriever,
    RetrieveRerankRetriever,
)
from retrieve_rerank.llama_index.first_stage import FirstStage, first_stage
from tests.llama_index.stubs import ListRetriever, TableScorer, WordEmbedding, scored, text_node

NODES = [TextNode(text=text, id_=text) for text in ("a a a", "a a b", "c", "b b a")]


class Scores(BasePydanticVectorStore):
    """Finds the first nodes, with these scores."""

    stores_text: bool = True
    scores: list[float]

    @property
    def client(self) -> None:
        return None

    def add(self, nodes: Any, **options: Any) -> list[str]:
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **options: Any) -> None:
        raise NotImplementedError

    def query(self, query: VectorStoreQuery, **options: Any) -> VectorStoreQueryResult:
        nodes = NODES[: len(self.scores)]
        return VectorStoreQueryResult(nodes=nodes, similarities=self.scores, ids=[node.node_id for node in nodes])


def index(store: BasePydanticVectorStore) -> VectorStoreIndex:
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex(NODES, storage_context=context, embed_model=WordEmbedding())


def stage(base: Any, k: int = 4, filters: MetadataFilters | None = None) -> FirstStage:
    return first_stage(base, k, filters)


async def found(base: Any) -> list[float | None]:
    nodes = stage(base).find(QueryBundle("a"))
    anodes = await stage(base).afind(QueryBundle("a"))
    assert [node.score for node in nodes] == [node.score for node in anodes]
    return [node.score for node in nodes]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0.9, 0.5, 0.5], [0.9, 0.5, 0.5]),
        ([0.1, 0.5, 0.5], [None] * 3),  # distances
        ([0.5, 0.5], [0.5, 0.5]),
        ([0.2, 0.9, 0.1], [0.2, 0.9, 0.1]),  # in another order than its scores': nothing is known
        ([0.7], [0.7]),
        ([], []),
    ],
)
async def test_scores_that_rise_along_a_vector_stores_order_are_none(given: list[float], expected: list[Any]) -> None:
    assert await found(index(Scores(scores=given))) == expected


async def test_only_nearest_neighbours_are_judged_by_their_order() -> None:
    rising = [0.1, 0.5]
    assert await found(index(Scores(scores=rising)).as_retriever(vector_store_query_mode="mmr")) == rising

    class Listed(BaseRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return [NodeWithScore(node=node, score=score) for node, score in zip(NODES, rising, strict=False)]

    assert await found(Listed()) == rising


async def test_distances_of_faiss_become_similarities() -> None:
    size = len(WordEmbedding().get_query_embedding("a"))
    query = WordEmbedding().get_query_embedding("a")
    vectors = [WordEmbedding().get_text_embedding(node.text) for node in NODES]
    squares = sorted(sum((a - b) ** 2 for a, b in zip(query, vector, strict=True)) for vector in vectors)
    expected = [1 / (1 + square**0.5) for square in squares]
    assert await found(index(FaissVectorStore(faiss.IndexFlatL2(size)))) == pytest.approx(expected)
    products = sorted((sum(a * b for a, b in zip(query, vector, strict=True)) for vector in vectors), reverse=True)
    assert await found(index(FaissVectorStore(faiss.IndexFlatIP(size)))) == pytest.approx(products)


class Clamped(BaseRetriever):
    """As LlamaIndex's own BM25Retriever is made: it asks bm25s for no more than there is, but only when it is made."""

    def __init__(self, texts: list[str], similarity_top_k: int) -> None:
        self.bm25 = bm25s.BM25()
        self.bm25.index([text.split() for text in texts], show_progress=False)
        self.texts = texts
        self.similarity_top_k = min(similarity_top_k, len(texts))
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        places, scores = self.bm25.retrieve(
            [query_bundle.query_str.split()], k=self.similarity_top_k, show_progress=False
        )
        return [
            NodeWithScore(node=TextNode(text=self.texts[place]), score=float(score))
            for place, score in zip(places[0], scores[0], strict=True)
        ]


@pytest.mark.parametrize(("k", "expected"), [(100, 3), (2, 2)])
def test_a_retriever_that_holds_fewer_than_are_wanted_is_asked_for_all(k: int, expected: int) -> None:
    assert len(stage(Clamped(["a b", "b c", "c d"], 10), k).find(QueryBundle("b c"))) == expected


@pytest.mark.parametrize("attribute", ["similarity_top_k", "_similarity_top_k", "top_k", "read_only"])
def test_any_retriever_is_asked_for_as_many_if_it_can_be(attribute: str) -> None:
    class Other(BaseRetriever):
        @property
        def read_only(self) -> int:
            return int(self._similarity_top_k)  # type: ignore[attr-defined]

        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return scored(*"abcdef")[: getattr(self, attribute)]

    class ReadOnly(Other):
        similarity_top_k = Other.read_only

    other = ReadOnly() if attribute == "read_only" else Other()
    setattr(other, "_similarity_top_k" if attribute == "read_only" else attribute, 1)
    assert len(stage(other).find(QueryBundle("q"))) == 4
    assert getattr(other, attribute) == 1


async def test_the_pool_of_our_own_diverse_retriever_grows_with_the_depth() -> None:
    """With a pool of its own it would choose 100 out of 100."""
    store = ChromaVectorStore(embed_model=WordEmbedding())
    store.add(WordEmbedding()([TextNode(text=text, id_=text) for text in ("a", "a a", "a a a", "a b", "b")]))
    diverse = ChromaRetriever(store, similarity_top_k=1, mmr_threshold=0.1, mmr_prefetch_k=4)
    wider = stage(diverse, 100).retriever
    assert isinstance(wider, ChromaRetriever)
    assert (wider.similarity_top_k, wider.mmr_prefetch_k, diverse.mmr_prefetch_k) == (100, 400, 4)
    assert [node.node_id for node in stage(diverse, 2).find(QueryBundle("a"))][1:] == ["b"]


# Retrievers in retrievers

WORDS = [text_node(f"a{number}", f"a a b {number}", tenant="ab"[number % 2]) for number in range(12)]
DEPTH = 8


def leaf(k: int = 2) -> ChromaRetriever:
    store = ChromaVectorStore(embed_model=WordEmbedding())
    store.add(WordEmbedding()(WORDS))
    return ChromaRetriever(store, similarity_top_k=k)


def routed(inner: BaseRetriever) -> RouterRetriever:
    class First(BaseSelector):
        def _select(self, choices: Any, query: Any) -> SelectorResult:
            return SelectorResult(selections=[SingleSelection(index=0, reason="the only one")])

        async def _aselect(self, choices: Any, query: Any) -> SelectorResult:
            return self._select(choices, query)

        def _get_prompts(self) -> dict[str, Any]:
            return {}

        def _update_prompts(self, prompts: Any) -> None:
            pass

    return RouterRetriever(First(), [RetrieverTool.from_defaults(inner, description="all")], llm=MockLLM())


def fused(*inner: BaseRetriever) -> QueryFusionRetriever:
    return QueryFusionRetriever(list(inner), llm=MockLLM(), num_queries=1, use_async=False)


class Passing(BaseRetriever):
    """Somebody's own retriever around another."""

    def __init__(self, inner: BaseRetriever) -> None:
        super().__init__()
        self.anything = {"it": [inner]}

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self.anything["it"][0].retrieve(query_bundle)


def recursive(inner: BaseRetriever) -> RecursiveRetriever:
    return RecursiveRetriever("root", {"root": inner})


COMPOSED: dict[str, Callable[[BaseRetriever], BaseRetriever]] = {
    "fusion": fused,
    "transform": lambda inner: TransformRetriever(query_transform=IdentityQueryTransform(), retriever=inner),
    "merging": lambda inner: AutoMergingRetriever(inner, StorageContext.from_defaults()),  # type: ignore[arg-type]
    "router": routed,
    "recursive": recursive,
    "graph": lambda inner: PGRetriever([inner], use_async=False),  # type: ignore[list-item]
    "hybrid": lambda inner: HybridRetriever([inner], similarity_top_k=1),
    "twice": lambda inner: fused(recursive(inner)),
    "own": Passing,
}


@pytest.mark.parametrize("kind", COMPOSED)
async def test_the_depth_reaches_the_retrievers_inside(kind: str) -> None:
    inner = leaf()
    composed = COMPOSED[kind](inner)
    reranker = CrossEncoderRerank(TableScorer({node.text: 0.0 for node in WORDS}), metadata_mode=MetadataMode.NONE)
    retriever = RetrieveRerankRetriever(composed, reranker, fetch_k=DEPTH, top_n=100)
    assert len(retriever.retrieve("a")) == len(await retriever.aretrieve("a")) == DEPTH
    assert inner.similarity_top_k == 2
    assert len(composed.retrieve("a")) <= 2  # what was given is not modified


@pytest.mark.parametrize("kind", [kind for kind in COMPOSED if kind != "own"])
async def test_filters_reach_the_retrievers_inside(kind: str) -> None:
    inner = leaf()
    inner.filters = MetadataFilters(filters=[MetadataFilter(key="tenant", value="c", operator=FilterOperator.NE)])
    first = stage(COMPOSED[kind](inner), DEPTH, tenant("a"))
    for found in (first.find(QueryBundle("a")), await first.afind(QueryBundle("a"))):
        assert {node.metadata["tenant"] for node in found} == {"a"}
    assert {node.metadata["tenant"] for node in inner.retrieve("a")} <= {"a", "b"}
    hybrid = HybridRetriever([COMPOSED[kind](leaf()), BM25Retriever(WORDS)], filters=tenant("b"))
    assert {node.metadata["tenant"] for node in hybrid.retrieve("a b")} == {"b"}
    both = RetrieveRerankRetriever(COMPOSED[kind](leaf()), ZeroScorer(), filters=tenant("b"), fetch_k=DEPTH)
    assert {node.metadata["tenant"] for node in await both.aretrieve("a b")} == {"b"}


def test_filters_stand_side_by_side_for_a_store_that_takes_none_within_others() -> None:
    index = VectorStoreIndex(WORDS, embed_model=WordEmbedding())
    other = MetadataFilters(filters=[MetadataFilter(key="tenant", value="c", operator=FilterOperator.NE)])
    inner = RetrieveRerankRetriever(index.as_retriever(filters=other), ZeroScorer(), top_n=DEPTH)
    found = RetrieveRerankRetriever(inner, ZeroScorer(), filters=tenant("a"), fetch_k=6).retrieve("a")
    assert {node.metadata["tenant"] for node in found} == {"a"}


def tenant(name: str) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key="tenant", value=name)])


class ZeroScorer:
    def score(self, query: str, texts: Any) -> Any:
        return np.zeros(len(texts), np.float32)


class Engine(CustomQueryEngine):
    def custom_query(self, query_str: str) -> str:
        return "of all tenants"


@pytest.mark.parametrize(
    "composed",
    [
        Passing(leaf()),
        ListRetriever([]),
        fused(leaf(), ListRetriever([])),
        RecursiveRetriever("root", {"root": leaf()}, query_engine_dict={"other": Engine()}),
    ],
    ids=["own", "leaf", "one of two", "engine"],
)
async def test_where_filters_may_not_arrive_the_call_is_refused(composed: BaseRetriever) -> None:
    for retriever in (
        RetrieveRerankRetriever(composed, ZeroScorer(), filters=tenant("a")),
        HybridRetriever([leaf(), composed], filters=tenant("a"), on_error="skip"),
    ):
        with pytest.raises(InvalidInputError, match="filters"):
            retriever.retrieve("a")
        with pytest.raises(InvalidInputError, match="filters"):
            await retriever.aretrieve("a")


def test_retrievers_that_hold_each_other_are_followed_once() -> None:
    first = Passing(leaf())
    first.anything["itself"] = [first]
    assert len(stage(first, DEPTH).find(QueryBundle("a"))) == DEPTH


def test_other_bounds_are_raised_too() -> None:
    index = VectorStoreIndex(WORDS, embed_model=WordEmbedding())
    info = VectorStoreInfo(content_info="words", metadata_info=[])
    auto = VectorIndexAutoRetriever(index, info, llm=MockLLM(), max_top_k=3, similarity_top_k=3)
    deep: Any = stage(auto, DEPTH, tenant("a")).retriever
    assert (deep._max_top_k, deep._similarity_top_k, deep._extra_filters) == (DEPTH, DEPTH, tenant("a"))
    assert (auto._max_top_k, auto._similarity_top_k) == (3, 3)
    keywords = SimpleKeywordTableIndex(WORDS, llm=MockLLM()).as_retriever(num_chunks_per_query=2)
    assert len(stage(keywords, DEPTH).find(QueryBundle("b"))) == DEPTH


async def test_a_depth_that_cannot_be_set_is_told_once() -> None:
    class Fixed(BaseRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return [NodeWithScore(node=node) for node in WORDS[:3]]

    for composed in (Fixed(), fused(leaf(), Fixed())):
        retriever = RetrieveRerankRetriever(composed, ZeroScorer(), fetch_k=50)
        with pytest.warns(UserWarning, match="documents of the 50 that are looked for, and how many Fixed finds"):
            retriever.retrieve("a")
        assert retriever.retrieve("a")  # warnings are errors in these tests
        assert await retriever.aretrieve("a")
    assert RetrieveRerankRetriever(Fixed(), ZeroScorer(), fetch_k=3).retrieve("a")  # as many as were asked for


# What is not given is not set


@pytest.mark.parametrize("option", ["top_n", "score_threshold", "time_budget", "on_error"])
async def test_an_option_that_is_not_given_is_the_rerankers_own(option: str) -> None:
    own: dict[str, Any] = {"top_n": 2, "score_threshold": 0.9, "time_budget": 30.0, "on_error": "retrieval_order"}
    reranker = CrossEncoderRerank(ZeroScorer(), **{option: own[option]})
    given = RetrieveRerankRetriever(leaf(), reranker, fetch_k=DEPTH)._second_stage(0.0)
    assert getattr(given, option) == own[option]
    other = {"top_n": 3, "score_threshold": 0.1, "time_budget": 9.0, "on_error": "raise"}[option]
    given = RetrieveRerankRetriever(leaf(), reranker, **{option: other})._second_stage(0.0)  # type: ignore[arg-type]
    assert getattr(given, option) == other


async def test_a_reranker_that_keeps_two_gives_two() -> None:
    retriever = RetrieveRerankRetriever(leaf(), CrossEncoderRerank(ZeroScorer(), top_n=2))
    assert len(retriever.retrieve("a")) == len(await retriever.aretrieve("a")) == 2
    assert len(RetrieveRerankRetriever(leaf(), ZeroScorer()).retrieve("a")) == 5


# Bases that return something else than a list


def test_a_first_stage_may_have_a_retrieve_of_its_own() -> None:
    class Own(ListRetriever):
        answer: Any = None

        def retrieve(self, str_or_query_bundle: Any) -> Any:
            return self.answer and iter(super().retrieve(str_or_query_bundle))

    first = Own(scored("a", "b", "c"))
    with pytest.raises(InvalidInputError, match=r"a Own, must return a list of NodeWithScore.*None"):
        RetrieveRerankRetriever(first, ZeroScorer()).retrieve("a")
    first.answer = "a generator"
    assert len(RetrieveRerankRetriever(first, ZeroScorer(), fetch_k=2).retrieve("a")) == 2


def test_a_type_error_of_a_first_stage_stays_its_own() -> None:
    class Broken(BaseRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> Any:
            return len(5)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="has no len"):
        RetrieveRerankRetriever(Broken(), ZeroScorer()).retrieve("a")
