"""A collection and an encoder behind a server: recognised by its vectors, refused if it is another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import TextNode

from retrieve_rerank import BiEncoder, ChromaIndex, IndexMismatchError, Passage
from retrieve_rerank.indexes.identity import needs_proof
from retrieve_rerank.langchain import BiEncoderEmbeddings
from retrieve_rerank.langchain import ChromaVectorStore as LangChainStore
from retrieve_rerank.llama_index import BiEncoderEmbedding
from retrieve_rerank.llama_index import ChromaVectorStore as LlamaIndexStore
from tests.inference_server import InferenceServer, inference_server

TEXTS = ["", "paris is the capital of france", "rome is in italy", "bread"]


@pytest.fixture(scope="module")
def local(tiny_bi_encoder: Path) -> Iterator[BiEncoder]:
    with BiEncoder(tiny_bi_encoder, precision="float32") as encoder:
        yield encoder


@pytest.fixture(params=["tei", "infinity"])
def server(request: pytest.FixtureRequest, local: BiEncoder) -> Iterator[InferenceServer]:
    """A server of the same checkpoint under another name."""
    with inference_server(request.param, task="embed", encoder=local, words=64) as running:
        yield running


class Turned:
    """Another encoder of the same dimension."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    def encode_documents(self, texts: Any) -> Any:
        return np.roll(self.encoder.encode_documents(texts), 1, axis=1)


def fill(encoder: Any, path: Path) -> None:
    with ChromaIndex(encoder, path=path) as index:
        index.add(Passage(str(number), text) for number, text in enumerate(TEXTS) if text or "tiny" in encoder.model)


def found(encoder: Any, path: Path, **options: Any) -> list[str]:
    with ChromaIndex(encoder, path=path, **options) as index:
        return [hit.passage.id for hit in index.retrieve("the capital of italy", k=3)]


def test_a_collection_moves_between_this_process_and_a_server(
    server: InferenceServer, local: BiEncoder, tmp_path: Path
) -> None:
    with BiEncoder(endpoint=server.url) as remote:
        assert "weights" not in remote.fingerprint
        fill(local, tmp_path / "local")
        fill(remote, tmp_path / "remote")
        expected = found(local, tmp_path / "local")
        assert found(remote, tmp_path / "local") == expected
        assert found(local, tmp_path / "local") == expected
        assert found(local, tmp_path / "remote") == found(remote, tmp_path / "remote")


def test_another_model_behind_a_server_is_refused(server: InferenceServer, local: BiEncoder, tmp_path: Path) -> None:
    fill(local, tmp_path)
    server.encoder = Turned(local)
    with BiEncoder(endpoint=server.url) as remote:
        with pytest.raises(IndexMismatchError, match="encoding some of its texts again gave other vectors"):
            found(remote, tmp_path)
        assert len(found(remote, tmp_path, assume_compatible=True)) == 3


def test_what_a_server_does_tell_is_compared(server: InferenceServer, local: BiEncoder, tmp_path: Path) -> None:
    with BiEncoder(endpoint=server.url, document_prompt="") as remote:
        fill(remote, tmp_path)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"document_prompt": "passage: "}, "document_prompt was '', now 'passage: '"),
        ({"document_prompt": "", "truncate_dim": 8}, "dimension was 32, now 8"),
    ]
    if server.form == "tei":
        changes.append(({"document_prompt": ""}, "revision was 'f00d', now 'beef'"))
    for settings, told in changes:
        server.info = {"model_sha": "beef"} if "revision" in told else {}
        with BiEncoder(endpoint=server.url, **settings) as remote, pytest.raises(IndexMismatchError, match=told):
            found(remote, tmp_path)


def test_the_same_server_needs_no_proof(server: InferenceServer, local: BiEncoder, tmp_path: Path) -> None:
    with BiEncoder(endpoint=server.url) as remote:
        fill(remote, tmp_path)
        server.asked.clear()
        with ChromaIndex(remote, path=tmp_path):
            assert not server.asked


def test_other_encoders_are_compared_as_ever() -> None:
    assert not needs_proof({"model": "a"}, {"model": "b"})
    assert not needs_proof({"model": "a", "weights": "1"}, {"model": "a", "weights": "2"})
    assert not needs_proof(None, {"model": "a", "served_by": "tei"})
    assert needs_proof({"model": "a", "weights": "1"}, {"model": "a", "served_by": "tei"})


def test_through_the_frameworks(server: InferenceServer, local: BiEncoder, tmp_path: Path) -> None:
    fill(local, tmp_path)
    store = LangChainStore("passages", BiEncoderEmbeddings(endpoint=server.url), tmp_path)
    assert store.similarity_search("bread", k=1)[0].page_content == "bread"
    store.close()
    nodes = LlamaIndexStore(collection_name="passages", persist_dir=str(tmp_path))
    nodes.check_embed_model(BiEncoderEmbedding(endpoint=server.url))
    server.encoder = Turned(local)
    with pytest.raises(IndexMismatchError, match="other vectors"):
        nodes.check_embed_model(BiEncoderEmbedding(endpoint=server.url))
    nodes.close()
    with pytest.raises(IndexMismatchError, match="other vectors"):
        LangChainStore("passages", BiEncoderEmbeddings(endpoint=server.url), tmp_path)


def test_a_node_is_added_through_a_server(server: InferenceServer, local: BiEncoder, tmp_path: Path) -> None:
    embed_model = BiEncoderEmbedding(endpoint=server.url)
    store = LlamaIndexStore(collection_name="passages", persist_dir=str(tmp_path))
    node = TextNode(text="bread", id_="1")
    node.embedding = embed_model.get_text_embedding("bread")
    store.add([node])
    store.close()
    assert found(local, tmp_path, assume_compatible=True) == ["1"]
