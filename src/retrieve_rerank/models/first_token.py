"""The last layer of a network, for the one token that is read afterwards.

Most scoring heads, and bi-encoders with CLS pooling, read the first token's vector. What the last layer makes of all
others is computed by everybody and read by nobody: of its matrix products, only the keys and values of the attention
need every token. Without the rest a network of six layers does a seventh less, and its results are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from retrieve_rerank.models.loading import AnyModel
from retrieve_rerank.models.reading import features

# Networks whose layers are built like BERT's. Their own heads read the first token.
_FAMILIES = ("Bert", "Camembert", "Electra", "Roberta", "XLMRoberta")
_BARE = frozenset(f"{name}Model" for name in _FAMILIES)
_WITH_HEAD = frozenset(f"{name}ForSequenceClassification" for name in _FAMILIES)

_ATTENTIONS = ("sdpa", "eager")  # which tell by masks of one form what is padding
_PROBE = ("a fox", "the quick brown fox jumps over the lazy dog, and then it sleeps for a while")
_TOLERANCE = 1e-4  # as a part of the largest number; in float32 the two ways differ by rounding only


def read_first_token_only(model: AnyModel, output: str) -> bool:
    """Let the last layer compute what is read of it; return whether it does now.

    A network that is built otherwise, or whose results would change, stays as it is.

    Args:
        model: A loaded model in float32.
        output: What its result is called.
    """
    network: Any = model.transformers_model
    # Code that comes with a checkpoint calls its classes as transformers does, and builds them otherwise.
    if not type(network).__module__.startswith("transformers.models.") or not _reads_first(model, network):
        return False
    config = network.config
    if config._attn_implementation not in _ATTENTIONS or config.is_decoder:  # noqa: SLF001
        return False
    layers = getattr(network, network.base_model_prefix, network).encoder.layer
    before, last = _probe(model, output), layers[-1]
    layers[-1] = FirstToken(last)
    try:
        after = _probe(model, output)
        alike = after.shape == before.shape and (after - before).abs().max() <= _TOLERANCE * before.abs().max()
    except Exception:  # noqa: BLE001 - whatever another version of transformers makes of it
        alike = False
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
