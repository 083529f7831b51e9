"""The contracts for LangChain's kinds of component."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from retrieve_rerank.errors import require

require("langchain_core.documents", extra="langchain")

from langchain_core.cross_encoders import BaseCrossEncoder  # noqa: E402 - after the guard
from langchain_core.documents import Document  # noqa: E402
from langchain_core.embeddings import Embeddings  # noqa: E402
from langchain_core.load import dumpd, load  # noqa: E402

from retrieve_rerank.langchain.convert import RERANK_KEYS, RETRIEVAL_KEYS  # noqa: E402
from retrieve_rerank.testing.reranker import RerankerContract  # noqa: E402
from retrieve_rerank.testing.retriever import RetrieverContract  # noqa: E402
from retrieve_rerank.testing.running import Answer  # noqa: E402
from retrieve_rerank.testing.vector_store import VectorStoreContract  # noqa: E402
from retrieve_rerank.types import Encoder, Metric, Passage, Scorer  # noqa: E402

_SCORE_KEYS = ("relevance_score", "retrieval_score")
# What re-rankers and retrievers write into the metadata; the rest is the user's.
_WRITTEN = {*RERANK_KEYS, *RETRIEVAL_KEYS}


class ScorerCrossEncoder(BaseCrossEncoder):
    """A scorer as LangChain's cross-encoder: pairs in, logits out.

    Example:
        >>> from retrieve_rerank.testing import ScorerCrossEncoder, TableScorer
        >>> ScorerCrossEncoder(TableScorer({"good": 2.0})).score([("any", "good")])
        [2.0]
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Return what the scorer says of the pairs, which have one query."""
        query = text_pairs[0][0] if text_pairs else ""
        return [float(logit) for logit in self.scorer.score(query, [text for _, text in text_pairs])]


class EncoderEmbeddings(Embeddings):
    """An encoder as LangChain's embeddings.

    Example:
        >>> from retrieve_rerank.testing import EncoderEmbeddings, LetterEncoder
        >>> EncoderEmbeddings(LetterEncoder()).embed_query("abba")
        [2.0, 2.0, 0.0, 1.0]
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector a text."""
        vectors: list[list[float]] = self.encoder.encode_documents(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query."""
        vector: list[float] = self.encoder.encode_queries([text])[0].tolist()
        return vector


class LangChainRerankerContract(RerankerContract):
    """`RerankerContract` for a `BaseDocumentCompressor`.

    The score is read from the metadata key `relevance_score`, which is what compressors that give one use.

    Example:
        >>> from retrieve_rerank.langchain import CrossEncoderReranker
        >>> from retrieve_rerank.testing import LangChainRerankerContract, ScorerCrossEncoder, run_contract
        >>> class TestReranker(LangChainRerankerContract):
        ...     def make(self, scorer, *, top_n=None, score_threshold=None):
        ...         model = ScorerCrossEncoder(scorer)
        ...         return CrossEncoderReranker(model=model, top_n=top_n, score_threshold=score_threshold)
        >>> outcomes = run_contract(TestReranker)
        >>> [check for check, outcome in outcomes.items() if outcome.startswith("FAIL")]
        []
    """

    def inputs(self, passages: Sequence[Passage]) -> list[Any]:
        return _documents(passages)

    def call(self, component: Any, query: str, inputs: list[Any], **options: Any) -> Sequence[Any]:
        answer: Sequence[Any] = component.compress_documents(inputs, query)
        return answer

    async def acall(self, component: Any, query: str, inputs: list[Any], **options: Any) -> Sequence[Any]:
        answer: Sequence[Any] = await component.acompress_documents(inputs, query)
        return answer

    def read(self, outputs: Sequence[Any]) -> list[Answer]:
        return _answers(outputs, ("relevance_score",), "rerank_rank")

    def travel(self, component: Any) -> Any:
        return _travelled(component)


class LangChainRetrieverContract(RetrieverContract):
    """`RetrieverContract` for a `BaseRetriever`; `k` is what `make` is given.

    The score is read from the metadata key `relevance_score`, else from `retrieval_score`.

    Example:
        >>> from retrieve_rerank.langchain import ChromaRetriever
        >>> from retrieve_rerank.testing import EncoderEmbeddings, LangChainRetrieverContract, run_contract
        >>> class TestChromaRetriever(LangChainRetrieverContract):
        ...     def make(self, passages, k, encoder):
        ...         return ChromaRetriever.from_documents(self.documents(passages), EncoderEmbeddings(encoder), k=k)
        >>> outcomes = run_contract(TestChromaRetriever)
        >>> [check for check, outcome in outcomes.items() if outcome.startswith("FAIL")]
        []
    """

    def documents(self, passages: Sequence[Passage]) -> list[Document]:
        """Return passages as documents, for `make`."""
        return _documents(passages)

    def call(self, component: Any, query: str, k: int) -> Sequence[Any]:
        answer: Sequence[Any] = component.invoke(query)
        return answer

    async def acall(self, component: Any, query: str, k: int) -> Sequence[Any]:
        answer: Sequence[Any] = await component.ainvoke(query)
        return answer

    def read(self, outputs: Sequence[Any]) -> list[Answer]:
        first = outputs[0].metadata if outputs else {}
        return _answers(outputs, _SCORE_KEYS, "rerank_rank" if "rerank_rank" in first else "retrieval_rank")


class LangChainVectorStoreContract(VectorStoreContract):
    """`VectorStoreContract` for a `VectorStore`.

    The score is the relevance of `similarity_search_with_relevance_scores`, which must be in [0, 1]: by cosine it is
    the similarity, for the other metrics only the order is checked.

    Attributes:
        filter_name: The name of the search option that filters by metadata.

    Example:
        >>> from retrieve_rerank.langchain import ChromaVectorStore
        >>> from retrieve_rerank.testing import EncoderEmbeddings, LangChainVectorStoreContract, run_contract
        >>> class TestStore(LangChainVectorStoreContract):
        ...     def make(self, encoder, path=None):
        ...         embeddings = EncoderEmbeddings(encoder)
        ...         return ChromaVectorStore(
        ...             embedding_function=embeddings, persist_directory=path, metric=encoder.metric
        ...         )
        ...     def count(self, store):
        ...         return len(store.get()["ids"])
        >>> outcomes = run_contract(TestStore)
        >>> [check for check, outcome in outcomes.items() if outcome.startswith("FAIL")]
        []
    """

    filter_name = "filter"

    def add(self, store: Any, passages: Iterable[Passage]) -> None:
        texts, metadatas, ids = _columns(passages)
        store.add_texts(texts, metadatas, ids=ids)

    async def aadd(self, store: Any, passages: Iterable[Passage]) -> None:
        texts, metadatas, ids = _columns(passages)
        await store.aadd_texts(texts, metadatas, ids=ids)

    def delete(self, store: Any, ids: list[str]) -> None:
        store.delete(ids)

    def get(self, store: Any, ids: list[str]) -> list[Answer]:
        return _answers(store.get_by_ids(ids), (), "")

    def search(self, store: Any, query: str, k: int, where: dict[str, Any] | None = None) -> list[Answer]:
        options = {} if where is None else {self.filter_name: where}
        return _scored(store.similarity_search_with_relevance_scores(query, k=k, **options))

    async def asearch(self, store: Any, query: str, k: int) -> list[Answer]:
        return _scored(await store.asimilarity_search_with_relevance_scores(query, k=k))

    def similarity(self, metric: Metric, similarity: float) -> float | None:
        return similarity if metric == "cosine" else None


def _documents(passages: Iterable[Passage]) -> list[Document]:
    return [Document(passage.text, id=passage.id, metadata=dict(passage.metadata)) for passage in passages]


def _columns(passages: Iterable[Passage]) -> tuple[Iterable[str], list[dict[str, Any]], list[str]]:
    """Return texts, which are a generator if the passages are one, with their metadata and ids."""
    items = list(passages)
    texts = [passage.text for passage in items]
    return (
        texts if isinstance(passages, list) else (text for text in texts),
        [dict(passage.metadata) for passage in items],
        [passage.id for passage in items],
    )


def _answers(documents: Sequence[Any], score_keys: Sequence[str], rank_key: str) -> list[Answer]:
    return [
        Answer(
            document.id,
            document.page_content,
            {key: value for key, value in document.metadata.items() if key not in _WRITTEN},
            next((document.metadata[key] for key in score_keys if key in document.metadata), None),
            document.metadata.get(rank_key),
        )
        for document in documents
    ]


def _scored(pairs: Sequence[tuple[Document, float]]) -> list[Answer]:
    return [Answer(document.id, document.page_content, dict(document.metadata), score) for document, score in pairs]


def _travelled(component: object) -> Any:
    """Return what LangChain's `load` makes of what its `dumpd` wrote, allowing the classes that are named there."""
    dumped = json.loads(json.dumps(dumpd(component)))
    paths = list(_constructors(dumped))
    classes = [getattr(importlib.import_module(".".join(path[:-1])), path[-1]) for path in paths]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The function `load` is in beta")
        return load(dumped, allowed_objects=classes, valid_namespaces=sorted({path[0] for path in paths}))


def _constructors(dumped: object) -> Iterator[list[str]]:
    if isinstance(dumped, Mapping):
        if dumped.get("type") == "constructor":
            yield dumped["id"]
        for value in dumped.values():
            yield from _constructors(value)
    elif isinstance(dumped, list):
        for value in dumped:
            yield from _constructors(value)
