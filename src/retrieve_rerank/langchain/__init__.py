"""Retrieve & re-rank as LangChain components. Needs langchain-core only."""

from retrieve_rerank.errors import require

require("langchain_core.retrievers", extra="langchain")

from retrieve_rerank.langchain.bm25 import BM25Retriever  # noqa: E402 - after the guard
from retrieve_rerank.langchain.embeddings import BiEncoderEmbeddings  # noqa: E402
from retrieve_rerank.langchain.hybrid import HybridRetriever  # noqa: E402
from retrieve_rerank.langchain.reranker import CrossEncoderReranker  # noqa: E402
from retrieve_rerank.langchain.retrievers import ChromaRetriever, RetrieveRerankRetriever  # noqa: E402
from retrieve_rerank.langchain.serialization import load  # noqa: E402
from retrieve_rerank.langchain.vectorstore import ChromaVectorStore  # noqa: E402

__all__ = [
    "BM25Retriever",
    "BiEncoderEmbeddings",
    "ChromaRetriever",
    "ChromaVectorStore",
    "CrossEncoderReranker",
    "HybridRetriever",
    "RetrieveRerankRetriever",
    "load",
]
