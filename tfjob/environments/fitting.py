"""Where a compiled wheel fits: in every place of the same release of a distribution whose loader finds what it needs.

A wheel that was built against packages of its lock alone needs of a place the C library and the C++ runtime, in versions
that the linker wrote into its libraries (ELF symbol versions, such as GLIBCXX_3.4.30). The place's own loader is asked
for them, by ldd: a newer compiler where the wheel was built may ask for more than another place has.
"""

from __future__ import annotations

import re
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tfjob.environments.source_build import Workshop

__all__ = ["fits", "is_plain", "release"]

_ELF = b"\x7fELF"
# What every place that runs TensorFlow has: glibc's libraries, and those of the compiler (GCC's runtime).
_PLAIN = re.compile(r"(ld-linux[\w-]*|lib(c|dl|m|pthread|resolv|rt|util|gcc_s|stdc\+\+))\.so\.\d+")
# os-release(5): a file of shell assignments. ID and VERSION_ID are those for programs; a rolling release has no version.
_RELEASE = (
    "for one in /etc/os-release /usr/lib/os-release; do "
    'if [ -r "$one" ]; then ID= VERSION_ID=; . "$one"; echo "release: $ID $VERSION_ID"; exit 0; fi; done'
)
# Libraries that the caller's shell puts first are not those that tasks have.
_LDD = 'unset LD_LIBRARY_PATH LD_PRELOAD; for one in "$@"; do ldd "$one" || exit 1; done; echo "all: read"'
_NO_VERSION = re.compile(r"/([^/\s]+): version `[^']+' not found")
_NO_LIBRARY = re.compile(r"^\s*(\S+) => not found")


def release(workshop: Workshop) -> str:
    """Return the distribution of a place and its release: ``debian 12``; empty where it does not say both."""
    _, lines = workshop.ask(["/bin/sh", "-c", _RELEASE])
    words = next((line.split()[1:] for line in lines if line.startswith("release: ")), [])
    return " ".join(words) if len(words) == 2 else ""


def is_plain(needs: Iterable[str]) -> bool:
    """Whether these libraries (their sonames) are the C library and the C++ runtime, and nothing else."""
    return all(_PLAIN.fullmatch(one) for one in needs)


def fits(wheel: Path, workshop: Workshop) -> bool:
    """Whether the place's loader finds the C library and the C++ runtime in the versions that the wheel's libraries need.

    What else they need comes from the lock's packages, and is not looked for.
    """
    folder = workshop.work / "needs"
    folder.mkdir(exist_ok=True)
    paths: list[Path] = []
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            content = archive.read(member)
            if content.startswith(_ELF):
                path = folder / f"{len(paths)}.so"
                path.write_bytes(content)
                path.chmod(0o755)  # ldd says so of others, on the stream that is read
                paths.append(path)
    if not paths:
        return True
    _, lines = workshop.ask(["/bin/sh", "-c", _LDD, "sh", *paths], variables={"LC_ALL": "C"})
    matches = (match for line in lines for pattern in (_NO_VERSION, _NO_LIBRARY) if (match := pattern.search(line)))
    return "all: read" in lines and not any(_PLAIN.fullmatch(match[1]) for match in matches)
