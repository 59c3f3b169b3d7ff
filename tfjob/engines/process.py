"""Runs a Plan as processes of this machine: no container, nothing installed, a process group and a working copy a task."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Final

from tfjob import entrypoint
from tfjob.durable import replace_json
from tfjob.engines.base import Allocation, Prepared, TaskStatus, Waiting
from tfjob.engines.inherited import inherited_environment
from tfjob.errors import TargetError
from tfjob.planning.plan import Plan, TaskPlan, bind
from tfjob.rundir import RunDirectory
from tfjob.targets.leases import Lease, holder_of, try_lease
from tfjob.targets.target import Gpu, Node

__all__ = ["ProcessEngine", "sweep"]

PORTS: Final = range(20000, 32000)
"""Ports for tasks: unprivileged, and below the range the kernel takes for outgoing connections (ip(7))."""

QUEUE: Final = "gpu-queue"
_STOP_MARGIN_S: Final = 2.0
_START_S: Final = 5.0
"""A task has said that it started by then, or never will."""


@dataclass
class _Handle:
    plan: Plan
    run: RunDirectory
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    adopted: float | None = None
    stopping: bool = False
    lost: dict[str, tuple[float, bool]] = field(default_factory=dict)
    """Tasks that ended without a report: when that was first seen, and whether they had been told to end."""


class ProcessEngine:
    """The engine of the target `local`. `environ` is the environment tasks take their few inherited variables from."""

    def __init__(self, node: Node, *, environ: Mapping[str, str], lease_directory: Path | None = None) -> None:
        self._node = node
        self._environ = environ
        self._lease_directory = lease_directory

    def acquire(self, plan: Plan, run: RunDirectory, deadline_s: float, waiting: Waiting) -> Allocation:
        """Lease the plan's GPUs and ports. Raises TargetError when the GPUs were not free within `deadline_s`."""
        holder = {"run": run.id, "directory": str(run.path)}
        leases: list[Lease] = []
        try:
            gpus = self._lease_gpus(plan.gpus_per_node, holder, deadline_s, waiting, leases)
            ports = {task.port: self._lease_port(holder, leases) for task in plan.tasks if task.port}
        except BaseException as error:
            for lease in leases:
                lease.release()
            if isinstance(error, OSError):
                raise TargetError(
                    f"leases can't be taken on {self._node.name}: {error.filename or ''} {error.strerror}",
                    "Run `tfjob doctor`.",
                ) from error
            raise
        return Allocation((self._node,), _share_out(plan, [gpu.index for gpu in gpus]), ports, tuple(leases))

    def start(self, plan: Plan, run: RunDirectory, allocation: Allocation, prepared: Prepared) -> _Handle:
        """Write every task's file, then start those the engine starts."""
        for task in plan.all_tasks:
            self._write_task(task, plan, run, allocation, prepared.values)
        handle = _Handle(plan, run)
        environment = inherited_environment(self._environ, plan.secrets)
        environment["TFJOB_RUN_ID"] = run.id  # every process of the run bears it: see `sweep`
        try:
            for task in plan.started_tasks:
                handle.children[task.name] = _start_task(task, run, environment, allocation.leases)
        except BaseException:
            self.stop(handle, 0)  # all or none
            raise
        return handle

    def adopt(self, plan: Plan, run: RunDirectory) -> _Handle:
        """Go on with tasks another supervisor started: all there is to know is in their report files."""
        return _Handle(plan, run, adopted=time.monotonic())

    def poll(self, handle: _Handle) -> tuple[TaskStatus, ...]:
        """Read each task's reports, and whether its process lives."""
        return tuple(_status(handle, task) for task in handle.plan.all_tasks)

    def stop(self, handle: _Handle, grace_s: float) -> None:
        """SIGTERM to every task, which kills what remains after the grace period; then SIGKILL to whatever bears the run's id.

        A launcher is told last: it would end its tasks at once, and they shall have their grace.
        """
        self.poll(handle)  # what is lost by now was not told to end
        handle.stopping = True
        deadline = time.monotonic() + grace_s + _STOP_MARGIN_S
        launched = [task for task in handle.plan.all_tasks if task.launched]
        others = [task for task in handle.plan.all_tasks if not task.launched]
        for tasks in (launched, others):
            for pid in _living(handle, tasks):
                _signal(pid, SIGTERM)
            while any(_living(handle, tasks)) and time.monotonic() < deadline:
                time.sleep(0.02)
        for pid in _living(handle, handle.plan.all_tasks):
            _signal(pid, SIGKILL)
        sweep(handle.run.id)
        for child in handle.children.values():
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=1)

    def _lease_gpus(
        self, count: int, holder: dict[str, str], deadline_s: float, waiting: Waiting, leases: list[Lease]
    ) -> list[Gpu]:
        """`count` GPUs, first come, first served: only the head of the queue gathers them as they become free."""
        taken: list[Gpu] = []
        queue: Lease | None = None
        deadline = time.monotonic() + deadline_s
        try:
            while len(taken) < count:
                queue = queue or try_lease(QUEUE, holder, self._lease_directory)
                if queue:
                    self._gather(count, holder, taken, leases)
                if len(taken) == count:
                    break
                held = self._held_by(taken)
                if time.monotonic() >= deadline:
                    raise TargetError(
                        f"no room on {self._node.name} within {deadline_s:g} s: {count} GPUs asked for; {held}",
                        "Wait for that run (`tfjob wait`), or raise `limits.allocation_timeout_s`.",
                    )
                waiting(f"waiting for {count} of {len(self._node.gpus)} GPUs on {self._node.name}: {held}")
                time.sleep(0.2)
        finally:
            if queue:
                queue.release()
        return sorted(taken, key=self._node.gpus.index)

    def _gather(self, count: int, holder: dict[str, str], taken: list[Gpu], leases: list[Lease]) -> None:
        for gpu in self._node.gpus:
            if len(taken) == count:
                return
            lease = try_lease(f"gpu-{gpu.uuid}", holder, self._lease_directory) if gpu not in taken else None
            if lease:
                taken.append(gpu)
                leases.append(lease)

    def _held_by(self, taken: list[Gpu]) -> str:
        holders: dict[str, int] = {}
        for gpu in self._node.gpus:
            holder = holder_of(f"gpu-{gpu.uuid}", self._lease_directory) if gpu not in taken else None
            if holder:
                run = holder.get("run", "another run")
                holders[run] = holders.get(run, 0) + 1
        return ", ".join(f"run {run} holds {number}" for run, number in holders.items()) or "others are before this run"

    def _lease_port(self, holder: dict[str, str], leases: list[Lease]) -> int:
        for _ in range(1000):
            port = random.choice(PORTS)  # noqa: S311  # no secret: two runs shall seldom try the same one first
            lease = try_lease(f"port-{port}", holder, self._lease_directory)
            if lease is None:
                continue
            if _is_free(port):
                leases.append(lease)
                return port
            lease.release()
        raise TargetError(f"no free port between {PORTS.start} and {PORTS.stop - 1} on {self._node.name}")

    def _write_task(
        self, task: TaskPlan, plan: Plan, run: RunDirectory, allocation: Allocation, values: Mapping[str, str]
    ) -> None:
        places = {
            "run.id": run.id,
            "run.dir": str(run.path),
            "outputs.dir": str(run.outputs),
            "logs.dir": str(run.user_logs),
            **{f"outputs.{name}": str(run.outputs / name) for name in plan.named_outputs},
            **{f"node.{index}.address": node.address for index, node in enumerate(allocation.nodes)},
            **{f"node.{index}.name": node.name for index, node in enumerate(allocation.nodes)},
            **{f"port.{name}": str(port) for name, port in allocation.ports.items()},
            **{f"gpus.{name}": ",".join(map(str, indices)) for name, indices in allocation.gpus.items()},
            "entrypoint.python": sys.executable,
            "entrypoint.file": entrypoint.__file__,
        }
        bound = bind(task, {**places, **values, **_dataset_places(task, plan, run)})
        run.task(task.name).mkdir(parents=True, exist_ok=True)
        replace_json(
            run.task(task.name) / "task.json",
            {
                "argv": bound.argv,
                "env": dict(bound.env),
                "cwd": str(run.work(task.name)),
                "log": str(run.log(task.name)),
                "port": allocation.ports.get(task.port) if task.port else None,
                "grace_period_s": plan.limits.grace_period_s,
                "launched": task.launched,
            },
        )


def _start_task(
    task: TaskPlan, run: RunDirectory, environment: Mapping[str, str], leases: tuple[Lease, ...]
) -> subprocess.Popen[bytes]:
    with run.supervisor_log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", entrypoint.__file__, str(run.tasks), task.name],
            env=environment,
            cwd=run.path,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[lease.descriptor for lease in leases],
        )


def _dataset_places(task: TaskPlan, plan: Plan, run: RunDirectory) -> dict[str, str]:
    """Where each dataset is for this task: a directory, or the one file in it if the job asks for a file."""
    places = {}
    for dataset in plan.datasets:
        directory = (
            run.datasets / task.name / dataset.name if dataset.mode == "download" else run.datasets / dataset.name
        )
        is_file = dataset.type == "file"
        places[f"dataset.{dataset.name}"] = str(directory / dataset.files[0][1] if is_file else directory)
    return places


def _share_out(plan: Plan, gpus: list[int]) -> dict[str, tuple[int, ...]]:
    """Which GPUs each task sees: launched tasks (ranks) all of their node's, the others each its own part."""
    shares: dict[str, tuple[int, ...]] = {}
    given = 0
    for task in plan.tasks:
        if task.launched:
            shares[task.name] = tuple(gpus)
        else:
            shares[task.name] = tuple(gpus[given : given + task.gpus])
            given += task.gpus
    return shares


def _is_free(port: int) -> bool:
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0")):  # noqa: S104  # only bound, never listened on
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def _status(handle: _Handle, task: TaskPlan) -> TaskStatus:
    child = handle.children.get(task.name)
    gone = child is not None and child.poll() is not None
    report = handle.run.read_task_file(task.name, "started.json")
    alive = not gone and report is not None and _is_alive(report)
    result = handle.run.read_task_file(
        task.name, "exit.json"
    )  # read after the look at the process: it may just have ended
    started = report["time"] if report else None
    listening = (handle.run.task(task.name) / "listening").exists()
    if result:
        return TaskStatus(
            task.name,
            "ended",
            exit_code=result["exit_code"],
            signal=result["signal"],
            time=result["time"],
            started=started,
            listening=listening,
            stopped=result["stopped"],
        )
    if alive:
        return TaskStatus(task.name, "running", started=started, listening=listening)
    if report:
        return _lost(
            handle, task, "it ended without saying how: it was killed together with the process that watched it"
        )
    if gone:
        return _lost(handle, task, "it could not be started")
    if handle.adopted is not None and not task.launched and time.monotonic() - handle.adopted > _START_S:
        return _lost(handle, task, "it was never started: the supervisor died before")
    return TaskStatus(task.name, "pending")


def _lost(handle: _Handle, task: TaskPlan, note: str) -> TaskStatus:
    """How a task is that ended without a report."""
    child = handle.children.get(task.name)
    number = -child.returncode if child and child.returncode and child.returncode < 0 else None
    report = handle.run.read_task_file(task.name, "started.json")
    seen, stopped = handle.lost.setdefault(task.name, (time.time(), handle.stopping))
    started = report["time"] if report else None
    return TaskStatus(
        task.name, "ended", signal=number, time=seen, started=started, stopped=stopped, note="" if stopped else note
    )


def _is_alive(report: dict[str, int]) -> bool:
    fields = entrypoint.stat_fields(report["pid"])
    return bool(fields) and fields[0] not in (b"Z", b"X") and int(fields[19]) == report["start_ticks"]


def _living(handle: _Handle, tasks: Iterable[TaskPlan]) -> Iterator[int]:
    """The pids of those tasks' entrypoints that still run."""
    for task in tasks:
        child = handle.children.get(task.name)
        if child is not None and child.poll() is not None:
            continue
        report = handle.run.read_task_file(task.name, "started.json")
        if report is not None and _is_alive(report):
            yield report["pid"]
        elif child is not None and report is None:
            yield child.pid


def sweep(run_id: str) -> None:
    """SIGKILL every process that bears the run's id in its environment: what escaped from its task by any way.

    Processes of other users can't be read, and are not ours. Done until none is found, as one may just have forked.
    """
    marker = b"TFJOB_RUN_ID=" + run_id.encode()
    for _ in range(50):
        found = [pid for pid in _pids() if marker in _environment_of(pid)]
        if not found:
            return
        for pid in found:
            _signal(pid, SIGKILL)
        time.sleep(0.02)


def _pids() -> Iterator[int]:
    me = os.getpid()
    return (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != me)


def _environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
