"""Makes the generated pages of docs/reference from the code: the schemas, the commands, the exit codes, the record.

    python docs/generate.py            write the pages
    python docs/generate.py --check    write nothing; end with 1 and name the pages that are stale

What the code cannot say (what a field means, what this version does not do yet) stands in the tables below. A field,
name or variable that is missing there, or there and not in the code, is an error: the pages cannot fall behind unseen.
"""

# ruff: noqa: INP001  # a script beside the pages, and it looks where users do not

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import textwrap
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer.main

from tfjob import entrypoint, errors, rundir, submission, workspace
from tfjob.cli.main import COMMANDS, GROUPS, help_text
from tfjob.cli.parser import app
from tfjob.engines.inherited import _NAMES, _PREFIXES
from tfjob.runs import record
from tfjob.spec import schema as schemas
from tfjob.spec.dataset_file import dataset_file_schema
from tfjob.spec.environment_file import environment_file_schema
from tfjob.spec.load import load_text
from tfjob.spec.substitution import LATE_NAMES
from tfjob.values import Pairs

REFERENCE = Path(__file__).parent / "reference"
GENERATED = "<!-- Made by docs/generate.py. Do not edit: change the code or the script, then run `make docs`. -->"
NOT_YET = {
    "dataset.NAME.type": "dataset: {digits: {paths: data, type: mltable}}",
    "dataset.NAME.mode": "dataset: {digits: {paths: data, mode: direct}}",
    "compute.max_node_count": "compute: {node_count: 1, max_node_count: 2}",
    "outputs.named.NAME.type": "outputs: {named: {model: {type: mltable}}}",
    "outputs.named.NAME.mode": "outputs: {named: {model: {mode: upload}}}",
    "outputs.named.NAME.path": "outputs: {named: {model: {path: elsewhere}}}",
    "outputs.named.NAME.register": "outputs: {named: {model: {register: digits}}}",
    "services": "services: {board: {type: tensor_board}}",
    "sweep": "sweep: {search_space: {lr: {type: choice, values: [1]}}, objective: {goal: maximize, primary_metric: a}, "
    "limits: {max_total_trials: 1}}",
}
"""Keys that this version refuses, in part or wholly, each with a part of a job file that shows it. Tests submit each."""

_LIMITED = {
    "dataset.NAME.type": "Only `directory` and `file` in this version.",
    "dataset.NAME.mode": "`direct` comes later.",
    "compute.max_node_count": "Not above `node_count` in this version.",
    "outputs.named.NAME.type": "Only `directory` and `file` in this version.",
    "outputs.named.NAME.mode": "Only `mount` in this version.",
}
"""Of the keys in NOT_YET, those that can be used within limits. The others are refused in this version."""

NO_EFFECT = ("display_name",)
"""Keys that this version accepts and does nothing with."""

_EXPRESSIONS = {
    "outputs.dir": "the run's outputs directory, which is the task's `./outputs`",
    "logs.dir": "the directory behind the task's `./logs`",
    "run.id": "the id of the run",
    "run.dir": "the directory of the run",
    "task.name": "the name of the task, such as `main`, `worker-0` or `rank-1`",
    "task.type": "`main`, `rank`, `chief`, `worker`, `ps` or `evaluator`",
    "task.index": "the task's number among those of its type",
    "node.index": "the number of the task's node",
    "restart.count": "how often the run was started again: `0` at first",
}

_RECORD = {
    "Record": {
        "id": "The run's id: the job's name and six characters.",
        "name": "The job's name.",
        "experiment": "The job's experiment.",
        "state": "`Preparing`, `Scaling`, `Running`, `Finalizing`, or one of the last words: `Completed`, `Failed`, "
        "`Canceled`.",
        "created": "When it was submitted.",
        "dir": "The run's directory.",
        "target": "The compute target.",
        "description": "From the job file.",
        "tags": "From the job file.",
        "properties": "From the job file.",
        "phases": "The phases entered so far, in order.",
        "tasks": "Every task, the launcher last. Empty until the tasks have places.",
        "failure": "What failed first; null when nothing did.",
        "attempts": "The attempts that failed and were followed by another. Phases and tasks are those of the last one.",
        "exit_code": "What `tfjob submit` and `tfjob wait` end with; null until the run is over.",
        "ended": "When it ended; null until then.",
        "outputs": "The kept files, at most 1000 of them.",
        "takeovers": "How often a supervisor that had died was replaced.",
        "outcome": "The state it will end in; known from Finalizing on.",
        "output_count": "How many files were kept.",
        "output_bytes": "Their bytes.",
        "left_in_work": "Files that tasks wrote outside of what is kept, and that were left in `work/`; at most 100.",
        "code_digest": "The snapshot of the code; null without `code`.",
        "environment_key": "The environment's prefix; null for the machine's own Python.",
        "datasets": "What data it had, in the order of the job file.",
        "overrides": "What `--set` changed.",
        "rerun_of": "The run whose plan this one repeats.",
        "notes": "What else happened, such as a supervisor that was replaced.",
        "supervisor": "The process that watches over the run.",
        "tfjob_version": "The tfjob that submitted it.",
        "version": "The version of this form.",
    },
    "Phase": {
        "name": "`Preparing`, `Scaling`, `Running` or `Finalizing`.",
        "started": "When it began.",
        "ended": "When it ended; null while it lasts.",
    },
    "TaskRecord": {
        "name": "The task's name, such as `main`, `worker-0`, `rank-1`, `launcher`.",
        "type": "`main`, `rank`, `chief`, `worker`, `ps`, `evaluator` or `launcher`.",
        "node": "The machine it ran on.",
        "state": "`pending`, `running` or `ended`.",
        "exit_code": "Its exit code; null while it runs, and when a signal ended it.",
        "signal": "The signal that ended it, or null.",
        "started": "When it started.",
        "ended": "When it ended.",
    },
    "Failure": {
        "task": "The task that failed first; null when no task was to blame.",
        "node": "Its node.",
        "exit_code": "Its exit code, or null.",
        "signal": "The signal that ended it, or null.",
        "message": "What happened, in words.",
        "log_tail": "The task's last lines, at most 20.",
        "hint": "What to do, if tfjob has an idea.",
        "kind": "The reason as `retries.on` names it; null for what is never tried again.",
    },
    "Attempt": {
        "number": "1 for the first.",
        "nodes": "The machines it ran on.",
        "started": "When its tasks were started; null if they never were.",
        "ended": "When it had failed.",
        "failure": "What failed first.",
    },
    "Output": {"path": "The path under `outputs/`.", "size_bytes": "Its bytes."},
    "DatasetRecord": {
        "name": "The dataset's name in the job.",
        "registered": "The registered dataset it is, `name@version`; null for paths of the job itself.",
        "digest": "A SHA-256 over the names, sizes and SHA-256 of files that were fetched, and over names, sizes and times "
        "of change of files of this machine. Until they are fetched, over what was asked for.",
        "file_count": "How many files it had.",
        "size_bytes": "Their bytes; without those of files that are not fetched yet and whose server told no size.",
    },
    "Supervisor": {
        "pid": "Its process id.",
        "host": "The machine it runs on.",
        "boot_id": "Which boot of that machine it belongs to.",
    },
}

_EXIT_CODES = {
    "DONE": "Done. For `submit`, `rerun` and `wait`: the run completed.",
    "RUN_FAILED": "The run failed, or was canceled.",
    "BAD_INPUT": "A bad job file, or a command line that asks for something that cannot be, or a file "
    "that the system does not let tfjob read or write. Nothing was started.",
    "NOT_FOUND": "A run, a workspace, a compute target or a registered name does not exist.",
    "PREPARATION_FAILED": "The environment or a dataset could not be made.",
    "TARGET_FAILED": "The target does not have what the job asks for, or had no room in time.",
    "TIMED_OUT": "`tfjob wait --timeout` ran out. The run goes on.",
    "INTERRUPTED": "The command was interrupted by Ctrl-C or SIGTERM, or its reader left while the run goes on.",
}

_EVENTS = {
    "phase": "the run entered `phase`",
    "progress": "what the phase is doing: `message`; with `topic`, what goes on beside that: `data`, fetched meanwhile",
    "task": "`task` changed its `state`; with `exit_code` and `signal` when it ended",
    "note": "something out of the ordinary: `message`",
    "retry": "`attempt`, a number, has failed (`message`), all of it has ended, and the next begins",
    "state": "the last word: `state`",
}

_TASK_VARIABLES = {
    "PATH": "The environment's programs first, then the PATH of the submitting shell, or of the image in a container.",
    "PYTHONUNBUFFERED": "1, so that a log can be followed.",
    "VIRTUAL_ENV": "The environment's directory, where the job has one.",
    "PYTHONNOUSERSITE": "1, where the job has an environment: packages of `pip install --user` are not seen.",
    "PYTHONDONTWRITEBYTECODE": "1, where the job has an environment: it is shared and never written to.",
    "CUDA_DEVICE_ORDER": "`PCI_BUS_ID`, so that GPU numbers are those of `nvidia-smi`.",
    "CUDA_VISIBLE_DEVICES": "The GPUs the task may use; empty, so none, with `gpus_per_node: 0`.",
    "TF_CONFIG": "With `distribution.type: tensorflow`: the cluster and the task's place in it.",
    "TFJOB_RUN_ID": "The run's id.",
    "TFJOB_RUN_DIR": "The run's directory.",
    "TFJOB_TASK_NAME": "The task's name, such as `worker-0`.",
    "TFJOB_TASK_TYPE": "`main`, `rank`, `chief`, `worker`, `ps` or `evaluator`.",
    "TFJOB_TASK_INDEX": "Its number among the tasks of its type.",
    "TFJOB_TASK_COUNT": "How many tasks the job has, the launcher not counted.",
    "TFJOB_NODE_INDEX": "The number of its node.",
    "TFJOB_NODE_COUNT": "How many nodes the job has.",
    "TFJOB_RESTART_COUNT": "How often the run was started again: 0 at first. See [Retries](../how-to/retries.md).",
    "TFJOB_OUTPUT_DIR": "What `./outputs` is.",
    "TFJOB_LOG_DIR": "What `./logs` is.",
    "TFJOB_DATASET_NAME": "Where the dataset `name` is: one variable for each dataset, its name in capitals.",
    "TFJOB_OUTPUTS_NAME": "Where the named output `name` is: one variable for each of `outputs.named`, its name in capitals.",
}

_SAMPLE_JOB = """\
command: "true"
dataset: {name: {paths: .}}
outputs: {named: {name: {type: directory}}}
environment: {conda: {dependencies: [python]}}
distribution: {type: tensorflow}
"""

_KINDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
_KINDS |= {"array": "list", "object": "mapping", "null": "nothing"}


def pages() -> dict[Path, str]:
    """Every generated page by its path."""
    return {
        REFERENCE / "job-file.md": job_file(),
        REFERENCE / "environment-file.md": environment_file(),
        REFERENCE / "target-file.md": target_file(),
        REFERENCE / "dataset-file.md": dataset_file(),
        REFERENCE / "workspace.md": workspace_settings(),
        REFERENCE / "cli.md": command_line(),
        REFERENCE / "exit-codes.md": exit_codes(),
        REFERENCE / "run-directory.md": run_directory(),
        REFERENCE / "task-environment.md": task_environment(),
    }


def job_file() -> str:
    """The page of the job file's keys, from its schema."""
    said = schemas.schema()
    parts = [
        "# The job file",
        GENERATED,
        said["description"],
        (
            "A job file is one YAML mapping with the keys below. Only `script` (with `code`) or `command` is required. "
            "Unknown keys are errors. Relative paths are relative to the job file; `~` is the home directory. Editors can "
            "complete it: see [Editor completion](../how-to/editor.md)."
        ),
        (
            "Some keys have a place here and no implementation yet. A job that uses one is refused with a message that says "
            "so, by `tfjob validate` already if the file alone tells it; nothing is ignored in silence, but for the few keys "
            "marked *no effect*."
        ),
        _table(said, ""),
        *_sections(said, "", 2),
        "## Expressions",
        (
            "`${{ name }}` stands for a value. The first two can be used in every text of the file and are replaced when "
            "the file is read. The others have a value only when the job runs; they can be used in `command`, `arguments` "
            "and `environment_variables`. An expression that has no value is an error. `$${{` is the text `${{`."
        ),
        _rows(("expression", "value"), _expressions()),
        "## Overrides",
        (
            "`--set KEY=VALUE` changes a value before anything is checked. `KEY` is a way through the file: keys with dots, "
            'items of a list with `[index]` from 0, keys with other characters in double quotes (`tags."a.b"=c`). `VALUE` '
            "is YAML: a scalar, `[a, b]` or `{a: b}`. `--set` can be repeated; the order counts. An index must be one the "
            "list has. A problem in an override is reported with the override as its file."
        ),
        "## YAML as tfjob reads it",
        (
            "Readers of YAML disagree on some unquoted words. tfjob refuses them and says what to write: `yes`, `no`, `on`, "
            "`off`, `y`, `n`, numbers with a leading zero (`012`), octal and binary numbers, `1_000`, `1:30`, `.inf` and "
            "`.nan`. Duplicate keys, tabs for indentation and several documents in one file are errors. The file is UTF-8. "
            "See [decision 6](../decisions/0006-yaml-traps.md)."
        ),
        "Arguments and environment variables are passed exactly as they are written: `0.10` stays `0.10`.",
    ]
    return _page(parts)


def environment_file() -> str:
    """The page of the conda file's keys, from its schema."""
    said, registered = schemas.environment_schema(), environment_file_schema()
    parts = [
        "# The environment file",
        GENERATED,
        (
            f"{said['description']} It is the file that `environment.conda_file` names, or the mapping under "
            "`environment.conda`."
        ),
        (
            "`python` and `pip` with plain versions need no channel: the Python is that of the machine, or of the base image "
            "in containers, where it has one that fits. Any other conda package needs `channels`. See "
            "[Environments](../how-to/environments.md)."
        ),
        _table(said, ""),
        *_sections(said, "", 2),
        "## To register one",
        (
            f"{registered['description']} `tfjob env create -f FILE` reads such a file, or a conda file as above, whose "
            "`name` is then the name. `tfjob env lock`, `env build` and `env show` read it too. It has one of `conda_file`, "
            "`conda`, `dockerfile`, `build` and `image`. An environment file of Azure ML is of this form."
        ),
        _table(registered, ""),
        "### build",
        f"{registered['properties']['build']['description']}",
        _table(registered["properties"]["build"], "build"),
    ]
    return _page(parts)


def target_file() -> str:
    """The page of the target file's keys, from its schema."""
    whole = schemas.target_schema()
    parts = [
        "# The target file",
        GENERATED,
        f"{whole['description']} `tfjob compute create -f FILE` reads it; problems in it are reported as those of a job file.",
        (
            "The target `local`, this machine, needs no file and is always there. See [Nodes with Docker]"
            "(../how-to/docker-nodes.md)."
        ),
    ]
    for kind, said in whole["$defs"].items():
        parts += [f"## kind: {kind}", said["description"], _table(said, ""), *_sections(said, "", 3)]
    return _page(parts)


def dataset_file() -> str:
    """The page of the dataset file's keys, from its schema."""
    said = dataset_file_schema()
    parts = [
        "# The dataset file",
        GENERATED,
        (
            f"{said['description']} `tfjob dataset create -f FILE` reads it. Unknown keys are errors; relative paths are "
            "relative to the file. See [Datasets](../how-to/datasets.md)."
        ),
        _table(said, ""),
        *_sections(said, "", 2),
    ]
    return _page(parts)


def workspace_settings() -> str:
    """The page of the workspace and its settings, from their schema and the module that opens it."""
    said = schemas.config_schema()
    layout = textwrap.dedent((workspace.__doc__ or "").partition("::\n\n")[2].partition("\n\n")[0])
    parts = [
        "# The workspace",
        GENERATED,
        (
            "A workspace is the directory `.tfjob`. `tfjob init` makes one; `tfjob submit` makes one in the current folder "
            "if there is none there or above. The variable `TFJOB_WORKSPACE` names another folder to take it from. "
            "Only its owner can look into it. A workspace above the current folder that belongs to another user is refused, "
            "for it says what runs; name it with `TFJOB_WORKSPACE` to use it."
        ),
        f"```text\n{layout}\n```",
        "## config.yml",
        f"{said['description']} Problems in it are reported as those of a job file.",
        _table(said, ""),
        *_sections(said, "", 3),
        (
            "Environments, and data that was fetched, are kept once per user, in `~/.cache/tfjob` (or under "
            "`XDG_CACHE_HOME`). `store` in config.yml or the variable `TFJOB_STORE` name another place. In config.yml a "
            "relative path begins at the folder that `.tfjob` is in; `TFJOB_STORE` must be absolute (or begin with `~`)."
        ),
    ]
    return _page(parts)


def command_line() -> str:
    """The page of all commands, from the commands themselves."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("tfjob", [], resilient_parsing=True)
    parts = [
        "# The command line",
        GENERATED,
        " ".join(help_text().split("\n\n")[1].split()),
        _rows(("command", ""), [(f"[`tfjob {name}`](#tfjob-{name})", line) for name, (_, _, line) in COMMANDS.items()]),
        (
            "`tfjob --version` prints the version. `tfjob --install-completion` installs completion for your shell. Every "
            "command has `-h`. [Exit codes](exit-codes.md) are the same for all."
        ),
        (
            "`RUN` is a run's id, the start of one id, or `latest`. Runs are looked for in the workspace: the nearest "
            "`.tfjob` from the current folder upward, or the one in the folder that `TFJOB_WORKSPACE` names. What tasks "
            "print goes to stdout, what tfjob has to say goes to stderr; with `-o json`, stdout is one JSON document. "
            "Where a command ends with a message on stderr instead, stdout is empty, and the exit code tells. Commands that "
            "look for problems (`validate`, `doctor`, `compute test`) print the document of what they found, and those that "
            "follow a run its record, however it ended."
        ),
    ]
    for name, command in _commands(group, context):
        arguments = [param for param in command.params if not param.opts[0].startswith("-")]
        options = [param for param in command.params if param.opts[0].startswith("-")]
        usage = " ".join([f"tfjob {name}", *map(_argument, arguments), *(["[OPTIONS]"] if options else [])])
        if name in GROUPS:
            usage = f"tfjob {name} COMMAND [ARGS]"
        parts += [f"## tfjob {name}", f"`{usage}`", _about(name) if name in GROUPS else command.help.strip()]
        shown = [(f"`{_argument(one)}`", one.help + _default(one)) for one in arguments]
        shown += [(_option(one), one.help + _default(one)) for one in options]
        if shown:
            parts.append(_rows(("", ""), shown))
    return _page(parts)


def _about(group: str) -> str:
    parent, _, name = group.rpartition(" ")
    return (GROUPS[parent] if parent else COMMANDS)[name][2]


def _commands(group: Any, context: Any) -> Iterator[tuple[str, Any]]:
    """Every command by what is typed, those of a group after it."""
    for name in COMMANDS:
        yield from _below(group, context, name)


def _below(group: Any, context: Any, name: str) -> Iterator[tuple[str, Any]]:
    command = group.get_command(context, name.rpartition(" ")[2])
    yield name, command
    for inner in GROUPS.get(name, ()):
        yield from _below(command, context, f"{name} {inner}")


def exit_codes() -> str:
    """The page of exit codes, from the errors that carry them."""
    _same("exit codes", _EXIT_CODES, [code.name for code in errors.ExitCode])
    parts = [
        "# Exit codes",
        GENERATED,
        "Every command ends with one of these. Scripts may rely on them.",
        _rows(("code", "meaning"), [(f"`{int(code)}`", _EXIT_CODES[code.name]) for code in errors.ExitCode]),
        (
            "`tfjob submit`, `tfjob rerun` and `tfjob wait` end with the code of the run: 0 when it completed, 1 when its "
            "script failed or it was canceled, 4 when its environment could not be made, 5 when it found no room in time. "
            "A `submit` that was interrupted ends with 130, whether it detached or canceled the run; so does one that "
            "detached because nobody reads its output any more (`| head`). `tfjob submit --detach` ends with 0 as soon as "
            "the run is recorded. `tfjob doctor` ends with 5 when something is broken."
        ),
        (
            "The exit code of a training script is in the record (`failure.exit_code`), not in tfjob's own exit code: a "
            "script that ends with 3 must not look like a run that was not found."
        ),
    ]
    return _page(parts)


def run_directory() -> str:
    """The page of the run directory and the record in it, from the modules that write them."""
    layout = textwrap.dedent((rundir.__doc__ or "").partition("::\n")[2]).strip()
    found = re.search(r"leaves beside\s+task\.json:\n\n(.*?)\n\n", entrypoint.__doc__ or "", re.DOTALL)
    if found is None:
        raise ValueError("the entrypoint's docstring does not list what it leaves beside task.json")
    parts = [
        "# The run directory",
        GENERATED,
        (
            "Everything about a run lies in one directory, `.tfjob/runs/RUN`, and can be read with `cat`. Delete the "
            "directory of a finished run to forget the run. `tfjob show RUN` prints where it is."
        ),
        f"```text\n{layout}\n```",
        "In `tasks/TASK/`:",
        f"```text\n{textwrap.dedent(found[1])}\n```",
        "## record.json",
        (
            "What `tfjob show RUN -o json` prints, and each item of `tfjob list -o json`. It is replaced as a whole, so a "
            "reader never sees half of it. Times are ISO 8601 in UTC, such as `2026-01-31T12:00:00.000Z`. New fields may be "
            "added; readers should pass over those they do not know."
        ),
    ]
    for name, fields in _RECORD.items():
        kind = getattr(record, name)
        if name != "Record":
            parts += [f"### {_HEADINGS[name]}"]
        parts.append(_rows(("field", "type", ""), _fields(kind, fields)))
    parts += [
        "## events.jsonl",
        "One JSON object a line, only ever appended to. Each has `time` and `event`.",
        _rows(("event", ""), [(f"`{name}`", text) for name, text in _EVENTS.items()]),
    ]
    _same("events", _EVENTS, _events_in_code())
    return _page(parts)


def task_environment() -> str:
    """The page of the variables a task has, from a plan and from what is inherited."""
    job = load_text(_SAMPLE_JOB, file="job.yml", base_dir=Path(__file__).parent, environ={})
    named = {name for name, _ in submission.plan(job).tasks[0].env}
    _same("task variables", _TASK_VARIABLES, named)
    inherited = ", ".join(f"`{name}`" for name in (*sorted(_NAMES), *(f"{prefix}*" for prefix in sorted(_PREFIXES))))
    parts = [
        "# What a task has in its environment",
        GENERATED,
        "A task starts in a private copy of the code directory. It is given these variables:",
        _rows(("variable", "value"), [(f"`{name}`", text) for name, text in _TASK_VARIABLES.items()]),
        (
            "Then come `environment_variables` of the job file, which win over all but `TF_CONFIG`, `CUDA_VISIBLE_DEVICES` "
            "and `TFJOB_*` (setting those is an error), and the variables that `secrets` names, with the values they have "
            "in the submitting shell."
        ),
        "From the submitting shell a task inherits only what belongs to the machine, and no other variable:",
        f"{inherited}.",
        (
            "A virtual environment that is active in the submitting shell is taken out of `PATH`. See "
            "[decision 4](../decisions/0004-few-inherited-variables.md)."
        ),
        (
            "The launcher of an MPI job is no task of the user's: it has `PATH`, what is inherited, and those of "
            "`environment_variables` that mpirun itself reads (`OMPI_MCA_*`, `PRTE_MCA_*`, `PMIX_MCA_*`). Ranks also have what "
            "the MPI library sets, such as `OMPI_COMM_WORLD_RANK`."
        ),
        (
            "On several nodes tasks are told by which network interface they reach their peers: `NCCL_SOCKET_IFNAME`, and under "
            "MPI `HOROVOD_GLOO_IFACE`. `environment_variables` win over both."
        ),
    ]
    return _page(parts)


_VALUES = {"int": "N", "path": "PATH"}
_HEADINGS = {
    "Phase": "phases[]",
    "TaskRecord": "tasks[]",
    "Failure": "failure",
    "Attempt": "attempts[]",
    "Output": "outputs[]",
    "DatasetRecord": "datasets[]",
    "Supervisor": "supervisor",
}


def _page(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _rows(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _sections(said: Mapping[str, Any], where: str, level: int) -> Iterator[str]:
    """A section for every key of `said` that has keys of its own."""
    for key, child in said["properties"].items():
        here = f"{where}.{key}" if where else key
        inner, name = _inner(child, here)
        if inner is None:
            continue
        yield f"{'#' * min(level, 4)} {name}"
        yield child["description"] + _state(here)
        if inner is not child and inner["description"] != child["description"]:
            yield inner["description"]
        yield _table(inner, name)
        yield from _sections(inner, name, level + 1)


def _inner(said: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any] | None, str]:
    """The mapping with keys that `said` is or holds, and what to call the place; None if there is none."""
    if "properties" in said:
        return said, where
    entry = said.get("additionalProperties")
    if isinstance(entry, dict) and "properties" in entry:
        return entry, f"{where}.NAME"
    items = said.get("items")
    if isinstance(items, dict) and "properties" in items:
        return items, f"{where}[]"
    return None, where


def _table(said: Mapping[str, Any], where: str) -> str:
    rows = []
    required = said.get("required", ())
    for key, child in said["properties"].items():
        here = f"{where}.{key}" if where else key
        default = child.get("default")
        text = "required" if key in required else "" if default in (None, "", [], {}) else f"`{_yaml(default)}`"
        rows.append(
            (
                f"`{key}`",
                _allowed(child),
                text,
                " ".join(f"{child['description']}{_state(here)} {_example(child)}".split()),
            )
        )
    return _rows(("key", "value", "default", ""), rows)


def _allowed(said: Mapping[str, Any]) -> str:
    if "enum" in said:
        notes = said.get("enumDescriptions", [""] * len(said["enum"]))
        return "; ".join(
            f"`{one}`" + (f": {note}" if note else "") for one, note in zip(said["enum"], notes, strict=True)
        )
    kinds = said["type"] if isinstance(said["type"], list) else [said["type"]]
    words = [_KINDS[kind] for kind in kinds]
    if "minimum" in said:
        words.append(f"at least {said['minimum']}")
    if "exclusiveMinimum" in said:
        words.append(f"above {said['exclusiveMinimum']}")
    return ", ".join(words)


def _state(where: str) -> str:
    if where in NO_EFFECT:
        return " *No effect in this version.*"
    if where in _LIMITED:
        return f" *{_LIMITED[where]}*"
    return " *Not in this version.*" if where in NOT_YET else ""


def _example(said: Mapping[str, Any]) -> str:
    examples = said.get("examples", [])
    return f"Example: `{_yaml(examples[0])}`." if examples and "enum" not in said and "properties" not in said else ""


def _yaml(value: Any) -> str:
    """A value as YAML on one line, with as few quotes as a person would write."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    text = str(value)
    plain = isinstance(value, str) and not text[:1].isdigit() and not set(text) & set("{}[],:#&*!|>'\"%@`")
    return text if plain else json.dumps(value)


def _expressions() -> Iterator[tuple[str, str]]:
    _same("expressions", _EXPRESSIONS, LATE_NAMES)
    yield "`${{ env.NAME }}`", "a variable of the submitting shell, read at submit"
    yield "`${{ parameters.NAME }}`", "a value under `parameters` of this file"
    yield "`${{ dataset.NAME }}`", "where the task finds a dataset: its directory, or its file with `type: file`"
    yield "`${{ outputs.NAME }}`", "the directory of a named output, or its path if its type is file"
    for name, text in _EXPRESSIONS.items():
        yield f"`${{{{ {name} }}}}`", text


def _argument(param: Any) -> str:
    name = param.metavar or param.name.upper()
    if getattr(param.type, "choices", None):
        name = "|".join(param.type.choices)
    return name if param.required else f"[{name}]"


def _option(param: Any) -> str:
    choices = getattr(param.type, "choices", None)
    value = ""
    if choices:
        value = "|".join(choices)
    elif not param.is_flag:
        value = param.metavar or next(
            (word for kind, word in _VALUES.items() if kind in str(param.type).lower()), "TEXT"
        )
    return f"`{', '.join(param.opts)}{' ' if value else ''}{value}`"


def _default(param: Any) -> str:
    default = getattr(param.default, "value", param.default)
    shown = default not in (None, "", False) and not callable(default)
    return f" Default: `{default}`." if shown else ""


def _fields(kind: Any, described: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    hints = typing.get_type_hints(kind)
    _same(kind.__name__, described, [field.name for field in dataclasses.fields(kind)])
    for name, text in described.items():
        yield f"`{name}`", _type(hints[name]), text


def _type(hint: Any) -> str:
    arguments = [one for one in typing.get_args(hint) if one is not type(None) and one is not Ellipsis]
    if hint == Pairs:
        return "mapping of texts"
    if typing.get_origin(hint) is typing.Literal:
        return "text"
    if typing.get_origin(hint) is tuple:
        return f"list of {_type(arguments[0])}s" if arguments[0] is str else f"list of {_type(arguments[0])}"
    if arguments:
        return f"{_type(arguments[0])} or null"
    names = {str: "text", int: "number", float: "number", bool: "true or false"}
    return (
        names.get(hint)
        or f"[{_HEADINGS[hint.__name__].removesuffix('[]')}](#{_HEADINGS[hint.__name__].removesuffix('[]')})"
    )


def _events_in_code() -> set[str]:
    """The kinds of events that the supervisor writes."""
    from tfjob.runs import chronicle, supervision  # noqa: PLC0415  # only for this

    source = inspect.getsource(supervision) + inspect.getsource(chronicle)
    return {part.partition('"')[0] for part in source.split('.event("')[1:]}


def _same(what: str, described: Iterable[str], real: Iterable[str]) -> None:
    missing, gone = sorted(set(real) - set(described)), sorted(set(described) - set(real))
    if missing or gone:
        sys.exit(f"docs/generate.py: {what}: not described: {missing}; described and not there: {gone}")


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check say which are stale; returns the exit code."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: generate.py [--check]\n")
        return 2
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if arguments:
        for path in stale:
            sys.stderr.write(f"{path.relative_to(Path(__file__).parents[1])} is stale: run `make docs`\n")
        return 1 if stale else 0
    REFERENCE.mkdir(exist_ok=True)
    made = pages()
    for path in stale:
        path.write_text(made[path], encoding="utf-8")
        sys.stdout.write(f"wrote {path.relative_to(Path(__file__).parents[1])}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
