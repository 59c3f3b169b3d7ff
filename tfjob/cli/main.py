"""The command `tfjob`: its commands, and the only place where an error becomes words and an exit code."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from tfjob.errors import ExitCode, Interrupted, InvalidFile, TfjobError

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = {
    "init": ("setup", "init", "Make a workspace in a directory"),
    "validate": ("jobs", "validate", "Check job files; report every problem at once"),
    "plan": ("jobs", "plan", "Show exactly what `submit` would run"),
    "submit": ("jobs", "submit", "Run a job and follow it to its end"),
    "list": ("history", "list_runs", "List the runs of this workspace"),
    "show": ("history", "show", "Show a run: phases, tasks, failure, outputs"),
    "logs": ("history", "logs", "Print what a run's tasks print; -f goes on"),
    "wait": ("control", "wait", "Wait for the end of a run"),
    "cancel": ("control", "cancel", "End a run, in whatever phase it is"),
    "download": ("transfer", "download", "Copy a run's outputs or logs to a directory"),
    "rerun": ("control", "rerun", "Run an earlier run's plan once more"),
    "schema": ("jobs", "schema", "Print the JSON Schema of job files"),
    "doctor": ("setup", "doctor", "Say what works on this machine, and what to do"),
}
"""Command → (module of this package, function, its line in the help). A module is imported when its command is used."""


class _Commands(TyperGroup):
    """The commands by their table: `tfjob --help` imports none of them."""

    # ruff: noqa: ARG002  # the signatures are click's

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, function, _ = COMMANDS[cmd_name]
        one = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=_CONTEXT)
        one.command(name=cmd_name)(getattr(import_module(f"tfjob.cli.{module}"), function))
        return typer.main.get_command(one)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

app = typer.Typer(
    name="tfjob",
    cls=_Commands,
    help="Submit TensorFlow training jobs to your own machines: one YAML file, one command.",
    epilog="Exit codes: 0 done; 1 the run failed; 2 bad job file or usage; 3 not found; 4 environment, image or dataset "
    "could not be made; 5 target not reached or no room in time; 124 `wait --timeout` ran out; 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: starts in half the time
    pretty_exceptions_enable=False,
    context_settings=_CONTEXT,
)


@app.callback(invoke_without_command=True)
def options(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    """What stands before the command."""
    if version:
        import tfjob  # noqa: PLC0415  # only for this

        print(tfjob.__version__)
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line. A known error is its message and hint; anything else is a bug and shows its traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup`, or a shell's background job
            signal.signal(number, _interrupt)
    try:
        app()
    except InvalidFile as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        count = len(error.problems)
        print(f"tfjob: {count} problem{'s' if count > 1 else ''}; nothing was changed", file=sys.stderr)
        sys.exit(error.exit_code)
    except TfjobError as error:
        print(f"tfjob: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        _silence()
        sys.exit(ExitCode.DONE)
    sys.exit(ExitCode.DONE)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise Interrupted("interrupted")


def _silence() -> None:
    """Whoever read the output has gone (`| head`): keep Python from complaining when it flushes at its end."""
    import os  # noqa: PLC0415  # only for this

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
