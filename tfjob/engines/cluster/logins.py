"""Logins to a target's nodes that are begun before it is certain that a run will use them: they take longer than all else before it."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.dockerapi.reach import engine_at
from tfjob.engines.cluster.at_once import at_once
from tfjob.errors import TargetError
from tfjob.targets.definition import ClusterDefinition

__all__ = ["Logins"]

_PATIENCE_S: Final = 15.0
_OTHERS: Final = 256
"""Open files that are left to all else: this process may turn out to start tasks itself, and keeps its limit till then."""


class Logins:
    """The engines of a target's first nodes, each called once, so that the way there is open. What goes wrong is left to who uses them."""

    def __init__(self, target: ClusterDefinition, environ: Mapping[str, str]) -> None:
        self._target = target
        self.begun = time.monotonic()
        self._engines: dict[str, DockerApi] = {}
        most = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHERS, 0) // 2  # a login by ssh has two
        for node in target.nodes[:most]:
            with suppress(TargetError):
                self._engines[node.name] = engine_at(node.engine, tls=node.tls, environ=environ)
        for api in self._engines.values():
            threading.Thread(target=_call, args=(api, min(_PATIENCE_S, target.wait_s)), daemon=True).start()

    def engines(self, target: ClusterDefinition) -> dict[str, DockerApi]:
        """The engines, by their nodes' names, if they are that target's as it is now; else none, and the logins end."""
        if target == self._target:
            return self._engines
        self.leave()
        return {}

    def leave(self) -> None:
        """Log out beside all else: a node that does not answer keeps nobody waiting."""
        threading.Thread(target=self.close, daemon=True).start()

    def close(self) -> None:
        """Log out; what is still on its way there is waited for."""
        at_once(DockerApi.close, list(self._engines.values()))


def _call(api: DockerApi, patience_s: float) -> None:
    """Who uses the engine waits for this call's end, and so no longer than for a node of the target."""
    with suppress(TargetError, RefusalError, OSError):
        api.clock(patience_s)
