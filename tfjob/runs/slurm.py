"""A run that Slurm takes through its life: this process prepares it, submits it, and then only follows.

The job's own programs judge the gang, try it again and write how things are; Slurm queues, starts again and ends. All that is
left to do here is to bring the record up to what they say. While nobody does, the job goes on all the same; whoever looks at
the run later catches up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from tfjob.engines.base import Prepared, TaskStatus
from tfjob.engines.slurm.engine import Handle, JobView, SlurmEngine
from tfjob.engines.slurm.report import End, Report, statuses_of
from tfjob.errors import PreparationError, TargetError
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.advice import advice
from tfjob.runs.canceling import CancelRequested, interruptible, raise_if_canceled
from tfjob.runs.data import RunData
from tfjob.runs.record import Attempt, Failure, Supervisor, TaskRecord, iso
from tfjob.runs.supervision import Supervision
from tfjob.runs.tail import last_lines
from tfjob.runs.verdict import Verdict, describe_end
from tfjob.runs.waited import Waited
from tfjob.runs.working import clear_copies, make_kept, make_work

__all__ = ["SlurmSupervision"]

_QUICK_S: Final = 0.1
_SLOW_S: Final = 0.5
_QUICK_FOR_S: Final = 30.0
_BEAT_S: Final = 30.0
_HINTS: Final = {
    "preparation": "`runtime` of the target says what runs containers; slurm/attempts in the run directory has its own words.",
    "time_limit": "Ask for more with `limits.timeout_s`, as far as the partition allows it; a script with checkpoints can be rerun.",
    "preempted": "With `retries: {max: N, on: [node_lost]}` it goes back to the queue.",
    "node_lost": "With `retries: {max: N, on: [node_lost]}` it starts again by itself.",
}


class SlurmSupervision(Supervision):
    """Takes a run to where Slurm takes over, and its record to the run's end."""

    def __init__(
        self,
        run: RunDirectory,
        plan: Plan,
        *,
        engine: SlurmEngine,
        prepare: Callable[[Callable[[str], None]], Prepared],
        snapshots: Path,
        data: RunData | None = None,
    ) -> None:
        super().__init__(run, plan, engine=engine, prepare=prepare, snapshots=snapshots, data=data)
        self._slurm = engine
        self._slurm.tell = self._chronicle.progress
        self._hint = ""
        self._away = ""
        self._placed = ""

    def _try(self, before: Supervisor | None) -> Verdict:
        """Submit the job, if it was not, and follow it to its end."""
        plan, run = self._plan, self._run
        if not self._slurm.is_submitted(run):
            prepared = self._make_prepared()
            with interruptible(run):
                plan = self._prepare_data()
                (make_kept if self._slurm.makes_work else make_work)(plan, run, self._snapshots)
                self._slurm.keep(plan, run, prepared, self._waiting)
            raise_if_canceled(run)
        elif before is not None:
            self._chronicle.note("its job was found in Slurm, and is followed from here")
        if self._record.state not in ("Scaling", "Running"):
            self._chronicle.enter("Scaling")
        self._handle = handle = self._submit(plan, run)
        if self._slurm.makes_work:
            self._finish_others()
        if before is None:
            self._chronicle.progress(f"job {handle.job} of Slurm")
        return self._follow(handle)

    def _submit(self, plan: Plan, run: RunDirectory) -> Handle:
        """Submit the job. What is left of one that may or may not have been taken is told in the record."""
        try:
            return self._slurm.submit(plan, run)
        except TargetError:
            self._handle = Handle(plan, run, "")
            raise_if_canceled(run)
            raise

    def _finish_others(self) -> None:
        """Do, beside this run, what could not be done on the cluster at the end of others."""
        from tfjob.engines.slurm.elsewhere import ElsewhereEngine  # noqa: PLC0415  # only for its targets
        from tfjob.runs.left import finish_soon  # noqa: PLC0415  # the same

        assert isinstance(self._slurm, ElsewhereEngine)  # noqa: S101  # no other makes work there
        finish_soon(self._run, self._slurm, self._snapshots)

    def _adopt_quietly(self) -> None:
        """Take over what may still run, only to end it."""
        if self._slurm.is_submitted(self._run):
            self._handle = self._slurm.adopt(self._plan, self._run)

    def _check_launcher(self, prepared: Prepared) -> None:
        """Refuse nothing: what the nodes have by their modules can't be seen from here."""

    def _follow(self, handle: Handle) -> Verdict:
        """Bring the record up to what the job says until it is over. Raises CancelRequested where that is how it ended."""
        began = time.monotonic()
        waited = Waited(began)
        beaten = 0.0
        while True:
            if time.monotonic() - beaten > _BEAT_S:
                beaten = time.monotonic()
                with suppress(OSError):  # the file system may be away for a moment
                    os.utime(self._run.supervisor_lock)  # other login nodes see by it that somebody is here
            view = self._slurm.look(handle)
            self._catch_up(view)
            now = time.monotonic()
            if view.stage == "over":
                return self._verdict(view)
            raise_if_canceled(self._run)
            self._refuse_long_wait(view, waited.look(view, now))
            time.sleep(_QUICK_S if now - began < _QUICK_FOR_S else _SLOW_S)

    def _refuse_long_wait(self, view: JobView, waited_s: float) -> None:
        limit_s = self._plan.limits.allocation_timeout_s
        if limit_s is not None and waited_s > limit_s:
            raise TargetError(
                f"no room on {self._plan.target} within {limit_s:g} s: {view.message}",
                "Raise `limits.allocation_timeout_s`, or leave it out: then the job waits until it is its turn.",
            )

    def _catch_up(self, view: JobView) -> None:
        """Phases, attempts and tasks as the job tells them."""
        report = view.report
        if report is not None and len(report.attempts) > len(self._record.attempts):
            self._note_attempts(report)
        runs = report is not None and bool(report.nodes) and view.stage in ("running", "over")
        if runs and report is not None and self._record.state != "Running":
            self._place(report)
            self._chronicle.enter("Running")
        elif not runs and view.stage != "over" and self._record.state == "Running":
            self._chronicle.enter("Scaling")
        if self._record.state == "Running":
            self._note_changes(statuses_of(self._plan, report, is_over=view.stage == "over"))
            self._tell_away(view)
        elif view.away or view.message:
            self._waiting(view.away or view.message)

    def _tell_away(self, view: JobView) -> None:
        """Say of a job that runs when nothing is heard of it any more, and when it is."""
        if view.away != self._away and view.stage != "over":
            self._away = view.away
            self._chronicle.progress(view.away or self._placed or "the login node is back")

    def _place(self, report: Report) -> None:
        names = [name for name, _ in report.nodes]
        tasks = tuple(TaskRecord(task.name, task.type, names[task.node]) for task in self._plan.all_tasks)
        self._chronicle.change(tasks=tasks)
        count = f"{len(self._plan.tasks)} task" + ("s" if len(self._plan.tasks) > 1 else "")
        self._placed = f"{count} on {', '.join(names)}"
        self._chronicle.progress(self._placed)

    def _note_attempts(self, report: Report) -> None:
        """Note the attempts that were followed by another: the job has tried again by itself, or Slurm has started it again."""
        for said in report.attempts[len(self._record.attempts) :]:
            number = said.attempt + 1
            end = said.end or End("failed", "it ended without a word")
            failure = self._failure_of(said, end, self._run.attempt_logs(number))
            nodes = tuple(name for name, _ in said.nodes)
            started = iso(said.started) if said.started else None
            attempt = Attempt(number, nodes, started, iso(end.time or time.time()), failure)
            self._chronicle.change(attempts=(*self._record.attempts, attempt), tasks=())
            self._chronicle.event("retry", attempt=number, message=failure.told)
            self._chronicle.enter("Scaling")

    def _verdict(self, view: JobView) -> Verdict:
        """What the end of the job is as a verdict."""
        end = view.end or End("failed", "it ended without a word")
        if end.outcome == "canceled":
            raise CancelRequested(end.message)
        if end.outcome == "completed":
            return Verdict("completed")
        if end.kind == "preparation":
            raise PreparationError(f"the container could not be started: {end.message}", _HINTS["preparation"])
        if not self._record.tasks and end.kind in ("node_lost", "time_limit", None):
            raise TargetError(
                f"the job did not run: {end.message}", f"Slurm's and the job's own words: {self._slurm_log()}"
            )
        if end.kind == "failure" and view.report is None:  # what its script says is all there is
            said = last_lines(self._slurm_log())[-1:]
            return Verdict("failed", None, "; ".join((end.message, *said)), _kind(end))
        status = self._status(view.report, end)
        self._hint = _HINTS.get(end.kind or "", "")
        return Verdict("failed", status, end.message or (describe_end(status) if status else ""), _kind(end))

    def _finish(self) -> None:
        """Clear the working copies of earlier attempts too: the job puts them away as they are."""
        for work in self._run.attempts.glob("*/work"):
            try:
                clear_copies(self._plan, self._run, self._snapshots, work)
            except OSError as error:
                self._chronicle.note(f"{work} could not be cleared: {error}")
        super()._finish()

    def _failure(self, verdict: Verdict) -> Failure:
        failure = super()._failure(verdict)
        return replace(failure, hint=failure.hint or self._hint)

    def _failure_of(self, report: Report, end: End, logs: Path) -> Failure:
        """Who failed first in an attempt, where, and with what."""
        status = self._status(report, end)
        if status is None:
            return Failure(None, None, None, None, end.message, kind=_kind(end))
        task = next(task for task in self._plan.all_tasks if task.name == status.task)
        tail = last_lines(logs / f"{status.task}.log")
        return Failure(
            task=status.task,
            node=report.nodes[task.node][0] if report.nodes else None,
            exit_code=status.exit_code,
            signal=status.signal,
            message=end.message or describe_end(status),
            log_tail=tail,
            hint=advice(self._plan, tail),
            kind=_kind(end),
        )

    def _status(self, report: Report | None, end: End) -> TaskStatus | None:
        return next((one for one in statuses_of(self._plan, report, is_over=True) if one.task == end.task), None)

    def _slurm_log(self) -> Path:
        return self._run.path / "slurm" / "job.log"


def _kind(end: End) -> Literal["failure", "node_lost"] | None:
    """The reason of an end as `retries.on` names it."""
    return "failure" if end.kind == "failure" else "node_lost" if end.kind == "node_lost" else None
