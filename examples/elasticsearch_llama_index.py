"""BM25 in an Elasticsearch server as first stage, a cross-encoder as second, through LlamaIndex's store for it.

You see the re-ranked order with the scores of both stages; LlamaIndex scales the server's to 0..1 within each answer.
The filter goes to the server, in its own language. The index "retrieve-rerank-example" is made anew.

    pip install "retrieve-rerank[llama-index,demo]" llama-index-vector-stores-elasticsearch
    ELASTICSEARCH_URL=http://localhost:9200 python examples/elasticsearch_llama_index.py
"""

from __future__ import annotations

import asyncio
import os

from elasticsearch import AsyncElasticsearch
from elasticsearch.helpers.vectorstore import AsyncBM25Strategy
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.vector_stores.elasticsearch import ElasticsearchStore

from another_vector_store import QUESTION, TEXTS
from retrieve_rerank.demo import demo_models
from retrieve_rerank.llama_index import CrossEncoderRerank, RetrieveRerankRetriever

INDEX = "retrieve-rerank-example"
NO_PARIS = {"bool": {"must_not": {"term": {"metadata.name.keyword": "paris"}}}}


async def main() -> None:
    """Fill an index and search it."""
    client = AsyncElasticsearch(os.environ.get("ELASTICSEARCH_URL", "http://localhost:9200"))
    await client.indices.delete(index=INDEX, ignore_unavailable=True)
    store = ElasticsearchStore(INDEX, client, retrieval_strategy=AsyncBM25Strategy())
    await store.async_add(
        [
            # The cross-encoder is to read the text alone.
            TextNode(text=text, id_=name, metadata={"name": name}, excluded_embed_metadata_keys=["name"])
            for name, text in TEXTS.items()
        ]
    )

    index = VectorStoreIndex.from_vector_store(store, embed_model=MockEmbedding(1))  # BM25 embeds nothing
    first_stage = index.as_retriever(vector_store_kwargs={"es_filter": [NO_PARIS]})
    reranker = CrossEncoderRerank(model=demo_models()[1])
    retriever = RetrieveRerankRetriever(first_stage, reranker, fetch_k=50, top_n=3)
    print(QUESTION)
    for node in await retriever.aretrieve(QUESTION):
        print(
            f"  {node.score:.3f}  {node.node_id:12} "
            f"(BM25, scaled, {node.retrieval_score:.2f}, was {node.retrieval_rank})"
        )
    await client.close()


if __name__ == "__main__":
    asyncio.run(main())
