"""BM25 in an OpenSearch server as first stage, a cross-encoder as second, through a retriever of your own.

Any search service fits in this way: a LangChain retriever of a few lines, which says where it leaves its scores. The
index "retrieve-rerank-example" is made anew.

    pip install "retrieve-rerank[langchain,demo]" opensearch-py
    OPENSEARCH_URL=http://localhost:9200 python examples/opensearch_langchain.py
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from opensearchpy import OpenSearch, helpers

from another_vector_store import QUESTION, TEXTS
from retrieve_rerank.demo import demo_models
from retrieve_rerank.langchain import CrossEncoderReranker, RetrieveRerankRetriever

INDEX = "retrieve-rerank-example"
NO_PARIS = {"bool": {"must_not": {"term": {"name": "paris"}}}}


class OpenSearchBM25Retriever(BaseRetriever):
    """Finds documents by a `match` query."""

    score_key: ClassVar[str] = "_score"  # where the re-ranking pipeline finds this stage's scores; larger is better

    client: Any
    index: str
    k: int = 100  # the re-ranking pipeline sets it to its fetch_k

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, filter: dict[str, Any] | None = None
    ) -> list[Document]:
        chosen = {"must": {"match": {"text": query}}, "filter": [filter] if filter else []}
        found = self.client.search(index=self.index, body={"query": {"bool": chosen}, "size": self.k})
        return [
            Document(hit["_source"]["text"], id=hit["_id"], metadata={"_score": hit["_score"]})
            for hit in found["hits"]["hits"]
        ]


def main() -> None:
    """Fill an index and search it."""
    client = OpenSearch(os.environ.get("OPENSEARCH_URL", "http://localhost:9200"))
    client.indices.delete(index=INDEX, ignore_unavailable=True)
    mappings = {"properties": {"text": {"type": "text"}, "name": {"type": "keyword"}}}
    client.indices.create(index=INDEX, body={"mappings": mappings})
    passages = ({"_id": name, "_index": INDEX, "name": name, "text": text} for name, text in TEXTS.items())
    helpers.bulk(client, passages, refresh=True)

    retriever = RetrieveRerankRetriever(
        base_retriever=OpenSearchBM25Retriever(client=client, index=INDEX),
        reranker=CrossEncoderReranker(model=demo_models()[1]),
        fetch_k=50,
        top_n=3,
    )
    print(QUESTION)
    for document in retriever.invoke(QUESTION, filter=NO_PARIS):  # the filter goes to the server
        scores = document.metadata
        print(
            f"  {scores['relevance_score']:.3f}  {document.id:12} "
            f"(BM25 {scores['retrieval_score']:.2f}, was {scores['retrieval_rank']})"
        )


if __name__ == "__main__":
    main()
