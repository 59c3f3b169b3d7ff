"""Preparing: the environment of a run is found or built, and turned into what an engine starts tasks with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from tfjob.durable import replace_text
from tfjob.engines.base import Mount, Prepared
from tfjob.engines.inherited import base_path
from tfjob.errors import PreparationError, TargetError
from tfjob.planning.plan import EnvironmentPlan, Plan
from tfjob.rundir import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tfjob.engines.slurm.elsewhere import ElsewhereEngine
    from tfjob.environments.definition import Definition
    from tfjob.environments.place import Place
    from tfjob.environments.prefix import Prefix
    from tfjob.images.environment import ContainerEnvironment

__all__ = ["prepare_environment"]

Say = Callable[[str], None]


class _Told(NamedTuple):
    """What goes into making an environment beside what is asked for: a lock or image to follow, and who is told what happens."""

    lock: str | None
    image: str | None
    log: Say
    progress: Say


def prepare_environment(
    plan: Plan,
    run: RunDirectory,
    store: Path,
    environ: Mapping[str, str],
    progress: Say,
    *,
    elsewhere: ElsewhereEngine | None = None,
) -> Prepared:
    """Find or build the plan's environment. The build's log and the lock go to the run directory.

    `elsewhere` is the engine of a run on a cluster that is used from elsewhere: packages are made for that. Raises PreparationError
    when it can't be made, TargetError when a Docker Engine is needed and none answers, or the login node does not.
    """
    asked = plan.environment
    if asked is not None and plan.slurm is not None and _is_left_to_nodes(plan, asked, run):
        progress(f"no Docker Engine answers here: the nodes fetch the image {asked.image}")
        return Prepared(None, {})
    if plan.runtime == "docker" and asked is not None:
        with _build_log(run) as log, _explained(elsewhere):
            found = _container(plan, asked, store, _Told(_lock(run), _image(run), log, progress))
        return _for_containers(found, run, store, progress)
    if elsewhere is not None:
        if asked is None or asked.definition is None:
            progress("the nodes' own Python")
            return Prepared(None, {})
        return _on_cluster(asked.definition, run, store, elsewhere, progress)
    path = base_path(environ)
    if asked is None or asked.definition is None:
        python = shutil.which("python3", path=path)
        progress(f"this machine's own Python, {python}" if python else "no environment, and no python3 on PATH")
        return Prepared(None, {"environment.path": path})
    from tfjob.environments.place import Machine  # noqa: PLC0415  # only jobs with an environment pay for it

    prefix = _prefix(asked.definition, Machine(), run, store, progress)
    _tell(prefix, run, progress)
    values = {"environment.path": f"{prefix.final}/bin:{path}", "environment.prefix": str(prefix.final)}
    return Prepared(prefix.key, values)


def _is_left_to_nodes(plan: Plan, asked: EnvironmentPlan, run: RunDirectory) -> bool:
    """Whether a job of Slurm's names an image, and this machine has no Docker Engine to fetch it by: login nodes seldom have."""
    if plan.runtime != "docker" or asked.image is None or _image(run) is not None:
        return False
    from tfjob.images.engine import find_image  # noqa: PLC0415  # only jobs in containers pay for it

    try:
        find_image(asked.image)
    except TargetError:
        return True
    return False


def _prefix(definition: Definition, place: Place, run: RunDirectory, store: Path, progress: Say) -> Prefix:
    from tfjob.environments.store import Store  # noqa: PLC0415  # only jobs with an environment pay for it

    keeper, lock = Store(store), _lock(run)
    while True:
        prefix = keeper.find(definition, place, lock)
        if prefix is None:
            with _build_log(run) as log:
                prefix = keeper.prepare(definition, place, lock=lock, log=log, progress=progress)
        if _hold(prefix, store):
            return prefix


def _on_cluster(
    definition: Definition, run: RunDirectory, store: Path, elsewhere: ElsewhereEngine, progress: Say
) -> Prepared:
    """The packages for a cluster that is used from elsewhere. Its engine sends them."""
    place = elsewhere.place(store)
    if definition.channels:
        place.require_same_processor()
    prefix = _prefix(definition, place, run, store, progress)
    _tell(prefix, run, progress)
    values = {"environment.path": f"{prefix.final}/bin", "environment.prefix": str(prefix.final)}
    return Prepared(prefix.key, values, prefix=prefix.path)


@contextmanager
def _explained(elsewhere: ElsewhereEngine | None) -> Iterator[None]:
    """Say what else can be done where no Docker Engine answers here."""
    try:
        yield
    except TargetError as error:
        if elsewhere is None:
            raise
        raise TargetError(
            f"what the job's containers are started from is made here, and sent to the cluster: {error.message}",
            f"{error.hint} Or name an image that the nodes can fetch, or submit from a login node.".lstrip(),
        ) from error


def _for_containers(found: ContainerEnvironment, run: RunDirectory, store: Path, progress: Say) -> Prepared:
    values = {"environment.path": found.path}
    mounts: tuple[Mount, ...] = ()
    if found.prefix is not None:
        if not _hold(found.prefix, store):
            raise PreparationError(
                f"the environment {found.prefix.key} was pruned just before the run came to use it", "Submit again."
            )
        _tell(found.prefix, run, progress)
        values["environment.prefix"] = str(found.prefix.final)
        if found.mount:
            mounts = (Mount(str(found.prefix.path), str(found.prefix.final)),)
    else:
        progress(f"image {found.image.removeprefix('sha256:')[:12]}")
        replace_text(run.image_file, f"{found.image}\n", force=False)
    return Prepared(
        found.prefix.key if found.prefix else None,
        values,
        image=found.image,
        python=found.python,
        mounts=mounts,
        bake=found.bake,
        prefix=found.prefix.path if found.prefix is not None and found.mount else None,
    )


def _container(plan: Plan, asked: EnvironmentPlan, store: Path, told: _Told) -> ContainerEnvironment:
    from tfjob.images import environment as container  # noqa: PLC0415  # only jobs in containers pay for it

    log, progress = told.log, told.progress
    if asked.definition is not None and asked.base is not None:
        packages = plan.container.packages if plan.container else "mounted"
        return container.packages_on_base(
            asked.definition, asked.base, store=store, lock=told.lock, packages=packages, log=log, progress=progress
        )
    if told.image is not None:  # a rerun, or another supervisor's try: the very image, whatever has become of its name
        return container.use_kept_image(told.image, store=store, log=log, progress=progress)
    if asked.dockerfile is not None:
        source = asked.dockerfile
        container.require_unchanged(Path(source.path), source.digest, Path(source.context), source.arguments)
        return container.build_dockerfile(
            Path(source.path), Path(source.context), dict(source.arguments), store=store, log=log, progress=progress
        )
    return container.use_image(asked.image or "", store=store, log=log, progress=progress)


def _image(run: RunDirectory) -> str | None:
    """The image that the run that is run again used."""
    return run.image_file.read_text(encoding="utf-8").strip() if run.image_file.exists() else None


def _lock(run: RunDirectory) -> str | None:
    """The lock that came with the job, or with the run that is run again; one this run made itself is as good."""
    return run.lock_file.read_text(encoding="utf-8") if run.lock_file.exists() else None


def _hold(prefix: Prefix, store: Path) -> bool:
    """Keep the prefix from being pruned until this supervisor ends; whether it had not been pruned just before."""
    from tfjob.environments.store import Store  # noqa: PLC0415

    Store(store).hold(prefix.key)
    return prefix.path.is_dir()


def _tell(prefix: Prefix, run: RunDirectory, progress: Say) -> None:
    if not run.lock_file.exists():
        shutil.copyfile(prefix.lock, run.lock_file)
    count = f"{prefix.packages} package{'s' if prefix.packages != 1 else ''}"
    progress(f"environment {prefix.key[:12]}: Python {prefix.python_version}, {count}")


@contextmanager
def _build_log(run: RunDirectory) -> Iterator[Say]:
    """Writes lines to the run's build log, which is made when there is a line to write."""
    with ExitStack() as stack:
        opened: list[TextIO] = []

        def write(line: str) -> None:
            if not opened:
                opened.append(stack.enter_context(run.environment_log.open("a", encoding="utf-8", buffering=1)))
            print(line, file=opened[0])

        yield write
