"""One collection through every door: written through one, read through the others."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import TextNode

from retrieve_rerank import BiEncoder, BM25Index, ChromaIndex, IndexMismatchError, Passage
from retrieve_rerank.langchain import BiEncoderEmbeddings
from retrieve_rerank.langchain import BM25Retriever as LangChainBM25
from retrieve_rerank.langchain import ChromaRetriever as LangChainRetriever
from retrieve_rerank.langchain import ChromaVectorStore as LangChainStore
from retrieve_rerank.llama_index import BiEncoderEmbedding
from retrieve_rerank.llama_index import BM25Retriever as LlamaIndexBM25
from retrieve_rerank.llama_index import ChromaRetriever as LlamaIndexRetriever
from retrieve_rerank.llama_index import ChromaVectorStore as LlamaIndexStore

TEXTS = {"1": "paris is the capital of france", "2": "rome\n\nis in italy", "3": "bread", "4": "what is a word"}
METADATA: dict[str, dict[str, Any]] = {
    "1": {"source": "atlas", "year": 2020, "draft": True},
    "2": {"nested": {"deep": [1, "two", None]}, "empty": [], "none": None, "doc_id": "the user's own"},
    "3": {"tags": ["food", "old"], "weight": 0.1},
    "4": {},
}
Found = dict[str, tuple[str, dict[str, Any], float]]


def core_index(model: Path, folder: Path) -> ChromaIndex:
    return ChromaIndex(BiEncoder(model), path=folder)


def langchain_store(model: Path, folder: Path) -> LangChainStore:
    return LangChainStore(embedding_function=BiEncoderEmbeddings(model=str(model)), persist_directory=folder)


def llama_index_store(model: Path, folder: Path) -> LlamaIndexStore:
    return LlamaIndexStore(persist_dir=folder, embed_model=BiEncoderEmbedding(model))


def write_core(model: Path, folder: Path) -> None:
    core_index(model, folder).add(Passage(id_, text, METADATA[id_]) for id_, text in TEXTS.items())


def write_langchain(model: Path, folder: Path) -> None:
    langchain_store(model, folder).add_documents(
        [Document(text, id=id_, metadata=METADATA[id_]) for id_, text in TEXTS.items()]
    )


def write_llama_index(model: Path, folder: Path) -> None:
    embed_model = BiEncoderEmbedding(model)
    # The embedded text is the passage alone, as in the other two, so that vectors and scores can be equal.
    nodes = [
        TextNode(id_=id_, text=text, metadata=METADATA[id_], excluded_embed_metadata_keys=list(METADATA[id_]))
        for id_, text in TEXTS.items()
    ]
    llama_index_store(model, folder).add(embed_model(nodes))


def read_core(model: Path, folder: Path) -> Found:
    hits = core_index(model, folder).retrieve("capital of france")
    return {hit.passage.id: (hit.passage.text, dict(hit.passage.metadata), hit.score) for hit in hits}


def read_langchain(model: Path, folder: Path) -> Found:
    found: Found = {}
    for document in LangChainRetriever(vectorstore=langchain_store(model, folder)).invoke("capital of france"):
        metadata = dict(document.metadata)
        score, _ = metadata.pop("retrieval_score"), metadata.pop("retrieval_rank")
        found[str(document.id)] = (document.page_content, metadata, score)
    return found


def read_llama_index(model: Path, folder: Path) -> Found:
    nodes = LlamaIndexRetriever(llama_index_store(model, folder)).retrieve("capital of france")
    return {node.node_id: (node.text, dict(node.metadata), float(node.score or 0)) for node in nodes}


WRITERS = [write_core, write_langchain, write_llama_index]
READERS = [read_core, read_langchain, read_llama_index]


@pytest.mark.parametrize("model", ["tiny_bi_encoder", "tiny_dot_bi_encoder"])
@pytest.mark.parametrize("write", WRITERS)
def test_every_reader_finds_what_any_writer_wrote(
    write: Callable[[Path, Path], None], model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(model)
    write(path, tmp_path)
    expected = read_core(path, tmp_path)
    assert {id_: text for id_, (text, _, _) in expected.items()} == TEXTS
    assert {id_: metadata for id_, (_, metadata, _) in expected.items()} == METADATA
    for read in READERS:
        found = read(path, tmp_path)
        assert list(found) == list(expected)
        for id_, (text, metadata, score) in found.items():
            assert (text, metadata) == expected[id_][:2]
            assert score == pytest.approx(expected[id_][2], abs=1e-6)


def test_writers_agree_on_vectors(tiny_bi_encoder: Path, tmp_path: Path) -> None:
    scores = []
    for write in WRITERS:
        folder = tmp_path / uuid.uuid4().hex
        write(tiny_bi_encoder, folder)
        scores.append({id_: score for id_, (_, _, score) in read_core(tiny_bi_encoder, folder).items()})
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert scores[0] == pytest.approx(scores[2], abs=1e-3)


def test_a_store_that_was_not_told_its_model_is_recognised_by_its_vectors(
    tiny_bi_encoder: Path, tiny_dot_bi_encoder: Path, tmp_path: Path
) -> None:
    """LlamaIndex hands over vectors only; the next door embeds a stored text again and writes the encoder down."""
    nodes = BiEncoderEmbedding(tiny_bi_encoder)([TextNode(id_="1", text=TEXTS["1"])])
    LlamaIndexStore(persist_dir=tmp_path).add(nodes)
    assert list(read_langchain(tiny_bi_encoder, tmp_path)) == ["1"]
    with pytest.raises(IndexMismatchError, match="another encoder"):
        LangChainStore("passages", BiEncoderEmbeddings(model=str(tiny_dot_bi_encoder)), tmp_path, metric="cosine")


def test_an_update_through_one_door_is_seen_through_the_others(tiny_bi_encoder: Path, tmp_path: Path) -> None:
    write_llama_index(tiny_bi_encoder, tmp_path)
    langchain_store(tiny_bi_encoder, tmp_path).update_document("1", Document("a word", metadata={"new": 1}))
    core_index(tiny_bi_encoder, tmp_path).delete(["2"])
    for read in READERS:
        found = read(tiny_bi_encoder, tmp_path)
        assert sorted(found) == ["1", "3", "4"]
        assert found["1"][:2] == ("a word", {"new": 1})


def bm25_core(folder: Path) -> None:
    with BM25Index(path=folder) as index:
        index.add(Passage(id_, text, METADATA[id_]) for id_, text in TEXTS.items())


def bm25_langchain(folder: Path) -> None:
    documents = [Document(text, id=id_, metadata=METADATA[id_]) for id_, text in TEXTS.items()]
    LangChainBM25.from_documents(documents, path=folder)


def bm25_llama_index(folder: Path) -> None:
    LlamaIndexBM25([TextNode(id_=id_, text=text, metadata=METADATA[id_]) for id_, text in TEXTS.items()], path=folder)


@pytest.mark.parametrize("write", [bm25_core, bm25_langchain, bm25_llama_index])
def test_a_bm25_index_is_read_through_every_door(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    core = BM25Index(path=tmp_path)
    langchain = LangChainBM25(path=tmp_path, k=10)
    llama_index = LlamaIndexBM25(path=tmp_path, similarity_top_k=10)
    query = "italy, france, bread and a word"
    expected = [(hit.passage.id, hit.passage.text, hit.passage.metadata, hit.score) for hit in core.retrieve(query)]
    assert {id_: (text, metadata) for id_, text, metadata, _ in expected} == {
        id_: (TEXTS[id_], METADATA[id_]) for id_ in TEXTS
    }
    found = []
    for document in langchain.invoke(query):
        score, _ = document.metadata.pop("retrieval_score"), document.metadata.pop("retrieval_rank")
        found.append((document.id, document.page_content, document.metadata, score))
    assert found == expected
    assert [(node.node_id, node.text, node.metadata, node.score) for node in llama_index.retrieve(query)] == expected
    llama_index.delete_nodes(["2"])
    langchain.add_documents([Document("new", id="5")])
    assert [passage.id for passage in core.get(list("12345"))] == list("1345")
