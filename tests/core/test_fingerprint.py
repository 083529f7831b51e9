"""A collection says which encoder made it, and refuses another; those of other libraries verify, or it is said."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest

from retrieve_rerank import BiEncoder, ChromaIndex, IndexMismatchError, InvalidInputError, Passage
from retrieve_rerank.indexes.identity import FORMAT, Identity
from tests.core.stubs import LetterEncoder, letters, passages

FACTS = {"model": "one", "weights": "w1", "dimension": 4, "document_prompt": "", "normalize": True}

Make = Callable[..., ChromaIndex]


@pytest.fixture
def reopen(tmp_path: Path) -> Make:
    def reopen(fingerprint: dict[str, Any] | None = None, metric: str = "cosine", **options: Any) -> ChromaIndex:
        return ChromaIndex(LetterEncoder(metric, fingerprint=fingerprint or FACTS), path=tmp_path, **options)

    return reopen


def test_a_new_collection_records_encoder_metric_and_format(reopen: Make) -> None:
    handle = reopen(metric="dot").collection.handle
    found = Identity.read(handle.configuration_json, handle.metadata)
    assert found == Identity("dot", FACTS, FORMAT)
    assert all(isinstance(value, (str, int)) for value in handle.metadata.values())


NAMED = {"model": "one", "dimension": 4}


@pytest.mark.parametrize(
    ("stored", "given", "says"),
    [
        (FACTS, dict(reversed(FACTS.items())), None),
        (FACTS, {**FACTS, "weights": "w2"}, "weights was 'w1', now 'w2'"),
        (FACTS, {**FACTS, "dimension": 8}, "dimension was 4, now 8"),
        (
            FACTS,
            {**FACTS, "document_prompt": "passage: "},
            "now 'passage: '. Vectors of different encoders cannot be compared: open it with document_prompt='', which",
        ),
        (FACTS, {**FACTS, "normalize": False}, "normalize was True, now False"),
        (FACTS, {**FACTS, "model": "two", "weights": "w2"}, "model was 'one', now 'two'; weights was 'w1', now 'w2'"),
        (FACTS, {**FACTS, "new fact": 1}, "new fact was 'not set', now 1"),
        (FACTS, {**FACTS, "model": "renamed"}, None),  # a name is only a name
        (NAMED, {**NAMED, "model": "two"}, "model was 'one', now 'two'"),
        (
            NAMED,
            {**NAMED, "model": "two", "weights": "w"},
            "model was 'one', now 'two'; weights was 'not set', now 'w'",
        ),
        (FACTS, {**FACTS, "rows": "r1", "pooling": "mean"}, None),  # from before they were looked at
        ({**FACTS, "rows": "r1"}, {**FACTS, "rows": "r2"}, "rows was 'r1', now 'r2'"),
    ],
)
def test_another_encoder_is_refused_naming_what_differs(
    reopen: Make, stored: dict[str, Any], given: dict[str, Any], says: str | None
) -> None:
    reopen(stored).add(passages("a"))
    if says is None:
        assert reopen(given).count() == 1
        return
    with pytest.raises(IndexMismatchError, match=re.escape(says)) as caught:
        reopen(given)
    assert "assume_compatible=True" in str(caught.value)
    assert reopen(stored).count() == 1


def test_another_metric_is_refused_with_both_names(reopen: Make) -> None:
    reopen(metric="dot").add(passages("a"))
    with pytest.raises(IndexMismatchError, match=r"by 'dot', and this encoder's are made for 'cosine'.*metric='dot'"):
        reopen()
    assert reopen(metric="dot").metric == "dot"


def test_the_callers_metric_stands_above_the_encoders(reopen: Make, tmp_path: Path) -> None:
    index = ChromaIndex(LetterEncoder("cosine", fingerprint=FACTS), path=tmp_path, metric="euclidean")
    assert index.metric == "euclidean"
    assert index.collection.handle.configuration_json["hnsw"]["space"] == "l2"
    with pytest.raises(IndexMismatchError):
        reopen()


def test_assume_compatible_opens_all_the_same_with_the_collections_metric(reopen: Make) -> None:
    reopen(metric="dot").add(passages("aab"))
    index = reopen({**FACTS, "weights": "w2"}, "cosine", assume_compatible=True)
    assert index.metric == "dot"
    assert index.retrieve("a")[0].retrieval_score == pytest.approx(3.0)  # (2, 1, 0, 1) · (1, 0, 0, 1)
    assert reopen(metric="dot").count() == 1  # the fingerprint is still that of the first encoder


def test_a_newer_format_is_refused(reopen: Make) -> None:
    handle = reopen().collection.handle
    handle.modify(metadata={**handle.metadata, "retrieve_rerank:format": FORMAT + 1})
    with pytest.raises(IndexMismatchError, match=rf"format {FORMAT + 1}, written by a newer retrieve-rerank.*Upgrade"):
        reopen()


def test_a_renamed_copy_of_a_real_model_is_the_same_and_another_is_not(tiny_bi_encoder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bi_encoder, tmp_path / "copy under another name"))
    store = tmp_path / "store"
    with BiEncoder(tiny_bi_encoder) as one, BiEncoder(copy) as renamed, BiEncoder(copy, truncate_dim=8) as other:
        ChromaIndex(one, path=store).add(passages("paris", "rome"))
        index = ChromaIndex(renamed, path=store)
        assert index.retrieve("rome", k=1)[0].passage.text == "rome"
        assert index.add(passages("paris", "rome")).unchanged == 2
        with pytest.raises(IndexMismatchError, match="dimension was 32, now 8"):
            ChromaIndex(other, path=store)


def made_elsewhere(path: Path, texts: list[str] | None, vectors: Any = None, **options: Any) -> chromadb.ClientAPI:
    """Make a collection as another library would; without vectors, with those of the letters."""
    client = chromadb.PersistentClient(str(path.resolve()))
    collection = client.create_collection("passages", embedding_function=None, **options)
    vectors = [letters(text) for text in texts or ()] if vectors is None else vectors
    if len(vectors):
        collection.add(ids=[str(number) for number in range(len(vectors))], documents=texts, embeddings=vectors)
    return client


def of_space(space: str) -> dict[str, Any]:
    """Return the options of a collection with this metric of Chroma's."""
    return {"configuration": {"hnsw": {"space": space}}}


def recorded(index: ChromaIndex) -> object:
    """Return the fingerprint that a collection says it was made with."""
    return Identity.read(index.collection.handle.configuration_json, index.collection.handle.metadata).fingerprint


@pytest.mark.parametrize("texts", [[], ["abc", "aab"]])
def test_a_collection_of_another_library_is_adopted_when_its_vectors_verify(
    reopen: Make, tmp_path: Path, texts: list[str]
) -> None:
    made_elsewhere(tmp_path, texts, **of_space("cosine"), metadata={"owner": "someone", "hnsw:space": "cosine"})
    index = reopen()  # no warning, which would be an error here
    assert index.count() == len(texts)
    assert recorded(index) == FACTS
    assert index.collection.handle.metadata["owner"] == "someone"
    index.add([Passage("z", "ccc")])
    assert index.retrieve("cc", k=1)[0].passage.id == "z"
    with pytest.raises(IndexMismatchError):
        reopen({**FACTS, "weights": "w2"})


@pytest.mark.parametrize(
    ("metric", "space", "texts", "vector"),
    [
        ("cosine", "cosine", ["aaa"], [0.0, 0.0, 9.0, 0.0]),
        ("dot", "ip", ["abc"], [10 * value for value in letters("abc")]),  # where the vectors' length counts
        ("euclidean", "l2", ["abc"], [10 * value for value in letters("abc")]),
        ("cosine", "cosine", None, [1.0, 0.0, 0.0, 0.0]),  # there is no text to encode
        ("cosine", "cosine", [""], [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_a_collection_whose_vectors_do_not_verify_is_warned_of_and_not_signed(
    reopen: Make, tmp_path: Path, metric: str, space: str, texts: list[str] | None, vector: list[float]
) -> None:
    made_elsewhere(tmp_path, texts, [vector], **of_space(space))
    with pytest.warns(UserWarning, match="does not say which encoder made it") as caught:
        index = reopen(metric=metric)
    assert caught[0].filename == __file__
    assert index.get(["0"]) == [Passage("0", texts[0] if texts else "")]
    assert recorded(index) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reopen(metric=metric, assume_compatible=True).count() == 1


def test_a_collection_of_another_width_is_refused(reopen: Make, tmp_path: Path) -> None:
    made_elsewhere(tmp_path, ["abc"], [[1.0, 2.0]], **of_space("cosine"))
    for opened in (reopen, lambda: ChromaIndex.adopt(LetterEncoder(), path=tmp_path)):
        with pytest.raises(IndexMismatchError, match="another length, 2, than the encoder makes, 4"):
            opened()


@pytest.mark.parametrize(
    ("configuration", "metric"),
    [
        ({"hnsw": {"space": "ip"}}, "dot"),
        ({"hnsw": {"space": "l2"}}, "euclidean"),
        ({"hnsw": {}}, "euclidean"),
        ({}, "euclidean"),
        ({"hnsw": None, "spann": {"space": "cosine"}}, "cosine"),
    ],
)
def test_the_metric_is_read_from_the_configuration(configuration: dict[str, Any], metric: str) -> None:
    assert Identity.read(configuration, None) == Identity(metric, None, None)


def test_the_same_weights_with_another_pooling_are_another_encoder(tiny_bi_encoder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_bi_encoder, tmp_path / "model"))
    (config,) = other.glob("*Pooling/config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "pooling_mode": "cls"}))
    with BiEncoder(tiny_bi_encoder) as encoder, BiEncoder(other) as changed:
        assert (encoder.fingerprint["pooling"], changed.fingerprint["pooling"]) == ("mean", "cls")
        with ChromaIndex(encoder, path=tmp_path / "index") as index:
            index.add([Passage("1", "paris")])
        with pytest.raises(IndexMismatchError, match="pooling was 'mean', now 'cls'"):
            ChromaIndex(changed, path=tmp_path / "index")


# Taken over on request, with a report

TEXTS = [f"{'a' * (number % 7)}{'b' * (number % 5)}{'c' * number}" for number in range(1, 41)]


def unit(texts: list[str]) -> Any:
    vectors = np.array([letters(text) for text in texts], np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Unit(LetterEncoder):
    def _encode(self, texts: Any) -> Any:
        return unit(list(texts)) if len(texts) else super()._encode(texts)


def test_chromas_own_metric_suits_unit_vectors(tmp_path: Path) -> None:
    made_elsewhere(tmp_path, TEXTS, unit(TEXTS))  # squared L2, as langchain-chroma leaves it
    report = ChromaIndex.adopt(Unit(), path=tmp_path)
    assert (report.adopted, report.verified, report.samples, report.metric) == (True, 20, 20, "euclidean")
    assert "its order is that of cosine" in str(report)
    assert "whether the other 20 vectors are the encoder's" in str(report)
    with ChromaIndex(Unit(), path=tmp_path) as index:
        assert index.collection.metric == "euclidean"
        assert index.retrieve(TEXTS[7], k=1)[0].passage.text == TEXTS[7]
    with pytest.raises(IndexMismatchError, match="another encoder"):
        ChromaIndex.adopt(Unit(fingerprint={"model": "other", "weights": "def"}), path=tmp_path)


@pytest.mark.parametrize(("metric", "space"), [("dot", "l2"), ("cosine", "l2"), ("dot", "cosine"), ("euclidean", "ip")])
def test_a_metric_that_orders_otherwise_is_not_adopted(tmp_path: Path, metric: str, space: str) -> None:
    client = made_elsewhere(tmp_path, TEXTS, metadata={"hnsw:space": space})
    report = ChromaIndex.adopt(LetterEncoder(metric), path=tmp_path)
    assert (report.verified, report.metric_suits, report.adopted) == (20, False, False)
    assert "which orders this encoder's vectors otherwise than" in str(report)
    assert client.get_collection("passages").metadata == {"hnsw:space": space}


def test_one_vector_of_another_encoder_is_enough(tmp_path: Path) -> None:
    """One sample would not have shown it."""
    vectors = [letters(text) for text in TEXTS]
    vectors[26] = [0.0, 9.0, 0.0, 0.0]
    made_elsewhere(tmp_path, TEXTS, vectors, metadata={"hnsw:space": "cosine"})
    report = ChromaIndex.adopt(LetterEncoder(), path=tmp_path)
    assert (report.verified, report.samples, report.adopted) == (19, 20, False)
    assert "another vector of 1 of 20 texts" in str(report)


def test_vectors_without_texts_cannot_be_compared(tmp_path: Path) -> None:
    made_elsewhere(tmp_path, None, [letters(text) for text in TEXTS], metadata={"hnsw:space": "cosine"})
    report = ChromaIndex.adopt(LetterEncoder(), path=tmp_path)
    assert (report.samples, report.adopted) == (0, False)
    assert "no passage has a text and a vector" in str(report)


def test_nothing_is_made_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="there is no Chroma index"):
        ChromaIndex.adopt(LetterEncoder(), path=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    made_elsewhere(tmp_path, ["a"])
    with pytest.raises(InvalidInputError, match=r"no collection 'ours'; there are: 'passages'"):
        ChromaIndex.adopt(LetterEncoder(), "ours", path=tmp_path)
    with pytest.raises(InvalidInputError, match="either the path"):
        ChromaIndex.adopt(LetterEncoder())
