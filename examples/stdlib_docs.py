"""The documentation of Python's standard library as passages, read from the interpreter that runs this.

Every public module, class, function, method and property with a docstring. `quickstart.py` searches it.

    python examples/stdlib_docs.py json     # prints the passages of some modules, or of all
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from types import ModuleType

from retrieve_rerank import Passage, split_paragraphs

# Importing these opens a browser, prints, needs a display, or warns; or they are tables, tests and other names of things.
SKIPPED = frozenset(
    "antigravity this idlelib tkinter turtle turtledemo test lib2to3 distutils encodings.* pydoc_data xxlimited "
    "xxlimited_35 xxsubtype posix nt posixpath ntpath genericpath sre_compile sre_constants sre_parse".split()
)
SHORTEST = 25  # characters; less says no more than the name does
LONGEST = 200  # tokens as `_tokens` guesses them: all-MiniLM-L6-v2 reads 256, and the guess may be low


def stdlib_passages(only: Iterable[str] = ()) -> Iterator[Passage]:
    """Yield the documentation of the standard library, or of the top-level modules named in `only`."""
    seen: set[str] = set()
    for module in _modules(set(only)):
        for name, kind, text in _documented(module):
            doc = inspect.cleandoc(text).strip()
            if len(doc) < SHORTEST or doc in seen:
                continue
            seen.add(doc)
            for part, piece in enumerate(pieces(doc)):
                id_ = f"{name}#{part}" if part else name
                yield Passage(id_, f"{name}\n\n{piece}", {"kind": kind, "module": module.__name__, "name": name})


def pieces(text: str) -> list[str]:
    """Cut a text at paragraphs, else at lines, else at words, into pieces that the bi-encoder reads whole."""
    done: list[str] = []
    for paragraph in split_paragraphs(text):
        for unit in _small(paragraph.text):
            if done and _tokens(done[-1]) + _tokens(unit) <= LONGEST:
                done[-1] += f"\n\n{unit}"
            else:
                done.append(unit)
    return done


def _small(paragraph: str) -> Iterator[str]:
    if _tokens(paragraph) <= LONGEST:
        yield paragraph
        return
    separator = "\n" if "\n" in paragraph else " "
    done = ""
    for part in paragraph.split(separator):
        joined = f"{done}{separator}{part}" if done else part
        if done and _tokens(joined) > LONGEST:
            yield from _small(done) if separator == "\n" else [done]
            done = part
        else:
            done = joined
    if separator == "\n" and _tokens(done) > LONGEST:
        yield from _small(done)
    else:
        yield done


def _tokens(text: str) -> int:
    """Guess how many tokens a text is: every mark or digit is one, and a long word is several."""
    return sum(1 + len(word) // 6 for word in re.findall(r"[A-Za-z]+|[^A-Za-z\s]", text))


def _modules(only: set[str]) -> Iterator[ModuleType]:
    for name in sorted(sys.stdlib_module_names):
        if not only or name in only:
            yield from _import(name)


def _import(name: str) -> Iterator[ModuleType]:
    """Yield a module and what is below it, if importing it is safe, silent and has a future."""
    package, _, last = name.rpartition(".")
    if last.startswith("_") or last == "tests" or not SKIPPED.isdisjoint((name, f"{package}.*")):
        return
    noise = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(noise):
        warnings.simplefilter("always")
        try:
            module = importlib.import_module(name)
        except Exception:  # of another platform, or built without what it needs
            return
    if any(issubclass(warning.category, DeprecationWarning) for warning in caught):
        return
    yield module
    if name == "os":
        yield module.path
    for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
        yield from _import(f"{name}.{found.name}")


def _documented(module: ModuleType) -> Iterator[tuple[str, str, str]]:
    """Yield name, kind and docstring of a module and of everything public that it defines or exports."""
    name = "os.path" if module.__name__ in ("posixpath", "ntpath") else module.__name__
    if isinstance(module.__doc__, str):
        yield name, "module", module.__doc__
    prefix = "" if name == "builtins" else f"{name}."
    for key in sorted(getattr(module, "__all__", None) or vars(module)):
        thing = vars(module).get(key)
        # Without __all__, what was merely imported is not this module's; C code of a module lives in another.
        home = getattr(thing, "__module__", None) or name
        if key.startswith("_") or not (hasattr(module, "__all__") or home == name or home.startswith("_")):
            continue
        if inspect.isclass(thing):
            yield from _class(f"{prefix}{key}", thing)
        elif inspect.isroutine(thing) and isinstance(thing.__doc__, str):
            yield f"{prefix}{key}", "function", thing.__doc__


def _class(name: str, thing: type) -> Iterator[tuple[str, str, str]]:
    doc = vars(thing).get("__doc__")
    if isinstance(doc, str) and not doc.startswith(f"{thing.__name__}("):  # such a line is a dataclass's own making
        yield name, "class", doc
    for key, value in sorted(vars(thing).items()):
        doc = getattr(value, "__doc__", None)
        routine = inspect.isroutine(value) or isinstance(value, property)
        if routine and not key.startswith("_") and isinstance(doc, str):
            yield f"{name}.{key}", "method", doc


if __name__ == "__main__":
    for passage in stdlib_passages(sys.argv[1:]):
        print(f"{'─' * 100}\n{passage.id}   {dict(passage.metadata)}\n{passage.text}\n")
