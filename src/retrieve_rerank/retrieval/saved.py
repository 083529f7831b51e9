"""A tuned setting as a file: what to search with, kept apart from the code that searches."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from retrieve_rerank._files import check_path, write_text
from retrieve_rerank.checks import check_count
from retrieve_rerank.errors import InvalidInputError, shown
from retrieve_rerank.models.cross_encoder import CrossEncoder
from retrieve_rerank.models.interpolation import check_weight
from retrieve_rerank.models.settings import Argument, reading_back

_FORMAT = 1
# What of a cross-encoder decides its scores. Never whether to run a checkpoint's code, nor where files are kept.
REMEMBERED = (
    "model",
    "endpoint",
    "protocol",
    "server_scores",
    "precision",
    "backend",
    "revision",
    "prompt",
    "max_length",
    "long_passages",
    "max_windows",
    "calibration",
)


@dataclass(frozen=True, slots=True)
class SavedSetting:
    """What `Tuning.save` wrote: how deep which first stage is re-ranked, by what, and with which weight.

    Attributes:
        first_stage: Name of the first stage.
        fetch_k: How many candidates it is asked for.
        cross_encoder: Name of the cross-encoder; None is no re-ranking.
        model: What `CrossEncoder(**model)` makes it from; None where it was of another kind.
        measured: Where the setting comes from: the dataset, its quality there and its latency.
        rerank_weight: How much the cross-encoder counts in the order; see `RetrieveRerank`.

    Raises:
        InvalidInputError: If a value cannot be used.

    Example:
        >>> from retrieve_rerank import SavedSetting
        >>> setting = SavedSetting("BM25", 20, "mini", {"model": "cross-encoder/ms-marco-MiniLM-L6-v2"})
        >>> setting.fetch_k, setting.reranked
        (20, True)
    """

    first_stage: str
    fetch_k: int
    cross_encoder: str | None = None
    model: Mapping[str, Argument] | None = None
    measured: Mapping[str, str | int | float | None] = field(default_factory=dict)
    rerank_weight: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("first_stage", self.first_stage), ("cross_encoder", self.cross_encoder)):
            if not isinstance(value, str) and not (value is None and name == "cross_encoder"):
                raise InvalidInputError(f"{name} of a setting must be a string, got {shown(value)}")
        object.__setattr__(self, "fetch_k", check_count(self.fetch_k, "fetch_k"))
        object.__setattr__(self, "rerank_weight", check_weight(self.rerank_weight))
        if self.model is not None and not isinstance(self.model, Mapping):
            raise InvalidInputError(f"model of a setting must be a dict of arguments, got {shown(self.model)}")

    @property
    def reranked(self) -> bool:
        """Whether a cross-encoder orders the candidates."""
        return self.cross_encoder is not None

    def make_cross_encoder(self, **changes: Any) -> CrossEncoder:
        """Return the cross-encoder of the setting, which loads at its first use.

        Args:
            **changes: Arguments of `CrossEncoder` that replace the setting's or are added to them, such as `device`.

        Raises:
            InvalidInputError: If there is none, or the file does not say how to make it.
        """
        if self.model is None:
            raise InvalidInputError(
                f"the setting does not say how {shown(self.cross_encoder)} is made; give it as cross_encoder"
                if self.reranked
                else "the setting is not to re-rank, so there is no cross-encoder"
            )
        arguments: dict[str, Any] = {name: value for name, value in self.model.items() if name in REMEMBERED}
        with reading_back(changes):
            return CrossEncoder(**{**arguments, **changes})


def save_setting(setting: SavedSetting, path: str | os.PathLike[str]) -> None:
    """Write a setting as one JSON object, in UTF-8; what was there before stays until the new file is whole."""
    content = json.dumps({"format": _FORMAT, **asdict(setting)}, ensure_ascii=False, indent=1)
    write_text(f"{content}\n", path, "the setting")


def load_setting(path: str | os.PathLike[str]) -> SavedSetting:
    """Read a setting that `Tuning.save` wrote; `RetrieveRerank.load` makes the pipeline of one.

    LangChain's and LlamaIndex's `RetrieveRerankRetriever` take `setting.make_cross_encoder()` as their `reranker`, and
    `setting.fetch_k` and `setting.rerank_weight` under these names.

    Args:
        path: Of the JSON file.

    Raises:
        InvalidInputError: If the file is missing, is something else, or was written by a newer version.
    """
    file = check_path(path, "a setting's file")
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "format" not in content:
            raise InvalidInputError("it names no format")
        if (written := content.pop("format")) != _FORMAT:
            raise InvalidInputError(
                f"it has format {shown(written)}, and this version reads {_FORMAT}; update retrieve-rerank, or save "
                "it again"
            )
        if "first_stage" not in content:
            raise InvalidInputError("it names no first stage. An evaluation and a setting are different files")
        return SavedSetting(**content)
    except (OSError, ValueError, TypeError, RecursionError) as error:  # our own are ValueErrors, too
        raise InvalidInputError(f"{str(file)!r} is no setting that Tuning.save wrote: {error}") from error


def remembered(model: CrossEncoder) -> dict[str, Argument]:
    """Return the arguments that make a cross-encoder with the same scores, without those that are the defaults."""
    parameters = inspect.signature(CrossEncoder).parameters
    given = model.settings
    return {
        name: given[name]
        for name in REMEMBERED
        if name in given and (name == "model" or given[name] != parameters[name].default)
    }
