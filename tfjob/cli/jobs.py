"""Commands that take a job file: validate, plan, submit, schema."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tfjob.cli.options import Detach, DocumentOutput, Format, JobFile, OnInterrupt, OnInterruptOption, Set
from tfjob.cli.output import print_document, print_findings
from tfjob.errors import ExitCode, InvalidFile, Problem, UsageError
from tfjob.workspace import find_workspace

__all__ = ["plan", "schema", "submit", "validate"]


class SchemaName(StrEnum):
    """The schemas tfjob publishes."""

    job = "job"
    environment = "environment"
    target = "target"
    dataset = "dataset"


def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Job files; - is stdin.", show_default=False)],
    overrides: Set = None,
    output: DocumentOutput = None,
) -> None:
    """Check job files and report every problem at once, each with its place."""
    from tfjob.spec.load import load  # noqa: PLC0415  # reading YAML and schemas is for commands that need it

    problems: list[Problem] = []
    for file in files:
        try:
            load(file, overrides=overrides or ())
        except InvalidFile as error:
            problems.extend(error.problems)
        except UsageError as error:  # there is no such file, or it can't be read
            problems.append(Problem(str(file), 1, 1, "", error.message.rstrip("."), error.hint))
        else:
            if output is None:
                print(f"{file}: ok")
    if output is not None:
        print_document([problem._asdict() for problem in problems], output)
        if problems:
            raise typer.Exit(ExitCode.BAD_INPUT)
    elif problems:
        raise InvalidFile(problems)


def plan(file: JobFile, overrides: Set = None, output: DocumentOutput = None) -> None:
    """Show exactly what `submit` would run: every task with its node, arguments, environment, port and GPUs."""
    from tfjob import submission  # noqa: PLC0415  # the whole house is for commands that need it
    from tfjob.values import encode  # noqa: PLC0415

    workspace = find_workspace()
    ready = submission.prepare(file, overrides=overrides or (), workspace=workspace)
    print_findings(ready.findings)
    document = encode(ready.plan)
    if ready.plan.slurm is not None:
        from tfjob.engines.slurm.script import preview_script  # noqa: PLC0415  # only for its targets

        here = workspace.runs if workspace else Path(".tfjob/runs").absolute()
        there = Path(ready.plan.slurm.directory or "", "runs", "WORKSPACE") if ready.plan.slurm.login else None
        document["job_script"] = preview_script(ready.plan, there or here)
    print_document(document, output or Format.yaml)


def submit(
    file: JobFile,
    overrides: Set = None,
    detach: Detach = False,
    on_interrupt: OnInterruptOption = OnInterrupt.auto,
    output: DocumentOutput = None,
) -> None:
    """Run a job and follow it to its end; the run goes on if this terminal dies."""
    from tfjob.runs.starting import StartingSupervisor  # noqa: PLC0415  # first, for it loads while we do

    supervisor = StartingSupervisor()
    from tfjob.cli.following import submit_and_follow  # noqa: PLC0415

    kind = output.value if output else None
    raise typer.Exit(
        submit_and_follow(
            file,
            overrides or (),
            supervisor=supervisor,
            detach=detach,
            on_interrupt=on_interrupt.value,
            output=kind,
        )
    )


def schema(name: Annotated[SchemaName, typer.Argument(help="Which schema.")] = SchemaName.job) -> None:
    """Print the JSON Schema of job files (or of environment, target or dataset files), for editors and other tools."""
    from tfjob.spec import schema as schemas  # noqa: PLC0415  # only for this
    from tfjob.spec.dataset_file import dataset_file_schema  # noqa: PLC0415  # the same

    known = {
        SchemaName.job: schemas.schema,
        SchemaName.environment: schemas.environment_schema,
        SchemaName.target: schemas.target_schema,
        SchemaName.dataset: dataset_file_schema,
    }
    print_document(known[name](), Format.json)
