from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import chromadb
import pytest
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index

from retrieve_rerank import IndexLockedError, IndexMismatchError, InvalidInputError, TruncationWarning
from retrieve_rerank._files import FileLock
from retrieve_rerank.langchain import BiEncoderEmbeddings, ChromaVectorStore
from tests.langchain.stubs import WordEmbeddings

TEXTS = ["a a a", "a a b", "c", "b b a"]


def store(**options: Any) -> ChromaVectorStore:
    return ChromaVectorStore(embedding_function=WordEmbeddings(), **options)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_relevance_stays_in_the_unit_interval(metric: Any) -> None:
    stored = store(metric=metric)
    stored.add_texts(["a " * 500, "b", "c c", ""])
    for query in ("a", "b b b", "c"):
        scores = [score for _, score in stored.similarity_search_with_relevance_scores(query, k=4)]
        assert all(0 <= score <= 1 for score in scores)
        assert scores == sorted(scores, reverse=True)


def test_the_metric_comes_from_the_model(tiny_dot_bi_encoder: Path) -> None:
    """V1: the stock store takes squared L2 for every model."""
    stored = ChromaVectorStore(embedding_function=BiEncoderEmbeddings(model=str(tiny_dot_bi_encoder)))
    assert stored.metric == "dot"
    assert stored._collection.configuration_json["hnsw"]["space"] == "ip"


def test_diversity_takes_filters_and_refuses_unknown_options() -> None:
    """V10: the stock store drops them."""
    stored = store()
    stored.add_texts(TEXTS, [{"n": n} for n in range(4)])
    assert {d.metadata["n"] for d in stored.max_marginal_relevance_search("a", filter={"n": {"$gt": 1}})} == {2, 3}
    with pytest.raises(InvalidInputError, match="'filtre'"):
        stored.max_marginal_relevance_search("a", filtre={})


def test_more_texts_than_chroma_takes_at_once() -> None:
    """V3: the stock store embeds 5462 texts and then loses them. V4: a generator was consumed before it was read."""
    stored = store()
    limit = stored.collection.max_batch
    ids = stored.add_texts((f"a {number}" for number in range(limit + 10)), batch_size=limit + 10)
    assert len(ids) == stored.collection.count() == limit + 10


def test_another_metric_is_refused(tmp_path: Path) -> None:
    """V6: the stock store silently stays with the old one."""
    store(persist_directory=tmp_path, metric="euclidean")
    with pytest.raises(IndexMismatchError, match="'euclidean', and 'cosine' was asked for"):
        store(persist_directory=tmp_path, metric="cosine")
    assert store(persist_directory=tmp_path).metric == "euclidean"


def test_another_model_is_refused(tmp_path: Path, tiny_bi_encoder: Path, tiny_dot_bi_encoder: Path) -> None:
    """V7: the stock store searches one model's vectors with another's of the same length."""
    ChromaVectorStore("passages", BiEncoderEmbeddings(model=str(tiny_bi_encoder)), tmp_path)
    with pytest.raises(IndexMismatchError, match=r"made by another encoder: model was .*weights was"):
        ChromaVectorStore("passages", BiEncoderEmbeddings(model=str(tiny_dot_bi_encoder)), tmp_path, metric="cosine")
    ChromaVectorStore("words", WordEmbeddings("one"), tmp_path)
    with pytest.raises(IndexMismatchError, match="model was 'one', now 'two'"):
        ChromaVectorStore("words", WordEmbeddings("two"), tmp_path)
    assert ChromaVectorStore("words", WordEmbeddings("two"), tmp_path, assume_compatible=True).collection.count() == 0


@pytest.mark.parametrize("cleanup", ["incremental", "full", "scoped_full"])
def test_langchain_indexing_replaces_one_source_and_goes_on_after_a_failure(
    cleanup: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, records = store(), InMemoryRecordManager("n")
    records.create_schema()

    def run(source: str, *texts: str) -> None:
        given = [Document(text, metadata={"source": source}) for text in texts]
        index(given, records, stored, cleanup=cleanup, source_id_key="source", key_encoder="sha256", batch_size=2)

    def kept() -> list[str]:
        return sorted(stored.get()["documents"])

    run("s", "a", "b", "a b")
    if cleanup != "full":  # which deletes whatever was not given
        run("other", "a a")
    others = [] if cleanup == "full" else ["a a"]
    add, calls = stored.add_texts, iter([True, False])

    def broken(*args: Any, **options: Any) -> list[str]:
        if next(calls):
            return add(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stored, "add_texts", broken)  # the second batch fails
        with pytest.raises(KeyboardInterrupt):
            run("s", "c", "b c", "a c", "b")
    assert {"c", *others} <= set(kept())
    run("s", "c", "b c", "a c", "b")
    assert kept() == sorted([*others, "c", "b c", "a c", "b"])


def test_a_store_waits_for_the_lock_as_long_as_it_is_told(tmp_path: Path) -> None:
    other = FileLock(tmp_path / "retrieve_rerank" / "writer.lock")
    ChromaVectorStore(embedding_function=WordEmbeddings(), persist_directory=tmp_path).close()
    assert other.acquire()
    stored = ChromaVectorStore(embedding_function=WordEmbeddings(), persist_directory=tmp_path, lock_timeout=0.05)
    assert stored.similarity_search("a") == []
    with pytest.raises(IndexLockedError, match=r"Waited 0.05 seconds"):
        stored.add_texts(["a"])
    other.release()
    stored.add_texts(["a"])
    stored.close()


def test_reading_without_embeddings(tmp_path: Path) -> None:
    store(persist_directory=tmp_path).add_texts(["a"], ids=["1"])
    reader = ChromaVectorStore(persist_directory=tmp_path)
    assert reader.get_by_ids(["1"])[0].page_content == "a"
    assert reader.similarity_search_by_vector([1.0, 0.0, 0.0, 0.0])[0].id == "1"
    with pytest.raises(InvalidInputError, match="embedding_function="):
        reader.similarity_search("a")


def test_a_client_of_the_users(tmp_path: Path) -> None:
    client = chromadb.PersistentClient(str(tmp_path))
    store(client=client, collection_name="mine").add_texts(["a"])
    assert client.get_collection("mine", embedding_function=None).count() == 1
    with pytest.raises(InvalidInputError, match="not both"):
        store(client=client, persist_directory=tmp_path)


def test_every_async_twin_gives_the_same() -> None:
    stored = store()

    async def run() -> None:
        assert await stored.aadd_documents([Document("a a b", id="1"), Document("c", id="2")]) == ["1", "2"]
        assert await stored.aget_by_ids(["2"]) == stored.get_by_ids(["2"])
        assert await stored.asimilarity_search("a", k=1) == stored.similarity_search("a", k=1)
        assert await stored.asimilarity_search_with_score("a") == stored.similarity_search_with_score("a")
        relevance = await stored.asimilarity_search_with_relevance_scores("a", score_threshold=0.5)
        assert relevance == stored.similarity_search_with_relevance_scores("a", score_threshold=0.5)
        vector = WordEmbeddings().embed_query("a")
        assert await stored.asimilarity_search_by_vector(vector) == stored.similarity_search_by_vector(vector)
        assert await stored.adelete(["1"]) is True
        made = await ChromaVectorStore.afrom_documents([Document("a", id="7")], WordEmbeddings())
        assert [document.id for document in await made.asimilarity_search("a")] == ["7"]

    asyncio.run(run())
    assert stored.get()["ids"] == ["2"]


async def test_a_slow_write_leaves_the_loop_free() -> None:
    class Slow(WordEmbeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            time.sleep(0.3)
            return super().embed_documents(texts)

    task = asyncio.create_task(ChromaVectorStore(embedding_function=Slow()).aadd_texts(["a"]))
    ticks = 0
    while not task.done():
        ticks += 1
        await asyncio.sleep(0.01)
    assert ticks > 10
    assert len(await task) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.add_texts("text"), "single str"),
        (lambda s: s.add_texts(["a", None]), r"texts\[1\] must be a string, got NoneType"),
        (lambda s: s.add_texts(["a", "b"], [{}]), "equally long"),
        (lambda s: s.add_texts(["a"], ids=["1", "2"]), "equally long"),
        (lambda s: s.add_texts(["a"], ids=[""]), "non-empty string"),
        (lambda s: s.add_texts(["a"], [{"when": object()}]), "is a object, which cannot be stored"),
        (lambda s: s.add_texts(["a"], size=3), "unknown option 'size'"),
        (lambda s: s.add_texts(["\ud800"]), "lone surrogate"),
        (lambda s: s.similarity_search(""), "query is empty"),
        (lambda s: s.similarity_search("a", k=0), "k must be >= 1, got 0"),
        (lambda s: s.similarity_search("a", filter={"n": {"$near": 1}}), r"\$near"),
        (lambda s: s.similarity_search_by_vector([float("nan")] * 4), "NaN"),
        (lambda s: s.max_marginal_relevance_search("a", k=0), "k must be"),
        (lambda s: s.delete(), "reset_collection"),
        (lambda s: s.get_by_ids("1"), "wrap it"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_lost(call: Any, message: str) -> None:
    stored = store()
    stored.add_texts(["a"], ids=["kept"])
    with pytest.raises(InvalidInputError, match=message):
        call(stored)
    assert stored.get()["ids"] == ["kept"]


async def test_a_search_does_not_wait_for_a_long_write() -> None:
    class Slow(WordEmbeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            time.sleep(0.1)
            return super().embed_documents(texts)

    stored = ChromaVectorStore(embedding_function=Slow())
    stored.collection.write([], [])
    task = asyncio.create_task(stored.aadd_texts(["a"] * 20, batch_size=2))
    await asyncio.sleep(0.05)
    start = time.perf_counter()
    await stored.asimilarity_search("a")
    assert time.perf_counter() - start < 0.5
    assert not task.done()
    assert len(await task) == stored.collection.count() == 20


def test_limit_and_offset_count_among_ids_too() -> None:
    store = ChromaVectorStore.from_texts(["a", "b", "c"], WordEmbeddings(), ids=["1", "2", "3"])
    assert store.get(ids=["3", "1", "2"], limit=2)["ids"] == ["3", "1"]
    assert store.get(ids=["3", "1", "2"], limit=1, offset=1)["ids"] == ["1"]
    assert store.get(ids=["3", "1", "2"], offset=2)["ids"] == ["2"]
    store.close()


async def test_what_a_server_takes_is_asked_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a request of its own, which a slow server answers late."""
    stored, threads = store(), list[threading.Thread]()

    def asked(_: object) -> int:
        threads.append(threading.current_thread())
        return 1000

    monkeypatch.setattr(type(stored.collection), "max_batch", property(asked))
    await stored.aadd_texts(["a"])
    assert threads
    assert threading.current_thread() not in threads


def test_lists_of_different_lengths_store_nothing() -> None:
    """Two batches were stored before the end of the shorter list was reached."""
    store = ChromaVectorStore(embedding_function=WordEmbeddings())
    with pytest.raises(InvalidInputError, match="equally long, but one of them ends after 2499 items"):
        store.add_texts(["ab"] * 2_500, ids=[str(number) for number in range(2_499)])
    assert store.get()["ids"] == []


async def test_a_store_says_once_what_all_its_batches_cut(tiny_bi_encoder: Path) -> None:
    texts = ["rome " * (200 if number % 3 == 0 else 2) + str(number) for number in range(30)]
    store = ChromaVectorStore(embedding_function=BiEncoderEmbeddings(model=str(tiny_bi_encoder)))
    with pytest.warns(TruncationWarning, match="10 of 30 texts") as caught:
        store.add_texts(texts, batch_size=4)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(TruncationWarning, match="10 of 30 texts") as caught:
        await store.aadd_texts(texts, batch_size=4)
    assert len(caught) == 1
