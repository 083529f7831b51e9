"""The processes that tests fork behave as those that Python starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.forking import python

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX only")

CASES = [
    ["-c", "import sys; print(sys.argv, sys.path[0], __name__); sys.exit(7)", "é", "-W"],
    ["-c", "import os, sys; print(os.environ['GIVEN'], os.getcwd(), sys.stdin.read(), file=sys.stderr)"],
    ["-c", "1 / 0"],
    ["-c", "import warnings; warnings.warn('told'); print('went on')"],
    ["-W", "ignore", "-c", "import warnings; warnings.warn('told'); print('went on')"],
    ["-W", "error", "-c", "import warnings; warnings.warn('told'); print('went on')"],
    ["-c", "import atexit, threading; atexit.register(print, 'last'); threading.Timer(0.1, print, 'late').start()"],
    ["-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"],
    ["-m", "json.tool", "--help"],
]


@pytest.mark.parametrize("arguments", CASES, ids=range(len(CASES)))
def test_as_a_process_of_its_own(arguments: list[str], tmp_path: Path) -> None:
    def run(command: list[str]) -> tuple[int, str, list[str]]:
        environment = {**os.environ, "GIVEN": "ü", "PYTHONWARNINGS": ""}
        done = subprocess.run(
            [*command, *arguments],
            input="in",
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            check=False,
        )
        # Of a traceback only the last line: there are more frames in a fork.
        return done.returncode, done.stdout, done.stderr.splitlines()[-1:]

    assert run(python()) == run([sys.executable])


def test_a_script_gets_its_folder_and_a_signal(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("HERE = 'beside'\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import beside, time\n"
        "try:\n"
        "    print(beside.HERE, flush=True)\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped')\n"
    )
    with subprocess.Popen([*python(), str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "beside\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "stopped\n"
    assert process.returncode == 0


def test_it_does_not_outlive_its_client() -> None:
    code = "import time; print('up', flush=True); time.sleep(60)"
    with subprocess.Popen([*python(), "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        start = time.monotonic()
        process.kill()
        assert process.stdout.read() == ""  # whoever held the pipe is gone
    assert time.monotonic() - start < 30
