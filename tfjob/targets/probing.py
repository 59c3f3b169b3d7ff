"""What the nodes of a cluster are like now: `tfjob compute test`. All nodes are asked at the same time.

A node that does not answer at once is waited for; one that refuses is not.
"""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Final

from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.dockerapi.open_files import allow_many
from tfjob.dockerapi.reach import engine_at
from tfjob.dockerapi.ssh import SshTransport
from tfjob.errors import TargetError, TargetRefused
from tfjob.targets.clock import measure_skew
from tfjob.targets.definition import ClusterDefinition, NodeDefinition
from tfjob.targets.gpus import GpuProbe
from tfjob.targets.node_gpus import ask_gpus, is_this_machine
from tfjob.targets.node_shell import LocalShell, NodeShell, SshShell, container_shell, known_image
from tfjob.targets.peers import check_peers, peer_addresses
from tfjob.targets.report import NodeReport, with_notes

__all__ = ["Progress", "answering", "probe"]

Progress = Callable[[str], None]

_CALL_S: Final = 15.0
_PAUSE_S: Final = 1.0
_MOST_THREADS: Final = 64
_DF_ROW: Final = re.compile(r"\s\d+\s+\d+\s+(\d+)\s+\d+%\s")


def probe(
    cluster: ClusterDefinition,
    *,
    images: Collection[str] = (),
    wait_s: float | None = None,
    progress: Progress = lambda _: None,
    environ: Mapping[str, str] | None = None,
) -> tuple[NodeReport, ...]:
    """Return what every node of the cluster is like, in its order. `images` may be run on nodes to ask them.

    `wait_s` is how long a node is waited for, instead of what the definition says.
    """
    allow_many()
    limit_s = cluster.wait_s if wait_s is None else wait_s
    addresses = peer_addresses(cluster, environ)
    screen = _Screen([node.name for node in cluster.nodes], progress)
    pool = ThreadPoolExecutor(min(2 * len(cluster.nodes), _MOST_THREADS))
    with ExitStack() as open_shells:
        asked = [_Asked(node, addresses[node.name], images, open_shells) for node in cluster.nodes]

        def ask(one: _Asked) -> NodeReport:
            try:
                return one.report(time.monotonic() + limit_s, screen, environ)
            finally:
                screen.done(one.definition.name)

        try:
            reports = list(pool.map(ask, asked))
            if len(asked) > 1:
                progress("checking that the nodes reach each other")
                shells = {one.definition.name: one.shell for one in asked if one.shell is not None}
                there = {report.name: report.address for report in reports if report.unanswered is None}
                peers = check_peers(shells, there, pool)
                reports = [replace(report, peers=peers.get(report.name, ())) for report in reports]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # who interrupts does not wait for the slowest node
    return with_notes(reports)


def answering(api: DockerApi, deadline: float, waits: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Return what the engine says of itself, waiting for it until `deadline` (of the monotonic clock).

    `waits` is called with the reason, each time it did not answer. Raises TargetError when it never does, and at once
    where it refuses.
    """
    while True:
        left_s = deadline - time.monotonic()
        try:
            return api.info(min(max(left_s, _PAUSE_S), _CALL_S))
        except TargetRefused:
            raise
        except RefusalError as error:
            raise TargetError(
                f"the Docker Engine at {api.address} can't say how it is: {error.message}", "Look at Docker there."
            ) from error
        except TargetError as error:
            if time.monotonic() + _PAUSE_S >= deadline:
                raise
            waits(error.message)
        time.sleep(_PAUSE_S)


class _Screen:
    """Tells who is still waited for, in whichever thread something happens."""

    def __init__(self, names: list[str], tell: Progress) -> None:
        self._count = len(names)
        self._tell = tell
        self._silent = dict.fromkeys(names, False)
        self._lock = threading.Lock()
        self._say()

    def wait(self, name: str) -> None:
        """The node has not answered yet."""
        with self._lock:
            self._silent[name] = True
            self._say()

    def done(self, name: str) -> None:
        """The node has been asked all there is."""
        with self._lock:
            self._silent.pop(name, None)
            self._say()

    def _say(self) -> None:
        some_answered = len(self._silent) < self._count
        silent = [name for name, is_silent in self._silent.items() if is_silent or some_answered]
        named = f"; waiting for {', '.join(silent[:4])}{' …' if len(silent) > 4 else ''}" if silent else ""
        self._tell(f"asked {self._count - len(self._silent)} of {self._count} nodes{named}")


class _Asked:
    """One node that is asked. `shell` is there once it has answered, if it can be asked by a program at all."""

    def __init__(
        self, definition: NodeDefinition, address: str, images: Collection[str], open_shells: ExitStack
    ) -> None:
        self.definition = definition
        self.shell: NodeShell | None = None
        self._address = address
        self._images = images
        self._open_shells = open_shells

    def report(self, deadline: float, screen: _Screen, environ: Mapping[str, str] | None) -> NodeReport:
        """All that one node can tell by itself."""
        node = self.definition
        report = NodeReport(
            node.name, node.engine, self._address, declared_gpus=node.gpus, has_tls=node.tls is not None
        )
        try:
            api = engine_at(node.engine, tls=node.tls, environ=environ)
            self._open_shells.callback(api.close)
            info = answering(api, deadline, lambda _: screen.wait(node.name))
            return self._facts(report, api, info)
        except TargetError as error:
            return replace(report, unanswered=(error.message, error.hint))
        except RefusalError as error:
            return replace(report, unanswered=(f"its Docker Engine says: {error.message}", "Look at Docker there."))

    def _facts(self, report: NodeReport, api: DockerApi, info: dict[str, Any]) -> NodeReport:
        image = known_image(api, self._images)
        is_here = is_this_machine(api, info)
        self.shell = self._find_shell(api, image, is_here=is_here)
        gpus, refusal = self._gpus(api, image, is_here=is_here)
        options = info.get("SecurityOptions") or []
        return replace(
            report,
            version=str(info.get("ServerVersion", "")),
            system=f"{info.get('OperatingSystem', '')}, {info.get('NCPU', 0)} CPUs, {int(info.get('MemTotal', 0)) >> 30} GiB",
            architecture=str(info.get("Architecture", "")),
            gpus=gpus.gpus,
            gpu_note=gpus.note,
            gpu_refusal=refusal,
            driver=gpus.driver,
            disk_free_bytes=self._disk(str(info.get("DockerRootDir", "/"))),
            clock=measure_skew(lambda: api.clock(_CALL_S)),
            security=tuple(option.removeprefix("name=").partition(",")[0] for option in options),
            has_image=image is not None,
        )

    def _gpus(self, api: DockerApi, image: str | None, *, is_here: bool) -> tuple[GpuProbe, str]:
        """The GPUs, and why the engine gives none of them to containers; empty where it does, or that can't be tried."""
        is_by_container = not is_here and not isinstance(api.transport, SshTransport)
        try:
            gpus = ask_gpus(api, self._images, is_here=is_here)
        except RefusalError as error:
            return GpuProbe(()), error.message
        if not is_by_container and image is not None and (gpus.gpus or self.definition.gpus):
            try:
                with container_shell(api, image, gpus=True):
                    pass
            except RefusalError as error:
                return gpus, error.message
        return gpus, ""

    def _find_shell(self, api: DockerApi, image: str | None, *, is_here: bool) -> NodeShell | None:
        if is_here:
            return LocalShell()
        if isinstance(api.transport, SshTransport):
            return SshShell(api.transport)
        if image is None:
            return None
        with suppress(RefusalError):
            return self._open_shells.enter_context(container_shell(api, image))
        return None

    def _disk(self, root: str) -> int | None:
        """The bytes left where the engine keeps images; None where nobody can say. In a container, / lies there."""
        if self.shell is None:
            return None
        if isinstance(self.shell, SshShell | LocalShell):
            parent = str(PurePosixPath(root).parent)  # which every user may look at
            line = f"df -Pk {shlex.quote(root)} 2>/dev/null || df -Pk {shlex.quote(parent)}"
        else:
            line = "df -Pk /"
        rows = [
            match for row in self.shell.run(line, _CALL_S).text.splitlines() if (match := _DF_ROW.search(f"{row} "))
        ]
        return int(rows[-1][1]) * 1024 if rows else None
