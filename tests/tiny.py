"""Tiny models, built from nothing in a second, that go through the real loading, tokenizing and batching."""

from __future__ import annotations

import string
from pathlib import Path

import sentence_transformers
import torch
import transformers
from sentence_transformers.sentence_transformer import modules as models

POSITIONS = 64
WIDTH = 32

_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation + "äöüé"
_VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *_CHARACTERS,
    *(f"##{character}" for character in _CHARACTERS),
    *("paris", "rome", "capital", "france", "italy", "bread", "the", "is", "of", "what", "in", "word"),
]


def save_tokenizer(folder: Path, positions: int = POSITIONS) -> None:
    """Save a WordPiece tokenizer whose vocabulary is characters and a few words."""
    file = folder / "vocab.txt"
    file.write_text("\n".join(_VOCABULARY), encoding="utf-8")
    transformers.BertTokenizerFast(str(file), model_max_length=positions).save_pretrained(folder)


def config(positions: int = POSITIONS, **options: object) -> transformers.BertConfig:
    """Return the configuration of a two-layer BERT."""
    return transformers.BertConfig(
        vocab_size=len(_VOCABULARY),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=positions,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,  # large enough for scores that differ visibly
        **options,
    )


def save_bi_encoder(
    folder: Path, *, metric: str = "cosine", prompts: dict[str, str] | None = None, seed: int = 1
) -> Path:
    """Save a bi-encoder with mean pooling; cosine models normalise."""
    torch.manual_seed(seed)
    network = folder / "network"
    network.mkdir()
    transformers.BertModel(config()).save_pretrained(network)
    save_tokenizer(network)
    modules: list[torch.nn.Module] = [models.Transformer(str(network), max_seq_length=POSITIONS)]
    modules.append(models.Pooling(WIDTH, pooling_mode="mean"))
    if metric == "cosine":
        modules.append(models.Normalize())
    model = sentence_transformers.SentenceTransformer(
        modules=modules, prompts=prompts, similarity_fn_name=metric, device="cpu"
    )
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


def save_cross_encoder(folder: Path, *, labels: int = 1, seed: int = 3, positions: int = POSITIONS) -> Path:
    """Save a cross-encoder with `labels` outputs."""
    torch.manual_seed(seed)
    path = folder / "model"
    transformers.BertForSequenceClassification(config(positions, num_labels=labels)).save_pretrained(path)
    save_tokenizer(path, positions)
    return path
