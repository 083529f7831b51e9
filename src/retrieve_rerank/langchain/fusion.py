"""Rankings of documents fused, and a query in several wordings searched as one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.documents import Document

from retrieve_rerank.checks import check_queries
from retrieve_rerank.langchain._convert import with_metadata
from retrieve_rerank.langchain.first_stage import FirstStage
from retrieve_rerank.retrieval.fusion import Merge, fuse_by


def fuse_documents(
    rankings: Sequence[Sequence[Document]], *, weights: Sequence[float], rrf_k: float, k: int, merge: Merge
) -> list[Document]:
    """Return copies of the best documents of several rankings, with the fused score and all ranks in their metadata.

    Documents without an id are one where their texts are equal, whatever `merge` says.
    """

    def key(document: Document) -> Hashable:
        return ("id", document.id) if merge == "id" and document.id else ("text", document.page_content)

    return [
        with_metadata(
            found.item,
            {"retrieval_score": found.score, "retrieval_rank": rank, "retrieval_ranks": list(found.ranks)},
        )
        for rank, found in enumerate(fuse_by(rankings, key, weights=weights, rrf_k=rrf_k, k=k), start=1)
    ]


def find(stage: FirstStage, query: str, rewrites: Sequence[str], callbacks: BaseCallbackManager) -> list[Document]:
    """Return the candidates for a query; given in other words, too, the fusion of what each of them finds."""
    queries = check_queries(rewrites, "rewrites")
    if not queries:
        return stage.invoke(query, callbacks)
    found = stage.asked.batch([query, *queries], stage.configured(callbacks), **stage.options)
    return _fused(stage, found)


async def afind(
    stage: FirstStage, query: str, rewrites: Sequence[str], callbacks: BaseCallbackManager
) -> list[Document]:
    """As `find`, by the first stage's own async method."""
    queries = check_queries(rewrites, "rewrites")
    if not queries:
        return await stage.ainvoke(query, callbacks)
    found = await stage.abatch([query, *queries], callbacks)
    return _fused(stage, found)


def _fused(stage: FirstStage, found: Sequence[list[Document]]) -> list[Document]:
    rankings = [stage.candidates(documents) for documents in found]
    return fuse_documents(rankings, weights=[1.0] * len(rankings), rrf_k=60, k=stage.fetch_k, merge=stage.merge)
