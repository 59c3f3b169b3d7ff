"""Runs a Plan as one job of Slurm. Slurm finds the nodes, queues, preempts and starts again; the job takes itself to its end.

What this engine does from a login node: it writes the job's files into the run directory, submits the script, and reads how
the job is from its report and from the queue. None of it is needed for the job to go on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from tfjob.durable import replace_json, replace_text
from tfjob.engines.base import Allocation, Prepared, TaskStatus, Waiting, tell_nobody
from tfjob.engines.inherited import base_path, inherited_environment
from tfjob.engines.slurm.client import SlurmClient
from tfjob.engines.slurm.gang import gang_of, program_directory, python_of
from tfjob.engines.slurm.noted import ClusterName, elsewhere_words, is_another, kept_cluster, kept_job, note_job
from tfjob.engines.slurm.pending import waiting_for
from tfjob.engines.slurm.programs import place_programs
from tfjob.engines.slurm.queue import Job, Queue
from tfjob.engines.slurm.report import End, Report, begin_report, close_report, read_report, statuses_of
from tfjob.engines.slurm.script import render_script
from tfjob.engines.slurm.states import COMES_UP, GOES_ON, LIVING, WAITS, accounted_end, end_of_state, forgotten_end
from tfjob.engines.slurm.submitting import is_taken
from tfjob.errors import TargetError
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory
from tfjob.targets.target import Node

__all__ = ["Handle", "JobView", "SlurmEngine"]

_QUICK_S: Final = 2.0
"""How old the queue's answer may be while the job waits, or is about to end."""
_SLOW_S: Final = 15.0
"""The same while it runs: its own report says all there is to know, but for the death of its program."""
_REASONS_S: Final = 10.0
_ACCOUNTING_S: Final = 5.0
"""How long accounting that said nothing of a job is not asked again."""
_POLL_S: Final = 0.1
_LAST_WORD_S: Final = 75.0
"""How long the last word of a job that Slurm calls over may take to be seen: NFS may trust what it knows for a minute (nfs(5))."""
_SCRIPT_S: Final = 10.0
"""The same where Slurm says that the job failed, and its programs said nothing: its script may have failed before them."""
_REST_S: Final = 5.0
"""The same where how the run ended is known without it."""
_ENDING_S: Final = 150.0
"""For a job to end in its order, beyond its tasks' grace: longer than `program/batch.py` waits for nodes that clear up."""


@dataclass(frozen=True)
class JobView:
    """A run's job as it is now. `stage`: waiting in the queue, nodes coming up, running, or over; `message` is for people.

    `is_known`: Slurm was asked, or has no need to be; else the stage is that of the last look. `away` says, in words, that a login
    node elsewhere can't be reached, or that the job is another cluster's.
    """

    stage: Literal["waiting", "coming", "running", "over"]
    report: Report | None
    message: str = ""
    end: End | None = None
    is_known: bool = True
    away: str = ""


@dataclass
class Handle:
    """One run's job, as one process follows it."""

    plan: Plan
    run: RunDirectory
    job: str
    cluster: str = ""
    """The name of the cluster that has the job, where that is known."""
    begun: tuple[int, float] = (-1, 0.0)
    """The attempt last heard of, and when that was: what the queue said before is out of date."""
    report: Report | None = None
    """What the job's programs said when that could last be read."""
    trouble: str = ""
    """Why it can't be read now."""
    over_since: float | None = None
    told: End | None = None
    """What accounting says of a job that the queue no longer knows: it is asked until it says something."""
    told_asked: float | None = None
    """When it was asked last."""
    stopping: bool = False
    view: JobView = field(default_factory=lambda: JobView("waiting", None))


class SlurmEngine:
    """The engine of targets of kind slurm. `cache` is a directory of the workspace where runs share what the queue said.

    `images` is one that the nodes have too, where images are put for them.
    """

    shares_run_directory: Final = True
    makes_work: bool = False
    """Whether `keep` makes the tasks' working copies, where the nodes see them; else they are made in the run directory."""

    def __init__(
        self, *, environ: Mapping[str, str], cache: Path, client: SlurmClient | None = None, images: Path | None = None
    ) -> None:
        self._environ = environ
        self._images = images or cache / "images"
        self._client = client or SlurmClient(environ)
        self._cache = cache
        self.tell: Waiting = tell_nobody
        """Hears what `look` waits for when it takes long."""
        self._name = ClusterName(self._client)
        self._left = ""
        """What may be left of a run, in words."""

    @cached_property
    def _queue(self) -> Queue:
        """The queue; what runs share of it is one cluster's. Raises TargetError when Slurm can't say which that is."""
        name = self._cluster()
        return Queue(self._client, self._cache / f"slurm-{name}" if name else self._cache)

    def _cluster(self) -> str:
        """The name of the cluster whose jobs these are, nothing where no other can be meant. Raises TargetError."""
        return self._name.get()

    def keep(self, plan: Plan, run: RunDirectory, prepared: Prepared, told: Waiting = tell_nobody) -> None:
        """Write what the job needs into the run directory: its script, its programs, and its tasks; and its image for the nodes.

        Raises PreparationError when that can't be written.
        """
        container = None
        if plan.runtime == "docker":
            from tfjob.engines.slurm.container import ready_container  # noqa: PLC0415  # only for jobs in containers

            container = ready_container(plan, run, prepared, images=self._images, environ=self._environ, told=told)
        directory = run.path / "slurm"
        directory.mkdir(exist_ok=True)
        python = python_of(plan, prepared.values)
        place_programs(Path(program_directory(run)), shutil.which(python, path=base_path(self._environ)), self._cache)
        replace_json(directory / "gang.json", gang_of(plan, run, prepared, container), force=False)
        replace_text(directory / "job.sh", render_script(plan, run, python), force=False)
        begin_report(run)

    def is_submitted(self, run: RunDirectory) -> bool:
        """Whether the run's job was submitted, or may have been."""
        return (run.path / "slurm" / "submitting").exists()

    def submit(self, plan: Plan, run: RunDirectory) -> Handle:
        """Submit the job once, however often it is called. Raises TargetError when Slurm does not take it.

        Where it is not known whether it does, the job is taken back, should there be one; `notes` says so.
        """
        while True:
            try:
                return self._submit(plan, run)
            except TargetError as error:
                if not self._has_taken(run, error):
                    raise

    def _submit(self, plan: Plan, run: RunDirectory) -> Handle:
        """Submit it, or find what was submitted. Raises TargetError, also where Slurm may have the job."""
        job, cluster, submitted = kept_job(run), kept_cluster(run), 0.0
        if job is None:
            with suppress(TargetError):
                cluster = self._cluster()
            job = self._submitted_before(run)
            if job is None:
                (run.path / "slurm" / "submitting").touch()
                job = self._client.submit(self._script(run), self._variables(plan))
                submitted = time.time()  # what the queue said before does not tell of it
            note_job(run, job, cluster)
        return Handle(plan, run, job, cluster, begun=(-1, submitted))

    def _has_taken(self, run: RunDirectory, error: TargetError) -> bool:
        """Whether Slurm has the job all the same. If not, `_left` says what may be left of the run."""
        taken = is_taken(lambda: self._is_queued(run), error, tell=self.tell, is_canceled=run.cancel_request.exists)
        if not taken:
            self._left = self._unsure(run, error) if taken is None else self._take_back(run)
        return bool(taken)

    def _is_queued(self, run: RunDirectory) -> bool:
        return self._submitted_before(run) is not None

    def _take_back(self, run: RunDirectory) -> str:
        """Undo what was done for a run that has no job. Returns what is left, in words."""
        del run
        return ""

    def _unsure(self, run: RunDirectory, error: TargetError) -> str:
        """End the job that Slurm may have, and let it do nothing if it begins nevertheless. Returns what may be left, in words."""
        self._client.cancel_named(run.id)
        with suppress(OSError):
            close_report(run, error.message)
        return f"whether Slurm has its job is not known; if it has one, end it: scancel --me --name={run.id}"

    def _script(self, run: RunDirectory) -> Path:
        """The job's script as Slurm's commands see it."""
        return run.path / "slurm" / "job.sh"

    def _variables(self, plan: Plan) -> dict[str, str]:
        """What the job gets of the environment of whoever submits."""
        return inherited_environment(self._environ, plan.secrets)

    def look(self, handle: Handle) -> JobView:
        """How the job is. Raises TargetError when neither its report nor Slurm can say."""
        handle.view = self._look(handle)
        return handle.view

    def acquire(self, plan: Plan, run: RunDirectory, deadline_s: float, waiting: Waiting) -> Allocation:
        """Submit the job and wait until it runs. Raises TargetError when it did not within `deadline_s`; it is then taken back."""
        handle = self.submit(plan, run)
        deadline = time.monotonic() + deadline_s
        while True:
            view = self.look(handle)
            if view.stage in ("running", "over") and (view.stage == "over" or (view.report and view.report.nodes)):
                nodes = view.report.nodes if view.report else ()
                return Allocation(tuple(Node(name, address) for name, address in nodes))
            if time.monotonic() > deadline:
                self._client.cancel(handle.job)
                raise TargetError(
                    f"no room on {plan.target} within {deadline_s:g} s: {view.message}",
                    "Raise `limits.allocation_timeout_s`.",
                )
            try:
                waiting(view.message)
            except BaseException:
                self._client.cancel(handle.job)
                raise
            time.sleep(_POLL_S)

    def start(
        self, plan: Plan, run: RunDirectory, allocation: Allocation, prepared: Prepared, told: Waiting = tell_nobody
    ) -> Handle:
        """The job has started its tasks itself."""
        del allocation, prepared, told
        return self.submit(plan, run)

    def adopt(self, plan: Plan, run: RunDirectory) -> Handle:
        """Go on with a job that another process submitted. Submits nothing: there may be none."""
        return Handle(plan, run, kept_job(run) or self._submitted_before(run) or "", kept_cluster(run))

    def poll(self, handle: Handle) -> tuple[TaskStatus, ...]:
        """How every task is, by the job's report."""
        view = self.look(handle)
        return statuses_of(handle.plan, view.report, is_over=view.stage == "over")

    def notes(self, handle: Handle) -> tuple[str, ...]:
        """Whether Slurm has let the job go, and what else may be left."""
        left = self._what_is_left(handle)
        notes = (left,) if left else ()
        if handle.view.stage == "over":
            return notes
        if elsewhere := self._elsewhere(handle):
            return (f"Slurm was not asked to end it: {elsewhere}", *notes)
        return (f"Slurm was asked to end job {handle.job}, and has not done it yet: scancel {handle.job}", *notes)

    def _what_is_left(self, handle: Handle) -> str:
        del handle
        return self._left

    def stop(self, handle: Handle, grace_s: float) -> None:
        """Ask the job to end its tasks with their grace; after that Slurm ends it."""
        if self.look(handle).stage == "over" or self._elsewhere(handle):  # another's job may have its number here
            return
        handle.stopping = True
        began = time.monotonic()
        asked = handle.view.stage == "running" and self._client.signal(handle.job, "USR2")
        looked, wait_s = began, grace_s + 15
        while asked and time.monotonic() < began + wait_s:
            if (report := _report_of(handle)) and report.is_over:
                break
            if time.monotonic() > looked + _QUICK_S:  # nobody says anything of a job that is gone
                if self.look(handle).stage == "over":
                    break
                looked = time.monotonic()
            # It knows how long it waits for its nodes to clear up; one that waits in the queue again waits for nothing.
            ends = report is not None and report.phase == "ending" and handle.view.stage == "running"
            wait_s = grace_s + (_ENDING_S if ends else 15)
            time.sleep(_POLL_S)
        else:
            self._client.cancel(handle.job)
        deadline = time.monotonic() + 60
        while self.look(handle).stage != "over" and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _look(self, handle: Handle) -> JobView:
        report = _report_of(handle)
        if report is not None and report.is_over and report.end is not None:
            return JobView("over", report, end=report.end)
        if not handle.job:
            return JobView("over", report, end=End("failed", "its job was never submitted"))
        if away := self._elsewhere(handle):
            stage: Literal["waiting", "running"] = "running" if report is not None and report.nodes else "waiting"
            return JobView(stage, report, is_known=False, away=away)
        is_well = report is not None and report.phase in ("starting", "running", "ending") and not handle.stopping
        if report is not None and report.attempt != handle.begun[0]:
            handle.begun = (report.attempt, time.time())
        is_quiet = is_well and report is not None and report.phase != "ending"
        age_s = _SLOW_S if is_quiet and handle.over_since is None else _QUICK_S
        try:
            job = self._queue.job(handle.job, age_s, handle.begun[1])
        except TargetError:
            if is_well:  # slurmctld is being started anew, say; the job runs on without it
                return JobView("running", report)
            return JobView(handle.view.stage, report, "Slurm can't be asked now", is_known=False)
        return self._view(handle, report, job)

    def _elsewhere(self, handle: Handle) -> str:
        """That a job is another cluster's, in words; nothing where it is this one's, as far as that is known."""
        with suppress(TargetError):
            if handle.cluster and is_another(handle.cluster, own := self._cluster()):
                return elsewhere_words(handle.job, handle.cluster, own)
        return ""

    def _view(self, handle: Handle, report: Report | None, job: Job | None) -> JobView:
        if job is None:
            return self._over(handle, report, self._told(handle) or forgotten_end(handle.job))
        if job.state in LIVING:  # what made it seem to be over was wrong
            handle.over_since = handle.told = handle.told_asked = None
        if job.state in WAITS:
            return JobView("waiting", report, self._reason(handle.plan, job))
        if job.state in COMES_UP:
            return JobView("coming", report, f"nodes are being started: {job.node_list}")
        if job.state in GOES_ON:
            return JobView("running", report, (report.message if report else "") or f"on {job.node_list}")
        return self._over(handle, report, end_of_state(job.state, job.node_list))

    def _told(self, handle: Handle) -> End | None:
        """What accounting says. It may hang, or fail for a moment, while the job's last word is waited for."""
        is_due = handle.told_asked is None or time.monotonic() - handle.told_asked > _ACCOUNTING_S
        if handle.told is None and is_due:
            handle.told = accounted_end(self._client, handle.job)
            handle.told_asked = time.monotonic()  # by its end: it may have hung
        return handle.told

    def _over(self, handle: Handle, report: Report | None, end: End) -> JobView:
        """Slurm calls the job over. Its program's last word may take a moment to be seen here; some ends it can't tell of."""
        if handle.trouble and not handle.stopping:  # its time begins when it can be read
            return JobView(
                "running", report, f"Slurm says that job {handle.job} is over; {handle.trouble}", is_known=False
            )
        now = time.monotonic()
        handle.over_since = handle.over_since or now
        verdict = report.verdict if report else None
        says_itself = end.kind in (None, "failure")
        is_awaited = verdict is not None or (says_itself and (report is None or report.end is None))
        patience_s = _REST_S if verdict or handle.stopping else _LAST_WORD_S
        if not says_itself and report is not None and report.end is None and not handle.stopping:
            # Slurm's word is enough, but the run may have come to its end before.
            is_awaited, patience_s = True, _REST_S
        if report is None and end.kind == "failure":
            patience_s = min(patience_s, _SCRIPT_S)
        if is_awaited and now - handle.over_since < patience_s:
            return JobView("running", report, f"Slurm says that job {handle.job} is over; its last word is waited for")
        if verdict is not None:  # it was killed while nodes cleared up
            return JobView("over", report, end=verdict)
        if says_itself and report is not None and report.end is not None:
            end = (
                report.end
                if report.end.outcome != "slurm"
                else End("failed", report.end.message, None, report.end.kind)
            )
        elif end.kind == "node_lost" and report is not None and report.end is not None and report.end.kind == end.kind:
            end = replace(end, message=report.end.message)  # Slurm names all nodes of the job
        return JobView("over", report, end=end)

    def _reason(self, plan: Plan, job: Job) -> str:
        try:
            return waiting_for(plan, job, self._queue.pending(_REASONS_S), self._queue.nodes(_REASONS_S))
        except TargetError:
            return f"waiting: Slurm says {job.reason}"

    def _submitted_before(self, run: RunDirectory) -> str | None:
        """The job of this run that a supervisor submitted and had no time to note: jobs bear the run's id as their name."""
        if not self.is_submitted(run):
            return None
        with suppress(OSError):
            if (report := read_report(run)) is not None and report.job:
                return report.job
        found = self._client.queue("--me", "--states=all", f"--name={run.id}", "--format=%i").split()
        return found[0] if found else None


def _report_of(handle: Handle) -> Report | None:
    """A job's report, as it could last be read: an error of a shared file system passes, and says nothing of the job."""
    try:
        handle.report = read_report(handle.run) or handle.report
        handle.trouble = ""
    except OSError as error:
        handle.trouble = f"its last word can't be read now: {error.strerror}"
    return handle.report
