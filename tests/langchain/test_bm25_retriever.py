"""BM25 as a LangChain retriever, in the place of langchain-community's."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumpd
from langchain_core.runnables import ConfigurableField

from retrieve_rerank import InvalidInputError
from retrieve_rerank.langchain import (
    BM25Retriever,
    CrossEncoderReranker,
    RetrieveRerankRetriever,
    load,
)
from tests.langchain.stubs import TableCrossEncoder, ids

TEXTS = ["alpha alpha", "alpha beta", "gamma", "Running alphas"]
METADATAS: list[dict[str, Any]] = [{"n": 0}, {"n": 1, "deep": {"a": [None]}}, {"n": 2}, {"n": 3}]
IDS = ["a", "b", "c", "d"]


def retriever(**options: Any) -> BM25Retriever:
    return BM25Retriever.from_texts(TEXTS, METADATAS, IDS, **options)


def test_options_per_call() -> None:
    made = retriever(k=2, filter={"n": {"$ne": 0}})
    assert ids(made.invoke("alpha")) == ["b", "d"]
    assert ids(made.invoke("alpha", k=1)) == ["b"]
    assert ids(made.invoke("alpha", filter={"n": 0})) == ["a"]
    assert ids(made.invoke("alpha", filter={})) == ["a", "b"]
    assert ids(made.invoke("alpha", where_document={"$contains": "Run"})) == ["d"]
    pipeline = RetrieveRerankRetriever(base_retriever=made, reranker=TableCrossEncoder({"alpha beta": 0.0}))
    assert ids(pipeline.invoke("alpha", filter={"n": 1})) == ["b"]
    assert made.invoke("unknown") == made.invoke("the") == []
    with pytest.raises(TypeError, match="filtre"):
        made.invoke("alpha", filtre={})
    for options in ({"k": 0}, {"filter": {"n": {"$foo": 1}}}):
        with pytest.raises(InvalidInputError):
            made.invoke("alpha", **options)
    with pytest.raises(InvalidInputError, match="query"):
        made.invoke(" ")


def test_documents_get_ids_and_stay_as_they_are(tmp_path: Path) -> None:
    made = BM25Retriever(k=10, path=tmp_path)
    documents = [Document("alpha", id="x", metadata={"n": 1}), Document("alpha beta")]
    new = made.add_documents(iter(documents))
    assert new[0] == "x"
    assert documents == [Document("alpha", id="x", metadata={"n": 1}), Document("alpha beta")]  # not modified
    assert set(ids(made.invoke("alpha"))) == set(new)
    assert made.add_documents([]) == []
    assert ids(BM25Retriever.from_documents([Document("delta", id="e")], path=tmp_path).invoke("delta")) == ["e"]
    assert made._index.count() == 3
    with pytest.raises(InvalidInputError, match="equally long"):
        BM25Retriever.from_texts(["a", "b"], [{}])
    for unknown in ("docs", "vectorizer"):
        with pytest.raises(InvalidInputError, match=unknown):
            BM25Retriever(**{unknown: None})  # type: ignore[arg-type]


def test_it_can_be_written_down_and_read_back(tmp_path: Path) -> None:
    made = retriever(path=tmp_path, k=2, language=None, filter={"n": {"$gt": 0}}, bm25_params={"k1": 0.9})
    again = load(json.loads(json.dumps(dumpd(made))))
    assert isinstance(again, BM25Retriever)
    assert (again.k, again.language, again.filter, again.k1) == (2, None, {"n": {"$gt": 0}}, 0.9)
    assert again.invoke("alpha") == made.invoke("alpha") != []
    pipeline = RetrieveRerankRetriever(base_retriever=made, reranker=CrossEncoderReranker(model="some/model"))
    assert load(dumpd(pipeline)).base_retriever.invoke("alpha") == made.invoke("alpha")
    for lost in (retriever(), retriever(path=tmp_path / "own", preprocess_func=str.split)):
        with pytest.raises(InvalidInputError, match="BM25Retriever"):
            load(dumpd(lost))


def test_a_copy_shares_the_index_unless_it_is_of_another(tmp_path: Path) -> None:
    made = retriever(k=1)
    copied = made.model_copy(update={"k": 3})
    made.add_documents([Document("alpha alpha alpha", id="new")])
    assert (len(copied.invoke("alpha")), made.k) == (3, 1)
    assert "new" in ids(copied.invoke("alpha"))
    assert made.model_copy(update={"path": str(tmp_path)}).invoke("alpha") == []


# In the place of langchain-community's


def incumbent(*arguments: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from langchain_community.retrievers import BM25Retriever as Incumbent

        return Incumbent.from_texts(*arguments, **options)


def test_code_for_the_incumbent_runs_here() -> None:
    """The same calls, by position and by name; both return four documents unless told otherwise."""
    texts = ["alpha one", "alpha two two", "alpha three", "beta", "alpha four four four", "alpha five"]
    metadatas = [{"n": number} for number in range(6)]
    names = [str(number) for number in range(6)]
    for make in (incumbent, BM25Retriever.from_texts):
        made = make(texts, metadatas, names)
        assert len(made.invoke("alpha")) == 4
        assert made.invoke("two")[0].id == "1"
        made.k = 2
        assert len(made.invoke("alpha")) == 2
    made = BM25Retriever.from_documents([Document("alpha", id="x")], k=3)
    assert (made.k, made.invoke("alpha")[0].id) == (3, "x")


def test_a_preprocess_func_cuts_texts_as_in_the_incumbent() -> None:
    texts = ["The-alpha", "the-beta", "the-gamma", "delta"]
    calls: list[str] = []

    def cut(text: str) -> list[str]:
        calls.append(text)
        return text.split("-")

    theirs = incumbent(texts, preprocess_func=cut).invoke("The")
    ours = BM25Retriever.from_texts(texts, preprocess_func=cut).invoke("The")
    assert ours[0].page_content == theirs[0].page_content == "The-alpha"
    assert len(ours) == 1  # "the" is another word, and what scores 0 is not found
    assert "The" in calls


def test_parameters_of_the_formula() -> None:
    plain, flat = retriever().invoke("alpha"), retriever(bm25_params={"b": 0.0, "k1": 0}).invoke("alpha")
    assert len({document.metadata["retrieval_score"] for document in plain}) > 1
    assert len({document.metadata["retrieval_score"] for document in flat}) == 1
    with pytest.raises(InvalidInputError, match=r"k1 and b, not 'epsilon'"):
        retriever(bm25_params={"epsilon": 0.25})
    with pytest.raises(InvalidInputError, match="bm25_variant"):
        BM25Retriever.from_texts(TEXTS, bm25_variant="plus")  # type: ignore[call-arg]


def test_configurable_fields_keep_the_documents(tmp_path: Path) -> None:
    """LangChain makes the retriever anew, of its fields alone."""
    configurable = retriever().configurable_fields(k=ConfigurableField(id="k"))
    assert len(configurable.invoke("alpha")) == 3
    assert len(configurable.with_config(configurable={"k": 1}).invoke("alpha")) == 1
    retriever(path=str(tmp_path / "other")).close()
    other = retriever().configurable_fields(path=ConfigurableField(id="path"))
    assert len(other.with_config(configurable={"path": str(tmp_path / "none")}).invoke("alpha")) == 0
    assert len(other.with_config(configurable={"path": str(tmp_path / "other")}).invoke("alpha")) == 3
