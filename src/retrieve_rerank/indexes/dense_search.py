"""Searching a Chroma collection by an encoder's vectors: one query or many, sync or async, diverse where asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from retrieve_rerank.checks import check_queries, check_query
from retrieve_rerank.indexes.collection import ChromaCollection
from retrieve_rerank.indexes.filters import Where
from retrieve_rerank.indexes.mmr import check_mmr, diverse
from retrieve_rerank.indexes.nearest import Found
from retrieve_rerank.types import Encoder, Hit


class DenseSearch:
    """The searches of `ChromaIndex`."""

    encoder: Encoder
    collection: ChromaCollection

    def retrieve(
        self,
        query: str,
        k: int = 100,
        *,
        where: Where | None = None,
        where_document: Where | None = None,
        mmr_lambda: float | None = None,
        mmr_pool: int | None = None,
    ) -> list[Hit]:
        """Find the passages nearest to a query.

        Args:
            query: Not empty.
            k: How many at most.
            where: Chroma's filter on metadata, such as `{"source": "atlas"}` or `{"year": {"$gte": 2020}}`. Numbers
                compare exactly. For a value from outside write `{"user": {"$eq": value}}`, which takes no operator.
            where_document: Chroma's filter on the text, such as `{"$contains": "France"}`. It sees a text up to its
                first NUL character.
            mmr_lambda: Find passages that are near to the query and unlike one another, by maximal marginal relevance:
                the weight of nearness against novelty in [0, 1]. The order of the hits is that in which they were
                chosen; 1 is that of nearness.
            mmr_pool: How many of the nearest to choose from, at least `k`; None is 4 * `k`.

        Returns:
            Hits, best first. `retrieval_score` is the cosine similarity, the dot product, or 1 / (1 + distance) in
            euclidean space.

        Raises:
            InvalidInputError: If the query, k, a filter or an option cannot be used.
        """
        check_query(query)
        return self.retrieve_many(
            [query], k, where=where, where_document=where_document, mmr_lambda=mmr_lambda, mmr_pool=mmr_pool
        )[0]

    async def aretrieve(
        self,
        query: str,
        k: int = 100,
        *,
        where: Where | None = None,
        where_document: Where | None = None,
        mmr_lambda: float | None = None,
        mmr_pool: int | None = None,
    ) -> list[Hit]:
        """As `retrieve`, without blocking the event loop."""
        check_query(query)
        found = await self.aretrieve_many(
            [query], k, where=where, where_document=where_document, mmr_lambda=mmr_lambda, mmr_pool=mmr_pool
        )
        return found[0]

    def retrieve_many(
        self,
        queries: Sequence[str],
        k: int = 100,
        *,
        where: Where | None = None,
        where_document: Where | None = None,
        mmr_lambda: float | None = None,
        mmr_pool: int | None = None,
    ) -> list[list[Hit]]:
        """Find the passages nearest to each query: one encoding, one search. As `retrieve` for each."""
        fetch = check_mmr(mmr_lambda, mmr_pool, k)
        checked = check_queries(queries)
        if not checked:
            return []
        found = self.collection.query(
            self.encoder.encode_queries(checked),
            fetch,
            rows=len(checked),
            where=where,
            where_document=where_document,
            with_vectors=mmr_lambda is not None,
        )
        return self._results(found, k, mmr_lambda)

    async def aretrieve_many(
        self,
        queries: Sequence[str],
        k: int = 100,
        *,
        where: Where | None = None,
        where_document: Where | None = None,
        mmr_lambda: float | None = None,
        mmr_pool: int | None = None,
    ) -> list[list[Hit]]:
        """As `retrieve_many`, without blocking the event loop."""
        fetch = check_mmr(mmr_lambda, mmr_pool, k)
        checked = check_queries(queries)
        if not checked:
            return []
        worker, aencode = self.collection.worker, getattr(self.encoder, "aencode_queries", None)
        vectors: npt.NDArray[np.float32]
        if aencode is None:
            vectors = await worker.arun(self.encoder.encode_queries, checked)
        else:
            vectors = await aencode(checked)
        found = await self.collection.aquery(
            vectors,
            fetch,
            rows=len(checked),
            where=where,
            where_document=where_document,
            with_vectors=mmr_lambda is not None,
        )
        if mmr_lambda is None:
            return self._results(found, k, None)
        return await worker.arun(self._results, found, k, mmr_lambda)

    def _results(self, found: list[list[Found]], k: int, mmr_lambda: float | None) -> list[list[Hit]]:
        if mmr_lambda is not None:
            found = [diverse(self.collection, items, k, mmr_lambda) for items in found]
        return [self._hits(items) for items in found]

    def _hits(self, found: list[Found]) -> list[Hit]:
        hits = []
        for rank, item in enumerate(found, start=1):
            score = self.collection.similarity(item.distance)
            hits.append(Hit(item.record.passage, rank=rank, score=score, retrieval_rank=rank, retrieval_score=score))
        return hits
