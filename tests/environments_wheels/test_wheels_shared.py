"""Which wheels are for every place of a release, and which for the one they were built in: a real loader judges.

The other places are this machine under another identity, with another release, or with another loader's verdict.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tfjob.environments import fitting
from tfjob.environments.place import Machine
from tfjob.environments.source_build import Workshop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from environments_wheels.wheels_parts import Shop

pytestmark = pytest.mark.real
pytest_plugins = ("environments_wheels.wheels_parts",)

DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n'
# As a compiler newer than the distribution's would have it: the loader finds no such version.
RUNTIME = "int newer(void) { return 1; }\n"
RUNTIME_VERSIONS = "GLIBCXX_9.9 { newer; };\n"
SOURCE = """
int base(void);
#ifdef NEWER
int newer(void);
int answer(void) { return base() + newer(); }
#else
int answer(void) { return base() + 1; }
#endif
"""


@dataclass(frozen=True)
class Elsewhere(Machine):
    """Another place of this machine's kind: what it says of its release, and programs that are first on its PATH."""

    digest: str
    os_release: Path
    programs: Path | None = None

    @property
    def identity(self) -> str:
        return f"sha256:{self.digest}"

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        cwd: Path,
        on_line: Callable[[str], None],
        holds: int,
        stdin: str = "",
    ) -> int:
        words = [str(one).replace("/etc/os-release", str(self.os_release)) for one in command]
        path = f"{self.programs}:{environment['PATH']}" if self.programs else environment["PATH"]
        environment = {**environment, "PATH": path}
        return super().run(words, environment=environment, cwd=cwd, on_line=on_line, holds=holds, stdin=stdin)


@pytest.fixture
def elsewhere(shop: Shop) -> Callable[..., Elsewhere]:
    """A place by its digest, what its os-release says, and the answer of its ldd."""

    def make(digest: str, os_release: str = DEBIAN, ldd: str = "") -> Elsewhere:
        folder = shop.root / digest
        folder.mkdir()
        (folder / "os-release").write_text(os_release)
        if ldd:
            shop.program(folder / "bin" / "ldd", ldd)
        return Elsewhere(digest, folder / "os-release", folder / "bin" if ldd else None)

    return make


def facts(wheel: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((wheel.parent / "wheel.json").read_text())
    return read


def newer_runtime(shop: Shop) -> str:
    """Make a C++ runtime with a version that no loader here finds; returns flags that use it."""
    folder = shop.root / "runtime"
    folder.mkdir()
    (folder / "runtime.c").write_text(RUNTIME)
    (folder / "versions").write_text(RUNTIME_VERSIONS)
    options = ["-shared", "-fPIC", "-Wl,-soname,libstdc++.so.6", f"-Wl,--version-script={folder / 'versions'}"]
    subprocess.run(["cc", *options, folder / "runtime.c", "-o", folder / "libstdc++.so"], check=True)
    return f"-DNEWER -L{folder} -lstdc++"


def test_places_of_one_release_have_one_wheel(shop: Shop, elsewhere: Callable[..., Elsewhere]) -> None:
    lock = shop.lock("tiny", "tinybase")
    made = shop.prepare(lock, elsewhere("one"))["tiny"]
    about = facts(made)
    assert about["system"] == "debian 12"
    assert "libtinybase.so" not in about["needs"]  # the lock has it
    assert "place" not in about
    assert shop.prepare(lock, elsewhere("two"))["tiny"] == made
    assert shop.steps == []
    other = shop.prepare(lock, elsewhere("three", DEBIAN.replace("12", "13")))["tiny"]
    assert other != made
    assert facts(other)["system"] == "debian 13"


def test_a_place_that_tells_no_release_has_wheels_of_its_own(shop: Shop, elsewhere: Callable[..., Elsewhere]) -> None:
    place = elsewhere("one", DEBIAN.replace("VERSION_ID", "BUILD_ID"))  # a rolling release
    made = shop.prepare(shop.lock("tiny", "tinybase"), place)["tiny"]
    assert facts(made)["place"] == "sha256:one"


def test_what_was_linked_to_a_library_of_the_place_is_for_that_place(
    shop: Shop, elsewhere: Callable[..., Elsewhere], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shop.root / "own.c"
    source.write_text(RUNTIME)
    own: list[str | Path] = ["-shared", "-fPIC", "-Wl,-soname,libown.so.1", source, "-o", shop.root / "libown.so"]
    subprocess.run(["cc", *own], check=True)
    monkeypatch.setenv("CFLAGS", f"-Wl,--no-as-needed -L{shop.root} -lown")
    lock = shop.lock("tiny", "tinybase")
    place = elsewhere("one")
    made = shop.prepare(lock, place)["tiny"]
    assert "libown.so.1" in facts(made)["needs"]
    assert facts(made)["place"] == "sha256:one"
    assert shop.prepare(lock, place)["tiny"] == made
    assert shop.steps == []


def test_what_needs_more_than_the_places_own_runtime_is_for_that_place(
    shop: Shop, elsewhere: Callable[..., Elsewhere], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFLAGS", newer_runtime(shop))
    shop.tiny(c_source=SOURCE)
    made = shop.prepare(shop.lock("tiny", "tinybase"), elsewhere("one"))["tiny"]
    assert "libstdc++.so.6" in facts(made)["needs"]
    assert facts(made)["place"] == "sha256:one"


def test_a_wheel_that_a_place_cannot_load_gives_way_to_one_that_all_can(
    shop: Shop, elsewhere: Callable[..., Elsewhere]
) -> None:
    newer = shop.root / "compiler-is-newer"
    newer.write_text(newer_runtime(shop))
    with_newer = f"os.environ['CFLAGS'] = open({str(newer)!r}).read() if os.path.exists({str(newer)!r}) else ''"
    shop.tiny(wait=with_newer, c_source=SOURCE)
    lock = shop.lock("tiny", "tinybase")
    has_newer = elsewhere("newer", ldd="true")
    first = shop.prepare(lock, has_newer)["tiny"]
    assert facts(first)["system"] == "debian 12"
    content = first.read_bytes()
    newer.unlink()
    second = shop.prepare(lock, elsewhere("older"))["tiny"]
    assert second == first
    assert second.read_bytes() != content
    assert shop.prepare(lock, has_newer)["tiny"] == first
    assert shop.steps == []
    assert len(shop.kept()) == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("printf '\tlibtinybase.so => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x1)\n'", True),
        ("printf '\tlibtinybase.so => not found\n\tlibc.so.6 => not found\n'", False),
        ("echo '0.so: /lib/libstdc++.so.6: version `GLIBCXX_3.4.31'\"'\"' not found (required by 0.so)'", False),
        ("exit 1", False),
    ],
)
def test_what_the_loader_says_is_believed(
    shop: Shop, elsewhere: Callable[..., Elsewhere], answer: str, expected: bool
) -> None:
    wheel = shop.root / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(shop.root / "libtinybase.so", "tiny/libtiny.so")
    shop.root.joinpath("work").mkdir()
    place = elsewhere("one", ldd=answer)
    workshop = Workshop(place, sys.executable, shop.uv, shop.root / "work", shop.log.append, 0)
    assert fitting.fits(wheel, workshop) is expected
