"""The commands as typer knows them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from tfjob.cli.main import COMMANDS, GROUPS, group_help, help_text
from tfjob.errors import ExitCode, UsageError

__all__ = ["app"]

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Commands(TyperGroup):
    """The commands by their table: the module of a command is imported when it is used."""

    table = COMMANDS
    group = ""

    # ruff: noqa: ARG002  # the signatures are click's

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.table:
            return None
        if (whole := f"{self.group} {cmd_name}".strip()) in GROUPS:
            return typer.main.get_command(_group(whole))
        module, function, _ = self.table[cmd_name]
        one = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=_CONTEXT)
        one.command(name=cmd_name)(getattr(import_module(f"tfjob.cli.{module}"), function))
        command = typer.main.get_command(one)
        for param in command.params:
            _name_its_numbers(param)
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.table and not args[0].startswith("-"):
            from tfjob.cli.suggestions import hint_for  # noqa: PLC0415  # only for this

            whole = f"{self.group} {args[0]}".strip()
            raise UsageError(f"there is no command {whole!r}", hint_for(args[0], self.group))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the parser would make 1 of it
            raise typer.Exit(ExitCode.DONE) from None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(group_help(self.group) if self.group else help_text())


def _name_its_numbers(param: Any) -> None:
    """Say what numbers an option takes where it is given none: the parser would speak of a float range."""
    kind = param.type
    if not kind.name.endswith("range"):
        return
    number = "whole number" if kind.name.startswith("int") else "number"
    unit = " of seconds" if param.metavar == "SECONDS" else ""
    kind.name = f"{number}{unit} from {kind.min:g}"
    param.metavar = param.metavar or "N"


def _group(name: str) -> typer.Typer:
    """The commands below `tfjob NAME`."""
    kind = type("_Group", (_Commands,), {"table": GROUPS[name], "group": name})
    one = typer.Typer(
        name=name.rpartition(" ")[2],
        cls=kind,
        no_args_is_help=True,
        rich_markup_mode=None,
        add_completion=False,
        context_settings=_CONTEXT,
    )

    @one.callback()
    def nothing() -> None:
        """What stands before the command: nothing."""

    return one


app = typer.Typer(
    name="tfjob",
    cls=_Commands,
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
