"""The weights of a loaded model: a digest of them, and whether all of them came from its checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import torch
import transformers
from safetensors import safe_open

from retrieve_rerank.errors import ModelError

if TYPE_CHECKING:
    from retrieve_rerank.models.loading import AnyModel, Checkpoint

_WEIGHTS, _WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"


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


def _modules(model: AnyModel, checkpoint: Checkpoint) -> Iterator[tuple[Any, str]]:
    """Yield the modules of a model, those on the routes of a router instead of it, each with its saved folder."""
    listed = saved_file(model, checkpoint, "modules.json")
    folders = [] if listed is None else [str(entry["path"]) for entry in json.loads(listed.read_text(encoding="utf-8"))]
    for position, module in enumerate(model):
        folder = folders[position] if position < len(folders) else ""
        routes = getattr(module, "sub_modules", None)
        if routes is None:
            yield module, folder
            continue
        config = saved_file(model, checkpoint, _joined(folder, "router_config.json"))
        names = {} if config is None else json.loads(config.read_text(encoding="utf-8"))["structure"]
        for route, modules in routes.items():
            for name, part in zip(names.get(route, ()), modules, strict=False):
                yield part, _joined(folder, name)


def network_in(module: torch.nn.Module) -> Any:
    """Return the network of transformers' in a module, or None."""
    return next((part for part in module.modules() if isinstance(part, transformers.PreTrainedModel)), None)


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _saved_names(model: AnyModel, checkpoint: Checkpoint, inside: str) -> set[str]:
    """Return the names of the saved tensors, read from the file's header; empty where it cannot be found."""
    index = saved_file(model, checkpoint, _joined(inside, _WEIGHTS_INDEX))
    if index is not None:
        weight_map: dict[str, Any] = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
        return set(weight_map)
    weights = saved_file(model, checkpoint, _joined(inside, _WEIGHTS))
    if weights is None:
        return set()
    with safe_open(weights, framework="pt") as file:
        return set(file.keys())


def saved_file(model: AnyModel, checkpoint: Checkpoint, name: str) -> Path | None:
    """Return a file of a checkpoint, by its name inside; None where there is none, or none in the hub's cache."""
    folder = Path(checkpoint.model).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    config = model.config
    # Of what lies in a folder of its own, the config names the place in the cache.
    repository = checkpoint.model if "/" in name else getattr(config, "_name_or_path", checkpoint.model)
    found = huggingface_hub.try_to_load_from_cache(
        repository, name, cache_dir=checkpoint.cache_folder, revision=getattr(config, "_commit_hash", None)
    )
    return Path(found) if isinstance(found, str) else None
