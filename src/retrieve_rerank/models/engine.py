"""The batch loop: texts in, tensors out, for both kinds of model.

Runs on one thread (see `worker`). Tokenises once without a limit to know every text's true length, which tells what
will be cut and lets batches be packed with little padding; then hands each batch to sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sentence_transformers
import torch
from sentence_transformers.sentence_transformer.modules import Normalize
from tqdm.auto import tqdm

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.models.batching import pack, token_budget
from retrieve_rerank.models.loading import set_longest_input, weights_digest
from retrieve_rerank.models.precision import choose_precision
from retrieve_rerank.models.ranking import Scores


class Engine:
    """A loaded model with its precision, device and input limit."""

    def __init__(
        self,
        model: sentence_transformers.SentenceTransformer | sentence_transformers.CrossEncoder,
        precision: str,
        max_length: int | None,
    ) -> None:
        self.model = model
        self.device = torch.device(model.device)
        self.precision = choose_precision(precision, self.device)
        self.max_length = set_longest_input(model, max_length)
        self.weights = weights_digest(model)  # before rounding to another precision changes them
        # Only the network computes in low precision; pooling, normalising and everything after it stay in float32.
        model.to(torch.float32)
        if self.precision.name != "float32":
            model[0].to(getattr(torch, self.precision.name))
            model[0].register_forward_hook(_widen)

    def describe(self) -> str:
        """Return what a repr should say of a loaded model."""
        return f"{self.precision.name}: {self.precision.reason}, on {self.device}, max_length={self.max_length}"

    def lengths(
        self, first: Sequence[str], second: Sequence[str] | None = None, *, add_special_tokens: bool = True
    ) -> list[int]:
        """Return the untruncated number of tokens of each text, or pair of texts."""
        tokenizer: Any = self.model.tokenizer
        if not first:
            return []
        if not callable(tokenizer):  # a bare `tokenizers.Tokenizer`, as static embedding models have
            return [len(encoding) for encoding in tokenizer.encode_batch(list(first))]
        arguments = [list(first)] if second is None else [list(first), list(second)]
        # Same thread as every other use of the tokenizer, so changing its truncation here disturbs nobody.
        encoded = tokenizer(
            *arguments,
            add_special_tokens=add_special_tokens,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [len(ids) for ids in encoded["input_ids"]]

    @torch.inference_mode()
    def run(
        self, inputs: Sequence[Any], lengths: Sequence[int], output: str, *, show_progress: bool = False, **options: Any
    ) -> torch.Tensor:
        """Run all inputs through the model.

        Args:
            inputs: Texts or pairs of texts; at least one.
            lengths: Tokens of each.
            output: Name of the feature to return.
            show_progress: Show a bar on stderr.
            **options: Passed to the model's `preprocess`.

        Returns:
            Float32 tensor on the CPU, one row an input, in their order.
        """
        limit = self.max_length
        seen = [length if limit is None else min(length, limit) for length in lengths]
        rows: list[torch.Tensor] = []
        order: list[int] = []
        with tqdm(total=len(inputs), disable=not show_progress, unit="text", desc="Encoding") as bar:
            for batch in pack(seen, token_budget(self.device)):
                features = self.model.preprocess([inputs[position] for position in batch], **options)
                features = {
                    name: value.to(self.device) if isinstance(value, torch.Tensor) else value
                    for name, value in features.items()
                }
                rows.append(self.model(features)[output].float().cpu())
                order += batch
                bar.update(len(batch))
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(rows)[back]


class CrossEngine(Engine):
    """Scores pairs."""

    def __init__(
        self,
        model: sentence_transformers.CrossEncoder,
        precision: str,
        prompt: str | None,
        max_length: int | None,
    ) -> None:
        super().__init__(model, precision, max_length)
        if self.precision.name != "float32":
            _keep_head_exact(model)
        self.prompt = _saved_prompt(model) if prompt is None else prompt

    def score(self, query: str, texts: list[str]) -> Scores:
        """Return the logits of `texts` (at least one) and which of them were cut."""
        pairs = [(query, text) for text in texts]
        options: dict[str, Any] = {"prompt": self.prompt or None}
        if "message" in getattr(self.model[0], "modality_config", {}):
            # A chat template makes one text of the pair, with words of its own and no second side to cut.
            around = int(self.model.preprocess([(query, "")], **options)["input_ids"].shape[1])
            lengths = [around + length for length in self.lengths(texts, add_special_tokens=False)]
        else:
            first = f"{self.prompt}{query}"
            around = self.lengths([first], [""])[0]
            lengths = self.lengths([first] * len(texts), texts)
            # The passage is the side that gives way: the library's own default cuts whichever is longer.
            options["processing_kwargs"] = {"text": {"truncation": "only_second"}}
        if self.max_length is not None and around >= self.max_length:
            raise InvalidInputError(
                f"the query has {around} tokens and this cross-encoder reads {self.max_length} in all, which leaves no "
                "room for a passage; shorten the query"
            )
        logits = self.run(pairs, lengths, "scores", **options)
        truncated = [self.max_length is not None and length > self.max_length for length in lengths]
        return Scores(logits.reshape(-1).numpy(), truncated)


class BiEngine(Engine):
    """Encodes texts into vectors."""

    def __init__(
        self,
        model: sentence_transformers.SentenceTransformer,
        precision: str,
        max_length: int | None,
        *,
        normalize: bool | None,
        truncate_dim: int | None,
    ) -> None:
        if normalize is False:
            for position in reversed([at for at, module in enumerate(model) if isinstance(module, Normalize)]):
                model.pop(position)
        super().__init__(model, precision, max_length)
        self.normalize = normalize
        self.normalized = bool(normalize) or any(isinstance(module, Normalize) for module in model)
        self.truncate_dim = truncate_dim

    def encode(
        self, texts: list[str], prompt: str, task: str, *, show_progress: bool
    ) -> tuple[npt.NDArray[np.float32], int]:
        """Return the vectors (n, dimension) of `texts` (at least one), and how many of them were cut."""
        lengths = self.lengths([f"{prompt}{text}" for text in texts])
        vectors = self.run(
            texts, lengths, "sentence_embedding", show_progress=show_progress, prompt=prompt or None, task=task
        )
        if self.truncate_dim is not None:
            vectors = vectors[:, : self.truncate_dim]
        if self.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        cut = 0 if self.max_length is None else sum(length > self.max_length for length in lengths)
        return vectors.contiguous().numpy(), cut


def _saved_prompt(model: sentence_transformers.CrossEncoder) -> str:
    name = model.default_prompt_name
    return model.prompts.get(name, "") or "" if name is not None else ""


def _keep_head_exact(model: sentence_transformers.CrossEncoder) -> None:
    """Let a classification head compute in float32: a logit of 8 rounded to bfloat16 has steps of 1/32, and ties."""
    transformer: Any = model.transformers_model
    if not type(transformer).__name__.endswith("ForSequenceClassification"):
        return  # a language model's head shares its weights with the embeddings
    for name, module in transformer.named_children():
        if name != transformer.base_model_prefix and any(True for _ in module.parameters()):
            module.float()
            module.register_forward_pre_hook(_widen_inputs)


def _widen_inputs(_module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.float() if isinstance(value, torch.Tensor) else value for value in inputs)


def _widen(_module: torch.nn.Module, _inputs: object, features: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in features.items()
    }
