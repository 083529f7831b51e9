"""A filter in Chroma's words as LlamaIndex's filters need it: in two parts, one on metadata and one on the text.

Chroma takes regular expressions in `where_document` only, so that clauses are taken apart and looked into.
"""

from __future__ import annotations

from dataclasses import dataclass

from retrieve_rerank.indexes.clauses import TEXT_KEY, Where, joined


@dataclass(frozen=True, slots=True)
class Condition:
    """A filter in Chroma's words: on metadata, and on the text. A record must pass both."""

    where: Where | None = None
    where_document: Where | None = None

    def both(self, other: Condition) -> Condition:
        """Return the condition that holds where this one and `other` hold."""
        return Condition(
            every([clause for clause in (self.where, other.where) if clause]),
            every([clause for clause in (self.where_document, other.where_document) if clause]),
        )


def every(clauses: list[Where]) -> Where | None:
    """Join clauses that must all hold; none is None."""
    return joined("$and", clauses) if clauses else None


def conjuncts(clause: Where) -> list[Where]:
    """Return the clauses that all must hold for `clause` to hold."""
    if "$and" not in clause:
        return [clause]
    return [leaf for part in clause["$and"] for leaf in conjuncts(part)]


def keys(clause: Where) -> list[str]:
    """Return the keys that `clause` asks about."""
    parts = _parts(clause)
    return [key for part in parts for key in keys(part)] if parts else list(clause)


def has_regex(clause: Where) -> bool:
    """Return whether `clause` has a regular expression in it, which Chroma takes in `where_document` only."""
    parts = _parts(clause)
    if parts:
        return any(has_regex(part) for part in parts)
    return any(operator in ("$regex", "$not_regex") for test in clause.values() for operator in test)


def of_text(clause: Where) -> Where:
    """Return a clause on the text as `where_document` has it: without the key."""
    for operator in ("$and", "$or"):
        if operator in clause:
            return {operator: [of_text(part) for part in clause[operator]]}
    test: Where = clause[TEXT_KEY]
    return test


def _parts(clause: Where) -> list[Where]:
    return [part for operator in ("$and", "$or") for part in clause.get(operator, [])]
