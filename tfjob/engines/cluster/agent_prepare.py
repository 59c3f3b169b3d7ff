"""What tasks find in their container before they start: files, datasets, working copies, an SSH server. As plain as the agent."""

from __future__ import annotations

import json
import os
import time

# shutil and subprocess are imported where they are used: neither is on the way to the first line of a script.

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from typing import Any

if TYPE_CHECKING or __package__:
    from tfjob.engines.cluster.agent_system import copy_tree, link, place_files
else:  # in a container: it lies beside this file
    from agent_system import copy_tree, link, place_files

SSHD_S = 20.0


def make_directories(run: str, named: list[str]) -> None:
    """Make what a run's directory has in it, and its named outputs."""
    for name in ("outputs", "logs", "logs/user", "datasets", *("outputs/" + one for one in named)):
        os.makedirs(os.path.join(run, name), exist_ok=True)


def write_files(run: str, files: dict[str, list[Any]]) -> None:
    """Write files of the run, each as (text, mode)."""
    for path, (text, mode) in files.items():
        descriptor = os.open(os.path.join(run, path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)


def write_task(run: str, task: str, content: Any) -> None:
    """Write what the task's entrypoint is to do."""
    directory = os.path.join(run, "tasks", task)
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "task.json"), "w", encoding="utf-8") as file:
        json.dump(content, file)


def place_dataset(run: str, dataset: dict[str, Any]) -> None:
    """Put a dataset where its tasks look for it: a link to it, or a copy of their own."""
    at = os.path.join(run, "datasets", dataset["at"])
    os.makedirs(os.path.dirname(at), exist_ok=True)
    if not os.path.lexists(at):
        if "links" in dataset:
            place_files(at, dataset["links"], copy=dataset["mode"] == "download")
        elif dataset["mode"] == "download":
            copy_tree(dataset["tree"], at)
        else:
            os.symlink(dataset["tree"], at)


def make_work(run: str, task: str, code: str, keep: list[str]) -> None:
    """A task's working copy of the code, its directories to keep links into the run's."""
    work = os.path.join(run, "work", task)
    if code and not os.path.isdir(work):
        copy_tree(code, work)
    os.makedirs(work, exist_ok=True)
    link(os.path.join(work, "logs"), os.path.join(run, "logs", "user"))
    for kept in keep:
        outputs = os.path.join(run, "outputs")
        link(os.path.join(work, kept), outputs if kept == "outputs" else os.path.join(outputs, kept))


def start_sshd(run: str, port: int, config: str) -> str:
    """Start the SSH server by which mpirun starts ranks here, and wait until it listens. Returns why that can't be, or nothing."""
    import shutil
    import subprocess

    if TYPE_CHECKING or __package__:
        from tfjob.entrypoint import is_listening
    else:  # it lies beside this file, too
        from entrypoint import is_listening

    if is_listening(port):
        return ""
    program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:" + os.environ.get("PATH", ""))
    if program is None:
        return "the image has no sshd"
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    said = os.path.join(run, "ssh", "sshd.log")
    with open(said, "wb") as log:
        child = subprocess.Popen([program, "-D", "-e", "-f", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    deadline = time.monotonic() + SSHD_S
    while not is_listening(port):
        if child.poll() is not None or time.monotonic() > deadline:
            with open(said, encoding="utf-8", errors="replace") as log_text:
                return "sshd did not start: " + log_text.read()[-500:].strip()
        time.sleep(0.01)
    return ""
