"""LangChain's objects turned into ours on the way in, and ours into LangChain's on the way out."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import zip_longest
from string import Formatter
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from retrieve_rerank.checks import check_iterable, check_mapping, is_iterable, number_of
from retrieve_rerank.errors import InvalidInputError, shown
from retrieve_rerank.indexes.records import Record, to_record
from retrieve_rerank.models.cross_encoder import CrossEncoder, register_adapter
from retrieve_rerank.models.ranking import scorer_name
from retrieve_rerank.types import Encoder, Hit, Metric, Passage

Vectors = npt.NDArray[np.float32]

# What a first stage writes into a document's metadata, and the next search replaces; and what a re-ranking does.
RETRIEVAL_KEYS = frozenset({"retrieval_score", "retrieval_rank", "retrieval_ranks"})
RERANK_KEYS = frozenset(
    {
        "relevance_score",
        "rerank_logit",
        "rerank_rank",
        "rerank_window",
        "rerank_truncated",
        "rerank_degraded",
        "combined_score",
    }
)

# The names under which embedding classes keep what they embed with.
_MODEL_NAMES = ("model_name", "model", "model_id", "deployment", "repo_id")


class RetrievedDocument(Document):
    """A document as a search of this package returns it.

    What the search wrote into the metadata says how the document was found, and is no part of what it is: LangChain's
    retrievers that ask for several queries tell documents apart by `==`, and would return one document once a query.
    """

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Document):
            return NotImplemented
        return _what_it_is(self) == _what_it_is(other)

    def __reduce__(self) -> tuple[Any, ...]:
        return _plain, (self.page_content, self.metadata, self.id)


# Whatever writes down the name of a document's class, as `dumpd` and LangGraph's checkpoints do, writes a Document.
RetrievedDocument.__name__ = RetrievedDocument.__qualname__ = Document.__name__
RetrievedDocument.__module__ = Document.__module__


def _what_it_is(document: Document) -> tuple[str | None, str, dict[str, Any]]:
    return document.id, document.page_content, without_marks(document.metadata)


def without_marks(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a document's metadata without what a search wrote into it."""
    # Users have scores of this name, too: it is ours only where a re-ranking wrote the rest.
    marks = RETRIEVAL_KEYS | RERANK_KEYS - (set() if "rerank_rank" in metadata else {"combined_score"})
    return {key: value for key, value in metadata.items() if key not in marks}


def _plain(page_content: str, metadata: dict[str, Any], id_: str | None) -> Document:
    return Document(page_content, metadata=metadata, id=id_)


class EmbeddingsEncoder:
    """Any LangChain `Embeddings` as an encoder."""

    def __init__(self, embeddings: Embeddings) -> None:
        self.embeddings = embeddings

    @property
    def metric(self) -> Metric:
        """LangChain does not say what vectors are compared by; cosine suits all but dot-product models."""
        return "cosine"

    @property
    def dimension(self) -> int:
        """Length of every vector, by embedding a word."""
        return len(self.embeddings.embed_query("dimension"))

    @property
    def fingerprint(self) -> Mapping[str, str | int | float | bool]:
        """The model's name if the object has one, else the class's name; and its dimensions if it says so.

        Of embeddings with a cache around them, they are those of the embeddings within.
        """
        embeddings = self.embeddings
        while isinstance(within := getattr(embeddings, "underlying_embeddings", None), Embeddings):
            embeddings = within
        names = [getattr(embeddings, name, None) for name in _MODEL_NAMES]
        known = [name for name in names if isinstance(name, str) and name]
        facts: dict[str, str | int | float | bool] = {"model": known[0] if known else type(embeddings).__name__}
        for name in ("dimensions", "size"):
            value = getattr(embeddings, name, None)
            if isinstance(value, int):
                facts[name] = value
        return facts

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Return an array (len(texts), dimension)."""
        return np.asarray([self.embeddings.embed_query(text) for text in texts], dtype=np.float32)

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """Return an array (len(texts), dimension)."""
        return np.asarray(self.embeddings.embed_documents(list(texts)), dtype=np.float32)

    async def aencode_queries(self, texts: Sequence[str]) -> Vectors:
        """As `encode_queries`, by the embeddings' own async method where they have one."""
        return np.asarray(await asyncio.gather(*map(self.embeddings.aembed_query, texts)), dtype=np.float32)


class LangChainCrossEncoder(BaseCrossEncoder):
    """Our cross-encoder as LangChain's: pairs in, logits out."""

    def __init__(self, cross_encoder: CrossEncoder) -> None:
        self.cross_encoder = cross_encoder

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Return one logit a pair; larger is more relevant."""
        scores: dict[int, float] = {}
        by_query: dict[str, list[int]] = {}
        for position, (query, _) in enumerate(text_pairs):
            by_query.setdefault(query, []).append(position)
        for query, positions in by_query.items():
            logits = self.cross_encoder.score(query, [text_pairs[position][1] for position in positions])
            scores.update(zip(positions, map(float, logits), strict=True))
        return [scores[position] for position in range(len(text_pairs))]


register_adapter("as_langchain", LangChainCrossEncoder)


class PairScorer:
    """LangChain's cross-encoder as our scorer."""

    def __init__(self, cross_encoder: BaseCrossEncoder) -> None:
        self.cross_encoder = cross_encoder
        self.model = scorer_name(cross_encoder)

    def score(self, query: str, texts: Sequence[str]) -> Any:
        """Return one score a text."""
        # A list first: the stock class returns an array, or even a map object, where it promises a list.
        scores: Any = self.cross_encoder.score([(query, text) for text in texts])
        return list(scores) if is_iterable(scores) else scores


def to_encoder(embeddings: Embeddings) -> Encoder:
    """Return `embeddings` as an encoder: the bi-encoder inside ours, a wrapper around any other."""
    if not isinstance(embeddings, Embeddings):
        raise InvalidInputError(
            f"the embedding function must be a LangChain Embeddings, got {type(embeddings).__name__}"
        )
    own = getattr(embeddings, "encoder", None)
    return own if isinstance(own, Encoder) else EmbeddingsEncoder(embeddings)


def to_hits(documents: Sequence[Document], texts: Sequence[str]) -> list[Hit]:
    """Return documents as hits of a first stage.

    Args:
        documents: In the first stage's order.
        texts: What the cross-encoder is to read of each.
    """
    hits = []
    for position, (document, text) in enumerate(zip(documents, texts, strict=True)):
        rank, score = document.metadata.get("retrieval_rank"), document.metadata.get("retrieval_score")
        hits.append(
            Hit(
                Passage(f"\0{position}" if document.id is None else document.id, text),  # without ids, none are one
                rank=position + 1,
                score=math.nan,
                retrieval_rank=rank if isinstance(rank, int) else position + 1,
                retrieval_score=finite(score),
                logit=finite(document.metadata.get("rerank_logit")),  # of an earlier re-ranking
            )
        )
    return hits


def finite(score: object) -> float | None:
    """Return a score, numpy's too, as a plain float; None if it is no finite number."""
    number = number_of(score)
    return number if math.isfinite(number) else None


def documents_of(found: Any, name: str) -> list[Document]:
    """Return what a first stage found as a list, or raise InvalidInputError if it is no documents.

    Args:
        found: Any iterable of documents.
        name: What the error calls the first stage.
    """
    if found is None or isinstance(found, (str, Mapping, Document)) or not is_iterable(found):
        raise InvalidInputError(f"{name} must return a list of documents, and returned {type(found).__name__}")
    return checked_documents(found)


def as_candidates(documents: Sequence[Document], *, score_key: str | None, fused: bool = False) -> list[Document]:
    """Return a first stage's documents, marked with their ranks in it and free of an earlier search's scores.

    One that comes more than once, by its id and its text, is one candidate, with its best rank.

    Args:
        documents: In the first stage's order.
        score_key: Where in the metadata the stage wrote their scores; None where it wrote none, as what a stored
            document says of itself is no score.
        fused: Whether the stage wrote their `retrieval_ranks`.
    """
    kept = {"retrieval_ranks"} if fused else set[str]()
    seen: set[tuple[str, str]] = set()
    marked: list[Document] = []
    for document in documents:
        if document.id is not None:
            if (document.id, document.page_content) in seen:
                continue
            seen.add((document.id, document.page_content))
        marks: dict[str, Any] = {key: document.metadata[key] for key in kept & document.metadata.keys()}
        score = None if score_key is None else finite(document.metadata.get(score_key))
        if score is not None:
            marks["retrieval_score"] = score
        marked.append(with_marks(document, {**marks, "retrieval_rank": len(marked) + 1}))
    return marked


def to_reranked(document: Document, hit: Hit, degraded: str | None = None) -> Document:
    """Return a copy of `document` with the hit's scores, as plain numbers, in its metadata; None if it has none.

    Args:
        document: The document that the hit was made of.
        hit: What became of it.
        degraded: Why the call did not score everything; None if it did.
    """
    scored = hit.logit is not None
    scores: dict[str, Any] = {
        "relevance_score": hit.score if scored else None,
        "rerank_logit": hit.logit,
        "rerank_rank": hit.rank,
        "retrieval_rank": hit.retrieval_rank,
    }
    if hit.retrieval_score is not None:
        scores["retrieval_score"] = hit.retrieval_score
    if hit.combined_score is not None:
        scores["combined_score"] = hit.combined_score
    if hit.window is not None:
        scores["rerank_window"] = list(hit.window)
    if hit.truncated:
        scores["rerank_truncated"] = True
    if degraded is not None:
        scores["rerank_degraded"] = degraded
    kept = {key: value for key, value in document.metadata.items() if key in RETRIEVAL_KEYS}
    return with_marks(document, {**kept, **scores})


def with_marks(document: Document, marks: Mapping[str, Any]) -> Document:
    """Return a copy of a document with what a search has to say of it, in the place of what an earlier one said."""
    metadata = without_marks(document.metadata) | dict(marks)
    if isinstance(document, RetrievedDocument) and metadata == document.metadata:
        return document
    if type(document) is Document:
        return RetrievedDocument(page_content=document.page_content, metadata=metadata, id=document.id)
    return document.model_copy(update={"metadata": metadata})


def to_document(record: Record, marks: Mapping[str, Any] | None = None) -> Document:
    """Return a stored record as a document, with what a search has to say of it if it was found by one."""
    passage = record.passage
    if marks is None:
        return Document(passage.text, metadata=dict(passage.metadata), id=passage.id)
    return RetrievedDocument(page_content=passage.text, metadata={**passage.metadata, **marks}, id=passage.id)


def new_records(
    texts: Iterable[str],
    metadatas: Iterable[dict[str, Any]] | None,
    ids: Iterable[str | None] | None,
    made: list[str],
) -> Iterator[Record]:
    """Yield one record a text, writing its id into `made`."""
    if isinstance(texts, str):
        raise InvalidInputError("texts must be an iterable of strings, got a single str; wrap it: [...]")
    missing = object()
    given = {"texts": texts, "metadatas": metadatas, "ids": ids}
    columns = [column for column in (metadatas, ids) if column is not None]
    walked: list[Iterable[Any]] = [
        check_iterable(column, name, "one a text") for name, column in given.items() if column is not None
    ]
    lengths = [len(column) for column in (texts, *columns) if isinstance(column, Sized)]
    if len(set(lengths)) > 1:  # before anything is stored, where it can be known
        raise InvalidInputError(
            f"texts, metadatas and ids must be equally long, but one of them ends after {min(lengths)} items"
        )
    for position, (text, *rest) in enumerate(zip_longest(*walked, fillvalue=missing)):
        if any(item is missing for item in (text, *rest)):
            raise InvalidInputError(
                f"texts, metadatas and ids must be equally long, but one of them ends after {position} items"
            )
        metadata: Any = rest.pop(0) if metadatas is not None else None
        id_: Any = rest.pop(0) if ids is not None else None
        if not isinstance(text, str):
            raise InvalidInputError(f"texts[{position}] must be a string, got {type(text).__name__}")
        metadata = check_mapping(metadata, f"metadatas[{position}]")
        if "retrieval_rank" in metadata:  # what a search of this package returned is stored as it was
            metadata = without_marks(metadata)
        passage = Passage(str(uuid.uuid4()) if id_ is None else id_, text, metadata)
        made.append(passage.id)
        yield to_record(passage)


def checked_documents(documents: Iterable[Document]) -> list[Document]:
    """Return `documents` as a list, or raise InvalidInputError naming the first item that is none."""
    if isinstance(documents, (str, Document)):
        raise InvalidInputError(f"documents must be a list of Document, got one {type(documents).__name__}")
    items = list(check_iterable(documents, "documents", "Document"))
    for position, item in enumerate(items):
        if not isinstance(item, Document):
            raise InvalidInputError(f"documents[{position}] must be a Document, got {type(item).__name__}")
    return items


def check_template(template: str | None) -> str | None:
    """Return `template`, or raise InvalidInputError if it cannot be filled from any metadata."""
    try:
        names = [name for _, name, _, _ in Formatter().parse(template or "") if name is not None]
    except ValueError as error:
        raise InvalidInputError(f"text_template {shown(template)} cannot be read: {error}") from error
    if wrong := [name for name in names if not name.isidentifier()]:
        raise InvalidInputError(
            f"text_template {shown(template)} may name metadata keys and page_content only, such as '{{title}}. "
            f"{{page_content}}'; got {wrong[0]!r}"
        )
    return template


def render(document: Document, template: str | None) -> str:
    """Return what the cross-encoder reads of a document: its text, or the filled template.

    Raises:
        InvalidInputError: If the template names a metadata key that the document lacks, or asks for a format that the
            document's value has not.
    """
    if template is None:
        return document.page_content
    try:
        return template.format_map({**document.metadata, "page_content": document.page_content})
    except KeyError as error:
        raise InvalidInputError(
            f"text_template {shown(template)} names {error}, which document {document.id!r} has not: its metadata has "
            f"{sorted(document.metadata)}. Fill it for every document, or leave it out of the template"
        ) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"text_template {shown(template)} cannot be filled from document {document.id!r}, whose metadata is "
            f"{shown(document.metadata)}: {error}. Leave out the format, or store values that it fits"
        ) from error
