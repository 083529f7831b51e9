"""The precision that a processor is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from retrieve_rerank import BiEncoder, CrossEncoder, InvalidInputError
from retrieve_rerank.models.precision import choose_precision

CPU = torch.device("cpu")
BOTH = {"amx": True, "bf16": True}


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    """Pretend to be a processor with these abilities."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)

    def pretend(capability: str, *, amx: bool = False, bf16: bool = False) -> None:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)

    return pretend


@pytest.mark.parametrize(
    ("capability", "abilities", "allowed", "expected"),
    [
        ("AVX2", {}, None, "float32"),
        ("AVX512", {}, None, "float32"),
        ("AVX512", {"bf16": True}, None, "bfloat16"),
        ("AVX512", BOTH, None, "bfloat16"),
        ("AVX2", BOTH, None, "float32"),  # torch was told not to use AVX-512
        ("DEFAULT", {"amx": True}, None, "float32"),
        ("AVX512", BOTH, "AVX2", "float32"),  # and here its library
        ("AVX512", BOTH, "AVX512_CORE", "float32"),
        ("AVX512", BOTH, "AVX512_CORE_BF16", "bfloat16"),
        ("AVX512", BOTH, "AVX512_CORE_AMX", "bfloat16"),
        ("AVX512", BOTH, "avx512_core_amx", "bfloat16"),
        ("AVX512", BOTH, "ALL", "bfloat16"),
        ("AVX512", {}, "AVX512_CORE_AMX", "float32"),
        ("AVX512", None, None, "float32"),  # a torch without the probes
    ],
)
def test_auto_takes_bfloat16_only_where_it_is_computed_in(
    processor,
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
    abilities: dict[str, bool] | None,
    allowed: str | None,
    expected: str,
) -> None:
    processor(capability, **(abilities or {}))
    if abilities is None:
        monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
        monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    if allowed is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    choice = choose_precision("auto", CPU)
    assert choice.name == expected
    assert choice.reason
    for name in ("float32", "bfloat16", "float16"):  # what is asked for is taken
        assert choose_precision(name, CPU).name == name


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16"), ((7, 0), "float16"), ((6, 1), "float32")],
)
def test_a_gpu_gets_what_its_generation_computes_in(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert choose_precision("auto", torch.device("cuda", 0)).name == expected
    assert choose_precision("auto", torch.device("mps")).name == "float32"


@pytest.mark.parametrize("name", ["fp16", "int4", "", "Float32", None, torch.float16])
@pytest.mark.parametrize("kind", [BiEncoder, CrossEncoder])
def test_an_unknown_precision_is_refused_before_anything_loads(kind: type, name: str) -> None:
    with pytest.raises(InvalidInputError, match=r"precision must be 'auto', .* or 'float16'; got"):
        kind("no-such-model", precision=name)


TEXTS = ["paris is the capital of france", "rome", "bread bread bread", "what is the word in italy"]


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_low_precision_changes_vectors_little_and_they_leave_in_float32(tiny_bi_encoder: Path, name: str) -> None:
    with BiEncoder(tiny_bi_encoder, precision="float32") as exact, BiEncoder(tiny_bi_encoder, precision=name) as low:
        expected, vectors = exact.encode_documents(TEXTS), low.encode_documents(TEXTS)
        assert low.precision == name
        assert low.fingerprint == exact.fingerprint
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)  # normalised after the network, in float32
    assert (vectors * expected).sum(axis=1) == pytest.approx(1, abs=2e-3)
    assert not np.array_equal(vectors, expected)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_low_precision_keeps_the_ranking_and_logits_leave_in_float32(tiny_cross_encoder: Path, name: str) -> None:
    with CrossEncoder(tiny_cross_encoder, precision="float32") as exact:
        expected = exact.score("capital of france", TEXTS)
    with CrossEncoder(tiny_cross_encoder, precision=name) as low:
        logits = low.score("capital of france", TEXTS)
        assert name in repr(low)
    assert logits.dtype == np.float32
    assert logits == pytest.approx(expected, abs=0.05)
    assert not np.array_equal(logits, expected)
    assert logits.argsort().tolist() == expected.argsort().tolist()


def test_the_head_computes_in_float32_so_that_logits_are_not_rounded(tiny_cross_encoder: Path) -> None:
    with CrossEncoder(tiny_cross_encoder, precision="bfloat16") as model:
        logits = model.score("paris", TEXTS)
    rounded = torch.from_numpy(logits).to(torch.bfloat16).float().numpy()
    assert (logits != rounded).all()


@pytest.mark.parametrize("kind", ["tiny_bi_encoder", "tiny_cross_encoder"])
def test_auto_says_what_it_chose_and_why(request: pytest.FixtureRequest, kind: str) -> None:
    path = request.getfixturevalue(kind)
    with (BiEncoder if kind == "tiny_bi_encoder" else CrossEncoder)(path) as model:
        assert "not loaded" in repr(model)
        choice = choose_precision("auto", torch.device(model.device))
        assert model.precision == choice.name
        assert choice.reason in repr(model)
