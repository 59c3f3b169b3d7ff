"""The command `tfjob`: its front door, and the only place where an error becomes words and an exit code.

What needs no parser is done without one: typer takes longer to load than most commands take to run.
"""

from __future__ import annotations

import codecs
import gc
import io
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

from tfjob.errors import ExitCode, Interrupted, InvalidFile, TfjobError

__all__ = ["COMMANDS", "GROUPS", "group_help", "help_text", "main"]

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
    "env": ("", "", "Environments: create, build, lock, show, prune …"),
    "compute": ("", "", "Compute targets: create, test, show, update …"),
    "dataset": ("", "", "Datasets: create, list, show, download, delete, cache"),
    "schema": ("jobs", "schema", "Print the JSON Schema of job files"),
    "doctor": ("setup", "doctor", "Say what works on this machine, and what to do"),
}
"""Command → (module of this package, function, its line in the help). A module is imported when its command is used."""

GROUPS = {
    "env": {
        "list": ("environments", "list_environments", "List registered and curated environments"),
        "show": ("environments", "show", "Show one: packages, lock, images, sizes"),
        "create": ("environments", "create", "Register one from a file, by name and version"),
        "clone": ("environments", "clone", "Register a copy under another name"),
        "remove": ("environments", "remove", "Take one out of the list"),
        "lock": ("environment_builds", "lock", "Solve; write every version and hash to a file"),
        "build": ("environment_builds", "build", "Build ahead of a submit: prefix or image; push"),
        "dockerfile": ("environment_files", "dockerfile", "Print a Dockerfile that makes the same by hand"),
        "save": ("environment_files", "save", "Write all that rebuilds it to a directory"),
        "prune": ("environment_stores", "prune", "Free what no run of the last days has used"),
        "base": ("", "", "Base images where none can be pulled"),
    },
    "compute": {
        "list": ("compute", "list_targets", "List compute targets"),
        "show": ("compute", "show", "Show one as it is defined"),
        "test": ("compute_probe", "probe_target", "Ask its nodes what they are like now"),
        "create": ("compute", "create", "Create one from a file"),
        "update": ("compute", "update", "Change one to what a file says"),
        "delete": ("compute", "delete", "Forget one"),
        "clean": ("compute_clean", "clean", "Remove what runs that are over left on its nodes"),
    },
    "dataset": {
        "create": ("datasets", "create", "Register files by name and version; copy nothing"),
        "list": ("datasets", "list_datasets", "List registered datasets"),
        "show": ("datasets", "show", "Show one: paths, versions, digest, runs that used it"),
        "files": ("datasets", "files", "List its files"),
        "download": ("dataset_store", "download", "Copy its files to a directory"),
        "delete": ("datasets", "delete", "Take one out of the list"),
        "cache": ("dataset_store", "cache", "Show what was fetched and is kept; free it"),
    },
    "env base": {
        "create": ("environment_stores", "create_base", "Make one of Debian's packages, or from a tarball"),
    },
}
"""Group, as it is typed → its commands, each as in COMMANDS."""

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


def group_help(group: str) -> str:
    """What `tfjob GROUP --help` prints."""
    commands = GROUPS[group]
    width = max(map(len, commands))
    listed = "\n".join(f"  {name.ljust(width)}  {line}" for name, (_, _, line) in commands.items())
    parent, _, name = group.rpartition(" ")
    about = (GROUPS[parent] if parent else COMMANDS)[name][2]
    head = f"Usage: tfjob {group} COMMAND [ARGS]...\n\n  {about}\n\nCommands:\n"
    return f"{head}{listed}\n\n  Try `tfjob {group} COMMAND --help`.\n"


def main() -> NoReturn:
    """Run the command line and leave with its exit code, without taking Python down piece by piece, which takes a while."""
    _open_missing_streams()
    _take_every_text()
    gc.set_threshold(100_000)  # a command ends soon: what it reads is looked through for garbage, and there is none
    for number in _interrupts():
        signal.signal(number, _interrupt)
    exit_code = _run(sys.argv[1:])
    for number in _interrupts():
        signal.signal(number, signal.SIG_IGN)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        exit_code = exit_code or _tell(error)
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(exit_code)


def _run(arguments: list[str]) -> int:
    """The exit code of a command line. A known error is its message and hint; anything else is a bug and is raised."""
    try:
        return _dispatch(arguments)
    except SystemExit as end:  # the parser's way to end
        return end.code if isinstance(end.code, int) else ExitCode.DONE
    except BrokenPipeError:  # whoever read the output has gone (`| head`)
        return ExitCode.DONE
    except (TfjobError, Interrupted, OSError, RuntimeError) as error:
        return _tell(error)


def _tell(error: TfjobError | Interrupted | OSError | RuntimeError) -> int:
    """Put an error into words, and return its exit code. What the machine has not caused is raised again: it is a bug."""
    if isinstance(error, InvalidFile):
        count = len(error.problems)
        lines = [*map(str, error.problems), f"tfjob: {count} problem{'s' if count > 1 else ''}"]
        exit_code = error.exit_code
    elif isinstance(error, (TfjobError, Interrupted)):
        lines, exit_code = [f"tfjob: {error.message}", f"  {error.hint}"], error.exit_code
    else:
        from tfjob.cli.system_errors import explain  # noqa: PLC0415  # only for this

        explained = explain(error)
        if explained is None:
            raise error
        lines, exit_code = [f"tfjob: {explained[0]}", f"  {explained[1]}"], ExitCode.BAD_INPUT
    from tfjob.cli.escaping import in_lines  # noqa: PLC0415  # only for this

    with suppress(OSError):
        print(*map(in_lines, filter(str.strip, lines)), sep="\n", file=sys.stderr)
    return exit_code


def _open_missing_streams() -> None:
    """Put /dev/null where the caller has closed stdin, stdout or stderr: other files would take their numbers."""
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _take_every_text() -> None:
    """Have stdout and stderr write what their encoding has no letter for as its number: no text may end a command."""
    codecs.register_error("escape", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="escape")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""What stands for letters that can't be encoded: \u2211, and \xff for a byte of a file's name that is no UTF-8."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    from tfjob.cli.escaping import escaped  # noqa: PLC0415  # only for this

    return escaped(error.object[error.start : error.end]), error.end


def _interrupts() -> list[signal.Signals]:
    """The signals that mean to end; not those that are ignored: by `nohup`, or for a shell's background job."""
    return [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]


def _dispatch(arguments: list[str]) -> int:
    if _completes():
        _parse()
    elif arguments in ([], ["--help"], ["-h"], ["help"]):
        print(help_text(), end="")
    elif (group := " ".join(one for one in arguments if one not in ("--help", "-h"))) in GROUPS:
        print(group_help(group), end="")
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
    command = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
    # These two raise it only before there is a run; see `following`.
    raise Interrupted("interrupted; nothing was started" if command in ("submit", "rerun") else "interrupted")


if __name__ == "__main__":
    main()
