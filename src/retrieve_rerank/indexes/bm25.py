"""The lexical first stage: passages found by their words.

A record has a number for as long as nothing is deleted, which its words, its text and its score share. A record that is
replaced or deleted leaves its number empty and gets a new one; empty numbers go at the next search. The weights of all
words depend on all records, so they are worked out anew at the first search after a change; cutting texts into words,
which takes longest, is done once a record.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from retrieve_rerank.checks import check_count, check_flag, check_queries, check_query, number_of
from retrieve_rerank.errors import (
    IndexMismatchError,
    InvalidInputError,
    RetrieveRerankError,
    require,
    shown,
    warn_caller,
)
from retrieve_rerank.indexes.bm25_files import Content, IndexFolder, Ints, Weights, used, weigh
from retrieve_rerank.indexes.filters import Where, matcher
from retrieve_rerank.indexes.records import Record, check_ids, check_passage, check_passages, to_record
from retrieve_rerank.indexes.words import Analyzer, Tokenizer, Vocabulary
from retrieve_rerank.models.threads import Worker
from retrieve_rerank.types import AddReport, Closeable, Hit, Passage

_BATCH = 1_000  # records taken in one go
_K1, _B = 1.5, 0.75  # bm25s's


class BM25Index(Closeable):
    """Passages searched by their words, with BM25 as bm25s computes it. Needs the extra `hybrid`.

    Texts and queries are cut into words and lower-cased; stop words are left out and endings cut off, all as the
    language has it. Identifiers are found by their parts, too, and scripts without spaces and Hangul by pairs of
    characters. Parts and words of one letter do not make a passage longer.

    With a directory, changes are kept in memory until `save`, which `close`, the end of a `with` block and the normal
    end of the program call too. A process that is killed leaves what was saved last. Any number of objects and
    processes may read a directory, and see what another saved at their next call; of two that change it, the first to
    save wins and the other is told. A saved index can be pickled and copied, which opens its directory again; one in
    memory or with unsaved changes cannot.

    Args:
        path: Directory of a saved index; it is made if missing, and read without loading it into memory. None: in
            memory only.
        language: Name or ISO 639-1 code of the language, such as "en" or "german". There are stop words for Danish,
            Dutch, English, French, German, Italian, Norwegian, Portuguese, Russian, Spanish, Swedish and Turkish;
            other languages have endings cut off only. None takes words as they are.
        tokenizer: Turns a text into words instead; then nothing else is done to them. It is not saved: give the same
            one at every opening.
        k1: How much a word's repetitions add, from 0; None takes the saved index's, or 1.5.
        b: How much a passage's length takes away, from 0 to 1; None takes the saved index's, or 0.75.

    Raises:
        InvalidInputError: If the language is not known, or the directory cannot be used or is damaged: files are
            missing, or of another size than was written. Changed bytes within are not noticed.
        IndexMismatchError: If the saved index is of another language or tokenizer, or written by a newer version. One
            whose words were cut by the rules of another version is cut anew, which a warning says.
        MissingDependencyError: If the extra `hybrid` is not installed.

    Example:
        >>> from retrieve_rerank import BM25Index, Passage
        >>> index = BM25Index()
        >>> index.add([Passage("1", "Paris is the capital of France."), Passage("2", "Bread is baked.")])
        AddReport(added=2, updated=0, unchanged=0)
        >>> [hit.passage.id for hit in index.retrieve("the capitals of Europe")]
        ['1']
    """

    _content: Content  # its rows are all records, its words and weights those that were there at the last search
    _vocabulary: Vocabulary
    _alive: bytearray  # by number
    _numbers: dict[str, int] | None  # by id
    _scorer: Any  # bm25s's, or None: something has changed since
    _words: array[int]  # of the records added since, one after another,
    _lengths: array[int]  # and how many each of them has

    def __init__(
        self,
        *,
        path: str | os.PathLike[str] | None = None,
        language: str | None = "en",
        tokenizer: Tokenizer | None = None,
        k1: float | None = None,
        b: float | None = None,
    ) -> None:
        self._bm25s = require("bm25s", extra="hybrid")
        self._given = _checked_number("k1", k1, 1e9), _checked_number("b", b, 1.0)
        self._analyzer = Analyzer(language, tokenizer)
        self._folder = None if path is None else IndexFolder(path)
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._closed = self._torn = False
        self._told = False  # somebody was told that what is unsaved cannot be saved any more
        self.worker = Worker("retrieve-rerank BM25 index")
        self._take(Content(self._analyzer.facts, _K1, _B))
        _ALL.add(self)
        if self._folder is not None:
            self._load(self._folder)

    def __reduce__(self) -> tuple[Callable[[], BM25Index], tuple[()]]:
        if self.path is None:
            raise InvalidInputError(
                "this BM25 index is in memory: it cannot be pickled or copied. Give it a directory: path=…"
            )
        with self._lock:
            if self._unsaved:
                raise InvalidInputError(
                    f"the BM25 index in {self.path!r} has changes that are not saved, which a pickle or a copy of it "
                    "would not have; save it first: save()"
                )
        made = partial(BM25Index, path=self.path, language=self.language, tokenizer=self._analyzer.tokenizer)
        return partial(made, k1=self._given[0], b=self._given[1]), ()

    @property
    def path(self) -> str | None:
        """The directory, if there is one."""
        return None if self._folder is None else str(self._folder.path)

    @property
    def language(self) -> str | None:
        """Name of the language, None where words are taken as they are."""
        return self._analyzer.language

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
        quiet = not check_flag(show_progress, "show_progress")
        with tqdm(total=total, disable=quiet, unit="passage", desc="Indexing") as bar:

            def records() -> Iterator[Record]:
                for position, passage in enumerate(passages):
                    yield to_record(check_passage(passage, position))
                    bar.update()

            return self.add_records(records(), batch_size)

    def add_records(self, records: Iterable[Record], batch_size: int | None = None) -> AddReport:
        """As `add`, for records as the frameworks' doors make them, with their own bookkeeping."""
        size = _BATCH if batch_size is None else check_count(batch_size, "batch_size")
        report, iterator = AddReport(), iter(records)
        while taken := list(islice(iterator, size)):
            report += self._add({record.id: record for record in taken})
        return report

    def delete(self, ids: Sequence[str]) -> None:
        """Delete passages by id; ids that are not stored are no error."""
        wanted = check_ids(ids)
        with self._changing():
            for id_ in wanted:
                if (number := self._number_of.pop(id_, None)) is not None:
                    self._alive[number] = False
                    self._touch()

    def clear(self) -> None:
        """Delete every passage."""
        with self._changing():
            changed = self._unsaved or self.count() > 0
            self._take(Content(self._analyzer.facts, self._content.k1, self._content.b))
            if changed:
                self._touch()

    def get(self, ids: Sequence[str]) -> list[Passage]:
        """Return passages by id, in the order asked for; ids that are not stored are left out."""
        return [record.passage for record in self.get_records(check_ids(ids))]

    def get_records(
        self, ids: Sequence[str] | None = None, *, where: Where | None = None, where_document: Where | None = None
    ) -> list[Record]:
        """Return records by id, in the order asked for and missing ones left out, or by filter, or all."""
        matches = matcher(where, where_document)
        with self._lock:
            self._follow()
            if ids is None:
                numbers = np.flatnonzero(self._mask()).tolist()
            else:
                numbers = [self._number_of[id_] for id_ in dict.fromkeys(ids) if id_ in self._number_of]
            rows = self._content.rows
        records = (rows[number] for number in numbers)
        return [record for record in records if matches is None or matches(record)]

    def count(self) -> int:
        """Return the number of passages."""
        with self._lock:
            self._follow()
            return self._alive.count(True)

    def retrieve(
        self, query: str, k: int = 100, *, where: Where | None = None, where_document: Where | None = None
    ) -> list[Hit]:
        """Find the passages with the words of a query.

        Args:
            query: Not empty.
            k: How many at most.
            where: Filter on metadata in Chroma's language, such as `{"source": "atlas"}` or `{"year": {"$gte": 2020}}`.
            where_document: Filter on the text, such as `{"$contains": "France"}` or `{"$regex": "(?i)france"}`.

        Returns:
            Hits, best first, of equal scores the one stored earlier. `retrieval_score` is the BM25 score. A passage
            with none of the query's words, which would score 0, is no hit.

        Raises:
            InvalidInputError: If the query, k or a filter cannot be used.
        """
        return self.retrieve_many([check_query(query)], k, where=where, where_document=where_document)[0]

    async def aretrieve(
        self, query: str, k: int = 100, *, where: Where | None = None, where_document: Where | None = None
    ) -> list[Hit]:
        """As `retrieve`, without blocking the event loop."""
        call = partial(self.retrieve, query, k, where=where, where_document=where_document)
        return await self.worker.arun(call)

    def retrieve_many(
        self,
        queries: Sequence[str],
        k: int = 100,
        *,
        where: Where | None = None,
        where_document: Where | None = None,
    ) -> list[list[Hit]]:
        """Find the passages with the words of each query. As `retrieve` for each."""
        k = check_count(k, "k")
        found = self.search_records(check_queries(queries), k, where=where, where_document=where_document)
        return [
            [Hit(record.passage, rank, score, rank, score) for rank, (record, score) in enumerate(items, start=1)]
            for items in found
        ]

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
        return await self.worker.arun(call)

    def search_records(
        self, queries: Sequence[str], k: int, *, where: Where | None = None, where_document: Where | None = None
    ) -> list[list[tuple[Record, float]]]:
        """As `retrieve_many`: the records found for each query, best first, with their scores."""
        matches = matcher(where, where_document)
        with self._lock:
            scorer, rows = self._fresh(), self._content.rows
            k = min(k, len(rows))
            # The vocabulary may have learned more since, from passages that could not be stored.
            stems = len(scorer.scores["indptr"]) - 1
            asked = [[word for word in self._vocabulary.look_up(query) if word < stems] for query in queries]
        # No lock from here on: what others add lies behind the rows that the scorer knows.
        found: list[list[tuple[Record, float]]] = []
        for words in asked:
            scores = scorer.get_scores_from_ids(words) if words else np.zeros(0, np.float32)
            best = _best(scores, k if matches is None else None).tolist()
            items = ((rows[number], float(scores[number])) for number in best)
            found.append(list(islice((item for item in items if matches is None or matches(item[0])), k)))
        return found

    def save(self) -> None:
        """Write what has changed to the directory. Killed at any moment, it leaves the old index or the new one.

        Raises:
            InvalidInputError: If there is no directory, or it cannot be written.
            IndexMismatchError: If somebody else has saved other changes; these would be lost.
            IndexLockedError: If another process is saving for long.
        """
        with self._changing(follow=False):
            if self._folder is None:
                raise InvalidInputError("this index has no directory to be saved in; make it with path=…")
            if not self._unsaved and not self._cut_anew:
                return
            self._fresh()
            try:
                self._folder.save(used(self._content, list(self._vocabulary.stems)))
            except IndexMismatchError:
                self._told = True
                raise
            self._load(self._folder)  # what was in memory is let go of

    def close(self) -> None:
        """Save what has changed and release the index. One without a directory is gone.

        If saving fails, the index stays open with its changes: close it again when the cause is gone. Where somebody
        else has saved other changes, that never works; what this index holds can still be read, to be added to one
        opened anew. An index that is let go of, or still open at the end of the program, warns of what it could not
        save.

        Raises:
            RetrieveRerankError: As `save`, if there is something to save.
        """
        if os.getpid() != self._process or self._closed:
            return
        with self._lock:
            if self._folder is not None and self._unsaved:
                self.save()
            self.worker.close()
            self._take(Content(self._analyzer.facts, _K1, _B))
            self._closed = True

    def __repr__(self) -> str:
        return f"BM25Index(path={self.path!r}, language={self.language!r})"

    def __del__(self) -> None:
        # At the end of the object or of the program, when nobody else can save it any more, and nobody catch an error.
        # An object that failed to be made has no `_closed`.
        if getattr(self, "_closed", True) or self._folder is None or self._told:
            return
        try:
            self.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller cannot do anything about it
            self._told = True
            warn_caller(f"the last changes to the index in {self.path!r} are lost: {error}", RuntimeWarning)

    @contextmanager
    def _changing(self, *, follow: bool = True) -> Iterator[None]:
        """Hold the lock for a change, on top of what others have saved, in the process that can save it."""
        # Before the lock is taken: another thread of the parent may have held it.
        if os.getpid() != self._process:
            raise RetrieveRerankError(
                f"this BM25 index was opened in process {self._process} and cannot be changed in its forked child "
                f"{os.getpid()}, which would never save it. Open it in the child, or start processes with "
                "multiprocessing.get_context('spawn')"
            )
        with self._lock:
            self._check_open()
            if follow:
                self._follow()
            yield

    # Below, the lock is held.

    def _add(self, records: dict[str, Record]) -> AddReport:
        with self._changing():
            numbers, rows = self._number_of, self._content.rows
            changed = []
            for record in records.values():
                number = numbers.get(record.id)
                if number is None or not record.equals(rows[number]):
                    changed.append((record, self._vocabulary.learn(record.text)))
            emptied: list[int] = []
            before = len(self._alive), len(self._words), len(self._lengths)
            try:
                for record, words in changed:
                    if (number := numbers.get(record.id)) is not None:
                        emptied.append(number)
                        self._alive[number] = False
                    numbers[record.id] = len(self._alive)
                    self._alive.append(True)
                    rows.append(record)
                    self._words.fromlist(words)
                    self._lengths.append(len(words))
                if changed:
                    self._touch()
            except BaseException:  # also Ctrl-C: half a record would give all later ones their neighbours' words
                self._undo(*before, emptied)
                raise
            return AddReport(len(changed) - len(emptied), len(emptied), len(records) - len(changed))

    def _undo(self, count: int, words: int, lengths: int, emptied: Sequence[int]) -> None:
        """Take back a batch."""
        del self._alive[count:], self._words[words:], self._lengths[lengths:]
        self._content.rows.cut(count)
        for number in emptied:
            self._alive[number] = True
        self._numbers = None

    def _load(self, folder: IndexFolder) -> None:
        """Take over what the directory holds."""
        content = folder.load()
        if content is None:
            return
        for fact in ("language", "tokenizer"):
            was, now = content.facts.get(fact), self._analyzer.facts.get(fact)
            if was != now:
                raise IndexMismatchError(
                    f"the words of the index in {str(folder.path)!r} were cut with {fact} {was!r}, and now it is "
                    f"{now!r}: words of different cuts do not meet. Open it as it was made (language="
                    f"{content.facts.get('language')!r}), or use another directory and add the passages again"
                )
        if content.weights is None or content.facts != self._analyzer.facts:
            warn_caller(
                f"the words of the index in {str(folder.path)!r} were cut by another version of retrieve-rerank, the "
                "stemmer or the stop words; they are cut anew, at every opening until it is saved: save()",
                UserWarning,
            )
            self._take(replace(content, facts=self._analyzer.facts, stems=(), words=_NONE, lengths=_NONE, weights=None))
            self._cut_anew = True
            for number in range(len(content.rows)):
                words = self._vocabulary.learn(content.rows[number].text)
                self._words.fromlist(words)
                self._lengths.append(len(words))
        else:
            self._take(content)

    def _take(self, content: Content) -> None:
        k1, b = (
            new if given is None else given for given, new in zip(self._given, (content.k1, content.b), strict=True)
        )
        self._scorer = None
        if content.weights is not None and (k1, b) == (content.k1, content.b):
            self._scorer = self._scorer_of(content.weights)
        self._content = replace(content, k1=k1, b=b)
        self._vocabulary = Vocabulary(self._analyzer, content.stems)
        self._alive = bytearray(b"\1") * len(content.rows)
        self._numbers = None
        self._words, self._lengths = array("i"), array("i")
        self._unsaved = self._cut_anew = False

    def _follow(self) -> None:
        """See what others have saved, unless there are changes of our own."""
        self._check_open()
        if self._folder is not None and not self._unsaved and self._folder.changed():
            self._load(self._folder)

    def _check_open(self) -> None:
        if self._closed:
            raise RetrieveRerankError("this BM25 index was closed; open it again")
        if self._torn:
            raise RetrieveRerankError(
                f"this BM25 index was in use by another thread when process {self._process} was forked, and is here in "
                "the middle of that. Open it in the child, or start processes with "
                "multiprocessing.get_context('spawn')"
            )

    def _begin_anew(self) -> None:
        """In a forked child: the thread that may have held the lock is not there to let go of it."""
        self._torn = self._torn or not self._lock.acquire(blocking=False)
        self._lock = threading.RLock()

    def _touch(self) -> None:
        """Note that records have changed."""
        self._scorer, self._unsaved, self._told = None, True, False

    def _mask(self) -> npt.NDArray[np.bool_]:
        """Which numbers are alive. A copy: a bytearray that an array looks into, as a kept error's may, cannot grow."""
        return np.frombuffer(bytes(self._alive), np.bool_)

    @property
    def _number_of(self) -> dict[str, int]:
        """The number of each id. Made when first needed, as searching needs none."""
        if self._numbers is None:
            rows = self._content.rows
            self._numbers = {rows.id(number): number for number, alive in enumerate(self._alive) if alive}
        return self._numbers

    def _fresh(self) -> Any:
        """Return a scorer that knows all records, with the empty numbers gone."""
        self._follow()
        if self._scorer is None:
            content, alive = self._content, self._mask()
            words = np.concatenate([content.words, np.array(self._words, np.int32)])
            lengths = np.concatenate([content.lengths, np.array(self._lengths, np.int32)])
            rows = content.rows
            if not alive.all():
                words, lengths, rows = words[np.repeat(alive, lengths)], lengths[alive], rows.only(alive)
            weights = weigh(words, lengths, len(self._vocabulary), content.k1, content.b)
            numbers = self._numbers if rows is content.rows else None
            content = replace(content, words=words, lengths=lengths, weights=weights, rows=rows)
            made = content, bytearray(b"\1") * len(rows), numbers, array("i"), array("i"), self._scorer_of(weights)
            # In one step, so that Ctrl-C comes before or after it.
            self._content, self._alive, self._numbers, self._words, self._lengths, self._scorer = made
        return self._scorer

    def _scorer_of(self, weights: Weights) -> Any:
        scorer = self._bm25s.BM25()
        scorer.scores, scorer.nonoccurrence_array = weights, None
        return scorer


def _best(scores: npt.NDArray[np.float32], k: int | None) -> Ints:
    """Return the `k` numbers with the highest scores above 0, or all of them, best first.

    Of equal scores the lower number, which was stored earlier, comes first.
    """
    numbers = np.flatnonzero(scores > 0)
    values = scores[numbers]
    if k is not None and k < len(numbers):
        least = np.partition(values, len(values) - k)[len(values) - k]
        numbers = numbers[values >= least]
        values = scores[numbers]
    order = np.argsort(-values, kind="stable")
    return numbers[order if k is None else order[:k]]


_NONE: Ints = np.zeros(0, np.int32)
_ALL: weakref.WeakSet[BM25Index] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    with ExitStack() as turns:  # each gets its turn, even where warnings are errors
        for index in list(_ALL):
            turns.callback(index.__del__)


def _after_fork() -> None:
    for index in list(_ALL):
        index._begin_anew()  # noqa: SLF001 - nobody else's business


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _checked_number(name: str, value: float | None, most: float) -> float | None:
    if value is None:
        return None
    if not 0 <= number_of(value) <= most:
        raise InvalidInputError(f"{name} must be a number from 0 to {most:g}, got {shown(value)}")
    return float(value)
