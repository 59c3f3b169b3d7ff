"""A lock: every package of an environment with its version and hashes, solved once and kept in one readable file.

The file is YAML. Its ``pip`` part is a requirements file with hashes, which pip itself can install; its ``conda`` part
is the lock file of rattler (the one pixi writes), which names each package's file and its SHA-256.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from tfjob.durable import digest_of
from tfjob.environments.credentials import without_credentials
from tfjob.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SUBDIRS", "CondaRecord", "Lock", "dump", "load_yaml_12"]

# The folder of a conda channel that has the packages for a kind of machine.
SUBDIRS = {"x86_64": "linux-64", "aarch64": "linux-aarch64", "ppc64le": "linux-ppc64le", "s390x": "linux-s390x"}
_VERSION = 1
_PIN = re.compile(
    r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?\s*(?:==\s*(?P<version>[^\s;\\]+)|@\s*(?P<url>\S+))"
)
_HEADER = """\
A lock of tfjob: every package of one environment, with its version and the hash of its file.
Solved for Python {python} on {platform}{base}, from:
{asked}
Keep it beside the job: with it, the same files are installed again, whatever is released meanwhile.
`conda:` is a lock file of rattler (of pixi); `pip:` is a requirements file, for `pip install --require-hashes -r`.
It fits this definition and this platform, or one with a newer C library. Do not edit it: make a new one with `tfjob env lock`."""
_NO_PIP = 'pip: ""\n'
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENVIRONMENT = "default"
_HINT = "Make a new one with `tfjob env lock`."


@dataclass(frozen=True)
class CondaRecord:
    """One conda package of a lock. `url` is where its file is, `sha256` the hash of the file (64 hex digits)."""

    name: str
    version: str
    build: str
    url: str
    sha256: str


@dataclass(frozen=True)
class Lock:
    """What was solved: for which definition (its digest), Python, platform and base (a base image, None on a machine).

    `pip_text` is the pip part, a requirements file; `conda` rattler's lock file as a mapping, None where no channel was
    asked. `text` is the whole file.
    """

    text: str
    definition: str
    python_version: str
    platform: str
    base: str | None
    pip_text: str
    conda: Mapping[str, Any] | None = field(hash=False)

    @classmethod
    def make(
        cls,
        *,
        definition: str,
        asked: list[str],
        python_version: str,
        platform: str,
        base: str | None,
        pip_text: str,
        conda: Mapping[str, Any] | None,
    ) -> Lock:
        """Write a lock. `asked` are the lines its header names as what was asked for; credentials are left out everywhere."""
        where = f" in {base}" if base else ""
        lines = "\n".join(f"  {line}" for line in asked or ["(no packages)"])
        header = _HEADER.format(python=python_version, platform=platform, base=where, asked=lines)
        fields = {"version": _VERSION, "definition": definition, "python": python_version, "platform": platform}
        fields |= {"base": base} if base else {}
        text = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines()) + dump(fields)
        if conda is not None:
            text += dump({"conda": conda})
        return cls.parse(without_credentials(text) + _NO_PIP).with_pip(pip_text)

    def with_pip(self, pip_text: str) -> Lock:
        """Return this lock, which has no pip part, with one."""
        if not pip_text.strip():
            return self
        body = "".join(f"  {line}".rstrip() + "\n" for line in pip_text.strip("\n").splitlines())
        return self.parse(without_credentials(f"{self.text.removesuffix(_NO_PIP)}pip: |2\n{body}"))

    @classmethod
    def parse(cls, text: str) -> Lock:
        """Read a lock. Raises UsageError that says what is wrong with one that cannot be read."""
        import yaml  # noqa: PLC0415  # 30 ms, and an environment that is there needs no lock

        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none; lists in lists in lists
            mark = getattr(error, "problem_mark", None)
            place = f" in line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or "it is no YAML"
            raise UsageError(f"the lock cannot be read{place}: {problem}", _HINT) from error
        if not isinstance(value, dict):
            raise UsageError("the lock cannot be read: it is not a mapping with `version`, `python` and so on", _HINT)
        if value.get("version") != _VERSION:
            found = value.get("version", "none")
            raise UsageError(f"the lock has version {found}; this tfjob reads version {_VERSION}", _HINT)
        lock = cls(
            text=text,
            definition=_text(value, "definition"),
            python_version=_text(value, "python"),
            platform=_text(value, "platform"),
            base=_text(value, "base") if value.get("base") is not None else None,
            pip_text=_text(value, "pip"),
            conda=_conda(value.get("conda")),
        )
        _check(lock)
        return lock

    @classmethod
    def read(cls, path: Path) -> Lock | None:
        """Return the lock kept at `path`, None when there is none that can be read."""
        try:
            return cls.parse(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, UnicodeDecodeError, UsageError):
            return None

    @property
    def pins(self) -> tuple[str, ...]:
        """Each pip package on one line with its hashes, sorted; nothing that does not decide what is installed."""
        lines = (line.strip() for line in self.pip_text.replace("\\\n", " ").splitlines())
        kept = (line.partition(" #")[0] for line in lines if line and not line.startswith(("#", "-")))
        return tuple(sorted(" ".join(line.split()) for line in kept))

    @property
    def pip_packages(self) -> dict[str, str]:
        """The version of each pip package by its name; the URL of one that came from a URL."""
        found = (match for pin in self.pins if (match := _PIN.match(pin)))
        return {match["name"]: match["version"] or match["url"] for match in found}

    @property
    def packages(self) -> dict[str, str]:
        """The version of every package by its name, of both parts."""
        return {record.name: record.version for record in self.conda_records} | self.pip_packages

    @cached_property
    def conda_records(self) -> tuple[CondaRecord, ...]:
        """The conda packages, by name."""
        if self.conda is None:
            return ()
        return tuple(sorted((_record(package) for package in self.conda["packages"]), key=lambda record: record.name))

    @property
    def has_all_hashes(self) -> bool:
        """Whether every pip package has a hash; those from version control have a commit instead."""
        return all("--hash=" in pin for pin in self.pins)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of what is installed: the files, the Python, the platform and the base.

        Where a conda package comes from, and when the lock was made, is not in it.
        """
        conda = [[record.name, record.version, record.build, record.sha256] for record in self.conda_records]
        return digest_of([conda, self.pins, self.python_version, self.platform, self.base or ""])


def load_yaml_12(text: str) -> dict[str, Any]:
    """Read YAML 1.2, where ``1_0``, ``010`` and ``no`` are text: rattler's lock files are that."""
    import yaml  # noqa: PLC0415  # 30 ms, only for those who solve

    class Loader(yaml.SafeLoader):
        """Knows fewer types than YAML 1.1 has."""

    Loader.yaml_implicit_resolvers = {}
    Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(null|~|)$"), ["n", "~", ""])
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|false)$"), list("tf"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"(0|[1-9][0-9]*)$"), list("0123456789"))
    loader = Loader(text)
    try:
        found: dict[str, Any] = loader.get_single_data()
    finally:
        loader.dispose()
    return found


def dump(value: Mapping[str, Any]) -> str:
    """Return YAML that readers of YAML 1.1 and of 1.2 understand alike."""
    import yaml  # noqa: PLC0415  # 30 ms, only for those who solve

    class Dumper(yaml.SafeDumper):
        """Quotes also what only YAML 1.2 takes for a number, such as the hash ``1234e567``."""

    number = re.compile(r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+|0x[0-9a-fA-F]+)$")
    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return yaml.dump(dict(value), Dumper=Dumper, sort_keys=False, width=1 << 20, allow_unicode=True)


def _text(value: Mapping[str, Any], key: str) -> str:
    """Return a value that must be text. Raises UsageError when it is missing or something else."""
    found = value.get(key)
    if not isinstance(found, str):
        what = "is missing" if found is None else f"is {found!r}, not text"
        raise UsageError(f"the lock cannot be read: `{key}` {what}", _HINT)
    return found


def _conda(value: Any) -> Mapping[str, Any] | None:
    if value is None:
        return None
    packages = value.get("packages") if isinstance(value, dict) else None
    if not isinstance(packages, list) or not all(isinstance(one, dict) for one in packages):
        raise UsageError("the lock cannot be read: `conda` is no lock file of rattler", _HINT)
    found: Mapping[str, Any] = value
    return found


def _record(package: Mapping[str, Any]) -> CondaRecord:
    """Return a package of rattler's lock; its name, version and build are those of its file. Raises UsageError."""
    url, sha256 = package.get("conda"), package.get("sha256")
    file = PurePosixPath(str(url).partition("#")[0]).name
    stem = re.sub(r"\.(conda|tar\.bz2)$", "", file)
    parts = stem.rsplit("-", 2)
    if not isinstance(url, str) or stem == file or len(parts) != 3:
        raise UsageError(f"the lock cannot be read: {url!r} under `conda` is no conda package", _HINT)
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        what = "is missing" if sha256 is None else f"is {sha256!r}, not 64 hex digits"
        raise UsageError(f"the lock cannot be read: the `sha256` of {file} under `conda` {what}", _HINT)
    return CondaRecord(parts[0], parts[1], parts[2], url, sha256)


def _check(lock: Lock) -> None:
    """Raise UsageError when a part of the lock cannot be what tfjob wrote."""
    for pin in lock.pins:
        if not _PIN.match(pin):
            raise UsageError(f"the lock cannot be read: `{pin[:80]}` under `pip` is no pinned package", _HINT)
    if not re.fullmatch(r"\d+\.\d+\.\d+\S*", lock.python_version):
        raise UsageError(f"the lock cannot be read: `python` is {lock.python_version!r}, not a full version", _HINT)
    if lock.conda is not None:
        _check_listed(lock, lock.conda)
        _check_records(lock)


def _check_listed(lock: Lock, conda: Mapping[str, Any]) -> None:
    """Raise UsageError unless the one environment of rattler's lock lists, for the lock's platform, just its packages.

    rattler installs what the environment lists; the prefix's key and the lock's hashes are of `packages`.
    """
    environments = conda.get("environments")
    if not isinstance(environments, dict) or list(environments) != [_ENVIRONMENT]:
        raise UsageError(f"the lock cannot be read: `conda: environments:` must have `{_ENVIRONMENT}` only", _HINT)
    environment = environments[_ENVIRONMENT]
    by_platform = environment.get("packages") if isinstance(environment, dict) else None
    subdir = SUBDIRS.get("".join(lock.platform.split("-")[1:2]))
    where = f"`conda: environments: {_ENVIRONMENT}: packages:`"
    platforms = list(by_platform) if isinstance(by_platform, dict) else []
    if not isinstance(by_platform, dict) or platforms != [subdir]:
        found = ", ".join(map(str, platforms)) or "nothing"
        raise UsageError(
            f"the lock cannot be read: {where} is for {found}; the lock's platform {lock.platform} is {subdir}", _HINT
        )
    named = conda.get("platforms", [{"name": subdir}])
    if not isinstance(named, list) or [one.get("name") if isinstance(one, dict) else one for one in named] != [subdir]:
        raise UsageError(f"the lock cannot be read: `conda: platforms:` must have {subdir} only", _HINT)
    listed = by_platform[subdir] if isinstance(by_platform[subdir], list) else []
    urls = [str(one.get("conda") if isinstance(one, dict) else one) for one in listed]
    kept = [record.url for record in lock.conda_records]
    for one in [*urls, *kept]:
        if urls.count(one) != 1 or kept.count(one) != 1:
            raise UsageError(
                f"the lock cannot be read: {one} is {urls.count(one)} times under {where} and {kept.count(one)} times "
                "under `conda: packages:`; it must be once in each",
                "A merge may have damaged the lock. " + _HINT,
            )


def _check_records(lock: Lock) -> None:
    """Raise UsageError unless each conda package is there once, and Python in the version that the lock names."""
    versions: dict[str, str] = {}
    for record in lock.conda_records:
        if record.name in versions:
            raise UsageError(f"the lock cannot be read: {record.name} is twice under `conda: packages:`", _HINT)
        versions[record.name] = record.version
    if "python" not in versions:
        raise UsageError("the lock cannot be read: there is no `python` among its conda packages", _HINT)
    if versions["python"] != lock.python_version:
        raise UsageError(
            f"the lock cannot be read: `python` is {lock.python_version}, but python {versions['python']} is among "
            "its conda packages",
            _HINT,
        )
