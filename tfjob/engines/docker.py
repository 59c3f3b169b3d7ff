"""Runs a Plan in containers of this machine's Docker Engine: one for each task that the engine starts, all on the host's network.

The run directory is in a container at its own path, so the entrypoint beside the command, and its reports, are those of
the process engine. Whether a container lives is asked of the kernel; the Docker Engine is asked to make, start and
remove containers, and why one ended that did not say so. It may hang or restart meanwhile.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, Final

from tfjob.dockerapi.api import DockerApi, RefusalError, socket_of
from tfjob.durable import umask
from tfjob.engines import holder
from tfjob.engines.base import STOP_MARGIN_S, Allocation, Prepared, TaskStatus, Waiting, tell_nobody
from tfjob.engines.container import Shape, container_of, labels, name_of, numbered_from_zero
from tfjob.engines.dataset_mounts import dataset_mounts
from tfjob.engines.docker_errors import explained
from tfjob.engines.docker_handle import (
    CONTAINER_REPORT,
    Container,
    DockerHandle,
    find_missing,
    living,
    note_container,
    status_of,
)
from tfjob.engines.image_files import accounts
from tfjob.engines.marked import MARKER, signal_process, sweep
from tfjob.engines.namespaces import HostProcess, has_child, is_first_of_a_container
from tfjob.engines.reports import write_tasks
from tfjob.engines.room import Room
from tfjob.engines.submitter import submitter
from tfjob.errors import TargetError
from tfjob.planning.plan import Plan, TaskPlan
from tfjob.rundir import RunDirectory
from tfjob.targets.leases import Lease
from tfjob.targets.target import Node

__all__ = ["DockerEngine"]

_UNSEEN_S: Final = 10.0
"""A container whose first process is not seen has ended by then, or its processes are elsewhere."""

_REMOVE_S: Final = 20.0
_ASK_S: Final = 10.0


class DockerEngine:
    """The engine of the target `local` with containers.

    `environ` is what the submitting shell had: DOCKER_HOST, certificates, proxies and secrets are taken from it. `cache`
    is a directory to keep what was read from images, for the next run.
    """

    shares_run_directory: Final = True

    def __init__(
        self,
        node: Node,
        *,
        environ: Mapping[str, str],
        lease_directory: Path | None = None,
        cache: Path | None = None,
    ) -> None:
        self._node = node
        self._room = Room(node, environ, lease_directory)
        self._environ = environ
        self._cache = cache
        self._api: tuple[DockerApi, frozenset[str]] | None = None

    def acquire(self, plan: Plan, run: RunDirectory, deadline_s: float, waiting: Waiting) -> Allocation:
        """Lease the plan's GPUs and ports. Raises TargetError also when this machine's Docker Engine does not answer."""
        self._connect()
        return self._room.acquire(plan, run, deadline_s, waiting)

    def _connect(self) -> tuple[DockerApi, frozenset[str]]:
        """The Docker Engine, and its security options, asked for once."""
        if self._api is None:
            api = DockerApi(socket_of(self._environ))
            self._api = api, api.check()
        return self._api

    def start(
        self,
        plan: Plan,
        run: RunDirectory,
        allocation: Allocation,
        prepared: Prepared,
        told: Waiting = tell_nobody,
    ) -> DockerHandle:
        """Write every task's file, then start the containers, all or none.

        Raises TargetError or PreparationError, in the engine's words, when one can't be made or started.
        """
        del told  # nothing takes long
        api, options = self._connect()
        handle = DockerHandle(plan, run, api=api)
        shape = Shape(
            plan,
            run,
            prepared,
            submitter(),
            self._environ,
            options,
            dataset_mounts(plan.datasets, run.datasets),
            self._node.gpus,
        )
        more = {"umask": umask()}
        seen = numbered_from_zero(allocation, plan)
        try:
            write_tasks(plan, run, seen, prepared.values, entrypoint=shape.entrypoint, more=more)
            with explained(api, plan, prepared):
                shape = accounts(shape, api, self._cache)
                handle.holder = _start_holder(run, allocation.leases) if allocation.leases else None
                bodies = {task.name: container_of(task, shape, allocation) for task in plan.started_tasks}
                _each(lambda task: _start(handle, task, bodies[task]), bodies)
        except BaseException:
            self.stop(handle, 0)
            raise
        _tell(handle, "complete\n")
        return handle

    def adopt(self, plan: Plan, run: RunDirectory) -> DockerHandle:
        """Go on with containers another supervisor started: by what it noted of them, and by their labels."""
        noted = {task.name: run.read_task_file(task.name, CONTAINER_REPORT) for task in plan.started_tasks}
        address = next((note["engine"] for note in noted.values() if note), None)
        api = DockerApi(address or socket_of(self._environ))
        handle = DockerHandle(plan, run, adopted=time.monotonic(), api=api)
        for task, note in noted.items():
            if note:
                handle.containers[task] = Container(note["id"], HostProcess(*note["first"]) if note["first"] else None)
        return handle

    def poll(self, handle: DockerHandle) -> tuple[TaskStatus, ...]:
        """Read each task's reports, and whether its container lives. The Docker Engine is asked only when one is lost."""
        if handle.adopted is not None and not handle.stopping:
            find_missing(handle)
        return tuple(status_of(handle, task) for task in handle.plan.all_tasks)

    def notes(self, handle: DockerHandle) -> tuple[str, ...]:  # noqa: ARG002  # the Protocol's
        """Nothing is to be said of it."""
        return ()

    def stop(self, handle: DockerHandle, grace_s: float) -> None:
        """SIGTERM to every task, which kills what remains after the grace period; then no container is left.

        A launcher is told last: it would end its tasks at once, and they shall have their grace.
        """
        handle.asked = 0.0
        self.poll(handle)  # what is lost by now was not told to end
        handle.stopping = True
        deadline = time.monotonic() + grace_s + STOP_MARGIN_S
        launched = [task for task in handle.plan.all_tasks if task.launched]
        others = [task for task in handle.plan.all_tasks if not task.launched]
        for tasks in (launched, others):
            _ask_to_end(handle, tasks, deadline)
        for container in handle.containers.values():
            if container.first is not None and container.first.lives:
                signal_process(container.first.pid, SIGKILL)
        self.poll(handle)
        _remove(handle)
        sweep(handle.run.id)
        if handle.holder is not None:
            _tell(handle, "complete\n")
            with suppress(subprocess.TimeoutExpired):
                handle.holder.wait(timeout=1)


def _start(handle: DockerHandle, task: str, body: Mapping[str, Any]) -> None:
    api = handle.api
    container = api.create(name_of(handle.run, task), body)
    api.start(container)
    state = api.state(container)
    first = HostProcess.of(state["Pid"]) if state["Pid"] else None
    seen = first is not None and is_first_of_a_container(first.pid)
    if state["Pid"] and not seen and _goes_on_unseen(api, container):
        raise TargetError(
            f"the processes of the Docker Engine at {api.address} can't be seen from here",
            "The engine must run on this very machine, not in a virtual machine, and tfjob not in a container itself.",
        )
    handle.containers[task] = Container(container, first)
    if first is not None:
        _tell(handle, f"{first.pid} {first.start_ticks}\n")
    note_container(handle, task)


def _goes_on_unseen(api: DockerApi, container: str) -> bool:
    """Whether a container whose first process can't be seen runs all the same: one that has just ended is noticed late."""
    deadline = time.monotonic() + _UNSEEN_S
    while True:
        is_last = time.monotonic() >= deadline  # the look before may have taken all the time
        if not api.state(container)["Running"]:
            return False
        if is_last:
            return True
        time.sleep(0.05)


def _ask_to_end(handle: DockerHandle, tasks: Iterable[TaskPlan], deadline: float) -> None:
    """SIGTERM to each task, once and as soon as it is heard; wait until none runs, or the time is over."""
    told: set[str] = set()
    while True:
        left = [(task, process) for task in tasks for process in living(handle, [task])]
        for task, process in left:
            if task.name not in told and _hears(handle, task, process):
                signal_process(process.pid, SIGTERM)
                told.add(task.name)
        if not left or time.monotonic() >= deadline:
            return
        time.sleep(0.02)


def _hears(handle: DockerHandle, task: TaskPlan, process: HostProcess) -> bool:
    """Whether SIGTERM reaches a process: the kernel drops it for the first of a container until that is ready to pass it on.

    It is once it has started the entrypoint. Source: pid_namespaces(7), and tini, which is docker-init.
    """
    container = handle.container_of(task)
    return container is None or process != container.first or has_child(process.pid)


def _remove(handle: DockerHandle) -> None:
    """Remove every container of the run; an engine that does not answer is given up on, as nothing runs any more."""
    deadline = time.monotonic() + _REMOVE_S
    problem: TargetError | RefusalError | None = None
    while time.monotonic() < deadline:
        try:
            left = [found["Id"] for found in handle.api.with_labels(labels(handle.run), _ASK_S)]
        except (TargetError, RefusalError) as error:
            problem = error
            break
        if not left:
            return
        try:
            _each(lambda container: handle.api.remove(container, _REMOVE_S), left)
        except TargetError as error:
            problem = error
            break
        except RefusalError as error:  # it is gone, or just being removed, or still busy
            problem = error
            time.sleep(0.1)
        else:
            return
    sys.stderr.write(f"tfjob: containers of run {handle.run.id} may be left: {problem}\n")


def _each(do: Callable[[str], None], names: Iterable[str]) -> None:
    """Do something for each name, for several at the same time. Raises the first error when all have been tried."""
    several = list(names)
    if len(several) == 1:
        do(several[0])
        return
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  # 20 ms that one container need not pay

    with ThreadPoolExecutor(min(len(several), 16) or 1) as pool:
        for done in [pool.submit(do, name) for name in several]:
            done.result()


def _start_holder(run: RunDirectory, leases: tuple[Lease, ...]) -> subprocess.Popen[bytes]:
    with run.supervisor_log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", holder.__file__, run.id],
            env={MARKER: run.id},  # so that it ends with the run, whatever happens: see `sweep`
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[lease.descriptor for lease in leases],
            bufsize=0,
        )


def _tell(handle: DockerHandle, line: str) -> None:
    pipe = handle.holder.stdin if handle.holder is not None else None
    if pipe is not None and not pipe.closed:
        with suppress(BrokenPipeError):
            pipe.write(line.encode())
        if line == "complete\n":
            pipe.close()
