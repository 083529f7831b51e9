"""Records found by their words: what `BM25Index` and the two frameworks' retrievers stand on.

A record has a slot for life: a number that its words, its text and its score share. A record that is replaced or
deleted leaves its slot empty and gets a new one; empty slots go when the index is saved. The weights of all words
depend on all records, so they are worked out anew at the first search after a change; cutting texts into words, which
takes longest, is done once a record.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from numbers import Real

import numpy as np
import numpy.typing as npt

from retrieve_rerank.checks import check_count
from retrieve_rerank.errors import IndexMismatchError, InvalidInputError, RetrieveRerankError, require, warn_caller
from retrieve_rerank.indexes.bm25_files import Columns, Content, IndexFolder
from retrieve_rerank.indexes.filters import Matches, Where, matcher
from retrieve_rerank.indexes.postings import Floats, Postings, Scorer, best
from retrieve_rerank.indexes.records import Record
from retrieve_rerank.indexes.words import Analyzer, Tokenizer, Vocabulary
from retrieve_rerank.models.threads import Worker
from retrieve_rerank.types import AddReport

_BATCH = 1_000  # records taken in one go
_K1, _B = 1.5, 0.75  # bm25s's


@dataclass(frozen=True, slots=True)
class Found:
    """What a query found, best first: slots, whose records are in `columns`, and their BM25 scores."""

    columns: Columns
    slots: Sequence[int]
    scores: Sequence[float]


class BM25Collection:
    """Records in memory, and in a directory if there is one; see `BM25Index` for what the arguments mean."""

    _k1: float
    _b: float
    _vocabulary: Vocabulary
    _columns: Columns
    _alive: bytearray  # by slot
    _slots: dict[str, int] | None  # by id
    _postings: Postings
    _scorer: Scorer | None  # None: something has changed since
    _words: array[int]  # of the last records, whose postings have not been made yet, one after another,
    _lengths: array[int]  # and how many each of these has
    _stale: bool  # some postings are of empty slots
    _unsaved: bool
    _told: bool  # somebody was told that what is unsaved cannot be saved any more

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        language: str | None = "en",
        *,
        tokenizer: Tokenizer | None = None,
        k1: float | None = None,
        b: float | None = None,
    ) -> None:
        require("bm25s", extra="hybrid")
        self._given = _checked_number("k1", k1, 1e9), _checked_number("b", b, 1.0)
        self._analyzer = Analyzer(language, tokenizer)
        self._folder = None if path is None else IndexFolder(path)
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._closed = self._told = self._torn = False
        self.worker = Worker("retrieve-rerank BM25 index")
        self._start()
        _ALL.add(self)
        if self._folder is not None:
            self._read_again(self._folder)
            _OPEN.add(self)

    def __reduce__(self) -> tuple[Callable[[], BM25Collection], tuple[()]]:
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
        made = partial(BM25Collection, self.path, self.language, tokenizer=self._analyzer.tokenizer)
        return partial(made, k1=self._given[0], b=self._given[1]), ()

    @property
    def path(self) -> str | None:
        """The directory, if there is one."""
        return None if self._folder is None else str(self._folder.path)

    @property
    def language(self) -> str | None:
        """Name of the language, None where words are taken as they are."""
        return self._analyzer.language

    def add(self, records: Iterable[Record], batch_size: int | None = None) -> Iterator[AddReport]:
        """Store records batch by batch: new ids are added, known ids replaced; yields what became of each batch."""
        size = _BATCH if batch_size is None else check_count(batch_size, "batch_size")
        iterator = iter(records)
        while taken := list(islice(iterator, size)):
            yield self._add({record.id: record for record in taken})

    def _add(self, records: dict[str, Record]) -> AddReport:
        self._check_process()
        with self._lock:
            self._follow()
            slots = self._slot_of
            changed = []
            for record in records.values():
                slot = slots.get(record.id)
                if slot is None or not record.equals(self._columns.record(slot)):
                    changed.append((record, self._vocabulary.learn(record.text)))
            emptied: list[int] = []
            before = len(self._alive), len(self._words), len(self._lengths)
            try:
                for record, words in changed:
                    if (slot := slots.get(record.id)) is not None:
                        emptied.append(slot)
                        self._empty(slot)
                    slots[record.id] = len(self._alive)
                    self._alive.append(True)
                    self._columns.append(record)
                    self._words.fromlist(words)
                    self._lengths.append(len(words))
                if changed:
                    self._touch()
            except BaseException:  # also Ctrl-C: half a record would give all later ones their neighbours' words
                self._undo(*before, emptied)
                raise
            return AddReport(len(changed) - len(emptied), len(emptied), len(records) - len(changed))

    def _undo(self, slots: int, words: int, lengths: int, emptied: Sequence[int]) -> None:
        """Take back a batch."""
        del self._alive[slots:], self._words[words:], self._lengths[lengths:]
        self._columns.cut(slots)
        for slot in emptied:
            self._alive[slot] = True
        self._slots = None

    def delete(self, ids: Iterable[str]) -> None:
        """Delete records by id; ids that are not stored are no error."""
        self._check_process()
        with self._lock:
            self._follow()
            for id_ in ids:
                if (slot := self._slot_of.pop(id_, None)) is not None:
                    self._empty(slot)
                    self._touch()

    def clear(self) -> None:
        """Delete every record."""
        self._check_process()
        with self._lock:
            self._follow()
            changed = self._unsaved or self.count() > 0
            self._start(self._k1, self._b)
            if changed:
                self._touch()

    def read(
        self, ids: Sequence[str] | None = None, *, where: Where | None = None, where_document: Where | None = None
    ) -> list[Record]:
        """Return records by id, in the order asked for and missing ones left out, or by filter, or all."""
        matches = matcher(where, where_document)
        with self._lock:
            self._follow()
            if ids is None:
                slots = np.flatnonzero(self._mask()).tolist()
            else:
                slots = [self._slot_of[id_] for id_ in dict.fromkeys(ids) if id_ in self._slot_of]
            columns = self._columns
        records = (columns.record(slot) for slot in slots)
        return [record for record in records if matches is None or matches(record)]

    def count(self) -> int:
        """Return the number of records."""
        with self._lock:
            self._follow()
            return self._alive.count(True)

    def search(
        self, queries: Sequence[str], k: int, *, where: Where | None = None, where_document: Where | None = None
    ) -> list[Found]:
        """Return the `k` records with the highest scores above 0 for each query, of those that pass the filters."""
        matches = matcher(where, where_document)
        with self._lock:
            scorer = self._fresh()
            columns = self._columns
            words = [self._vocabulary.look_up(query) for query in queries]
        # No lock from here on: what others add lies behind the slots that the scorer knows.
        return [_found(scorer.scores(known), columns, k, matches) for known in words]

    def save(self) -> None:
        """Write what has changed to the directory; see `IndexFolder.save` for the errors."""
        self._check_process()
        with self._lock:
            self._check_open()
            if self._folder is None:
                raise InvalidInputError("this index has no directory to be saved in; make it with path=…")
            if not self._unsaved:
                return
            self._fresh()
            postings, alive = self._postings, None
            if not all(self._alive):
                mask = self._mask()
                postings, alive = postings.renumbered(mask), np.flatnonzero(mask)
            used = np.diff(postings.starts) > 0
            # There may be more stems than that: of a batch that could not be stored.
            stems = [stem for stem, is_used in zip(self._vocabulary.stems, used.tolist(), strict=False) if is_used]
            content = Content(self._analyzer.facts, self._k1, self._b, stems, postings.with_words(used), self._columns)
            try:
                self._folder.save(content, alive)
            except IndexMismatchError:
                self._told = True
                raise
            self._read_again(self._folder)  # what was in memory is let go of

    def close(self) -> None:
        """Save what has changed, if there is a directory, and let go of everything.

        If saving fails, the index stays open and keeps its changes; see `save` for the errors.
        """
        if os.getpid() != self._process or self._closed:
            return
        with self._lock:
            if self._folder is not None and self._unsaved:
                self.save()
            self.worker.close()
            self._start()
            self._closed = True

    def __del__(self) -> None:
        # Nobody else can save it any more. An object that failed to be made has no `_closed`.
        if getattr(self, "_closed", True) or self._folder is None:
            return
        self.close_or_warn()

    def close_or_warn(self) -> None:
        """Close where nobody could catch an error: at the end of the object, or of the program."""
        if self._told:
            return
        try:
            self.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller cannot do anything about it
            self._told = True
            warn_caller(f"the last changes to the index in {self.path!r} are lost: {error}", RuntimeWarning)

    # Below, the lock is held.

    def _start(self, k1: float = _K1, b: float = _B) -> None:
        """Forget every record."""
        self._take(Content(self._analyzer.facts, k1, b, [], Postings.empty(), Columns.empty()))

    def _read_again(self, folder: IndexFolder) -> None:
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
        self._take(content)
        if content.facts != self._analyzer.facts:  # another version of the stemmer or the stop words
            self._vocabulary, self._postings, self._scorer = Vocabulary(self._analyzer), Postings.empty(), None
            for slot in range(len(self._alive)):
                words = self._vocabulary.learn(content.columns.texts[slot])
                self._words.fromlist(words)
                self._lengths.append(len(words))

    def _take(self, content: Content) -> None:
        self._k1 = content.k1 if self._given[0] is None else self._given[0]
        self._b = content.b if self._given[1] is None else self._given[1]
        self._vocabulary = Vocabulary(self._analyzer, content.stems)
        self._columns = content.columns
        self._alive = bytearray(b"\1") * len(content.columns.ids)
        self._slots = None
        self._postings = content.postings
        self._scorer = None
        if content.postings.weights is not None and (self._k1, self._b) == (content.k1, content.b):
            self._scorer = Scorer(content.postings, len(self._alive))
        self._words, self._lengths = array("i"), array("i")
        self._stale = False
        self._unsaved = False

    def _follow(self) -> None:
        """See what others have saved, unless there are changes of our own."""
        self._check_open()
        if self._folder is not None and not self._unsaved and self._folder.changed():
            self._read_again(self._folder)

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

    def _check_process(self) -> None:
        # Before the lock is taken: another thread of the parent may have held it.
        if os.getpid() != self._process:
            raise RetrieveRerankError(
                f"this BM25 index was opened in process {self._process} and cannot be changed in its forked child "
                f"{os.getpid()}, which would never save it. Open it in the child, or start processes with "
                "multiprocessing.get_context('spawn')"
            )

    def _touch(self) -> None:
        """Note that records have changed."""
        self._scorer, self._unsaved, self._told = None, True, False

    def _mask(self) -> npt.NDArray[np.bool_]:
        """Which slots are alive. A copy: a bytearray that an array looks into, such as a kept error's, cannot grow."""
        return np.frombuffer(bytes(self._alive), np.bool_)

    @property
    def _slot_of(self) -> dict[str, int]:
        """The slot of each id. Made when first needed, as searching needs none."""
        if self._slots is None:
            ids = self._columns.ids
            self._slots = {ids[slot]: slot for slot, alive in enumerate(self._alive) if alive}
        return self._slots

    def _empty(self, slot: int) -> None:
        self._alive[slot] = False
        self._stale = True

    def _fresh(self) -> Scorer:
        """Return a scorer that knows all records."""
        self._follow()
        if self._scorer is None:
            slots = len(self._alive)
            if self._lengths:
                first = slots - len(self._lengths)
                self._postings = self._postings.grown(self._words, self._lengths, first, len(self._vocabulary))
                self._words, self._lengths = array("i"), array("i")
            if self._stale:
                self._postings = self._postings.without(self._mask())
                self._stale = False
            if slots > 2 * self._alive.count(True) + _BATCH:
                self._compact()
            self._postings = self._postings.weighed(self._alive.count(True), len(self._alive), self._k1, self._b)
            self._scorer = Scorer(self._postings, len(self._alive))
        return self._scorer

    def _compact(self) -> None:
        """Give up empty slots, which nothing refers to any more. Who still reads the old columns has them."""
        alive = self._mask()
        columns, postings = self._columns.kept(np.flatnonzero(alive)), self._postings.renumbered(alive)
        self._columns, self._postings = columns, postings
        self._alive = bytearray(b"\1") * len(self._columns.ids)
        self._slots = None


def _found(scores: Floats, columns: Columns, k: int, matches: Matches | None) -> Found:
    slots = best(scores, k if matches is None else None).tolist()
    if matches is not None:
        slots = list(islice((slot for slot in slots if matches(columns.record(slot))), k))
    return Found(columns, slots, scores[slots].tolist())


_ALL: weakref.WeakSet[BM25Collection] = weakref.WeakSet()
_OPEN: weakref.WeakSet[BM25Collection] = weakref.WeakSet()  # those in a directory


@atexit.register
def _close_all() -> None:
    with ExitStack() as turns:  # each gets its turn, even where warnings are errors
        for collection in list(_OPEN):
            turns.callback(collection.close_or_warn)


def _after_fork() -> None:
    for collection in list(_ALL):
        collection._begin_anew()  # noqa: SLF001 - nobody else's business


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _checked_number(name: str, value: float | None, most: float) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= most:
        raise InvalidInputError(f"{name} must be a number from 0 to {most:g}, got {value!r}")
    return float(value)
