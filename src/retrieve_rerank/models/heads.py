"""Scoring heads: whatever kind a model has, one raw logit a passage comes out, whose sigmoid is its relevance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sentence_transformers
import torch
from sentence_transformers.base.modules import Dense
from sentence_transformers.cross_encoder.modules import LogitScore

from retrieve_rerank.errors import ModelError

_RELEVANT = frozenset({"relevant", "yes", "true", "positive", "pos", "entailment", "match", "duplicate"})
_OTHER = frozenset(
    {"notrelevant", "nonrelevant", "irrelevant", "unrelated", "no", "false", "negative", "neg"}
    | {"notentailment", "nonentailment", "contradiction", "nomatch", "mismatch", "notduplicate"}
)


def relevant_label(config: Any, name: str) -> int:
    """Return the position of the relevant one of a model's two labels, as its configuration names them.

    Names are compared without case and separators: "Not_Relevant" is "not relevant". One name that tells is enough.

    Args:
        config: A configuration of transformers, with `id2label` and `label2id`.
        name: What to call the model in an error.

    Raises:
        ModelError: If the names do not tell, or contradict each other.
    """
    id2label = _names(getattr(config, "id2label", None))
    label2id = _names({number: label for label, number in (getattr(config, "label2id", None) or {}).items()})
    told = {found for found in (_relevant(id2label), _relevant(label2id)) if found is not None}
    if len(told) != 1:
        raise ModelError(
            f"{name!r} has 2 labels, and its config does not say which of them means relevant: id2label is "
            f"{id2label}, label2id {label2id}. Expected names such as 'not_relevant' and 'relevant', 'no' and 'yes', "
            "'false' and 'true', 'negative' and 'positive'. Find out which one it is and name them in its config.json: "
            '"id2label": {"0": "not_relevant", "1": "relevant"}'
        )
    return told.pop()


def _names(labels: Mapping[Any, Any] | None) -> dict[int, str]:
    return {int(number): str(label) for number, label in (labels or {}).items()}


def _relevant(labels: Mapping[int, str]) -> int | None:
    plain = ["".join(letter for letter in labels.get(number, "").casefold() if letter.isalnum()) for number in range(2)]
    yes, no = ([number for number, label in enumerate(plain) if label in known] for known in (_RELEVANT, _OTHER))
    if len(yes) == 1:
        return yes[0]
    return 1 - no[0] if len(no) == 1 and not yes else None


def to_logits(model: sentence_transformers.CrossEncoder) -> Callable[[torch.Tensor], torch.Tensor]:
    """Make `model` give raw scores, and return what makes logits (n,) of them (n, labels).

    Raises:
        ModelError: If the model has two labels and does not say which of them means relevant.
    """
    last = model[-1]
    if isinstance(last, Dense) and isinstance(last.activation_function, torch.nn.Sigmoid):
        last.activation_function = torch.nn.Identity()  # ours is the only one
    if model.num_labels == 1:
        return _only
    relevant = relevant_label(model.config, str(getattr(model.config, "_name_or_path", "the model")))
    # The sigmoid of the difference of two logits is the softmax of the first.
    return lambda rows: rows[:, relevant] - rows[:, 1 - relevant]


def keep_head_exact(model: sentence_transformers.CrossEncoder) -> None:
    """Let a head compute in float32: a logit of 8 rounded to bfloat16 has steps of 1/32, and ties."""
    network: Any = model.transformers_model
    if isinstance(model[-1], LogitScore):
        _keep_two_tokens(network, model[-1])
    elif type(network).__name__.endswith("ForSequenceClassification"):
        for name, module in network.named_children():
            if name != network.base_model_prefix and any(True for _ in module.parameters()):
                module.float()
                module.register_forward_pre_hook(_widen)


def _keep_two_tokens(network: Any, score: LogitScore) -> None:
    # A language model's head shares its weights with the embeddings, and only one or two of its rows are asked for.
    head = network.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        return
    tokens = [token for token in (score.true_token_id, score.false_token_id) if token is not None]
    small = torch.nn.Linear(head.in_features, len(tokens), bias=head.bias is not None, device=head.weight.device)
    with torch.no_grad():
        small.weight.copy_(head.weight[tokens])
        if head.bias is not None:
            small.bias.copy_(head.bias[tokens])
    small.register_forward_pre_hook(_widen)
    network.set_output_embeddings(small)
    score.true_token_id, score.false_token_id = 0, None if score.false_token_id is None else 1


def _only(rows: torch.Tensor) -> torch.Tensor:
    return rows.reshape(-1)


def _widen(_module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.float() if isinstance(value, torch.Tensor) else value for value in inputs)
