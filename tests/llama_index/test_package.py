from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import retrieve_rerank.llama_index as package
from retrieve_rerank import MissingDependencyError


def test_the_public_names_are_explicit_and_sorted() -> None:
    assert package.__all__ == sorted(package.__all__)
    assert {name for name in package.__all__ if not hasattr(package, name)} == set()


def test_a_missing_framework_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("llama_index.core", "retrieve_rerank.llama_index"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "llama_index.core", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "retrieve-rerank\[llama-index\]"'):
        importlib.import_module("retrieve_rerank.llama_index")


def test_importing_brings_neither_torch_nor_chroma_nor_langchain() -> None:
    code = (
        "import sys, retrieve_rerank.llama_index as p;"
        "p.CrossEncoderRerank('some/model'); p.BiEncoderEmbedding('some/model');"
        "print([n for n in ('torch', 'chromadb', 'langchain_core', 'sentence_transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
