"""Runs a Plan as a job of a Slurm cluster that this machine is no part of: all by way of one login node, by ssh.

A run has two directories. What is remembered of it is here. On the file system of the nodes, below the target's `directory`, is
what its job sees; what the job writes comes home while it runs, and at the end it is removed. Code and data are kept there for
later runs (kept_there.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tfjob.datasets.cache import Cache
from tfjob.durable import replace_json, replace_text
from tfjob.engines.base import Mount, Prepared, Waiting, tell_nobody
from tfjob.engines.inherited import travelling_environment
from tfjob.engines.slurm.archive import image_directory
from tfjob.engines.slurm.engine import Handle, JobView, SlurmEngine
from tfjob.engines.slurm.environment import kept_of, require_python, send_environment, there_of
from tfjob.engines.slurm.following import Following
from tfjob.engines.slurm.gang import gang_of, program_directory, python_of
from tfjob.engines.slurm.kept_there import Kept, KeptThere
from tfjob.engines.slurm.kept_trees import KeptTree, trees_of
from tfjob.engines.slurm.login import Login, LoginClient, LoginLost
from tfjob.engines.slurm.noted import kept_job
from tfjob.engines.slurm.own_files import write_own_files
from tfjob.engines.slurm.programs import place_programs
from tfjob.engines.slurm.report import begin_report
from tfjob.engines.slurm.script import render_script
from tfjob.engines.slurm.states import LIVING
from tfjob.errors import PreparationError, TargetError
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory
from tfjob.targets.definition import SlurmDefinition

if TYPE_CHECKING:
    from tfjob.engines.slurm.place import LoginNode

__all__ = ["CLEANS", "ElsewhereEngine"]

CLEANS: Final = "tfjob compute clean"
"""The command that does for runs what could not be done at their end. Notes of what is left name it, or the run's place there."""

_AGAIN_S: Final = 1.0
_CANCELED_S: Final = 60.0
"""How long a canceled run's last outputs are waited for while the login node can't be reached."""
_DAY_S: Final = 20 * 3600.0
_ENDED_S: Final = 60.0
"""How long a job that should have been ended before may take to end."""
_UNHEARD_S: Final = 60.0
"""How long nothing may be heard of the login node while what a run left is fetched later."""
_LET_GO_S: Final = 30.0
_LET_GO_LOOK_S: Final = 0.3
_GONE: Final = frozenset({"COMPLETING", "RUNNING", "STAGE_OUT", "SIGNALING", "STOPPED"})


class ElsewhereEngine(SlurmEngine):
    """The engine of targets of kind slurm with a login. `cache` is a directory of the workspace where runs share what the queue said.

    `datasets` is the cache that has what was fetched of a run's datasets.
    """

    makes_work = True

    def __init__(self, target: SlurmDefinition, *, environ: Mapping[str, str], cache: Path, datasets: Cache) -> None:
        login = target.login or ""
        self._login = Login(login, environ)
        self._directory = Path(target.directory or "/")
        apart = cache / f"login-{hashlib.sha256(login.encode()).hexdigest()[:12]}"
        super().__init__(environ=environ, cache=apart, client=LoginClient(self._login))
        self._target = target
        self._kept = KeptThere(self._login, self._directory, limit_gib=target.kept_limit_gib)
        self._datasets = datasets
        self._following: Following | None = None
        self._has_harmed = False

    def keep(self, plan: Plan, run: RunDirectory, prepared: Prepared, told: Waiting = tell_nobody) -> None:
        """Write what the job needs, and send it with what is missing there of its code and data to the login node.

        Raises PreparationError when it can't be put there, TargetError when the login does not work.
        """
        directory = run.path / "slurm"
        directory.mkdir(exist_ok=True)
        there = RunDirectory(self._directory / "runs" / _apart(run) / run.id)
        (directory / "removed").unlink(missing_ok=True)  # of a supervisor that died
        replace_text(directory / "place", str(there.path), force=False)
        place_programs(Path(program_directory(run)), None, self._cache)
        trees = tuple(trees_of(plan, run, self._datasets))
        prepared = there_of(prepared, self._kept)
        container = self._container(plan, run, prepared, trees) if plan.runtime == "docker" else None
        replace_json(directory / "gang.json", gang_of(plan, there, prepared, container), force=False)
        python = python_of(plan, prepared.values)
        replace_text(directory / "job.sh", render_script(plan, there, python), force=False)
        begin_report(run)
        told(f"sending the run to {self._login.address}")
        is_made = False
        try:
            missing = self._kept.hold(there, {*(tree.kept for tree in trees), *kept_of(prepared), *_image(run)})
            send_environment(plan, prepared, missing, kept=self._kept, run=there, environ=self._environ, told=told)
            require_python(prepared, self._login)
            for tree in trees:
                if tree.kept in missing:
                    self._kept.send_tree(there, tree.kept, tree.files(), told, what=tree.what)
            is_made = True
            self._kept.place(
                there, lambda stream: write_own_files(stream, run), [one for tree in trees for one in tree.placed]
            )
        except BaseException:
            if self._remove(there) or not is_made:
                (directory / "removed").touch()
            raise

    def submit(self, plan: Plan, run: RunDirectory) -> Handle:
        """Submit the job once, however often it is called and the connection breaks. Raises TargetError when Slurm does not take it.

        A run that is canceled while the login node is away is not waited for: that raises TargetError, too. The run's directory
        there is removed only where Slurm says that it has no job of the run; otherwise `finish` does it.
        """
        handle = super().submit(plan, run)
        self._follow(run)
        return handle

    def _submit(self, plan: Plan, run: RunDirectory) -> Handle:
        told = False
        while True:
            try:
                return super()._submit(plan, run)
            except LoginLost as error:  # it may have been submitted: the queue knows
                if run.cancel_request.exists():
                    self._left = self._unsure(run, error)
                    raise
                if not told:
                    told = True
                    since = time.strftime("%H:%M")
                    self.tell(f"the login node can't be reached since {since}; the job is submitted when it is back")
                time.sleep(_AGAIN_S)

    def _has_taken(self, run: RunDirectory, error: TargetError) -> bool:
        """Whether Slurm has the job all the same, or may; who lost the connection and was canceled waits no longer."""
        return not isinstance(error, LoginLost) and super()._has_taken(run, error)

    def _is_queued(self, run: RunDirectory) -> bool:
        try:
            return super()._is_queued(run)
        except LoginLost:  # `_submit` waits for it
            return True

    def _take_back(self, run: RunDirectory) -> str:
        """Remove the directory of a run that has no job. Returns what is left, in words."""
        if not self._remove(_place(run)):
            return self._not_removed(run)
        _is_brought(run).touch()
        (run.path / "slurm" / "removed").touch()
        return ""

    def _unsure(self, run: RunDirectory, error: TargetError) -> str:
        """What may be there. Who finishes the run ends its job, if there is one."""
        del error
        return f"whether Slurm has its job is not known; what it has is in {_place(run).path} on {self._login.address}"

    def _not_removed(self, run: RunDirectory) -> str:
        return f"the run's directory could not be removed: {_place(run).path} on {self._login.address}"

    def _submitted_before(self, run: RunDirectory) -> str | None:
        """The job of this run that was submitted and not noted: not one of another workspace whose run has the same id."""
        return next((job for job, _, _ in self._jobs(run)), None) if self.is_submitted(run) else None

    def _jobs(self, run: RunDirectory) -> list[tuple[str, str, bool]]:
        """Jobs that bear the run's name, and their states, without those of other runs; and whether the job's script is the run's."""
        said = self._client.queue("--me", "--states=all", f"--name={run.id}", "--format=%i|%T|%o")
        script = str(self._script(run))
        found = [line.split("|", 2) for line in said.splitlines() if line.count("|") >= 2]
        return [
            (job, state, command == script)
            for job, state, command in found
            if command == script or not command.endswith("/slurm/job.sh")
        ]

    def adopt(self, plan: Plan, run: RunDirectory) -> Handle:
        """Go on with a job that another process submitted. Submits nothing: there may be none."""
        handle = super().adopt(plan, run)
        self._follow(run)
        return handle

    @property
    def kept(self) -> KeptThere:
        """What is kept there for later runs."""
        return self._kept

    def is_of(self, run: RunDirectory) -> bool:
        """Whether a run that has a place on a cluster has it on this one."""
        try:
            used = json.loads(run.plan.read_bytes())["slurm"]["login"]
            return bool(used == self._target.login) and _place(run).path.is_relative_to(self._directory / "runs")
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def finish(self, run: RunDirectory) -> str:
        """Do for a run that is over what could not be done at its end: end its job, bring all home, remove its directory there.

        Returns what keeps it from being done, nothing where it is; the next try goes on from there. Raises TargetError when the
        login node can't be reached.
        """
        if why := self._end_job(run):
            return why
        if not _is_brought(run).exists():
            following = Following(self._login, _place(run), run)
            has_come = following.sync(lambda: bool(following.lacking) or following.silent_s > _UNHEARD_S)
            following.close()
            if not has_come and not following.is_missing:
                return f"what it wrote in {_place(run).path} could not be brought home: {following.trouble}"
            _is_brought(run).touch()
        if not self._remove(_place(run)):
            return self._not_removed(run)
        (run.path / "slurm" / "removed").touch()
        return ""

    def _end_job(self, run: RunDirectory) -> str:
        """End a run's job, its tasks with their grace where they run. Returns what keeps it from ending."""
        asked, next_s = 0, 0.0
        while (living := self._living(run)) is not None:
            job, is_own = living
            if not is_own:
                return f"a job bears its name, and may be another's: {job}; if it is not, end it: scancel {job}"
            if time.monotonic() >= next_s:
                if asked > 1:
                    return f"Slurm was asked to end job {job}, and has not done it yet"
                if asked or not self._client.signal(job, "USR2"):  # a second scancel would kill what saves its work
                    self._client.cancel(job)
                    asked = 1
                asked, next_s = asked + 1, time.monotonic() + _ENDED_S
            time.sleep(_AGAIN_S)
        return ""

    def _living(self, run: RunDirectory) -> tuple[str, bool] | None:
        """The run's job, if it is not over, and whether it is surely the run's; None where there is none."""
        own = kept_job(run)
        living = [(job, is_own) for job, state, is_own in self._jobs(run) if state in LIVING]
        if own is not None:
            return (own, True) if own in dict(living) else None
        return max(living, key=lambda one: one[1], default=None)

    def notes(self, handle: Handle) -> tuple[str, ...]:
        """Whether Slurm has let the job go, what could not be brought home or removed, and what does that later."""
        notes = super().notes(handle)
        later = f"what could not be done is done later: by the next run on {handle.plan.target}, or by {CLEANS} {handle.plan.target}"
        harm = (
            ("a mounted dataset was written to on the cluster: it is sent anew to the next run",)
            if self._has_harmed
            else ()
        )
        return (*notes, later, *harm) if notes else harm

    def _what_is_left(self, handle: Handle) -> str:
        if self._left or _is_brought(handle.run).exists():
            return self._left
        return f"what it wrote is in {_place(handle.run).path} on {self._login.address}"

    def _script(self, run: RunDirectory) -> Path:
        return _place(run).path / "slurm" / "job.sh"

    def _cluster(self) -> str:
        """The login says which it is."""
        return ""

    def _variables(self, plan: Plan) -> dict[str, str]:
        return travelling_environment(self._environ, plan.secrets)

    def _look(self, handle: Handle) -> JobView:
        view = super()._look(handle)
        if view.stage != "over" and (away := self._away()):
            return replace(view, is_known=False, away=away)
        if view.stage != "over" or self._left or not self._bring(handle):
            return view
        return super()._look(handle)  # its last word has come by now

    def _follow(self, run: RunDirectory) -> None:
        if self._following is None and not _is_brought(run).exists():
            self._following = Following(self._login, _place(run), run)

    def _bring(self, handle: Handle) -> bool:
        """Bring all home, then remove the run's directory there. Returns whether anything has come; `_left` says what did not."""
        run, following = handle.run, self._following
        if not _is_brought(run).exists():
            if following is None:
                return False
            if not following.sync(self._patience(run)):
                where = f"{_place(run).path} on {self._login.address}"
                why = f"there is no {where}" if following.is_missing else f"it is in {where}: {following.trouble}"
                self._left = f"not all that the run wrote could be brought home; {why}"
                following.close()
                return True
            _is_brought(run).touch()
        elif following is None and (run.path / "slurm" / "removed").exists():
            return False
        if following is not None:
            following.close()
            self._following = None
        self._wait_for_end(handle.job)
        if self._remove(_place(run)):
            (run.path / "slurm" / "removed").touch()
        else:
            self._left = self._not_removed(run)
        return True

    def _away(self) -> str:
        """That the login node can't be reached, in words; nothing where it can."""
        since = self._following.away_since if self._following is not None else None
        if since is None:
            return ""
        moment = time.strftime("%H:%M" if time.time() - since < _DAY_S else "%Y-%m-%d %H:%M", time.localtime(since))
        lacking = self._following.lacking if self._following is not None else ""
        what = f"the login node does not see {lacking}" if lacking else "the login node can't be reached"
        return f"{what} since {moment}; what the job wrote is fetched when it is back"

    def _patience(self, run: RunDirectory) -> Callable[[], bool]:
        """Whether a run that was canceled has been waited for long enough; any other is waited for as long as it takes, and says so."""
        begun = time.monotonic()
        told = ""

        def is_over() -> bool:
            nonlocal told
            if (away := self._away()) != told:
                told = away
                self.tell(away or "the login node is back; what the job wrote is being fetched")
            return run.cancel_request.exists() and time.monotonic() - begun > _CANCELED_S

        return is_over

    def _wait_for_end(self, job: str) -> None:
        """Wait until nothing of the job writes any more."""
        deadline = time.monotonic() + _LET_GO_S
        with suppress(TargetError):
            while job and time.monotonic() < deadline:
                found = self._queue.job(job, _LET_GO_LOOK_S)
                if found is None or found.state not in _GONE:
                    return
                time.sleep(_LET_GO_LOOK_S)

    def _remove(self, there: RunDirectory) -> bool:
        try:
            self._has_harmed = bool(self._kept.release(there))
        except (TargetError, PreparationError):
            return False
        return True

    def place(self, store: Path) -> LoginNode:
        """What packages are made for, in the store of this machine."""
        from tfjob.engines.slurm.place import LoginNode  # noqa: PLC0415  # only for jobs with packages

        return LoginNode(self._login, self._kept.store, store, self._environ)

    def _container(
        self, plan: Plan, run: RunDirectory, prepared: Prepared, trees: Sequence[KeptTree]
    ) -> dict[str, Any]:
        from tfjob.engines.slurm.container import container_elsewhere  # noqa: PLC0415  # only for jobs in containers

        mounted = sorted({str(self._kept.path(tree.kept)) for tree in trees if tree.is_mounted})
        return container_elsewhere(
            plan,
            run,
            _place(run),
            replace(prepared, mounts=(*prepared.mounts, *(Mount(path, path) for path in mounted))),
            images=self._kept.store / "images",
            who=self._login.user(),
            environ=self._environ,
        )


def _apart(run: RunDirectory) -> str:
    """A name for the workspace of a run among all that use a cluster: ids of runs are of their workspace."""
    return hashlib.sha256(f"{os.uname().nodename}\0{run.path.parent}".encode()).hexdigest()[:12]


def _place(run: RunDirectory) -> RunDirectory:
    """The run's directory there, as it was chosen when it was sent."""
    return RunDirectory(Path((run.path / "slurm" / "place").read_text(encoding="utf-8")))


def _image(run: RunDirectory) -> tuple[Kept, ...]:
    """What the nodes make of the image that they fetch."""
    directory = image_directory(run)
    return (Kept("images", directory.name),) if directory is not None else ()


def _is_brought(run: RunDirectory) -> Path:
    return run.path / "slurm" / "brought"
