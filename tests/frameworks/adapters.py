"""The doors of both frameworks behind one face: build a component, ask it in both ways, read what it says.

What both doors promise is tested once, in this folder. What is one framework's own stands in its own folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever as LangChainRetriever
from llama_index.core.base.base_retriever import BaseRetriever as LlamaIndexRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from retrieve_rerank import InvalidInputError, langchain, llama_index
from tests.langchain.stubs import TableCrossEncoder, WordEmbeddings
from tests.llama_index.stubs import TableScorer, WordEmbedding

Texts = Iterable[tuple[str, str]]  # ids and texts


@dataclass(frozen=True)
class Seen:
    """A result as a user reads it: what is not told is None; ranks in no list are an empty tuple."""

    id: str | None
    text: str
    retrieval_score: float | None = None
    retrieval_rank: int | None = None
    retrieval_ranks: tuple[int | None, ...] = ()
    score: float | None = None
    logit: float | None = None
    rerank_rank: int | None = None
    degraded: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)  # the user's own


def ids(found: Sequence[Seen]) -> str:
    return "".join(str(seen.id) for seen in found)


def ranks(found: Sequence[Seen]) -> list[tuple[int | None, ...]]:
    return [seen.retrieval_ranks for seen in found]


def letters(names: str) -> list[tuple[str, str]]:
    """Return passages whose ids are the letters and whose texts are the letters in upper case."""
    return [(name, name.upper()) for name in names]


class Door(ABC):
    """A framework's components. Components and what they return are the framework's own: `read` translates."""

    hybrid_class: type[Any]
    reranker_class: type[Any]
    k: str  # what "how many are returned" is called
    item: str  # what a result is called
    cutter: str  # what a function that cuts texts into words is called
    no_results: Sequence[Any]  # what is no list of results; LlamaIndex itself looks into what is one
    refusal: type[Exception]  # of a setting that cannot be used: pydantic wraps ours in its own where it validates

    @abstractmethod
    def passage(self, id_: str, text: str, **metadata: Any) -> Any:
        """Return a passage as the framework stores it, of whose metadata the models read nothing."""

    @abstractmethod
    def scored(self, texts: Texts, scores: Sequence[float] = ()) -> list[Any]:
        """Return passages as a first stage finds them, with scores or without."""

    @abstractmethod
    def answering(self, answer: Callable[[str], Any], k: int = 9) -> Any:
        """Return a retriever of somebody else's, which returns the first `k` of what `answer` gives for a query."""

    @abstractmethod
    def table(self, logits: Mapping[str, float]) -> Any:
        """Return a model that looks each text's logit up, and fails with a KeyError where there is none."""

    @abstractmethod
    def dense(self, texts: Texts, *, k: int = 9) -> Any:
        """Return our retriever over a new store of these passages: the dot product of the counts of a, b and c."""

    @abstractmethod
    async def vectors(self, embedding: Any, query: str, texts: list[str]) -> list[list[list[float]]]:
        """Return the vectors of a query and of texts behind it, asked for in both ways."""

    @abstractmethod
    def embedding(self, model: Any, **options: Any) -> Any:
        """Return our embeddings."""

    @abstractmethod
    def bm25(self, texts: Texts, **options: Any) -> Any:
        """Return our BM25 retriever over these passages."""

    @abstractmethod
    def add_native(self, retriever: Any, passages: list[Any]) -> None:
        """Add passages to a BM25 retriever."""

    @abstractmethod
    def delete(self, retriever: Any, ids: list[str]) -> None:
        """Delete passages of a BM25 retriever."""

    def add(self, retriever: Any, texts: Texts) -> None:
        self.add_native(retriever, [self.passage(*pair) for pair in texts])

    @abstractmethod
    def retriever(self, first: Any, model: Any, *, rewrites: Sequence[str] = (), **options: Any) -> Any:
        """Return both stages in a row."""

    @abstractmethod
    def find(self, component: Any, query: str) -> list[Any]:
        """Ask a retriever."""

    @abstractmethod
    async def afind(self, component: Any, query: str) -> list[Any]:
        """Ask a retriever by its async method."""

    @abstractmethod
    def order(self, reranker: Any, given: Any, query: str) -> list[Any]:
        """Ask a re-ranker, for what a first stage has found."""

    @abstractmethod
    async def aorder(self, reranker: Any, given: Any, query: str) -> list[Any]:
        """Ask a re-ranker by its async method."""

    @abstractmethod
    def read(self, found: Any) -> Seen:
        """Translate one result."""

    def listed(self, texts: Texts, k: int = 9) -> Any:
        """Return a retriever that finds the same at every query."""
        found = self.scored(texts)
        return self.answering(lambda _: found, k)

    def down(self, error: BaseException) -> Any:
        """Return a retriever that fails; it is called Answering."""

        def fail(_: str) -> Any:
            raise error

        return self.answering(fail)

    def hybrid(self, retrievers: Any, *, k: int = 100, **options: Any) -> Any:
        return self.hybrid_class(retrievers=retrievers, **{self.k: k}, **options)

    def reranker(self, model: Any, **options: Any) -> Any:
        return self.reranker_class(model=model, **options)

    async def native(self, component: Any, query: str) -> list[list[Any]]:
        """Ask a retriever in both ways."""
        return [self.find(component, query), await self.afind(component, query)]

    async def reranked(self, reranker: Any, given: Any, query: str) -> list[list[Any]]:
        """Ask a re-ranker in both ways."""
        return [self.order(reranker, given, query), await self.aorder(reranker, given, query)]

    async def refused(self, component: Any, query: str, says: str, error: type[Exception] = InvalidInputError) -> None:
        """Check that a retriever refuses a query in both ways."""
        with pytest.raises(error, match=says):
            self.find(component, query)
        with pytest.raises(error, match=says):
            await self.afind(component, query)

    async def ask(self, component: Any, query: str) -> list[list[Seen]]:
        return [[self.read(found) for found in results] for results in await self.native(component, query)]

    async def rank(self, reranker: Any, given: Any, query: str = "q") -> list[list[Seen]]:
        return [[self.read(found) for found in results] for results in await self.reranked(reranker, given, query)]


class LangChain(Door):
    hybrid_class = langchain.HybridRetriever
    reranker_class = langchain.CrossEncoderReranker
    k = "k"
    item = "Document"
    cutter = "preprocess_func"
    no_results = (None, "text", {"a": 1}, 5, ["a 1"], Document("a 1"))
    refusal = ValueError

    def passage(self, id_: str, text: str, **metadata: Any) -> Document:
        return Document(text, id=id_, metadata=metadata)

    def scored(self, texts: Texts, scores: Sequence[float] = ()) -> list[Any]:
        found = [self.passage(*pair) for pair in texts]
        for document, score in zip(found, scores, strict=False):
            document.metadata["retrieval_score"] = score
        return found

    def answering(self, answer: Callable[[str], Any], k: int = 9) -> Any:
        class Answering(LangChainRetriever):
            k: int

            def _get_relevant_documents(self, query: str, *, run_manager: object) -> list[Document]:
                found = answer(query)
                return found[: self.k] if isinstance(found, list) else found

        return Answering(k=k)

    def table(self, logits: Mapping[str, float]) -> TableCrossEncoder:
        return TableCrossEncoder(dict(logits))

    def dense(self, texts: Texts, *, k: int = 9) -> Any:
        documents = [self.passage(*pair) for pair in texts]
        return langchain.ChromaRetriever.from_documents(documents, WordEmbeddings(), k=k, metric="dot")

    async def vectors(self, embedding: Any, query: str, texts: list[str]) -> list[list[list[float]]]:
        return [
            [embedding.embed_query(query), *embedding.embed_documents(texts)],
            [await embedding.aembed_query(query), *await embedding.aembed_documents(texts)],
        ]

    def embedding(self, model: Any, **options: Any) -> langchain.BiEncoderEmbeddings:
        return langchain.BiEncoderEmbeddings(model=model, **options)

    def bm25(self, texts: Texts, **options: Any) -> langchain.BM25Retriever:
        return langchain.BM25Retriever.from_documents([self.passage(*pair) for pair in texts], **options)

    def add_native(self, retriever: Any, passages: list[Any]) -> None:
        retriever.add_documents(passages)

    def delete(self, retriever: Any, ids: list[str]) -> None:
        retriever.delete(ids)

    def retriever(self, first: Any, model: Any, *, rewrites: Sequence[str] = (), **options: Any) -> Any:
        made = langchain.RetrieveRerankRetriever(base_retriever=first, reranker=model, **options)
        return made.bind(rewrites=list(rewrites)) if rewrites else made

    def find(self, component: Any, query: str) -> list[Any]:
        return list(component.invoke(query))

    async def afind(self, component: Any, query: str) -> list[Any]:
        return list(await component.ainvoke(query))

    def order(self, reranker: Any, given: Any, query: str) -> list[Any]:
        return list(reranker.compress_documents(given, query))

    async def aorder(self, reranker: Any, given: Any, query: str) -> list[Any]:
        return list(await reranker.acompress_documents(given, query))

    def read(self, found: Document) -> Seen:
        told = dict(found.metadata)
        in_lists = told.pop("retrieval_ranks", [])
        assert type(in_lists) is list  # as JSON has it
        return Seen(
            found.id,
            found.page_content,
            told.pop("retrieval_score", None),
            told.pop("retrieval_rank", None),
            tuple(in_lists),
            told.pop("relevance_score", None),
            told.pop("rerank_logit", None),
            told.pop("rerank_rank", None),
            told.pop("rerank_degraded", None),
            told,
        )


class LlamaIndex(Door):
    hybrid_class = llama_index.HybridRetriever
    reranker_class = llama_index.CrossEncoderRerank
    k = "similarity_top_k"
    item = "NodeWithScore"
    cutter = "tokenizer"
    no_results = (None, 5)
    refusal = InvalidInputError

    def passage(self, id_: str, text: str, **metadata: Any) -> TextNode:
        return TextNode(id_=id_, text=text, metadata=metadata, excluded_embed_metadata_keys=list(metadata))

    def scored(self, texts: Texts, scores: Sequence[float] = ()) -> list[Any]:
        found = [NodeWithScore(node=self.passage(*pair)) for pair in texts]
        for node, score in zip(found, scores, strict=False):
            node.score = score
        return found

    def answering(self, answer: Callable[[str], Any], k: int = 9) -> Any:
        class Answering(LlamaIndexRetriever):
            def __init__(self) -> None:
                super().__init__()
                self.similarity_top_k = k

            def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
                found = answer(query_bundle.query_str)
                return found[: self.similarity_top_k] if isinstance(found, list) else found

        return Answering()

    def table(self, logits: Mapping[str, float]) -> TableScorer:
        return TableScorer(logits)

    def dense(self, texts: Texts, *, k: int = 9) -> Any:
        store = llama_index.ChromaVectorStore(metric="dot", embed_model=WordEmbedding())
        store.add(WordEmbedding()([self.passage(*pair) for pair in texts]))
        return llama_index.ChromaRetriever(store, similarity_top_k=k)

    async def vectors(self, embedding: Any, query: str, texts: list[str]) -> list[list[list[float]]]:
        return [
            [embedding.get_query_embedding(query), *embedding.get_text_embedding_batch(texts)],
            [await embedding.aget_query_embedding(query), *await embedding.aget_text_embedding_batch(texts)],
        ]

    def embedding(self, model: Any, **options: Any) -> llama_index.BiEncoderEmbedding:
        return llama_index.BiEncoderEmbedding(model, **options)

    def bm25(self, texts: Texts, **options: Any) -> llama_index.BM25Retriever:
        if "k" in options:
            options["similarity_top_k"] = options.pop("k")
        return llama_index.BM25Retriever([self.passage(*pair) for pair in texts], **options)

    def add_native(self, retriever: Any, passages: list[Any]) -> None:
        retriever.add_nodes(passages)

    def delete(self, retriever: Any, ids: list[str]) -> None:
        retriever.delete_nodes(ids)

    def retriever(self, first: Any, model: Any, *, rewrites: Sequence[str] = (), **options: Any) -> Any:
        if rewrites:
            options["rewrites"] = lambda _: list(rewrites)
        return llama_index.RetrieveRerankRetriever(first, model, **options)

    def find(self, component: Any, query: str) -> list[Any]:
        return list(component.retrieve(query))

    async def afind(self, component: Any, query: str) -> list[Any]:
        return list(await component.aretrieve(query))

    def order(self, reranker: Any, given: Any, query: str) -> list[Any]:
        return list(reranker.postprocess_nodes(given, query_str=query))

    async def aorder(self, reranker: Any, given: Any, query: str) -> list[Any]:
        return list(await reranker.apostprocess_nodes(given, query_str=query))

    def read(self, found: NodeWithScore) -> Seen:
        metadata, text = found.node.metadata, found.node.get_content()
        if isinstance(found, llama_index.RerankedNode):
            return Seen(
                found.node_id,
                text,
                found.retrieval_score,
                found.retrieval_rank,
                found.retrieval_ranks,
                found.score,
                found.logit,
                found.rerank_rank,
                found.degraded,
                metadata,
            )
        if isinstance(found, llama_index.FusedNode):
            return Seen(
                found.node_id,
                text,
                found.score,
                found.retrieval_rank,
                found.retrieval_ranks,
                metadata=metadata,
            )
        return Seen(found.node_id, text, found.score, metadata=metadata)
