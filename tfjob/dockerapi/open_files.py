"""Room for connections to very many engines: a login by ssh has two files open here, and each of its streams another."""

from __future__ import annotations

import resource
from contextlib import suppress
from typing import Final

__all__ = ["allow_many"]

_MOST: Final = 1 << 16
"""For thousands of nodes. Where there is no limit, none is asked for: some programs look at every number below it."""


def allow_many() -> None:
    """Raise this process's own limit of open files, mostly 1024, to what it may have, as far as nodes can need it (setrlimit(2)).

    Not for processes that start tasks: select(2) knows no number above 1023.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # a machine that does not allow it
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
