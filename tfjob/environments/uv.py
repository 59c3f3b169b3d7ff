"""Running uv, and saying what went wrong in the few lines of its output that matter.

uv ends with a code that says little, so the reason is in its text: a headline, then its causes, in one of two layouts
(``error:`` with ``cause:``, or the tree of older versions). The layout only decides what is shown; `_HINTS` adds what
to do. An unknown text is shown as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tfjob.environments.pip_settings import UvSettings
    from tfjob.environments.place import Place

__all__ = ["Uv", "explanation", "find_uv"]

_LINES_MAX = 14
_MARK = re.compile(r"^\s*(?:error:|\u00d7|cause:|[├╰]─▶|(?P<hint>hint:|help:))\s*")
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Requirement|Exit)\b.*: ")
_BLOCK = re.compile(r"^\s*(\[std(err|out)\]|--- std(err|out)|Traceback )")
_INDEX_HINT = "Check the network, a proxy, and pip's configuration (`pip config list`); tfjob uses the same."
_VERSION_HINT = "Check the version; it may not exist for this Python, or not in the configured index."
_FULL_HINT = "Free space there and submit again; nothing half-made was left behind."
# What uv says (in lower case) → what to do; the first that fits.
_HINTS = {
    "no space left on device": _FULL_HINT,
    "disk quota exceeded": _FULL_HINT,
    "hash mismatch": "The file is not the one that was locked. If that is meant to be, delete {lock} to lock anew.",
    "failed to build": "It has no wheel for this Python, and building it from source failed; the log has all of the "
    "build's output. Choose a version with a wheel, or install what the build asks for.",
    "not found in the package registry": "Check the name. Packages are looked for where pip's configuration says "
    "(`pip config list`).",
    "error sending request": _INDEX_HINT,
    "could not connect": _INDEX_HINT,
    "there is no version of": _VERSION_HINT,
    "there are no versions of": _VERSION_HINT,
    "no wheels with a matching": "Choose a version that has wheels for this Python, or another `python=`.",
    "unsatisfiable": "Loosen one of the versions named, or leave them out and let the solver choose.",
    "parse requirement": "Write it as pip would have it: `name`, `name==1.2`, `name>=1,<2`.",
    "permission denied": "Make the directory writable for you, or set `store:` in the config.yml of the workspace.",
}


@dataclass(frozen=True)
class Uv:
    """The uv executable with where it looks for packages; `cache` must be on the file system the prefixes are on.

    It runs in `place`, with that place's Pythons and C library.
    """

    executable: str
    cache: Path
    settings: UvSettings
    place: Place

    def __call__(
        self,
        arguments: Sequence[str | Path],
        *,
        cwd: Path,
        log: Callable[[str], None],
        holds: int,
        done: str,
        lock: Path,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Run uv; its output goes to `log` as it comes.

        `done` completes "the environment's packages could not be …"; `lock` is the file a hint may name; `holds` a lock's descriptor;
        `variables` are added to its environment.
        Raises PreparationError with uv's own explanation when it fails.
        """
        lines: list[str] = []

        def take(line: str) -> None:
            lines.append(line)
            log(line)

        command = [self.executable, *map(str, arguments)]
        environment = {**self.settings.environment, "UV_CACHE_DIR": str(self.cache), **(variables or {})}
        code = self.place.run(command, environment=environment, cwd=cwd, on_line=take, holds=holds)
        if code:
            message, hint = explanation(lines)
            ended = (
                f"uv was ended by signal {-code}" if code < 0 else f"uv ended with exit code {code} and said nothing"
            )
            first = f"the environment's packages could not be {done}."
            raise PreparationError(f"{first}\n  {message or ended}", hint.format(lock=lock))


def find_uv() -> str:
    """Return the path of the uv executable that came with tfjob. Raises PreparationError when there is none."""
    try:
        from uv import find_uv_bin  # noqa: PLC0415 (only needed to build, not to find)

        return find_uv_bin()
    except (ImportError, FileNotFoundError) as error:
        raise PreparationError(
            "uv, which makes environments, is not installed beside tfjob", "Install it: `pip install uv`."
        ) from error


def explanation(lines: Sequence[str]) -> tuple[str, str]:
    """Return what matters of a failed uv's output, and what to do about it (may be empty).

    Of a build's own output only one line is kept, the error at the end of a traceback.
    """
    start = next((n for n, line in enumerate(lines) if re.match(r"\s*(error:|\u00d7)", line)), len(lines))
    kept: list[str] = []
    said: list[str] = []
    block: list[str] | None = None
    for line in lines[start:]:
        mark = _MARK.match(line)
        if _BLOCK.match(line) and not mark:
            block = block if block is not None else []
        elif mark:
            kept += _reason(block)
            block = None
            (said if mark["hint"] else kept).append(line[mark.end() :].strip())
        elif block is not None:
            block += [line.strip()] if line.strip() else []
        elif text := line.strip(" │"):
            kept.append(text)
    kept += _reason(block)
    if len(kept) > _LINES_MAX:
        kept = [*kept[: _LINES_MAX // 2], "…", *kept[-_LINES_MAX // 2 :]]
    text = "\n".join(lines[start:]).lower()
    hints = [hint for pattern, hint in _HINTS.items() if pattern in text][:1]
    hints += [one.replace("{", "{{").replace("}", "}}") for one in said if not hints]
    return "\n  ".join(kept), " ".join(hints)


def _reason(block: Sequence[str] | None) -> list[str]:
    """Return the line of a build's output that says what was wrong: the last that reads ``SomeError: …``, or the last."""
    lines = list(block or [])
    return [line for line in lines if _EXCEPTION.match(line)][-1:] or lines[-1:]
