"""What `check`, `repair` and `adopt` of an index report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrieve_rerank.types import Metric

_SHOWN = 3  # ids in a sentence


@dataclass(frozen=True, slots=True)
class IndexCheck:
    """What is stored against what can be found. `str()` says what is wrong and what to do.

    Attributes:
        collection: The collection's name.
        count: Passages stored.
        missing: Ids of passages that no query returns: their vector is lost, or Chroma's index does not reach it.
        doubled: Ids of passages that one query returns twice.
        unanswered: Whether Chroma fails at queries, as its index holds vectors of passages that are gone. Which queries
            fail depends on what is near; `doubled` cannot be told then.
        wrong: Ids of passages whose stored vector is not the one that the encoder makes of their text, among those that
            were encoded again.
        unreadable: Ids of passages whose metadata was kept as JSON and cannot be read; it is returned as it is stored.
        unreached: Ids of passages whose vector is stored and which Chroma's index does not reach all the same: some of
            hundreds of equal vectors, or, in dot space, of vectors of very different lengths. It is no damage, and
            `repair` changes nothing in it.
        stuck: Ids of passages that Chroma has logged with more metadata than it can apply: every call fails, so that
            nothing else is known.
        encoded: How many passages were encoded again to compare the vectors: the samples.
        with_metadata: How many of these were embedded together with their metadata, as LlamaIndex does.

    Example:
        >>> from retrieve_rerank import BiEncoder, ChromaIndex, Passage
        >>> index = ChromaIndex(BiEncoder(bi_encoder_path))
        >>> _ = index.add([Passage("1", "Paris is the capital of France.")])
        >>> print(index.check())
        'passages': 1 passage, every one can be found; 1 was encoded again and has its vector
    """

    collection: str
    count: int
    missing: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()
    unanswered: bool = False
    wrong: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()
    encoded: int = 0
    with_metadata: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing was found to be wrong."""
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """What is wrong, a sentence each; empty where nothing is."""
        said = []
        if self.stuck:
            said.append(
                "every call fails, as Chroma has logged more metadata than it can apply, of "
                f"{_passages(self.stuck)}; repair() keeps it as JSON"
            )
        if self.missing:
            said.append(f"no query returns {_passages(self.missing)}; repair() encodes them again")
        if self.unanswered:
            said.append(
                "Chroma fails at queries that come near passages that are gone, whose vectors its index still holds; "
                "repair() makes the index anew"
            )
        if self.doubled:
            said.append(f"a query returns twice {_passages(self.doubled)}; repair() makes the index anew")
        if self.wrong and self.of_another_encoder:
            said.append(
                f"none of {self.encoded} passages that were encoded again has the vector that is stored for it: this "
                "is not damage, but another encoder, or texts that were embedded together with something else. Open "
                "the collection with the encoder that made it, or add the passages again under another name"
            )
        elif self.wrong:
            said.append(
                f"the stored vector is another one than the encoder's for {_passages(self.wrong)}, of {self.encoded} "
                "that were encoded again; repair() encodes all passages again"
            )
        if self.unreadable:
            said.append(
                f"the metadata cannot be read, but for what is stored plainly, of {_passages(self.unreadable)}; add "
                "them again, as repair() cannot know it"
            )
        return said

    @property
    def is_damaged(self) -> bool:
        """Whether there are vectors that `repair` makes anew."""
        return bool(self.missing or self.doubled or self.unanswered or self.wrong)

    @property
    def of_another_encoder(self) -> bool:
        """Whether the encoder made not one of the stored vectors that it was asked for, of two or more."""
        return self.encoded > 1 and len(self.wrong) == self.encoded

    def __str__(self) -> str:
        stored = f"{self.collection!r}: {self.count} {'passage' if self.count == 1 else 'passages'}"
        if self.problems:
            return f"{stored}: {'; '.join(self.problems)}"
        found = "every one can be found"
        if self.unreached:
            found += f", but for {_passages(self.unreached)} that Chroma's index does not reach, as it is approximate"
        if not self.encoded:
            return f"{stored}, {found}"
        samples = "1 was encoded again and has its vector"
        if self.encoded > 1:
            samples = f"{self.encoded} were encoded again and have their vectors"
        return f"{stored}, {found}; {samples}"


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair did.

    Attributes:
        before: What was wrong.
        after: What still is; `after.ok` is what a repair is for.
        encoded: Passages that were encoded again and stored.
        rebuilt: Whether the collection was made anew. Other objects and processes that have it open must open it again.

    Example:
        >>> from retrieve_rerank import BiEncoder, ChromaIndex, Passage
        >>> index = ChromaIndex(BiEncoder(bi_encoder_path))
        >>> _ = index.add([Passage("1", "Paris is the capital of France.")])
        >>> report = index.repair()
        >>> report.encoded, report.rebuilt, report.after.ok
        (0, False, True)
    """

    before: IndexCheck
    after: IndexCheck
    encoded: int = 0
    rebuilt: bool = False


@dataclass(frozen=True, slots=True)
class AdoptReport:
    """What was found out about a collection that did not say which encoder made it. `str()` says it in words.

    Attributes:
        collection: The collection's name.
        count: Passages stored.
        samples: How many were encoded again: those that have a text and a vector, evenly spread.
        verified: Of how many of these the encoder makes the vector that is stored.
        with_metadata: Of how many only together with the metadata, as LlamaIndex embeds.
        metric: The collection's, which cannot change.
        encoder_metric: The encoder's.
        unit_length: Whether the vectors of all samples have the length 1: all metrics order them alike.

    Example:
        >>> report = AdoptReport("passages", 5000, 20, 20, 0, "euclidean", "cosine", unit_length=True)
        >>> report.adopted, report.metric_suits
        (True, True)
    """

    collection: str
    count: int
    samples: int
    verified: int
    with_metadata: int
    metric: Metric
    encoder_metric: Metric
    unit_length: bool

    @property
    def metric_suits(self) -> bool:
        """Whether the collection orders passages as the encoder's metric does."""
        return self.metric == self.encoder_metric or self.unit_length

    @property
    def adopted(self) -> bool:
        """Whether the encoder was written down: every sample verifies, and the metric suits."""
        return self.verified == self.samples and (self.samples > 0 or self.count == 0) and self.metric_suits

    @property
    def problems(self) -> list[str]:
        """Why the collection was not adopted, a sentence each; empty where it was."""
        said = []
        if self.verified < self.samples:
            said.append(
                f"the encoder makes another vector of {self.samples - self.verified} of {self.samples} texts: it did "
                "not make the collection, or they were embedded together with something else"
            )
        if self.count and not self.samples:
            said.append("no passage has a text and a vector, so that nothing can be compared")
        if not self.metric_suits:
            said.append(
                f"the collection compares by {self.metric}, which orders this encoder's vectors otherwise than "
                f"{self.encoder_metric}, and cannot change: add the passages again under another name"
            )
        return said

    @property
    def unknown(self) -> list[str]:
        """What cannot be known of an adopted collection, a sentence each."""
        said = []
        if self.samples < self.count:
            said.append(
                f"whether the other {self.count - self.samples} vectors are the encoder's; check() can compare all"
            )
        if self.with_metadata:
            said.append(
                "whether all texts were embedded together with their metadata, as the samples were; ChromaIndex.add "
                "embeds the text alone"
            )
        return said

    def __str__(self) -> str:
        begin = f"{self.collection!r}: {self.count} {'passage' if self.count == 1 else 'passages'}"
        if self.problems:
            return f"{begin}, not adopted: {'; '.join(self.problems)}"
        said = [f"{begin}, adopted: {self.verified} of {self.samples} samples verified, compared by {self.metric}"]
        if self.metric != self.encoder_metric:
            said.append(
                f"its order is that of {self.encoder_metric}, for which the encoder is made, as the vectors have the "
                "length 1"
            )
        if self.unknown:
            said.append(f"not known: {', '.join(self.unknown)}")
        return "; ".join(said)


def _passages(ids: Sequence[str]) -> str:
    shown = ", ".join(ascii(id_ if len(id_) <= 60 else id_[:59] + "…") for id_ in ids[:_SHOWN])
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"{len(ids)} {'passage' if len(ids) == 1 else 'passages'} ({shown}{more})"
