"""How many tokens of a text are read: what a checkpoint says, its network has room for, and the caller asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.models.weights import network_in

if TYPE_CHECKING:
    from retrieve_rerank.models.loading import AnyModel

_UNLIMITED = 10**9  # tokens; a tokenizer without a limit says 10**30


@dataclass(frozen=True, slots=True)
class Limits:
    """Tokens that are read of a passage (in a cross-encoder together with the query), and of a query; None is all."""

    document: int | None
    query: int | None


def longest_input(module: torch.nn.Module) -> int | None:
    """Return how many tokens the network in a module can take, or None where it has no limit."""
    network = network_in(module)
    if network is None:
        return None
    for name, part in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, torch.nn.Embedding):
            # RoBERTa and MPNet count positions from after the padding index.
            return int(part.num_embeddings) - (0 if part.padding_idx is None else part.padding_idx + 1)
    positions = getattr(network.config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def readers(model: AnyModel) -> dict[str, Any]:
    """Return what reads the texts of a model, by task; under "" what reads those of every task."""
    # A router reads queries by one network and passages by another.
    routes: Any = getattr(model[0], "sub_modules", None)
    return {"": model[0]} if routes is None else {name: modules[0] for name, modules in routes.items()}


def set_limits(model: AnyModel, max_length: int | None) -> Limits:
    """Set how many tokens of a text `model` reads; None keeps what the checkpoint says. Return the limits in force.

    Raises:
        InvalidInputError: If the network has fewer positions than `max_length`, or takes no limit.
    """
    found = {name: _set(reader, max_length) for name, reader in readers(model).items()}
    if max_length is not None and all(limits is None for limits in found.values()):
        first = next(iter(readers(model).values()))
        raise InvalidInputError(
            f"max_length is {max_length}, and {type(first).__name__}, which reads the texts of this model, takes no "
            "limit; leave max_length out"
        )
    known = {name: limits or Limits(None, None) for name, limits in found.items()}
    document, query = (known.get(name) or known.get("") or Limits(None, None) for name in ("document", "query"))
    return Limits(document.document, query.query)


def _set(reader: Any, max_length: int | None) -> Limits | None:
    """Set the limits of what reads texts; None if it takes none, as a table of word vectors."""
    positions = longest_input(reader)
    if max_length is not None and positions is not None and max_length > positions:
        raise InvalidInputError(
            f"max_length is {max_length}, but this model has positions for {positions} tokens at most"
        )
    given = max_length or getattr(reader, "max_seq_length", None)
    known = [value for value in (given, positions) if value and value < _UNLIMITED]
    if not known or getattr(reader, "tokenizer", None) is None:
        return None if max_length is not None else Limits(None, None)
    limit = int(min(known))
    try:
        # A tokenizer without a limit of its own would otherwise hand the network more than it has positions for.
        reader.max_seq_length = limit
    except AttributeError:
        return None
    return Limits(_of_task(reader, "document_length", limit), _of_task(reader, "query_length", limit))


def _of_task(reader: Any, name: str, limit: int) -> int:
    """Return the limit of one kind of texts, for which a checkpoint may have another one."""
    own = getattr(reader, name, None)
    if own is None:
        return limit
    setattr(reader, name, min(int(own), limit))
    return min(int(own), limit)
