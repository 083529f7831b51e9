"""Tiny models, built from nothing in a second, that go through the real loading, tokenizing and batching."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path

import sentence_transformers
import torch
import transformers
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer import modules as models

POSITIONS = 64
WIDTH = 32
SMALLEST = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}

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
    pooling: str = "mean",
    seed: int = 1,
) -> Path:
    """Save a bi-encoder; cosine models normalise."""
    torch.manual_seed(seed)
    network = folder / "network"
    network.mkdir()
    transformers.BertModel(config()).save_pretrained(network)
    save_tokenizer(network)
    modules: list[torch.nn.Module] = [models.Transformer(str(network), max_seq_length=POSITIONS)]
    modules.append(models.Pooling(WIDTH, pooling_mode=pooling, include_prompt=include_prompt))
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


def save_cross_encoder(
    folder: Path,
    *,
    labels: int = 1,
    names: Sequence[str] | None = None,
    settings: dict[str, object] | None = None,
    seed: int = 3,
    positions: int = POSITIONS,
) -> Path:
    """Save a cross-encoder with `labels` outputs, called `names`, and with `settings` written into its config.json."""
    torch.manual_seed(seed)
    path = folder / "model"
    transformers.BertForSequenceClassification(config(positions, num_labels=labels)).save_pretrained(path)
    save_tokenizer(path, positions)
    told = dict(settings or {})
    if names is not None:
        told["id2label"] = {str(number): name for number, name in enumerate(names)}
        told["label2id"] = {name: number for number, name in enumerate(names)}
    configure(path, told)
    return path


def configure(path: Path, settings: dict[str, object]) -> None:
    """Write settings into a saved model's config.json."""
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | settings), encoding="utf-8")


def save_cross_encoder_with_dense_head(folder: Path, activation: torch.nn.Module, *, seed: int = 8) -> Path:
    """Save a cross-encoder whose head is a module of its own, with its activation baked in."""
    torch.manual_seed(seed)
    network = folder / "network"
    network.mkdir()
    transformers.BertModel(config()).save_pretrained(network)
    save_tokenizer(network)
    modules = [
        models.Transformer(str(network), max_seq_length=POSITIONS),
        models.Pooling(WIDTH, pooling_mode="cls"),
        Dense(
            WIDTH,
            1,
            activation_function=activation,
            module_input_name="sentence_embedding",
            module_output_name="scores",
        ),
    ]
    sentence_transformers.CrossEncoder(modules=modules, device="cpu").save(str(folder / "model"))
    return folder / "model"


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
    claims = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}, "num_labels": 1}
    configure(path, claims)
    return path


# The words of Qwen3-Reranker's template, which reads the instruction from the system message.
_INSTRUCTED = (
    "{% set told = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first "
    "| default('is the passage what the query is of') %}"
    "judge : {{ told }} query : {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }} "
    "passage : {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }} "
    "the word is yes / no ? answer :"
)

_CHAT = (  # nine words around the query and the passage
    "{% for m in messages %}{{ 'what is the' if m['role'] == 'query' else 'is the word of' }} {{ m['content'] }} "
    "{% endfor %}is what"
)


def save_instructed_reranker(folder: Path, *, seed: int = 9, positions: int = 256) -> Path:
    """Save a tiny Qwen3 that answers yes or no, with a template that has a place for an instruction and a suffix."""
    torch.manual_seed(seed)
    path = folder / "model"
    settings = transformers.Qwen3Config(
        vocab_size=len(_VOCABULARY) + 2,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.3,
    )
    transformers.Qwen3ForCausalLM(settings).save_pretrained(path)
    save_chat_tokenizer(path, _INSTRUCTED, positions)
    return path


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
    save_chat_tokenizer(path, _CHAT, POSITIONS)
    return path


def save_chat_tokenizer(path: Path, template: str | None, positions: int) -> None:
    file = path / "vocab.txt"
    file.write_text("\n".join([*_VOCABULARY, "yes", "no"]), encoding="utf-8")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=transformers.BertTokenizerFast(str(file)).backend_tokenizer,
        model_max_length=positions,
        padding_side="left",
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)


def save_language_model_with_head(folder: Path) -> Path:
    """Save a tiny Qwen2 with one label whose config does not say what pads; the tokenizer does."""
    folder.mkdir()
    torch.manual_seed(11)
    settings = transformers.Qwen2Config(
        vocab_size=len(_VOCABULARY),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        num_labels=1,
        bos_token_id=None,
        eos_token_id=None,
    )
    transformers.Qwen2ForSequenceClassification(settings).save_pretrained(folder)
    save_tokenizer(folder, 128)
    return folder


def save_router(folder: Path, positions: tuple[int, int]) -> Path:
    """Save a bi-encoder that reads queries and passages by networks of their own, with so many positions each."""
    sides = []
    for seed, count in enumerate(positions):
        torch.manual_seed(20 + seed)
        side = folder / str(seed)
        side.mkdir(parents=True)
        transformers.BertModel(config(count)).save_pretrained(side)
        save_tokenizer(side, count)
        loaded = sentence_transformers.SentenceTransformer(str(side), device="cpu")
        sides.append([loaded[0], loaded[1]])
    router = models.Router.for_query_document(query_modules=sides[0], document_modules=sides[1])
    path = folder / "saved"
    whole = sentence_transformers.SentenceTransformer(modules=[router, models.Normalize()], device="cpu")
    whole.save_pretrained(str(path))
    return path
