"""LlamaIndex's doors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.generated import KEPT, MODELS, TEXTS, Door, answers


def llama_index(folder: Path) -> Iterator[Door]:
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
    from llama_index.core.vector_stores.types import (
        FilterCondition,
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
        VectorStoreQuery,
    )

    from retrieve_rerank.llama_index import (
        BiEncoderEmbedding,
        BM25Retriever,
        ChromaRetriever,
        ChromaVectorStore,
        CrossEncoderRerank,
        HybridRetriever,
        RetrieveRerankRetriever,
    )
    from tests import tiny

    (folder / "bi").mkdir()
    (folder / "cross").mkdir()
    embedding = BiEncoderEmbedding(model_name=str(tiny.save_bi_encoder(folder / "bi")), precision="float32")
    vectors = embedding.get_text_embedding_batch(TEXTS)

    def node(number: int, name: str) -> TextNode:
        return TextNode(id_=name, text=TEXTS[number], metadata={"n": number}, embedding=vectors[number])

    nodes = [node(number, name) for number, name in enumerate(KEPT)]
    store = ChromaVectorStore(persist_dir=str(folder / "chroma"))
    store.add(nodes)
    after = answers(lambda: len(store.get_nodes(KEPT)), lambda: [found.node_id for found in store.get_nodes(KEPT)])
    new = [node(number, f"new-{number}") for number in range(3)]
    words = BM25Retriever(nodes)
    dense = ChromaRetriever(store, embedding, similarity_top_k=3)
    hybrid = HybridRetriever([dense, words])
    model = CrossEncoderRerank(str(tiny.save_cross_encoder(folder / "cross")), precision="float32")
    search = RetrieveRerankRetriever(hybrid, model, fetch_k=10)
    scored = [NodeWithScore(node=one, score=0.5) for one in nodes]

    def filters(key: Any, value: Any, operator: Any) -> MetadataFilters:
        one = MetadataFilter.model_construct(key=key, value=value, operator=operator)
        return MetadataFilters.model_construct(filters=[one, one], condition=FilterCondition.OR)

    def made_of(part: Any) -> MetadataFilters:
        return MetadataFilters.model_construct(filters=part, condition=FilterCondition.AND)

    test = {"key": "n", "value": 1, "operator": FilterOperator.GTE}
    query = {
        "query_embedding": vectors[0],
        "similarity_top_k": 3,
        "mode": "default",
        "filters": None,
        "doc_ids": None,
        "node_ids": KEPT,
        "query_str": "paris",
        "mmr_threshold": 0.5,
    }

    def node_of(**of: Any) -> TextNode:
        return TextNode(**{"id_": "new-1", "text": "paris", "embedding": vectors[0], **of})

    yield Door("add", store.add, {"nodes": new}, after)
    yield Door(
        "add a node",
        lambda **of: store.add([node_of(**of)]),
        {"metadata": {"a": 1, "b": [1, 2], "c": {"d": None}}},
        after,
    )
    yield Door(
        "add an embedding",
        lambda embedding: store.add([TextNode(id_="n", text="a").model_copy(update={"embedding": embedding})]),
        {"embedding": vectors[0]},
        after,
    )
    yield Door(
        "add to words",
        lambda **of: words.add_nodes([node_of(**of)]),
        {"metadata": {"a": 1, "b": [1, 2], "c": {"d": None}}},
    )
    yield Door("delete", store.delete, {"ref_doc_id": "new"}, after)
    yield Door("delete_nodes", lambda **of: store.delete_nodes(**of), {"node_ids": ["new-1"]}, after)
    yield Door(
        "delete_nodes by filter",
        lambda **of: store.delete_nodes(filters=filters(**of)),
        {"key": "nothing", "value": 1, "operator": FilterOperator.EQ},
    )
    yield Door("get_nodes", store.get_nodes, {"node_ids": KEPT}, after)
    yield Door("get_nodes by filter", lambda **of: store.get_nodes(filters=filters(**of)), test, after)
    yield Door(
        "get_nodes by filters",
        lambda part: store.get_nodes(filters=made_of(part)),
        {"part": [MetadataFilter(**test)]},
        after,
    )
    yield Door("get_nodes by what", lambda filters: store.get_nodes(filters=filters), {"filters": None}, after)
    yield Door("query", lambda **of: store.query(VectorStoreQuery(**of)), query, after)
    yield Door(
        "query by filter", lambda **of: store.query(VectorStoreQuery(vectors[0], 3, filters=filters(**of))), test, after
    )
    yield Door(
        "query with options",
        store.query,
        {"query": VectorStoreQuery(vectors[0], 3), "where": {"n": 1}, "mmr_threshold": 0.5, "mmr_prefetch_factor": 4.0},
        after,
    )
    for name, retriever in (("dense", dense), ("words", words), ("hybrid", hybrid), ("search", search)):
        yield Door(f"{name}.retrieve", retriever.retrieve, {"str_or_query_bundle": "paris"}, after)
        yield Door(
            f"{name}.aretrieve",
            lambda bundle, retriever=retriever: asyncio.run(retriever.aretrieve(bundle)),
            {"bundle": "paris"},
            after,
        )
        yield Door(
            f"{name} of a bundle",
            lambda retriever=retriever, **of: retriever.retrieve(QueryBundle(**of)),
            {"query_str": "paris", "embedding": vectors[0]},
            after,
        )
    yield Door("dense.retrieve_many", dense.retrieve_many, {"queries": ["paris", "rome"]}, after)
    yield Door("words by filter", lambda **of: BM25Retriever(nodes, filters=filters(**of)).retrieve("paris"), test)
    yield Door("postprocess_nodes", model.postprocess_nodes, {"nodes": scored, "query_str": "paris"})
    yield Door(
        "postprocess_nodes of a bundle",
        lambda query: model.postprocess_nodes(scored, QueryBundle(query)),
        {"query": "paris"},
    )
    embed = embedding.get_text_embedding_batch  # LlamaIndex's own, which takes a string for a list of its letters
    yield Door("embeddings", lambda one, **of: embed([one, "rome"], **of), {"one": "paris"}, of=embed)
    yield Door("a query's embedding", embedding.get_query_embedding, {"query": "paris"})
    limits = {"top_n": 2, "score_threshold": 0.1, "time_budget": 30.0, "on_error": "raise"}
    yield Door(
        "CrossEncoderRerank",
        CrossEncoderRerank,
        dict(model=model.model, metadata_mode="embed", prompt=None, **limits, **MODELS),
        made=True,
    )
    yield Door(
        "BiEncoderEmbedding",
        BiEncoderEmbedding,
        dict(model_name="m", embed_batch_size=8, normalize=None, **MODELS),
        made=True,
    )
    yield Door(
        "ChromaVectorStore",
        lambda **of: ChromaVectorStore(**of).close(),
        {
            "collection_name": "new",
            "persist_dir": None,
            "client": None,
            "chroma_collection": None,
            "metric": "cosine",
            "retry_seconds": 1.0,
        },
        made=True,
    )
    yield Door(
        "ChromaRetriever",
        ChromaRetriever,
        {"vector_store": store, "embed_model": embedding, "similarity_top_k": 3, "filters": None},
        made=True,
    )
    yield Door(
        "BM25Retriever",
        BM25Retriever,
        {"nodes": nodes, "path": None, "language": "en", "similarity_top_k": 3, "filters": None, "tokenizer": None},
        made=True,
    )
    yield Door(
        "HybridRetriever",
        HybridRetriever,
        {"retrievers": [dense, words], "weights": [1.0, 2.0], "rrf_k": 60},
        made=True,
    )
    yield Door(
        "RetrieveRerankRetriever",
        RetrieveRerankRetriever,
        dict(retriever=dense, reranker=model, fetch_k=10, **{name: limits[name] for name in ("top_n",)}),
        made=True,
    )
    for kind in (model, embedding, store):
        yield Door(
            f"{type(kind).__name__}.from_dict",
            lambda kind=kind, **of: type(kind).from_dict(of["data"]),
            {"data": kind.to_dict()},
            made=True,
        )
