"""What users of LlamaIndex's components give, and what is said of what these here do not take."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from llama_index.core.schema import BaseNode, IndexNode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.postprocessor.sbert_rerank import SentenceTransformerRerank
from llama_index.vector_stores.chroma import ChromaVectorStore as TheirStore

from retrieve_rerank import InvalidInputError
from retrieve_rerank.llama_index import (
    BiEncoderEmbedding,
    BM25Retriever,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderRerank,
)
from retrieve_rerank.llama_index.compat import BM25_RETRIEVER, HUGGING_FACE_EMBEDDING, SENTENCE_TRANSFORMER_RERANK
from tests.llama_index.stubs import ListRetriever, WordEmbedding, scored, text_node

# Of llama-index-retrievers-bm25 0.6, which cannot be installed beside this package's stemmer.
THEIR_BM25 = {
    BM25Retriever: "nodes stemmer language existing_bm25 similarity_top_k callback_manager objects object_map verbose "
    "skip_stemming token_pattern filters corpus_weight_mask",
    BM25Retriever.from_defaults: "index nodes docstore stemmer language similarity_top_k verbose skip_stemming "
    "token_pattern filters tokenizer",
}


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "cls", "kwargs"}


@pytest.mark.parametrize(
    "door", [lambda kind: kind.__init__, lambda kind: kind.from_params, lambda kind: kind.from_collection]
)
def test_every_parameter_of_the_chroma_store_is_taken(door: Any) -> None:
    assert parameters(door(TheirStore)) <= parameters(door(ChromaVectorStore))


@pytest.mark.parametrize("door", THEIR_BM25, ids=["constructor", "from_defaults"])
def test_every_parameter_of_the_bm25_retriever_is_taken_or_says_what_to_write(door: Any) -> None:
    for name in THEIR_BM25[door].split():
        if name in BM25_RETRIEVER:
            nothing, instead = BM25_RETRIEVER[name]
            with pytest.raises(InvalidInputError, match=f"{name} is not offered: ") as caught:
                door(nodes=[text_node("a")], **{name: ["something"]})
            assert instead in str(caught.value)
            door(nodes=[text_node("a")], **{name: nothing})
        else:
            assert name in parameters(door)
    with pytest.raises(TypeError, match="spelt_wrongly"):
        door(nodes=[text_node("a")], spelt_wrongly=1)


@pytest.mark.parametrize(
    ("theirs", "ours", "arguments"),
    [
        (HuggingFaceEmbedding, BiEncoderEmbedding, HUGGING_FACE_EMBEDDING),
        (SentenceTransformerRerank, CrossEncoderRerank, SENTENCE_TRANSFORMER_RERANK),
    ],
)
def test_every_parameter_of_the_models_is_taken_or_says_what_to_write(theirs: Any, ours: Any, arguments: Any) -> None:
    for name in parameters(theirs.__init__) - {"model_kwargs"}:
        if name in arguments:
            with pytest.raises(InvalidInputError, match=f"{name} is not offered: "):
                ours("some/model", **{name: "something"})
            assert ours("some/model", **{name: arguments[name][0]})
        else:
            assert name in parameters(ours)


def test_positional_arguments_that_are_not_taken_are_told_too() -> None:
    with pytest.raises(InvalidInputError, match="skip_stemming is not offered"):
        BM25Retriever.from_defaults(None, [text_node("a")], None, None, "en", 2, False, True)


@pytest.mark.parametrize(
    ("given", "metric"),
    [
        ({"metadata": {"hnsw:space": "l2"}}, "euclidean"),
        ({"configuration": {"hnsw": {"space": "ip"}}}, "dot"),
        ({}, "cosine"),
    ],
)
def test_the_space_of_collection_kwargs_is_the_metric(given: dict[str, Any], metric: str, tmp_path: Any) -> None:
    assert ChromaVectorStore(collection_kwargs=given).metric == metric
    assert ChromaVectorStore.from_params("passages", persist_dir=tmp_path, collection_kwargs=given).metric == metric


def test_what_else_collection_kwargs_ask_for_is_told() -> None:
    with pytest.warns(UserWarning, match=r"only the space.*\['metadata'\]\['owner'\], .*\['hnsw'\]\['ef_search'\]"):
        ChromaVectorStore(
            collection_kwargs={"metadata": {"owner": 1}, "configuration": {"hnsw": {"space": "l2", "ef_search": 9}}}
        )
    for wrong in ({"collection_kwargs": {"metadata": {"hnsw:space": "far"}}}, {"port": 1}, {"headers": {"a": "b"}}):
        with pytest.raises(InvalidInputError):
            ChromaVectorStore(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="differ"):
        ChromaVectorStore(metric="dot", collection_kwargs={"metadata": {"hnsw:space": "l2"}})


# Filters alone are a query


def small() -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key="n", value=3, operator="<")])  # type: ignore[arg-type]


@pytest.fixture
def nodes() -> list[BaseNode]:
    return [text_node(f"{letter} word {n}", n=n) for n, letter in enumerate("abcab")]


async def test_a_store_finds_what_passes_the_filters(nodes: list[BaseNode]) -> None:
    store = ChromaVectorStore()
    store.add(WordEmbedding()(nodes))
    query = VectorStoreQuery(filters=small(), similarity_top_k=9)
    for found in (store.query(query), await store.aquery(query)):
        assert [node.metadata["n"] for node in found.nodes or []] == [0, 1, 2]
        assert found.ids == ["a word 0", "b word 1", "c word 2"]
        assert found.similarities is None
    assert len(store.query(VectorStoreQuery(filters=small(), similarity_top_k=2)).nodes or []) == 2
    assert store.query(VectorStoreQuery(query_embedding=[], node_ids=["b word 1"]), where={"n": 1}).ids == ["b word 1"]


async def test_an_empty_query_with_filters_finds_what_passes_them(nodes: list[BaseNode]) -> None:
    store = ChromaVectorStore(embed_model=WordEmbedding())
    store.add(WordEmbedding()(nodes))
    for retriever in (ChromaRetriever(store, filters=small()), BM25Retriever(nodes, filters=small())):
        for found in (retriever.retrieve(""), await retriever.aretrieve("")):
            assert {node.metadata["n"] for node in found} <= {0, 1, 2}
            assert {node.score for node in found} == {None}
        assert len(found) == min(3, retriever.similarity_top_k)
    with pytest.raises(InvalidInputError, match="empty"):
        BM25Retriever(nodes, filters=MetadataFilters(filters=[])).retrieve("")


# Index nodes keep their objects


async def test_the_objects_of_stored_index_nodes_are_entered() -> None:
    inner = ListRetriever(scored("found inside"))
    stored = [
        IndexNode(id_="1", text="a house", index_id="h", obj=TextNode(text="the house's plan")),
        IndexNode(id_="2", text="a garden", index_id="g", obj=inner),
        IndexNode(id_="3", text="a street", index_id="s"),
    ]
    retriever = BM25Retriever(nodes=stored)
    found = {query: retriever.retrieve(query) for query in ("house", "garden", "street")}
    assert [[node.text for node in nodes] for nodes in found.values()] == [
        ["the house's plan"],
        ["found inside"],
        ["a street"],
    ]
    assert (await retriever.aretrieve("garden"))[0].text == "found inside"
    assert stored[1].obj is inner
    assert [node.obj for node in retriever.get_nodes(["2", "3"]) if isinstance(node, IndexNode)] == [inner, None]
    retriever.add_nodes([IndexNode(id_="2", text="a garden", index_id="g")])
    assert retriever.retrieve("garden")[0].text == "a garden"


def test_objects_that_are_nodes_are_saved_and_others_given_again(tmp_path: Any) -> None:
    plan, inner = TextNode(text="the house's plan"), ListRetriever(scored("found inside"))
    stored = [
        IndexNode(id_="1", text="a house", index_id="h", obj=plan),
        IndexNode(id_="2", text="a garden", index_id="g", obj=inner),
    ]
    BM25Retriever(nodes=stored, path=tmp_path).close()
    opened = BM25Retriever(path=tmp_path, object_map={"g": inner})
    assert [node.text for node in opened.retrieve("house")] == ["the house's plan"]
    assert [node.text for node in opened.retrieve("garden")] == ["found inside"]


# What a search says of nodes is not stored with them


def test_nodes_that_were_found_are_stored_as_they_were(nodes: list[BaseNode]) -> None:
    retriever = BM25Retriever(nodes, similarity_top_k=9)
    before = retriever.get_nodes()
    found: list[NodeWithScore] = retriever.retrieve(QueryBundle("a"))
    retriever.add_nodes([item.node for item in found])
    assert sorted(retriever.get_nodes(), key=lambda node: node.metadata["n"]) == before
