"""Runs a Plan on several machines with Docker Engines: a container of the run on each, and in it an agent that starts its tasks.

Nothing is installed on a node, and no path of this machine is assumed there: image, code and datasets are sent by
content, once to each node; logs, reports and outputs come home as they are made. How a task is, its reports say, which
lie in the run directory as for every engine; whether a node lives, its agent's voice says.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from tfjob.datasets.cache import Cache
from tfjob.datasets.wanted import Settings
from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.dockerapi.reach import engine_at, engine_of_tools
from tfjob.engines.base import STOP_MARGIN_S, Allocation, Prepared, TaskStatus, Waiting, tell_nobody
from tfjob.engines.cluster.at_once import at_once
from tfjob.engines.cluster.bringing import Site
from tfjob.engines.cluster.clean import know_runs
from tfjob.engines.cluster.handle import ClusterHandle, read_notes, statuses_of
from tfjob.engines.cluster.home import Home
from tfjob.engines.cluster.kept import note_use
from tfjob.engines.cluster.leases import Claims, RunKey
from tfjob.engines.cluster.link import NodeLink
from tfjob.engines.cluster.nodes import Reaching
from tfjob.engines.cluster.room import Found, find_room, submitted_by
from tfjob.engines.cluster.starting import Starting, node_tasks
from tfjob.engines.cluster.trees import forget_unfinished
from tfjob.errors import TargetError
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory
from tfjob.targets.definition import ClusterDefinition

__all__ = ["ClusterEngine", "remove_run"]

_SYNC_S: Final = 30.0
_ASK_S: Final = 5.0
_LOOK_S: Final = 0.1
_REMOVE_S: Final = 30.0
_AGAIN_S: Final = 0.05
_UNUSED_S: Final = 60.0
"""By then nothing is removed any more from nodes that a run does not use: connections to them are closed."""


class ClusterEngine:
    """The engine of targets of the kind `docker`.

    `environ` is what the submitting shell had; `snapshots` where code lies by content, `cache` data, which is fetched
    by `settings`, `runs` the workspace's runs. `reaching` may have been begun before, to save the time it takes to log in.
    """

    def __init__(
        self,
        target: ClusterDefinition,
        *,
        environ: Mapping[str, str],
        snapshots: Path,
        runs: Path,
        cache: Cache,
        settings: Settings | None = None,
        with_gpus: bool = False,
        reaching: Reaching | None = None,
    ) -> None:
        self._target = target
        self._environ = environ
        self._snapshots = snapshots
        self._cache = cache
        self._settings = settings or Settings()
        self._workspace = know_runs(runs)
        self._reaching = reaching
        self._with_gpus = with_gpus
        self._found: Found | None = None
        self._images: DockerApi | None = None

    @property
    def shares_run_directory(self) -> bool:
        """Tasks are elsewhere."""
        return False

    def lend(self, waiting: Waiting) -> dict[str, str]:
        """Where images are found and made, as variables for Docker's tools: on a node, where this machine has no Docker Engine.

        Raises TargetError when no node answers either.
        """
        with suppress(TargetError, RefusalError), engine_of_tools(self._environ) as own:
            own.clock(_ASK_S)
            return {}
        self._reaching = self._reaching or Reaching(self._target, self._environ, with_gpus=self._with_gpus)
        while not self._reaching.reached:
            if not self._reaching.open:
                told = "; ".join(f"{name}: {error.message}" for name, error in self._reaching.problems.items())
                raise TargetError(
                    f"neither this machine nor a node of {self._target.name} has a Docker Engine that answers: {told}",
                    f"Look at the nodes: tfjob compute test {self._target.name}.",
                )
            self._reaching.wait(_LOOK_S)
            waiting("")
        lender = self._reaching.reached[0]
        self._images = lender.api
        return lender.api.transport.variables()

    def acquire(self, plan: Plan, run: RunDirectory, deadline_s: float, waiting: Waiting) -> Allocation:
        """Claim nodes and GPUs, all or none. Raises TargetError also when too few nodes answer."""
        begun, self._reaching = self._reaching, None
        reaching = begun.lately() if begun else Reaching(self._target, self._environ, with_gpus=self._with_gpus)
        try:
            self._found = find_room(plan, self._key(run), reaching, deadline_s, waiting)
        finally:
            reaching.stop()
        unused = [
            node.api for node in reaching.reached if node not in self._found.nodes and node.api is not self._images
        ]  # images may yet be read from who lends its engine, for much longer
        later = threading.Timer(_UNUSED_S, at_once, (DockerApi.close, unused))
        later.daemon = True
        later.start()
        return self._found.allocation(plan)

    def start(
        self,
        plan: Plan,
        run: RunDirectory,
        allocation: Allocation,
        prepared: Prepared,
        told: Waiting = tell_nobody,
    ) -> ClusterHandle:
        """Bring everything to the nodes, then start the tasks, all or none.

        Raises PreparationError for what a node can't take, TargetError for one that stops answering.
        """
        assert self._found is not None  # noqa: S101  # `acquire` comes before
        handle = ClusterHandle(plan, run, key=self._key(run))
        images = self._images or engine_of_tools(self._environ)
        site = Site(self._target, self._environ, self._snapshots, self._cache, images, self._settings)
        try:
            Starting(handle, found=self._found, allocation=allocation, prepared=prepared, site=site, told=told).go()
        except BaseException:
            self.stop(handle, 0)
            raise
        finally:
            if self._images is not None and self._images not in [link.api for link in handle.links.values()]:
                self._images.close()  # the images are where they are to be; another attempt logs in again
        return handle

    def adopt(self, plan: Plan, run: RunDirectory) -> ClusterHandle:
        """Go on with what another supervisor started, as it noted where that is."""
        handle = ClusterHandle(plan, run, adopted=time.monotonic(), key=self._key(run))
        attempt, python, notes = read_notes(run)
        if attempt != run.restart_count + 1:
            return handle  # this attempt had not started anything that is to go on
        known = {node.name: node for node in self._target.nodes}
        tasks = node_tasks(plan, self._snapshots)
        home = Home.of(run, [(*node.tasks, f"node-{node.index}")[0] for node in tasks])
        for note in notes:
            definition = known.get(note.name)
            if definition is None:
                continue
            api = engine_at(definition.engine, tls=definition.tls, environ=self._environ)
            node = replace(
                tasks[note.index], name=note.name, address=note.address, container=note.container, python=python
            )
            link = NodeLink(api, node, home, self._target.node_lost_s, self._target.merge_interval_s)
            handle.links[note.index] = link
            link.open()
        return handle

    def poll(self, handle: ClusterHandle) -> tuple[TaskStatus, ...]:
        """Read each task's reports, and what is known of its node. Never blocks: nodes are heard by threads of their own."""
        return statuses_of(handle)

    def stop(self, handle: ClusterHandle, grace_s: float) -> None:
        """End every task, bring home what is left to bring, and leave nothing on any node that can be reached."""
        self.poll(handle)  # what is lost by now was not told to end
        handle.stopping = True
        self._end_tasks(handle, grace_s)
        self._bring_home(handle)
        at_once(NodeLink.close, list(handle.links.values()))
        homes = {id(link.home): link.home for link in handle.links.values()}
        for home in homes.values():
            home.close()  # what a lost node says when it is back is not the next attempt's
        self._remove(handle)
        self._found = None

    def notes(self, handle: ClusterHandle) -> tuple[str, ...]:
        """What the record of the run should say of how it was brought to its end."""
        homes = {id(link.home): link.home for link in handle.links.values()}
        full = [link.node.name for link in handle.links.values() if link.is_full]
        of_disks = (
            [f"the disk of {', '.join(full)} is full: what was written there last may be missing"] if full else []
        )
        return (*of_disks, *(note for home in homes.values() for note in home.notes()), *handle.left)

    def _key(self, run: RunDirectory) -> RunKey:
        return RunKey(run.id, self._workspace, submitted_by())

    def _end_tasks(self, handle: ClusterHandle, grace_s: float) -> None:
        """SIGTERM to all but the launcher, which would end its ranks at once; then to the launcher; then SIGKILL."""
        living = [link for link in handle.links.values() if link.ended is None]
        deadline = time.monotonic() + grace_s + STOP_MARGIN_S
        for is_launcher in (False, True):
            tasks = [task for task in handle.plan.all_tasks if (task is handle.plan.launcher) == is_launcher]
            if not tasks:
                continue
            for link in living:
                link.tell("stop", launcher=is_launcher)
            while time.monotonic() < deadline and any(self._goes_on(handle, task.name, task.node) for task in tasks):
                time.sleep(0.02)
        if any(self._goes_on(handle, task.name, task.node) for task in handle.plan.all_tasks):
            for link in living:
                link.tell("kill")

    def _goes_on(self, handle: ClusterHandle, task: str, node: int) -> bool:
        link = handle.links.get(node)
        if link is None or link.ended is not None or task in link.silent:
            return False
        began = handle.run.read_task_file(task, "started.json") is not None
        return began and handle.run.read_task_file(task, "exit.json") is None and link.silent_s < _ASK_S

    def _bring_home(self, handle: ClusterHandle) -> None:
        """The last merge: wait for it as long as something comes."""
        asked = []
        for link in handle.links.values():
            if (
                link.ended is None and not link.closed and _has_begun(handle, link)
            ):  # it can be asked, and has something
                if link.home.is_blocked(link.node.index):
                    link.begin_again()
                asked.append((link, link.said("synced")))
                link.tell("sync")
        for link, before in asked:
            limit_s = min(_SYNC_S, self._target.node_lost_s)
            if not link.wait_for("synced", before + 1, limit_s) and link.ended is None:
                why = "it did not answer" if link.silent_s > _ASK_S else f"no more of it came within {limit_s:g} s"
                handle.left.append(f"outputs of {link.node.name} may lack what was written last: {why}")

    def _remove(self, handle: ClusterHandle) -> None:
        """Remove the run's containers and claims from every node of the target that it may have been on."""
        nodes = [(link.node.name, link.api) for link in handle.links.values()]
        if self._found is not None:
            there = {name for name, _ in nodes}
            nodes += [(one.definition.name, one.api) for one in self._found.nodes if one.definition.name not in there]
        if not nodes:  # adopted before anything was noted
            nodes = [
                (one.name, engine_at(one.engine, tls=one.tls, environ=self._environ)) for one in self._target.nodes
            ]
        lost = {link.node.name for link in handle.links.values() if link.ended is not None and link.ended.lost}

        def remove(node: tuple[str, DockerApi]) -> str:
            timeout_s = _ASK_S if node[0] in lost else _REMOVE_S
            try:
                remove_run(node[1], handle.key, timeout_s, [volume for name, volume in handle.empty if name == node[0]])
            except (TargetError, RefusalError, OSError) as error:
                why = str(error) if isinstance(error, OSError) else error.message
                return f"{node[0]} could not be cleaned up ({why}): `tfjob compute clean {self._target.name}` does it when it is back"
            return ""

        told = at_once(remove, nodes)
        for _, api in nodes:
            api.close()
        handle.left += [one for one in told if one and one not in handle.left]


def _has_begun(handle: ClusterHandle, link: NodeLink) -> bool:
    """Whether any task may have been started there."""
    known = (handle.run.read_task_file(task, "started.json") is not None for task in link.node.tasks)
    return bool(link.said("ready start")) or any(known)


def remove_run(api: DockerApi, key: RunKey, timeout_s: float, volumes: Sequence[str]) -> None:
    """Remove from a node the containers and claims of a run, and volumes. Raises TargetError for what is still there after that time."""
    labels = {"tfjob.run": key.id, "tfjob.workspace": key.workspace}
    deadline = time.monotonic() + timeout_s
    while True:
        left = api.with_labels(labels, timeout_s)
        if not left:
            break
        for container in left:
            with suppress(RefusalError):  # it is gone, or just being removed
                api.remove(container["Id"], timeout_s)
        if time.monotonic() > deadline:
            raise TargetError(f"containers of run {key.id} can't be removed")
        time.sleep(_AGAIN_S)
    for volume in volumes:
        with suppress(RefusalError):
            api.remove_volume(volume, timeout_s)
    with suppress(RefusalError):  # on a full disk it is not noted
        note_use(api, key)
    Claims(api, key).release()
    forget_unfinished(api, key)
