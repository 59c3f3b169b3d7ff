"""Conda packages by rattler, in this process: chosen for a place's virtual packages, and installed into a prefix.

No conda executable is used. All of the rattler library is here: its errors are translated to PreparationError.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tfjob.environments.channels import ConfiguredChannels
from tfjob.environments.conda_cache import in_use, is_unpacked
from tfjob.environments.conda_downloads import Downloads, Stalled, check_local_files, hash_of, stalled, watched
from tfjob.environments.conda_errors import explained
from tfjob.environments.credentials import credentials_of, with_credentials, without_credentials
from tfjob.environments.lock import SUBDIRS, Lock, dump
from tfjob.errors import Interrupted, PreparationError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from rattler import Client, GenericVirtualPackage, MatchSpec, RepoDataRecord, Subdir
    from rattler.install import InstallerReporter

    from tfjob.environments.definition import Definition
    from tfjob.environments.place import Place

__all__ = ["install", "python_version", "scripts_not_run", "solve", "stage_python", "variables"]

T = TypeVar("T")

_NAME = re.compile(r"(?:(?P<channel>\S+)::)?(?P<rest>(?P<name>[A-Za-z0-9_][A-Za-z0-9._-]*).*)", re.DOTALL)
_PIP = re.compile(r"pip(?P<version>[=<>!~].*)?")
_SOLVE_TIMEOUT_S = 600
_DOWNLOAD_TIMEOUT_S = 86_400  # of a whole download; one that stalls is ended long before
_ENVIRONMENT = "default"


def solve(
    definition: Definition, place: Place, cache: Path, work: Path, log: Callable[[str], None]
) -> Mapping[str, Any]:
    """Choose the conda packages of a definition; return them as rattler's lock file. `cache` keeps what channels list.

    Raises PreparationError that says which package asks for what, or which channel does not answer.
    """
    channels = ConfiguredChannels(definition.channels, os.environ)
    specs = [_with_channel(spec, channels) for spec in _wanted(definition)]
    subdir = _subdir(place)
    for spec in specs:
        log(f"conda: asking for {without_credentials(spec)}")
    for url in channels.urls:
        log(f"conda: channel {without_credentials(url)}")

    async def run() -> Sequence[RepoDataRecord]:
        import rattler  # noqa: PLC0415  # 50 ms, only for those who solve

        return await rattler.solve(
            channels.rattler(),
            [_spec(spec) for spec in specs],
            gateway=rattler.Gateway(cache_dir=cache / "repodata", client=_client(_read_timeout_s(), retries=1)),
            platforms=[subdir, "noarch"],
            virtual_packages=_virtual(place),
            timeout=timedelta(seconds=_SOLVE_TIMEOUT_S),
            channel_priority=rattler.ChannelPriority.Strict,
            channel_relations="disabled",  # ask the channels named, and no others that these name
        )

    with explained("chosen", place.name, channels.urls, specs), in_use(cache):
        found = _finished(run())
        for record in sorted(found, key=lambda record: record.name.normalized):
            log(f"conda: chose {record.name.normalized} {record.version} {record.build}")
        mapping = _mapping(found, subdir, channels.urls, work / "conda.lock")
        _finished(_hash_all(mapping, log))
        return mapping


def install(
    lock: Lock,
    definition: Definition,
    stage: Path,
    final: Path,
    *,
    cache: Path,
    progress: Callable[[str], None],
    only: frozenset[str] | None = None,
) -> None:
    """Install a lock's conda packages (or `only` these) into `stage`, made for being used at `final`.

    A file is written beside `stage`. Raises PreparationError when a package cannot be had or is not the locked one,
    OSError when the disk is full.
    """
    channels = ConfiguredChannels(definition.channels, os.environ)
    for spec in _wanted(definition):
        _with_channel(spec, channels)  # the channels that only a package names count as well
    names = {_name(spec) for spec in _wanted(definition)}
    written = stage.with_name("conda.lock")
    written.write_text(with_credentials(dump(lock.conda or {}), credentials_of(channels.urls)), encoding="utf-8")
    wanted = [record for record in lock.conda_records if only is None or record.name in only]
    check_local_files(record for record in wanted if not is_unpacked(cache, record))

    async def run() -> None:
        import rattler  # noqa: PLC0415  # 50 ms, only for those who build

        found, subdir = _records(lock, written)
        asked = [one for one in found if only is None or one.name.normalized in only]
        downloads = Downloads({one.name.normalized: one.size or 0 for one in asked}, progress)
        work = rattler.install(
            asked,
            stage,
            cache_dir=cache / "packages",
            platform=rattler.Subdir(subdir),
            execute_link_scripts=False,
            client=_client(_DOWNLOAD_TIMEOUT_S),
            requested_specs=[_spec(name)._match_spec for name in sorted(names)],  # noqa: SLF001 (install hands them to Rust as they are)
            alternative_target_prefix=final,
            reporter=cast("InstallerReporter", downloads),
        )
        await watched(work, downloads, _read_timeout_s())

    with explained("installed"), in_use(cache, wanted):
        _twice(run)
    written.unlink()
    for record in stage.glob("conda-meta/*.json"):  # what is installed is told there with where it came from
        text = record.read_text(encoding="utf-8")
        if (bare := without_credentials(text)) != text:
            record.write_text(bare, encoding="utf-8")


def _records(lock: Lock, written: Path) -> tuple[Sequence[RepoDataRecord], str]:
    """Return what rattler reads in its part of a lock, `written` to a file: the packages, and the platform they are for.

    Raises UsageError when it cannot read that, or reads other packages than tfjob, which the prefix's key is of.
    """
    import rattler  # noqa: PLC0415  # 50 ms, only for those who build

    again = "Make a new one with `tfjob env lock`."
    try:
        file = rattler.LockFile.from_path(written)
        environment = file.default_environment()
        platform = file.platforms()[0]  # a platform that is not the file's own makes rattler panic
        found = (environment.conda_repodata_records_for_platform(platform) if environment else None) or ()
    except Exception as error:
        if not type(error).__module__.startswith(("exceptions", "rattler")):
            raise
        said = " ".join(without_credentials(str(error)).split())
        raise UsageError(f"the lock cannot be read: `conda` is no lock file of rattler: {said}", again) from error
    ours = sorted((PurePosixPath(record.url).name, record.sha256) for record in lock.conda_records)
    if ours != sorted((one.file_name, (one.sha256 or b"").hex()) for one in found):
        raise UsageError("the lock cannot be used: its conda packages are not the ones that rattler reads in it", again)
    return found, platform.name


def _twice(run: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run what downloads, and once more when that stalled. Raises PreparationError when it stalls again."""
    began_s = time.monotonic()
    try:
        return _finished(run())
    except Stalled:
        pass
    try:
        return _finished(run())
    except Stalled:
        raise stalled(began_s, tries=2) from None


async def _hash_all(mapping: Mapping[str, Any], log: Callable[[str], None]) -> None:
    """Put the SHA-256 of each package's file into rattler's lock file where the channel names none."""
    for package in mapping["packages"]:
        if not package.get("sha256"):
            url, began_s = str(package["conda"]), time.monotonic()
            log(f"conda: the channel names no SHA-256 of {without_credentials(url)}; reading the file")
            try:
                md5 = str(package.get("md5") or "")
                package["sha256"] = await hash_of(url, md5, _client(_DOWNLOAD_TIMEOUT_S), _read_timeout_s())
            except Stalled:
                raise stalled(began_s, tries=1) from None


def stage_python(lock: Lock, definition: Definition, cache: Path, stage: Path, progress: Callable[[str], None]) -> Path:
    """Install a lock's Python, what it needs and the Python packages into `stage`, to solve with; return `stage`."""
    needs = _dependencies(lock)
    wanted = {name for name, those in needs.items() if "python" in those}
    left = {"python"}
    while left:
        name = left.pop()
        wanted.add(name)
        left |= {one for one in needs[name] if one in needs and one not in wanted}
    install(lock, definition, stage, stage, cache=cache, progress=progress, only=frozenset(wanted))
    return stage


def variables(stage: Path) -> dict[str, str]:
    """Return what a conda Python that is not yet where it will be needs to find its libraries."""
    return {"LD_LIBRARY_PATH": str(stage / "lib")}


def python_version(conda: Mapping[str, Any]) -> str:
    """Return the version of Python in rattler's lock file, which has one."""
    names = (Path(str(package["conda"])).name for package in conda["packages"])
    return next(name.split("-")[1] for name in names if name.rsplit("-", 2)[0] == "python")


def scripts_not_run(stage: Path) -> list[str]:
    """Name the files with which packages would change a shell that activates them; tfjob runs none, tasks have no such shell."""
    found = [*stage.glob("etc/conda/activate.d/*"), *stage.glob("etc/conda/env_vars.d/*")]
    found += [*stage.glob("bin/.*-post-link.sh")]
    return sorted(str(path.relative_to(stage)) for path in found)


def _wanted(definition: Definition) -> list[str]:
    """Return the definition's match specifications, with the Python and pip that it asks for otherwise."""
    specs = list(definition.packages)
    named = {_name(spec) for spec in specs}
    if "python" not in named:
        version = re.sub(r"==(\d+(?:\.\d+)*)\.\*", r"\1.*", definition.python or "")
        specs.append(f"python {version}".strip())
    elif definition.python:
        specs.append("python " + re.sub(r"==(\d+(?:\.\d+)*)\.\*", r"\1.*", definition.python))
    if definition.has_pip and "pip" not in named:
        versions = [match["version"] for line in definition.requirements if (match := _PIP.fullmatch(line))]
        version = re.sub(r"==(\d+(?:\.\d+)*)\.\*", r"\1.*", (versions or [""])[0] or "")
        specs.append(f"pip {version}".strip())
    return specs


def _name(spec: str) -> str:
    match = _NAME.fullmatch(spec)
    return match["name"].lower() if match else spec


def _with_channel(spec: str, channels: ConfiguredChannels) -> str:
    """Return a specification whose channel, if it names one, is the address that name stands for here."""
    match = _NAME.fullmatch(spec)
    if match is None or match["channel"] is None:
        return spec
    return f"{channels.url(match['channel'])}::{match['rest']}"


def _spec(text: str) -> MatchSpec:
    """Read a match specification. Raises PreparationError for what is none."""
    import rattler  # noqa: PLC0415  # 50 ms, only for those who solve
    from rattler import exceptions  # noqa: PLC0415  # the same

    try:
        return rattler.MatchSpec(text)
    except exceptions.InvalidMatchSpecError as error:
        raise PreparationError(
            f"`{text}` under `dependencies:` is not a conda package: {str(error).splitlines()[0]}",
            "Write it as conda would have it: `name`, `name=1.2`, `name>=1,<2`, `channel::name=1.2=build`.",
        ) from error


def _subdir(place: Place) -> Subdir:
    """Return the folder of channels that has the packages for a place."""
    import rattler  # noqa: PLC0415  # 50 ms, only for those who solve

    machine = place.platform.split("-")[1]
    if machine not in SUBDIRS:
        raise PreparationError(
            f"conda has no packages for {place.name}: it is {place.platform}", "Use the pip section."
        )
    return rattler.Subdir(SUBDIRS[machine])


def _virtual(place: Place) -> list[GenericVirtualPackage]:
    from rattler import BuildString, GenericVirtualPackage, PackageName, Version  # noqa: PLC0415  # 50 ms

    found = []
    for name, value in place.virtual_packages.items():
        version, _, build = value.partition("=")
        if name == "__archspec" and not build:
            build = place.platform.split("-")[1]
        found.append(GenericVirtualPackage(PackageName(name), Version(version), BuildString(build or "0")))
    return found


def _mapping(found: Sequence[RepoDataRecord], subdir: Subdir, urls: Sequence[str], written: Path) -> Mapping[str, Any]:
    """Return what was chosen as rattler's lock file, read as YAML 1.2, which it is."""
    from rattler import LockChannel, LockFile, LockPlatform  # noqa: PLC0415  # 50 ms

    from tfjob.environments.lock import load_yaml_12  # noqa: PLC0415

    platform = LockPlatform(str(subdir))
    file = LockFile([platform])
    file.set_channels(_ENVIRONMENT, [LockChannel(url) for url in urls])
    for record in found:
        file.add_conda_package(_ENVIRONMENT, platform, record)
    file.to_path(written)
    mapping = load_yaml_12(written.read_text(encoding="utf-8"))
    written.unlink()
    return mapping


def _dependencies(lock: Lock) -> dict[str, set[str]]:
    """Return the names each package of a lock depends on, by its own."""
    listed = (lock.conda or {})["packages"]
    names = [Path(str(package["conda"])).name.rsplit("-", 2)[0] for package in listed]
    return {
        name: {str(one).split()[0] for one in package.get("depends") or ()}
        for name, package in zip(names, listed, strict=True)
    }


def _client(timeout_s: int, retries: int = 3) -> Client:
    """Return a client with the credentials the user has stored for rattler, and a bound on each request.

    `retries` are those where the user has set no number: after failures, and where the bound is small, time-outs.
    """
    from rattler import Client  # noqa: PLC0415  # 50 ms

    configured = int(os.environ.get("CONDA_REMOTE_MAX_RETRIES") or retries)
    return Client.default_client(max_retries=configured, timeout=timeout_s)


def _read_timeout_s() -> int:
    """Return how long to wait for a channel's list of packages: conda's own setting, or a minute."""
    return max(1, int(float(os.environ.get("CONDA_REMOTE_READ_TIMEOUT_SECS") or 60)))


def _finished(work: Coroutine[Any, Any, T]) -> T:
    """Run rattler's work to its end, also where an event loop runs already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        has_loop = False
    else:
        has_loop = True
    if not has_loop:
        return asyncio.run(_interruptible(work))
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def _interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Do the work unless it is interrupted, also where a signal comes while the event loop calls back: it would only be logged."""
    interrupts: list[Interrupted] = []
    task = asyncio.current_task()

    def note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Interrupted) and task is not None:
            interrupts.append(error)
            task.cancel()
        else:
            loop.default_exception_handler(context)

    asyncio.get_running_loop().set_exception_handler(note)
    try:
        made = await work
    except asyncio.CancelledError:
        if interrupts:
            raise interrupts[0] from None
        raise
    if interrupts:
        raise interrupts[0]
    return made
