"""Load a checkpoint safely, and refuse the wrong kind.

Everything of sentence-transformers that touches files or the hub is called from here. Weights come from safetensors
only, remote code runs only if the caller says so, and a checkpoint without the head that its job needs is an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import huggingface_hub
import sentence_transformers
import torch
from huggingface_hub import constants as hub_constants
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from retrieve_rerank.errors import InvalidInputError, ModelError

AnyModel: TypeAlias = "sentence_transformers.SentenceTransformer | sentence_transformers.CrossEncoder"
Model = TypeVar("Model", sentence_transformers.SentenceTransformer, sentence_transformers.CrossEncoder)

# What reading a broken checkpoint, or moving it to a device that is not there, ends in.
_LOADING_ERRORS = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, AttributeError, AssertionError),
    SafetensorError,
)

_WEIGHTS, _WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
_KIND = "config_sentence_transformers.json"
_UNLIMITED = 10**9  # tokens; a tokenizer without a limit says 10**30

# transformers changes torch's default type for the whole process while it loads: a model that loads meanwhile, on the
# thread of its own, would get its weights rounded.
_one_at_a_time = threading.RLock()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a model comes from. `model` is a folder or a hub name."""

    model: str
    device: str | None = None
    revision: str | None = None
    cache_folder: str | None = None
    local_files_only: bool = False
    token: str | bool | None = field(default=None, repr=False)
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model.strip():
            raise InvalidInputError(f"model must be a hub name or a folder, got {self.model!r}")


def load_bi_encoder(checkpoint: Checkpoint) -> sentence_transformers.SentenceTransformer:
    """Load a bi-encoder.

    Raises:
        ModelError: If there is no such model, it cannot be loaded, or it is a cross-encoder.
    """
    model = _load(sentence_transformers.SentenceTransformer, checkpoint, "bi-encoder")
    if any(name.endswith("ForSequenceClassification") for name in _architectures(model)):
        raise ModelError(
            f"{checkpoint.model!r} is a cross-encoder ({', '.join(_architectures(model))}): it scores a query with a "
            "passage and has no embeddings. Use CrossEncoder for it, and a bi-encoder such as "
            "'sentence-transformers/multi-qa-mpnet-base-dot-v1' here"
        )
    file = _saved_file(model, checkpoint, _KIND)
    saved_as = None if file is None else json.loads(file.read_text(encoding="utf-8")).get("model_type")
    if saved_as not in (None, "SentenceTransformer"):
        raise ModelError(
            f"{checkpoint.model!r} was saved as a {saved_as} of sentence-transformers, which is no bi-encoder with one "
            "vector a text: what it would give here means nothing. Give a bi-encoder such as "
            "'sentence-transformers/multi-qa-mpnet-base-dot-v1'"
        )
    # The network's own pooler is often left out of a checkpoint: sentence embeddings do not use it.
    _refuse_random_weights(model, checkpoint, "Get the complete checkpoint", unused="pooler.")
    return model


def load_cross_encoder(checkpoint: Checkpoint) -> sentence_transformers.CrossEncoder:
    """Load a cross-encoder with one label or two.

    Raises:
        ModelError: If there is no such model, it cannot be loaded, its head is missing, or it has more labels.
    """
    model: sentence_transformers.CrossEncoder = _load(sentence_transformers.CrossEncoder, checkpoint, "cross-encoder")
    advice = "Give a trained cross-encoder such as 'cross-encoder/ms-marco-MiniLM-L6-v2'"
    heads = ("ForSequenceClassification", "ForCausalLM", "ForConditionalGeneration")
    names = _architectures(model)
    bare = len(model) == 1 and not checkpoint.trust_remote_code  # no head of its own beside the transformer's
    if bare and names and not any(name.endswith(heads) for name in names):
        raise ModelError(
            f"{checkpoint.model!r} is not a cross-encoder: it was saved as {', '.join(names)}, which has no scoring "
            f"head, so its scores would come from random weights. {advice}"
        )
    _refuse_random_weights(model, checkpoint, advice)
    if model.num_labels not in (1, 2):
        raise ModelError(
            f"{checkpoint.model!r} has {model.num_labels} labels; re-ranking needs a cross-encoder with one, or with "
            f"two of which its config names the relevant one. {advice}"
        )
    _know_padding(model, checkpoint)
    return model


def _know_padding(model: AnyModel, checkpoint: Checkpoint) -> None:
    """Tell a network that looks for the last token which one pads: many checkpoints leave it to the tokenizer."""
    transformer = model.transformers_model
    if transformer is None or not any(name.endswith("ForSequenceClassification") for name in _architectures(model)):
        return
    if getattr(transformer.config, "pad_token_id", 0) is not None:
        return
    padding = getattr(model.tokenizer, "pad_token_id", None)
    if padding is None:
        raise ModelError(
            f"{checkpoint.model!r} has no padding token, neither in its config nor in its tokenizer, so several "
            "passages cannot be scored together; set pad_token in its tokenizer_config.json"
        )
    transformer.config.pad_token_id = padding


def weights_digest(model: torch.nn.Module) -> str:
    """Return a short digest of a model's weights, the same under every name, folder and library version.

    A few values of every parameter go in: enough to tell two checkpoints apart, in milliseconds.
    """
    parts = []
    for parameter in model.parameters():
        values = parameter.detach().reshape(-1)
        step = max(1, values.numel() // 64)
        sample = values[::step][:64].to("cpu", torch.float32).numpy()
        parts.append(sha256(repr(tuple(parameter.shape)).encode() + sample.tobytes()).digest())
    return sha256(b"".join(sorted(parts))).hexdigest()[:16]


def longest_input(model: AnyModel) -> int | None:
    """Return how many tokens the network itself can take, or None where it has no limit."""
    transformer = model.transformers_model
    if transformer is None:
        return None
    for name, module in transformer.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa and MPNet count positions from after the padding index.
            return int(module.num_embeddings) - (0 if module.padding_idx is None else module.padding_idx + 1)
    positions = getattr(transformer.config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def set_longest_input(model: AnyModel, max_length: int | None) -> int | None:
    """Set how many tokens of a text `model` reads; None keeps what the checkpoint says. Return the limit in force.

    Raises:
        InvalidInputError: If the network has fewer positions than `max_length`, or takes no limit.
    """
    routes: Any = getattr(model[0], "sub_modules", None)
    if routes is not None:
        return _set_routes(routes, max_length)
    limit = longest_input(model)
    if max_length is not None and limit is not None and max_length > limit:
        raise InvalidInputError(f"max_length is {max_length}, but this model has positions for {limit} tokens at most")
    known = [value for value in (max_length or model.max_seq_length, limit) if value and value < _UNLIMITED]
    if not known or model.tokenizer is None:
        return None
    try:
        # A tokenizer without a limit of its own would otherwise hand the network more than it has positions for.
        model.max_seq_length = int(min(known))
    except AttributeError as error:  # as of a table of word vectors
        if max_length is not None:
            raise InvalidInputError(
                f"max_length is {max_length}, and {type(model[0]).__name__}, which reads the texts of this model, "
                "takes no limit; leave max_length out"
            ) from error
        return None
    return int(min(known))


def _set_routes(routes: Any, max_length: int | None) -> int | None:
    """Set the limit of a model that reads queries by one network and passages by another; return the passages'."""
    limits: dict[str, int] = {}
    for name, modules in routes.items():
        own = getattr(modules[0], "max_seq_length", None)
        known = [value for value in (own, max_length) if value and value < _UNLIMITED]
        if not known:
            continue
        limits[name] = int(min(known))
        try:
            modules[0].max_seq_length = limits[name]
        except AttributeError:  # a table of word vectors has none
            del limits[name]
    return limits.get("document")


def _load(kind: Callable[..., Model], checkpoint: Checkpoint, what: str) -> Model:
    folder = Path(checkpoint.model).expanduser()
    local = folder.is_dir()
    if not local and _looks_like_path(checkpoint.model):
        raise ModelError(f"there is no folder {str(folder)!r} to load a {what} from; check the path")
    offline = checkpoint.local_files_only or hub_constants.HF_HUB_OFFLINE
    # Without this question, every file that might exist is asked for with retries: a minute before the error.
    unreachable = None if local or offline else hub_failure()
    cached = offline or unreachable is not None
    try:
        with _one_at_a_time, _quiet_loading():
            model = kind(
                str(folder) if local else checkpoint.model,
                device=checkpoint.device,
                revision=checkpoint.revision,
                cache_folder=checkpoint.cache_folder,
                local_files_only=cached,
                token=checkpoint.token,
                trust_remote_code=checkpoint.trust_remote_code,
                model_kwargs={
                    "dtype": "auto",
                    "use_safetensors": True,
                    # Without it, transformers asks the hub for an adapter where peft is installed.
                    "adapter_kwargs": {"local_files_only": cached, "cache_dir": checkpoint.cache_folder},
                },
            )
    except _LOADING_ERRORS as error:
        if local:
            advice = "Is it a complete checkpoint, with config.json, a tokenizer and safetensors weights?"
        elif unreachable is not None:
            advice = (
                f"The model hub ({hub_constants.ENDPOINT}) cannot be reached and the model is not in the local cache. "
                f"Check the network, or give a folder. The network said: {_first_line(unreachable)}"
            )
        elif offline:
            advice = "Offline, only models in the local cache load: fetch it once while online, or give a folder"
        else:
            advice = "Check the name on the hub; a private model needs token="
        raise ModelError(f"cannot load the {what} {checkpoint.model!r}: {_first_line(error)}. {advice}") from error
    return model.eval()


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or Path(name).is_absolute() or name.count("/") > 1 or "\\" in name


def hub_failure() -> Exception | None:
    """Return why the hub cannot be reached, or None if it answers."""
    try:
        huggingface_hub.get_session().head(hub_constants.ENDPOINT, timeout=5)
    except Exception as error:  # noqa: BLE001 - the hub client's HTTP library, and so its errors, depend on its version
        return error
    return None


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    # A "Loading weights" bar is noise in a library, and the load report's verdict is given by our own checks. The
    # hub's download bars stay: a download is never silent.
    transformers_logging: Any = logging  # part of it is untyped
    bar, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def _architectures(model: AnyModel) -> list[str]:
    return list(getattr(model.config, "architectures", None) or [])


def _refuse_random_weights(model: AnyModel, checkpoint: Checkpoint, advice: str, unused: str | None = None) -> None:
    """Raise ModelError if parameters are not in the checkpoint's files, and so hold random numbers."""
    transformer = model.transformers_model
    saved = _saved_names(model, checkpoint)
    if transformer is None or not saved:
        return
    # Old checkpoints name the two parts of a layer norm otherwise; a network may be saved with or without its prefix.
    saved = {re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name)) for name in saved}
    tails = {".".join(name.split(".")[start:]) for name in saved for start in range(name.count(".") + 1)}
    # Experts are merged while they load, so their names tell nothing.
    names = [name for name, _ in transformer.named_parameters() if "experts" not in name]
    names = [name for name in names if unused is None or not name.startswith(unused)]
    missing = [name for name in names if name not in tails and not any(_is_tail(known, name) for known in saved)]
    head = [name for name in missing if not name.startswith(f"{transformer.base_model_prefix}.")]
    if len(missing) > len(names) / 2:  # the library loads them under other names: only the head tells
        missing = head if unused is None else []
    if missing:
        what = "the scoring head of" if unused is None and len(head) == len(missing) else "a part of"
        shown = ", ".join(missing[:4]) + (", …" if len(missing) > 4 else "")
        raise ModelError(
            f"{what} {checkpoint.model!r} ({shown}) is not in its weights and was newly initialised with random "
            f"numbers, so its results would be random. {advice}"
        )


def _is_tail(tail: str, name: str) -> bool:
    return name.endswith(f".{tail}")


def _saved_names(model: AnyModel, checkpoint: Checkpoint) -> set[str]:
    """Return the names of the saved tensors, read from the file's header; empty where it cannot be found."""
    index = _saved_file(model, checkpoint, _WEIGHTS_INDEX)
    if index is not None:
        weight_map: dict[str, Any] = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
        return set(weight_map)
    weights = _saved_file(model, checkpoint, _WEIGHTS)
    if weights is None:
        return set()
    with safe_open(weights, framework="pt") as file:
        return set(file.keys())


def _saved_file(model: AnyModel, checkpoint: Checkpoint, name: str) -> Path | None:
    folder = Path(checkpoint.model).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    config = model.config
    repository = getattr(config, "_name_or_path", checkpoint.model)
    found = huggingface_hub.try_to_load_from_cache(
        repository, name, cache_dir=checkpoint.cache_folder, revision=getattr(config, "_commit_hash", None)
    )
    return Path(found) if isinstance(found, str) else None
