"""The door: what it exports, what it costs, and what happens without the extra."""

from __future__ import annotations

import pytest

from retrieve_rerank import evaluation
from tests.core.stubs import run_python


def test_public_names_are_sorted_and_documented() -> None:
    assert evaluation.__all__ == sorted(evaluation.__all__)
    assert all(getattr(evaluation, name).__doc__ for name in evaluation.__all__)


def test_the_package_does_not_import_it_and_it_imports_nothing_heavy() -> None:
    script = """
        import sys, retrieve_rerank
        for name in retrieve_rerank.__all__:
            getattr(retrieve_rerank, name)
        assert not {"ir_measures", "retrieve_rerank.evaluation"} & set(sys.modules)
    """
    run_python(script, warnings="ignore")
    script = """
        import sys, retrieve_rerank.evaluation
        heavy = ("torch", "chromadb", "transformers", "langchain_core", "llama_index", "pandas", "scipy")
        print([name for name in (*heavy, "jinja2", "matplotlib") if name in sys.modules])
    """
    assert run_python(script).strip() == "[]"


@pytest.mark.parametrize(
    ("missing", "use"),
    [
        ("ir_measures", "import retrieve_rerank.evaluation"),
        ("jinja2", "from tests.evaluation import reports; reports.smallest().to_html('report.html')"),
        ("matplotlib.pyplot", "from tests.evaluation import reports; reports.smallest().plot()"),
    ],
)
def test_without_the_extra_the_error_names_it(missing: str, use: str) -> None:
    script = f"""
        import sys
        sys.modules["{missing}"] = None
        import retrieve_rerank
        try:
            {use}
        except retrieve_rerank.MissingDependencyError as error:
            print(error)
    """
    assert 'pip install "retrieve-rerank[evaluation]"' in run_python(script, warnings="ignore")


def test_the_report_needs_no_matplotlib() -> None:
    script = """
        import sys, tempfile, pathlib
        from tests.evaluation import reports
        reports.smallest().to_html(pathlib.Path(tempfile.mkdtemp()) / "report.html")
        print("matplotlib" in sys.modules)
    """
    assert run_python(script).strip() == "False"
