"""A workspace's config.yml, read with the same care as a job file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfjob.errors import InvalidFile

__all__ = ["load_config"]


def load_config(path: Path) -> dict[str, Any]:
    """The settings in the file at `path` as plain data; a missing file, or one with comments only, has none.

    Raises InvalidFile with everything that is wrong with it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    if all(not line.strip() or line.lstrip().startswith(b"#") for line in data.splitlines()):
        return {}
    from tfjob.spec import text as texts  # noqa: PLC0415  # YAML and schemas only where something is set
    from tfjob.spec.messages import check  # noqa: PLC0415
    from tfjob.spec.schema import config_schema  # noqa: PLC0415
    from tfjob.spec.tree import plain  # noqa: PLC0415

    text, problems = texts.decode(data, str(path))
    if problems:
        raise InvalidFile(problems)
    root, problems = texts.read(text, str(path))
    if root is not None:
        objections, root = check(root, config_schema())
        problems += objections
    if problems or root is None:
        raise InvalidFile(problems)
    settings: dict[str, Any] = plain(root)
    return settings
