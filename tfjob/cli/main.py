"""The command `tfjob`: its front door, and the only place where an error becomes words and an exit code.

What needs no parser is done without one: typer takes longer to load than most commands take to run.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

from tfjob.errors import ExitCode, Interrupted, InvalidFile, TfjobError

__all__ = ["COMMANDS", "help_text", "main"]

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

_HELP = """\
Usage: tfjob [OPTIONS] COMMAND [ARGS]...

  Submit TensorFlow training jobs to your own machines: one YAML file, one
  command.

Options:
  --version             Print the version and exit.
  --install-completion  Install completion for the current shell.
  --show-completion     Show completion for the current shell, to copy it or
                        customize the installation.
  -h, --help            Show this message and exit.

Commands:
{commands}

  Try `tfjob COMMAND --help`. Exit codes: 0 done; 1 the run failed; 2 bad job
  file or usage; 3 not found; 4 environment, image or dataset could not be
  made; 5 target not reached or no room in time; 124 `wait --timeout` ran
  out; 130 interrupted.
"""


def help_text() -> str:
    """What `tfjob --help` prints."""
    width = max(map(len, COMMANDS))
    return _HELP.format(commands="\n".join(f"  {name.ljust(width)}  {line}" for name, (_, _, line) in COMMANDS.items()))


def main() -> NoReturn:
    """Run the command line and leave with its exit code, without taking Python down piece by piece, which takes a while."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup`, or a shell's background job
            signal.signal(number, _interrupt)
    exit_code = _run(sys.argv[1:])
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _run(arguments: list[str]) -> int:
    """The exit code of a command line. A known error is its message and hint; anything else is a bug and is raised."""
    try:
        return _dispatch(arguments)
    except SystemExit as end:  # the parser's way to end
        return end.code if isinstance(end.code, int) else ExitCode.DONE
    except InvalidFile as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        count = len(error.problems)
        print(f"tfjob: {count} problem{'s' if count > 1 else ''}", file=sys.stderr)
        return error.exit_code
    except TfjobError as error:
        print(f"tfjob: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read the output has gone (`| head`)
        return ExitCode.DONE


def _dispatch(arguments: list[str]) -> int:
    if _completes():
        _parse()
    elif arguments in ([], ["--help"], ["-h"]):
        print(help_text(), end="")
    elif arguments == ["--version"]:
        import tfjob  # noqa: PLC0415  # only for this

        print(tfjob.__version__)
    elif arguments == ["list"]:
        from tfjob.cli.listing import print_runs  # noqa: PLC0415  # only for this

        print_runs()
    elif len(arguments) == 2 and arguments[0] == "submit" and not arguments[1].startswith("-"):
        return _submit(arguments[1])
    else:
        _parse()
    return ExitCode.DONE


def _submit(file: str) -> int:
    from tfjob.runs.starting import StartingSupervisor  # noqa: PLC0415  # first, for it loads while we do

    supervisor = StartingSupervisor()
    from pathlib import Path  # noqa: PLC0415

    from tfjob.cli.following import submit_and_follow  # noqa: PLC0415

    return submit_and_follow(Path(file), supervisor=supervisor)


def _parse() -> None:
    from tfjob.cli.parser import app  # noqa: PLC0415  # typer, where there is something to parse

    app(prog_name="tfjob")


def _completes() -> bool:
    """Whether a shell asks for completions, which is the parser's business."""
    return "_TFJOB_COMPLETE" in os.environ


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise Interrupted("interrupted")


if __name__ == "__main__":
    main()
