"""The lexical first stage as a LangChain retriever."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field, field_validator
from typing_extensions import Self, TypedDict, Unpack

from retrieve_rerank.checks import check_count, check_mapping, check_query
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.bm25 import BM25Index
from retrieve_rerank.indexes.filters import Where
from retrieve_rerank.langchain.convert import checked_documents, new_records, to_document
from retrieve_rerank.langchain.serialization import Component, Count, restorable

_MAKES_THE_INDEX = ("path", "language", "preprocess_func", "k1", "b")


@dataclass(frozen=True, slots=True)
class _Opened:
    """An index, and the settings that it was made of."""

    index: BM25Index
    made_of: tuple[object, ...]


class _Fields(TypedDict, total=False):
    """The fields of a `BM25Retriever` that its makers pass on."""

    k: int
    path: str | os.PathLike[str] | None
    language: str | None
    filter: Where | None
    name: str | None
    tags: list[str] | None
    metadata: dict[str, Any] | None


@restorable
class BM25Retriever(Component, BaseRetriever):
    """Documents found by their words, with BM25. Needs the extra `hybrid`, and no model.

    Takes the place of langchain-community's retriever of this name, with its constructors and its `k`, and beside it
    leaves out stop words, cuts off endings, filters, adds and deletes documents, and keeps them in a directory.

    Args:
        k: How many documents at most; `invoke(query, k=…)` overrides it for one call. A stage after this one, such as
            `RetrieveRerankRetriever`, asks for as many as it needs.
        path: Directory of the index; it is made if missing. Each of `from_texts`, `from_documents`, `add_documents` and
            `delete` saves before it returns, so give many documents at once. None: in memory only.
        language: Name or code of the language; see `retrieve_rerank.BM25Index`.
        filter: Filter on metadata in Chroma's language; `invoke(query, filter=…)` overrides it.
        preprocess_func: Turns a text into words instead, as in the retriever that this replaces; then nothing else is
            done to them. It is not saved.
        k1: How much a word's repetitions add; None takes the saved index's, or 1.5.
        b: How much a passage's length takes away; None takes the saved index's, or 0.75.

    The documents are copies whose metadata has `retrieval_score` (the BM25 score) and `retrieval_rank` (1-based).
    Documents with none of the query's words are not found. A retriever with a path can be written down by LangChain's
    `dumpd`, as can be read back where the directory is.

    Example:
        >>> from retrieve_rerank.langchain import BM25Retriever
        >>> retriever = BM25Retriever.from_texts(["Paris is the capital of France.", "Bread is baked."])
        >>> [document.page_content for document in retriever.invoke("the capitals of Europe")]
        ['Paris is the capital of France.']
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    score_key: ClassVar[str] = "retrieval_score"  # see `first_stage`

    k: Count = 4
    path: str | None = None
    language: str | None = "en"
    filter: Mapping[str, Any] | None = None
    preprocess_func: Callable[[str], list[str]] | None = Field(default=None, exclude=True)
    k1: float | None = None
    b: float | None = None
    # A field, and not private: LangChain's configurable_fields make retrievers anew of the fields alone.
    index: Any = Field(default=None, exclude=True, repr=False)

    @field_validator("path", mode="before")
    @classmethod
    def _path(cls, value: object) -> object:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    if not TYPE_CHECKING:  # checkers read the arguments off the fields

        def __init__(self, *arguments: Any, **fields: Any) -> None:
            super().__init__(*arguments, **fields)
            if self.index is None or self.index.made_of != self._makes_the_index():
                self._open()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy on the same index; one with another path or language has an index of its own."""
        copied = super().model_copy(update=update)  # deep or not: an index is not copied
        if set(_MAKES_THE_INDEX) & set(update or ()):
            copied._open()  # noqa: SLF001 - one of its own class
        return copied

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether `dumpd` writes this down, which it does where there is a path."""
        return True

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """Return what `dumpd` writes down; an index in memory, or one with the caller's own function, cannot be."""
        if self.path is None or self.preprocess_func is not None:
            return self.to_json_not_implemented()
        written = super().to_json()
        if written["type"] == "constructor":
            written["kwargs"].pop("index", None)
        return written

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        metadatas: Iterable[dict[str, Any]] | None = None,
        ids: Iterable[str | None] | None = None,
        bm25_params: Mapping[str, float] | None = None,
        preprocess_func: Callable[[str], list[str]] | None = None,
        **fields: Unpack[_Fields],
    ) -> Self:
        """Return a retriever with texts in it, beside what is in the directory already.

        Args:
            texts: What to store.
            metadatas: One a text.
            ids: One a text; a text without one gets a random one, and is stored twice if given twice. Of equal ids
                the last wins.
            bm25_params: `{"k1": …, "b": …}`, either or both.
            preprocess_func: As for the class.
            **fields: The other fields of the class, such as `k` and `path`.

        Raises:
            InvalidInputError: If an argument cannot be used, naming it.
        """
        weights = check_mapping(bm25_params, "bm25_params")
        if unknown := sorted(set(weights) - {"k1", "b"}):
            raise InvalidInputError(
                f"bm25_params may have k1 and b, not {', '.join(map(repr, unknown))}: BM25 as Lucene has it, which is "
                "used here, never gives a word a weight below 0, so there is no epsilon to mend that"
            )
        retriever = cls(preprocess_func=preprocess_func, **{**weights, **fields})  # type: ignore[arg-type]
        retriever._store(texts, metadatas, ids)
        return retriever

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        *,
        bm25_params: Mapping[str, float] | None = None,
        preprocess_func: Callable[[str], list[str]] | None = None,
        **fields: Unpack[_Fields],
    ) -> Self:
        """Return a retriever with documents in it; see `from_texts`."""
        items = checked_documents(documents)
        texts, metadatas = [item.page_content for item in items], [item.metadata for item in items]
        return cls.from_texts(texts, metadatas, [item.id for item in items], bm25_params, preprocess_func, **fields)

    @property
    def docs(self) -> list[Document]:
        """The stored documents."""
        return [to_document(record) for record in self._index.get_records()]

    def add_documents(self, documents: Iterable[Document]) -> list[str]:
        """Store documents and return their ids; those whose ids are stored are replaced, of equal ids the last wins."""
        items = checked_documents(documents)
        return self._store(
            [item.page_content for item in items], [item.metadata for item in items], [item.id for item in items]
        )

    def delete(self, ids: list[str]) -> None:
        """Delete documents by id; ids that are not stored are no error."""
        self._index.delete(ids)
        self._save()

    def close(self) -> None:
        """Release the index. One without a path is gone."""
        self._index.close()

    @property
    def _index(self) -> BM25Index:
        index: BM25Index = self.index.index
        return index

    def _makes_the_index(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in _MAKES_THE_INDEX)

    def _open(self) -> None:
        made = BM25Index(path=self.path, language=self.language, tokenizer=self.preprocess_func, k1=self.k1, b=self.b)
        self.index = _Opened(made, self._makes_the_index())

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Where | None = None,
        where_document: Where | None = None,
    ) -> list[Document]:
        return self._found(query, k, filter, where_document)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Where | None = None,
        where_document: Where | None = None,
    ) -> list[Document]:
        return await self._index.worker.arun(partial(self._found, query, k, filter, where_document))

    def _found(self, query: str, k: int | None, filter: Where | None, where_document: Where | None) -> list[Document]:
        found = self._index.search_records(
            [check_query(query)],
            check_count(self.k if k is None else k, "k"),
            where=self.filter if filter is None else filter,
            where_document=where_document,
        )[0]
        return [
            to_document(record, {"retrieval_score": score, "retrieval_rank": rank})
            for rank, (record, score) in enumerate(found, start=1)
        ]

    def _store(
        self,
        texts: Iterable[str],
        metadatas: Iterable[dict[str, Any]] | None,
        ids: Iterable[str | None] | None,
    ) -> list[str]:
        made: list[str] = []
        try:
            self._index.add_records(new_records(texts, metadatas, ids, made))
        finally:
            self._save()  # also what was whole before a text that cannot be stored
        return made

    def _save(self) -> None:
        if self.path is not None:
            self._index.save()
