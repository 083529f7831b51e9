"""Code blocks of README and docs and the docstrings' examples run, and print what they say; links lead somewhere."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import importlib.util
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REPOSITORY = "https://github.com/retrieve-rerank/retrieve-rerank/blob/main/"
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *(ROOT / "docs").rglob("*.md")]
BLOCKS = {
    block: f"{page.relative_to(ROOT)}-{number}"  # a block that stands on several pages runs once
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
}
MODULES = [
    "retrieve_rerank",
    "retrieve_rerank.demo",
    "retrieve_rerank.evaluation",
    "retrieve_rerank.langchain",
    "retrieve_rerank.llama_index",
    *(["retrieve_rerank.ray"] if importlib.util.find_spec("ray") else []),
    "retrieve_rerank.testing",
]
NUMBER = re.compile(r"-?\d+\.\d+")


def public_objects() -> Iterator[tuple[str, object]]:
    for module in MODULES:
        package = importlib.import_module(module)
        for name in package.__all__:
            if hasattr(thing := getattr(package, name), "__module__"):  # a constant has no docstring
                yield f"{module}.{name}", thing


@pytest.mark.parametrize(("name", "thing"), [pytest.param(*item, id=item[0]) for item in public_objects()])
def test_docstring_examples(
    name: str, thing: object, bi_encoder_path: Path, cross_encoder_path: Path, request: pytest.FixtureRequest
) -> None:
    module = importlib.import_module(thing.__module__)
    names: dict[str, object] = {"bi_encoder_path": bi_encoder_path, "cross_encoder_path": cross_encoder_path}
    if name.startswith("retrieve_rerank.ray."):
        request.getfixturevalue("cluster")
        names["chroma_port"] = request.getfixturevalue("chroma_server").port
    tests = doctest.DocTestFinder(recurse=False).find(thing, name, module=module, extraglobs=names)
    printed = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        runner.run(test, out=printed.write)
    assert runner.failures == 0, printed.getvalue()
    example_needed = isinstance(thing, type) and not issubclass(thing, BaseException) and not is_protocol(thing)
    if example_needed and name.rsplit(".", 1)[1] not in ("AddReport", "Timings"):
        assert runner.tries > 0, f"{name} has no example"


def is_protocol(thing: type) -> bool:
    return bool(getattr(thing, "_is_protocol", False))


@pytest.mark.parametrize("block", BLOCKS, ids=BLOCKS.values())
def test_block(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_paths: tuple[Path, Path]) -> None:
    """A line `#> …` says what is printed; numbers with a point may differ a little between processors."""
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, BLOCKS[block], "exec"), {"__name__": "__main__"})
    promised = [line.removeprefix("#> ") for line in block.splitlines() if line.startswith("#> ")]
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    assert [NUMBER.sub("#", line) for line in lines] == [NUMBER.sub("#", line) for line in promised]
    for line, promise in zip(lines, promised, strict=True):
        assert [float(number) for number in NUMBER.findall(line)] == [
            pytest.approx(float(number), abs=0.05) for number in NUMBER.findall(promise)
        ]


def test_every_extra_that_an_error_names_exists() -> None:
    named = set()
    for file in (ROOT / "src").rglob("*.py"):
        named |= set(re.findall(r'require\([^)]*extra="([a-z-]+)"', file.read_text(encoding="utf-8")))
    offered = re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert named
    assert named <= set(offered)


def test_the_readme_is_short_and_its_links_work_on_the_package_index_too() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    assert [link for link in re.findall(r"\]\(([^)]+)\)", readme) if not link.startswith("https://")] == []


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if path.startswith(REPOSITORY):
            file = ROOT / path.removeprefix(REPOSITORY)
        elif "://" not in path:
            file = page.parent / path if path else page
        else:
            continue
        assert file.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, link
