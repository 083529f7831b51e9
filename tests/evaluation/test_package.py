"""The door: what it exports, what it costs, and what happens without the extra."""

from __future__ import annotations

from retrieve_rerank import evaluation
from tests.core.stubs import run_python


def test_public_names_are_sorted_and_documented() -> None:
    assert evaluation.__all__ == sorted(evaluation.__all__)
    assert all(getattr(evaluation, name).__doc__ for name in evaluation.__all__)


def test_the_package_does_not_import_it() -> None:
    script = """
        import sys, retrieve_rerank
        for name in retrieve_rerank.__all__:
            getattr(retrieve_rerank, name)
        print([name for name in ("ir_measures", "retrieve_rerank.evaluation") if name in sys.modules])
    """
    assert run_python(script, warnings="ignore").strip() == "[]"


def test_it_imports_neither_torch_nor_a_framework_nor_pandas() -> None:
    script = """
        import sys, retrieve_rerank.evaluation
        heavy = ("torch", "chromadb", "transformers", "langchain_core", "llama_index", "pandas", "scipy")
        print([name for name in heavy if name in sys.modules])
    """
    assert run_python(script).strip() == "[]"


def test_without_the_extra_the_error_names_it() -> None:
    script = """
        import sys
        sys.modules["ir_measures"] = None
        import retrieve_rerank
        try:
            import retrieve_rerank.evaluation
        except retrieve_rerank.MissingDependencyError as error:
            print(error)
    """
    assert 'pip install "retrieve-rerank[evaluation]"' in run_python(script)
