"""Runs a Plan in containers of this machine's Docker Engine: one for each task that the engine starts, all on the host's network.

The run directory is in a container at its own path, so the entrypoint beside the command, and its reports, are those of
the process engine. Whether a container lives is asked of the kernel; the Docker Engine is asked to make, start and
remove containers, and why one ended that did not say so. It may hang or restart meanwhile.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, Final

from tfjob.dockerapi.api import DockerApi, RefusalError, socket_of
from tfjob.durable import replace_json
from tfjob.engines import holder
from tfjob.engines.base import Allocation, Prepared, TaskStatus, Waiting, tell_nobody
from tfjob.engines.container import Shape, container_of, labels, name_of, numbered_from_zero
from tfjob.engines.dataset_mounts import dataset_mounts
from tfjob.engines.docker_errors import explained
from tfjob.engines.image_files import accounts
from tfjob.engines.marked import MARKER, signal_process, sweep
from tfjob.engines.namespaces import HostProcess, find_in_container, is_first_of_a_container
from tfjob.engines.reports import NOT_STARTED, OUT_OF_MEMORY, End, Watch, status, write_tasks
from tfjob.engines.room import Room
from tfjob.engines.submitter import submitter
from tfjob.errors import TargetError
from tfjob.planning.plan import Plan, TaskPlan
from tfjob.rundir import RunDirectory
from tfjob.targets.leases import Lease
from tfjob.targets.target import Node

__all__ = ["DockerEngine"]

_REPORT: Final = "container.json"
_STOP_MARGIN_S: Final = 2.0
_START_S: Final = 5.0
"""A container that a dead supervisor asked for has come up by then, or never will."""

_SILENT_S: Final = 60.0
"""How long an engine that does not answer may keep us from knowing whether it started a container."""

_QUICK_S: Final = 2.0
"""How long a poll, at most once for each task, may wait for the engine's word."""

_UNSEEN_S: Final = 1.0
"""A container whose first process is not seen has ended by then, or its processes are elsewhere."""

_REMOVE_S: Final = 20.0


@dataclass(frozen=True)
class _Container:
    """A container that was started. `first` is its first process, None if that had ended before one could look."""

    id: str
    first: HostProcess | None

    @property
    def lives(self) -> bool:
        return self.first is not None and self.first.lives


@dataclass
class _Handle(Watch):
    api: DockerApi = field(default_factory=lambda: DockerApi(""))
    containers: dict[str, _Container] = field(default_factory=dict)
    entrypoints: dict[str, HostProcess] = field(default_factory=dict)
    """Of launched tasks: what their reports call by its pid in the container."""
    holder: subprocess.Popen[bytes] | None = None
    asked: float = 0.0
    silent: bool = False

    @property
    def patience_s(self) -> float:
        """How long after the adoption a container may still be found."""
        return _SILENT_S if self.silent else _START_S

    def container_of(self, task: TaskPlan) -> _Container | None:
        """The container a task is in: its own, or that of the launcher which started it."""
        launcher = self.plan.launcher
        return self.containers.get(launcher.name if task.launched and launcher else task.name)


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
        self._room = Room(node, lease_directory)
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
    ) -> _Handle:
        """Write every task's file, then start the containers, all or none.

        Raises TargetError or PreparationError, in the engine's words, when one can't be made or started.
        """
        del told  # nothing takes long
        api, options = self._connect()
        handle = _Handle(plan, run, api=api)
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
        more = {"umask": _umask()}
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

    def adopt(self, plan: Plan, run: RunDirectory) -> _Handle:
        """Go on with containers another supervisor started: by what it noted of them, and by their labels."""
        noted = {task.name: run.read_task_file(task.name, _REPORT) for task in plan.started_tasks}
        address = next((note["engine"] for note in noted.values() if note), None)
        api = DockerApi(address or socket_of(self._environ))
        handle = _Handle(plan, run, adopted=time.monotonic(), api=api)
        for task, note in noted.items():
            if note:
                handle.containers[task] = _Container(note["id"], HostProcess(*note["first"]) if note["first"] else None)
        return handle

    def poll(self, handle: _Handle) -> tuple[TaskStatus, ...]:
        """Read each task's reports, and whether its container lives. The Docker Engine is asked only when one is lost."""
        if handle.adopted is not None and not handle.stopping:
            _find_missing(handle)
        return tuple(_status(handle, task) for task in handle.plan.all_tasks)

    def notes(self, handle: _Handle) -> tuple[str, ...]:  # noqa: ARG002  # the Protocol's
        """Nothing is to be said of it."""
        return ()

    def stop(self, handle: _Handle, grace_s: float) -> None:
        """SIGTERM to every task, which kills what remains after the grace period; then no container is left.

        A launcher is told last: it would end its tasks at once, and they shall have their grace.
        """
        handle.asked = 0.0
        self.poll(handle)  # what is lost by now was not told to end
        handle.stopping = True
        deadline = time.monotonic() + grace_s + _STOP_MARGIN_S
        launched = [task for task in handle.plan.all_tasks if task.launched]
        others = [task for task in handle.plan.all_tasks if not task.launched]
        for tasks in (launched, others):
            for process in _living(handle, tasks):
                signal_process(process.pid, SIGTERM)
            while any(_living(handle, tasks)) and time.monotonic() < deadline:
                time.sleep(0.02)
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


def _start(handle: _Handle, task: str, body: Mapping[str, Any]) -> None:
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
    handle.containers[task] = _Container(container, first)
    if first is not None:
        _tell(handle, f"{first.pid} {first.start_ticks}\n")
    _note(handle, task)


def _goes_on_unseen(api: DockerApi, container: str) -> bool:
    """Whether a container whose first process can't be seen runs all the same: one that has just ended is noticed late."""
    deadline = time.monotonic() + _UNSEEN_S
    while time.monotonic() < deadline:
        if not api.state(container)["Running"]:
            return False
        time.sleep(0.05)
    return True


def _note(handle: _Handle, task: str) -> None:
    """Write down for an adopter which container is the task's; on a full disk the labels must do."""
    container = handle.containers[task]
    note = {"id": container.id, "first": container.first, "engine": handle.api.address}
    with suppress(OSError):
        replace_json(handle.run.task(task) / _REPORT, note, force=False)


def _find_missing(handle: _Handle) -> None:
    """Ask the engine, now and then, for containers that were started and not noted: the supervisor died in between."""
    missing = [task.name for task in handle.plan.started_tasks if task.name not in handle.containers]
    if not missing or time.monotonic() - handle.asked < _QUICK_S:
        return
    try:
        for found in handle.api.with_labels(labels(handle.run), timeout_s=_QUICK_S):
            task = found["Labels"].get("tfjob.task")
            if task in missing and found["State"] != "created":
                state = handle.api.state(found["Id"], timeout_s=_QUICK_S)
                handle.containers[task] = _Container(
                    found["Id"], HostProcess.of(state["Pid"]) if state["Pid"] else None
                )
                _note(handle, task)
        handle.silent = False
    except (TargetError, RefusalError):
        handle.silent = True
    handle.asked = time.monotonic()


def _status(handle: _Handle, task: TaskPlan) -> TaskStatus:
    container = handle.container_of(task)
    return status(
        handle,
        task,
        gone=not task.launched and container is not None and not container.lives,
        lives=lambda report: _lives(handle, task, report),
        explain=lambda end: _explain(handle, task, end),
        patience_s=handle.patience_s,
    )


def _lives(handle: _Handle, task: TaskPlan, report: Mapping[str, Any]) -> bool:
    """Whether a task that has started still runs."""
    container = handle.container_of(task)
    if container is None:  # adopted, and not found yet
        return handle.adopted is not None and time.monotonic() - handle.adopted < handle.patience_s
    # The first process of a container ends with the entrypoint it started, and is the one whose end says how.
    return _entrypoint(handle, task, report) is not None if task.launched else container.lives


def _entrypoint(handle: _Handle, task: TaskPlan, report: Mapping[str, Any]) -> HostProcess | None:
    """The process of a task's entrypoint, or None if it has ended."""
    container = handle.container_of(task)
    if container is None or container.first is None or not container.first.lives:
        return None
    known = handle.entrypoints.get(task.name) or find_in_container(
        container.first, report["pid"], report["start_ticks"]
    )
    if known is None or not known.lives:
        return None
    handle.entrypoints[task.name] = known
    return known


def _explain(handle: _Handle, task: TaskPlan, end: End) -> End:
    """What the engine knows of a container that ended without a report of its task."""
    container = handle.container_of(task)
    if handle.stopping or container is None or container.lives:
        return end
    try:
        handle.api.wait(container.id, _QUICK_S)  # the kernel's word came before the engine's own
        state = handle.api.state(container.id, _QUICK_S)
        code = int(state["ExitCode"])
        words = "" if end.note != NOT_STARTED else handle.api.last_words(container.id, 5, _QUICK_S)
    except RefusalError:
        return End(f"{end.note}; its container is gone")
    except TargetError as error:
        return End(f"{end.note}; {error.message}")
    if state["OOMKilled"]:
        return End(OUT_OF_MEMORY, signal=SIGKILL)
    note = end.note
    if words.strip():
        note += f": {'; '.join(filter(None, map(str.strip, words.splitlines())))}"
    if task.launched:
        return End(note)
    return End(note, signal=code - 128) if code > 128 else End(note, code)


def _living(handle: _Handle, tasks: Iterable[TaskPlan]) -> Iterator[HostProcess]:
    """Those tasks' entrypoints that still run; the container's first process passes signals on to one that has just started."""
    for task in tasks:
        report = handle.run.read_task_file(task.name, "started.json")
        if report is not None:
            process = _entrypoint(handle, task, report)
        else:
            container = None if task.launched else handle.container_of(task)
            process = container.first if container is not None and container.lives else None
        if process is not None:
            yield process


def _remove(handle: _Handle) -> None:
    """Remove every container of the run; an engine that does not answer is given up on, as nothing runs any more."""
    deadline = time.monotonic() + _REMOVE_S
    problem: TargetError | RefusalError | None = None
    while time.monotonic() < deadline:
        try:
            left = [found["Id"] for found in handle.api.with_labels(labels(handle.run), _QUICK_S * 5)]
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


def _tell(handle: _Handle, line: str) -> None:
    pipe = handle.holder.stdin if handle.holder is not None else None
    if pipe is not None and not pipe.closed:
        with suppress(BrokenPipeError):
            pipe.write(line.encode())
        if line == "complete\n":
            pipe.close()


def _umask() -> int:
    """This process's umask, which can only be read by setting it (umask(2)) or here (proc(5))."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022
