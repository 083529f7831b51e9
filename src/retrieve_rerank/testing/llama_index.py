"""The contracts for LlamaIndex's kinds of component."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from typing import Any

from retrieve_rerank.errors import require

require("llama_index.core", extra="llama-index")

from llama_index.core.base.embeddings.base import BaseEmbedding  # noqa: E402 - after the guard
from llama_index.core.bridge.pydantic import PrivateAttr  # noqa: E402
from llama_index.core.schema import NodeWithScore, TextNode  # noqa: E402
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters, VectorStoreQuery  # noqa: E402

from retrieve_rerank.testing.reranker import RerankerContract  # noqa: E402
from retrieve_rerank.testing.retriever import RetrieverContract  # noqa: E402
from retrieve_rerank.testing.running import Answer  # noqa: E402
from retrieve_rerank.testing.vector_store import VectorStoreContract  # noqa: E402
from retrieve_rerank.types import Encoder, Passage  # noqa: E402


class EncoderEmbedding(BaseEmbedding):
    """An encoder as LlamaIndex's embedding model.

    Example:
        >>> from retrieve_rerank.testing import EncoderEmbedding, LetterEncoder
        >>> EncoderEmbedding(LetterEncoder()).get_query_embedding("abba")
        [2.0, 2.0, 0.0, 1.0]
    """

    _encoder: Encoder = PrivateAttr()

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(model_name=str(encoder.fingerprint.get("model", "encoder")))
        self._encoder = encoder

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self._encoder.encode_queries([query])[0].tolist()
        return vector

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._encoder.encode_documents(texts).tolist()
        return vectors


class LlamaIndexRerankerContract(RerankerContract):
    """`RerankerContract` for a `BaseNodePostprocessor`.

    The score is that of the `NodeWithScore`. The nodes' metadata are excluded from what models read of them, so that a
    model sees the text alone.

    Example:
        >>> from retrieve_rerank.llama_index import CrossEncoderRerank
        >>> from retrieve_rerank.testing import LlamaIndexRerankerContract, run_contract
        >>> class TestRerank(LlamaIndexRerankerContract):
        ...     def make(self, scorer, *, top_n=None, score_threshold=None):
        ...         return CrossEncoderRerank(scorer, 100 if top_n is None else top_n, score_threshold=score_threshold)
        >>> outcomes = run_contract(TestRerank)
        >>> [check for check, outcome in outcomes.items() if outcome.startswith("FAIL")]
        []
    """

    def inputs(self, passages: Sequence[Passage]) -> list[Any]:
        return [NodeWithScore(node=node, score=1.0 / rank) for rank, node in enumerate(_nodes(passages), start=1)]

    def call(self, component: Any, query: str, inputs: list[Any], **options: Any) -> Sequence[Any]:
        answer: Sequence[Any] = component.postprocess_nodes(inputs, query_str=query)
        return answer

    async def acall(self, component: Any, query: str, inputs: list[Any], **options: Any) -> Sequence[Any]:
        answer: Sequence[Any] = await component.apostprocess_nodes(inputs, query_str=query)
        return answer

    def read(self, outputs: Sequence[Any]) -> list[Answer]:
        return _answers(outputs)

    def travel(self, component: Any) -> Any:
        return type(component).from_dict(json.loads(json.dumps(component.to_dict())))


class LlamaIndexRetrieverContract(RetrieverContract):
    """`RetrieverContract` for a `BaseRetriever`; `k` is what `make` is given.

    Example:
        >>> from retrieve_rerank.llama_index import ChromaRetriever, ChromaVectorStore
        >>> from retrieve_rerank.testing import EncoderEmbedding, LlamaIndexRetrieverContract, run_contract
        >>> class TestChromaRetriever(LlamaIndexRetrieverContract):
        ...     def make(self, passages, k, encoder):
        ...         embed_model = EncoderEmbedding(encoder)
        ...         store = ChromaVectorStore(embed_model=embed_model)
        ...         store.add(self.nodes(passages, encoder))
        ...         return ChromaRetriever(store, embed_model, similarity_top_k=k)
        >>> outcomes = run_contract(TestChromaRetriever)
        >>> [check for check, outcome in outcomes.items() if outcome.startswith("FAIL")]
        []
    """

    def nodes(self, passages: Sequence[Passage], encoder: Encoder) -> list[TextNode]:
        """Return passages as nodes with their embeddings, for `make`."""
        return _nodes(passages, encoder)

    def call(self, component: Any, query: str, k: int) -> Sequence[Any]:
        answer: Sequence[Any] = component.retrieve(query)
        return answer

    async def acall(self, component: Any, query: str, k: int) -> Sequence[Any]:
        answer: Sequence[Any] = await component.aretrieve(query)
        return answer

    def read(self, outputs: Sequence[Any]) -> list[Answer]:
        return _answers(outputs)


class LlamaIndexVectorStoreContract(VectorStoreContract):
    """`VectorStoreContract` for a `BasePydanticVectorStore` that stores text and has `get_nodes`.

    The score is the similarity of the result. Adding goes through lists, as LlamaIndex does it.

    Example:
        >>> from retrieve_rerank.llama_index import ChromaVectorStore
        >>> from retrieve_rerank.testing import LlamaIndexVectorStoreContract, run_contract
        >>> class TestStore(LlamaIndexVectorStoreContract):
        ...     def make(self, encoder, path=None):
        ...         return self.using(encoder, ChromaVectorStore(persist_dir=path, metric=encoder.metric))
        >>> outcomes = run_contract(TestStore)
        >>> [check for check, outcome in outcomes.items() if outcome.startswith("FAIL")]
        []
    """

    embeds = False

    def using(self, encoder: Encoder, store: Any) -> Any:
        """Return `store`; its nodes and queries are embedded by the encoder. For `make`."""
        self._encoder = encoder
        return store

    def add(self, store: Any, passages: Iterable[Passage]) -> None:
        store.add(self._given(passages))

    async def aadd(self, store: Any, passages: Iterable[Passage]) -> None:
        await store.async_add(self._given(passages))

    def delete(self, store: Any, ids: list[str]) -> None:
        store.delete_nodes(ids)

    def get(self, store: Any, ids: list[str]) -> list[Answer]:
        return [_answer(node) for node in store.get_nodes(ids)]

    def count(self, store: Any) -> int:
        return len(store.get_nodes())

    def search(self, store: Any, query: str, k: int, where: dict[str, Any] | None = None) -> list[Answer]:
        return _of_result(store.query(self._query(query, k, where)))

    async def asearch(self, store: Any, query: str, k: int) -> list[Answer]:
        return _of_result(await store.aquery(self._query(query, k)))

    def _given(self, passages: Iterable[Passage]) -> Any:
        nodes = _nodes(passages, self._encoder)
        return nodes if isinstance(passages, list) else (node for node in nodes)

    def _query(self, query: str, k: int, where: dict[str, Any] | None = None) -> VectorStoreQuery:
        filters = [MetadataFilter(key=key, value=value) for key, value in (where or {}).items()]
        return VectorStoreQuery(
            query_embedding=self._encoder.encode_queries([query])[0].tolist(),
            query_str=query,
            similarity_top_k=k,
            filters=MetadataFilters(filters=list(filters)) if filters else None,
        )


def _nodes(passages: Iterable[Passage], encoder: Encoder | None = None) -> list[TextNode]:
    items = list(passages)
    vectors = None if encoder is None else encoder.encode_documents([passage.text for passage in items]).tolist()
    return [
        TextNode(
            id_=passage.id,
            text=passage.text,
            metadata=dict(passage.metadata),
            excluded_embed_metadata_keys=list(passage.metadata),
            embedding=None if vectors is None else vectors[position],
        )
        for position, passage in enumerate(items)
    ]


def _answer(node: Any, score: Any = None, rank: int | None = None) -> Answer:
    return Answer(node.node_id, node.text, dict(node.metadata), score, rank)


def _answers(found: Sequence[Any]) -> list[Answer]:
    return [_answer(item.node, item.score, getattr(item, "rerank_rank", None)) for item in found]


def _of_result(result: Any) -> list[Answer]:
    nodes = result.nodes or []
    scores = result.similarities or [None] * len(nodes)
    return [_answer(node, score) for node, score in zip(nodes, scores, strict=True)]
