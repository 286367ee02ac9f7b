"""An `inflcli` for scripts under test that starts at once.

`Served(folder)` imports what the stages need once, and forks for every call of the small programme
that it puts at `folder/inflcli`, which has the arguments, streams, working folder and exit code of
the real one, and notes its arguments in `folder/calls`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from threading import Thread

_CLIENT = """#!{python} -SE
import json, os, socket, sys
with open({calls!r}, "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
with socket.socket(socket.AF_UNIX) as server:
    server.connect({place!r})
    request = json.dumps([sys.argv[1:], os.getcwd()]).encode()
    socket.send_fds(server, [len(request).to_bytes(4, "big") + request], [1, 2])
    answer = server.recv(1)
sys.exit(answer[0] if answer else 137)
"""


class Served:
    """The programme, and the calls that it answered."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        place = folder / "socket"
        client = folder / "inflcli"
        client.write_text(
            _CLIENT.format(python=sys.executable, calls=str(self.calls), place=str(place))
        )
        client.chmod(0o755)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(place)], stdout=subprocess.PIPE
        )
        assert self._process.stdout and self._process.stdout.readline() == b"ready\n"

    def take_calls(self) -> list[list[str]]:
        """The arguments of the calls since the last time."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(place: str) -> None:
    import torch

    torch.set_num_threads(1)
    import pipeline  # noqa: F401  imports all stages
    from transformers import AutoTokenizer, GPT2LMHeadModel  # noqa: F401  which wait to be asked for

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place)
        server.listen()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    answer(connection)


def answer(connection: socket.socket) -> None:
    """Run one call in this process, and end with it."""
    data, streams, _, _ = socket.recv_fds(connection, 4, 2)
    request = connection.recv(int.from_bytes(data, "big"), socket.MSG_WAITALL)
    sys.argv[1:], folder = json.loads(request)
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
    os.chdir(folder)
    Thread(target=die_with, args=[connection], daemon=True).start()
    code = 1
    try:
        from inflcli.cli import main

        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        connection.send(bytes([code]))
        os._exit(code)


def die_with(connection: socket.socket) -> None:
    """A client that is killed takes its call with it."""
    if not connection.recv(1):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    serve(sys.argv[1])
