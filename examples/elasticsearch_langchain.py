"""BM25 in an Elasticsearch server as first stage, a cross-encoder as second, through LangChain's two components for it.

You see the re-ranked order with the scores of both stages. The filter goes to the server, in its own language. The
index "retrieve-rerank-example" is made anew.

    pip install "retrieve-rerank[langchain,demo]" langchain-elasticsearch
    ELASTICSEARCH_URL=http://localhost:9200 python examples/elasticsearch_langchain.py
"""

from __future__ import annotations

import os
from typing import Any

from elasticsearch import Elasticsearch
from langchain_core.documents import Document
from langchain_elasticsearch import BM25Strategy, ElasticsearchRetriever, ElasticsearchStore

from another_vector_store import QUESTION, TEXTS
from retrieve_rerank.demo import demo_models
from retrieve_rerank.langchain import CrossEncoderReranker, RetrieveRerankRetriever

INDEX = "retrieve-rerank-example"
NO_PARIS = {"bool": {"must_not": {"term": {"metadata.name.keyword": "paris"}}}}


def body(query: str) -> dict[str, Any]:
    """Return the request of a search over an index that you filled yourself: your query, your filter, your size."""
    return {"query": {"bool": {"must": {"match": {"text": query}}, "filter": [NO_PARIS]}}, "size": 50}


def main() -> None:
    """Fill an index and search it, through the store and through the retriever."""
    client = Elasticsearch(os.environ.get("ELASTICSEARCH_URL", "http://localhost:9200"))
    client.indices.delete(index=INDEX, ignore_unavailable=True)
    reranker = CrossEncoderReranker(model=demo_models()[1])
    print(QUESTION)

    store = ElasticsearchStore(INDEX, client=client, query_field="text", strategy=BM25Strategy())
    store.add_texts(list(TEXTS.values()), [{"name": name} for name in TEXTS], ids=list(TEXTS))
    by_store = RetrieveRerankRetriever(base_retriever=store, reranker=reranker, fetch_k=50, top_n=3)
    show("ElasticsearchStore", by_store.invoke(QUESTION, filter=[NO_PARIS]))

    first_stage = ElasticsearchRetriever(INDEX, body, content_field="text", client=client)
    by_retriever = RetrieveRerankRetriever(base_retriever=first_stage, reranker=reranker, top_n=3)
    show("ElasticsearchRetriever", by_retriever.invoke(QUESTION))


def show(title: str, documents: list[Document]) -> None:
    """Print documents with the scores of both stages."""
    print(f"\n  {title}")
    for document in documents:
        scores = document.metadata
        print(
            f"    {scores['relevance_score']:.3f}  {document.page_content}  "
            f"(BM25 {scores['retrieval_score']:.2f}, was {scores['retrieval_rank']})"
        )


if __name__ == "__main__":
    main()
