"""A real cross-encoder whose logits are looked up: everything but the arithmetic of its network is as it always is.

The contracts need logits of their choosing. Handing a stub to a component shows the component alone; putting the stub
in place of the network shows the whole stack: tokenizing, batching, the activation function, the order.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import torch
from transformers import BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from retrieve_rerank import CrossEncoder
from retrieve_rerank.testing import LetterEncoder
from retrieve_rerank.types import Scorer
from tests import tiny


@cache
def tiny_path() -> str:
    """The folder of a tiny seeded cross-encoder, made once in a process."""
    folder = tempfile.mkdtemp(prefix="contracts-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(tiny.save_cross_encoder(Path(folder)))


def look_up(model: sentence_transformers.CrossEncoder, scorer: Scorer) -> None:
    """Let the network of a tiny cross-encoder answer what `scorer` says of the texts that its tokens spell."""
    network = next(module for module in model.modules() if isinstance(module, BertForSequenceClassification))
    tokenizer: Any = model.tokenizer

    def forward(
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **options: object,
    ) -> SequenceClassifierOutput:
        pairs = [tokenizer.decode(row).split("[SEP]")[:2] for row in input_ids]
        query = pairs[0][0].removeprefix("[CLS]").strip()
        logits = scorer.score(query, [text.strip() for _, text in pairs])
        return SequenceClassifierOutput(logits=torch.as_tensor(np.array(logits, np.float32)).reshape(-1, 1))

    network.forward = forward  # type: ignore[method-assign]


class LookupCrossEncoder(CrossEncoder):
    """Our cross-encoder over such a network."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(tiny_path(), precision="float32")
        self.scorer = scorer

    def _load(self, checkpoint: Any) -> Any:
        engine = super()._load(checkpoint)
        look_up(engine.model, self.scorer)
        return engine


class LetterScorer:
    """Scores by the cosine similarity of letters, as logits: what is nearest to `LetterEncoder` is best to this."""

    def score(self, query: str, texts: Sequence[str]) -> Any:
        [one], others = LetterEncoder().encode_queries([query]), LetterEncoder().encode_documents(texts)
        return 10.0 * (others @ one / np.linalg.norm(others, axis=1) / np.linalg.norm(one)) - 5.0
