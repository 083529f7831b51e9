"""Every class that takes a model's parameters takes a server's, writes them down, and keeps the key to itself."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumpd
from llama_index.core.schema import NodeWithScore, TextNode

from retrieve_rerank import BiEncoder, CrossEncoder, DegradedWarning
from retrieve_rerank.langchain import BiEncoderEmbeddings, CrossEncoderReranker, load
from retrieve_rerank.llama_index import BiEncoderEmbedding, CrossEncoderRerank
from retrieve_rerank.testing import TableScorer
from tests.inference_server import InferenceServer, inference_server

KEY = "key-that-is-secret"
TABLE = {"low": -2.0, "high": 3.0, "middle": 0.0}


@pytest.fixture
def reranking() -> Iterator[InferenceServer]:
    with inference_server("tei", scorer=TableScorer(TABLE), key=KEY) as server:
        yield server


@pytest.fixture
def embedding() -> Iterator[InferenceServer]:
    with inference_server("tei", task="embed", key=KEY) as server:
        yield server


def shown(thing: Any) -> str:
    """Everything that a component may be seen as."""
    texts = [repr(thing), str(thing), str(pickle.dumps(thing))]
    ways = ("model_dump", "model_dump_json", "to_dict", "to_json", "to_payload")
    texts += [str(getattr(thing, name)()) for name in ways if hasattr(thing, name)]
    if hasattr(thing, "lc_attributes"):
        texts.append(json.dumps(dumpd(thing)))
    return " ".join(texts)


WAYS_LANGCHAIN: list[Callable[[Any], Any]] = [
    lambda thing: load(json.loads(json.dumps(dumpd(thing)))),
    lambda thing: type(thing).model_validate_json(thing.model_dump_json()),
    lambda thing: pickle.loads(pickle.dumps(thing)),
    copy.copy,
]
WAYS_LLAMA_INDEX: list[Callable[[Any], Any]] = [
    lambda thing: type(thing).from_dict(thing.to_dict()),
    lambda thing: type(thing).model_validate_json(thing.model_dump_json()),
    lambda thing: pickle.loads(pickle.dumps(thing)),
    lambda thing: thing.model_copy(),
]


@pytest.mark.parametrize("way", WAYS_LANGCHAIN)
@pytest.mark.parametrize("shape", ["fields", "object", "no name"])
def test_langchain_reranker(
    reranking: InferenceServer, shape: str, way: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [Document(text) for text in TABLE]
    if shape == "object":
        made = CrossEncoderReranker(model=CrossEncoder(endpoint=reranking.url, api_key=KEY, max_concurrency=3), top_n=2)
    else:
        given = {} if shape == "no name" else {"model": "some/model"}
        made = CrossEncoderReranker(endpoint=reranking.url, api_key=KEY, top_n=2, **given)
    best = made.compress_documents(documents, "q")
    assert [document.page_content for document in best] == ["high", "middle"]
    assert asyncio.run(made.acompress_documents(documents, "q")) == best
    assert KEY not in shown(made)
    monkeypatch.setenv("RETRIEVE_RERANK_API_KEY", KEY)
    monkeypatch.setenv("RETRIEVE_RERANK_ENDPOINT", reranking.url)
    assert way(made).compress_documents(documents, "q") == best


@pytest.mark.parametrize("way", WAYS_LANGCHAIN)
@pytest.mark.parametrize("shape", ["fields", "object", "no name"])
def test_langchain_embeddings(
    embedding: InferenceServer, shape: str, way: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"endpoint": embedding.url, "api_key": KEY, "metric": "dot", "normalize": False}
    if shape == "object":
        made = BiEncoderEmbeddings(model=BiEncoder(**settings))
    else:
        made = BiEncoderEmbeddings(**settings, **({} if shape == "no name" else {"model": "some/model"}))
    vectors = made.embed_documents(["abba", "cab"])
    assert vectors == [[2.0, 2.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    assert asyncio.run(made.aembed_query("cab")) == vectors[1]
    assert KEY not in shown(made)
    monkeypatch.setenv("RETRIEVE_RERANK_API_KEY", KEY)
    monkeypatch.setenv("RETRIEVE_RERANK_ENDPOINT", embedding.url)
    again = way(made)
    assert again.embed_documents(["abba", "cab"]) == vectors
    assert again.encoder.settings == made.encoder.settings


@pytest.mark.parametrize("way", WAYS_LLAMA_INDEX)
@pytest.mark.parametrize("shape", ["fields", "object", "no name"])
def test_llama_index_reranker(
    reranking: InferenceServer, shape: str, way: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TABLE]
    if shape == "object":
        made = CrossEncoderRerank(CrossEncoder(endpoint=reranking.url, api_key=KEY, max_concurrency=3), top_n=2)
    else:
        name = () if shape == "no name" else ("some/model",)
        made = CrossEncoderRerank(*name, endpoint=reranking.url, api_key=KEY, top_n=2, server_scores="logits")
    best = made.postprocess_nodes(nodes, query_str="q")
    assert [node.text for node in best] == ["high", "middle"]
    assert KEY not in shown(made)
    monkeypatch.setenv("RETRIEVE_RERANK_API_KEY", KEY)
    monkeypatch.setenv("RETRIEVE_RERANK_ENDPOINT", reranking.url)
    again = way(made)
    assert [node.score for node in again.postprocess_nodes(nodes, query_str="q")] == [node.score for node in best]
    assert again.max_concurrency == made.max_concurrency


@pytest.mark.parametrize("way", WAYS_LLAMA_INDEX)
@pytest.mark.parametrize("shape", ["fields", "no name"])
def test_llama_index_embeddings(
    embedding: InferenceServer, shape: str, way: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = () if shape == "no name" else ("some/model",)
    made = BiEncoderEmbedding(*name, endpoint=embedding.url, api_key=KEY, metric="dot", normalize=False)
    assert made.get_text_embedding("abba") == [2.0, 2.0, 0.0, 1.0]
    assert KEY not in shown(made)
    monkeypatch.setenv("RETRIEVE_RERANK_API_KEY", KEY)
    monkeypatch.setenv("RETRIEVE_RERANK_ENDPOINT", embedding.url)
    again = way(made)
    assert again.get_query_embedding("cab") == [1.0, 1.0, 1.0, 1.0]
    assert again.encoder.settings == made.encoder.settings


def test_another_server_by_a_copy(reranking: InferenceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [Document(text) for text in TABLE]
    with inference_server("vllm", scorer=TableScorer({text: -logit for text, logit in TABLE.items()})) as other:
        made = CrossEncoderReranker(endpoint=reranking.url, api_key=KEY, top_n=1)
        moved = made.model_copy(update={"endpoint": other.url, "api_key": None})
        assert [document.page_content for document in moved.compress_documents(documents, "q")] == ["low"]
        assert [document.page_content for document in made.compress_documents(documents, "q")] == ["high"]


@pytest.mark.parametrize("kind", [BiEncoderEmbeddings, CrossEncoderReranker, BiEncoderEmbedding, CrossEncoderRerank])
@pytest.mark.parametrize("wrong", [{"endpoint": f"http://me:{KEY}@host"}, {"endpoint": "nowhere", "api_key": KEY}])
def test_what_is_wrong_is_said_without_the_key(kind: type, wrong: dict[str, Any]) -> None:
    for make in (lambda: kind(**wrong), lambda: kind.model_validate(wrong)):  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="endpoint") as caught:
            make()
        assert KEY not in str(caught.value)


def test_a_failure_in_a_trace_has_no_key(reranking: InferenceServer, quick: None) -> None:
    reranking.broken = "500"
    made = CrossEncoderReranker(endpoint=reranking.url, api_key=KEY, on_error="retrieval_order")
    with pytest.warns(DegradedWarning, match="answered 500") as warned:
        documents = made.compress_documents([Document(text) for text in TABLE], "q")
    assert [document.page_content for document in documents] == list(TABLE)
    assert KEY not in str([str(one.message) for one in warned]) + str(documents)
