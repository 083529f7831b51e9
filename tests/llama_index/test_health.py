"""Nodes, which LlamaIndex embeds together with their metadata, are compared and encoded again as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chromadb
import pytest
from llama_index.core.schema import MetadataMode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.utils import node_to_metadata_dict

from retrieve_rerank import BiEncoder, ChromaIndex, InvalidInputError
from retrieve_rerank.indexes.records import embedded_text
from retrieve_rerank.llama_index import BiEncoderEmbedding, ChromaVectorStore
from retrieve_rerank.llama_index.convert import node_to_record

NODES: list[dict[str, Any]] = [
    {"text": "paris is the capital", "metadata": {"title": "france", "year": 1, "deep": {"x": [1, None]}}},
    {"text": "rome", "metadata": {"title": "italy", "secret": "x"}, "excluded_embed_metadata_keys": ["secret"]},
    {"text": "bread", "metadata": {"k": "{content} {value}"}, "text_template": "<{content}> ({metadata_str})"},
    {"text": "{metadata_str}", "metadata": {"a": 1.5, "b": True}, "metadata_template": "{value}={key}"},
    {"text": "two lines\n ", "metadata": {"a": "1", "b": "2"}, "metadata_separator": " | "},
    {"text": "no facts", "metadata": {}},
    {"text": "", "metadata": {"only": "facts"}},
]


@pytest.fixture
def nodes(tiny_bi_encoder: Path) -> list[TextNode]:
    model = BiEncoderEmbedding(tiny_bi_encoder)
    made = [TextNode(id_=f"node {number}", **facts) for number, facts in enumerate(NODES)]
    made[0].relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="document")
    return list(model(made))  # type: ignore[arg-type]


def test_the_text_that_llama_index_embeds_is_known_without_it(nodes: list[TextNode]) -> None:
    for node in nodes:
        assert embedded_text(node_to_record(node)) == node.get_content(MetadataMode.EMBED)


def test_a_store_of_nodes_is_checked_and_repaired(nodes: list[TextNode], tiny_bi_encoder: Path) -> None:
    model = BiEncoderEmbedding(tiny_bi_encoder)
    store = ChromaVectorStore(embed_model=model)
    store.add(nodes)
    found = store.check()
    assert found.ok, str(found)
    assert (found.encoded, found.with_metadata >= 4) == (7, True)  # to a tiny model some metadata say little
    store._collection.write([node_to_record(nodes[1])], [[1.0] * 32])
    assert store.check().wrong == ("node 1",)
    assert store.repair().after.ok
    again = store.get_nodes(["node 1"])[0]
    assert (again.get_content(), again.metadata) == ("rome", {"title": "italy", "secret": "x"})
    store.close()


def test_a_store_without_a_model_is_checked_without_samples(nodes: list[TextNode], tiny_bi_encoder: Path) -> None:
    store = ChromaVectorStore()
    store.add(nodes)
    assert (store.check().ok, store.check().encoded) == (True, 0)
    assert store.check(BiEncoderEmbedding(tiny_bi_encoder)).encoded == 7
    with pytest.raises(InvalidInputError, match=r"repair\(embed_model\)"):
        store.repair()
    store.close()


def test_nodes_of_the_incumbents_layout_are_adopted(
    nodes: list[TextNode], tiny_bi_encoder: Path, tmp_path: Path
) -> None:
    client = chromadb.PersistentClient(str(tmp_path.resolve()))
    collection = client.create_collection("theirs", embedding_function=None)
    simple = [node for node in nodes if "deep" not in node.metadata]
    collection.add(
        ids=[node.node_id for node in simple],
        embeddings=[node.get_embedding() for node in simple],
        documents=[node.get_content(MetadataMode.NONE) for node in simple],
        metadatas=[node_to_metadata_dict(node, remove_text=True, flat_metadata=True) for node in simple],
    )
    with BiEncoder(tiny_bi_encoder) as encoder:
        report = ChromaIndex.adopt(encoder, "theirs", client=client)
    assert report.adopted, str(report)
    assert (report.verified, report.with_metadata >= 3, report.metric) == (6, True, "euclidean")
    assert "embedded together with their metadata" in str(report)
    handle = client.get_collection("theirs", embedding_function=None)
    assert json.loads((handle.metadata or {})["retrieve_rerank:encoder"])["dimension"] == 32
