"""Tiny models, built from nothing in a second, that go through the real loading, tokenizing and batching."""

from __future__ import annotations

import json
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
    folder: Path,
    *,
    metric: str = "cosine",
    prompts: dict[str, str] | None = None,
    default_prompt_name: str | None = None,
    include_prompt: bool = True,
    seed: int = 1,
) -> Path:
    """Save a bi-encoder with mean pooling; cosine models normalise."""
    torch.manual_seed(seed)
    network = folder / "network"
    network.mkdir()
    transformers.BertModel(config()).save_pretrained(network)
    save_tokenizer(network)
    modules: list[torch.nn.Module] = [models.Transformer(str(network), max_seq_length=POSITIONS)]
    modules.append(models.Pooling(WIDTH, pooling_mode="mean", include_prompt=include_prompt))
    if metric == "cosine":
        modules.append(models.Normalize())
    model = sentence_transformers.SentenceTransformer(
        modules=modules,
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        similarity_fn_name=metric,
        device="cpu",
    )
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


def save_static_bi_encoder(folder: Path, *, seed: int = 4) -> Path:
    """Save a bi-encoder that has no network: the mean of its tokens' vectors, texts of any length."""
    torch.manual_seed(seed)
    save_tokenizer(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = sentence_transformers.SentenceTransformer(
        modules=[models.StaticEmbedding(tokenizer, embedding_dim=WIDTH)], device="cpu"
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


def save_roberta_cross_encoder(folder: Path, *, seed: int = 5) -> Path:
    """Save a cross-encoder that counts positions from after the padding index, with a tokenizer without a limit."""
    torch.manual_seed(seed)
    path = folder / "model"
    settings = transformers.RobertaConfig(
        vocab_size=len(_VOCABULARY),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=POSITIONS + 1,  # the first belongs to the padding token, whose index is 0
        pad_token_id=0,
        type_vocab_size=2,
        initializer_range=0.3,
        num_labels=1,
    )
    transformers.RobertaForSequenceClassification(settings).save_pretrained(path)
    save_tokenizer(path, positions=10**9)
    return path


def save_headless(folder: Path, *, seed: int = 6) -> Path:
    """Save a network without a head, whose configuration claims one."""
    torch.manual_seed(seed)
    path = folder / "model"
    transformers.BertModel(config()).save_pretrained(path)
    save_tokenizer(path)
    file = path / "config.json"
    claims = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}, "num_labels": 1}
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | claims), encoding="utf-8")
    return path


_CHAT = (  # nine words around the query and the passage
    "{% for m in messages %}{{ 'what is the' if m['role'] == 'query' else 'is the word of' }} {{ m['content'] }} "
    "{% endfor %}is what"
)


def save_language_model_reranker(folder: Path, *, seed: int = 7) -> Path:
    """Save a language model that answers yes or no, as Qwen3-Reranker does, with a chat template for the pair."""
    torch.manual_seed(seed)
    path = folder / "model"
    settings = transformers.StableLmConfig(
        vocab_size=len(_VOCABULARY) + 2,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.3,
    )
    transformers.StableLmForCausalLM(settings).save_pretrained(path)
    file = path / "vocab.txt"
    file.write_text("\n".join([*_VOCABULARY, "yes", "no"]), encoding="utf-8")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=transformers.BertTokenizerFast(str(file)).backend_tokenizer,
        model_max_length=POSITIONS,
        padding_side="left",
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    tokenizer.chat_template = _CHAT
    tokenizer.save_pretrained(path)
    return path
