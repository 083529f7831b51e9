"""The door: what it exports, what it costs, and what happens without the extra."""

from __future__ import annotations

import pytest

from tests.core.stubs import run_python


def test_public_names_are_sorted_and_documented() -> None:
    ray = pytest.importorskip("retrieve_rerank.ray")
    assert ray.__all__ == sorted(ray.__all__)
    assert all(getattr(ray, name).__doc__ for name in ray.__all__)


def test_the_package_does_not_import_ray() -> None:
    script = """
        import sys, retrieve_rerank, retrieve_rerank.evaluation
        for name in retrieve_rerank.__all__:
            getattr(retrieve_rerank, name)
        print([name for name in ("ray", "pyarrow", "retrieve_rerank.ray") if name in sys.modules])
    """
    assert run_python(script, warnings="ignore").strip() == "[]"


@pytest.mark.parametrize("missing", ["ray", "pyarrow"])
def test_without_the_extra_the_error_names_it(missing: str) -> None:
    script = """
        import sys
        sys.modules[sys.argv[1]] = None
        import retrieve_rerank
        try:
            import retrieve_rerank.ray
        except retrieve_rerank.MissingDependencyError as error:
            print(error)
    """
    assert 'pip install "retrieve-rerank[ray]"' in run_python(script, missing, warnings="ignore")
