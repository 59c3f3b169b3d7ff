"""Starting a run on its nodes: what it needs is brought there, a container is started on each, then its tasks, all or none."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.engines.base import Allocation, Prepared, Waiting
from tfjob.engines.cluster.at_once import at_once
from tfjob.engines.cluster.bringing import Bringing, Site
from tfjob.engines.cluster.broadcast import broadcast
from tfjob.engines.cluster.container import (
    TREES,
    Place,
    archive_of,
    body_of,
    bundle_of,
    entrypoint_of,
    inside,
    name_of,
    node_labels,
)
from tfjob.engines.cluster.handle import ClusterHandle, NodeNote, write_notes
from tfjob.engines.cluster.home import Home
from tfjob.engines.cluster.keys import Door, ssh_files
from tfjob.engines.cluster.link import NodeLink, NodeTasks
from tfjob.engines.cluster.nodes import Reached
from tfjob.engines.cluster.refusals import MAKE_ROOM, is_full
from tfjob.engines.cluster.room import Found
from tfjob.engines.cluster.trees import Tree, archive, tree_of_outputs
from tfjob.engines.docker_errors import explained
from tfjob.engines.reports import task_files
from tfjob.engines.submitter import Submitter, submitter
from tfjob.errors import NodeLost, PreparationError, TargetError, TargetRefused
from tfjob.planning.plan import Plan
from tfjob.targets.target import Gpu

__all__ = ["Starting", "node_tasks"]

_BEAT_S: Final = 15.0
_PATIENT_S: Final = 24 * 3600.0
_HELLO_S: Final = 60.0
_LOOK_S: Final = 0.05
_QUIET_S: Final = 1.0
_LAST_BEAT_S: Final = 15.0
"""So long a sign of life that is on its way is waited for."""
_TAKEN_S: Final = 15.0
"""So long a container's name may be taken by one that the engine is just making."""


class Starting:
    """One start of one run. `told` hears how far it is, and raises to give up."""

    def __init__(
        self,
        handle: ClusterHandle,
        *,
        found: Found,
        allocation: Allocation,
        prepared: Prepared,
        site: Site,
        told: Waiting,
    ) -> None:
        self._handle = handle
        self._plan = handle.plan
        self._run = handle.run
        self._found = found
        self._allocation = allocation
        self._prepared = prepared
        self._site = site
        self._told = told
        self._who: Submitter = submitter()
        self._attempt = handle.run.restart_count + 1
        self._logins: dict[str, str] = {}

    def go(self) -> None:
        """Bring, start, and tell the agents what their tasks are. Everything is undone by the engine's `stop`."""
        done = threading.Event()
        bringing = Bringing(self._plan, self._handle.key, self._found, self._site, self._told)
        beating = threading.Thread(target=bringing.keep_claims, args=(done,), daemon=True)
        beating.start()
        try:
            trees = bringing.trees()
            self._bring_and_open(bringing, trees)
            self._await("hello", "did not start the run's agent", _HELLO_S)
        finally:
            done.set()
            beating.join(_LAST_BEAT_S)  # a sign of life after the end would be left
        self._begin(trees)

    def _bring_and_open(self, bringing: Bringing, trees: Mapping[str, Tree]) -> None:
        """Have everything there, and a container on each node. A node that stops answering meanwhile is lost."""
        self._handle.empty = bringing.empty
        try:
            volumes = bringing.bring(trees, self._prepared)
            home = self._home()
            layout = node_tasks(self._plan, self._site.snapshots, shared=self._site.shares)
            at_once(lambda index: self._open(index, layout[index], volumes[index], home), self._indices)
            # Nobody takes away what a container has, so this is the time to see that it has it. Agents start meanwhile.
            bringing.require_claims()
            bringing.require_trees(trees, volumes)
        except (NodeLost, TargetRefused):
            raise
        except TargetError as error:
            is_refusal = isinstance(error.__cause__, RefusalError)
            if is_refusal or self._site.images.address in error.message:  # which is this machine's own engine
                raise
            raise NodeLost(f"a node was lost while the run was brought there: {error.message}", error.hint) from error

    @property
    def _indices(self) -> list[int]:
        return list(range(len(self._found.nodes)))

    @property
    def _links(self) -> list[NodeLink]:
        return [self._handle.links[index] for index in sorted(self._handle.links)]

    # Containers.

    def _home(self) -> Home:
        tasks = node_tasks(self._plan, self._site.snapshots)
        home = Home.of(self._run, [(*node.tasks, f"node-{node.index}")[0] for node in tasks])
        home.reserve([task.name for task in self._plan.all_tasks])
        return home

    def _open(self, index: int, tasks: NodeTasks, volumes: Mapping[str, str], home: Home) -> None:
        """Make and start a node's container, and begin to hear its agent."""
        node = self._found.nodes[index]
        place = Place(
            index,
            self._gpus(index),
            tuple((volume, f"{TREES}/{digest}") for digest, volume in sorted(volumes.items())),
            tuple((path, True) for path in self._site.target.shared if os.path.isdir(path)),
        )
        labels = node_labels(self._handle.key, self._attempt, place)
        body = body_of(
            self._plan,
            self._run,
            self._prepared,
            place,
            labels=labels,
            who=self._who,
            environ=self._site.environ,
            options=node.options,
        )
        with explained(node.api, self._plan, self._prepared):
            container = self._create(node.api, name_of(self._handle.key, self._attempt, index), body)
            bundle = self._put_files(node, container)
            node.api.start(container)
        noted = replace(
            tasks,
            name=node.definition.name,
            address=node.node.address,
            container=container,
            python=self._prepared.python or "python3",
        )
        target = self._site.target
        link = NodeLink(
            node.api,
            noted,
            home,
            target.node_lost_s,
            target.merge_interval_s,
            port_count=self._ports_needed(index),
            bundle=bundle,
        )
        self._handle.links[index] = link
        link.open()

    def _create(self, api: DockerApi, name: str, body: Mapping[str, Any]) -> str:
        """Make a container. One that has its name was ordered by a supervisor that died, and made late: it goes."""
        deadline = time.monotonic() + _TAKEN_S
        while True:
            try:
                return api.create(name, body)
            except RefusalError as error:
                if error.status != HTTPStatus.CONFLICT or time.monotonic() >= deadline:
                    raise
            own = {label: self._handle.key.labels[label] for label in ("tfjob.run", "tfjob.workspace")}
            for one in api.with_labels(own):
                if f"/{name}" in one["Names"]:
                    with suppress(RefusalError):  # somebody else is removing it
                        api.remove(one["Id"])
            time.sleep(_LOOK_S)  # an engine has the name before it shows the container

    def _gpus(self, index: int) -> tuple[Gpu, ...]:
        return tuple(gpu for gpu in self._found.nodes[index].node.gpus if gpu.index in self._found.gpus[index])

    def _put_files(self, node: Reached, container: str) -> bytes:
        """Put into a container what its agent needs; returns what the agent itself is to make of that."""
        is_root = not self._who.uid or "rootless" in node.options
        has_outputs = self._attempt > 1 and self._run.outputs.is_dir()
        if is_root and not has_outputs:
            return bundle_of(self._run)
        accounts: list[tuple[str, str]] = []
        if not is_root:
            passwd, self._logins[node.definition.name] = self._who.login(_text(node.api, container, "/etc/passwd"))
            accounts = [("passwd", passwd), ("group", self._who.group(_text(node.api, container, "/etc/group")))]
        node.api.put(container, "/", archive_of(self._run, self._who, node.options, accounts))
        if has_outputs:
            owner = (0, 0) if "rootless" in node.options else (self._who.uid, self._who.gid)
            outputs, place = archive(tree_of_outputs(str(self._run.outputs)), owner), str(inside(self._run).outputs)
            put = partial(node.api.put, container, place, timeout_s=_PATIENT_S)
            broadcast(outputs, [put], lambda: self._told(""))  # which hears of a cancel on the way
        return b""

    def _ports_needed(self, index: int) -> int:
        """Ports for the node's tasks, and one for its sshd; never none, so that a node that has been heard has ports."""
        return 1 + sum(1 for task in self._plan.tasks if task.node == index and task.port)

    # Tasks.

    def _begin(self, trees: Mapping[str, Tree]) -> None:
        """Bind every task to what the nodes said, tell the nodes, and start the tasks when all nodes are ready."""
        plan, links = self._plan, self._links
        doors = [Door(link.node.address, link.ports[0], self._user_on(link.node.index)) for link in links]
        allocation = replace(self._allocation, gpus=_numbered_from_zero(self._allocation, plan), ports=self._ports())
        files = task_files(
            plan,
            inside(self._run),
            allocation,
            {**self._prepared.values, **self._values()},
            entrypoint=entrypoint_of(self._prepared),
            more={"umask": 0o022},
        )
        over_ssh = plan.launcher is not None and len(links) > 1
        keys = self._keys(doors) if over_ssh else [{} for _ in links]
        write_notes(self._run, self._attempt, self._notes(), self._prepared.python or "python3")
        for link, ssh in zip(links, keys, strict=True):
            link.tell(
                "prepare",
                tasks={name: files[name] for name in link.node.tasks},
                datasets=[one for task in link.node.tasks for one in self._datasets(task, trees)],
                named=list(plan.output_directories),
                files={path: [text, mode] for path, (text, mode) in ssh.items()},
            )
        self._await("ready prepare", "could not prepare its tasks")  # which copies code and data, however much there is
        if over_ssh:
            for link, door in zip(links, doors, strict=True):
                link.tell("sshd", port=door.port, config=f"{inside(self._run).path}/ssh/sshd_config")
            self._await("ready sshd", "did not start its SSH server", plan.limits.rendezvous_timeout_s)
        for link in links:
            started = [task.name for task in plan.started_tasks if task.node == link.node.index]
            if started:
                link.tell("start", tasks=started)

    def _ports(self) -> dict[str, int]:
        """The ports of the tasks that need one: free on the node where the task is. The first of each node is its sshd's."""
        found = {}
        for link in self._links:
            free = iter(link.ports[1:])
            found.update(
                {task.port: next(free) for task in self._plan.tasks if task.port and task.node == link.node.index}
            )
        return found

    def _values(self) -> dict[str, str]:
        subnets = dict.fromkeys(link.subnet or f"{link.node.address}/32" for link in self._links)
        return {
            **{f"node.{link.node.index}.interface": link.interface for link in self._links},
            "mpi.subnets": ",".join(subnets),
        }

    def _user_on(self, index: int) -> str:
        node = self._found.nodes[index]
        return self._logins.get(node.definition.name, "root")

    def _keys(self, doors: Sequence[Door]) -> list[dict[str, tuple[str, int]]]:
        return ssh_files(inside(self._run), doors, self._prepared.values.get("environment.path", os.defpath))

    def _notes(self) -> list[NodeNote]:
        return [
            NodeNote(
                link.node.index,
                link.node.name,
                link.node.address,
                link.node.container,
                self._found.gpus[link.node.index],
            )
            for link in self._links
        ]

    def _datasets(self, task: str, trees: Mapping[str, Tree]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for dataset in self._plan.datasets:
            at = f"{task}/{dataset.name}" if dataset.mode == "download" else dataset.name
            tree = trees.get(f"dataset {dataset.name}")
            if tree is not None:
                found.append({"at": at, "mode": dataset.mode, "tree": f"{TREES}/{tree.digest}"})
            else:
                found.append(
                    {"at": at, "mode": dataset.mode, "links": [[source, name] for source, name, _ in dataset.files]}
                )
        return found

    def _await(self, what: str, trouble: str, timeout_s: float = float("inf")) -> None:
        """Wait until every node has said something. Raises when one can't, is not heard any more, or does not in time."""
        begun = time.monotonic()
        deadline = begun + timeout_s
        waiting = list(self._links)
        while waiting:
            waiting = [link for link in waiting if not link.said(what)]
            for link in self._links:
                _require_well(link)
            if waiting and time.monotonic() > deadline:
                names = ", ".join(link.node.name for link in waiting)
                raise TargetError(f"{names} {trouble} within {timeout_s:g} s", "Look at the machine: is it overloaded?")
            if waiting:
                waiting[0].wait_for(what, 1, _LOOK_S)
                names = ", ".join(link.node.name for link in waiting)
                self._told(f"starting on {names}" if time.monotonic() - begun > _QUIET_S else "")


def node_tasks(plan: Plan, snapshots: Path, *, shared: Callable[[str], bool] = lambda _path: False) -> list[NodeTasks]:
    """Which tasks each of the plan's nodes has; names, addresses and containers are not known yet."""
    code = ""
    if plan.code is not None and plan.code.file_count:
        code = str(snapshots / plan.code.digest) if shared(str(snapshots)) else f"{TREES}/{plan.code.digest}"
    keep = _to_keep(plan)
    names: list[list[str]] = [[] for _ in range(plan.node_count)]
    for task in plan.all_tasks:
        names[task.node].append(task.name)
    return [NodeTasks(index, "", "", "", tuple(tasks), keep, code, "") for index, tasks in enumerate(names)]


def _to_keep(plan: Plan) -> tuple[str, ...]:
    """The directories of a working copy that are links into outputs: `outputs`, and those to keep that lie in no other."""
    named = dict.fromkeys(map(Path, ("outputs", *plan.keep)))
    return tuple(str(path) for path in named if not any(parent in named for parent in path.parents))


def _require_well(link: NodeLink) -> None:
    if link.ended is not None:
        kind = NodeLost if link.ended.lost else TargetError
        raise kind(f"the run could not be started on {link.node.name}: {link.ended.message}")
    if link.problems:
        problem = link.problems[0]
        if "no sshd" in problem:
            raise PreparationError(
                "the image has no SSH server, by which mpirun starts ranks on other nodes",
                "Install one in the image (Debian and Ubuntu: `apt-get install openssh-server`), or give the packages by "
                "`conda_file` and the image as `base`: then it is added.",
            )
        raise PreparationError(f"{link.node.name}: {problem}", MAKE_ROOM if is_full(problem) else "")


def _numbered_from_zero(allocation: Allocation, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Each task's GPUs as they are numbered in its node's container, which has those of all the node's tasks."""
    found = {}
    for index in range(plan.node_count):
        tasks = [task.name for task in plan.tasks if task.node == index]
        there = sorted({gpu for name in tasks for gpu in allocation.gpus.get(name, ())})
        found.update({name: tuple(there.index(gpu) for gpu in allocation.gpus.get(name, ())) for name in tasks})
    return found


def _text(api: DockerApi, container: str, path: str) -> str:
    try:
        archive = api.file(container, path)
    except RefusalError:  # it has none
        return ""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = next((tar.extractfile(one) for one in tar if one.isfile()), None)
        return member.read().decode(errors="replace") if member else ""
