"""The lexical first stage: passages found by their words."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from functools import partial
from types import TracebackType

from tqdm.auto import tqdm

from retrieve_rerank.checks import check_count, check_queries, check_query
from retrieve_rerank.indexes.bm25_collection import BM25Collection, Found
from retrieve_rerank.indexes.filters import Where
from retrieve_rerank.indexes.records import Record, check_passage, check_passages, to_record
from retrieve_rerank.indexes.store import check_ids
from retrieve_rerank.indexes.words import Tokenizer
from retrieve_rerank.types import AddReport, Hit, Passage


class BM25Index:
    """Passages searched by their words, with BM25 as bm25s computes it. Needs the extra `hybrid`.

    Texts and queries are lower-cased and split into words of two letters or more; stop words are left out and endings
    cut off, all as the language has it. With a directory, changes are kept in memory until `save`, which `close`, the
    end of a `with` block and the normal end of the program call too. A process that is killed leaves what was saved
    last. Any number of objects and processes may read a directory, and see what another saved at their next call; of
    two that change it, the first to save wins and the other is told. A saved index can be pickled and copied, which
    opens its directory again; one in memory or with unsaved changes cannot.

    Args:
        path: Directory of a saved index; it is made if missing, and read without loading it into memory. None: in
            memory only.
        language: Name or ISO 639-1 code of the language, such as "en" or "german". There are stop words for Danish,
            Dutch, English, French, German, Italian, Norwegian, Portuguese, Russian, Spanish, Swedish and Turkish;
            other languages have endings cut off only. None takes words as they are.
        tokenizer: Turns a text into words instead, for languages without spaces between words. It is not saved: give
            the same one at every opening.
        k1: How much a word's repetitions add, from 0; None takes the saved index's, or 1.5.
        b: How much a passage's length takes away, from 0 to 1; None takes the saved index's, or 0.75.

    Raises:
        InvalidInputError: If the language is not known, or the directory cannot be used or is damaged: files are
            missing, or of another size than was written. Changed bytes within are not noticed.
        IndexMismatchError: If the saved index is of another language or tokenizer, or written by a newer version.
        MissingDependencyError: If the extra `hybrid` is not installed.

    Example:
        >>> from retrieve_rerank import BM25Index, Passage
        >>> index = BM25Index()
        >>> index.add([Passage("1", "Paris is the capital of France."), Passage("2", "Bread is baked.")])
        AddReport(added=2, updated=0, unchanged=0)
        >>> [hit.passage.id for hit in index.retrieve("the capitals of Europe")]
        ['1']
    """

    def __init__(
        self,
        *,
        path: str | os.PathLike[str] | None = None,
        language: str | None = "en",
        tokenizer: Tokenizer | None = None,
        k1: float | None = None,
        b: float | None = None,
    ) -> None:
        self.collection = BM25Collection(path, language, tokenizer=tokenizer, k1=k1, b=b)

    @property
    def language(self) -> str | None:
        """Name of the language, None where words are taken as they are."""
        return self.collection.language

    def add(
        self, passages: Iterable[Passage], *, batch_size: int | None = None, show_progress: bool = False
    ) -> AddReport:
        """Store passages: new ids are added, known ids replaced, text and metadata.

        Give many at once: the first search after a change works out the weights of all words anew.

        Args:
            passages: Any iterable. Of equal ids the last wins.
            batch_size: Passages taken in one go. What was taken stays if a later batch fails.
            show_progress: Show a bar on stderr.

        Raises:
            InvalidInputError: If a passage cannot be stored; it names the passage.
        """
        check_passages(passages)
        total = len(passages) if isinstance(passages, Sized) else None
        report = AddReport()
        with tqdm(total=total, disable=not show_progress, unit="passage", desc="Indexing") as bar:

            def records() -> Iterator[Record]:
                for position, passage in enumerate(passages):
                    yield to_record(check_passage(passage, position))
                    bar.update()

            for part in self.collection.add(records(), batch_size):
                report += part
        return report

    def delete(self, ids: Sequence[str]) -> None:
        """Delete passages by id; ids that are not stored are no error."""
        self.collection.delete(check_ids(ids))

    def get(self, ids: Sequence[str]) -> list[Passage]:
        """Return passages by id, in the order asked for; ids that are not stored are left out."""
        return [record.passage for record in self.collection.read(check_ids(ids))]

    def count(self) -> int:
        """Return the number of passages."""
        return self.collection.count()

    def clear(self) -> None:
        """Delete every passage."""
        self.collection.clear()

    def retrieve(
        self, query: str, k: int = 100, *, where: Where | None = None, where_document: Where | None = None
    ) -> list[Hit]:
        """Find the passages with the words of a query.

        Args:
            query: Not empty.
            k: How many at most.
            where: Filter on metadata in Chroma's language, such as `{"source": "atlas"}` or `{"year": {"$gte": 2020}}`.
            where_document: Filter on the text, such as `{"$contains": "France"}`.

        Returns:
            Hits, best first, of equal scores the one stored earlier. `retrieval_score` is the BM25 score. A passage
            with none of the query's words, which would score 0, is no hit.

        Raises:
            InvalidInputError: If the query, k or a filter cannot be used.
        """
        check_count(k, "k")
        found = self.collection.search([check_query(query)], k, where=where, where_document=where_document)
        return _hits(found[0])

    async def aretrieve(
        self, query: str, k: int = 100, *, where: Where | None = None, where_document: Where | None = None
    ) -> list[Hit]:
        """As `retrieve`, without blocking the event loop."""
        call = partial(self.retrieve, query, k, where=where, where_document=where_document)
        return await self.collection.worker.arun(call)

    def retrieve_many(
        self,
        queries: Sequence[str],
        k: int = 100,
        *,
        where: Where | None = None,
        where_document: Where | None = None,
    ) -> list[list[Hit]]:
        """Find the passages with the words of each query. As `retrieve` for each."""
        check_count(k, "k")
        found = self.collection.search(check_queries(queries), k, where=where, where_document=where_document)
        return [_hits(items) for items in found]

    async def aretrieve_many(
        self,
        queries: Sequence[str],
        k: int = 100,
        *,
        where: Where | None = None,
        where_document: Where | None = None,
    ) -> list[list[Hit]]:
        """As `retrieve_many`, without blocking the event loop."""
        call = partial(self.retrieve_many, queries, k, where=where, where_document=where_document)
        return await self.collection.worker.arun(call)

    def save(self) -> None:
        """Write what has changed to the directory. Killed at any moment, it leaves the old index or the new one.

        Raises:
            InvalidInputError: If there is no directory, or it cannot be written.
            IndexMismatchError: If somebody else has saved other changes; these would be lost.
            IndexLockedError: If another process is saving for long.
        """
        self.collection.save()

    def close(self) -> None:
        """Save what has changed and release the index. One without a directory is gone.

        If saving fails, the index stays open with its changes: close it again when the cause is gone. Where somebody
        else has saved other changes, that never works; what this index holds can still be read, to be added to one
        opened anew. An index that is let go of, or still open at the end of the program, warns of what it could not
        save.

        Raises:
            RetrieveRerankError: As `save`, if there is something to save.
        """
        self.collection.close()

    def __enter__(self) -> BM25Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"BM25Index(path={self.collection.path!r}, language={self.language!r})"


def _hits(found: Found) -> list[Hit]:
    passage = found.columns.passage
    rows = enumerate(zip(found.slots, found.scores, strict=True), start=1)
    return [Hit(passage(slot), rank, score, rank, score) for rank, (slot, score) in rows]
