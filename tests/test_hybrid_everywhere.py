"""Words and vectors together: the same fusion through every door."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from retrieve_rerank import (
    BiEncoder,
    BM25Index,
    ChromaIndex,
    CrossEncoder,
    HybridRetriever,
    Passage,
    RetrieveRerank,
    fuse,
    langchain,
    llama_index,
)

TEXTS = {
    "1": "paris is the capital of france",
    "2": "rome is the capital of italy",
    "3": "bread is baked in paris",
    "4": "what is the word",
    "5": "the bread of france",
}
QUERIES = ["paris in france", "the bread", "capital"]


@pytest.fixture(scope="module")
def encoder(tiny_bi_encoder: Path) -> Iterator[BiEncoder]:
    with BiEncoder(tiny_bi_encoder) as encoder:
        yield encoder


@pytest.fixture
def hybrid(encoder: BiEncoder) -> Iterator[HybridRetriever]:
    with (
        ChromaIndex(encoder) as dense,
        BM25Index() as words,
        HybridRetriever([dense, words], weights=[1, 0.5]) as hybrid,
    ):
        for index in (dense, words):
            index.add(Passage(id_, text, {"n": int(id_)}) for id_, text in TEXTS.items())
        yield hybrid


@pytest.mark.parametrize("query", QUERIES)
async def test_both_frameworks_find_what_the_core_finds(
    hybrid: HybridRetriever, encoder: BiEncoder, tiny_bi_encoder: Path, query: str
) -> None:
    expected = [
        (hit.passage.id, hit.retrieval_rank, hit.retrieval_ranks, pytest.approx(hit.retrieval_score))
        for hit in hybrid.retrieve(query, 4, where={"n": {"$gt": 1}})
    ]
    documents = [Document(text, id=id_, metadata={"n": int(id_)}) for id_, text in TEXTS.items()]
    of_langchain = langchain.HybridRetriever(
        retrievers=[
            langchain.ChromaRetriever.from_documents(documents, langchain.BiEncoderEmbeddings(model=encoder)),
            langchain.BM25Retriever.from_documents(documents),
        ],
        weights=[1, 0.5],
        k=4,
    )
    for found in (
        of_langchain.invoke(query, filter={"n": {"$gt": 1}}),
        await of_langchain.ainvoke(query, filter={"n": {"$gt": 1}}),
    ):
        assert [
            (
                document.id,
                document.metadata["retrieval_rank"],
                tuple(document.metadata["retrieval_ranks"]),
                document.metadata["retrieval_score"],
            )
            for document in found
        ] == expected
    model = llama_index.BiEncoderEmbedding(tiny_bi_encoder)
    nodes: list[Any] = [TextNode(id_=id_, text=text, metadata={"n": int(id_)}) for id_, text in TEXTS.items()]
    for node in nodes:
        node.excluded_embed_metadata_keys = ["n"]
    filters = MetadataFilters(filters=[MetadataFilter(key="n", value=1, operator=">")])  # type: ignore[arg-type]
    store = llama_index.ChromaVectorStore(embed_model=model)
    store.add(model([node.model_copy() for node in nodes]))
    of_llama_index = llama_index.HybridRetriever(
        [
            llama_index.ChromaRetriever(store, filters=filters),
            llama_index.BM25Retriever.from_defaults(nodes=nodes, filters=filters),
        ],
        weights=[1, 0.5],
        similarity_top_k=4,
    )
    for results in (of_llama_index.retrieve(query), await of_llama_index.aretrieve(query)):
        assert [
            (node.node_id, node.retrieval_rank, node.retrieval_ranks, node.score)
            for node in results
            if isinstance(node, llama_index.FusedNode)
        ] == expected


async def test_re_ranked_through_every_door(
    hybrid: HybridRetriever, encoder: BiEncoder, tiny_cross_encoder: Path
) -> None:
    with CrossEncoder(tiny_cross_encoder) as model:
        result = RetrieveRerank(hybrid, model, fetch_k=4, top_n=2).search("paris in france", rewrites=["the bread"])
        lists = hybrid.retrieve_many(["paris in france", "the bread"], 4)
        assert list(result.candidates) == fuse(lists, k=4)
        documents = [Document(text, id=id_) for id_, text in TEXTS.items()]
        base = langchain.HybridRetriever(
            retrievers=[
                langchain.ChromaRetriever.from_documents(documents, langchain.BiEncoderEmbeddings(model=encoder)),
                langchain.BM25Retriever.from_documents(documents),
            ],
            weights=[1, 0.5],
        )
        retriever = langchain.RetrieveRerankRetriever(base_retriever=base, reranker=model, fetch_k=4, top_n=2)
        found = retriever.invoke("paris in france", rewrites=["the bread"])
    assert [document.id for document in found] == [hit.passage.id for hit in result]
    for document, hit in zip(found, result, strict=True):
        assert document.metadata["retrieval_ranks"] == list(hit.retrieval_ranks)
        assert document.metadata["retrieval_score"] == pytest.approx(hit.retrieval_score)
        assert document.metadata["relevance_score"] == pytest.approx(hit.score, abs=1e-6)
