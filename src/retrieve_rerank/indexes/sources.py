"""The passages of one source, replaced as a whole: what is new comes first, what is stale goes last."""

from __future__ import annotations

import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

from retrieve_rerank.errors import InvalidInputError, shown
from retrieve_rerank.indexes.records import check_passage, check_passages, to_record
from retrieve_rerank.indexes.store import ChromaCollection
from retrieve_rerank.types import Passage

_CHUNK = 1_000  # passages looked up in one go


_REPLACING: weakref.WeakValueDictionary[uuid.UUID, threading.RLock] = weakref.WeakValueDictionary()
_ONE = threading.Lock()


@contextmanager
def one_at_a_time(collection: ChromaCollection) -> Iterator[None]:
    """Hold what keeps other threads from replacing a source meanwhile: of one source, each would leave its passages."""
    collection_id = collection.handle.id
    with _ONE:
        turn = _REPLACING.setdefault(collection_id, threading.RLock())
    with turn:
        yield


class Source:
    """One source's passages in a collection, at the time this is made, whose maker writes the directory from then on.

    Args:
        collection: Where they are.
        source_id: The source.
        source_key: The metadata key that holds it.

    Raises:
        InvalidInputError: If the source or the key cannot be stored and searched.
        IndexLockedError: If another process writes the directory.
    """

    def __init__(self, collection: ChromaCollection, source_id: str, source_key: str) -> None:
        for name, value in (("source_id", source_id), ("source_key", source_key)):
            if not isinstance(value, str) or not value:
                raise InvalidInputError(f"{name} must be a non-empty string, got {shown(value)}")
        if to_record(Passage("-", "", {source_key: source_id})).metadata.get(source_key) != source_id:
            raise InvalidInputError(
                f"source_key {source_key!r} cannot be searched by; use a plain word such as 'source'"
            )
        self.collection, self.id, self.key = collection, source_id, source_key
        collection.become_writer()
        self._before = set(collection.ids(where={source_key: {"$eq": source_id}}))
        self._now: set[str] = set()

    def marked(self, passages: Iterable[Passage]) -> Iterator[Passage]:
        """Yield the passages as this source's, with the source in their metadata.

        Raises:
            InvalidInputError: If one is another source's, by its own metadata or by what is stored under its id.
        """
        check_passages(passages)
        numbered = enumerate(passages)
        while chunk := [self._mine(check_passage(passage, place)) for place, passage in islice(numbered, _CHUNK)]:
            unknown = [passage.id for passage in chunk if passage.id not in self._before]
            for stored in self.collection.read(unknown):
                owner = stored.passage.metadata.get(self.key)
                if owner not in (None, self.id):
                    raise InvalidInputError(
                        f"passage {stored.id!r} is stored as one of source {owner!r}; an id belongs to one source. "
                        "Give the passages ids that name their source, or delete the other one's first"
                    )
            self._now.update(passage.id for passage in chunk)
            yield from chunk

    def remove_stale(self) -> int:
        """Delete what is stored of the source and was not among the passages; return how many that were."""
        stale = self._before - self._now
        self.collection.delete(sorted(stale))
        return len(stale)

    def _mine(self, passage: Passage) -> Passage:
        owner = passage.metadata.get(self.key)
        if owner is None:
            # First, so that it can be searched by, however many values there are.
            return Passage(passage.id, passage.text, {self.key: self.id, **passage.metadata, self.key: self.id})
        if owner != self.id:
            raise InvalidInputError(
                f"passage {passage.id!r} says that its {self.key!r} is {owner!r}, not {self.id!r}; nothing was removed"
            )
        return passage
