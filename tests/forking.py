"""Python processes that start at once, for tests that start many.

Importing torch, and what stands on it, takes seconds of the processor at each start. `python` returns a command that is
used as `sys.executable` is: a small client asks a server, which has imported all that already, to fork. The fork takes
over the client's arguments, environment, folder and streams; the client passes signals on and ends as the fork does.
What is imported when is for processes of their own to show.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any

_CLIENT = Path(__file__).with_name("forking_client.py")
_IMPORTED = (
    "chromadb",
    "retrieve_rerank.cli.app",
    "retrieve_rerank.evaluation",
    "retrieve_rerank.langchain",
    "retrieve_rerank.llama_index",
    "retrieve_rerank.models.engine",
)


def python() -> list[str]:
    """Return the command; to it are added a script, or `-m` and a module, or `-c` and code, with `-W` before it."""
    if not hasattr(os, "fork"):
        return [sys.executable]
    return [sys.executable, "-I", "-S", str(_CLIENT), _server()]


@functools.cache
def _server() -> str:
    """Start this process's server, which ends with it; return its address."""
    folder = tempfile.mkdtemp(prefix="fork-")  # a short path, as there is a socket in it
    process = subprocess.Popen(
        [sys.executable, __file__, folder],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    atexit.register(process.communicate)
    return f"{folder}/socket"


def _serve(folder: str) -> dict[str, Any]:
    """Fork for each client until stdin ends; return in the forks, with what the client asks for."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen(64)
        os.write(1, b"ready\n")
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks that wait for the others
        while True:
            readable, _, _ = select.select([listener, 0], [], [])
            if 0 in readable:
                shutil.rmtree(folder)
                os._exit(0)
            client, _ = listener.accept()
            if os.fork() == 0:
                break
            client.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with client:
        _, streams, _, _ = socket.recv_fds(client, 1, 3)
        with client.makefile("r", encoding="utf-8") as sent:
            asked: dict[str, Any] = json.loads(sent.readline())
        child = os.fork()
        if child:
            _wait(child, client)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    return asked


def _wait(child: int, client: socket.socket) -> None:
    """Tell the client what becomes of the child, which does not outlive it. Does not return."""
    client.sendall(f"{child}\n".encode())
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)
        if select.select([client], [], [], 0.01)[0]:  # it says nothing more: it is gone
            os.kill(child, signal.SIGKILL)
            os._exit(1)


def _become(asked: dict[str, Any], imported: int) -> None:
    """Run what is asked for, as Python does at its start.

    Args:
        asked: What the client sent.
        imported: How many of the filters of warnings come from what is imported.
    """
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    coding = os.environ.get("PYTHONIOENCODING", "utf-8")
    for name, mode, number, errors in (
        ("stdin", "r", 0, "strict"),
        ("stdout", "w", 1, "strict"),
        ("stderr", "w", 2, "backslashreplace"),
    ):
        lines = mode == "w" and (number == 2 or os.isatty(number))
        stream = os.fdopen(number, mode, 1 if lines else -1, coding, errors, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    words: list[str] = asked["arguments"]
    actions = [action for action in [os.environ.get("PYTHONWARNINGS")] if action]
    while words[0] == "-W":
        actions.append(words[1])
        words = words[2:]
    for action in actions:  # behind the filters of what is imported, which would have been put before it
        warnings.simplefilter(action)  # type: ignore[arg-type]
        warnings.filters.insert(imported, warnings.filters.pop(0))  # type: ignore[attr-defined]
        warnings.simplefilter("ignore", ImportWarning, append=True)  # makes it known that they changed
    sys.warnoptions[:] = actions
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, asked["folder"])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    if words[0] == "-c":
        code, name, start = words[1], "<string>", ""
        sys.argv = ["-c", *words[2:]]
    else:
        code, name, start = Path(words[0]).read_text(encoding="utf-8"), words[0], str(Path(words[0]).parent.resolve())
        sys.argv = words
        main.__file__ = name
    sys.path.insert(0, start)
    exec(compile(code, name, "exec"), main.__dict__)


if __name__ == "__main__":
    del sys.path[0]  # this folder
    own = len(warnings.filters)
    for each in _IMPORTED:
        importlib.import_module(each)
    gc.freeze()  # what is imported is not looked through again in every fork
    _become(_serve(sys.argv[1]), len(warnings.filters) - own)
