"""How mpirun starts its daemons in the containers of other nodes: no ssh, no srun, which images have not. Standard library only.

    tfjob-launch HOST COMMAND...      what mpirun runs in the place of ssh (Open MPI's documentation, "plm_rsh_agent")

The request goes by a file to node.py beside it, by a word to batch.py, and by another to node.py on that host, which runs the
command and says how it ended; that goes back the same way. The texts of requests are files of the attempt's directory: they are
too long for words. Any Python from 3.8; imports nothing of tfjob.
"""

from __future__ import annotations

import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from typing import Any

LOOK_S = 0.02
ENDING = ".request.json"
LOST = 255  # what ssh says of a host that it can't reach


class Launching:
    """What node.py does about it. `environ` is for the commands, with what the launcher's task is given beside it."""

    def __init__(self, node: int, attempt: str, environ: dict[str, str], launcher: str, say: Any) -> None:
        self.node, self.directory, self.say = node, directory_of(attempt), say
        os.makedirs(self.directory, exist_ok=True)
        with open(os.path.join(attempt, "tasks", launcher, "task.json"), encoding="utf-8") as file:
            task = json.load(file)
        self.environ = {**environ, **task["env"]}
        self.asked: set[str] = set()
        self.running: list[tuple[subprocess.Popen[bytes], str, int]] = []
        if node == 0:
            make_program(self.directory, attempt)

    def look(self) -> None:
        """Pass new requests on, and tell of commands that have ended."""
        for name in sorted(os.listdir(self.directory)) if self.node == 0 else ():
            if name.endswith(ENDING) and name not in self.asked:
                self.asked.add(name)
                self.say(launch=name, on=read(os.path.join(self.directory, name))["host"])
        for one in list(self.running):
            process, name, asker = one
            code = process.poll()
            if code is not None:
                self.running.remove(one)
                self.say(**{"launched": name, "code": code if code >= 0 else LOST, "for": asker})

    def hear(self, word: dict[str, Any]) -> None:
        """A word of batch.py about a request."""
        import subprocess  # every node's program loads this file, and few have ranks elsewhere

        if word.get("at") == self.node:
            command = read(os.path.join(self.directory, word["launch"]))["command"]
            process = (
                subprocess.Popen(  # as the login shell of another host would; it says nothing but to the job's log
                    ["/bin/sh", "-c", command],
                    env=self.environ,
                    stdin=subprocess.DEVNULL,
                    stdout=sys.stderr,
                    start_new_session=True,
                )
            )
            self.running.append((process, word["launch"], word["for"]))
        elif "launched" in word and word["for"] == self.node:
            write(os.path.join(self.directory, word["launched"] + ".ended"), {"code": word["code"]})


def make_program(directory: str, attempt: str) -> None:
    """The program that mpirun finds on its PATH: a path in its setting could hold no spaces."""
    import shlex  # the same

    path = os.path.join(directory, "tfjob-launch")
    own = [sys.executable, "-E", "-s", "-S", "-X", "utf8", os.path.abspath(__file__), attempt]
    with open(path, "w", encoding="utf-8") as file:
        file.write('#!/bin/sh\nexec {} "$@"\n'.format(" ".join(map(shlex.quote, own))))
    os.chmod(path, 0o700)


def request(attempt: str, host: str, command: list[str]) -> int:
    """Have a command run on a host, and wait for its end; returns its exit code. What mpirun calls does no more than this."""
    directory = directory_of(attempt)
    name = os.path.join(directory, f"{os.getpid()}-{time.time_ns()}{ENDING}")
    write(name, {"host": host, "command": " ".join(command)})  # as ssh does: mpirun has quoted what must be
    while not os.path.exists(name + ".ended"):
        time.sleep(LOOK_S)
    return int(read(name + ".ended")["code"])


def directory_of(attempt: str) -> str:
    """Where the requests of an attempt are."""
    return os.path.join(attempt, "launch")


def read(path: str) -> Any:
    """A file that was written whole."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write(path: str, value: Any) -> None:
    """Write a file whole or not at all."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.rename(path + ".new", path)


if __name__ == "__main__":
    sys.exit(request(sys.argv[1], sys.argv[2], sys.argv[3:]))
