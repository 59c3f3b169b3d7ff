"""What is kept by content on the file system of a cluster elsewhere: sent once, by whichever run needs it first, and used by all.

It lies below the target's `directory`, in ``store/KIND/KEY``, whole or not at all. A run says what it uses (`hold`), sends what is
missing (`send`, `send_tree`), and has its directory made of it (`place`). What a run holds is never removed; it lets go by
`release`, or when its directory is gone. Of two runs that send the same, the second waits for the first. See program/keeping.py.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedWriter, RawIOBase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, cast

from tfjob.engines.slurm.gang import FLAGS
from tfjob.engines.slurm.login import BEGINS, Login, LoginLost
from tfjob.errors import PreparationError
from tfjob.rundir import RunDirectory

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["KEEPING", "Kept", "KeptFile", "KeptThere", "Placed", "Removed"]

_CHUNK_BYTES: Final = 1 << 18
_SAY_S: Final = 1.0
_GIB: Final = 1 << 30
KEEPING: Final = ("kept.py", "taking.py", "keeping.py")
"""The files of `program/` that go to the login node alone, each before those that import it."""
# The program comes over stdin: nothing of it has to be there, and no argument is too long.
_BOOT: Final = """
import json, os, sys, types, zlib
left, data = int(sys.argv.pop(1)), b""
while left > len(data):
    more = os.read(0, left - len(data))
    if not more:
        sys.exit(1)
    data += more
for name, source in json.loads(zlib.decompress(data).decode()):
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, name + ".py", "exec"), module.__dict__)
sys.exit(sys.modules["keeping"].main(*sys.argv[1:]))
"""


class Kept(NamedTuple):
    """One thing that is kept: its kind (``trees``, ``prefixes``, ``images``) and its key, which says what is in it.

    Keys are letters, digits, ``-``, ``_`` and ``.``, and don't begin with a dot.
    """

    kind: str
    key: str


class KeptFile(NamedTuple):
    """A file of a tree: where it is here, its path in the tree, its bytes and its SHA-256 (hex).

    `kind` is ``x`` for an executable one, ``l`` for a link (`content` is where it leads to), ``d`` for an empty directory.
    """

    source: str
    name: str
    kind: str
    size: int
    content: str


class Placed(NamedTuple):
    """Where in a run's directory something that is kept goes: by a link to it, or as a copy that the run may write to."""

    name: str
    kept: Kept
    how: str
    """``link`` or ``copy``."""


class Removed(NamedTuple):
    """What was removed, and its bytes."""

    kept: Kept
    size_bytes: int


class KeptThere:
    """What is kept below a target's `directory`, by way of its login node.

    `limit_gib` is how much of it may be there: before more is sent, what no run has used for longest goes. All calls raise
    LoginLost when the connection breaks, TargetError when the login does not work, PreparationError when something can't be
    written there; all can be made again.
    """

    def __init__(self, login: Login, directory: Path, *, limit_gib: float = float("inf")) -> None:
        self._login = login
        self._limit_bytes = limit_gib * _GIB
        self.store = directory / "store"
        """Where it lies on the cluster's file system."""

    def path(self, kept: Kept) -> Path:
        """Where something is, or will be, on the cluster's file system."""
        return self.store / kept.kind / kept.key

    def hold(self, run: RunDirectory, wanted: Iterable[Kept]) -> frozenset[Kept]:
        """Say that a run uses these, and nothing else; returns those that are missing, which it has to send.

        `run` is the run's directory over there. It holds them for an hour, which anything that it sends renews, and then for as long
        as it has that directory.
        """
        with self._talk("hold", run) as talk:
            talk.tell([list(one) for one in wanted])
            return frozenset(Kept(*one) for one in talk.hear()["missing"])

    def send(
        self,
        run: RunDirectory,
        kept: Kept,
        fill: Callable[[IO[bytes]], None],
        told: Callable[[str], None],
        *,
        what: str,
        size_bytes: int = 0,
        file: str | None = None,
    ) -> None:
        """Send something that is missing. `fill` writes it, as the tar of a directory, or as the one `file` in it.

        It is called at most once, and not at all where another run was quicker. The run must hold it. `what` it is, in words, and
        how far it is, `told` hears; it may raise to give up. `size_bytes` is how large it is, for room to be made.
        """
        self._free(size_bytes, told)
        form = f"file={file}" if file is not None else "tar"
        with self._talk("take", run, kept.kind, kept.key, form) as talk:
            if not talk.wait(told, what):
                return
            with talk.writer(_progress(told, self._login.address, what, size_bytes)) as stream:
                fill(stream)
            talk.hear()

    def send_tree(
        self, run: RunDirectory, kept: Kept, files: Sequence[KeptFile], told: Callable[[str], None], *, what: str
    ) -> None:
        """Send a tree of read-only files that is missing: only those of them that no other tree there has.

        All files get the same time of change. The run must hold it. See `send`. Raises PreparationError for a file that can't be
        read, or has changed.
        """
        self._free(sum(one.size for one in files), told)
        with self._talk("take", run, kept.kind, kept.key, "tree") as talk:
            if not talk.wait(told, what):
                return
            talk.tell([[one.name, one.kind, one.size, one.content] for one in files])
            sources = {one.content + one.kind: one for one in files}
            lacking = [sources[named] for named in talk.hear()["lacking"]]
            total = sum(one.size for one in lacking)
            told(f"sending {what} to {self._login.address}: {len(lacking)} of {len(files)} files, {total / 1e6:.1f} MB")
            progress = _progress(told, self._login.address, what, total)
            for one in lacking:
                with talk.writer(progress) as stream:
                    _write_file(one, stream, what)
            talk.hear()

    def place(self, run: RunDirectory, fill: Callable[[IO[bytes]], None], placed: Sequence[Placed]) -> None:
        """Make a run's directory over there, whole or not at all, with what it holds in it, and its working copies.

        `fill` writes the rest of it, as tar.
        """
        with self._talk("place", run) as talk:
            talk.tell([[one.name, *one.kept, one.how] for one in placed])
            with talk.writer() as stream:
                fill(stream)
            talk.hear()

    def release(self, run: RunDirectory) -> tuple[Kept, ...]:
        """Remove a run's directory over there, if there is one, and let go of what it used.

        Returns trees in which something has written to a file: they are not used again, but sent anew.
        """
        with self._talk("release", run) as talk:
            return tuple(Kept(*one) for one in talk.hear()["harmed"])

    def free(self, limit_bytes: float = 0, needed_bytes: float = 0) -> tuple[Removed, ...]:
        """Remove what no run uses, what was not used for longest first, until `limit_bytes` have room for what is needed."""
        with self._talk("free", None, str(float(limit_bytes)), str(float(needed_bytes))) as talk:
            return tuple(Removed(Kept(kind, key), size) for kind, key, size in talk.hear()["gone"])

    def _free(self, needed_bytes: int, told: Callable[[str], None]) -> None:
        if self._limit_bytes == float("inf"):
            return
        if gone := self.free(self._limit_bytes, needed_bytes):
            freed = sum(one.size_bytes for one in gone)
            told(f"{self._login.address} has removed what no run has used for longest: {freed / 1e6:.1f} MB")

    @contextmanager
    def _talk(self, verb: str, run: RunDirectory | None, *arguments: str) -> Iterator[_Talk]:
        program = _program()
        told = (str(self.store), *((str(run.path),) if run is not None else ()), *arguments)
        python = shlex.join(["python3", *FLAGS, "-c", _BOOT, str(len(program)), verb, *told])
        process = self._login.start(f"echo {BEGINS.decode().strip()}; exec {python}")
        talk = _Talk(process, self._login.address)
        try:
            with suppress(BrokenPipeError):  # what it says tells why
                talk.begin(program)
            yield talk
        except BrokenPipeError:
            talk.hear()  # raises what it says
            raise
        finally:
            talk.end()


class _Talk:
    """One conversation with the program: pieces with their length before them to it, lines of JSON from it."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        assert process.stdin is not None  # noqa: S101  # a pipe
        assert process.stdout is not None  # noqa: S101  # a pipe
        self._process = process
        self._to, self._from = process.stdin, process.stdout
        self._address = address
        self._has_begun = False

    def begin(self, program: bytes) -> None:
        self._to.write(program)
        self._to.flush()

    def tell(self, value: Any) -> None:
        """Tell a JSON value."""
        with self.writer() as stream:
            stream.write(json.dumps(value).encode("ascii"))

    @contextmanager
    def writer(self, progress: Callable[[int], None] = lambda _: None) -> Iterator[IO[bytes]]:
        """A stream for what belongs together."""
        stream = BufferedWriter(cast("Any", _Pieces(self._to, progress)), _CHUNK_BYTES)
        yield cast("IO[bytes]", stream)
        stream.flush()
        self._to.write(bytes(4))
        self._to.flush()

    def hear(self) -> dict[str, Any]:
        """What it says next. Raises PreparationError with its trouble, LoginLost when it says nothing more."""
        while not self._has_begun and (line := self._from.readline()):
            self._has_begun = line.endswith(BEGINS)  # the user's shell there may say other things first
        line = self._from.readline()
        if not line.endswith(b"\n"):
            raise self._silence()
        word: dict[str, Any] = json.loads(line)
        if "trouble" in word:
            raise PreparationError(
                f"{self._address} can't keep what runs need: {word['trouble']}",
                "The target's `directory` says where it goes: it must be yours to write, and have room.",
            )
        return word

    def wait(self, told: Callable[[str], None], what: str) -> bool:
        """Wait until it is ready to take something. Returns whether it is, or has it already."""
        while True:
            word = self.hear()
            if "waits" not in word:
                return "ready" in word
            told(f"another run sends {what} to {self._address}")

    def end(self) -> None:
        """End the conversation, and the program."""
        with suppress(OSError):
            self._to.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        self._process.kill()
        self._process.wait()
        self._from.close()

    def _silence(self) -> Exception:
        with suppress(OSError):
            self._to.close()
        code = self._process.wait()
        if code == 127 and self._has_begun:
            return PreparationError(f"{self._address} has no python3 on its PATH", "It must have one, 3.8 or newer.")
        return LoginLost(f"the connection to {self._address} was lost while files were sent", "Submit again.")


class _Pieces(RawIOBase):
    """Each write as a piece with its length before it."""

    def __init__(self, to: IO[bytes], progress: Callable[[int], None]) -> None:
        super().__init__()
        self._to = to
        self._progress = progress

    def writable(self) -> bool:
        return True

    def write(self, data: WriteableBuffer, /) -> int:
        view = memoryview(cast("bytes", data))
        if view.nbytes:
            self._to.write(view.nbytes.to_bytes(4, "big"))
            self._to.write(view)
            self._progress(view.nbytes)
        return view.nbytes


def _progress(told: Callable[[str], None], address: str, what: str, total_bytes: int) -> Callable[[int], None]:
    sent, said = 0, time.monotonic()

    def progress(size: int) -> None:
        nonlocal sent, said
        sent += size
        is_quiet = time.monotonic() - said < _SAY_S
        said = said if is_quiet else time.monotonic()
        of = f" of {total_bytes / 1e6:.0f} MB" if total_bytes else " MB"
        told("" if is_quiet else f"sending {what} to {address}: {sent / 1e6:.0f}{of}")

    return progress


def _write_file(file: KeptFile, stream: IO[bytes], what: str) -> None:
    left = file.size
    try:
        with open(file.source, "rb") as source:
            while left and (data := source.read(min(left, _CHUNK_BYTES))):
                stream.write(data)
                left -= len(data)
    except FileNotFoundError as error:
        raise PreparationError(f"{file.source} is gone", f"It belongs to {what}. Submit again.") from error
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise PreparationError(f"{file.source} can't be read: {error.strerror}", f"It belongs to {what}.") from error


def _program() -> bytes:
    directory = Path(__file__).parent / "program"
    sources = [(name.removesuffix(".py"), (directory / name).read_text(encoding="utf-8")) for name in KEEPING]
    return zlib.compress(json.dumps(sources).encode(), 9)
