"""The names and passwords that the user has for hosts of the web: those of ~/.netrc (or NETRC)."""

from __future__ import annotations

import functools
import netrc
import os
from typing import Any

from tfjob.errors import PreparationError

__all__ = ["passwords"]


def passwords() -> dict[str, tuple[str, str]]:
    """Name and password by host; none where there is no such file. Raises PreparationError for a file that can't be read."""
    return _read(os.environ.get("NETRC") or os.path.expanduser("~/.netrc"))


@functools.cache
def _read(path: str) -> dict[str, tuple[str, str]]:
    try:
        hosts: dict[str, Any] = netrc.netrc(path).hosts
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # none, or somebody else's
        return {}
    except (OSError, netrc.NetrcParseError) as error:
        raise PreparationError(f"{path} can't be used: {error}", "Repair it, or remove it.") from error
    return {host: (login or "", password or "") for host, (login, _, password) in hosts.items() if host != "default"}
