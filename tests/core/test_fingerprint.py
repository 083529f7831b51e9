"""A collection says which encoder made it, and refuses another."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import pytest

from retrieve_rerank import BiEncoder, ChromaIndex, IndexMismatchError, Passage
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
        (FACTS, {**FACTS, "document_prompt": "passage: "}, "document_prompt was '', now 'passage: '"),
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


def test_a_dot_model_gets_chromas_inner_product(tiny_dot_bi_encoder: Path) -> None:
    with BiEncoder(tiny_dot_bi_encoder, precision="float32") as encoder, ChromaIndex(encoder) as index:
        assert index.metric == "dot"
        assert index.collection.handle.configuration_json["hnsw"]["space"] == "ip"
        index.add(passages("paris is the capital", "rome"))
        query, documents = (
            encoder.encode_queries(["paris"])[0],
            encoder.encode_documents(["paris is the capital", "rome"]),
        )
        scores = {hit.passage.text: hit.retrieval_score for hit in index.retrieve("paris")}
    assert scores["paris is the capital"] == pytest.approx(float(query @ documents[0]), rel=1e-4)
    assert scores["rome"] == pytest.approx(float(query @ documents[1]), rel=1e-4)


def plain(path: Path, rows: dict[str, Any], space: str = "cosine", **options: Any) -> chromadb.Collection:
    """Make a collection as another library would."""
    client = chromadb.PersistentClient(str(path.resolve()))
    collection = client.create_collection(
        "passages", configuration={"hnsw": {"space": space}}, embedding_function=None, **options
    )
    if rows:
        collection.add(
            ids=list(rows), documents=list(rows.values()), embeddings=[letters(text) for text in rows.values()]
        )
    return collection


@pytest.mark.parametrize("rows", [{}, {"x": "abc", "y": "aab"}])
def test_a_collection_of_another_library_is_adopted_when_its_vectors_verify(
    reopen: Make, tmp_path: Path, rows: dict[str, str]
) -> None:
    plain(tmp_path, rows, metadata={"owner": "someone", "hnsw:space": "cosine"})
    index = reopen()  # no warning, which would be an error here
    assert index.count() == len(rows)
    assert (
        Identity.read(index.collection.handle.configuration_json, index.collection.handle.metadata).fingerprint == FACTS
    )
    assert index.collection.handle.metadata["owner"] == "someone"
    index.add([Passage("z", "ccc")])
    assert index.retrieve("cc", k=1)[0].passage.id == "z"
    with pytest.raises(IndexMismatchError):
        reopen({**FACTS, "weights": "w2"})


def test_a_collection_of_another_encoder_is_warned_of_and_not_signed(reopen: Make, tmp_path: Path) -> None:
    collection = plain(tmp_path, {})
    collection.add(ids=["x"], documents=["aaa"], embeddings=[[0.0, 0.0, 9.0, 0.0]])
    with pytest.warns(UserWarning, match="does not say which encoder made it") as caught:
        index = reopen()
    assert caught[0].filename == __file__
    assert index.get(["x"]) == [Passage("x", "aaa")]
    assert (
        Identity.read(index.collection.handle.configuration_json, index.collection.handle.metadata).fingerprint is None
    )


@pytest.mark.parametrize(("space", "metric"), [("ip", "dot"), ("l2", "euclidean")])
def test_vectors_of_another_length_are_warned_of_where_length_counts(
    reopen: Make, tmp_path: Path, space: str, metric: str
) -> None:
    plain(tmp_path, {}, space).add(ids=["x"], documents=["abc"], embeddings=[[10 * value for value in letters("abc")]])
    with pytest.warns(UserWarning, match="does not say which encoder"):
        reopen(metric=metric)


@pytest.mark.parametrize("document", [None, ""])
def test_a_collection_without_texts_is_warned_of(reopen: Make, tmp_path: Path, document: str | None) -> None:
    collection = plain(tmp_path, {})
    collection.add(ids=["x"], documents=None if document is None else [document], embeddings=[[1.0, 0.0, 0.0, 0.0]])
    with pytest.warns(UserWarning, match="does not say which encoder"):
        assert reopen().get(["x"]) == [Passage("x", "")]


def test_a_collection_of_another_width_is_refused(reopen: Make, tmp_path: Path) -> None:
    plain(tmp_path, {}).add(ids=["x"], documents=["abc"], embeddings=[[1.0, 2.0]])
    with pytest.raises(IndexMismatchError, match="another length, 2, than the encoder makes, 4"):
        reopen()


def test_a_collection_of_another_metric_is_refused(reopen: Make, tmp_path: Path) -> None:
    plain(tmp_path, {"x": "abc"}, space="l2")
    with pytest.raises(IndexMismatchError, match="by 'euclidean', and this encoder's are made for 'cosine'"):
        reopen()


def test_assume_compatible_takes_a_stranger_without_a_word(reopen: Make, tmp_path: Path) -> None:
    plain(tmp_path, {}).add(ids=["x"], documents=["aaa"], embeddings=[[0.0, 0.0, 9.0, 0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reopen(assume_compatible=True).count() == 1


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
