"""A tuning in words."""
from __future__ import annotations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.tuned import Setting, Tuning


def answer(tuning: Tuning) -> str:
    raise NotImplementedError


def code(setting: Setting) -> str:
    raise NotImplementedError


def file(tuning: Tuning, setting: Setting) -> dict[str, object]:
    raise NotImplementedError


def short(tuning: Tuning) -> str:
    raise NotImplementedError


def html(tuning: Tuning) -> str:
    raise NotImplementedError
