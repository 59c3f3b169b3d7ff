"""A throw-away container that runs one program and never outlives the process that waits for it.

The container's stdin is a lifeline: over it the program's environment is sent (so that addresses with credentials are
in no container's configuration), and when it closes, because this process ended in whatever way, everything in the
container is killed. A container that a machine's crash left behind is removed by the next one.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfjob.errors import PreparationError, TargetError
from tfjob.images.engine import address, connected, explained, stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from docker import DockerClient

__all__ = ["Mount", "needs_local", "run_in_container"]

OWNER = "tfjob.owner"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Arguments: where stdout goes, the file that is the program's stdin, the program and its arguments. The last line of
# stdout is the exit code. In the background, stdin is /dev/null unless it is given another number first.
_WRAPPER = """
while IFS= read -r line && [ -n "$line" ]; do export "$line"; done
exec 3<&0
output=$1 input=$2
shift 2
if [ "$output" = keep ]; then "$@" <"$input" 3<&- & else "$@" <"$input" >/dev/null 3<&- & fi
child=$!
{ while IFS= read -r line; do :; done; kill -9 -1; } <&3 >/dev/null 2>&1 &
exec 3<&-
wait "$child"
echo "exit $?"
"""


@dataclass(frozen=True)
class Mount:
    """A file or directory of this machine, seen at the same path in the container."""

    path: Path
    writable: bool = False


def run_in_container(
    image: str,
    command: Sequence[str],
    *,
    doing: str,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    on_output: Callable[[str], None] | None = None,
    mounts: Iterable[Mount] = (),
    cwd: Path | None = None,
    stdin: Path | None = None,
) -> int:
    """Run a program in a new container of an image, as the user that runs tfjob, and return its exit code.

    `on_line` gets its stderr line by line, `on_output` its stdout (dropped without). A code from 128 + n is returned as
    -n, the signal. `doing` completes "the Docker Engine could not …". Raises TargetError and PreparationError.
    """
    from docker.errors import DockerException  # noqa: PLC0415  # 100 ms that only those who use an engine should pay
    from requests.exceptions import RequestException  # noqa: PLC0415

    with connected(doing) as client:
        _sweep(client)
        arguments = ["keep" if on_output else "drop", str(stdin or os.devnull), *command]
        container = _create(client, image, arguments, mounts, cwd)
        try:
            code = _attached(client, container, environment, on_line, on_output)
        finally:
            # The engine removes it by itself when it has ended; this is for one that has not.
            with contextlib.suppress(Exception):
                client.api.remove_container(container, force=True)
        if code is None:
            try:
                client.ping()
            except (DockerException, RequestException, OSError) as error:
                raise stopped(doing) from error
            raise PreparationError(
                f"the container that was to {doing} was killed",
                "Perhaps the machine ran out of memory (`dmesg`). Submit again; nothing half-made was left behind.",
            )
    return 128 - code if code > 128 else code


def _create(
    client: DockerClient, image: str, arguments: Sequence[str], mounts: Iterable[Mount], cwd: Path | None
) -> str:
    """Create the container, not started yet, and return its id."""
    options = client.info().get("SecurityOptions") or []
    rootless = any("name=rootless" in str(one) for one in options)
    binds: list[Any] = [
        {"Type": "bind", "Source": str(one.path), "Target": str(one.path), "ReadOnly": not one.writable}
        for one in mounts
    ]
    host = client.api.create_host_config(
        init=True,
        auto_remove=True,
        network_mode="host",
        mounts=binds,
        security_opt=["label=disable"],  # SELinux would ask for the mounted directories to be labelled anew
        userns_mode="host" if any("name=userns" in str(one) for one in options) else None,
    )
    created = client.api.create_container(
        image,
        entrypoint=["/bin/sh", "-c", _WRAPPER, "sh"],
        command=list(arguments),
        # In a rootless engine, root is the user that runs it.
        user="0:0" if rootless else f"{os.geteuid()}:{os.getegid()}",
        environment={"HOME": "/tmp"},  # noqa: S108  # of the container, which has no home for this user
        working_dir=str(cwd) if cwd else "/",
        stdin_open=True,
        labels={OWNER: _owner(os.getpid())},
        host_config={**host, "StdinOnce": True},
    )
    return str(created["Id"])


def _attached(
    client: DockerClient,
    container: str,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    on_output: Callable[[str], None] | None,
) -> int | None:
    """Start the container, pass on what it says, and return its program's exit code; None when it was killed."""
    stream = client.api.attach_socket(container, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1, "logs": 0})
    connection = getattr(stream, "_sock", stream)
    connection.settimeout(None)
    code: list[int] = []

    def output(line: str) -> None:
        if line.startswith("exit ") and line[5:].isdecimal():
            code[:] = [int(line[5:])]
        elif on_output is not None:
            on_output(line)

    try:
        client.api.start(container)
        variables = [f"{name}={value}\n" for name, value in environment.items() if _can_be_sent(name, value)]
        connection.sendall("".join([*variables, "\n"]).encode("utf-8", "surrogateescape"))
        readers = {1: _Lines(output), 2: _Lines(on_line)}
        for number, data in _frames(stream):
            if number in readers:
                readers[number].take(data)
        for reader in readers.values():
            reader.end()
    finally:
        with contextlib.suppress(OSError):
            connection.close()
        stream.close()
    return code[0] if code else None


def _frames(stream: Any) -> Iterator[tuple[int, bytes]]:
    from docker.utils.socket import frames_iter  # noqa: PLC0415

    yield from frames_iter(stream, tty=False)  # type: ignore[no-untyped-call]


class _Lines:
    """Bytes put together to lines of text."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def take(self, data: bytes) -> None:
        """Take some bytes and pass on the lines that are complete."""
        *lines, self._rest = (self._rest + self._decoder.decode(data)).split("\n")
        for line in lines:
            self._on_line(line.rstrip())

    def end(self) -> None:
        """Pass on what stands after the last newline."""
        if self._rest:
            self._on_line(self._rest.rstrip())
            self._rest = ""


def _can_be_sent(name: str, value: str) -> bool:
    return _VARIABLE.fullmatch(name) is not None and "\n" not in value and "\0" not in value


def _sweep(client: DockerClient) -> None:
    """Remove containers whose process of this machine is gone: what is left when the engine too was killed."""
    own = _owner(os.getpid()).split()
    for one in client.api.containers(all=True, filters={"label": OWNER}):
        owner = str(one["Labels"].get(OWNER, "")).split()
        if len(owner) == len(own) and owner[:2] == own[:2] and owner != _owner(int(owner[2])).split():
            with contextlib.suppress(PreparationError), explained("remove an old container"):
                client.api.remove_container(one["Id"], force=True)


def _owner(pid: int) -> str:
    """Name a process so that no other has the name: the machine's boot, its process namespace, pid and start time."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    namespace = os.readlink("/proc/self/ns/pid")
    try:
        started = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = "gone"
    return f"{boot} {namespace} {pid} {started}"


def needs_local(doing: str) -> None:
    """Raise TargetError unless the engine is one whose containers can be given directories of this machine."""
    if not address().startswith("unix://"):
        raise TargetError(
            f"the Docker Engine at {address()} is on another machine and cannot {doing} in this machine's store",
            "Unset DOCKER_HOST to use this machine's own Docker Engine.",
        )
