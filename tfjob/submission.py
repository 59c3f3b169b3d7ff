"""The whole story on one page: load → resolve → plan → record → supervise. What the CLI and `import tfjob` both call."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import tfjob
from tfjob.datasets.files import DatasetFiles
from tfjob.datasets.sources import find
from tfjob.durable import replace_json, replace_text, try_lock
from tfjob.environments.resolved import ResolvedEnvironment, resolve_environment
from tfjob.errors import NotFound, UsageError
from tfjob.foresight.pairings import Finding
from tfjob.planning.make import make_plan
from tfjob.planning.plan import Plan
from tfjob.resolve import ResolvedJob, resolve
from tfjob.rundir import RunDirectory
from tfjob.runs.fetched import dataset_records, dataset_text, with_fetched
from tfjob.runs.record import Record, iso, read_record, write_record
from tfjob.runs.run import Run
from tfjob.runs.starting import StartingSupervisor
from tfjob.snapshot import Snapshot, scan, take
from tfjob.spec.job import DatasetSpec, JobSpec
from tfjob.spec.load import load
from tfjob.targets.definition import SlurmDefinition
from tfjob.targets.local import LOCAL, local_target
from tfjob.targets.registered import Targets
from tfjob.targets.request import defined_target, narrowed, refuse_what_never_fits
from tfjob.targets.target import Target
from tfjob.values import decode, encode
from tfjob.workspace import Config, Workspace, default_config, find_workspace, make_workspace

__all__ = ["Ready", "begin", "plan", "prepare", "prepare_rerun", "submit"]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: nothing that looks like something else
_RESERVE_BYTES = 256 * 1024
_MANY_FILES = 1000


def plan(job: JobSpec | Path | str, *, overrides: Sequence[str] = ()) -> Plan:
    """The Plan of a job (a loaded one, or the path of its file): exactly what `submit` would run. Starts and keeps nothing.

    Raises InvalidFile with every problem of the file, and NotFound, PreparationError or TargetError for what its names
    stand for.
    """
    return prepare(job, overrides=overrides, workspace=find_workspace()).plan


@dataclass(frozen=True)
class Ready:
    """A plan with all that starting it takes; nothing has been started or kept yet but the code's snapshot may be taken."""

    plan: Plan
    code: Snapshot | None
    source: str
    overrides: tuple[str, ...]
    rerun_of: str | None = None
    lock: str | None = None
    image: str | None = None
    findings: tuple[Finding, ...] = ()


def submit(
    job: JobSpec | Path | str,
    *,
    overrides: Sequence[str] = (),
    workspace: Workspace | None = None,
) -> Run:
    """Start a run of the job and return it at once; the run goes on by itself.

    The workspace is the one given, or that of the current folder, which is made if there is none.
    Raises what `plan` raises; nothing has been started or kept then.
    """
    workspace = workspace or find_workspace()
    ready = prepare(job, overrides=overrides, workspace=workspace)
    return begin(ready, workspace or make_workspace(Path.cwd())[0])


def prepare(
    job: JobSpec | Path | str,
    *,
    overrides: Sequence[str] = (),
    workspace: Workspace | None = None,
) -> Ready:
    """The first half of `submit`: everything that can be refused or interrupted, and starts nothing."""
    spec = _loaded(job, overrides)
    config = workspace.config if workspace else default_config()
    resolved = _look_up(spec, workspace, config)
    lock = resolved.environment.lock if resolved.environment else None
    findings = _foreseen(resolved, config)
    return Ready(make_plan(resolved), resolved.code, spec.source, spec.overrides, lock=lock, findings=findings)


def begin(ready: Ready, workspace: Workspace, supervisor: StartingSupervisor | None = None) -> Run:
    """The second half of `submit`: keep the code, make the run's directory whole or not at all, start its supervisor.

    `supervisor` may have been started before, to save the time it takes to load.
    """
    if ready.code:
        take(ready.code, workspace.snapshots)
    return _begin(ready, workspace, supervisor or StartingSupervisor())


def prepare_rerun(workspace: Workspace, run: RunDirectory) -> Ready:
    """The very Plan of an earlier run, to `begin` once more: the same code, environment, datasets and arguments.

    Its target is used as it is defined now. Raises UsageError when a secret it needs is not set in this shell, NotFound
    when its code is no longer kept, and TargetError when the target can no longer run it.
    """
    made = with_fetched(decode(Plan, json.loads(run.plan.read_bytes())), run)
    missing = [name for name in made.secrets if name not in os.environ]
    if missing:
        raise UsageError(
            f"the job's secrets {', '.join(missing)} are not set in this shell", "Export them, then try again."
        )
    if made.code and not (workspace.snapshots / made.code.digest).is_dir():
        raise NotFound(f"the code of run {run.id} (snapshot {made.code.digest[:12]}) is no longer in the workspace")
    source = run.job_file.read_text(encoding="utf-8")
    lock = run.lock_file.read_text(encoding="utf-8") if run.lock_file.exists() else None
    image = run.image_file.read_text(encoding="utf-8") if run.image_file.exists() else None
    made = _on_present_target(made, workspace)
    return Ready(made, None, source, read_record(run).overrides, rerun_of=run.id, lock=lock, image=image)


def _loaded(job: JobSpec | Path | str, overrides: Sequence[str]) -> JobSpec:
    if isinstance(job, JobSpec):
        if overrides:
            raise UsageError(
                "overrides belong to the loading of a job file, and this job is loaded", "Give them to tfjob.load."
            )
        return job
    return load(job, overrides=overrides)


def _look_up(spec: JobSpec, workspace: Workspace | None, config: Config) -> ResolvedJob:
    """The edge of the pure part: read what the job's names stand for, from the disk and the target, now."""
    target = _target(spec, workspace, config)
    return resolve(
        spec,
        code=scan(spec.code, config.snapshot_limit_mib) if spec.code else None,
        datasets=tuple(
            (name, _dataset_files(name, dataset, workspace, spec.base_dir)) for name, dataset in spec.dataset
        ),
        environment=_environment(spec, workspace, config, in_container=target.cluster is not None),
        target=target,
        store=config.store,
    )


def _target(spec: JobSpec, workspace: Workspace | None, config: Config) -> Target:
    """This machine as it is now, or another target as its definition says. Raises NotFound where there is none."""
    compute = spec.compute
    if compute.target == LOCAL:
        # A job without GPUs need not ask the driver: the answer takes longer than the job may.
        declared = config.local_gpus if compute.gpus_per_node else 0
        return local_target(declared_gpus=declared, cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"))
    definition = Targets(workspace.compute if workspace else None).get(compute.target).definition
    return defined_target(
        narrowed(definition, node_type=compute.node_type, priority=compute.priority, properties=compute.properties)
    )


def _on_present_target(made: Plan, workspace: Workspace) -> Plan:
    """An earlier plan on its target as that is defined now, if it still is. Raises TargetError where it no longer fits."""
    if made.cluster is None and made.slurm is None:
        return made
    registered = Targets(workspace.compute).find(made.target)
    if registered is None:
        return made
    definition = narrowed(
        registered.definition, node_type=made.node_type, priority=made.priority, properties=made.target_properties
    )
    if definition.kind != ("docker" if made.cluster else "slurm"):
        raise UsageError(
            f"the compute target {made.target} is of kind {definition.kind} now, and the run was planned for another",
            "Submit the job again: tfjob submit JOB.yml",
        )
    if isinstance(definition, SlurmDefinition):
        return replace(made, slurm=definition)
    refuse_what_never_fits(definition, made.node_count, made.gpus_per_node)
    return replace(made, cluster=definition)


def _foreseen(resolved: ResolvedJob, config: Config) -> tuple[Finding, ...]:
    """What is known to fail of the job, and may not. Raises UsageError for what certainly does, and for a stale lock."""
    asked = resolved.environment
    if asked is None or asked.definition is None:
        return ()
    asked.require_fresh_lock()
    from tfjob.foresight.foresee import foresee  # noqa: PLC0415  # 30 ms for jobs with packages

    found = foresee(resolved, store=config.store, environ=os.environ)
    errors = [one for one in found if one.severity == "error"]
    if errors:
        raise UsageError("; ".join(one.message.rstrip(".") for one in errors), " ".join(one.way_out for one in errors))
    return found


def _environment(
    spec: JobSpec, workspace: Workspace | None, config: Config, *, in_container: bool
) -> ResolvedEnvironment | None:
    resolve_from = partial(resolve_environment, base_dir=spec.base_dir, image_of=config.image)
    if spec.environment.name is None:
        found = resolve_from(spec.environment)
    else:
        from tfjob.environments.registered import find  # noqa: PLC0415  # only for jobs that name one

        named = find(spec.environment.name, workspace.environments if workspace else None)
        found = resolve_from(named.spec, name=named.full_name, variables=named.variables, lock=named.lock)
    if found is None and (in_container or spec.compute.runtime == "docker"):
        return ResolvedEnvironment(image=config.image(spec.environment.base))
    return found


def _dataset_files(name: str, dataset: DatasetSpec, workspace: Workspace | None, base_dir: Path) -> DatasetFiles:
    if dataset.name is None:
        return find(dataset.paths, dataset.sha256)
    from tfjob.datasets.registered import find_registered  # noqa: PLC0415  # only for jobs that name one

    try:
        return find_registered(dataset.name, workspace.datasets if workspace else None)
    except NotFound as error:
        if os.path.lexists(base_dir / dataset.name):
            meant = f"dataset: {{{name}: {{paths: [{dataset.name}]}}}}"
            raise NotFound(
                error.message, f"There is a {dataset.name} beside the job file: did you mean {meant}?"
            ) from None
        raise


def _begin(ready: Ready, workspace: Workspace, supervisor: StartingSupervisor) -> Run:
    """Make the run's directory, whole or not at all, and its owner's alone; and start its supervisor."""
    workspace.runs.mkdir(parents=True, exist_ok=True)
    fresh = RunDirectory(Path(tempfile.mkdtemp(dir=workspace.runs, prefix=".new-")))
    try:
        for directory in (fresh.logs, fresh.outputs, fresh.tasks):
            directory.mkdir()
        lock = try_lock(fresh.supervisor_lock)
        assert lock is not None  # noqa: S101  # nobody else knows of this directory
        if count := _files_to_fetch(ready.plan, workspace):
            supervisor.expect_many_files(count)
        fresh.reserve.write_bytes(bytes(_RESERVE_BYTES))
        replace_text(fresh.job_file, ready.source, force=False)
        _keep_plan(ready.plan, fresh.plan)
        if ready.lock is not None:
            replace_text(fresh.lock_file, ready.lock, force=False)
        if ready.image is not None:
            replace_text(fresh.image_file, ready.image, force=False)
        run = _named(fresh, ready, workspace)
    except BaseException:
        supervisor.close()
        shutil.rmtree(fresh.path, ignore_errors=True)
        raise
    supervisor.give(run, lock)
    return Run(run)


def _files_to_fetch(made: Plan, workspace: Workspace) -> int:
    """How many files of the web the run's supervisor has to fetch, where they are very many and no run has had them yet."""
    if sum(one.file_count for one in made.datasets) < _MANY_FILES or made.cluster is not None or made.slurm is not None:
        return 0
    from tfjob.datasets.cache import Cache  # noqa: PLC0415  # only for those who have so much data
    from tfjob.runs.planned_data import files_to_come  # noqa: PLC0415  # the same

    return files_to_come(made.datasets, Cache(workspace.config.dataset_cache))


def _keep_plan(made: Plan, path: Path) -> None:
    """Write the plan for people to read; with very many files a line for each part of it: indenting those takes long."""
    if sum(dataset.file_count for dataset in made.datasets) < _MANY_FILES:
        replace_json(path, encode(made), force=False)
    else:
        parts = {key: json.dumps(part) for key, part in encode(replace(made, datasets=())).items()}
        parts["datasets"] = f"[{', '.join(map(dataset_text, made.datasets))}]"
        lines = (f"{json.dumps(key)}: {text}" for key, text in parts.items())
        replace_text(path, "{\n" + ",\n".join(lines) + "\n}\n", force=False)


def _random_name() -> str:
    """Six characters: a thousand million names, short to type."""
    return "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in os.urandom(6))


def _named(fresh: RunDirectory, ready: Ready, workspace: Workspace) -> RunDirectory:
    """Give the new directory an id nobody has. An id is the job's name and six characters: short to type, unique in the workspace."""
    made = ready.plan
    while True:
        run = RunDirectory(workspace.runs / f"{made.name}-{_random_name()}")
        record = Record(
            id=run.id,
            name=made.name,
            experiment=made.experiment,
            state="Preparing",
            created=iso(time.time()),
            dir=str(run.path),
            target=made.target,
            description=made.description,
            tags=made.tags,
            properties=made.properties,
            code_digest=made.code.digest if made.code else None,
            datasets=dataset_records(made),
            overrides=ready.overrides,
            rerun_of=ready.rerun_of,
            tfjob_version=tfjob.__version__,
        )
        write_record(fresh, record)
        try:
            fresh.path.rename(run.path)
        except OSError:
            if not run.path.exists():
                raise
            continue  # that id is taken: a directory that is not empty can't be replaced
        return run
