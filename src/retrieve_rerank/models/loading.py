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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import huggingface_hub
import sentence_transformers
import torch
import transformers
from huggingface_hub import constants as hub_constants
from safetensors import SafetensorError, safe_open
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers.utils import logging

from retrieve_rerank.errors import ModelError

AnyModel: TypeAlias = "sentence_transformers.SentenceTransformer | sentence_transformers.CrossEncoder"
Model = TypeVar("Model", sentence_transformers.SentenceTransformer, sentence_transformers.CrossEncoder)

# What reading a broken checkpoint, or moving it to a device that is not there, ends in.
_LOADING_ERRORS = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, AttributeError, AssertionError),
    SafetensorError,
)

_WEIGHTS, _WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
KIND = "config_sentence_transformers.json"
_A_BI_ENCODER = "Give a bi-encoder such as 'sentence-transformers/multi-qa-mpnet-base-dot-v1'"
_A_CROSS_ENCODER = "Give a trained cross-encoder such as 'cross-encoder/ms-marco-MiniLM-L6-v2'"
_RIGHT_CLASSES = {
    "SentenceTransformer": "Use BiEncoder",
    "CrossEncoder": "Use CrossEncoder",
    "SparseEncoder": "Use sentence_transformers.SparseEncoder",
    "MultiVectorEncoder": "Use sentence_transformers.MultiVectorEncoder",
    "ColBERT": "Use sentence_transformers.MultiVectorEncoder",
}
_LISTWISE = "is a listwise re-ranker, which reads all passages at once: neither class here runs it"
# What the end of an architecture's name says of a network that was not saved as a bi-encoder.
_FOREIGN = (
    (
        "ForMaskedLM",
        "predicts words and was not saved as a bi-encoder, as learned sparse encoders of SPLADE's kind are, whose "
        "class is sentence_transformers.SparseEncoder, and networks that are yet to be trained",
    ),
    ("ColBERT", "is a late-interaction model with a vector a token. Use sentence_transformers.MultiVectorEncoder"),
    ("ForRanking", _LISTWISE),
    (
        "ForCausalLM",
        "is a language model that writes text and was not saved as a bi-encoder. If it is a re-ranker that answers "
        "yes or no, use CrossEncoder",
    ),
    ("ForConditionalGeneration", "is a model that writes text and was not saved as a bi-encoder"),
    *(
        (f"For{task}", "was trained for another task")
        for task in ("QuestionAnswering", "TokenClassification", "MultipleChoice")
    ),
)
_WORDS = 2  # tokens that mean something; that of a space may be made up

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


def load_bi_encoder(checkpoint: Checkpoint) -> sentence_transformers.SentenceTransformer:
    """Load a bi-encoder.

    Raises:
        ModelError: If there is no such model, it cannot be loaded, or it is a cross-encoder.
    """
    model = _load(sentence_transformers.SentenceTransformer, checkpoint, "bi-encoder")
    if why := _why_no_bi_encoder(model, checkpoint):
        raise ModelError(f"{checkpoint.model!r} {why}. {_A_BI_ENCODER}")
    # The network's own pooler is often left out of a checkpoint: sentence embeddings do not use it.
    refuse_random_weights(model, checkpoint, "Get the complete checkpoint", unused="pooler.")
    return model


def load_cross_encoder(checkpoint: Checkpoint) -> sentence_transformers.CrossEncoder:
    """Load a cross-encoder with one label or two.

    Raises:
        ModelError: If there is no such model, it cannot be loaded, its head is missing, or it has more labels.
    """
    model: sentence_transformers.CrossEncoder = _load(sentence_transformers.CrossEncoder, checkpoint, "cross-encoder")
    if why := _why_no_cross_encoder(model, checkpoint):
        raise ModelError(f"{checkpoint.model!r} {why}. {_A_CROSS_ENCODER}")
    advice = _A_CROSS_ENCODER
    refuse_random_weights(model, checkpoint, advice)
    if model.num_labels not in (1, 2):
        raise ModelError(
            f"{checkpoint.model!r} has {model.num_labels} labels; re-ranking needs a cross-encoder with one, or with "
            f"two of which its config names the relevant one. {advice}"
        )
    _know_padding(model, checkpoint)
    return model


def _why_no_cross_encoder(model: sentence_transformers.CrossEncoder, checkpoint: Checkpoint) -> str | None:
    """Return why a checkpoint cannot score a query with a passage, or None if it seems to."""
    names = _architectures(model)
    shown = ", ".join(names)
    if any(name.endswith("ForRanking") for name in names):
        return f"{_LISTWISE} ({shown})"
    if not _has_modules(model) and isinstance(model[-1], LogitScore):
        template = str(getattr(model.tokenizer, "chat_template", None) or "")
        # A model for conversations has other roles, and would be asked nothing.
        if not re.search(r"""['"](?:query|document)['"]""", template):
            lacks = (
                "its chat template has no place for a 'query' and a 'document'"
                if template
                else "it has no chat template"
            )
            return (
                f"is a language model ({shown}) that cannot read a query with a passage: {lacks}, so nothing would ask "
                "it whether the passage is relevant. Mend the chat template in its folder if it is a re-ranker, as "
                "Qwen3-Reranker is"
            )
    heads = ("ForSequenceClassification", "ForCausalLM", "ForConditionalGeneration")
    bare = len(model) == 1 and not checkpoint.trust_remote_code  # no head of its own beside the transformer's
    if bare and names and not any(name.endswith(heads) for name in names):
        saved_as = saved_json(model, checkpoint, KIND).get("model_type")
        if saved_as is None:
            saved_as = "ColBERT" if names[0].endswith("ColBERT") else "SentenceTransformer"
        return (
            f"is not a cross-encoder: it was saved as {shown}, which has no scoring head, so its scores would come "
            f"from random weights. {_RIGHT_CLASSES.get(saved_as, f'It is for {saved_as}')}, if it is trained"
        )
    return None


def _why_no_bi_encoder(model: sentence_transformers.SentenceTransformer, checkpoint: Checkpoint) -> str | None:
    """Return what a checkpoint is instead of a bi-encoder and which class is right for it, or None if it is one."""
    names = _architectures(model)
    shown = ", ".join(names)
    if any(name.endswith("ForSequenceClassification") for name in names):
        return f"is a cross-encoder ({shown}): it scores a query with a passage and has no embeddings. Use CrossEncoder"
    saved_as = saved_json(model, checkpoint, KIND).get("model_type")
    if saved_as not in (None, "SentenceTransformer"):
        return (
            f"was saved as a {saved_as} of sentence-transformers, which is no bi-encoder with one vector a text: what "
            f"it would give here means nothing. {_RIGHT_CLASSES.get(saved_as, 'Use that class')}"
        )
    if _has_modules(model):
        return None  # saved as a bi-encoder, whatever its network was made for
    return next((f"{what} ({shown})" for name in names for end, what in _FOREIGN if name.endswith(end)), None)


def _has_modules(model: AnyModel) -> bool:
    """Whether a checkpoint lists its modules, as sentence-transformers saves it: what they are made with is kept."""
    return bool(model.module_kwargs)


def plain_encoder(model: AnyModel, checkpoint: Checkpoint) -> str | None:
    """Return what the caller should know of a network that was not saved as a bi-encoder, or None if it was."""
    pooling = next((module.pooling_mode for module in model if isinstance(module, Pooling)), None)
    if pooling is None or _has_modules(model):
        return None
    return (
        f"{checkpoint.model!r} is a plain network ({', '.join(_architectures(model))}) without modules.json, which "
        f"would say how its vectors are made: {pooling} pooling was taken, and no prompt. If it was not trained for "
        "that, its vectors are poor: use a checkpoint that sentence-transformers saved, or save this one with the "
        "pooling that it was trained with"
    )


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


def _load(kind: Callable[..., Model], checkpoint: Checkpoint, what: str) -> Model:
    folder = Path(checkpoint.model).expanduser()
    local = folder.is_dir()
    name = checkpoint.model
    pathlike = name.startswith((".", "~", os.sep)) or folder.is_absolute() or name.count("/") > 1 or "\\" in name
    if pathlike and not local:
        raise ModelError(f"there is no folder {str(folder)!r} to load a {what} from; check the path")
    _check_device(checkpoint, what)
    offline = checkpoint.local_files_only or hub_constants.HF_HUB_OFFLINE
    # Without this question, every file that might exist is asked for with retries: a minute before the error.
    unreachable = None if local or offline else _hub_failure()
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
        config = _config(checkpoint)
        if "vision_config" in config or "audio_config" in config:
            raise ModelError(
                f"{checkpoint.model!r} is a multimodal model ({', '.join(config.get('architectures') or [])}), which "
                f"reads pictures or sound, and cannot be loaded to read texts alone. Give a {what} of texts"
            ) from error
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
    _refuse_empty_tokenizers(model, checkpoint)
    return model.eval()


def _check_device(checkpoint: Checkpoint, what: str) -> None:
    """Raise ModelError if the device cannot be used, before that looks like a fault of the checkpoint."""
    try:
        torch.empty(0, device=checkpoint.device)
    except (RuntimeError, AssertionError, ValueError, TypeError, NotImplementedError) as error:
        raise ModelError(
            f"cannot load the {what} {checkpoint.model!r} onto device={checkpoint.device!r}: {_first_line(error)}. "
            "Give another device such as 'cpu', or leave it out"
        ) from error


def _refuse_empty_tokenizers(model: AnyModel, checkpoint: Checkpoint) -> None:
    """Raise ModelError if a tokenizer knows no word: without its files, transformers makes one that reads nothing."""
    for part in model.modules():
        tokenizer = getattr(part, "tokenizer", None)
        special = getattr(tokenizer, "all_special_tokens", None)
        if tokenizer is not None and special is not None and len(tokenizer) - len(set(special)) < _WORDS:
            raise ModelError(
                f"the tokenizer of {checkpoint.model!r} knows no words, so that all texts would be the same to it: its "
                "files (tokenizer.json, or vocab.txt and the like) are missing. Get the complete checkpoint"
            )


def _hub_failure() -> Exception | None:
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


def weights_digest(model: torch.nn.Module) -> str:
    """Return a short digest of a model's weights, the same under every name, folder and library version.

    A few values of every parameter go in: enough to tell two checkpoints apart, in milliseconds.
    """
    parts = []
    for parameter in model.parameters():
        values = parameter.detach().reshape(-1)
        step = max(1, values.numel() // 64)
        sample = values[::step][:64].to("cpu", torch.float32).numpy()
        parts.append(repr(tuple(parameter.shape)).encode() + sample.tobytes())
    return _digest(parts)


def rows_digest(model: torch.nn.Module) -> str:
    """Return a short digest of one number of every row of a model's matrices.

    Training may change a few rows of a table of word vectors, which the few values of `weights_digest` miss.
    """
    columns = [parameter.detach()[:, 0] for parameter in model.parameters() if parameter.ndim == 2]
    return _digest(column.to("cpu", torch.float32).numpy().tobytes() for column in columns)


def _digest(parts: Iterable[bytes]) -> str:
    """Return a short digest of parts in any order."""
    return sha256(b"".join(sorted(sha256(part).digest() for part in parts))).hexdigest()[:16]


def refuse_random_weights(model: AnyModel, checkpoint: Checkpoint, advice: str, unused: str | None = None) -> None:
    """Raise ModelError if parameters are not in the checkpoint's files, and so hold random numbers."""
    for module, folder in _modules(model, checkpoint):
        network = network_in(module)
        saved = set() if network is None else _saved_names(model, checkpoint, folder)
        if saved:
            _check_names(network, saved, checkpoint, advice, unused)


def _check_names(transformer: Any, saved: set[str], checkpoint: Checkpoint, advice: str, unused: str | None) -> None:
    # Old checkpoints name the two parts of a layer norm otherwise; a network may be saved with or without its prefix.
    saved = {re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name)) for name in saved}
    tails = {".".join(name.split(".")[start:]) for name in saved for start in range(name.count(".") + 1)}
    # Experts are merged while they load, so their names tell nothing.
    names = [name for name, _ in transformer.named_parameters() if "experts" not in name]
    names = [name for name in names if unused is None or not name.startswith(unused)]
    missing = [name for name in names if name not in tails and not any(name.endswith(f".{known}") for known in saved)]
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


def _modules(model: AnyModel, checkpoint: Checkpoint) -> Iterator[tuple[Any, str]]:
    """Yield the modules of a model, those on the routes of a router instead of it, each with its saved folder."""
    folders = [str(entry["path"]) for entry in saved_json(model, checkpoint, "modules.json")]
    for position, module in enumerate(model):
        folder = folders[position] if position < len(folders) else ""
        routes = getattr(module, "sub_modules", None)
        if routes is None:
            yield module, folder
            continue
        names = saved_json(model, checkpoint, f"{folder}/router_config.json").get("structure", {})
        for route, modules in routes.items():
            for name, part in zip(names.get(route, ()), modules, strict=False):
                yield part, f"{folder}/{name}"


def network_in(module: torch.nn.Module) -> Any:
    """Return the network of transformers' in a module, or None."""
    return next((part for part in module.modules() if isinstance(part, transformers.PreTrainedModel)), None)


def _saved_names(model: AnyModel, checkpoint: Checkpoint, inside: str) -> set[str]:
    """Return the names of the saved tensors, read from the file's header; empty where it cannot be found."""
    if index := saved_json(model, checkpoint, f"{inside}/{_WEIGHTS_INDEX}"):
        return set(index.get("weight_map", {}))
    weights = _saved_file(model, checkpoint, f"{inside}/{_WEIGHTS}")
    if weights is None:
        return set()
    with safe_open(weights, framework="pt") as file:
        return set(file.keys())


def saved_json(model: AnyModel, checkpoint: Checkpoint, name: str) -> Any:
    """Return what a file of a checkpoint holds; an empty mapping where there is none."""
    file = _saved_file(model, checkpoint, name)
    return {} if file is None else json.loads(file.read_text(encoding="utf-8"))


def _config(checkpoint: Checkpoint) -> Any:
    """Return the config.json of a checkpoint that could not be loaded; an empty mapping where there is none."""
    file: Any = Path(checkpoint.model).expanduser() / "config.json"
    if not file.parent.is_dir():
        file = huggingface_hub.try_to_load_from_cache(
            checkpoint.model, "config.json", checkpoint.cache_folder, checkpoint.revision
        )
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _saved_file(model: AnyModel, checkpoint: Checkpoint, name: str) -> Path | None:
    """Return a file of a checkpoint, by its name inside; None where there is none, or none in the hub's cache."""
    name = name.lstrip("/")
    folder = Path(checkpoint.model).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    # Of what lies in a folder of its own, the config names the place in the cache.
    repository = checkpoint.model if "/" in name else getattr(model.config, "_name_or_path", checkpoint.model)
    revision = getattr(model.config, "_commit_hash", None)
    found = huggingface_hub.try_to_load_from_cache(repository, name, checkpoint.cache_folder, revision)
    return Path(found) if isinstance(found, str) else None
