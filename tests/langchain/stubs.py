"""LangChain components whose results can be computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever


class WordEmbeddings(Embeddings):
    """Counts of the words a, b and c; a query also has a last component of 0.5. Not normalised."""

    def __init__(self, model: str = "words", size: int = 4) -> None:
        self.model = model
        self.size = size
        self.embedded: list[str] = []

    def _count(self, text: str, last: float) -> list[float]:
        words = text.split()
        return [float(words.count(word)) for word in "abc"[: self.size - 1]] + [last]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.embedded += texts
        return [self._count(text, 0.0) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self._count(text, 0.5)


class TableCrossEncoder(BaseCrossEncoder):
    """Looks each text's score up in a table."""

    def __init__(self, scores: dict[str, float], answer: Callable[[list[float]], object] = list) -> None:
        self.scores = scores
        self.answer = answer

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        return self.answer([self.scores[text] for _, text in text_pairs])  # type: ignore[return-value]


class ListRetriever(BaseRetriever):
    """Returns its documents, as many as `k` says."""

    documents: list[Document]
    k: int = 2

    def _get_relevant_documents(self, query: str, *, run_manager: object) -> list[Document]:
        return self.documents[: self.k]


class Broken(TableCrossEncoder):
    """Fails."""

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        raise ConnectionError("server gone")


def ids(documents: Sequence[Document]) -> list[str | None]:
    return [document.id for document in documents]
