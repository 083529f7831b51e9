"""The client of `forking`: has its server start a process, and behaves as that process. Imports next to nothing."""

import json
import os
import signal
import socket
import sys


def main() -> None:
    """Send what is wanted; pass signals on; end as the process ends."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(sys.argv[1])
        wanted = {"arguments": sys.argv[2:], "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109 - pathlib takes longer to import
        socket.send_fds(server, [b"."], [0, 1, 2])
        server.sendall(json.dumps(wanted).encode() + b"\n")
        with server.makefile("r") as answers:
            child = int(answers.readline())
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda received, _: os.kill(child, received))
            status = int(answers.readline())
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    os._exit(status)


main()
