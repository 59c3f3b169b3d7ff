"""Where everything of a run lies. The run directory is the truth about a run; all of it can be read with `cat`.

::

    runs/RUN/
      job.yml              the job file as submitted
      code/                a link to the snapshot of the source directory
      plan.json            the Plan
      record.json          state, phases, tasks, first failure (replaced atomically)
      events.jsonl         everything that happened, a line each (only ever appended to)
      environment.lock     the environment's lock: every package with its version and hashes
      environment.image    the image the run used, by its id, where that was not made of a lock
      logs/TASK.log        each task's output; what the script writes to ./logs is in logs/user/
      logs/environment.log how the environment was built
      logs/attempt-N/      the tasks' logs of an attempt that failed and was tried again, N from 1
      outputs/             what the script wrote to ./outputs
      tasks/TASK/          task.json, started.json, exit.json (see tfjob/entrypoint.py)
      work/TASK/           the task's working copy of the code; afterwards only what the script left there
      attempts/N/          tasks/ and work/ of an attempt that failed and was tried again
      slurm/               on Slurm: the job's script, its programs, and state.json, which they write; tasks is a link into it.
                           From elsewhere: place, the run's directory there; brought, removed: what was done at the end
      datasets/            links to (or copies of) the datasets, while the run lasts
      datasets.json        what was fetched: every file of the datasets with its SHA-256
      inherited.json       the few variables tasks inherit from the shell that submitted it; no secrets
      cancel               made by whoever wants the run to end
      supervisor.lock      locked by the supervisor as long as it lives
      supervisor.log       what the supervisor itself had to say (empty, but for bugs)
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RunDirectory"]


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run. `path` is absolute."""

    path: Path

    @property
    def id(self) -> str:
        """The run's id is its directory's name."""
        return self.path.name

    @property
    def job_file(self) -> Path:
        """The job file as submitted."""
        return self.path / "job.yml"

    @property
    def plan(self) -> Path:
        """The Plan as JSON."""
        return self.path / "plan.json"

    @property
    def code(self) -> Path:
        """A link to the snapshot of the source directory."""
        return self.path / "code"

    @property
    def record(self) -> Path:
        """The record as JSON."""
        return self.path / "record.json"

    @property
    def events(self) -> Path:
        """The events, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def lock_file(self) -> Path:
        """The environment's lock."""
        return self.path / "environment.lock"

    @property
    def image_file(self) -> Path:
        """The id of the image that a Dockerfile or an image's name came to."""
        return self.path / "environment.image"

    @property
    def logs(self) -> Path:
        """The directory of logs."""
        return self.path / "logs"

    @property
    def user_logs(self) -> Path:
        """What the script writes to ./logs."""
        return self.logs / "user"

    @property
    def environment_log(self) -> Path:
        """How the environment was built."""
        return self.logs / "environment.log"

    @property
    def outputs(self) -> Path:
        """What the script writes to ./outputs."""
        return self.path / "outputs"

    @property
    def tasks(self) -> Path:
        """The directories by which tasks report."""
        return self.path / "tasks"

    @property
    def datasets(self) -> Path:
        """Where datasets are placed."""
        return self.path / "datasets"

    @property
    def attempts(self) -> Path:
        """What is kept of attempts that failed and were tried again, a directory each, its name the number."""
        return self.path / "attempts"

    @property
    def restart_count(self) -> int:
        """How many attempts have been put away: 0 while the first goes on."""
        try:
            return sum(name.isdecimal() for name in os.listdir(self.attempts))
        except FileNotFoundError:
            return 0

    @property
    def fetched(self) -> Path:
        """The datasets as they were fetched, where some of their files were behind addresses."""
        return self.path / "datasets.json"

    @property
    def cancel_request(self) -> Path:
        """Exists when somebody wants the run to end."""
        return self.path / "cancel"

    @property
    def supervisor_lock(self) -> Path:
        """Locked while a supervisor lives."""
        return self.path / "supervisor.lock"

    @property
    def supervisor_log(self) -> Path:
        """The supervisor's own output."""
        return self.path / "supervisor.log"

    @property
    def inherited(self) -> Path:
        """The variables that tasks inherit."""
        return self.path / "inherited.json"

    @property
    def reserve(self) -> Path:
        """A little disk space, given up when the disk is full so that the record can still be written."""
        return self.path / ".reserve"

    def task(self, name: str) -> Path:
        """The directory by which a task reports."""
        return self.tasks / name

    def log(self, task: str) -> Path:
        """A task's log."""
        return self.logs / f"{task}.log"

    def attempt_logs(self, number: int) -> Path:
        """The directory of the tasks' logs of an attempt that has been put away. It is there whole or not at all."""
        return self.logs / f"attempt-{number}"

    def work(self, task: str) -> Path:
        """A task's working directory."""
        return self.path / "work" / task

    def read_task_file(self, task: str, name: str) -> dict[str, Any] | None:
        """One of a task's reports, or None if it is not there (yet)."""
        try:
            found: dict[str, Any] = json.loads((self.task(task) / name).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found
