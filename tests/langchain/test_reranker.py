from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker as StockReranker
from langchain_core.documents import Document

from retrieve_rerank import CrossEncoder, DegradedWarning, InvalidInputError
from retrieve_rerank.langchain import CrossEncoderReranker
from tests.langchain.stubs import ListRetriever, TableCrossEncoder

SCORES = {"low": -2.0, "high": 3.0, "middle": 0.0}


def documents() -> list[Document]:
    return [Document(text, id=f"id-{text}", metadata={"from": text}) for text in SCORES]


def reranker(**options: Any) -> CrossEncoderReranker:
    return CrossEncoderReranker(model=TableCrossEncoder(SCORES), **options)


@pytest.mark.parametrize("answer", [np.array, lambda scores: map(float, scores), tuple])
def test_whatever_a_cross_encoder_returns_for_a_list(answer: Any) -> None:
    """C7: the stock cross-encoder returns an array, or a map object."""
    result = CrossEncoderReranker(model=TableCrossEncoder(SCORES, answer)).compress_documents(documents(), "q")
    assert [document.id for document in result] == ["id-high", "id-middle", "id-low"]


def test_configuration_can_be_written_down(tiny_cross_encoder: Path) -> None:
    """C9: the stock class fails to serialise."""
    dumped = CrossEncoderReranker(model=str(tiny_cross_encoder), top_n=3).model_dump_json()
    assert json.loads(dumped)["top_n"] == 3
    assert CrossEncoderReranker.model_validate_json(dumped).top_n == 3


def test_inside_langchain_classic(tiny_cross_encoder: Path) -> None:
    """Our compressor in its retriever, and our cross-encoder in its compressor."""
    base = ListRetriever(documents=documents(), k=3)
    ours = ContextualCompressionRetriever(base_compressor=reranker(top_n=2), base_retriever=base)
    assert [document.id for document in ours.invoke("q")] == ["id-high", "id-middle"]
    assert ours.invoke("q")[0].metadata["relevance_score"] > 0.9

    model = CrossEncoder(tiny_cross_encoder)
    stock = StockReranker(model=model.as_langchain(), top_n=3).compress_documents(documents(), "paris")
    own = CrossEncoderReranker(model=model).compress_documents(documents(), "paris")
    assert [document.id for document in stock] == [document.id for document in own]


def test_as_langchain_keeps_the_order_of_mixed_pairs(tiny_cross_encoder: Path) -> None:
    model = CrossEncoder(tiny_cross_encoder, precision="float32")
    pairs = [("paris", "rome"), ("bread", "word"), ("paris", "capital"), ("paris", "rome")]
    scores = model.as_langchain().score(pairs)
    assert scores == [pytest.approx(float(model.score(query, [text])[0]), abs=1e-5) for query, text in pairs]
    assert {type(score) for score in scores} == {float}


def test_template() -> None:
    model = TableCrossEncoder({"t1: low": 2.0, "t2: high": 1.0})
    given = [Document("low", metadata={"title": "t1"}), Document("high", metadata={"title": "t2"})]
    compressor = CrossEncoderReranker(model=model, text_template="{title}: {page_content}")
    assert [document.page_content for document in compressor.compress_documents(given, "q")] == ["low", "high"]
    with pytest.raises(InvalidInputError, match="'title'"):
        compressor.compress_documents([Document("x", id="7", metadata={"name": "y"})], "q")


@pytest.mark.parametrize("template", ["{}", "{page_content", "{page_content.upper}", "{0}"])
def test_a_template_that_cannot_be_filled_is_refused_at_once(template: str) -> None:
    with pytest.raises(ValueError, match="text_template"):
        reranker(text_template=template)


def test_a_runnable_says_what_it_wants() -> None:
    with pytest.raises(InvalidInputError, match="expected a mapping with 'query' and 'documents'"):
        reranker().as_runnable().invoke({"question": "q"})  # type: ignore[typeddict-item]
    with pytest.raises(InvalidInputError, match="got NoneType"):
        reranker().compress_documents(None, "q")  # type: ignore[arg-type]


def test_settings_cannot_change_under_the_model() -> None:
    other = TableCrossEncoder({text: -score for text, score in SCORES.items()})
    changed = reranker().model_copy(update={"model": other})
    assert [document.id for document in changed.compress_documents(documents(), "q")] == [
        "id-low",
        "id-middle",
        "id-high",
    ]
    with pytest.raises(ValueError, match="frozen"):
        reranker().top_n = 2


async def test_options_of_a_call_of_the_runnable() -> None:
    """As any runnable's, and none is dropped."""
    step, job = reranker().as_runnable(), {"query": "q", "documents": documents()}
    calls: list[Any] = [step.invoke(job, top_n=1), await step.ainvoke(job, top_n=1), step.bind(top_n=1).invoke(job)]
    calls += [step.batch([job], top_n=1)[0], step.invoke(job, score_threshold=0.9, time_budget=60, on_error="raise")]
    assert [[document.id for document in call] for call in calls] == [["id-high"]] * 5
    assert len(step.invoke(job, top_n=None)) == 3
    broken: Any = CrossEncoderReranker(model=TableCrossEncoder({})).as_runnable()
    with pytest.warns(DegradedWarning):
        assert len(broken.invoke(job, on_error="retrieval_order")) == 3
    for wrong in ({"top_k": 1}, {"text_template": "{page_content}"}, {"top_n": 0}, {"on_error": "skip"}):
        with pytest.raises(InvalidInputError, match=next(iter(wrong))):
            step.invoke(job, **wrong)
        with pytest.raises(InvalidInputError, match=next(iter(wrong))):
            await step.ainvoke(job, **wrong)


class Lengths:
    """Scores by our protocol, and is no class of LangChain's."""

    def score(self, query: str, texts: Any) -> Any:
        return np.array([len(text) for text in texts]) / 10


async def test_any_scorer_is_a_model() -> None:
    own = CrossEncoderReranker(model=Lengths(), scores="probabilities")
    result = own.compress_documents(documents(), "q")
    assert [document.page_content for document in result] == ["middle", "high", "low"]
    assert [document.metadata["relevance_score"] for document in result] == pytest.approx([0.6, 0.4, 0.3])
    assert await own.acompress_documents(documents(), "q") == result
    with pytest.raises(ValueError, match="Lengths in it, which cannot be written down"):
        CrossEncoderReranker.model_validate_json(own.model_dump_json())
    with pytest.raises(ValueError, match="model"):
        CrossEncoderReranker(model=3)


@pytest.mark.parametrize("template", ["{n:03d}", "{none:03d}", "{n:{n.x}}", "{n!x}"])
def test_a_format_that_a_value_has_not(template: str) -> None:
    given = [Document("low", id="7", metadata={"n": "one", "none": None})]
    with pytest.raises(InvalidInputError, match=r"cannot be filled from document '7'|text_template"):
        reranker(text_template=template).compress_documents(given, "q")


def test_a_score_of_numpys_that_a_document_carries_becomes_a_plain_one() -> None:
    for score, expected in ((np.float32(0.5), 0.5), (2, 2.0), (True, True), ("high", "high")):
        kept = reranker().compress_documents([Document("low", metadata={"retrieval_score": score})], "q")[0]
        assert kept.metadata["retrieval_score"] == expected
        assert type(kept.metadata["retrieval_score"]) is type(expected)
