"""What was probably meant by a command that there is not: the word of another tool, or a slip of the finger."""

from __future__ import annotations

from collections.abc import Iterable

from tfjob.cli.main import COMMANDS, GROUPS

__all__ = ["hint_for"]

_OTHER_WORDS = {
    "": {
        **dict.fromkeys(("status", "ps", "ls", "runs", "jobs"), "list"),
        **dict.fromkeys(("run", "create", "launch", "start", "train"), "submit"),
        **dict.fromkeys(("stop", "kill", "abort"), "cancel"),
        **dict.fromkeys(("describe", "info", "inspect", "get"), "show"),
        **dict.fromkeys(("tail", "attach", "follow"), "logs -f"),
        **dict.fromkeys(("check", "lint"), "validate"),
        "prune": "env prune, or dataset cache --prune",
    },
    "env": {"delete": "env remove", "rm": "env remove"},
    "compute": {"remove": "compute delete", "rm": "compute delete"},
    "dataset": {"remove": "dataset delete", "rm": "dataset delete", "prune": "dataset cache --prune"},
}
"""Group (empty for none) → what other tools call it → what it is called here."""

_IN_EVERY_GROUP = {
    "ls": "list",
    "register": "create",
    "add": "create",
    "describe": "show",
    "get": "show",
    "info": "show",
}

_REMOVES = ("rm", "delete", "remove")
_NOTHING_REMOVES_RUNS = (
    "No command removes runs: delete a run's directory when it is over, rm -r .tfjob/runs/RUN. "
    "For the rest: tfjob env remove, compute delete, dataset delete."
)


def hint_for(word: str, group: str = "") -> str:
    """What to type instead of `word`, which is no command of the group."""
    if not group and word in _REMOVES:
        return _NOTHING_REMOVES_RUNS
    table = GROUPS[group] if group else COMMANDS
    meant = _OTHER_WORDS.get(group, {}).get(word, "")
    if not meant and group and (common := _IN_EVERY_GROUP.get(word, "")) in table:
        meant = f"{group} {common}"
    if not meant:
        meant = _near(word, group, table)
    return f"Did you mean {meant}?" if meant else f"See what there is: tfjob {f'{group} ' if group else ''}--help"


def _near(word: str, group: str, table: Iterable[str]) -> str:
    from difflib import get_close_matches  # noqa: PLC0415  # only for what is in no table

    if near := get_close_matches(word, table, n=1):
        return f"{group} {near[0]}".strip()
    return " or ".join(f"{other} {word}" for other, commands in GROUPS.items() if not group and word in commands)
