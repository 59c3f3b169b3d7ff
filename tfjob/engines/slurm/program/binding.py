"""What a gang's tasks are told of the nodes that Slurm gave. Pure; standard library only; any Python from 3.8; no tfjob."""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = re.compile("\0([^\0]*)\0")  # how the plan's late expressions stand in gang.json


def values_of(
    gang: dict[str, Any],
    number: int,
    nodes: list[dict[str, str]],
    hellos: dict[int, dict[str, str]],
    ports: dict[str, int],
) -> dict[str, str]:
    """What attempt `number` of a gang has in the place of the plan's late expressions, by their names."""
    values = {"restart.count": str(number)}
    for index, node in enumerate(nodes):
        # mpirun knows the nodes of an allocation by their names.
        values[f"node.{index}.name"] = node["name"]
        values[f"node.{index}.address"] = host(hellos[index]) if gang["launcher"] else node["address"]
    values.update(("port." + name, str(port)) for name, port in ports.items())
    values.update(("gpus." + name, gpus) for name, gpus in shares(gang, hellos).items())
    values["environment.path"] = search_path(gang, hellos)
    return values


def shares(gang: dict[str, Any], hellos: dict[int, dict[str, str]]) -> dict[str, str]:
    """Which of its node's GPUs each task sees: ranks all of them, the others each its own part."""
    found = {}
    given: dict[int, int] = {}
    for task in gang["tasks"]:
        gpus = [gpu for gpu in hellos[task["node"]]["gpus"].split(",") if gpu]
        if not task["launched"]:
            first = given.get(task["node"], 0)
            given[task["node"]] = first + task["gpus"]
            gpus = gpus[first : first + task["gpus"]]
        found[task["name"]] = ",".join(gpus)
    return found


def bind(task: dict[str, Any], values: dict[str, str]) -> dict[str, Any]:
    """A task's file for its entrypoint, with all that was late."""
    argv = [fill(argument, values) for argument in task["file"]["argv"]]
    env = {name: fill(value, values) for name, value in task["file"]["env"].items()}
    return dict(task["file"], argv=argv, env=env)


def adapt(task: dict[str, Any], bound: dict[str, Any], attempt: str) -> None:
    """What is different for mpirun and its ranks in containers: see launching.py. mpirun gets no variables of Slurm's there."""
    if task["launcher"]:
        bound["env"]["PATH"] += ":" + os.path.join(attempt, "launch")
    if task["launched"]:
        bound["env"].setdefault("SLURM_JOB_ID", os.environ.get("SLURM_JOB_ID", ""))


def fill(text: str, values: dict[str, str]) -> str:
    """A text of gang.json with what is known now in the place of its names."""
    return NAME.sub(lambda match: values[match.group(1)], text)


def search_path(gang: dict[str, Any], hellos: dict[int, dict[str, str]]) -> str:
    """The PATH of tasks: the environment's programs, and those of the job, or of the image as it was looked into or is."""
    container = gang["container"]
    path = (container["path"] or hellos[0].get("path")) if container else os.environ.get("PATH")
    return ":".join([*gang["path"], path or os.defpath])


def host(hello: dict[str, str]) -> str:
    """A node as mpirun shall call it: in an allocation as Slurm does; in a container it knows its own host name alone."""
    return hello.get("host") or hello["name"]
