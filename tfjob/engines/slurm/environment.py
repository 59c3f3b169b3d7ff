"""The environment of a run on a cluster that is used from elsewhere: sent there once by its content, and looked at before it is used.

It is a prefix, the archive of an image, or both. What makes them is elsewhere (`tfjob.runs.prepare`, `tfjob.engines.slurm.place`).
"""

from __future__ import annotations

import shlex
import subprocess
import tarfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Final

from tfjob.engines.base import Prepared, Waiting
from tfjob.engines.slurm.kept_there import Kept, KeptThere
from tfjob.engines.slurm.login import Login
from tfjob.environments.prefix import MARKER, read_json
from tfjob.errors import PreparationError, TargetError
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory

__all__ = ["kept_of", "require_python", "send_environment", "there_of"]

_PATIENCE_S: Final = 120.0
"""How long a Python may take to start: its file system may be slow."""
_CHECK: Final = """
import json, os, sys
with open(sys.argv[1]) as file:
    made = json.load(file)
minor = "%d.%d" % sys.version_info[:2]
if made["python"].split(".")[:2] != minor.split("."):
    print("they were made for Python", made["python"], "and find Python", minor)
for name, changed_ns in made["modified_ns"].items():
    if abs(os.stat(os.path.join(os.path.dirname(sys.argv[1]), name)).st_mtime - changed_ns / 1e9) > 1:
        print("something was written to", name)
"""
"""It says what is wrong, and nothing where all is well."""


def kept_of(prepared: Prepared) -> tuple[Kept, ...]:
    """What of an environment is kept on the cluster."""
    prefix = (_prefix(prepared.prefix),) if prepared.prefix is not None else ()
    return (*prefix, *((_image(prepared.image),) if prepared.image is not None else ()))


def there_of(prepared: Prepared, kept: KeptThere) -> Prepared:
    """The environment as the nodes see it: what is mounted comes from where it is kept."""
    if prepared.prefix is None:
        return prepared
    own = str(prepared.prefix)
    mounts = [
        replace(one, source=str(kept.path(_prefix(prepared.prefix)))) if one.source == own else one
        for one in prepared.mounts
    ]
    return replace(prepared, mounts=tuple(mounts))


def send_environment(
    plan: Plan,
    prepared: Prepared,
    missing: Collection[Kept],
    *,
    kept: KeptThere,
    run: RunDirectory,
    environ: Mapping[str, str],
    told: Waiting,
) -> None:
    """Send what is missing of an environment; `run` is the run's directory over there, which holds it.

    Raises PreparationError when it can't be sent, TargetError when the connection breaks, or the Docker Engine here does not answer.
    """
    prefix, image = prepared.prefix, prepared.image
    if prefix is not None and (wanted := _prefix(prefix)) in missing:
        size_bytes = int((read_json(prefix / MARKER) or {}).get("size_bytes", 0))
        kept.send(run, wanted, lambda stream: _pack(prefix, stream), told, what="the packages", size_bytes=size_bytes)
    if image is not None and (wanted := _image(image)) in missing:
        from tfjob.dockerapi.reach import engine_of_tools  # noqa: PLC0415  # only for images that are to be sent
        from tfjob.engines.docker_errors import explained  # noqa: PLC0415  # the same
        from tfjob.engines.slurm.archive import ARCHIVE, saved_image  # noqa: PLC0415  # the same

        with engine_of_tools(environ) as api, explained(api, plan, prepared):
            size_bytes, pieces = saved_image(image, api)
            kept.send(
                run,
                wanted,
                lambda stream: stream.writelines(pieces),
                told,
                what="the image",
                size_bytes=size_bytes,
                file=ARCHIVE,
            )


def require_python(prepared: Prepared, login: Login) -> None:
    """Start the Python of packages that are used without containers, where they are used.

    Raises PreparationError when it does not start, is another than they were made for, or something was installed into them.
    """
    if prepared.prefix is None or prepared.image is not None:
        return
    prefix = prepared.values["environment.prefix"]
    line = shlex.join([f"{prefix}/bin/python3", "-I", "-S", "-c", _CHECK, f"{prefix}/{MARKER}"])
    try:
        done = login.run(line, patience_s=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise TargetError(
            f"the Python of the packages did not start on {login.address} within {_PATIENCE_S:g} s",
            "Is its file system well?",
        ) from None
    where = f"{prefix} on {login.address}"
    said = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode:
        why = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise PreparationError(
            f"the Python of the packages in {where} does not start: {why[0]}",
            "It is a Python of the login node's, which may have been removed: submit the job file again. Packages of a conda "
            "channel bring their own.",
        )
    if said:
        raise PreparationError(
            f"the packages in {where} have changed since they were sent: {said}",
            "Remove that directory, and submit again: they are sent anew.",
        )


def _prefix(path: Path) -> Kept:
    return Kept("prefixes", path.name)


def _image(image: str) -> Kept:
    return Kept("images", image.removeprefix("sha256:"))


def _pack(prefix: Path, stream: IO[bytes]) -> None:
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        tar.add(prefix, ".", filter=_anybodys)


def _anybodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
