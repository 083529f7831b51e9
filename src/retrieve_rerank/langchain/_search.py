"""The searching half of the vector store: by query or by vector, nearest or diverse, sync or async."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

from retrieve_rerank.checks import check_count, check_queries, check_query
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.collection import ChromaCollection
from retrieve_rerank.indexes.filters import Where
from retrieve_rerank.indexes.mmr import check_diversity, most_diverse, similarity_of
from retrieve_rerank.indexes.nearest import Found, Vectors
from retrieve_rerank.langchain.convert import to_document
from retrieve_rerank.types import Encoder, Metric


class ChromaSearch(VectorStore):
    """Searches `collection` with vectors from an encoder: every method embeds, or not, and then calls `_found`."""

    collection: ChromaCollection
    _encoder: Encoder | None

    @property
    def metric(self) -> Metric:
        """What vectors are compared by."""
        return self.collection.metric

    def similarity_search(
        self,
        query: str,
        k: int = 4,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return the `k` documents nearest to a query, nearest first.

        Args:
            query: Not empty.
            k: How many at most.
            filter: Chroma's filter on metadata, such as `{"source": "atlas"}`. Numbers compare exactly. For a value
                from outside write `{"user": {"$eq": value}}`, which takes no operator.
            where_document: Chroma's filter on the text, such as `{"$contains": "France"}`.
            **kwargs: None is known; an unknown one raises.
        """
        return [
            document for document, _ in self.similarity_search_with_score(query, k, filter, where_document, **kwargs)
        ]

    async def asimilarity_search(
        self,
        query: str,
        k: int = 4,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `similarity_search`, without blocking the event loop."""
        found = await self.asimilarity_search_with_score(query, k, filter, where_document, **kwargs)
        return [document for document, _ in found]

    def similarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """As `similarity_search`, with Chroma's distance: smaller is nearer.

        For a similarity, larger is nearer, use `similarity_search_with_relevance_scores` or `ChromaRetriever`.
        """
        refuse(kwargs)
        return _with_distance(self._found(self._embed(query), k, filter, where_document))

    async def asimilarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score`, without blocking the event loop."""
        refuse(kwargs)
        return _with_distance(await self._afound(await self._aembed(query), k, filter, where_document))

    def similarity_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return the `k` documents nearest to a vector, nearest first."""
        refuse(kwargs)
        return [document for document, _ in _with_distance(self._found([embedding], k, filter, where_document))]

    async def asimilarity_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `similarity_search_by_vector`, without blocking the event loop."""
        refuse(kwargs)
        found = await self._afound([embedding], k, filter, where_document)
        return [document for document, _ in _with_distance(found)]

    def similarity_search_by_vector_with_relevance_scores(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score`, for a vector: what langchain-chroma calls so returns distances, too."""
        refuse(kwargs)
        return _with_distance(self._found([embedding], k, filter, where_document))

    def similarity_search_with_vectors(
        self,
        query: str,
        k: int = 4,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[tuple[Document, Vectors]]:
        """As `similarity_search`, each document with its stored vector, an array (dimension,)."""
        refuse(kwargs)
        found = self._found(self._embed(query), k, filter, where_document, with_vectors=True)
        return [(to_document(item.record), cast(Vectors, item.vector)) for item in found]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return documents that are near to a query and unlike one another, in the order in which they were chosen.

        Args:
            query: Not empty.
            k: How many at most.
            fetch_k: How many nearest documents to choose from.
            lambda_mult: 1 looks at nearness only, 0 at diversity only. Both are by the cosine, as in LangChain.
            filter: Chroma's filter on metadata.
            where_document: Chroma's filter on the text.
            **kwargs: None is known; an unknown one raises.
        """
        refuse(kwargs)
        vector = self._embed(query)
        return _diverse(vector, self._found(vector, fetch_k, filter, where_document, with_vectors=True), k, lambda_mult)

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, without blocking the event loop."""
        vector = await self._aembed(query)
        return await self.amax_marginal_relevance_search_by_vector(
            vector[0].tolist(), k, fetch_k, lambda_mult, filter, where_document, **kwargs
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, for a vector."""
        refuse(kwargs)
        vector = np.asarray([embedding], dtype=np.float32)
        return _diverse(vector, self._found(vector, fetch_k, filter, where_document, with_vectors=True), k, lambda_mult)

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search_by_vector`, without blocking the event loop."""
        refuse(kwargs)
        vector = np.asarray([embedding], dtype=np.float32)
        found = await self._afound(vector, fetch_k, filter, where_document, with_vectors=True)
        return await self.collection.worker.arun(_diverse, vector, found, k, lambda_mult)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        def relevance(distance: float) -> float:
            similarity = self.collection.similarity(distance)
            if self.metric == "dot":  # unbounded: squeezed, in order, around one half
                return (1.0 + similarity / (1.0 + abs(similarity))) / 2.0
            return min(1.0, max(0.0, similarity))

        return relevance

    def _needed_encoder(self) -> Encoder:
        if self._encoder is None:
            raise InvalidInputError(
                "this store has no embeddings, and the call needs them; make it with embedding_function=, such as "
                "BiEncoderEmbeddings()"
            )
        return self._encoder

    def embed_queries(self, queries: Sequence[str]) -> Vectors:
        """Return an array (len(queries), dimension)."""
        return self._needed_encoder().encode_queries(check_queries(queries))

    async def aembed_queries(self, queries: Sequence[str]) -> Vectors:
        """As `embed_queries`, without blocking the event loop."""
        aencode = getattr(self._needed_encoder(), "aencode_queries", None)
        if aencode is None:
            return await self.collection.worker.arun(self.embed_queries, queries)
        vectors: Vectors = await aencode(check_queries(queries))
        return vectors

    def _embed(self, query: str) -> Vectors:
        return self.embed_queries([check_query(query)])

    async def _aembed(self, query: str) -> Vectors:
        return await self.aembed_queries([check_query(query)])

    def _found(
        self,
        vectors: Vectors | list[list[float]],
        k: int,
        where: Where | None,
        where_document: Where | None,
        *,
        with_vectors: bool = False,
    ) -> list[Found]:
        found = self.collection.query(vectors, k, where=where, where_document=where_document, with_vectors=with_vectors)
        return found[0]

    async def _afound(
        self,
        vectors: Vectors | list[list[float]],
        k: int,
        where: Where | None,
        where_document: Where | None,
        *,
        with_vectors: bool = False,
    ) -> list[Found]:
        options: dict[str, Any] = {"where": where, "where_document": where_document, "with_vectors": with_vectors}
        return (await self.collection.aquery(vectors, k, **options))[0]


def _with_distance(found: list[Found]) -> list[tuple[Document, float]]:
    return [(to_document(item.record), item.distance) for item in found]


def _diverse(vector: Vectors, found: list[Found], k: int, lambda_mult: float) -> list[Document]:
    check_count(k, "k")
    check_diversity(lambda_mult, "lambda_mult")
    if not found:
        return []
    # By the cosine, whatever the collection's metric: what LangChain's stores do.
    vectors, similarity = np.stack([cast(Vectors, item.vector) for item in found]), similarity_of("cosine")
    chosen = most_diverse(found, vectors, similarity(vectors, vector[0]), similarity, k, lambda_mult)
    return [to_document(item.record) for item in chosen]


def refuse(options: dict[str, Any]) -> None:
    """Raise InvalidInputError for options that nothing reads: a misspelt one must not be dropped."""
    if options:
        raise InvalidInputError(f"unknown option {', '.join(map(repr, sorted(options)))}: check its spelling")
