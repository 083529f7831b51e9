"""The precision that this processor computes fastest in without changing the ranking."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A precision or a backend, and why it was taken."""

    name: str
    reason: str


def choose_precision(precision: str, device: torch.device) -> Choice:
    """Return the precision to compute in on `device`."""
    import torch  # here, so that the names of precisions do not need it

    if precision != "auto":
        return Choice(precision, "asked for")
    if device.type == "cuda":
        # Ampere (8.0) and later multiply bfloat16 in hardware; Volta and Turing only float16.
        capability = torch.cuda.get_device_capability(device)
        if capability >= (8, 0):
            return Choice("bfloat16", "the GPU computes in it")
        if capability >= (7, 0):
            return Choice("float16", "the GPU computes in it, and not in bfloat16")
    if device.type == "cpu" and (unit := _cpu_bfloat16_unit()):
        return Choice("bfloat16", f"the processor computes in it ({unit})")
    return Choice("float32", f"this {device.type.upper()} has no faster precision that keeps the ranking")


def is_x86() -> bool:
    """Whether this is an x86 processor."""
    return platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")


def _cpu_bfloat16_unit() -> str | None:
    # Without one of these units bfloat16 is emulated, several times slower than float32. The two environment
    # variables take instruction sets away from oneDNN and from torch.
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "DEFAULT")).upper()
    if allowed not in ("DEFAULT", "ALL") and "AMX" not in allowed and "BF16" not in allowed:
        return None
    import torch

    if "avx512" not in torch.backends.cpu.get_cpu_capability().lower():
        return None
    if "BF16" not in allowed and _supported("_is_amx_tile_supported"):
        return "AMX"
    return "AVX512-BF16" if _supported("_is_avx512_bf16_supported") else None


def _supported(name: str) -> bool:
    import torch

    # Not part of torch's documented interface: where a version lacks it, stay with float32.
    probe = getattr(torch.cpu, name, None)
    return bool(probe and probe())
