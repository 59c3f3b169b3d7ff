"""The program on a login node that keeps there, by content, what runs use. Standard library only; any Python from 3.8.

It comes over its own stdin, with what it is told behind it (see ../kept_there.py); what it says is a line of JSON each.

    hold STORE RUN                  told [[KIND, KEY]]: the run uses these from now on. Says which are missing
    take STORE RUN KIND KEY FORM    takes one, unless it is there: `waits` (another run sends it), `there`, or `ready`, and at the
                                    end `done`. FORM is tar, file=NAME, or tree: told [[name, kind, bytes, SHA-256 or link]]
                                    (kind: "", "x", "l", or "d" for an empty directory), it says which contents are `lacking`
    place STORE RUN                 told [[path, KIND, KEY, "link" or "copy"]], where in the run's directory what is kept goes, and
                                    then the rest of it as tar. Makes the directory, and the tasks' working copies
    release STORE RUN               removes the run's directory, lets go of what it used, and says which trees are `harmed`
    free STORE LIMIT NEEDED         removes what was not used for longest, until LIMIT bytes hold NEEDED more

    STORE/KIND/KEY                  what is kept: whole, or not there
    STORE/KIND/KEY.json             its bytes; the time of this file is when it was used last
    STORE/KIND/KEY.files            what a tree is made of; KEY.harmed is there when something has written to it
    STORE/KIND/.KEY.part-N, .lock   what is coming, and the lock of who takes it
    STORE/objects/ab/SHA256         the files of trees, which are hard links to them; with an x behind it, executable
    STORE/uses/WORKSPACE-RUN        what a run uses: it counts while the run has a directory, and for an hour before it has one

Of a run that begins to use something and another that removes it at least one sees the other: the one says that it uses it
and then looks, the other takes the name away and then looks who uses it.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tfjob.engines.slurm.program import kept, taking
else:
    import kept
    import taking


def hold(store: str, run: str) -> None:
    """Note what a run uses, and say what of that is missing."""
    wanted = taking.Told().all()
    os.makedirs(os.path.join(store, "uses"), exist_ok=True)
    kept.write_json(kept.use_of(store, run), {"run": run, "wanted": wanted})
    missing = []
    for kind, key in wanted:
        if kept.is_there(os.path.join(store, kind, key)):
            kept.note_use(os.path.join(store, kind, key))
        else:
            missing.append([kind, key])
    taking.say(missing=missing)


def place(store: str, run: str) -> None:
    """Make a run's directory, whole or not at all, and then its working copies."""
    part = run + ".part"
    kept.remove(run)
    kept.remove(part)
    os.makedirs(os.path.dirname(run), exist_ok=True)
    os.mkdir(part, 0o700)
    try:
        told = taking.Told()
        placed = told.all()
        taking.unpack(part, told)
        for name, kind, key, how in placed:
            source, target = os.path.join(store, kind, key), os.path.join(part, name)
            os.listdir(source)  # it is there
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if how == "link":
                os.symlink(source, target)
            else:
                copy(source, target)
        os.rename(part, run)
    except BaseException:
        kept.remove(part)
        raise
    make = [os.path.join(run, "slurm", "program", "sending.py"), "make", run]
    done = subprocess.run(
        [sys.executable, "-E", "-s", "-S", "-X", "utf8", *make], stdout=2, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise OSError(errno.EIO, done.stderr.decode("utf-8", "replace").strip().splitlines()[-1])
    taking.say(done=True)


def release(store: str, run: str) -> None:
    """Remove a run's directory, let go of what it used, and remove what of that it has written to: no other run may have it so."""
    kept.remove(run)
    kept.remove(run + ".part")
    try:
        os.rmdir(os.path.dirname(run))
    except OSError:
        pass  # other runs are there
    use = kept.use_of(store, run)
    try:
        wanted = kept.read_json(use)["wanted"]
        os.unlink(use)
    except (OSError, ValueError):
        wanted = []
    is_harmed = False
    for kind, key in wanted:
        place = os.path.join(store, kind, key)
        if os.path.isdir(place):
            kept.note_use(place)
            is_harmed = is_harmed or (os.path.exists(place + ".files") and not kept.is_sound(place))
    taking.say(done=True, harmed=kept.note_harm(store) if is_harmed else [])


def free(store: str, limit: str, needed: str) -> None:
    """Remove what no run uses, what was not used for longest first, until there is room."""
    entries = sorted(kept.kept_in(store))
    total = sum(size for _, size, _, _ in entries) + float(needed)
    gone = []
    if total > float(limit):
        held = kept.in_use(store)
        for _, size, kind, key in entries:
            if total <= float(limit):
                break
            if (kind, key) not in held and kept.drop(store, kind, key):
                total -= size
                gone.append([kind, key, size])
        kept.sweep(store)
    taking.say(done=True, gone=gone)


def copy(source: str, target: str) -> None:
    """A copy that is the run's own, to be written to."""
    shutil.copytree(source, target, symlinks=True)
    for parent, _, files in os.walk(target):
        for path in [parent, *(os.path.join(parent, name) for name in files)]:
            if not os.path.islink(path):
                os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | 0o200)


def main(verb: str, *arguments: str) -> int:
    """Do one thing. What went wrong is said."""
    verbs: dict[str, Any] = {"hold": hold, "take": taking.take, "place": place, "release": release, "free": free}
    try:
        verbs[verb](*arguments)
    except taking.Cut:
        return 1
    except OSError as error:
        taking.say(trouble=": ".join(str(one) for one in (error.filename, error.strerror or error) if one))
        return 1
    except Exception as error:
        taking.say(trouble=str(error) or repr(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
