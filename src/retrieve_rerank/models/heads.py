"""What is made of a network's last layer.

Of scoring heads: whatever kind a model has, one raw logit a passage comes out, whose sigmoid is its relevance. And of
the layer before: most heads, and bi-encoders with CLS pooling, read the first token's vector only. What the last layer
makes of all others is computed by everybody and read by nobody: of its matrix products, only the keys and values of the
attention need every token. Without the rest a network of six layers does a seventh less, and its results are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sentence_transformers
import torch
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Pooling

from retrieve_rerank.errors import ModelError
from retrieve_rerank.models.calibration import UNCALIBRATED, Calibration
from retrieve_rerank.models.loading import KIND, AnyModel, Checkpoint, saved_json
from retrieve_rerank.models.reading import features

_RELEVANT = frozenset({"relevant", "yes", "true", "positive", "pos", "entailment", "match", "duplicate"})
_OTHER = frozenset(
    {"notrelevant", "nonrelevant", "irrelevant", "unrelated", "no", "false", "negative", "neg"}
    | {"notentailment", "nonentailment", "contradiction", "nomatch", "mismatch", "notduplicate"}
)

# Networks whose layers are built like BERT's. Their own heads read the first token.
_FAMILIES = ("Bert", "Camembert", "Electra", "Roberta", "XLMRoberta")
_BARE = frozenset(f"{name}Model" for name in _FAMILIES)
_WITH_HEAD = frozenset(f"{name}ForSequenceClassification" for name in _FAMILIES)

_ATTENTIONS = ("sdpa", "eager")  # which tell by masks of one form what is padding
_PROBE = ("a fox", "the quick brown fox jumps over the lazy dog, and then it sleeps for a while")
_TOLERANCE = 1e-4  # as a part of the largest number


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


def stated_calibration(model: sentence_transformers.CrossEncoder, checkpoint: Checkpoint) -> Calibration:
    """Return what a checkpoint, or its family, states of its logits."""
    last = model[-1]
    if Path(checkpoint.model).name.lower().startswith("zerank"):
        return Calibration(
            temperature=5.0, source="zerank's models are trained for the sigmoid of a fifth of the logit"
        )
    if model.num_labels == 2:
        return Calibration(source="stated by the checkpoint: the softmax of its two labels")
    if isinstance(last, LogitScore):
        return Calibration(source="stated by the checkpoint: the probability of yes among yes and no")
    if isinstance(last, Dense) and isinstance(last.activation_function, torch.nn.Sigmoid):
        return Calibration(source="stated by the checkpoint: a sigmoid is the last part of its head")
    # A sigmoid is also what sentence-transformers takes where nothing was saved, and then it states nothing.
    config = saved_json(model, checkpoint, "config.json")
    saved = "activation_fn" in {**(config.get("sentence_transformers") or {}), **saved_json(model, checkpoint, KIND)}
    saved = saved or bool(config.get("sbert_ce_default_activation_function"))
    if saved and isinstance(model.activation_fn, torch.nn.Sigmoid):
        return Calibration(source="stated by the checkpoint: a sigmoid is its saved activation")
    return UNCALIBRATED


def keep_head_exact(model: sentence_transformers.CrossEncoder) -> None:
    """Let a head compute in float32: a logit of 8 rounded to bfloat16 has steps of 1/32, and ties."""
    network: Any = model.transformers_model
    if isinstance(model[-1], LogitScore):
        _keep_two_tokens(network, model[-1])
    elif type(network).__name__.endswith("ForSequenceClassification"):
        for name, module in network.named_children():
            if name != network.base_model_prefix and any(True for _ in module.parameters()):
                module.float()
                module.register_forward_pre_hook(_widen, with_kwargs=True)


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
    small.register_forward_pre_hook(_widen, with_kwargs=True)
    network.set_output_embeddings(small)
    score.true_token_id, score.false_token_id = 0, None if score.false_token_id is None else 1


def _only(rows: torch.Tensor) -> torch.Tensor:
    return rows.reshape(-1)


def _widen(
    _module: torch.nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let a module get its numbers in float32."""
    return tuple(map(wide, inputs)), {name: wide(value) for name, value in options.items()}


def wide(value: Any) -> Any:
    """Return a tensor of numbers in float32, and anything else as it is."""
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def read_first_token_only(model: AnyModel, output: str) -> bool:
    """Let the last layer compute what is read of it; return whether it does now.

    A network that is built otherwise, or whose results would change, stays as it is.

    Args:
        model: A loaded model, in any precision.
        output: What its result is called.
    """
    network: Any = model.transformers_model
    # Code that comes with a checkpoint calls its classes as transformers does, and builds them otherwise.
    if not type(network).__module__.startswith("transformers.models.") or not _reads_first(model, network):
        return False
    config = network.config
    if config._attn_implementation not in _ATTENTIONS or config.is_decoder:  # noqa: SLF001
        return False
    base = getattr(network, network.base_model_prefix, network)
    layers, pooler = base.encoder.layer, getattr(base, "pooler", None)
    last, short = layers[-1], FirstToken(layers[-1])
    end = [last, *([] if pooler is None else [pooler])]
    end += [] if base is network else [part for part in network.children() if part is not base]
    # From the same input, and in float32, where the two ways differ by rounding only.
    kept = [(parameter, parameter.data) for part in end for parameter in part.parameters()]
    hooks = [layer.register_forward_pre_hook(_widen, with_kwargs=True) for layer in (last, short)]
    for part in end:
        part.float()
    before = _probe(model, output)
    layers[-1] = short
    try:
        after = _probe(model, output)
        alike = after.shape == before.shape and (after - before).abs().max() <= _TOLERANCE * before.abs().max()
    except Exception:  # noqa: BLE001 - whatever another version of transformers makes of it
        alike = False
    for hook in hooks:
        hook.remove()
    for parameter, data in kept:
        parameter.data = data
    if not alike:
        layers[-1] = last
    return bool(alike)


def read_all_tokens(network: torch.nn.Module) -> None:
    """Undo what `read_first_token_only` did to a network."""
    for layers in network.modules():
        if isinstance(layers, torch.nn.ModuleList) and len(layers) and isinstance(layers[-1], FirstToken):
            layers[-1] = layers[-1].layer


class FirstToken(torch.nn.Module):
    """A layer like BERT's that returns the vector of each text's first token, (texts, 1, width).

    Args:
        layer: The layer whose weights it computes with.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None, *_: Any, **__: Any) -> torch.Tensor:
        """Return what the layer makes of the first of the tokens in `hidden` (texts, tokens, width).

        `mask` is (texts, 1, 1 or tokens, tokens): true for what is read, or numbers to add to the attention's.
        """
        attention = self.layer.attention.self
        first = hidden[:, :1]
        query, key, value = (
            project(tokens).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
            for project, tokens in ((attention.query, first), (attention.key, hidden), (attention.value, hidden))
        )
        read = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=None if mask is None else mask[:, :, :1]
        )
        mixed = self.layer.attention.output(read.transpose(1, 2).flatten(2), first)
        result: torch.Tensor = self.layer.feed_forward_chunk(mixed)
        return result


def _reads_first(model: AnyModel, network: torch.nn.Module) -> bool:
    name = type(network).__name__
    if name in _WITH_HEAD:
        return len(model) == 1
    pooling = model[1] if name in _BARE and len(model) > 1 and isinstance(model[0], Transformer) else None
    return isinstance(pooling, Pooling) and pooling.pooling_mode in ("cls", ("cls",)) and pooling.include_prompt


def _probe(model: AnyModel, output: str) -> torch.Tensor:
    texts = [("what is it", text) for text in _PROBE] if output == "scores" else _PROBE
    with torch.inference_mode():
        result: torch.Tensor = model(features(model, texts))[output]
        return result
