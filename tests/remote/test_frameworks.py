"""Every class that takes a model's parameters takes a server's, writes them down, and keeps the key to itself."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumpd, dumps
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


DOCUMENTS = [Document(text) for text in TABLE]
NODES = [NodeWithScore(node=TextNode(text=text)) for text in TABLE]
# What each component makes of its server: texts and their scores, or the vectors of "abba" and "cab".
USES: dict[type, Callable[[Any], list[Any]]] = {
    CrossEncoderReranker: lambda made: [
        (document.page_content, document.metadata["relevance_score"])
        for document in made.compress_documents(DOCUMENTS, "q")
    ],
    CrossEncoderRerank: lambda made: [(n.text, n.score) for n in made.postprocess_nodes(NODES, query_str="q")],
    BiEncoderEmbeddings: lambda made: [*made.embed_documents(["abba"]), asyncio.run(made.aembed_query("cab"))],
    BiEncoderEmbedding: lambda made: [made.get_text_embedding("abba"), made.get_query_embedding("cab")],
}
SHAPES = ["fields", "object", "no name"]
WAYS: list[Callable[[Any], Any]] = [
    lambda made: type(made).from_dict(made.to_dict()) if of_llama_index(made) else load(json.loads(dumps(made))),
    lambda made: type(made).model_validate_json(made.model_dump_json()),
    lambda made: pickle.loads(pickle.dumps(made)),
    lambda made: made.model_copy() if of_llama_index(made) else copy.copy(made),
]


def of_llama_index(made: Any) -> bool:
    return isinstance(made, (CrossEncoderRerank, BiEncoderEmbedding))


@pytest.mark.parametrize(
    ("kind", "shape", "way"),
    [  # pairwise: every way with each kind and with each shape
        (kind, shape, WAYS[(number + (shape != "fields") + place) % len(WAYS)])
        for (number, kind), shape in itertools.product(enumerate(USES), SHAPES)
        for place in (0, 2)
        if (kind, shape) != (BiEncoderEmbedding, "object")
    ],
)
def test_a_component_is_written_down_without_its_key_and_read_again(
    kind: Any, shape: str, way: Callable[[Any], Any], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = kind in (CrossEncoderReranker, CrossEncoderRerank)
    server: InferenceServer = request.getfixturevalue("reranking" if ranks else "embedding")
    options = {"max_concurrency": 3} if ranks else {"metric": "dot", "normalize": False}
    settings: dict[str, Any] = {"endpoint": server.url, "api_key": KEY, **options}
    own = {"top_n": 2} if ranks else {}
    if shape == "object":
        made = kind(model=(CrossEncoder if ranks else BiEncoder)(**settings), **own)
    else:
        made = kind(**({"model": "some/model"} if shape == "fields" else {}), **settings, **own)
    found = USES[kind](made)
    if ranks:
        assert [text for text, _ in found] == ["high", "middle"]
    else:
        assert found == [[2.0, 2.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    assert KEY not in shown(made)
    monkeypatch.setenv("RETRIEVE_RERANK_API_KEY", KEY)
    monkeypatch.setenv("RETRIEVE_RERANK_ENDPOINT", server.url)
    again = way(made)
    assert USES[kind](again) == found
    if not ranks:
        assert again.encoder.settings == made.encoder.settings
    elif kind is CrossEncoderRerank:
        assert again.max_concurrency == made.max_concurrency


def test_another_server_by_a_copy(reranking: InferenceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with inference_server("vllm", scorer=TableScorer({text: -logit for text, logit in TABLE.items()})) as other:
        made = CrossEncoderReranker(endpoint=reranking.url, api_key=KEY, top_n=1)
        moved = made.model_copy(update={"endpoint": other.url, "api_key": None})
        assert [document.page_content for document in moved.compress_documents(DOCUMENTS, "q")] == ["low"]
        assert [document.page_content for document in made.compress_documents(DOCUMENTS, "q")] == ["high"]


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
        documents = made.compress_documents(DOCUMENTS, "q")
    assert [document.page_content for document in documents] == list(TABLE)
    assert KEY not in str([str(one.message) for one in warned]) + str(documents)
