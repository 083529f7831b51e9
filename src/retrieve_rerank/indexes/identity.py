"""Which encoder made a collection's vectors, in what space, in what format: recorded, compared, refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from retrieve_rerank.errors import IndexMismatchError, InvalidInputError, shown
from retrieve_rerank.types import Metric

FORMAT = 1

_FORMAT_KEY = "retrieve_rerank:format"
_ENCODER_KEY = "retrieve_rerank:encoder"

SERVED_BY = "served_by"  # in the fingerprint of an encoder behind an inference server

_NAMES = {"model", "dimensions", "size"}  # what other libraries' embeddings tell of themselves

SPACES: dict[Metric, str] = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}

Fingerprint = Mapping[str, "str | int | float | bool"]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a collection says of itself."""

    metric: Metric
    fingerprint: Fingerprint | None
    format: int | None

    @classmethod
    def read(cls, configuration: Mapping[str, Any], metadata: Mapping[str, Any] | None) -> Identity:
        """Read the identity from a collection's configuration and metadata."""
        stored = metadata or {}
        space = (configuration.get("hnsw") or configuration.get("spann") or {}).get("space", "l2")
        metric = next((metric for metric, name in SPACES.items() if name == space), "euclidean")
        encoder = stored.get(_ENCODER_KEY)
        return cls(cast(Metric, metric), json.loads(encoder) if encoder else None, stored.get(_FORMAT_KEY))


def to_metadata(fingerprint: Fingerprint | None) -> dict[str, str | int]:
    """Return the collection metadata that records `fingerprint`."""
    metadata: dict[str, str | int] = {_FORMAT_KEY: FORMAT}
    if fingerprint is not None:
        metadata[_ENCODER_KEY] = json.dumps(dict(fingerprint), sort_keys=True)
    return metadata


def check_identity(name: str, found: Identity, metric: Metric | None, fingerprint: Fingerprint | None) -> None:
    """Compare a collection with the encoder and metric that it is opened with.

    Raises:
        IndexMismatchError: If they differ, or a newer version than this wrote it, saying in what and what to do.
    """
    if found.format is not None and found.format > FORMAT:
        raise IndexMismatchError(
            f"collection {name!r} has format {found.format}, written by a newer retrieve-rerank; this one reads up to "
            f"{FORMAT}. Upgrade retrieve-rerank"
        )
    differences = (
        [] if found.fingerprint is None or fingerprint is None else _differences(found.fingerprint, fingerprint)
    )
    if differences:
        same = "open it with the encoder that made it"
        if found.fingerprint and len(differences) == 1 and differences[0].startswith("document_prompt "):
            # As after a change of what is taken for the model's own prompt.
            same = (
                f"open it with document_prompt={found.fingerprint.get('document_prompt', '')!r}, which it was made with"
            )
        raise IndexMismatchError(
            f"collection {name!r} was made by another encoder: {'; '.join(differences)}. Vectors of different "
            f"encoders cannot be compared: {same}, or use another collection name and "
            "add the passages again. If the two are one encoder all the same, pass assume_compatible=True"
        )
    if metric is not None and metric != found.metric:
        raise IndexMismatchError(
            f"collection {name!r} compares vectors by {found.metric!r}, and {metric!r} was asked for; a collection's "
            f"metric cannot change. Pass metric={found.metric!r} to keep it, or use another collection name and add "
            "the passages again"
        )


def check_suits(name: str, metric: Metric, encoders: Metric) -> None:
    """Raise IndexMismatchError if a collection of vectors of different lengths has not the metric of its encoder."""
    if metric != encoders:
        raise IndexMismatchError(
            f"collection {name!r} compares vectors by {metric!r}, and this encoder's are made for {encoders!r}. The "
            "two give one order for vectors of length 1 only; these are not, or there are none yet. A collection's "
            f"metric cannot change: pass metric={metric!r} to keep it, or use another collection name and add the "
            "passages again"
        )


def check_name(name: str) -> str:
    """Return a collection's name, or raise InvalidInputError if it cannot be called so."""
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,510}[A-Za-z0-9]", name)):
        raise InvalidInputError(
            "a collection's name is 3 to 512 letters, digits, dots, dashes or underscores, with a letter or digit at "
            f"both ends; got {shown(name)}"
        )
    return str.__str__(name)  # a subclass, such as an enumeration, has other words for str()


def needs_proof(stored: Fingerprint | None, given: Fingerprint | None) -> bool:
    """Whether only a vector can tell if two fingerprints are of one encoder.

    A server does not tell its weights, and other libraries' embeddings tell no more than a name: they may run the same
    model.
    """
    if stored is None or given is None or dict(stored) == dict(given):
        return False
    return SERVED_BY in stored or SERVED_BY in given or (set(stored) <= _NAMES) != (set(given) <= _NAMES)


def _differences(stored: Fingerprint, given: Fingerprint) -> list[str]:
    keys = set(stored) | set(given)
    if needs_proof(stored, given):
        # What both say of what changes vectors, so that the vector of one text proves the rest.
        certain = {"dimension", "document_prompt", "max_length"}
        same_model = stored.get("model") == given.get("model")
        keys = (certain | ({"revision"} if same_model else set())) & set(stored) & set(given)
    if "weights" in stored and stored["weights"] == given.get("weights"):
        keys -= {"model"}  # a name is only a name: these are the same weights
    for key in ("dimension", "pooling", "rows"):
        if key not in stored or key not in given:
            keys -= {key}  # one of the two did not look
    return [
        f"{key} was {stored.get(key, 'not set')!r}, now {given.get(key, 'not set')!r}"
        for key in sorted(keys, key=lambda key: (key != "model", key))
        if stored.get(key) != given.get(key)
    ]
