"""Commands that make environments ahead of a submit: env lock, env build."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfjob.cli.building import building
from tfjob.cli.options import DocumentOutput, complete_environment, complete_target
from tfjob.cli.output import plural, print_document, shown_path, size
from tfjob.errors import UsageError
from tfjob.workspace import default_config, find_workspace

if TYPE_CHECKING:
    from tfjob.cli.building import BuildScreen
    from tfjob.environments.place import Place
    from tfjob.environments.resolved import ResolvedEnvironment

__all__ = ["Runtime", "What", "asked_for", "build", "lock", "place_of"]


class Runtime(StrEnum):
    """Where the environment will be used."""

    process = "process"
    docker = "docker"


What = Annotated[
    str,
    typer.Argument(
        metavar="ENVIRONMENT",
        help="A registered or curated name, name@version, a conda or environment file, or a job file.",
        show_default=False,
        autocompletion=complete_environment,
    ),
]
RuntimeOption = Annotated[
    Runtime,
    typer.Option(help="Where it will be used: by processes of this machine, or in containers on its base image."),
]


def asked_for(what: str) -> tuple[ResolvedEnvironment, Path]:
    """The environment that `what` names, and the store it is kept in."""
    from tfjob.environments.asked import ask  # noqa: PLC0415  # YAML and schemas are for commands that need them

    workspace = find_workspace()
    config = workspace.config if workspace else default_config()
    return ask(what, registry=workspace.environments if workspace else None, image_of=config.image), config.store


def place_of(asked: ResolvedEnvironment, runtime: Runtime, store: Path, screen: BuildScreen) -> Place:
    """This machine, or the base image of the environment, pulled if need be."""
    if runtime is Runtime.process:
        from tfjob.environments.place import Machine  # noqa: PLC0415

        return Machine()
    from tfjob.images.base import base_image  # noqa: PLC0415

    return base_image(asked.base or "", store_root=store, log=screen.log, progress=screen.progress)


def _login_node(name: str, runtime: Runtime, store: Path) -> Place:
    """A cluster that is used by way of a login node. Raises UsageError for a target that is none, NotFound."""
    from tfjob.engines.slurm.kept_there import store_of  # noqa: PLC0415  # only for its targets
    from tfjob.engines.slurm.login import Login  # noqa: PLC0415  # only to lock for a cluster elsewhere
    from tfjob.engines.slurm.place import LoginNode  # noqa: PLC0415  # the same
    from tfjob.targets.definition import SlurmDefinition  # noqa: PLC0415  # the same
    from tfjob.targets.registered import Targets  # noqa: PLC0415  # the same

    workspace = find_workspace()
    found = Targets(workspace.compute if workspace else None).get(name).definition
    if not isinstance(found, SlurmDefinition) or found.login is None or found.directory is None:
        raise UsageError(
            f"target {name} is no Slurm cluster with `login` and `directory`",
            "For this machine, and a cluster that it is a login node of, leave --target out; for containers, say --runtime docker.",
        )
    if runtime is Runtime.docker:
        raise UsageError("a lock for containers is for their base image, wherever they run", "Leave --target out.")
    return LoginNode(Login(found.login, os.environ), store_of(Path(found.directory)), store, os.environ)


def lock(
    environment: What,
    runtime: RuntimeOption = Runtime.process,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Write it there. [default: beside the conda file]", show_default=False),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="Lock it for a Slurm cluster that is used from elsewhere: this target's login node.",
            show_default=False,
            autocompletion=complete_target,
        ),
    ] = None,
) -> None:
    """Solve an environment, and write the version and hash of every package to a file that later builds follow."""
    from tfjob.durable import replace_text  # noqa: PLC0415
    from tfjob.environments.store import Store  # noqa: PLC0415

    asked, store = asked_for(environment)
    if asked.definition is None:
        raise UsageError(
            f"{environment} is {_kind(asked)}, and has no list of packages to lock",
            "Name an environment of conda and pip packages.",
        )
    with building("Locking") as screen:
        place = place_of(asked, runtime, store, screen) if target is None else _login_node(target, runtime, store)
        made = Store(store).solve(asked.definition, place, log=screen.log, progress=screen.progress)
    path = to or asked.lock_path
    if path is None:
        print(made.text, end="")
        return
    replace_text(path, made.text)
    print(f"{shown_path(str(path))}: Python {made.python_version}, {plural(len(made.packages), 'package')}")


def build(
    environment: What,
    runtime: RuntimeOption = Runtime.process,
    image: Annotated[bool, typer.Option("--image", help="Bake packages and base image into one image.")] = False,
    push: Annotated[
        str | None,
        typer.Option(
            "--push", metavar="IMAGE", help="Push the image under this name; implies --image.", show_default=False
        ),
    ] = None,
    output: DocumentOutput = None,
) -> None:
    """Build an environment now, so that the next submit finds it: for processes, for containers, or as an image."""
    asked, store = asked_for(environment)
    asked.require_fresh_lock()
    if asked.definition is None or image or push:
        runtime = Runtime.docker
    with building("Building") as screen:
        made = (
            _on_machine(asked, store, screen)
            if runtime is Runtime.process
            else _image(asked, store, screen, image or bool(push))
        )
        if push:
            from tfjob.images.bake import push as push_image  # noqa: PLC0415

            push_image(made["image"], push, log=screen.log, progress=screen.progress)
            made["pushed"] = push
    if output:
        print_document(made, output)
        return
    width = max(map(len, made))
    for name, value in made.items():
        shown = size(value) if name.endswith("bytes") or name.startswith("bytes") else value
        print(f"{name.replace('_', ' ').ljust(width)}  {shown}")


def _on_machine(asked: ResolvedEnvironment, store: Path, screen: BuildScreen) -> dict[str, Any]:
    from tfjob.environments.place import Machine  # noqa: PLC0415
    from tfjob.environments.store import Store  # noqa: PLC0415

    assert asked.definition is not None  # noqa: S101  # the caller has looked
    prefix = Store(store).prepare(
        asked.definition, Machine(), lock=asked.lock, log=screen.log, progress=screen.progress
    )
    return {"prefix": str(prefix.path), "key": prefix.key, "python": prefix.python_version, "packages": prefix.packages}


def _image(asked: ResolvedEnvironment, store: Path, screen: BuildScreen, baked: bool) -> dict[str, Any]:
    from tfjob.images import environment as container  # noqa: PLC0415

    log, progress = screen.log, screen.progress
    if asked.definition is not None:
        made = container.packages_on_base(
            asked.definition,
            asked.base or "",
            store=store,
            lock=asked.lock,
            packages="baked" if baked else "mounted",
            log=log,
            progress=progress,
        )
    elif asked.dockerfile is not None:
        source = asked.dockerfile
        made = container.build_dockerfile(
            source.path, source.context, dict(source.arguments), store=store, log=log, progress=progress
        )
    else:
        made = container.use_image(asked.image or "", store=store, log=log, progress=progress)
    found: dict[str, Any] = {"image": made.image}
    if made.prefix is not None:
        found |= {"key": made.prefix.key, "python": made.prefix.python_version, "packages": made.prefix.packages}
        if made.mount:
            found["prefix"] = str(made.prefix.path)
        if made.baked is not None:
            found |= {"tag": made.baked.tag, "layers": made.baked.layers, "layers_sent": made.baked.sent_layers}
            found |= {"size_bytes": made.baked.size_bytes, "bytes_sent": made.baked.sent_bytes}
        else:
            found["base"] = found.pop("image")  # the packages are mounted; the image is what they are mounted into
    return found


def _kind(asked: ResolvedEnvironment) -> str:
    return "a finished image" if asked.image else "a Dockerfile"
