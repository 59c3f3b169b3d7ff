"""The trees of the cache as they lie there: directories that nobody may write, and what each holds."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["READ_ONLY", "read_facts", "remove_tree"]

READ_ONLY: Final = 0o555
_WRITABLE: Final = 0o755


def remove_tree(tree: Path) -> None:
    """Remove a tree whose directories can't be written."""
    for parent, directories, _ in os.walk(tree):
        os.chmod(parent, _WRITABLE)
        for name in directories:
            if not os.path.islink(child := os.path.join(parent, name)):
                os.chmod(child, _WRITABLE)
    shutil.rmtree(tree, ignore_errors=True)


def read_facts(path: Path) -> dict[str, int] | None:
    """The objects a tree holds, each with its bytes; None where that can't be read."""
    try:
        held: dict[str, int] = json.loads(path.read_bytes())["objects"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return held
