"""Code and collections of langchain-chroma's users, with our store in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import langchain_chroma
import pytest
from langchain_core.documents import Document

from retrieve_rerank import IndexMismatchError, InvalidInputError
from retrieve_rerank.langchain import ChromaVectorStore
from tests.langchain.stubs import WordEmbeddings

TEXTS = ["a a a", "a a b", "c", "b b a"]


@pytest.mark.filterwarnings("ignore:legacy embedding function config")
def test_code_written_for_the_incumbent_runs(tmp_path: Path) -> None:
    """The same calls on langchain-chroma and on ours, with the same metric, give the same answers."""
    answers = []
    for kind, options in (
        (langchain_chroma.Chroma, {"collection_configuration": {"hnsw": {"space": "cosine"}}}),
        (ChromaVectorStore, {}),
    ):
        db = kind.from_texts(
            TEXTS,
            embedding=WordEmbeddings(),
            metadatas=[{"n": number} for number in range(4)],
            ids=["0", "1", "2", "3"],
            collection_name="incumbent",
            persist_directory=str(tmp_path / kind.__name__),
            **options,
        )
        db.update_document("2", Document("c c", metadata={"n": 2}))
        db.delete(ids=["3"])
        answers.append(
            {
                "search": db.similarity_search("a", k=2),
                "filter": db.similarity_search("a", k=2, filter={"n": {"$gt": 0}}),
                "text": db.similarity_search("a", k=2, where_document={"$contains": "c"}),
                "distance": [(d.id, pytest.approx(s)) for d, s in db.similarity_search_with_score("a", k=3)],
                "relevance": [
                    (d.id, pytest.approx(s)) for d, s in db.similarity_search_with_relevance_scores("a", k=3)
                ],
                "retriever": db.as_retriever(search_kwargs={"k": 1}).invoke("b"),
                "ids": sorted(db.get()["ids"]),
                "count": db._collection.count(),
                "by vector": db.similarity_search_by_vector_with_relevance_scores([1.0, 0.0, 0.0, 0.0], k=1)[0][0].id,
                "with vectors": [(d.id, v.tolist()) for d, v in db.similarity_search_with_vectors("a", k=2)],
                "some": db.get(ids=["0", "1"], include=["embeddings"])["embeddings"].tolist(),
                "not asked for": db.get(include=["embeddings"])["documents"],
            }
        )
    assert answers[0] == answers[1]


def test_collections_of_the_incumbent_open(tmp_path: Path) -> None:
    """Without a fingerprint, a stored text is embedded again: the same vector, the same model."""
    langchain_chroma.Chroma.from_texts(TEXTS, WordEmbeddings("one"), persist_directory=str(tmp_path))
    ours = ChromaVectorStore("langchain", WordEmbeddings("one"), tmp_path)
    assert ours.metric == "euclidean"
    assert ours.similarity_search("c", k=1)[0].page_content == "c"
    with pytest.raises(IndexMismatchError, match="model was 'one', now 'two'"):
        ChromaVectorStore("langchain", WordEmbeddings("two"), tmp_path)


def test_a_collection_that_says_nothing_and_fits_nothing_warns(tmp_path: Path) -> None:
    class Other(WordEmbeddings):
        def _count(self, text: str, last: float) -> list[float]:
            return [*reversed(super()._count(text, last)[:3]), last]

    langchain_chroma.Chroma.from_texts(["a a b"], Other(), persist_directory=str(tmp_path))
    with pytest.warns(UserWarning, match="does not say which encoder made it"):
        ChromaVectorStore("langchain", WordEmbeddings(), tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"collection_metadata": {"hnsw:space": "ip"}}, {"collection_configuration": {"hnsw": {"space": "ip"}}}],
)
def test_the_incumbents_ways_to_give_a_metric(options: dict[str, Any]) -> None:
    assert ChromaVectorStore(embedding_function=WordEmbeddings(), **options).metric == "dot"
    assert ChromaVectorStore.from_texts(["a"], WordEmbeddings(), **options).metric == "dot"
    with pytest.raises(InvalidInputError, match="space must be one of"):
        ChromaVectorStore(collection_metadata={"hnsw:space": "manhattan"})


def test_scores_by_vector_are_distances_as_in_the_incumbent() -> None:
    store = ChromaVectorStore.from_texts(["a", "b"], WordEmbeddings(), ids=["1", "2"])
    found = store.similarity_search_by_vector_with_relevance_scores(WordEmbeddings().embed_query("a"))
    assert found == store.similarity_search_with_score("a")
    assert found[0][1] < found[1][1]


@pytest.mark.parametrize("include", ["embeddings", ["documents", "distances"]])
def test_what_get_cannot_include_is_refused(include: Any) -> None:
    with pytest.raises(InvalidInputError, match="include must be a list of"):
        ChromaVectorStore().get(include=include)
