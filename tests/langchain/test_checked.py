"""What a component cannot be made of is refused in this package's words, and without showing what was given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank import InvalidInputError
from retrieve_rerank.langchain import (
    BiEncoderEmbeddings,
    BM25Retriever,
    ChromaRetriever,
    CrossEncoderReranker,
    HybridRetriever,
    RetrieveRerankRetriever,
)

CALLS: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (CrossEncoderReranker, {"model": "x", "top_n": 0}, "^CrossEncoderReranker: top_n must be >= 1, got 0$"),
    (CrossEncoderReranker, {"model": "x", "tpo_n": 3}, "no argument 'tpo_n': it takes .*model, top_n, "),
    (BM25Retriever, {"k": 0}, "^BM25Retriever: k must be >= 1, got 0$"),
    (HybridRetriever, {"retrievers": []}, "^HybridRetriever: retrievers is empty; give at least one$"),
    (HybridRetriever, {"retrievers": [BM25Retriever()], "c": 60}, "no argument 'c': it is called rrf_k"),
    (ChromaRetriever, {"vectorstore": "db"}, "^ChromaRetriever: vectorstore: .*ChromaVectorStore, got str$"),
    (
        RetrieveRerankRetriever,
        {"base_retriever": 2, "base_compressor": 1},
        "vector store, got int; 'reranker' is missing; there is no argument 'base_compressor': it is called reranker",
    ),
    (BiEncoderEmbeddings, {"model_name": "x", "model_kwargs": {"device": "cpu"}}, "'model_kwargs': .* device="),
]


@pytest.mark.parametrize(("made", "arguments", "message"), CALLS)
def test_arguments_that_cannot_be_used(made: Callable[..., Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as raised:
        made(**arguments)
    assert "pydantic" not in str(raised.value)


def test_what_was_given_is_not_shown() -> None:
    with pytest.raises(InvalidInputError) as raised:
        BiEncoderEmbeddings(model="x", api_key=["s3cret"])  # type: ignore[arg-type]
    assert "s3cret" not in str(raised.value)
    assert "api_key" in str(raised.value)


def test_a_folder_for_the_cache_may_be_a_path(tmp_path: Path) -> None:
    assert BiEncoderEmbeddings(model="x", cache_folder=tmp_path).cache_folder == str(tmp_path)  # type: ignore[arg-type]
