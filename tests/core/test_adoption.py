"""Collections of other libraries are taken over once their vectors verify, and what cannot be known is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest

from retrieve_rerank import BiEncoder, ChromaIndex, IndexMismatchError, InvalidInputError, Passage
from tests.core.stubs import LetterEncoder, letters

TEXTS = [f"{'a' * (number % 7)}{'b' * (number % 5)}{'c' * number}" for number in range(1, 41)]


def made_elsewhere(path: Path, space: str | None, vectors: Any, texts: list[str] | None = TEXTS) -> None:
    client = chromadb.PersistentClient(str(path.resolve()))
    options: Any = {} if space is None else {"metadata": {"hnsw:space": space}}
    collection = client.create_collection("theirs", embedding_function=None, **options)
    collection.add(ids=[str(number) for number in range(len(vectors))], documents=texts, embeddings=vectors)


def unit(texts: list[str]) -> Any:
    vectors = np.array([letters(text) for text in texts], np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Unit(LetterEncoder):
    def _encode(self, texts: Any) -> Any:
        return unit(list(texts)) if len(texts) else super()._encode(texts)


def test_chromas_own_metric_suits_unit_vectors(tmp_path: Path) -> None:
    made_elsewhere(tmp_path, None, unit(TEXTS))  # squared L2, as langchain-chroma leaves it
    report = ChromaIndex.adopt(Unit(), "theirs", path=tmp_path)
    assert (report.adopted, report.verified, report.samples, report.metric) == (True, 20, 20, "euclidean")
    assert "its order is that of cosine" in str(report)
    assert "whether the other 20 vectors are the encoder's" in str(report)
    with ChromaIndex(Unit(), "theirs", path=tmp_path) as index:
        assert index.collection.metric == "euclidean"
        assert index.retrieve(TEXTS[7], k=1)[0].passage.text == TEXTS[7]
    with pytest.raises(IndexMismatchError, match="another encoder"):
        ChromaIndex.adopt(Unit(fingerprint={"model": "other", "weights": "def"}), "theirs", path=tmp_path)


@pytest.mark.parametrize(("metric", "space"), [("dot", "l2"), ("cosine", "l2"), ("dot", "cosine"), ("euclidean", "ip")])
def test_a_metric_that_orders_otherwise_is_not_adopted(tmp_path: Path, metric: str, space: str) -> None:
    made_elsewhere(tmp_path, space, [letters(text) for text in TEXTS])
    report = ChromaIndex.adopt(LetterEncoder(metric), "theirs", path=tmp_path)
    assert (report.verified, report.metric_suits, report.adopted) == (20, False, False)
    assert "which orders this encoder's vectors otherwise than" in str(report)
    assert chromadb.PersistentClient(str(tmp_path.resolve())).get_collection("theirs").metadata == {"hnsw:space": space}


def test_one_vector_of_another_encoder_is_enough(tmp_path: Path) -> None:
    """One sample would not have shown it."""
    vectors = [letters(text) for text in TEXTS]
    vectors[26] = [0.0, 9.0, 0.0, 0.0]
    made_elsewhere(tmp_path, "cosine", vectors)
    report = ChromaIndex.adopt(LetterEncoder(), "theirs", path=tmp_path)
    assert (report.verified, report.samples, report.adopted) == (19, 20, False)
    assert "another vector of 1 of 20 texts" in str(report)


def test_vectors_without_texts_cannot_be_compared(tmp_path: Path) -> None:
    made_elsewhere(tmp_path, "cosine", [letters(text) for text in TEXTS], None)
    report = ChromaIndex.adopt(LetterEncoder(), "theirs", path=tmp_path)
    assert (report.samples, report.adopted) == (0, False)
    assert "no passage has a text and a vector" in str(report)


def test_vectors_of_another_length_are_refused(tmp_path: Path) -> None:
    made_elsewhere(tmp_path, "cosine", np.ones((40, 3)))
    with pytest.raises(IndexMismatchError, match="another length, 3, than the encoder makes, 4"):
        ChromaIndex.adopt(LetterEncoder(), "theirs", path=tmp_path)


def test_nothing_is_made_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="there is no Chroma index"):
        ChromaIndex.adopt(LetterEncoder(), path=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    made_elsewhere(tmp_path, "cosine", [letters("a")], ["a"])
    with pytest.raises(InvalidInputError, match=r"no collection 'passages'; there are: 'theirs'"):
        ChromaIndex.adopt(LetterEncoder(), path=tmp_path)
    with pytest.raises(InvalidInputError, match="either the path"):
        ChromaIndex.adopt(LetterEncoder())


def test_langchain_chroma_collections_are_adopted(tmp_path: Path, tiny_bi_encoder: Path) -> None:
    langchain_chroma = pytest.importorskip("langchain_chroma")
    from retrieve_rerank.langchain import BiEncoderEmbeddings

    texts = ["paris is the capital", "rome", "bread is baked", "a b c"]
    with BiEncoder(tiny_bi_encoder) as encoder:
        client = chromadb.PersistentClient(str(tmp_path.resolve()))
        langchain_chroma.Chroma("langchain", BiEncoderEmbeddings(model=encoder), client=client).add_texts(texts)
        report = ChromaIndex.adopt(encoder, "langchain", client=client)
        assert report.adopted, str(report)
        assert (report.verified, report.metric, report.encoder_metric) == (4, "euclidean", "cosine")
        with ChromaIndex(encoder, "langchain", client=client) as index:
            index.add([Passage("new", "new")])
            assert index.retrieve("rome", k=1)[0].passage.text == "rome"
            assert index.check().ok
