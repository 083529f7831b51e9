from __future__ import annotations

import asyncio
import datetime
import json
import math
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.types import FilterOperator, VectorStoreQuery
from llama_index.core.vector_stores.utils import metadata_dict_to_node

from retrieve_rerank import IndexMismatchError, InvalidInputError, Passage, RemoteError
from retrieve_rerank.llama_index import BiEncoderEmbedding, ChromaVectorStore
from retrieve_rerank.llama_index.convert import node_to_record
from tests.llama_index.stubs import WordEmbedding, text_node, ticks_during
from tests.odd_values import nested


@pytest.fixture
def store() -> ChromaVectorStore:
    return ChromaVectorStore()


def chunk(id_: str, document: str | None, *, embedding: list[float] | None = None, **metadata: object) -> TextNode:
    node = text_node(id_, embedding=embedding or [1.0, 0.0], **metadata)
    if document is not None:
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=document)
    return node


def ids(store: ChromaVectorStore) -> set[str]:
    return {node.node_id for node in store.get_nodes()}


# Adding


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_a_vector_that_is_the_same_is_not_written_again(metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written again among equal ones, Chroma may lose it."""
    store = ChromaVectorStore(metric=metric)
    written: list[list[str]] = []
    write = store._collection.write
    monkeypatch.setattr(store._collection, "write", lambda records, *_: written.append([r.id for r in records]))
    first = [TextNode(id_="a", text="a", embedding=[3.0, 4.0]), TextNode(id_="b", text="b", embedding=[1.0, 0.0])]
    write([node_to_record(node) for node in first], np.array([[3, 4], [1, 0]], np.float32))
    first[0].metadata["n"] = 1
    first[1].embedding = [1.0, 0.5]
    store.add(first)
    assert written == [["b"]]
    assert [node.metadata for node in store.get_nodes(["a", "b"])] == [{"n": 1}, {}]


def test_a_new_vector_for_the_same_text_is_stored(store: ChromaVectorStore) -> None:
    store.add([text_node("n", "text", [1.0, 0.0])])
    store.add([text_node("n", "text", [0.0, 1.0])])
    assert store.query(VectorStoreQuery(query_embedding=[0.0, 1.0])).similarities == pytest.approx([1.0])


def test_what_chroma_rounds_or_drops_comes_back_exactly(store: ChromaVectorStore) -> None:
    store.add([text_node("n", embedding=[1.0, 0.0], long=0.1 + 0.2, infinite=math.inf, nan=math.nan, huge=2**80)])
    metadata = store.get_nodes()[0].metadata
    assert (metadata["long"], metadata["infinite"], metadata["huge"]) == (0.1 + 0.2, math.inf, 2**80)
    assert math.isnan(metadata["nan"])


def test_none_in_metadata_comes_back_as_none(store: ChromaVectorStore) -> None:
    """X5: the peer rewrites it to an empty text."""
    store.add([text_node("n", embedding=[1.0, 0.0], author=None, year=1)])
    assert store.get_nodes()[0].metadata == {"author": None, "year": 1}
    assert "author" not in store.client.get()["metadatas"][0]  # type: ignore[index]


def test_a_bad_node_after_a_thousand_good_ones_keeps_all_of_them_out(store: ChromaVectorStore) -> None:
    nodes = [text_node(str(number), embedding=[1.0, 0.0]) for number in range(1500)]
    with pytest.raises(InvalidInputError, match="'bad'"):
        store.add([*nodes, text_node("bad", embedding=[float("inf"), 1.0])])
    assert store.client.count() == 0


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda: text_node("bad"), "node 'bad' has no embedding"),
        (lambda: text_node("bad", embedding=[1.0]), "has 1 numbers"),
        (lambda: text_node("bad", embedding=[float("nan"), 1.0]), "node 'bad' holds NaN"),
        (lambda: text_node("bad", "\ud800", [1.0, 0.0]), "surrogate"),
        (lambda: text_node("bad", embedding=[1.0, 0.0], key="\ud800"), "surrogate"),
        (lambda: text_node("bad", embedding=[1.0, 0.0], thing=object()), r"metadata\['thing'\] of node 'bad'"),
        (
            lambda: text_node("bad", embedding=[1.0, 0.0], deep=nested("list", 100_000)),
            r"metadata\['deep'\] of node 'bad'",
        ),
        (lambda: text_node("", embedding=[1.0, 0.0]), "non-empty"),
        (lambda: Passage("bad", "text"), "must be a node"),
        (lambda: IndexNode(id_="bad", index_id="i", obj=object(), embedding=[1.0, 0.0]), "node 'bad' cannot be stored"),
    ],
)
def test_one_bad_node_is_named_and_nothing_is_written(
    store: ChromaVectorStore, bad: Callable[[], Any], words: str
) -> None:
    store.add([text_node("old", embedding=[1.0, 0.0])])
    with pytest.raises(InvalidInputError, match=words):
        store.add([text_node("good", embedding=[1.0, 0.0]), bad()])
    assert ids(store) == {"old"}


def test_a_single_node_is_told_to_be_wrapped(store: ChromaVectorStore) -> None:
    with pytest.raises(InvalidInputError, match=r"\[node\]"):
        store.add(text_node("n", embedding=[1.0]))  # type: ignore[arg-type]


# What comes back


def test_a_node_comes_back_as_it_was(store: ChromaVectorStore) -> None:
    node = TextNode(
        id_="n",
        text="line one\nline two",
        embedding=[1.0, 0.0],
        metadata={"title": "Röme", "tags": ["x", "y"], "nested": {"deep": [1, None, {"x": 2.5}]}, "empty": []},
        excluded_embed_metadata_keys=["tags"],
        excluded_llm_metadata_keys=["nested"],
        relationships={
            NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", metadata={"k": 1}),
            NodeRelationship.NEXT: RelatedNodeInfo(node_id="m"),
        },
        start_char_idx=3,
        end_char_idx=21,
        text_template="{content}|{metadata_str}",
        metadata_separator=";",
    )
    store.add([node])
    (back,) = store.get_nodes(["n"])
    assert back.to_dict() == {**node.to_dict(), "embedding": None}
    assert back.hash == node.hash
    assert back.ref_doc_id == "doc"


@pytest.mark.parametrize(
    "node",
    [
        Document(id_="n", text="whole", metadata={"x": 1}),
        Node(id_="n", text_resource=MediaResource(text="multi"), metadata={"x": 1}),
        Node(id_="n", image_resource=MediaResource(url="http://x/y.png")),
        ImageNode(id_="n", text="caption", image_url="http://x/y.png"),
        IndexNode(id_="n", text="points", index_id="there", metadata={"x": 1}),
    ],
    ids=lambda node: f"{node.class_name()}-{len(node.get_content())}",
)
def test_every_kind_of_node_comes_back_as_its_kind(store: ChromaVectorStore, node: Node) -> None:
    store.add([node.model_copy(update={"embedding": [1.0, 0.0]})])
    (back,) = store.get_nodes()
    assert type(back) is type(node)
    assert (back.node_id, back.get_content(), back.metadata, back.hash) == (
        node.node_id,
        node.get_content(),
        node.metadata,
        node.hash,
    )


def test_numpy_numbers_and_dates_become_plain(store: ChromaVectorStore) -> None:
    node = text_node("n", embedding=[1.0, 0.0], a=np.float32(0.5), b=np.int64(3), day=datetime.date(2024, 1, 31))
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="doc", metadata={"b": np.int64(3)})
    store.add([node])
    assert store.get_nodes()[0].metadata == {"a": 0.5, "b": 3, "day": "2024-01-31"}
    assert type(node.metadata["b"]) is np.int64  # the caller's node is the caller's


def test_the_layout_is_llama_indexs_own(store: ChromaVectorStore) -> None:
    """What the framework's other stores read: flat metadata, the document's id three times, and the node's JSON."""
    store.add([chunk("n", "doc", title="t", year=2020, doc_id="mine")])
    rows = store.client.get()
    stored = dict(rows["metadatas"][0])  # type: ignore[index]
    assert rows["documents"] == ["n"]
    assert {key: stored[key] for key in ("title", "year", "document_id", "doc_id", "ref_doc_id", "_node_type")} == {
        "title": "t",
        "year": 2020,
        "document_id": "doc",
        "doc_id": "doc",
        "ref_doc_id": "doc",
        "_node_type": "TextNode",
    }
    node = metadata_dict_to_node(stored, text="n")
    assert (node.node_id, node.get_content(), node.ref_doc_id) == ("n", "n", "doc")
    assert node.metadata == {"title": "t", "year": 2020, "doc_id": "mine"}


def test_a_record_whose_json_is_broken_still_gives_its_text(store: ChromaVectorStore) -> None:
    store.client.add(ids=["n"], embeddings=[[1.0, 0.0]], documents=["text"], metadatas=[{"_node_content": "{", "k": 1}])
    (node,) = store.get_nodes()
    assert (node.node_id, node.get_content(), node.metadata["k"]) == ("n", "text", 1)


# Deleting and reading


def test_delete_takes_all_chunks_of_a_document_and_minds_no_others(store: ChromaVectorStore) -> None:
    store.add([chunk("a1", "a"), chunk("a2", "a"), chunk("b1", "b"), chunk("alone", None), chunk("a", "b")])
    store.delete("a")
    assert ids(store) == {"b1", "alone", "a"}
    store.delete("a")
    store.delete("never there")
    assert ids(store) == {"b1", "alone", "a"}
    store.delete("alone")  # stored whole, it is its own document
    assert ids(store) == {"b1", "a"}


@pytest.mark.parametrize("ref_doc_id", ["None", "", None])
def test_delete_of_no_document_is_refused(store: ChromaVectorStore, ref_doc_id: str) -> None:
    store.add([chunk("alone", None)])
    with pytest.raises(InvalidInputError, match="ref_doc_id"):
        store.delete(ref_doc_id)
    for nothing in (None, MetadataFilters(filters=[])):
        with pytest.raises(InvalidInputError, match="clear"):
            store.delete_nodes(filters=nothing)
    assert ids(store) == {"alone"}


def year(operator: FilterOperator, value: int) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key="year", operator=operator, value=value)])


def in_text(value: str) -> MetadataFilters:
    operator = FilterOperator.TEXT_MATCH_INSENSITIVE
    return MetadataFilters(filters=[MetadataFilter(key="#document", operator=operator, value=value)])


@pytest.mark.parametrize(
    ("node_ids", "filters", "left"),
    [
        (["a"], None, {"b", "c"}),
        (["a", "a", "missing"], None, {"b", "c"}),
        ([], None, {"a", "b", "c"}),
        (None, year(FilterOperator.GTE, 2), {"a"}),
        (["a", "b"], year(FilterOperator.GTE, 2), {"a", "c"}),
        ([], year(FilterOperator.GTE, 2), {"a", "b", "c"}),
        (None, year(FilterOperator.GT, 99), {"a", "b", "c"}),
        (None, in_text("B"), {"a", "c"}),
        (["a"], in_text("B"), {"a", "b", "c"}),
    ],
)
def test_delete_nodes(
    store: ChromaVectorStore, node_ids: list[str] | None, filters: MetadataFilters | None, left: set[str]
) -> None:
    nodes = [chunk("a", None, year=1), chunk("b", None, year=2), chunk("c", None, year=3)]
    for delete in (store.delete_nodes, lambda *given: asyncio.run(store.adelete_nodes(*given))):
        store.add(nodes)
        delete(node_ids, filters)
        assert ids(store) == left


def test_get_nodes_by_id_keeps_the_order_asked_for(store: ChromaVectorStore) -> None:
    store.add([chunk(id_, None, year=number) for number, id_ in enumerate("abc")])
    assert [node.node_id for node in store.get_nodes(["c", "missing", "a"])] == ["c", "a"]
    assert [node.node_id for node in store.get_nodes(["c", "a"], year(FilterOperator.GTE, 2))] == ["c"]
    assert store.get_nodes([]) == []
    assert ids(store) == {"a", "b", "c"}


def test_clear_empties_and_keeps_the_metric() -> None:
    store = ChromaVectorStore(metric="dot")
    store.clear()
    store.add([text_node("n", embedding=[2.0, 0.0])])
    store.clear()
    assert store.get_nodes() == []
    store.add([text_node("n", embedding=[2.0, 0.0])])
    assert store.query(VectorStoreQuery(query_embedding=[3.0, 0.0])).similarities == pytest.approx([6.0])


# Searching


def test_a_query_is_restricted_to_node_ids_doc_ids_and_filters(store: ChromaVectorStore) -> None:
    store.add([chunk("a1", "a", year=1), chunk("a2", "a", year=2), chunk("b1", "b", year=2), chunk("alone", None)])

    def found(**restriction: object) -> set[str]:
        query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=9, **restriction)  # type: ignore[arg-type]
        return set(store.query(query).ids or [])

    assert found() == found(node_ids=[], doc_ids=[]) == {"a1", "a2", "b1", "alone"}
    assert found(node_ids=["a1", "alone", "missing"]) == {"a1", "alone"}
    assert found(node_ids=["missing"]) == set()
    assert found(doc_ids=["a"]) == {"a1", "a2"}
    assert found(filters=year(FilterOperator.EQ, 2)) == {"a2", "b1"}
    assert found(filters=year(FilterOperator.EQ, 2), doc_ids=["a"], node_ids=["a1", "a2"]) == {"a2"}
    assert found(filters=in_text("A1")) == {"a1"}
    with pytest.raises(InvalidInputError):
        found(doc_ids="a")


def test_chromas_own_filters_go_with_the_others(store: ChromaVectorStore) -> None:
    store.add([chunk("a", None, year=1, flag=True), chunk("b", None, year=2, flag=True), chunk("c", None, year=2)])
    query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=9)
    assert set(store.query(query, where={"flag": True}).ids or []) == {"a", "b"}
    query.filters = year(FilterOperator.EQ, 2)
    assert store.query(query, where={"flag": True}).ids == ["b"]
    assert store.query(query, where_document={"$contains": "c"}).ids == ["c"]
    with pytest.raises(InvalidInputError):
        store.query(query, where={"flag": {"$like": 1}})


# Async


async def test_async_methods_do_what_the_sync_ones_do(store: ChromaVectorStore) -> None:
    nodes = [chunk("a1", "a"), chunk("b1", "b"), chunk("c1", "c")]
    assert await store.async_add(nodes) == ["a1", "b1", "c1"]
    await store.adelete("a")
    await store.adelete_nodes(["b1"])
    assert [node.node_id for node in await store.aget_nodes()] == ["c1"]
    assert (await store.aquery(VectorStoreQuery(query_embedding=[1.0, 0.0]), where_document={"$contains": "c"})).ids
    await store.aclear()
    assert await store.aget_nodes() == []


async def test_the_event_loop_is_not_blocked_and_the_default_pool_not_used(
    store: ChromaVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X3: a query of half a second gave the peer's event loop no tick."""
    store.add([chunk("a", "doc")])
    threads: list[str] = []
    for name in ("query", "upsert", "get", "delete"):
        original = getattr(chromadb.Collection, name)

        def slow(self: chromadb.Collection, *given: Any, _original: Any = original, **options: Any) -> Any:
            threads.append(threading.current_thread().name)
            time.sleep(0.15)
            return _original(self, *given, **options)

        monkeypatch.setattr(chromadb.Collection, name, slow)
    for call in (
        store.aquery(VectorStoreQuery(query_embedding=[1.0, 0.0])),
        store.async_add([chunk("b", "doc")]),
        store.aget_nodes(["a"]),
        store.adelete_nodes(["a"]),
        store.adelete("doc"),
        store.aclear(),
    ):
        _, ticks = await ticks_during(call)
        assert ticks >= 5
    assert all(name.startswith("retrieve-rerank collection") for name in threads), threads


# Opening


def test_persist_dir_keeps_the_nodes(tmp_path: Path) -> None:
    """X4: the peer's constructor ignores persist_dir and asks for a server."""
    store = ChromaVectorStore(persist_dir=tmp_path / "new" / "folder", collection_name="mine", metric="dot")
    store.add([text_node("n", embedding=[2.0, 0.0])])
    assert (tmp_path / "new" / "folder").is_dir()
    again = ChromaVectorStore.from_dict(store.to_dict())
    assert (again.collection_name, again.metric, ids(again)) == ("mine", "dot", {"n"})
    json.dumps(store.to_dict())
    assert ChromaVectorStore(persist_dir=tmp_path, lock_timeout=0.05)._collection.lock_timeout == 0.05
    from_params = ChromaVectorStore.from_params(collection_name="mine", persist_dir=str(tmp_path / "new" / "folder"))
    assert ids(from_params) == {"n"}


def test_a_live_collection_is_used_as_it_is() -> None:
    client = chromadb.EphemeralClient()
    collection = client.create_collection(f"c{uuid.uuid4().hex}", configuration={"hnsw": {"space": "ip"}})
    for store in (ChromaVectorStore(collection), ChromaVectorStore.from_collection(collection)):
        assert store.client is collection
        assert (store.collection_name, store.metric) == (collection.name, "dot")
    store.add([text_node("n", embedding=[1.0, 0.0])])
    assert collection.count() == 1
    with pytest.raises(IndexMismatchError, match="'dot'"):
        ChromaVectorStore(collection, metric="cosine")


@pytest.mark.parametrize(
    "wrong",
    [
        {"chroma_collection": "passages"},
        {"collection_name": "x"},
        {"metric": "manhattan"},
        {"embed_model": "local"},
        {"persist_dir": "/dev/null/x"},
    ],
)
def test_arguments_that_cannot_be_used_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        ChromaVectorStore(**wrong)


def test_two_places_are_refused(tmp_path: Path) -> None:
    collection = chromadb.EphemeralClient().create_collection(f"c{uuid.uuid4().hex}", embedding_function=None)
    with pytest.raises(InvalidInputError, match="either"):
        ChromaVectorStore(collection, persist_dir=tmp_path)
    with pytest.raises(InvalidInputError, match="either"):
        ChromaVectorStore.from_params()
    with pytest.raises(InvalidInputError, match="either"):
        ChromaVectorStore.from_params(persist_dir=tmp_path, host="localhost", port=1)


def test_a_server_that_is_not_there_says_so() -> None:
    with pytest.raises(RemoteError, match="localhost:1"):
        ChromaVectorStore.from_params(host="localhost", port=1)


def test_the_metric_comes_from_the_embedding_model(tiny_dot_bi_encoder: Path, tiny_bi_encoder: Path) -> None:
    assert ChromaVectorStore(embed_model=BiEncoderEmbedding(tiny_dot_bi_encoder)).metric == "dot"
    assert ChromaVectorStore(embed_model=BiEncoderEmbedding(tiny_bi_encoder)).metric == "cosine"
    assert ChromaVectorStore(embed_model=BiEncoderEmbedding(tiny_bi_encoder), metric="euclidean").metric == "euclidean"
    assert ChromaVectorStore(embed_model=WordEmbedding()).metric == "cosine"


def test_a_collection_of_a_client_carries_the_encoders_fingerprint(
    tmp_path: Path, tiny_bi_encoder: Path, tiny_dot_bi_encoder: Path
) -> None:
    embed_model, other = BiEncoderEmbedding(tiny_bi_encoder), BiEncoderEmbedding(tiny_dot_bi_encoder)
    client = chromadb.PersistentClient(str(tmp_path))
    store = ChromaVectorStore(client=client, collection_name="mine", embed_model=embed_model)
    store.add(embed_model([text_node("n")]))
    theirs = client.create_collection("theirs", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None)
    ChromaVectorStore(theirs, embed_model=embed_model)  # an empty one of others is adopted
    assert client.get_collection("mine", embedding_function=None).count() == 1
    for options in ({"client": client, "collection_name": "mine"}, {"chroma_collection": theirs, "metric": "cosine"}):
        with pytest.raises(IndexMismatchError, match="another encoder"):
            ChromaVectorStore(embed_model=other, **options)  # type: ignore[arg-type]
        assert ChromaVectorStore(embed_model=other, assume_compatible=True, **options).metric == "cosine"  # type: ignore[arg-type]
