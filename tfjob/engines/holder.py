"""Holds a run's leases while its containers run, whatever becomes of the supervisor. Standard library only.

    python -I -S holder.py RUN < PIPE      the leases' open files are inherited

Tasks that are processes inherit the leases' files; containers are children of the Docker Engine and can't. This process
has them in their place. The pipe says which processes to wait for, a line each: ``PID START_TICKS``; then ``complete``.
If the pipe ends without that word, whoever started the containers was killed meanwhile, and the processes that bear the
run's id are waited for. When all have ended this process ends, and with it the leases.
"""

from __future__ import annotations

import os
import select
import sys
import time

SEARCH_S = 10.0
"""How long a container may still come up after whoever asked for it has died."""


def main(run: str) -> None:
    """Read who is to be waited for, and wait."""
    complete = False
    waiting: dict[tuple[int, str], int] = {}
    for line in sys.stdin:
        if line == "complete\n":
            complete = True
            break
        pid, ticks = line.split()
        watch(waiting, int(pid), ticks)
    deadline = time.monotonic() + (0 if complete else SEARCH_S)
    while waiting or time.monotonic() < deadline:
        if time.monotonic() < deadline:
            for pid in marked(run):
                watch(waiting, pid, start_ticks(pid))
        timeout_s = 0.2 if time.monotonic() < deadline else None
        ended = select.select(list(waiting.values()), [], [], timeout_s)[0]
        for key, descriptor in list(waiting.items()):
            if descriptor in ended:
                os.close(descriptor)
                del waiting[key]


def watch(waiting: dict[tuple[int, str], int], pid: int, ticks: str) -> None:
    """Add a process to those waited for, unless it is among them or has ended; its pid may be another's by now."""
    if (pid, ticks) in waiting:
        return
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    if start_ticks(pid) == ticks:
        waiting[pid, ticks] = descriptor
    else:
        os.close(descriptor)


def marked(run: str) -> list[int]:
    """The processes that bear the run's id in their environment, but this one."""
    marker = f"TFJOB_RUN_ID={run}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if marker in file.read().split(b"\0"):
                        found.append(int(name))
            except OSError:
                continue
    return found


def start_ticks(pid: int) -> str:
    """When a process started, in clock ticks since boot (proc(5), field 22); empty for one that is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in {b"Z", b"X"} else fields[19].decode()


if __name__ == "__main__":
    main(sys.argv[1])
