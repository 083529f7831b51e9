"""The documentation of Python's standard library as passages, read from the interpreter that runs this.

Every public module, class, function, method and property with a docstring. `quickstart.py` searches it.

    python examples/stdlib_docs.py json shutil     # prints the passages of these modules; without a name, of all
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import pkgutil
import sys
import warnings
from collections.abc import Collection, Iterator
from types import ModuleType

from retrieve_rerank import Passage
from splitting import pieces

# Importing these opens a browser, prints, warns or needs a display; or they hold tables, tests, or what others hold.
_SKIPPED_NAMES = """
    antigravity this idlelib tkinter turtle turtledemo lib2to3 distutils encodings.* pydoc_data test *.test *.tests
    multiprocessing.dummy posix nt posixpath ntpath genericpath sre_compile sre_constants sre_parse xxlimited
    xxlimited_35 xxsubtype aifc asynchat asyncore audioop cgi cgitb chunk crypt imghdr imp mailcap msilib nis nntplib
    ossaudiodev pipes smtpd sndhdr spwd sunau telnetlib uu xdrlib
"""
_SKIPPED = frozenset(_SKIPPED_NAMES.split())
SHORTEST = 20  # characters; a shorter docstring says no more than the name does


def stdlib_passages(only: Collection[str] = ()) -> Iterator[Passage]:
    """Yield the documentation of the standard library, or of the top-level modules named in `only`."""
    seen: set[str] = set()
    for module in _modules(only):
        name = "os.path" if module.__name__ in ("posixpath", "ntpath") else module.__name__
        for path, kind, docstring in _documented(name, module):
            text = inspect.cleandoc(docstring).encode("utf-8", "replace").decode().strip()
            if len(text) < SHORTEST or not seen.isdisjoint((path, text)):
                continue
            seen.update((path, text))
            for number, piece in enumerate(pieces(text)):
                id_ = f"{path}#{number}" if number else path
                yield Passage(id_, f"{path}\n\n{piece}", {"kind": kind, "module": name, "name": path})


def _modules(only: Collection[str]) -> Iterator[ModuleType]:
    for name in sorted(sys.stdlib_module_names):
        if not only or name in only:
            yield from _import(name)


def _import(name: str) -> Iterator[ModuleType]:
    """Yield a module and those below it, if importing it is safe, silent and possible here."""
    package, _, last = name.rpartition(".")
    if last.startswith("_") or not _SKIPPED.isdisjoint((name, f"{package}.*", f"*.{last}")):
        return
    noise = io.StringIO()
    with (
        contextlib.redirect_stdout(noise),
        contextlib.redirect_stderr(noise),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        try:
            module = importlib.import_module(name)
        except Exception:  # noqa: BLE001 - made for another system, or built without a library; each fails in its way
            return
    if any(issubclass(warning.category, DeprecationWarning) for warning in caught):
        return
    yield module
    if name == "os":
        yield importlib.import_module("os.path")
    for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
        yield from _import(f"{name}.{found.name}")


def _documented(name: str, module: ModuleType) -> Iterator[tuple[str, str, str]]:
    """Yield path, kind and docstring of a module and of everything public that it defines or exports."""
    if isinstance(module.__doc__, str):
        yield name, "module", module.__doc__
    prefix = "" if name == "builtins" else f"{name}."
    classes: list[tuple[str, type]] = []
    for key, value in _members(name, module):
        if inspect.isclass(value):
            classes.append((f"{prefix}{key}", value))
            doc = vars(value).get("__doc__")
            # A single line like a call is made by dataclasses and named tuples themselves.
            if isinstance(doc, str) and ("\n" in doc or not doc.startswith(f"{value.__name__}(")):
                yield f"{prefix}{key}", "class", doc
        elif inspect.isroutine(value) and isinstance(value.__doc__, str):
            yield f"{prefix}{key}", "function", value.__doc__
    for path, class_ in classes:  # after the functions: random.sample is better known than random.Random.sample
        for key, value in sorted(vars(class_).items()):
            if key.startswith("_") or not (inspect.isroutine(value) or isinstance(value, property)):
                continue
            if isinstance(value.__doc__, str) and not value.__doc__.startswith("Alias for field"):  # of a named tuple
                yield f"{path}.{key}", "method", value.__doc__


def _members(name: str, module: ModuleType) -> Iterator[tuple[str, object]]:
    exported = vars(module).get("__all__")
    # Lower and upper case together: socket.socket comes before its other name, socket.SocketType.
    for key in sorted(exported or vars(module), key=str.casefold):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some names are deprecated
            value = getattr(module, key, None)
        # Without __all__, what was merely imported is not this module's own; what is in C says `_json`, or None.
        home = getattr(value, "__module__", None) or name
        if not key.startswith("_") and (exported or name == "builtins" or home == name or home.startswith("_")):
            yield key, value


if __name__ == "__main__":
    for passage in stdlib_passages(sys.argv[1:]):
        print(f"{passage.id}   {dict(passage.metadata)}\n{passage.text}\n\n{'─' * 80}")
