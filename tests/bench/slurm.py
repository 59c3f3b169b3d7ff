"""What a job of tfjob's takes from sbatch to its first line, against the same job by a hand-written script.

Needs root, and Slurm's packages of Debian: it runs on the project's own virtual nodes. Both jobs run one and the same script
by one and the same Python on two nodes; its first line is the time. A B B A …, the median of the pairs' ratios, where Slurm
schedules at once. As it is installed, Slurm lets a job wait up to three seconds before it looks at it (slurm.conf(5),
batch_sched_delay): that is the second line, whose ratio is of the medians, as chance says which job of a pair waits longer.
Ends with exit code 1 when the goal is missed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.slurm import Slurm  # noqa: TC002  # it is no third party's
from engines.engine_bench import Bench, plan, task
from slurm_parts import slurm_in_use
from support import eventually

from tfjob.engines.base import Prepared
from tfjob.engines.slurm.engine import SlurmEngine
from tfjob.rundir import RunDirectory
from tfjob.targets.definition import SlurmDefinition

PAIRS = 15
PAIRS_AS_INSTALLED = 5
GOAL = 1.1
NODES = 2
PATH = "/usr/bin:/bin"  # of both jobs: no version manager's wrapper around python3
BY_HAND = """\
#!/bin/bash
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --partition=gpu
#SBATCH --output={directory}/job.log
srun --output={directory}/%t.log python3 {directory}/train.py
"""
TRAIN = "import time\nprint(time.time(), flush=True)\n"


def by_hand(slurm: Slurm, directory: Path) -> float:
    """Seconds from sbatch to the last rank's first line, by a script as people write it."""
    directory.mkdir()
    script = directory / "job.sh"
    script.write_text(BY_HAND.format(nodes=NODES, directory=directory))
    (directory / "train.py").write_text(TRAIN)
    begun = time.time()
    slurm.run("sbatch", f"--export=PATH={PATH}", str(script))
    return first_lines([directory / f"{rank}.log" for rank in range(NODES)]) - begun


def by_tfjob(slurm: Slurm, directory: Path) -> float:
    """The same by the script that tfjob makes, with a log, reports and a working directory for every rank."""
    engine = SlurmEngine(
        environ={**slurm.environ, "PATH": f"{slurm.programs}:{PATH}"}, cache=directory.parent / "cache"
    )
    target = SlurmDefinition("lab", partition="gpu")
    tasks = tuple(replace(task("python3", "train.py", name=f"main-{node}"), node=node) for node in range(NODES))
    made = replace(plan(*tasks, slurm=target), node_count=NODES)
    run = RunDirectory(directory)
    values = {"environment.path": PATH}
    Bench.make(engine, run, made, Prepared(None, values))
    for one in tasks:
        (run.work(one.name) / "train.py").write_text(TRAIN)
    engine.keep(made, run, Prepared(None, values))
    begun = time.time()
    slurm.run("sbatch", f"--export=PATH={PATH}", str(run.path / "slurm" / "job.sh"))
    return first_lines([run.log(one.name) for one in tasks]) - begun


def first_lines(logs: list[Path]) -> float:
    """When the last of the logs got its first line, as that line itself says."""

    def line(log: Path) -> float:
        return float(eventually(lambda: log.exists() and log.read_text(), str(log)))

    return max(map(line, logs))


@contextmanager
def as_installed(slurm: Slurm) -> Iterator[Slurm]:
    """The scheduler with the settings it comes with, not with those of the tests, which schedule at once (slurm.conf(5))."""
    usual = replace(slurm, options={"SchedulerParameters": ""})
    usual._write()
    slurm.run("scontrol", "reconfigure")
    try:
        yield usual
    finally:
        slurm._write()
        slurm.run("scontrol", "reconfigure")


def settled(slurm: Slurm) -> None:
    """Wait until no job is left, not even one that is completing: it would be in the next one's way."""
    eventually(lambda: not slurm.run("squeue", "-h"), "the end of all jobs")
    eventually(lambda: all(slurm.states()[node.name] == "idle" for node in slurm.nodes), "idle nodes")


def measure(slurm: Slurm, directory: Path, count: int) -> tuple[float, float, float]:
    """Medians of both in seconds, and of the pairs' ratios."""
    pairs = []
    for number in range(count + 1):
        times = []
        for how in (by_tfjob, by_hand) if number % 2 else (by_hand, by_tfjob):
            settled(slurm)
            times.append(how(slurm, directory / f"{how.__name__}-{uuid4().hex[:6]}"))
        if number:  # the first warms up
            pairs.append((times[0], times[1]) if number % 2 else (times[1], times[0]))
    settled(slurm)
    ours, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
    return ours, theirs, statistics.median(our / their for our, their in pairs)


def main() -> int:
    """Measure, and print the table."""
    print("| what | tfjob, s | by hand, s | ratio | goal |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory, slurm_in_use() as quick:
        ours, theirs, ratio = measure(quick, Path(directory), PAIRS)
        told = f"sbatch to the first line, {NODES} nodes"
        print(f"| {told} | {ours:.2f} | {theirs:.2f} | {ratio:.2f} | ≤ {GOAL} |", flush=True)
        with as_installed(quick) as slurm:
            ours, theirs, _ = measure(slurm, Path(directory), PAIRS_AS_INSTALLED)
        print(f"| the same, Slurm as installed | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} | |", flush=True)
    return 1 if ratio > GOAL else 0


if __name__ == "__main__":
    sys.exit(main())
