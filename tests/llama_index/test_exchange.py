"""One collection, written by the core and read through LlamaIndex, and the reverse."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core.schema import TextNode

from retrieve_rerank import BiEncoder, ChromaIndex, Passage
from retrieve_rerank.llama_index import BiEncoderEmbedding, ChromaRetriever, ChromaVectorStore

QUERY = "what is the capital of france"
PASSAGES = [
    Passage("1", "paris is the capital of france", {"source": "atlas", "year": 2020, "tags": ["a", "b"]}),
    Passage("2", "rome is the capital of italy", {"nested": {"deep": [1, None]}, "none": None, "doc_id": "mine"}),
    Passage("3", "bread\nis\nbread", {}),
    Passage("4", "paris, rome", {"flag": True, "mixed": [1, "a"]}),
]


@pytest.fixture(params=["cosine", "dot"])
def model(request: pytest.FixtureRequest, tiny_bi_encoder: Path, tiny_dot_bi_encoder: Path) -> Path:
    return tiny_bi_encoder if request.param == "cosine" else tiny_dot_bi_encoder


def seen_by_the_core(path: Path, model: Path) -> list[tuple[str, str, dict[str, object], float | None]]:
    hits = ChromaIndex(BiEncoder(model), path=path).retrieve(QUERY, k=10)
    return [(hit.passage.id, hit.passage.text, dict(hit.passage.metadata), hit.retrieval_score) for hit in hits]


def seen_by_llama_index(path: Path, model: Path) -> list[tuple[str, str, dict[str, object], float | None]]:
    store = ChromaVectorStore(persist_dir=path, embed_model=BiEncoderEmbedding(model))
    nodes = ChromaRetriever(store).retrieve(QUERY)
    return [(node.node_id, node.node.get_content(), node.metadata, node.score) for node in nodes]


def test_written_by_the_core(tmp_path: Path, model: Path) -> None:
    ChromaIndex(BiEncoder(model), path=tmp_path).add(PASSAGES)
    assert seen_by_llama_index(tmp_path, model) == seen_by_the_core(tmp_path, model)
    store = ChromaVectorStore(persist_dir=tmp_path)
    assert [
        (type(node), node.node_id, node.get_content(), node.metadata) for node in store.get_nodes(["1", "2", "3", "4"])
    ] == [(TextNode, passage.id, passage.text, passage.metadata) for passage in PASSAGES]


def test_written_through_llama_index(tmp_path: Path, model: Path) -> None:
    embed_model = BiEncoderEmbedding(model)
    store = ChromaVectorStore(persist_dir=tmp_path, embed_model=embed_model)
    nodes = [TextNode(id_=passage.id, text=passage.text, metadata=dict(passage.metadata)) for passage in PASSAGES]
    # Without the metadata in what is embedded, the vectors are those of the core, too.
    for node in nodes:
        node.excluded_embed_metadata_keys = list(node.metadata)
    store.add(embed_model(nodes))
    assert seen_by_the_core(tmp_path, model) == seen_by_llama_index(tmp_path, model)
    assert ChromaIndex(BiEncoder(model), path=tmp_path).get(["1", "2", "3", "4"]) == PASSAGES

    core = tmp_path / "core"
    ChromaIndex(BiEncoder(model), path=core).add(PASSAGES)
    by_core = seen_by_the_core(core, model)
    by_both = seen_by_the_core(tmp_path, model)
    assert [row[:3] for row in by_both] == [row[:3] for row in by_core]
    assert [row[3] for row in by_both] == pytest.approx([row[3] for row in by_core], abs=1e-6)


def test_a_passage_that_the_core_updates_is_a_plain_node_afterwards(tmp_path: Path, tiny_bi_encoder: Path) -> None:
    embed_model = BiEncoderEmbedding(tiny_bi_encoder)
    store = ChromaVectorStore(persist_dir=tmp_path, embed_model=embed_model)
    store.add(embed_model([TextNode(id_="1", text="old", metadata={"gone": 1})]))
    index = ChromaIndex(embed_model.encoder, path=tmp_path)
    assert index.add([Passage("1", "new", {"kept": 2})]).updated == 1
    (node,) = store.get_nodes(["1"])
    assert (node.get_content(), node.metadata) == ("new", {"kept": 2})
