"""Every public parameter of what ours take the place of is taken, or answered with what to write instead."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import langchain_chroma
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker as TheirReranker
from langchain_core.documents import Document
from langchain_huggingface import HuggingFaceEmbeddings

from retrieve_rerank import InvalidInputError, RetrieveRerankError
from retrieve_rerank.langchain import (
    BiEncoderEmbeddings,
    BM25Retriever,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderReranker,
    HybridRetriever,
    RetrieveRerankRetriever,
)
from retrieve_rerank.langchain.compat import INSTEAD
from retrieve_rerank.testing import TableScorer
from tests.langchain.stubs import ListRetriever, WordEmbeddings

with warnings.catch_warnings():  # of a library that is being sunset
    warnings.simplefilter("ignore")
    from langchain_community.retrievers import BM25Retriever as TheirWords

WORDS = BM25Retriever.from_texts(["one"])
RERANKER = CrossEncoderReranker(model=TableScorer({}))
# What theirs take; how ours are made with one of it.
PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "Chroma": (
        langchain_chroma.Chroma,
        lambda **given: ChromaVectorStore(embedding_function=WordEmbeddings(), **given),
    ),
    "Chroma.from_texts": (
        langchain_chroma.Chroma.from_texts,
        lambda **given: ChromaVectorStore.from_texts(**{"texts": ["a"], "embedding": WordEmbeddings(), **given}),
    ),
    "Chroma.from_documents": (
        langchain_chroma.Chroma.from_documents,
        lambda **given: ChromaVectorStore.from_documents(
            **{"documents": [Document("a")], "embedding": WordEmbeddings(), **given}
        ),
    ),
    "BM25Retriever": (TheirWords, BM25Retriever),
    "BM25Retriever.from_texts": (
        TheirWords.from_texts,
        lambda **given: BM25Retriever.from_texts(**{"texts": ["a"], **given}),
    ),
    "EnsembleRetriever": (EnsembleRetriever, lambda **given: HybridRetriever(**{"retrievers": [WORDS], **given})),
    "ContextualCompressionRetriever": (
        ContextualCompressionRetriever,
        lambda **given: RetrieveRerankRetriever(**{"base_retriever": WORDS, "reranker": RERANKER, **given}),
    ),
    "CrossEncoderReranker": (
        TheirReranker,
        lambda **given: CrossEncoderReranker(**{"model": TableScorer({}), **given}),
    ),
    "HuggingFaceEmbeddings": (HuggingFaceEmbeddings, lambda **given: BiEncoderEmbeddings(**{"model": "x", **given})),
}
VALUES: dict[str, Any] = {
    "client": None,
    "collection_name": "mine",
    "create_collection_if_not_exists": True,
    "docs": [Document("a")],
    "documents": [Document("a")],
    "embedding": WordEmbeddings(),
    "ids": ["1"],
    "k": 3,
    "model": "some/model",
    "model_name": "some/model",
    "preprocess_func": str.split,
    "relevance_score_fn": lambda distance: 0.5,
    "retrievers": [WORDS],
    "base_retriever": WORDS,
    "ssl": False,
    "tags": ["x"],
    "texts": ["a"],
    "top_n": 2,
    "weights": [1.0],
}


class PlainWords(WordEmbeddings):
    """A query is embedded as a text is."""

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def parameters(theirs: Callable[..., Any]) -> list[str]:
    fields = getattr(theirs, "model_fields", None)
    if fields is not None:
        return [str(field.alias or name) for name, field in fields.items()]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [item.name for item in inspect.signature(theirs).parameters.values() if item.kind in kinds]


@pytest.mark.parametrize("name", PAIRS)
def test_every_parameter_of_the_incumbent(name: str) -> None:
    theirs, ours = PAIRS[name]
    assert parameters(theirs)
    for parameter in parameters(theirs):
        if parameter == "embedding_function":
            continue  # given above
        if parameter in INSTEAD:
            with pytest.raises(InvalidInputError, match=re.escape(INSTEAD[parameter])):
                ours(**{parameter: VALUES.get(parameter)})
        else:
            ours(**{parameter: VALUES.get(parameter)})


def test_attributes_of_the_incumbents() -> None:
    store = ChromaVectorStore(embedding_function=WordEmbeddings())
    theirs = {name for name in vars(langchain_chroma.Chroma) if not name.startswith("_")}
    for name in theirs:
        assert hasattr(store, name) or name in INSTEAD
    with pytest.raises(AttributeError, match="ChromaVectorStore has no 'fork': fork the collection with Chroma's own"):
        store.fork("copy")
    with pytest.raises(AttributeError, match="BM25Retriever has no 'vectorizer': the index is made of the documents"):
        _ = WORDS.vectorizer  # type: ignore[attr-defined]
    assert [document.page_content for document in WORDS.docs] == ["one"]
    with pytest.raises(AttributeError, match="nothing"):
        _ = WORDS.nothing  # type: ignore[attr-defined]
    with pytest.raises(InvalidInputError, match=r"'documents', 'metadatas' and 'embeddings', got .*'uris'"):
        store.get(include=["uris"])


def test_a_mistyped_name_makes_no_collection(tmp_path: Path) -> None:
    made = ChromaVectorStore("mine", WordEmbeddings(), tmp_path / "db")
    made.add_texts(["a"])
    made.close()
    options: dict[str, Any] = {"create_collection_if_not_exists": False}
    opened = ChromaVectorStore("mine", WordEmbeddings(), tmp_path / "db", **options)
    assert opened.similarity_search("a")[0].page_content == "a"
    opened.close()
    for _ in range(2):
        with pytest.raises(InvalidInputError, match=r"collection 'mien' does not exist, and .*; there is 'mine'"):
            ChromaVectorStore("mien", WordEmbeddings(), tmp_path / "db", **options)
    with pytest.raises(InvalidInputError, match="no directory"):
        ChromaVectorStore("mine", WordEmbeddings(), tmp_path / "bd", **options)
    assert not (tmp_path / "bd").exists()


def test_settings_of_the_client(tmp_path: Path) -> None:
    quiet = chromadb.Settings(anonymized_telemetry=False)
    for place, settings in (
        (None, chromadb.Settings()),
        (tmp_path / "a", chromadb.Settings()),
        (tmp_path / "b", quiet),
    ):
        store = ChromaVectorStore("mine", WordEmbeddings(), place, client_settings=settings)
        store.add_texts(["a"], ids=["1"])
        assert [document.id for document in store.similarity_search("a")] == ["1"]
        assert place is None or (place / "chroma.sqlite3").exists()
        assert store._chroma_collection is not None
        store.delete_collection()
        assert store._chroma_collection is None
        with pytest.raises(RetrieveRerankError, match="Chroma collection not initialized: it was deleted"):
            _ = store._collection
        store.close()
    wrong: list[dict[str, Any]] = [{}, {"client": chromadb.EphemeralClient()}, {"host": "localhost"}]
    for options in wrong:
        with pytest.raises(InvalidInputError, match="client_settings"):
            ChromaVectorStore(client_settings=quiet, **options)


def test_a_relevance_of_ones_own() -> None:
    store = ChromaVectorStore.from_texts(["a", "b"], WordEmbeddings(), relevance_score_fn=lambda distance: 0.25)
    assert [score for _, score in store.similarity_search_with_relevance_scores("a")] == [0.25, 0.25]


def test_by_position_as_in_the_core() -> None:
    store = ChromaVectorStore.from_texts(["a", "b"], WordEmbeddings(), ids=["a", "b"])
    assert CrossEncoderReranker("some/folder").model == "some/folder"
    assert BiEncoderEmbeddings("some/folder", max_length=8).model == "some/folder"
    assert ChromaRetriever(store, k=1).vectorstore is store
    hybrid = HybridRetriever([store, ListRetriever(documents=[])])
    reranker = CrossEncoderReranker(TableScorer({"a": 1.0, "b": 2.0}))
    for base in (store, hybrid):
        assert [found.id for found in RetrieveRerankRetriever(base, reranker).invoke("a")] == ["b", "a"]
    with pytest.raises(InvalidInputError, match="HybridRetriever takes 1 argument by position, got 2"):
        HybridRetriever(store, store)
    with pytest.raises(InvalidInputError, match="BM25Retriever takes no argument by position"):
        BM25Retriever(["a"])
    with pytest.raises(InvalidInputError, match="model is given twice"):
        CrossEncoderReranker("some/folder", model="another")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_no_distance_is_below_nothing(metric: Any) -> None:
    """Chroma's rounding gave -1.2e-07 for the text itself, where the incumbent's users compare with 0.0."""
    store = ChromaVectorStore.from_texts(["a " * n for n in range(1, 60)], PlainWords(), metric=metric)
    for n in range(1, 60):
        found = store.similarity_search_with_score("a " * n, k=3)
        assert min(distance for _, distance in found) == pytest.approx(0.0, abs=1e-6)
        assert all(distance >= 0.0 for _, distance in found)


async def test_what_a_search_says_of_documents_is_not_stored(tmp_path: Path) -> None:
    """22.B: a plain search for "valve" showed 0.98 of "pump"."""
    given = [Document("pump", id="1", metadata={"source": "s", "relevance_score": 7})]  # which is the user's own
    store = ChromaVectorStore.from_documents(given, WordEmbeddings())
    words = BM25Retriever.from_documents(given, path=tmp_path)
    hybrid = HybridRetriever(retrievers=[store, words])
    reranked = RetrieveRerankRetriever(base_retriever=store, reranker=TableScorer({"pump": 4.0}))
    for retriever in (ChromaRetriever(vectorstore=store), words, hybrid, reranked):
        found = retriever.invoke("pump")
        assert "retrieval_rank" in found[0].metadata
        store.add_documents(found)
        words.add_documents(found)
        await store.aadd_documents([document.model_copy(deep=True) for document in found])
        for stored in (*store.get_by_ids(["1"]), *store.similarity_search("valve"), *words.docs):
            assert not {"retrieval_rank", "retrieval_score", "rerank_logit", "retrieval_ranks"} & set(stored.metadata)
            assert stored.metadata["source"] == "s"
