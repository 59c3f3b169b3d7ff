"""Make a built wheel work in any prefix: ``python wheel_relocation.py WHEEL INTO ROOT...``.

A library that was linked in a build environment looks for others where that environment stood. What lies in one of the
directories ROOT (they are laid out as a prefix is) is made relative to the library; what lies elsewhere stays. Writes the
wheel under its name into the folder INTO, its times fixed, so that the same libraries give the same file. Prints a line
``needs: NAME`` for each library (its soname) that its libraries need and neither the wheel nor a ROOT has.

Run where the wheel was built, with ``patchelf`` on PATH, so: standard library only, any Python from 3.8. Ends with 1,
and says why on stderr, when patchelf cannot read or change a library.
"""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile

_ELF = b"\x7fELF"
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the earliest time a ZIP archive can say
_ABOVE_SITE_PACKAGES = 2  # PREFIX/lib/python3.x/site-packages is this many folders below PREFIX/lib


def main() -> int:
    """Copy the wheel file by file, each library changed on its way, and write the list of files (RECORD) anew."""
    source, into, roots = sys.argv[1], sys.argv[2], [os.path.realpath(root) for root in sys.argv[3:]]
    target = os.path.join(into, os.path.basename(source))
    lines = []
    needed: set[str] = set()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        record = next(name for name in old.namelist() if name.endswith(".dist-info/RECORD"))
        for member in old.infolist():
            if member.is_dir() or member.filename == record:
                continue
            content = old.read(member)
            if content.startswith(_ELF):
                try:
                    content = relocate(content, member.filename, roots, needed)
                except (OSError, subprocess.CalledProcessError) as error:
                    sys.stderr.write(f"error: {member.filename}: {getattr(error, 'stderr', '') or error}\n")
                    return 1
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            lines.append(f"{quoted(member.filename)},sha256={digest},{len(content)}\n")
            write(new, member.filename, content, member.external_attr)
        write(new, record, "".join([*lines, f"{record},,\n"]).encode(), 0o644 << 16)
        there = {os.path.basename(name) for name in old.namelist()}
    for root in roots:
        for _, _, names in os.walk(root):
            there.update(names)
    sys.stdout.writelines(f"needs: {name}\n" for name in sorted(needed - there))
    return 0


def write(wheel: zipfile.ZipFile, name: str, content: bytes, attributes: int) -> None:
    """Add a file to a wheel."""
    member = zipfile.ZipInfo(name, _LONG_AGO)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = attributes
    wheel.writestr(member, content)


def quoted(name: str) -> str:
    """Return a file's name as a field of a CSV file."""
    return '"{}"'.format(name.replace('"', '""')) if "," in name or '"' in name else name


def relocate(content: bytes, name: str, roots: list[str], needed: set[str]) -> bytes:
    """Return the library with the places it looks in, and the libraries it names by a path, made relative.

    The libraries that it needs are added to `needed`, without the paths they are named by.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "library")
        with open(path, "wb") as file:
            file.write(content)
        runpath = patchelf("--print-rpath", path)
        places = [one for entry in runpath.split(":") if (one := relative(entry, name, roots))]
        changes = []
        if places != runpath.split(":") and runpath:
            changes += ["--set-rpath", ":".join(dict.fromkeys(places))] if places else ["--remove-rpath"]
        for one in patchelf("--print-needed", path).split():
            needed.add(os.path.basename(one))
            if "/" in one and inside(one, roots) is not None:
                changes += ["--replace-needed", one, os.path.basename(one)]
        if not changes:
            return content
        patchelf(*changes, path)
        with open(path, "rb") as file:
            return file.read()


def relative(place: str, name: str, roots: list[str]) -> str:
    """Return a place of a RUNPATH relative to the library `name` of a wheel; one outside of all roots as it is."""
    found = inside(place, roots)
    if found is None:
        return place
    up = "/".join([".."] * (name.count("/") + _ABOVE_SITE_PACKAGES + 1))
    return "$ORIGIN/" + os.path.normpath(os.path.join(up, found))


def inside(place: str, roots: list[str]) -> str | None:
    """Return a path relative to the root it lies in; None when it lies in none."""
    if os.path.isabs(place):
        for root in roots:
            if os.path.commonpath([os.path.realpath(place), root]) == root:
                return os.path.relpath(os.path.realpath(place), root)
    return None


def patchelf(*arguments: str) -> str:
    """Run patchelf and return what it prints. Raises CalledProcessError."""
    done = subprocess.run(["patchelf", *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
