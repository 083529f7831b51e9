"""The package imports in no time, and every public name is there."""

from __future__ import annotations

import json

import pytest

import retrieve_rerank
from tests.core.stubs import run_python

HEAVY = [
    *("torch", "chromadb", "transformers", "sentence_transformers", "langchain_core", "llama_index", "numpy"),
    *("pandas", "scipy", "jinja2", "matplotlib"),
]


def imported_after(script: str) -> set[str]:
    heavy = json.dumps(HEAVY)
    return set(
        json.loads(
            run_python(f"{script}\nimport json, sys\nprint(json.dumps([m for m in {heavy} if m in sys.modules]))")
        )
    )


@pytest.mark.parametrize(
    ("script", "allowed"),
    [
        ("import retrieve_rerank; assert set(retrieve_rerank.__all__) <= set(dir(retrieve_rerank))", ""),
        (
            "from retrieve_rerank import Hit, Passage, SearchResult, ModelError, Encoder, Scorer, split_paragraphs",
            "",
        ),
        ("from retrieve_rerank import BiEncoder, CrossEncoder, RetrieveRerank; BiEncoder('x')", "numpy"),
        ("from retrieve_rerank import ChromaIndex", "numpy"),
        ("import retrieve_rerank.evaluation", "numpy"),
    ],
)
def test_neither_names_nor_settings_load_models_databases_or_frameworks(script: str, allowed: str) -> None:
    assert imported_after(script) <= set(allowed.split())


def test_the_package_imports_no_part_that_is_an_extra() -> None:
    script = """
        import sys, retrieve_rerank
        for name in retrieve_rerank.__all__:
            getattr(retrieve_rerank, name)
        assert not {"ir_measures", "retrieve_rerank.evaluation"} & set(sys.modules)
        import retrieve_rerank.evaluation
        print([name for name in ("ray", "pyarrow", "retrieve_rerank.ray") if name in sys.modules])
    """
    assert run_python(script, warnings="ignore").strip() == "[]"


@pytest.mark.parametrize(
    "package", [f"retrieve_rerank.{name}" for name in ("evaluation", "langchain", "llama_index", "ray")]
)
def test_public_names_of_an_extra_are_sorted_and_documented(package: str) -> None:
    module = pytest.importorskip(package)
    assert module.__all__ == sorted(module.__all__)
    assert all(getattr(module, name).__doc__ for name in module.__all__)


@pytest.mark.parametrize(
    ("extra", "missing", "use"),
    [
        ("evaluation", "ir_measures", "import retrieve_rerank.evaluation"),
        ("evaluation", "jinja2", "from tests.evaluation import reports; reports.smallest().to_html('report.html')"),
        ("evaluation", "matplotlib.pyplot", "from tests.evaluation import reports; reports.smallest().plot()"),
        ("langchain", "langchain_core", "import retrieve_rerank.langchain"),
        ("llama-index", "llama_index.core", "import retrieve_rerank.llama_index"),
        ("ray", "ray", "import retrieve_rerank.ray"),
        ("ray", "pyarrow", "import retrieve_rerank.ray"),
    ],
)
def test_without_the_extra_the_error_names_it(extra: str, missing: str, use: str) -> None:
    script = f"""
        import sys
        sys.modules["{missing}"] = None
        import retrieve_rerank
        try:
            {use}
        except retrieve_rerank.MissingDependencyError as error:
            print(error)
    """
    assert f'pip install "retrieve-rerank[{extra}]"' in run_python(script, warnings="ignore")


def test_the_report_needs_no_matplotlib() -> None:
    script = """
        import sys, tempfile, pathlib
        from tests.evaluation import reports
        reports.smallest().to_html(pathlib.Path(tempfile.mkdtemp()) / "report.html")
        print("matplotlib" in sys.modules)
    """
    assert run_python(script).strip() == "False"


def test_import_takes_less_than_150_milliseconds() -> None:
    script = "import time; t = time.perf_counter(); import retrieve_rerank; print(time.perf_counter() - t)"
    assert min(float(run_python(script)) for _ in range(5)) < 0.15


@pytest.mark.parametrize("name", retrieve_rerank.__all__)
def test_every_public_name_resolves_and_says_where_it_is_from(name: str) -> None:
    value = getattr(retrieve_rerank, name)
    assert value.__name__ == name
    assert value.__doc__


def test_public_names_are_sorted_and_complete() -> None:
    assert retrieve_rerank.__all__ == sorted(retrieve_rerank.__all__)
    assert set(retrieve_rerank.__all__) == set(retrieve_rerank._ROOMS)
    promised = "BiEncoder CrossEncoder ChromaIndex RetrieveRerank SearchResult split_paragraphs Passage Hit AddReport"
    protocols = "Encoder Scorer Retriever"
    errors = (
        "RetrieveRerankError ModelError IndexMismatchError IndexLockedError MissingDependencyError InvalidInputError "
        "RemoteError"
    )
    assert set(f"{promised} {protocols} {errors}".split()) <= set(retrieve_rerank.__all__)


def test_star_import_brings_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from retrieve_rerank import *", names)
    assert set(retrieve_rerank.__all__) <= set(names)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'CrossEncodr'"):
        _ = retrieve_rerank.CrossEncodr
    with pytest.raises(ImportError, match="CrossEncodr"):
        exec("from retrieve_rerank import CrossEncodr")


def test_the_core_works_where_no_framework_is_installed() -> None:
    script = """
        import sys
        sys.modules["langchain_core"] = sys.modules["llama_index"] = None  # importing them fails
        import retrieve_rerank
        for name in retrieve_rerank.__all__:
            getattr(retrieve_rerank, name)
        try:
            retrieve_rerank.CrossEncoder("any").as_langchain()
        except retrieve_rerank.InvalidInputError as error:
            print(error)
    """
    assert 'pip install "retrieve-rerank[langchain]"' in run_python(script, warnings="ignore")


def test_the_package_is_typed_and_has_a_version() -> None:
    from importlib.resources import files

    assert (files("retrieve_rerank") / "py.typed").is_file()
    assert retrieve_rerank.__version__.count(".") == 2
