"""Retrieve & re-rank as LlamaIndex components. Needs llama-index-core only."""

from retrieve_rerank.errors import require

require("llama_index.core", extra="llama-index")

from retrieve_rerank.llama_index.bm25 import BM25Retriever  # noqa: E402 - after the guard
from retrieve_rerank.llama_index.embeddings import BiEncoderEmbedding  # noqa: E402
from retrieve_rerank.llama_index.hybrid import HybridRetriever  # noqa: E402
from retrieve_rerank.llama_index.nodes import FusedNode, RerankedNode  # noqa: E402
from retrieve_rerank.llama_index.postprocessor import CrossEncoderRerank  # noqa: E402
from retrieve_rerank.llama_index.retrievers import ChromaRetriever, RetrieveRerankRetriever  # noqa: E402
from retrieve_rerank.llama_index.vector_store import ChromaVectorStore  # noqa: E402

__all__ = [
    "BM25Retriever",
    "BiEncoderEmbedding",
    "ChromaRetriever",
    "ChromaVectorStore",
    "CrossEncoderRerank",
    "FusedNode",
    "HybridRetriever",
    "RerankedNode",
    "RetrieveRerankRetriever",
]
