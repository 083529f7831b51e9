"""Random operations with hostile ids, texts and metadata, against a plain dictionary: no difference, no foreign error.

INDEX_OPERATIONS in the environment sets how many for each kind of index, INDEX_SEED which.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from retrieve_rerank import BM25Index, ChromaIndex, InvalidInputError, Passage
from retrieve_rerank.indexes.records import JSON_KEY, NODE_KEY
from tests.core.test_filters import CLAUSES, VALUES, holds
from tests.core.test_records import same

OPERATIONS = int(os.environ.get("INDEX_OPERATIONS", "200"))
SEED = int(os.environ.get("INDEX_SEED", "0"))
STEPS = 40


class HashEncoder:
    """Eight small whole numbers for a text: sums of products are exact, equal vectors are rare."""

    dimension = 8

    def __init__(self, metric: str) -> None:
        self.metric: Any = metric
        self.fingerprint = {"model": "hash", "dimension": 8}

    def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return vectors_of(texts)

    encode_documents = encode_queries


def vectors_of(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    rows = [[byte % 17 - 8 or 1 for byte in hashlib.sha256(text.encode()).digest()[:8]] for text in texts]
    return np.array(rows, np.float32).reshape(len(texts), 8)


ANY = st.characters()  # with the lone surrogates, the controls and NUL
AWKWARD = [
    *[
        "\x00",
        "a\x00b",
        "\ud800",
        "👩‍👩‍👧",
        "e\u0301",
        "\u00e9",
        "'; DROP TABLE embeddings;--",
        "%",
        "_",
        "../../etc",
        "$ne",
    ],
    *["#id", "\u202e", "\ufeff", " ", "\n", "None", "null", "x" * 5000, '"', "\\", "{}", "ß", "İ", "a" * 200],
]
WORDED = ["runs alpha", "alpha beta beta", "cat running the"]
IDS = st.one_of(
    st.sampled_from(["a", "b", "c", "d", "e", "f", "g"]), st.sampled_from(AWKWARD), st.text(ANY, max_size=6)
)
TEXTS = st.one_of(
    st.sampled_from(["", "a", "the cat", "a 100% sure_thing", "Straße", *WORDED]),
    st.sampled_from(AWKWARD),
    st.text(ANY, max_size=12),
)
MUCH: list[dict[str, Any]] = [
    *[{}] * 36,
    {f"key {number}": number / 7 for number in range(60)},
    {"long": list(range(300)), "words": [str(number) for number in range(300)]},
    {"long": list(range(7_000))},  # more than Chroma can keep of one passage, as are the keys
    {f"key {number}": number for number in range(7_000)},
]
NUMBERS = [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**40, 0, 1, 1.0, -0.0, 1e16, 5e-324]


def values(letters: st.SearchStrategy[str], awkward: list[str]) -> st.SearchStrategy[Any]:
    scalars = st.one_of(
        *[st.none(), st.booleans(), st.integers(), st.sampled_from(NUMBERS), st.floats()],
        *[st.text(letters, max_size=5), st.sampled_from(awkward)],
    )
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(letters, max_size=3), inner, max_size=2),
        max_leaves=5,
    )


def metadata(letters: st.SearchStrategy[str], awkward: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    strange = ["", "#document", "$and", "$", "chroma:document", "chroma:", "chroma:x", "hnsw:space", "document_id"]
    strange += [NODE_KEY, "id", "x" * 300]
    filtered = st.sampled_from([*VALUES, None, [], {}, math.nan, math.inf, [1, "a"]])
    return st.builds(
        # Of too many, the last are kept and cannot be filtered by.
        lambda much, rest, filtered: {**filtered, **MUCH[much], **rest, **filtered},
        st.integers(0, len(MUCH) - 1),
        st.dictionaries(st.text(letters, max_size=4) | st.sampled_from(strange), values(letters, awkward), max_size=3),
        st.dictionaries(st.sampled_from(["k", "j"]), filtered),
    )


VALID = st.characters(exclude_categories=("Cs",))
VALID_AWKWARD = [text for text in AWKWARD if "\ud800" not in text]
VALID_TEXTS = st.text(VALID, max_size=12) | st.sampled_from(["", "a", "the cat", *WORDED, *VALID_AWKWARD])
VALID_METADATA = metadata(VALID, VALID_AWKWARD)
# Now and then, what no index takes.
WRONG = st.sampled_from([object(), {1}, b"bytes", {1: 2}, 1j, [b""], {"deep": {"deeper": object()}}, "\ud800"])
METADATA = st.builds(
    lambda good, any_, wrong, dice: [good, good, good, good, good, good, good, any_, wrong, {JSON_KEY: "{}"}][dice],
    VALID_METADATA,
    metadata(ANY, AWKWARD),
    st.one_of(st.dictionaries(st.just("k"), WRONG, min_size=1), st.sampled_from([{3: 1}, {None: 1}])),
    st.integers(0, 9),
)
DRAFTS = st.lists(st.tuples(IDS, TEXTS, METADATA), max_size=6)
PARTS = st.one_of(
    st.sampled_from(["a", "%", "_", "100%", "cat", "ß", "x" * 2000]), st.text(ANY, min_size=1, max_size=3)
)


def encodable(value: Any) -> bool:
    """Whether a value is made of what JSON can say, in valid Unicode."""
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and encodable(key) and encodable(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(encodable, value))
    return value is None or isinstance(value, (bool, int, float))


def acceptable(draft: tuple[str, str, Any]) -> bool:
    id_, text, metadata = draft
    return bool(id_) and encodable(id_) and encodable(text) and encodable(metadata) and JSON_KEY not in metadata


def filterable(metadata: dict[str, Any]) -> dict[str, Any]:
    """What filters see: the rest is stored, but as JSON."""

    def flat(value: Any) -> bool:
        if isinstance(value, list):
            return len({type(item) for item in value}) == 1 and all(isinstance(i, (str, int, float)) for i in value)
        return isinstance(value, (bool, str, int)) or (isinstance(value, float) and math.isfinite(value))

    return {key: value for key, value in metadata.items() if key in ("k", "j") and flat(value)}


class Machine(RuleBasedStateMachine):
    """What every index does."""

    done: ClassVar = 0
    made: ClassVar = 0
    folder: Path
    index: Any

    def start(self, *, stored: bool) -> None:
        self.stored = stored
        Machine.made += 1
        self.name = f"index-{Machine.made}"
        self.model: dict[str, tuple[str, dict[str, Any]]] = {}
        self.index = self.opened()

    def opened(self) -> Any:
        raise NotImplementedError

    def expected(self, query: str, ids: Sequence[str]) -> dict[str, float]:
        """Return the score of each of these passages that the query finds."""
        raise NotImplementedError

    def looked_through(self, text: str) -> str:
        """Return what filters see of a text."""
        return text

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.close()

    def passages(self, drafts: Iterable[tuple[str, str, Any]]) -> Iterable[Passage]:
        return (Passage(*draft) for draft in drafts)

    @rule(drafts=DRAFTS, size=st.sampled_from([None, 1, 2, 3]))
    def add(self, drafts: list[tuple[str, str, Any]], size: int | None) -> None:
        Machine.done += 1
        before = dict(self.model)
        batch: dict[str, tuple[str, Any]] = {}
        for draft in drafts:
            if not acceptable(draft):
                # Whole batches before it stay.
                with pytest.raises(InvalidInputError):
                    self.index.add(self.passages(drafts), batch_size=size)
                return
            batch[draft[0]] = draft[1:]
            if len(batch) == size:
                self.model.update(batch)
                batch = {}
        self.model.update(batch)
        report = self.index.add(self.passages(drafts), batch_size=size)
        if size is None:
            changed = {id_ for id_, _, _ in drafts if id_ in before and not same(before[id_], self.model[id_])}
            ids = {draft[0] for draft in drafts}
            assert (report.added, report.updated) == (len(ids - set(before)), len(changed))
            assert report.unchanged == len(ids) - report.added - report.updated

    @precondition(lambda self: self.model)
    @rule(data=st.data(), text=VALID_TEXTS, metadata=VALID_METADATA)
    def update(self, data: st.DataObject, text: str, metadata: dict[str, Any]) -> None:
        Machine.done += 1
        id_ = data.draw(st.sampled_from(sorted(self.model)))
        report = self.index.add([Passage(id_, text, metadata)])
        assert report.updated == (not same(self.model[id_], (text, metadata)))
        self.model[id_] = (text, metadata)

    @rule(ids=st.lists(IDS, max_size=4), data=st.data())
    def delete(self, ids: list[str], data: st.DataObject) -> None:
        Machine.done += 1
        if self.model and data.draw(st.booleans()):
            ids = [*ids, data.draw(st.sampled_from(sorted(self.model)))]
        if not all(id_ and encodable(id_) for id_ in ids):
            with pytest.raises(InvalidInputError):
                self.index.delete(ids)
            return
        self.index.delete(ids)
        for id_ in ids:
            self.model.pop(id_, None)

    @rule(ids=st.lists(IDS, max_size=4))
    def get(self, ids: list[str]) -> None:
        Machine.done += 1
        if not all(id_ and encodable(id_) for id_ in ids):
            with pytest.raises(InvalidInputError):
                self.index.get(ids)
            return
        assert [passage.id for passage in self.index.get(ids)] == [
            id_ for id_ in dict.fromkeys(ids) if id_ in self.model
        ]

    @rule(query=TEXTS, k=st.integers(0, 12), where=st.none() | CLAUSES, part=st.none() | PARTS)
    def retrieve(self, query: str, k: int, where: Any, part: str | None) -> None:
        Machine.done += 1
        where_document = None if part is None else {"$contains": part}
        if not encodable(query) or not query.strip() or k == 0 or not encodable(part) or "\x00" in (part or ""):
            with pytest.raises(InvalidInputError):
                self.index.retrieve(query, k, where=where, where_document=where_document)
            return
        fitting = [
            id_
            for id_, (text, metadata) in self.model.items()
            if where is None or holds(where, filterable(metadata))
            if part is None or part in self.looked_through(text)
        ]
        exact = self.expected(query, fitting)
        hits = self.index.retrieve(query, k, where=where, where_document=where_document)
        best = sorted(exact.values(), reverse=True)[:k]
        assert [hit.score for hit in hits] == pytest.approx(best, rel=1e-5, abs=1e-5)
        # Of passages that are equally near, any may stand at a place.
        assert [exact[hit.passage.id] for hit in hits] == pytest.approx(best, rel=1e-5, abs=1e-5)
        assert len({hit.passage.id for hit in hits}) == len(hits)
        for hit in hits:
            assert (hit.passage.text, same(hit.passage.metadata, self.model[hit.passage.id][1])) == (
                self.model[hit.passage.id][0],
                True,
            )

    @precondition(lambda self: self.stored)
    @rule()
    def reopen(self) -> None:
        Machine.done += 1
        self.index.close()
        self.index = self.opened()

    @precondition(lambda self: len(self.model) > 12)
    @rule()
    def clear(self) -> None:
        Machine.done += 1
        self.index.clear()
        self.model.clear()

    @invariant()
    def the_same(self) -> None:
        if not hasattr(self, "index"):
            return
        assert self.index.count() == len(self.model)
        for id_, passage in zip(self.model, self.index.get(list(self.model)), strict=True):
            assert (passage.id, passage.text) == (id_, self.model[id_][0])
            assert same(passage.metadata, self.model[id_][1])


class ChromaMachine(Machine):
    @initialize(metric=st.sampled_from(["cosine", "dot", "euclidean"]), stored=st.booleans())
    def begin(self, metric: str, stored: bool) -> None:
        self.encoder = HashEncoder(metric)
        self.start(stored=stored)

    def opened(self) -> ChromaIndex:
        # One directory for all, as making one takes longer than the rest; one collection for each.
        return ChromaIndex(self.encoder, self.name, path=self.folder if self.stored else None)

    def teardown(self) -> None:
        if hasattr(self, "index") and self.stored:
            self.index.collection.drop()
        super().teardown()

    def looked_through(self, text: str) -> str:
        return text.split("\x00")[0]

    @rule(
        drafts=st.lists(st.tuples(IDS.filter(bool), VALID_TEXTS, VALID_METADATA), max_size=4),
        source=st.sampled_from(["atlas", '{"$ne": ""}']),
    )
    def replace_source(self, drafts: list[tuple[str, str, Any]], source: str) -> None:
        Machine.done += 1
        drafts = [draft for draft in drafts if encodable(draft[0])]
        if any(self.source_of(id_) not in (None, source) for id_, _, _ in drafts if id_ in self.model):
            with pytest.raises(InvalidInputError):
                self.index.replace_source(source, self.passages(drafts))
            return
        self.index.replace_source(source, self.passages(drafts))
        gone = [id_ for id_ in self.model if self.source_of(id_) == source]
        for id_ in gone:
            del self.model[id_]
        self.model.update({id_: (text, {**metadata, "source": source}) for id_, text, metadata in drafts})

    def source_of(self, id_: str) -> str | None:
        return self.model[id_][1].get("source")

    @rule()
    def repair(self) -> None:
        Machine.done += 1
        assert not self.index.repair().before.is_damaged

    def expected(self, query: str, ids: Sequence[str]) -> dict[str, float]:
        asked = vectors_of([query])[0].astype(float)
        stored = vectors_of([self.model[id_][0] for id_ in ids]).astype(float)
        if self.encoder.metric == "dot":
            values = stored @ asked
        elif self.encoder.metric == "cosine":
            values = stored @ asked / (np.linalg.norm(stored, axis=1) * np.linalg.norm(asked))
        else:
            values = 1 / (1 + np.linalg.norm(stored - asked, axis=1))
        return dict(zip(ids, values.tolist(), strict=True))


class BM25Machine(Machine):
    @initialize(stored=st.booleans())
    def begin(self, stored: bool) -> None:
        self.start(stored=stored)

    def opened(self) -> BM25Index:
        return BM25Index(path=self.folder / self.name if self.stored else None)

    @precondition(lambda self: self.stored)
    @rule()
    def save(self) -> None:
        Machine.done += 1
        self.index.save()

    def expected(self, query: str, ids: Sequence[str]) -> dict[str, float]:
        with BM25Index() as fresh:
            fresh.add(Passage(id_, *content) for id_, content in self.model.items())
            return {hit.passage.id: hit.score for hit in fresh.retrieve(query, 10**30) if hit.passage.id in set(ids)}


@pytest.mark.parametrize("machine", [ChromaMachine, BM25Machine])
def test_an_index_is_a_dictionary_that_can_be_searched(machine: type[Machine], tmp_path: Path) -> None:
    Machine.done, Machine.folder = 0, tmp_path
    round_ = SEED
    while Machine.done < OPERATIONS:
        options = settings(
            max_examples=max(1, min(50, (OPERATIONS - Machine.done) // STEPS + 1)),
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        run_state_machine_as_test(seed(round_)(machine), settings=options)
        round_ += 1
    print(f"{Machine.done} operations")
    assert Machine.done >= OPERATIONS
