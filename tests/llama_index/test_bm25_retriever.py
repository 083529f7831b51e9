"""BM25 as a LlamaIndex retriever."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import Stemmer
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import ImageNode, IndexNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from retrieve_rerank import BM25Index, InvalidInputError
from retrieve_rerank.llama_index import BM25Retriever


def node(id_: str, text: str, document: str | None = None, **metadata: Any) -> TextNode:
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)} if document else {}
    return TextNode(id_=id_, text=text, metadata=metadata, relationships=source)


def nodes() -> list[TextNode]:
    return [
        node("a", "alpha alpha", "doc 1", year=2020, tags=["x", "y"]),
        node("b", "alpha beta", "doc 1", year=2020.5),
        node("c", "gamma", "doc 2", deep={"k": [None, 1]}),
        node("d", "Running alphas", year=2021, name="d"),
    ]


def ids(found: list[Any]) -> list[str]:
    return [item.node_id for item in found]


@pytest.fixture(autouse=True)
def _no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for the default models fails: they would be OpenAI's."""

    def refuse(self: object) -> None:
        raise AssertionError("a default model was asked for")

    monkeypatch.setattr(type(Settings), "llm", property(refuse))
    monkeypatch.setattr(type(Settings), "embed_model", property(refuse))


def test_nodes_come_back_as_they_were() -> None:
    given = [
        *nodes(),
        ImageNode(id_="image", text="alpha picture", image_path="x.png"),
        IndexNode(id_="index", text="alpha index", index_id="other"),
        Document(doc_id="whole", text="alpha document", metadata={"title": "t"}, excluded_llm_metadata_keys=["title"]),
    ]
    retriever = BM25Retriever(given, similarity_top_k=10)
    assert retriever.get_nodes() == given
    assert [found.hash for found in retriever.get_nodes()] == [one.hash for one in given]
    by_id = {one.node_id: one for one in given}
    found = retriever.retrieve("alpha")
    assert len(found) == 6
    for item in found:
        assert type(item.node) is type(by_id[item.node_id])
        assert item.node == by_id[item.node_id]
    scores = [item.score or 0 for item in found]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0


async def test_async_finds_the_same_on_the_worker() -> None:
    threads = []

    def cut(text: str) -> list[str]:
        import threading

        threads.append(threading.current_thread().name)
        return text.split()

    retriever = BM25Retriever(nodes(), tokenizer=cut)
    expected = retriever.retrieve("alpha")
    threads.clear()
    assert await retriever.aretrieve("alpha") == expected
    assert all(name.startswith("retrieve-rerank") for name in threads)


def test_all_nodes_of_a_document_are_deleted(tmp_path: Path) -> None:
    retriever = BM25Retriever(path=tmp_path)
    assert retriever.add_nodes(nodes()) == ["a", "b", "c", "d"]
    assert BM25Retriever(path=tmp_path).get_nodes() == nodes()
    retriever.add_nodes([Document(doc_id="doc 1", text="alpha whole")])
    retriever.delete_ref_doc("doc 1")
    assert sorted(item.node_id for item in BM25Retriever(path=tmp_path).get_nodes()) == ["c", "d"]
    retriever.delete_ref_doc("no such document")
    for wrong in ("", "None", None):
        with pytest.raises(InvalidInputError, match="ref_doc_id"):
            retriever.delete_ref_doc(wrong)  # type: ignore[arg-type]
    assert [item.node_id for item in retriever.get_nodes(["d", "missing", "c"])] == ["d", "c"]


@pytest.mark.parametrize(
    ("key", "operator", "value", "expected"),
    [
        ("year", FilterOperator.EQ, 2020.5, "b"),
        ("year", FilterOperator.NE, 2020, "bd"),
        ("year", FilterOperator.LTE, 2020.5, "ab"),
        ("year", FilterOperator.IN, [2020.5, 2021.0], "bd"),
        ("year", FilterOperator.NIN, [2020], "bd"),
        ("tags", FilterOperator.ANY, ["y", "z"], "a"),
        ("#document", FilterOperator.TEXT_MATCH_INSENSITIVE, "running", "d"),
        ("ref_doc_id", FilterOperator.EQ, "doc 1", "ab"),
    ],
)
def test_filters_choose_before_the_best_are_taken(
    key: str, operator: FilterOperator, value: Any, expected: str
) -> None:
    many = [node(f"m{number}", "alpha alpha alpha", year=1.0 if number % 2 else 1) for number in range(50)]
    condition = MetadataFilters(filters=[MetadataFilter(key=key, operator=operator, value=value)])
    if operator in (FilterOperator.NE, FilterOperator.NIN, FilterOperator.LTE):  # which the many would pass, too
        condition.filters.append(MetadataFilter(key="year", operator=FilterOperator.NIN, value=[1]))
    retriever = BM25Retriever(many + nodes(), filters=condition, similarity_top_k=4)
    assert "".join(sorted(ids(retriever.retrieve("alpha")))) == expected


def test_a_filter_that_cannot_be_used_is_known_at_once() -> None:
    with pytest.raises(InvalidInputError, match="filters"):
        BM25Retriever(nodes(), filters={"year": 2020})  # type: ignore[arg-type]
    filters = MetadataFilters(filters=[MetadataFilter(key="x", operator=FilterOperator.IS_EMPTY, value=None)])
    with pytest.raises(InvalidInputError, match="is_empty"):
        BM25Retriever(nodes(), filters=filters)
    nested = MetadataFilters(
        condition=FilterCondition.NOT,
        filters=[MetadataFilter(key="year", value=2020), MetadataFilter(key="name", value="d")],
    )
    assert ids(BM25Retriever(nodes(), filters=nested, similarity_top_k=9).retrieve("alpha gamma")) == ["c", "b"]


# In the place of LlamaIndex's own


def test_made_of_nodes_an_index_or_a_document_store() -> None:
    store = SimpleDocumentStore()
    store.add_documents(nodes())
    index = VectorStoreIndex(nodes(), embed_model=MockEmbedding(embed_dim=2))
    for source in ({"nodes": nodes()}, {"docstore": store}, {"index": index}):
        assert ids(BM25Retriever.from_defaults(**source).retrieve("alpha")) == ["a", "b"]  # type: ignore[arg-type]
    made = BM25Retriever.from_defaults(
        nodes=nodes(), stemmer=Stemmer.Stemmer("english"), language="english", similarity_top_k=1, verbose=True
    )
    assert ids(made.retrieve("alphas")) == ["a"]


def test_what_cannot_be_taken_over_raises() -> None:
    for options, says in (
        ({}, "exactly one"),
        ({"nodes": nodes(), "docstore": SimpleDocumentStore()}, "exactly one"),
        ({"docstore": SimpleDocumentStore()}, "has no nodes.*get_nodes"),
        ({"nodes": nodes(), "stemmer": Stemmer.Stemmer("german"), "language": "en"}, "leave the stemmer out"),
    ):
        with pytest.raises(InvalidInputError, match=says):
            BM25Retriever.from_defaults(**options)  # type: ignore[arg-type]
    made = BM25Retriever.from_defaults(nodes=nodes(), tokenizer=re.compile(r"\S+").findall)
    assert ids(made.retrieve("Running")) == ["d"]
    assert made.retrieve("running") == []


# With the rest of the package


def test_the_core_reads_the_user_s_own_metadata(tmp_path: Path) -> None:
    BM25Retriever(nodes(), path=tmp_path).close()
    with BM25Index(path=tmp_path) as index:
        assert [hit.passage.metadata for hit in index.retrieve("gamma")] == [{"deep": {"k": [None, 1]}}]
        assert index.retrieve("alpha", where={"year": 2021})[0].passage.id == "d"
