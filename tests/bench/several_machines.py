"""Measures what tfjob promises about several machines, on the test cluster's three nodes, as ratios: the last part of `make bench`.

The peer is what one does by hand, from one shell script: `docker -H ssh://... run` on every node at once; for MPI, containers
with an SSH server, then mpirun in one of them; `docker save | ssh docker load` for images. Both use the same images, nodes and
code, in turn, A B A B ..., after a warm-up; ratios are medians of the pairs' ratios. Nodes by the hundred are simulated.
Ends with exit code 1 when a goal is missed. Arguments choose parts: first-line, training, allocation, shipping.
"""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cluster_parts
import docker_parts
from bench.run import PROGRAM, REPOSITORY
from bench.simulated_engines import SimulatedEngine

from tfjob.dockerapi.api import DockerApi
from tfjob.dockerapi.reach import engine_at
from tfjob.engines.cluster.keys import Door, ssh_files
from tfjob.engines.cluster.leases import RunKey
from tfjob.engines.cluster.nodes import Reaching
from tfjob.engines.cluster.room import find_room
from tfjob.engines.cluster.shipping import send_image
from tfjob.images.environment import packages_on_base
from tfjob.rundir import RunDirectory
from tfjob.submission import prepare
from tfjob.workspace import Workspace, make_workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tfjob.images.environment import ContainerEnvironment

PAIRS = 7
LONG_PAIRS = 3
TRAINING_PAIRS = 7  # single pairs differ by a tenth
MANY, FEW = 512, 64
GPUS = 8
SSH_PORT = 2233
EPOCHS = 150
LINE = "the first line"
SMALL = "humanize==4.{}.0"  # the package that changes
TIMED = """\
import builtins, runpy, sys, time
unstamped = builtins.print
builtins.print = lambda *words, **options: unstamped(f"[{time.monotonic():.4f}]", *words, **options)
runpy.run_path(sys.path[0] + "/train_multiworker.py", run_name="__main__")
"""


class Measured:
    """The table, and how many goals were missed."""

    def __init__(self) -> None:
        self.missed = 0
        print("| what | tfjob | by hand | ratio | goal |")
        print("|---|---|---|---|---|")

    def pairs(self, what: str, unit: str, pairs: list[tuple[float, float]], goal: float, *, more: bool = False) -> None:
        """Print a row: medians of both sides, and of the pairs' ratios. `more`: the ratio is to be as great as the goal."""
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        self._row(what, f"{ours:.2f} {unit}", f"{theirs:.2f} {unit}", ratio, goal, more=more)

    def alone(self, what: str, value: str, ratio: float, goal: float) -> None:
        """Print a row of something that has no peer."""
        self._row(what, value, "", ratio, goal, more=False)

    def _row(self, what: str, ours: str, theirs: str, ratio: float, goal: float, *, more: bool) -> None:
        self.missed += not (ratio >= goal if more else ratio <= goal)
        print(f"| {what} | {ours} | {theirs} | {ratio:.2f} | {'≥' if more else '≤'} {goal:g} |", flush=True)


@dataclass
class Bench:
    """The cluster, and a workspace that knows it."""

    cluster: cluster_parts.Cluster
    host: str
    folder: Path

    @cached_property
    def environ(self) -> dict[str, str]:
        """What tfjob is started with."""
        return {**os.environ, **self.cluster.ssh_environ, "DOCKER_HOST": self.host}

    @cached_property
    def hand(self) -> dict[str, str]:
        """What scripts are started with: an ssh that knows the nodes."""
        programs = self.folder / "bin"
        programs.mkdir()
        (programs / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.cluster.ssh_config} "$@"\n')
        (programs / "ssh").chmod(0o755)
        known = {name: value for name, value in os.environ.items() if name != "DOCKER_HOST"}
        return {**known, "PATH": f"{programs}:{os.environ['PATH']}"}

    @cached_property
    def shared(self) -> Path:
        """Where scripts have on every node what they need, before they begin: code, data and keys."""
        place = self.cluster.shared / "bench"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.digits, place / "digits")
        shutil.copytree(REPOSITORY / "specs" / "data", place / "data")
        shutil.copytree(self.folder / "code", place / "code")
        return place

    @cached_property
    def digits(self) -> Path:
        """The code of the specs, and a program that trains and prints when each line was printed: lines take time to come."""
        place = self.folder / "digits"
        shutil.copytree(REPOSITORY / "specs" / "digits", place)
        (place / "timed.py").write_text(TIMED)
        return place

    @cached_property
    def trained(self) -> ContainerEnvironment:
        """The image with TensorFlow, mpi4py and mpirun, in this machine's engine."""
        return self.image(SMALL.format(9))

    @property
    def workspace(self) -> Workspace:
        """The workspace of the folder."""
        return Workspace(self.folder / ".tfjob")

    def image(self, more: str) -> ContainerEnvironment:
        """Make an image of the specs' environment and one package more."""
        environment = yaml.safe_load((REPOSITORY / "specs" / "environment.yml").read_text(encoding="utf-8"))
        environment["dependencies"][-1]["pip"].append(more)
        (self.folder / "environment.yml").write_text(yaml.safe_dump(environment), encoding="utf-8")
        asked = prepare(
            self.job("image", environment="{conda_file: environment.yml}", command="echo"), workspace=self.workspace
        ).plan.environment
        assert asked is not None
        assert asked.definition is not None
        assert asked.base is not None
        os.environ["DOCKER_HOST"] = self.host
        store, said = self.workspace.config.store, lambda _message: None
        return packages_on_base(
            asked.definition, asked.base, store=store, lock=None, packages="baked", log=said, progress=said
        )

    def job(self, name: str, *, nodes: int = 3, **keys: str) -> Path:
        """Write a job file for all nodes; keys as YAML."""
        lines = [f"name: {name}", f"compute: {{target: docker-lab, node_count: {nodes}}}"]
        file = self.folder / f"{name}.yml"
        file.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in keys.items())]) + "\n")
        return file

    def begin(self) -> None:
        """Make the workspace; the nodes' base image is the one that this machine's engine has."""
        (self.folder / "code").mkdir()
        (self.folder / "code" / "first.py").write_text(f"print({LINE!r}, flush=True)\n")
        (self.folder / "lab.yml").write_text(self.cluster.target())
        self.tfjob("init")
        (self.folder / ".tfjob" / "config.yml").write_text(f"images: {{cpu: '{docker_parts.BASE}'}}\n")
        self.tfjob("compute", "create", "-f", "lab.yml")
        os.chdir(self.folder)

    def tfjob(self, *arguments: str) -> None:
        """Run tfjob to its end."""
        _run([PROGRAM, *arguments], self.folder, self.environ)

    def ours(self, job: Path, *more: str) -> Iterable[tuple[float, str]]:
        """Submit a job; its lines, and when each came."""
        return _lines([PROGRAM, "submit", job.name, *more], self.folder, self.environ)

    def theirs(self, script: str) -> Iterable[tuple[float, str]]:
        """The same of a shell script."""
        return _lines(["bash", "-c", script], self.folder, self.hand)

    def docker(self, index: int) -> str:
        """How docker is called for a node by hand."""
        return f"docker -H {self.cluster.nodes[index].ssh_url}"

    def on_nodes(self, command: str) -> None:
        """Run docker for every node's engine, outside of what is measured."""
        for node in self.cluster.nodes:
            subprocess.run(["docker", "-H", node.docker_host, *command.split()], check=False, capture_output=True)


def main() -> int:
    """Measure what the arguments name, or everything, and print the table."""
    parts: dict[str, Callable[[Bench, Measured], None]] = {
        "first-line": _first_line,
        "training": _training,
        "allocation": _allocation,
        "shipping": _shipping,
    }
    chosen = sys.argv[1:] or list(parts)
    try:
        with (
            tempfile.TemporaryDirectory(dir=docker_parts.CACHE.parent) as directory,
            docker_parts.engine() as engine,
            cluster_parts.cluster_in_use() as cluster,
        ):
            docker_parts.base_image(engine)
            cluster.load_base_image()
            bench = Bench(cluster, engine.host, Path(directory))
            bench.begin()
            measured = Measured()
            for name in chosen:
                parts[name](bench, measured)
    except docker_parts.CannotRunError as reason:
        sys.exit(f"several machines can't be measured here: {reason}")
    return 1 if measured.missed else 0


# From submit to the first line.


def _first_line(bench: Bench, measured: Measured) -> None:
    job = bench.job("first", code="code", script="first.py", environment=f"{{image: '{docker_parts.BASE}'}}")
    mounted = f"--rm --network host -v {bench.shared}:{bench.shared}"
    run = f"run {mounted} -w {bench.shared}/code {docker_parts.BASE} python3 first.py"
    script = " & ".join(f"{bench.docker(index)} {run}" for index in range(3)) + " & wait"
    pairs = _in_turn(lambda: _first(bench.ours(job)), lambda: _first(bench.theirs(script)), PAIRS)
    measured.pairs("first line of a script on 3 nodes", "s", pairs, 1.2)
    job = bench.job(
        "first-mpi",
        code="code",
        script="first.py",
        environment="{conda_file: environment.yml}",
        distribution="{type: mpi, process_count_per_node: 1}",
    )
    image = bench.trained
    bench.tfjob("submit", job.name)  # the image is on the nodes from here on
    script = _mpi_script(bench, image, mounted)

    def by_hand() -> float:
        taken = _first(bench.theirs(script))
        bench.on_nodes("rm -f tfjob-bench")
        return taken

    pairs = _in_turn(lambda: _first(bench.ours(job)), by_hand, PAIRS)
    measured.pairs("first line of an MPI rank on 3 nodes", "s", pairs, 1.2)


def _mpi_script(bench: Bench, image: ContainerEnvironment, mounted: str) -> str:
    """Containers with sshd on all nodes, then mpirun in the first one's; keys and settings are there already."""
    doors = [Door(node.address, SSH_PORT, "root") for node in bench.cluster.nodes]
    place = RunDirectory(bench.shared)
    (bench.shared / "ssh").mkdir(mode=0o700)
    lines = []
    for index, files in enumerate(ssh_files(place, doors, image.path)):
        files[f"ssh/sshd_config.{index}"] = files.pop("ssh/sshd_config")
        for name, (text, mode) in files.items():
            (bench.shared / name).write_text(text)
            (bench.shared / name).chmod(mode)
        sshd = f"mkdir -p /run/sshd; exec /usr/sbin/sshd -D -e -f {bench.shared}/ssh/sshd_config.{index}"
        run = f"run -d --name tfjob-bench {mounted} {image.image} sh -c '{sshd}'"
        lines.append(f"{bench.docker(index)} {run} >/dev/null &")
    lines.append("wait")
    lines += [f"until (exec 3<>/dev/tcp/{door.address}/{door.port}) 2>/dev/null; do sleep 0.02; done" for door in doors]
    settings = {
        "PATH": image.path,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_plm_ssh_args": f"-F {bench.shared}/ssh/config",
        "PRTE_MCA_plm_ssh_no_tree_spawn": "1",
        "PRTE_MCA_prte_if_include": f"{bench.cluster.layout.network}.0/24",
    }
    options = " ".join(f"-e '{name}={value}'" for name, value in settings.items())
    hosts = ",".join(f"{door.address}:1" for door in doors)
    mpirun = f"mpirun -np 3 -H {hosts} --bind-to none -x OPAL_PREFIX {image.python} {bench.shared}/code/first.py"
    lines.append(f"{bench.docker(0)} exec {options} tfjob-bench {mpirun}")
    return "\n".join(lines)


# Training.


def _training(bench: Bench, measured: Measured) -> None:
    """Epochs a second of digits-multiworker, from the second epoch to the last, by the clock of its first worker."""
    image = bench.trained
    values = yaml.safe_load((REPOSITORY / "specs" / "digits-multiworker.yml").read_text(encoding="utf-8"))
    values.update(code=str(bench.digits), script="timed.py", environment={"conda_file": "environment.yml"})
    values["dataset"]["digits"]["paths"] = [str(REPOSITORY / "specs" / "data" / "*.gz")]
    values["compute"] = {"target": "docker-lab", "node_count": 3}
    values["distribution"]["worker_count"] = 3
    values["arguments"] += ["--epochs", EPOCHS]
    job = bench.folder / "digits.yml"
    job.write_text(yaml.safe_dump(values), encoding="utf-8")
    workers = [f"{node.address}:20000" for node in bench.cluster.nodes]
    arguments = " ".join(map(str, values["arguments"][2:]))
    lines = []
    for index in range(3):
        config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        mounted = f"--rm --network host -v {bench.shared}/digits:/code:ro -v {bench.shared}/data:/data:ro"
        variables = f"-e TF_CPP_MIN_LOG_LEVEL=2 -e TF_CONFIG='{json.dumps(config)}'"
        command = f"{image.python} /code/timed.py --data-folder /data {arguments}"
        lines.append(
            f"{bench.docker(index)} run {mounted} {variables} -w /tmp {image.image} {command} | sed -u 's/^/worker-{index} | /' &"
        )
    script = "\n".join([*lines, "wait"])
    pairs = _in_turn(
        lambda: _epochs_a_second(bench.ours(job)), lambda: _epochs_a_second(bench.theirs(script)), TRAINING_PAIRS
    )
    print("pairs:", ", ".join(f"{ours:.2f}/{theirs:.2f}" for ours, theirs in pairs), file=sys.stderr)
    measured.pairs("training of digits-multiworker on 3 nodes", "epochs/s", pairs, 0.99, more=True)


def _epochs_a_second(lines: Iterable[tuple[float, str]]) -> float:
    found = {}
    for _, line in lines:
        if match := re.search(r"worker-0 .*\[([\d.]+)\] epoch (\d+)/", line):
            found[int(match[2])] = float(match[1])
    return (EPOCHS - 2) / (found[EPOCHS] - found[2])


# Many nodes.


def _allocation(bench: Bench, measured: Measured) -> None:
    """Planning, and finding room, for a job that takes all GPUs of so many nodes, each of which answers at once."""
    taken = {count: [_allocate(bench, count) for _ in range(PAIRS + 1)][1:] for count in (FEW, MANY)}
    many = statistics.median(taken[MANY])
    what = f"plan and allocation for {MANY} simulated nodes with {GPUS} GPUs, of 2 s"
    measured.alone(what, f"{many:.2f} s", many / 2, 1)
    few = statistics.median(taken[FEW])
    growth = (many / few) / (MANY / FEW)
    measured.alone(f"its growth from {FEW} nodes ({few:.2f} s), of that of the nodes", "", growth, 1.2)


def _allocate(bench: Bench, count: int) -> float:
    folder = bench.folder / f"many-{count}"
    names = [f"node{index}" for index in range(count)]
    if not folder.exists():
        folder.mkdir()
        nodes = [
            {"name": name, "engine": f"ssh://{name}", "address": f"10.9.{index // 250}.{index % 250 + 1}", "gpus": GPUS}
            for index, name in enumerate(names)
        ]
        (folder / "many.yml").write_text(json.dumps({"name": "many", "kind": "docker", "nodes": nodes}))
        compute = {"target": "many", "node_count": count, "gpus_per_node": GPUS}
        job = {"name": "all", "command": "true", "environment": {"image": "any"}, "compute": compute}
        (folder / "job.yml").write_text(json.dumps({**job, "distribution": {"type": "mpi"}}))
        _run([PROGRAM, "init"], folder, bench.environ)
        _run([PROGRAM, "compute", "create", "-f", "many.yml"], folder, bench.environ)
    workspace, _ = make_workspace(folder)
    engines = {name: DockerApi(SimulatedEngine(name)) for name in names}
    gc.collect()
    begun = time.perf_counter()
    plan = prepare(folder / "job.yml", workspace=workspace).plan
    assert plan.cluster is not None
    reaching = Reaching(plan.cluster, {}, with_gpus=True, engines=engines)
    found = find_room(plan, RunKey("all-1", "workspace", "somebody"), reaching, 60, lambda _message: None)
    allocation = found.allocation(plan)
    taken = time.perf_counter() - begun
    assert len(allocation.gpus) == count * GPUS
    return taken


# Images.


def _shipping(bench: Bench, measured: Measured) -> None:
    """An image to three nodes that have nothing of it, then to three that have it but for one small package."""
    before = bench.trained
    changed = bench.image(SMALL.format(10))
    saved = f"docker -H {bench.host} save {{}} | ssh root@{{}} docker load"

    def by_hand(image: str) -> float:
        script = " & ".join(saved.format(image, node.name) for node in bench.cluster.nodes) + " & wait"
        begun = time.perf_counter()
        _run(["bash", "-o", "pipefail", "-c", script], bench.folder, bench.hand)
        return time.perf_counter() - begun

    def ours(image: ContainerEnvironment) -> float:
        begun = time.perf_counter()
        nodes = [(node.name, engine_at(node.ssh_url, environ=bench.environ)) for node in bench.cluster.nodes]
        send_image(image.image, nodes, DockerApi(bench.host), lambda _message: None, image.bake)
        return time.perf_counter() - begun

    def without(*images: str) -> None:
        for image in images:
            bench.on_nodes(f"image rm -f {image}")

    def cold(send: Callable[[], float]) -> float:
        without(changed.image, before.image, docker_parts.BASE)
        bench.on_nodes("image prune -af")
        return send()

    pair = cold(lambda: by_hand(before.image)), cold(lambda: ours(before))
    measured.pairs("an image to 3 nodes, cold", "s", [pair[::-1]], 1)
    pairs = []
    for _ in range(LONG_PAIRS):
        without(changed.image)
        taken = ours(changed)
        without(changed.image)
        pairs.append((taken, by_hand(changed.image)))
    measured.pairs("an image with one package changed to 3 nodes", "s", pairs, 0.1)
    bench.cluster.load_base_image()


# How things are run.


def _in_turn(ours: Callable[[], float], theirs: Callable[[], float], count: int) -> list[tuple[float, float]]:
    """Both sides, pair by pair; the first pair warms up, where there are many, and does not count."""
    warm_up = count > LONG_PAIRS
    return [(ours(), theirs()) for _ in range(count + warm_up)][warm_up:]


def _first(lines: Iterable[tuple[float, str]]) -> float:
    """When the first line of a script came; the rest is waited for."""
    return next(iter([when for when, line in lines if LINE in line]))


def _lines(command: list[str], folder: Path, environ: dict[str, str]) -> Iterable[tuple[float, str]]:
    """The lines a command prints, with the seconds since it was started."""
    begun = time.perf_counter()
    with (folder / "stderr").open("w+") as said:
        process = subprocess.Popen(
            command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            yield time.perf_counter() - begun, line
        if process.wait():
            said.seek(0)
            sys.exit(f"{' '.join(command)}\n{said.read()[-3000:]}")


def _run(command: list[str], folder: Path, environ: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
