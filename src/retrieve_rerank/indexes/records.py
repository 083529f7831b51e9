"""A passage as Chroma stores it, and back. The one format that the core and both frameworks share.

Chroma's metadata is flat: text, numbers, booleans and lists of one kind. Such values are stored as they are, so that
filters work on them. Whatever else JSON can say (None, nested, empty or mixed values) goes, as JSON, under one
key of ours and comes back as it was; so do keys that Chroma does not give back, and what is more than it can apply.
Records with LlamaIndex's own bookkeeping keep the user's metadata in its JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieve_rerank.checks import check_encodable, check_texts, is_iterable
from retrieve_rerank.errors import InvalidInputError, shown
from retrieve_rerank.types import Passage

JSON_KEY = "_retrieve_rerank_json"
NODE_KEY = "_node_content"  # LlamaIndex's key for a node as JSON, next to which it stores flat copies of some ids

# Chroma logs a record first and applies it later, with five or six of SQLite's 32,766 variables for every value and
# every item of a list. A record of 5,000 is applied; one of 6,000 stays in the log, and every later call fails at it.
MOST_VALUES = 4_000

_EXACT = 2**53  # up to here every int is a float
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a collection: what Chroma holds, without its vector."""

    id: str
    text: str
    metadata: Mapping[str, Any]

    @property
    def passage(self) -> Passage:
        """The passage with the user's own metadata, whoever wrote the record."""
        return Passage(self.id, self.text, user_metadata(self.metadata))

    def equals(self, stored: Record) -> bool:
        """Whether Chroma, asked for this record, would give `stored`.

        Equal is not enough, as 1 == True, and is too much, as Chroma may change the last digit of a float, whose
        exact value the record keeps elsewhere.
        """
        mine, theirs = (json.dumps(_comparable(record.metadata), sort_keys=True) for record in (self, stored))
        return self.text == stored.text and mine == theirs


def check_passages(passages: Iterable[Passage]) -> None:
    """Raise InvalidInputError if `passages` is no iterable of several."""
    if isinstance(passages, (Passage, str)) or not is_iterable(passages):
        raise InvalidInputError(f"passages must be an iterable of Passage, got {type(passages).__name__}")


def check_passage(passage: Passage, position: int) -> Passage:
    """Return `passage`, or raise InvalidInputError naming its position if it is none."""
    if not isinstance(passage, Passage):
        raise InvalidInputError(
            f"passages[{position}] must be a Passage, got {type(passage).__name__}; make one: Passage(id, text)"
        )
    return passage


def to_record(passage: Passage, bookkeeping: Mapping[str, str] | None = None) -> Record:
    """Return `passage` as a record.

    Args:
        passage: What to store.
        bookkeeping: Further keys to store beside the user's metadata; they win over the user's keys of the same name.

    Raises:
        InvalidInputError: If the text or the metadata cannot be stored, naming the passage and the key.
    """
    check_encodable(passage.id, "a passage's id")
    check_encodable(passage.text, f"the text of passage {shown(passage.id)}")
    flat, rest = _split(passage)
    if bookkeeping:
        flat.update(bookkeeping)
    elif rest:
        try:
            flat[JSON_KEY] = json.dumps(rest)
        except (RecursionError, ValueError) as error:
            raise InvalidInputError(
                f"the metadata {sorted(rest)} of passage {shown(passage.id)} cannot be written as JSON: {error}"
            ) from error
    # Of a subclass, such as an enumeration of strings, the value is stored, not what str() makes of it.
    return Record(str.__str__(passage.id), str.__str__(passage.text), flat)


def _split(passage: Passage) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metadata that Chroma stores as it is, and the rest."""
    flat: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for key, value in passage.metadata.items():
        if not isinstance(key, str):
            raise InvalidInputError(
                f"the metadata of passage {shown(passage.id)} has the key {shown(key)}; keys must be strings, "
                f"not {type(key).__name__}"
            )
        if key == JSON_KEY:
            raise InvalidInputError(
                f"the metadata key {JSON_KEY!r} (passage {shown(passage.id)}) is reserved; rename it"
            )
        key = str.__str__(key)  # a subclass, such as an enumeration, is no key to Chroma's server
        check_encodable(key, f"a metadata key of passage {shown(passage.id)}")
        try:
            plain = _plain(value, f"metadata[{key!r}] of passage {shown(passage.id)}")
        except RecursionError as error:
            raise InvalidInputError(
                f"metadata[{key!r}] of passage {shown(passage.id)} is nested without end; store a flatter value"
            ) from error
        seen = _stand_in(plain)
        if _is_storable(key, seen):
            flat[key] = seen
        if key not in flat or seen is not plain or _is_rounded(plain):
            rest[key] = plain
    for key in _beyond_most_values(flat):
        rest.setdefault(key, flat.pop(key))
    return flat, rest


def size_of(value: object) -> int:
    """Return how many values Chroma stores for one."""
    return len(value) if isinstance(value, list) else 1


def _beyond_most_values(flat: Mapping[str, Any]) -> list[str]:
    """Return the keys to leave out, long lists first and then the last, so that Chroma can apply the rest."""
    total = sum(map(size_of, flat.values()))
    left_out = []
    for _, key in sorted(enumerate(flat), key=lambda item: (size_of(flat[item[1]]), item[0]), reverse=True):
        if total <= MOST_VALUES:
            break
        total -= size_of(flat[key])
        left_out.append(key)
    return left_out


def fits_log(logged: Mapping[str, Any]) -> bool:
    """Whether Chroma can apply metadata as its log has it, with NaN as None."""
    if any(None in value for value in logged.values() if isinstance(value, list)):
        return False
    return sum(map(size_of, logged.values())) <= MOST_VALUES


def fit_to_log(logged: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata of Chroma's log so that it can be applied, with the rest where a record keeps such."""
    flat = dict(logged)
    moved = [key for key, value in flat.items() if isinstance(value, list) and None in value]
    rest = {key: flat.pop(key) for key in moved}
    own = {key: flat.pop(key) for key in list(flat) if key.startswith("chroma:") or key in (NODE_KEY, JSON_KEY)}
    rest |= {key: flat.pop(key) for key in _beyond_most_values(flat)}
    if JSON_KEY in own:
        rest = {**json.loads(own[JSON_KEY]), **rest}
    return {**own, **flat, JSON_KEY: json.dumps(rest)}


def user_metadata(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's metadata of a stored record."""
    if NODE_KEY in stored:
        try:
            node = json.loads(stored[NODE_KEY])
        except ValueError:
            node = None
        if isinstance(node, dict) and isinstance(node.get("metadata"), dict):
            return dict(node["metadata"])
    try:
        rest = json.loads(stored[JSON_KEY])
    except (KeyError, TypeError, ValueError):
        rest = None
    if not isinstance(rest, dict):  # there is none, or another program wrote it: `check` says so
        return dict(stored)
    return {**{key: value for key, value in stored.items() if key != JSON_KEY}, **rest}


def embedded_text(record: Record) -> str:
    """Return the text that LlamaIndex embeds for a record of its own; of any other record, the text."""
    try:
        node = json.loads(record.metadata[NODE_KEY])
        metadata = node["metadata"]
        hidden = set(node.get("excluded_embed_metadata_keys") or ())
        line = str(node.get("metadata_template") or "{key}: {value}")
        between = str(node.get("metadata_separator", node.get("metadata_seperator", "\n")))
        whole = str(node.get("text_template") or "{metadata_str}\n\n{content}")
        lines = [
            line.replace("{key}", key).replace("{value}", str(value))
            for key, value in metadata.items()
            if key not in hidden
        ]
    except (AttributeError, KeyError, TypeError, ValueError):  # no node of LlamaIndex's
        return record.text
    facts = between.join(lines).strip()
    # The text may hold braces as well: one pass, no second look.
    before, found, after = whole.partition("{content}")
    if not facts or not found:
        return record.text
    return f"{before.replace('{metadata_str}', facts)}{record.text}{after.replace('{metadata_str}', facts)}".strip()


def _plain(value: object, where: str) -> Any:
    """Return `value` as plain JSON types, or raise InvalidInputError."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    # Of a subclass, such as an enumeration, the value is stored, not what str() makes of it.
    for kind in (int, float):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    if isinstance(value, str):
        check_encodable(value, where)
        return str.__str__(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item, where) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise InvalidInputError(f"{where} holds a mapping whose keys are not all strings; convert them")
        for key in value:
            check_encodable(key, f"a key in {where}")
        return {str.__str__(key): _plain(item, where) for key, item in value.items()}
    raise InvalidInputError(
        f"{where} is a {type(value).__name__}, which cannot be stored; give text, a number, a boolean, None, or a list "
        "or mapping of these (a date as .isoformat())"
    )


def _comparable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    return ["float", f"{value:.15g}"] if isinstance(value, float) else value


def _is_rounded(value: object) -> bool:
    """Whether Chroma may change the last digit of `value`; filters work all the same."""
    if isinstance(value, list):
        return any(_is_rounded(item) for item in value)
    if not isinstance(value, float) or value == 0:
        return False
    # Its JSON reader is exact up to 15 digits near 1.
    return not 1e-6 <= abs(value) < 1e15 or float(f"{value:.15g}") != value


def _stand_in(value: Any) -> Any:
    """Return what filters see of a value that Chroma would not give back as it is; any other as it is.

    -0.0 comes back as 0.0, and a list must be all ints or all floats.
    """
    if isinstance(value, float) and value == 0 and math.copysign(1, value) < 0:
        return 0.0
    if not isinstance(value, list) or not {type(item) for item in value} <= {int, float}:
        return value
    mixed = [_stand_in(item) for item in value]
    if {int, float} <= {type(item) for item in mixed} and all(abs(item) <= _EXACT for item in mixed):
        mixed = [float(item) for item in mixed]
    return value if repr(mixed) == repr(value) else mixed


def _is_storable(key: str, value: object) -> bool:
    """Whether Chroma stores `value` under `key` unchanged."""
    # Chroma refuses the first two, and forgets its own: it gives no key back that begins as the third.
    if not key or key.startswith(("#", "$", "chroma:")) or key == NODE_KEY:
        return False
    if isinstance(value, list):
        kinds = {type(item) for item in value}
        return len(kinds) == 1 and all(not isinstance(item, list) and _is_storable(key, item) for item in value)
    if isinstance(value, bool):
        return True
    if isinstance(value, int):
        return value in _INT64
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str)


def metadatas_over(records: Sequence[Record], old: Mapping[str, Record]) -> Any:
    """Return what to send to Chroma so that records have their own metadata, whatever is stored under their ids.

    Chroma merges metadata: a key goes only if it is set to None. A new record must not send None values, which Chroma
    takes on known ids only.
    """
    keys = {id_: record.metadata for id_, record in old.items()}
    return [{**dict.fromkeys(keys.get(record.id, ())), **record.metadata} or None for record in records]


def check_ids(ids: Sequence[str]) -> list[str]:
    """Return `ids` as a list, or raise InvalidInputError if one is not a non-empty string."""
    wanted = check_texts(ids, "ids")
    if "" in wanted:
        raise InvalidInputError(f"ids[{wanted.index('')}] is empty; an id must have at least one character")
    return [str.__str__(id_) for id_ in wanted]  # an enumeration of strings is found under its names only


def batches_of(records: Iterable[Record], limit: int) -> Iterator[list[Record]]:
    """Group records into batches of `limit`, without holding more than one; of equal ids in a batch the last wins."""
    batch: dict[str, Record] = {}
    for record in records:
        batch.pop(record.id, None)
        batch[record.id] = record
        if len(batch) == limit:
            yield list(batch.values())
            batch = {}
    if batch:
        yield list(batch.values())
