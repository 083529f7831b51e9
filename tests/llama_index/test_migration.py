"""What users of LlamaIndex's components wrote, and the same with ours in their place: both are run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.postprocessor.sbert_rerank import SentenceTransformerRerank
from llama_index.vector_stores.chroma import ChromaVectorStore as TheirStore

from retrieve_rerank.llama_index import (
    BiEncoderEmbedding,
    BM25Retriever,
    ChromaVectorStore,
    CrossEncoderRerank,
    HybridRetriever,
)
from tests.llama_index.stubs import WordEmbedding

QUERY = "capital of france"
FACTS = ["paris is the capital of france", "bread is in the bread", "rome is what", "a word"]


def nodes() -> list[TextNode]:
    return [TextNode(id_=str(number), text=text, metadata={"n": number}) for number, text in enumerate(FACTS)]


def ids(found: Sequence[NodeWithScore]) -> list[str]:
    return [node.node_id for node in found]


def test_hugging_face_embedding(tiny_bi_encoder: Path) -> None:
    theirs = HuggingFaceEmbedding(
        str(tiny_bi_encoder), device="cpu", query_instruction="what is ", text_instruction="paris "
    )
    ours = BiEncoderEmbedding(
        tiny_bi_encoder, device="cpu", query_prompt="what is ", document_prompt="paris ", precision="float32"
    )
    assert np.array(ours.get_query_embedding(QUERY)) == pytest.approx(
        np.array(theirs.get_query_embedding(QUERY)), abs=1e-5
    )
    before, after = theirs.get_text_embedding_batch(FACTS), ours.get_text_embedding_batch(FACTS)
    assert np.array(after) == pytest.approx(np.array(before), abs=1e-5)


def test_sentence_transformer_rerank(tiny_cross_encoder: Path) -> None:
    found = [NodeWithScore(node=node, score=0.5) for node in nodes()]
    theirs = SentenceTransformerRerank(model=str(tiny_cross_encoder), top_n=3, device="cpu")
    ours = CrossEncoderRerank(model=str(tiny_cross_encoder), top_n=3, device="cpu", metadata_mode="embed")
    after = ours.postprocess_nodes(found, query_str=QUERY)  # first: theirs writes over the scores
    before = theirs.postprocess_nodes(found, query_str=QUERY)
    assert ids(after) == ids(before)


@pytest.mark.parametrize("kind", [TheirStore, ChromaVectorStore])
def test_chroma_vector_store(kind: Any) -> None:
    collection = chromadb.EphemeralClient().create_collection(f"llama-{kind.__module__}", embedding_function=None)
    store = kind(chroma_collection=collection)
    index = VectorStoreIndex(
        nodes(), storage_context=StorageContext.from_defaults(vector_store=store), embed_model=WordEmbedding()
    )
    assert ids(index.as_retriever(similarity_top_k=1).retrieve("a"))[0] == "3"
    some = MetadataFilters(filters=[MetadataFilter(key="n", value=2, operator="<")])  # type: ignore[arg-type]
    assert sorted(ids(index.as_retriever(filters=some, similarity_top_k=4).retrieve("a"))) == ["0", "1"]
    assert [node.node_id for node in store.get_nodes(["2"])] == ["2"]
    store.delete_nodes(["2"])
    store.clear()
    assert collection.count() == 0


def test_query_fusion_retriever() -> None:
    words = [TextNode(id_=text, text=text) for text in ("a a", "a b", "b b", "c b")]
    index = VectorStoreIndex(words, embed_model=WordEmbedding())
    retrievers = [index.as_retriever(similarity_top_k=3), BM25Retriever(nodes=words, similarity_top_k=3, language=None)]
    before = QueryFusionRetriever(
        retrievers, llm=MockLLM(), num_queries=1, mode="reciprocal_rerank", similarity_top_k=2, use_async=False
    ).retrieve("a b c")
    after = HybridRetriever(retrievers, similarity_top_k=2).retrieve("a b c")
    assert ids(after) == ids(before)
