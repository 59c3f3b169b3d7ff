"""Working copies of the code for an attempt that follows another, as tfjob/runs/working.py makes those of the first.

Standard library only; any Python from 3.8; imports nothing of tfjob.
"""

from __future__ import annotations

import os
import shutil
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def renew_work(run: str, gang: dict[str, Any], number: int) -> None:
    """Put the working copies of attempt `number` - 1 away, and make new ones. Can be done again after it was interrupted.

    Processes of that attempt on a node that is cut off keep theirs: it has another name, and is the same directory.
    """
    work, kept = os.path.join(run, "work"), os.path.join(run, "attempts", str(number), "work")
    if os.path.isdir(work) and not os.path.exists(kept):
        os.makedirs(os.path.dirname(kept), exist_ok=True)
        os.rename(work, kept)
    for task in gang["tasks"]:
        make_work(task["file"]["cwd"], None if task["launcher"] else gang["work"])


def make_work(at: str, wanted: dict[str, Any] | None) -> None:
    """One working copy, with the links to what is kept in it; None: an empty directory."""
    shutil.rmtree(at, ignore_errors=True)
    if wanted is None or wanted["code"] is None:
        os.makedirs(at)
    else:
        shutil.copytree(os.path.realpath(wanted["code"]), at, symlinks=True, copy_function=copy_writable)
        for parent, _, _ in os.walk(at):  # what is kept for several runs has directories that can't be written
            os.chmod(parent, stat.S_IMODE(os.stat(parent).st_mode) | stat.S_IRWXU)
    for name, target in wanted["links"] if wanted else ():
        link(os.path.join(at, name), target)


def link(at: str, target: str) -> None:
    """Make `at` a link to the directory `target`, which gets what is in its way."""
    os.makedirs(target, exist_ok=True)
    if os.path.isdir(at) and not os.path.islink(at):
        shutil.copytree(at, target, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(at)
    elif os.path.lexists(at):
        os.unlink(at)
    os.makedirs(os.path.dirname(at), exist_ok=True)
    os.symlink(target, at)


def copy_writable(source: str, target: str) -> None:
    """Copy a file with its times, its owner's to write."""
    shutil.copyfile(source, target)
    status = os.stat(source)
    os.chmod(target, stat.S_IMODE(status.st_mode) | stat.S_IWUSR)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
