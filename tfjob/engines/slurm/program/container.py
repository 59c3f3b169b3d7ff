"""The program on a node of a Slurm job whose tasks run in a container. Standard library only; any Python from 3.8; no tfjob.

    python -E -s -S start.py container RUN_DIRECTORY ATTEMPT_DIRECTORY WORD      started by step.py in the place of node.py

It chooses the site's container runtime as this node has it, sees to it that the image is there, and runs node.py, with all
the node's tasks, in one container. Its own input and output are the container's: batch.py talks with node.py as ever. When
node.py has ended, no container of this attempt is left; one of an earlier attempt is removed before.

Runtimes' commands may hang: none is waited for without a limit. Slurm kills whatever it finds, also the command that removes a
container; what nobody removed ends by itself, because node.py in it hears nothing more, and the next attempt removes its name.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tfjob.engines.slurm.program import image, runtimes
    from tfjob.engines.slurm.program.image import Trouble
else:  # they lie beside this file
    import image
    import runtimes
    from image import Trouble

PATIENCE_S = 30.0  # for a runtime's command that only asks or removes
LAST_WORDS = 3
SAY_S = 5.0  # less than batch.py waits for a node that says nothing
WORD_BYTES = 600
TICK_S = 0.05
STARTERS = ("apptainer", "singularity")  # whose directories they are in
NAME = re.compile(r"tfjob-.+-(\d+)\.(\d+)-\d+")  # of a container: run, job, attempt and node


class Container:
    """The container of one attempt on this node."""

    def __init__(self, run: str, attempt: str, word: str) -> None:
        self.run, self.attempt, self.word = run, attempt, word
        with open(os.path.join(run, "slurm", "gang.json"), encoding="utf-8") as file:
            gang: dict[str, Any] = json.load(file)
        self.spec: dict[str, Any] = gang["container"]
        self.index = int(os.environ["SLURM_NODEID"])
        self.name = "tfjob-{}-{}-{}".format(gang["run"], word, self.index)
        self.environ = environment(os.environ)
        self.errors = os.path.join(attempt, f"container-{self.index}.log")
        self.doing = ""
        self.is_given_up = False  # nothing is prepared any more
        self.is_clearing = False  # what it made is removed
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # By its settings Slurm signals every process of a step or the first alone (cgroup.conf(5),
            # SignalChildrenProcesses): this one says it too. The container ends in batch.py's order.
            signal.signal(number, lambda number, _: self.on_signal(int(number)))

    def go(self) -> int:
        """Run node.py in the container and clear up after it."""
        scratch = ""
        try:
            threading.Thread(target=self.keep_saying, daemon=True).start()
            runtime, program = self.choose()
            self.refuse_what_it_lacks(runtime)
            self.remove_earlier(runtime, program)
            what = self.images(runtime, program).make_ready()
            if runtime == "pyxis":
                try:
                    what = self.images(runtime, program).unpack(what, self.name)
                except Trouble:
                    self.is_clearing = True
                    self.remove(runtime, program, self.name)  # what there is of it
                    raise
            if runtime == "apptainer" and self.unpacks(program):
                scratch = tempfile.mkdtemp(prefix=image.unpacked_prefix())  # see image.remove_unpacked
                what = self.images(runtime, program).lay_out(what, os.path.join(scratch, "root"))
            argv, environ = runtimes.command(runtime, self.start_of(runtime, program, what))
            self.doing = ""
            where = "/" if runtime == "apptainer" else None  # it would mount the directory that it is started in
            with open(self.errors, "wb") as errors:
                container = subprocess.Popen(argv, env=environ, stderr=errors, cwd=where)
        except Exception as error:  # whatever it is: a program that dies would look like a lost node
            if not isinstance(error, (Trouble, ValueError, OSError)):
                traceback.print_exc()
            self.is_clearing = bool(scratch)
            image.remove_tree(scratch)
            self.doing, self.is_clearing = "", False
            if not self.is_given_up:  # batch.py knows why it is
                self.say(broken=f"{os.uname().nodename}: {str(error) or type(error).__name__}")
            return 0  # batch.py ends the step, in its order
        code = container.wait()
        self.is_clearing = True
        self.remove(runtime, program, self.name)
        image.remove_tree(scratch)
        if code != 0 and not os.path.exists(os.path.join(self.attempt, f"container-{self.index}.started")):
            self.say(broken="{}: {} could not run the container: {}".format(*self.node_and(runtime), self.last_words()))
            return 0
        return 0 if code == 0 else 1

    def on_signal(self, number: int) -> None:
        """Let batch.py know. What is being prepared is given up: Slurm leaves little time."""
        self.is_given_up = self.is_given_up or number != signal.SIGHUP
        self.write(signal=number)

    def check(self) -> None:
        """Raise Trouble where nobody wants the container any more: after a signal, or when batch.py has closed this one's input."""
        ears = select.poll()
        ears.register(0, 0)  # an end of file alone: what was said before is for node.py
        if any(event & select.POLLHUP for _, event in ears.poll(0)):
            self.is_given_up = True
        if self.is_given_up:
            raise Trouble("it was given up")

    def node_and(self, runtime: str) -> tuple[str, str]:
        """The node's name and the runtime's, for messages."""
        return os.uname().nodename, runtimes.CALLED[runtime]

    def choose(self) -> tuple[str, str]:
        """The runtime that the target names, or the first that this node has; and its program's path."""
        asked = self.spec["runtime"]
        for runtime in runtimes.ORDER if asked == "auto" else (asked,):
            for name in runtimes.PROGRAMS[runtime]:
                program = shutil.which(name, path=self.environ.get("PATH"))
                if program and self.suits(runtime, program, is_asked=asked != "auto"):
                    return runtime, program
        if asked != "auto":
            raise Trouble(f"it has no {runtimes.PROGRAMS[asked][0]}, which the target names as its runtime")
        raise Trouble("it has no container runtime: neither enroot (Pyxis), Apptainer, Podman nor a Docker Engine")

    def images(self, runtime: str, program: str) -> image.Images:
        """The images of the runtime on this node."""
        return image.Images(runtime, program, spec=self.spec, environ=self.environ, tell=self.tell, check=self.check)

    def answers(self, program: str) -> bool:
        """Whether a Docker Engine answers the user of this job."""
        return image.ask([program, "version", "--format={{.Server.Version}}"], self.environ) is not None

    def refuse_what_it_lacks(self, runtime: str) -> None:
        """Raise Trouble for arguments of `docker run` that this runtime has nothing for."""
        others = self.spec["only_docker"]
        if others and runtime not in ("podman", "docker"):
            raise Trouble(
                "{} has nothing for compute.docker_args {}".format(runtimes.CALLED[runtime], " ".join(others))
            )

    def suits(self, runtime: str, program: str, *, is_asked: bool) -> bool:
        """Whether a runtime can be taken. Raises Trouble for an Apptainer that is asked for and would run what values hold."""
        if runtime == "docker":
            return is_asked or self.answers(program)
        version = (image.ask([program, "--version"], self.environ) or "").strip() if runtime == "apptainer" else ""
        is_too_old = runtimes.is_too_old(version)
        if is_too_old and is_asked:
            raise Trouble(f"it has {version}: Apptainer 1.1 or SingularityCE 3.10 is the oldest that can be used")
        return not is_too_old

    def unpacks(self, program: str) -> bool:
        """Whether Apptainer has to unpack the image for this run.

        For a user without privileges it mounts the image by programs beside the tasks (squashfuse, fuse-overlayfs), unless it
        has a starter with more rights. When they end the tasks have no files. A Slurm that signals every process of a step
        ends them so, before the tasks had their grace.
        """
        if os.getuid() == 0:
            return False
        programs = (image.ask([program, "buildcfg", "LIBEXECDIR"], self.environ) or "").strip()
        if any(os.path.exists(os.path.join(programs, name, "bin", "starter-suid")) for name in STARTERS):
            return False
        return signals_all(image.ask(["scontrol", "show", "config"], self.environ) or "")

    def start_of(self, runtime: str, program: str, what: str) -> runtimes.Start:
        """All that the runtime is told."""
        is_user = False
        gpus = runtimes.gpus_of(self.environ)
        if runtime == "docker" and self.spec["user"]["uid"]:
            said = image.ask([program, "info", "--format={{.SecurityOptions}}"], self.environ) or ""
            is_user = "rootless" not in said
        inner = [*self.spec["python"], os.path.join(self.run, "slurm", "program", "start.py"), "node"]
        return runtimes.Start(
            self.spec,
            program=program,
            image=what,
            name=self.name,
            run=self.run,
            inner=[*inner, self.run, self.attempt, self.word, own_umask()],
            environ=self.environ,
            gpus=gpus,
            devices=runtimes.devices(gpus) if runtime == "podman" else [],
            is_user=is_user,
        )

    def remove_earlier(self, runtime: str, program: str) -> None:
        """Remove what was left on this node: its node was lost, or Slurm killed all at once."""
        if runtime in ("pyxis", "apptainer"):
            image.remove_unpacked()
        if runtime == "pyxis":
            listed = image.ask([program, "list"], self.environ)
        elif runtime == "podman":
            listed = image.ask([program, "ps", "--all", "--format={{.Names}}"], self.environ)
        elif runtime == "docker":  # an engine has containers of several users: only this run's are known to be over
            label = f"--filter=label={runtimes.LABEL}={self.run}"
            listed = image.ask([program, "ps", "--all", "--format={{.Names}}", label], self.environ)
        else:
            return  # Apptainer has no list of containers
        for name in self.left((listed or "").split()):
            self.remove(runtime, program, name)

    def left(self, names: list[str]) -> list[str]:
        """Those of this user's containers that are of an earlier attempt of this job, or of a job that is over."""
        own_job, own_attempt = self.word.split(".")
        found = {name: match.groups() for name in names for match in [NAME.fullmatch(name)] if match}
        earlier = [name for name, (job, attempt) in found.items() if job == own_job and int(attempt) < int(own_attempt)]
        others = [name for name, (job, _) in found.items() if job != own_job]
        queue = image.ask(["squeue", "--noheader", "--me", "--format=%A"], self.environ) if others else None
        running = (queue or "").split()
        return earlier + [name for name in others if queue is not None and found[name][0] not in running]

    def remove(self, runtime: str, program: str, name: str) -> None:
        """Remove a container; one that has gone by itself is no error.

        `--rm` has removed it already, or is about to: Podman's clearing up goes on after its command has ended.
        """
        if runtime == "pyxis":
            image.ask([program, "remove", "--force", name], self.environ)
        if runtime not in ("podman", "docker"):
            return
        until = time.monotonic() + PATIENCE_S
        while (
            image.ask([program, "container", "inspect", "--format={{.State.Status}}", name], self.environ) is not None
        ):
            image.ask([program, "rm", "--force", name], self.environ)
            if time.monotonic() > until:
                break
            time.sleep(TICK_S)

    def last_words(self) -> str:
        """What the runtime said last."""
        try:
            with open(self.errors, encoding="utf-8", errors="replace") as file:
                lines = [line.strip() for line in file if line.strip()]
        except OSError:
            lines = []
        return "; ".join(lines[-LAST_WORDS:]) or "it did not say why"

    def tell(self, doing: str) -> None:
        """Let people know what takes so long."""
        self.doing = doing
        self.say(preparing=f"{os.uname().nodename}: {doing}")

    def keep_saying(self) -> None:
        """Say it again and again: batch.py waits as long as something happens."""
        while True:
            time.sleep(SAY_S)
            if self.is_clearing or (self.is_given_up and self.doing):
                self.say(clearing=f"{os.uname().nodename}: clears up")
            elif self.doing:
                self.say(preparing=f"{os.uname().nodename}: {self.doing}")

    def say(self, **word: str) -> None:
        """One line of text to batch.py."""
        self.write(**{name: text.encode("ascii", "replace").decode()[:WORD_BYTES] for name, text in word.items()})

    def write(self, **word: Any) -> None:
        """One line to batch.py."""
        try:
            os.write(1, json.dumps(dict(word, node=self.index)).encode() + b"\n")
        except OSError:
            pass


def signals_all(config: str) -> bool:
    """Whether Slurm signals every process of a step, by what `scontrol show config` says; not where that says nothing.

    Sources: slurm.conf(5), ProctrackType; cgroup.conf(5), SignalChildrenProcesses.
    """
    found = dict(re.findall(r"^\s*(\w+)\s*=\s*(\S+)", config, re.MULTILINE))
    tracking = found.get("ProctrackType", "proctrack/cgroup")
    return tracking != "proctrack/cgroup" or found.get("SignalChildrenProcesses") == "yes"


def own_umask() -> str:
    """This process's umask, which is what the job was submitted with, in octal."""
    umask = os.umask(0o077)
    os.umask(umask)
    return f"{umask:o}"


def environment(environ: Any) -> dict[str, str]:
    """The variables for the runtimes' own commands. A session's directory that this node does not have stops Podman."""
    found = dict(environ)
    if not os.access(found.get("XDG_RUNTIME_DIR", "/"), os.W_OK):
        found.pop("XDG_RUNTIME_DIR", None)
    return found
