from __future__ import annotations

from typing import Any, ClassVar

import pytest
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore

from retrieve_rerank import DegradedWarning, InvalidInputError
from retrieve_rerank.langchain import (
    BM25Retriever,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderReranker,
    RetrieveRerankRetriever,
)
from tests.langchain.stubs import ListRetriever, TableCrossEncoder, WordEmbeddings, ids

TEXTS = ["a a a", "a a b", "c", "b b a"]
SCORES = {"a a a": -1.0, "a a b": 2.0, "c": 4.0, "b b a": 1.0}


def store() -> ChromaVectorStore:
    metadatas = [{"n": number} for number in range(4)]
    return ChromaVectorStore.from_texts(TEXTS, WordEmbeddings(), metadatas, ids=["0", "1", "2", "3"])


def pipeline(base: Any, **options: Any) -> RetrieveRerankRetriever:
    reranker = CrossEncoderReranker(model=TableCrossEncoder(SCORES))
    return RetrieveRerankRetriever(base_retriever=base, reranker=reranker, **options)


def test_options_per_call() -> None:
    retriever = ChromaRetriever(vectorstore=store(), k=3, filter={"n": {"$lt": 3}}, score_threshold=0.5)
    assert ids(retriever.invoke("a")) == ["0", "1"]
    assert ids(retriever.invoke("a", k=1)) == ["0"]
    assert ids(retriever.invoke("a", filter={"n": 1})) == ["1"]
    assert ids(retriever.invoke("a", score_threshold=-1.0)) == ["0", "1", "2"]
    assert ids(retriever.invoke("a", where_document={"$contains": "b"})) == ["1"]
    with pytest.raises(TypeError, match="filtre"):
        retriever.invoke("a", filtre={})


def test_scores_of_both_stages() -> None:
    best = pipeline(store()).invoke("a")[0]
    assert best.metadata == {
        "n": 2,
        "relevance_score": pytest.approx(0.98201379, abs=1e-8),
        "rerank_logit": 4.0,
        "rerank_rank": 1,
        "retrieval_rank": 4,
        "retrieval_score": pytest.approx(0.0, abs=1e-6),
    }
    assert {type(value) for value in best.metadata.values()} == {int, float}


def test_options_of_a_call_reach_their_stage() -> None:
    retriever = pipeline(store(), top_n=3)
    assert ids(retriever.invoke("a", top_n=1)) == ["2"]
    assert ids(retriever.invoke("a", filter={"n": {"$lt": 2}})) == ["1", "0"]
    assert ids(retriever.invoke("a", score_threshold=0.9)) == ["2"]
    assert ids(pipeline(store(), score_threshold=0.9).invoke("a", score_threshold=0.0)) == ["2", "1", "3", "0"]
    with pytest.raises(InvalidInputError, match="ListRetriever takes no options at invoke, got 'filter'"):
        pipeline(ListRetriever(documents=[])).invoke("a", filter={"n": 1})
    for wrong in ({"top_n": 0}, {"fetch_k": -1}, {"score_threshold": 2}):
        with pytest.raises(InvalidInputError, match=next(iter(wrong))):
            retriever.invoke("a", **wrong)


def test_scores_of_an_earlier_search_are_not_taken_for_this_ones() -> None:
    stored = InMemoryVectorStore(WordEmbeddings())
    earlier = {"retrieval_rank": 99, "retrieval_score": 0.99, "rerank_rank": 7, "relevance_score": 0.5}
    stored.add_documents([Document(text, id=text, metadata=earlier) for text in ("a a a", "a a b")])
    found = pipeline(stored).invoke("a")
    assert [(document.id, document.metadata["retrieval_rank"]) for document in found] == [("a a b", 2), ("a a a", 1)]
    assert [document.metadata["retrieval_score"] for document in found] == pytest.approx([0.8, 2 / 5**0.5], abs=0.02)
    diverse = pipeline(stored.as_retriever(search_type="mmr")).invoke("a")  # which has no scores
    assert all("retrieval_score" not in document.metadata for document in diverse)


class Broken:
    """Scores by our own protocol, or would."""

    def score(self, query: str, texts: Any) -> Any:
        raise ConnectionError("no server")


async def test_what_happens_on_an_error_can_be_said_at_a_call() -> None:
    lenient = RetrieveRerankRetriever(base_retriever=store(), reranker=Broken(), on_error="retrieval_order")
    strict = RetrieveRerankRetriever(base_retriever=store(), reranker=Broken())
    option: Any = {"on_error": "retrieval_order"}
    with pytest.warns(DegradedWarning, match="no server"):
        found = [strict.invoke("a", **option), *strict.batch(["a", "a"], **option)]
    with pytest.warns(DegradedWarning, match="no server"):
        found += [await strict.ainvoke("a", **option), *await strict.abatch(["a"], **option)]
    assert [ids(documents) for documents in found] == [["0", "1", "3", "2"]] * 5
    with pytest.raises(ConnectionError):
        lenient.invoke("a", on_error="raise")
    with pytest.raises(InvalidInputError, match="on_error must be 'raise' or 'retrieval_order', got 'skip'"):
        strict.invoke("a", on_error="skip")


@pytest.mark.parametrize(
    "option", ["long_passages", "max_windows", "text_template", "scores", "mmr_lambda", "model", "reranker"]
)
async def test_a_components_setting_is_not_dropped_as_an_option(option: str) -> None:
    """Stores that take any keyword drop it without a word."""
    stored = InMemoryVectorStore.from_texts(TEXTS, WordEmbeddings())
    for base in (stored, stored.as_retriever(), stored.as_retriever() | RunnableLambda(lambda found: found), store()):
        with pytest.raises(InvalidInputError, match=f"'{option}'"):
            pipeline(base).invoke("a", **{option: "x"})
        with pytest.raises(InvalidInputError, match=f"'{option}'"):
            await pipeline(base).ainvoke("a", **{option: "x"})
    with pytest.raises(InvalidInputError, match=f"'{option}'"):
        pipeline(stored.as_retriever().bind(**{option: "x"})).invoke("a")


def test_an_unknown_option_is_answered_with_those_there_are() -> None:
    takes = "'fetch_k', 'filter', 'k', 'lambda_mult', 'score_threshold', 'where_document'$"
    for base in (store(), ChromaRetriever(vectorstore=store())):
        with pytest.raises(InvalidInputError, match=rf"ChromaRetriever has no option 'filtre' at invoke.*{takes}"):
            pipeline(base).invoke("a", filtre={})
    with pytest.raises(
        InvalidInputError, match=r"BM25Retriever has no option 'filtre'.*'filter', 'k', 'where_document'$"
    ):
        pipeline(BM25Retriever.from_texts(TEXTS)).invoke("a", filtre={})


def test_an_option_that_a_retriever_names_itself_reaches_it() -> None:
    class Named(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any, model: str = "", **rest: Any) -> Any:
            return [Document("c", id=f"{model} {sorted(rest)}")]

    assert ids(pipeline(Named(), fetch_k=1).invoke("a", model="m", anything=1)) == ["m ['anything']"]


def test_made_with_all_settings() -> None:
    texts = ["a a a", "a a a", "a b"]
    for made in (
        ChromaRetriever.from_texts(texts, WordEmbeddings(), k=2, lambda_mult=0.0, fetch_k=3),
        ChromaRetriever.from_documents([Document(text) for text in texts], WordEmbeddings(), k=2, lambda_mult=0.0),
    ):
        assert [document.page_content for document in made.invoke("a")] == ["a a a", "a b"]
    made = ChromaRetriever.from_texts(["a", "b"], WordEmbeddings(), ids=["1", "2"], lambda_mult=0.3, fetch_k=7)
    assert (made.fetch_k, made.vectorstore.metric) == (7, "cosine")
    made.add_documents([Document("a b", id="3")])
    made.delete(["1"])
    assert set(ids(made.invoke("a"))) == {"2", "3"}


class Down(BaseRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        raise ConnectionError("no server")


async def test_the_depth_and_the_scores_get_through_retries_and_fallbacks() -> None:
    texts = ["a a a", *["a a b"] * 8, "c"]
    stored = InMemoryVectorStore.from_texts(texts, WordEmbeddings(), ids=[str(number) for number in range(10)])
    plain = stored.as_retriever()
    expected = pipeline(plain, top_n=10).invoke("a")
    assert len(expected) == 10
    wrapped: list[Any] = [
        plain.with_retry(stop_after_attempt=2),
        plain.with_fallbacks([Down()]),
        Down().with_fallbacks([plain]),
        Down().with_retry(stop_after_attempt=1).with_fallbacks([plain.with_retry()]).with_config(tags=["x"]),
    ]
    for base in wrapped:
        before = repr(base)
        retriever = pipeline(base, top_n=10)
        assert retriever.invoke("a") == await retriever.ainvoke("a") == expected
        assert retriever.batch(["a"]) == [expected]
        assert all("retrieval_rank" in document.metadata for document in retriever.invoke("a", rewrites=["b"]))
        assert repr(base) == before


def test_fallbacks_that_leave_their_scores_elsewhere() -> None:
    class Scored(Down):
        score_key: ClassVar[str] = "bm25"
        broken: bool = False
        k: int = 1

        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            if self.broken:
                raise ConnectionError("no server")
            return [Document("c", metadata={"bm25": 7, "retrieval_score": 0.5})]

    for broken, expected in ((False, 7.0), (True, pytest.approx(0.0, abs=1e-6))):
        base = Scored(broken=broken).with_fallbacks([store().as_retriever()])
        assert pipeline(base).invoke("a")[0].metadata["retrieval_score"] == expected
    with pytest.raises(InvalidInputError, match="Scored takes no options at invoke, got 'filter'"):
        pipeline(store().as_retriever().with_fallbacks([Scored()])).invoke("a", filter={"n": 1})
    with pytest.raises(InvalidInputError, match="Scored takes no options at invoke, got 'filter'"):
        pipeline(store().as_retriever().with_fallbacks([Scored()]).bind(filter={"n": 1})).invoke("a")
