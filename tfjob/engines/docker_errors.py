"""What the Docker Engine says when it can't make or start a container, as an error with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.engines.base import Prepared
from tfjob.errors import PreparationError, TargetError, TfjobError
from tfjob.planning.plan import Plan

__all__ = ["explained"]

_REASONS: tuple[tuple[str, str, str], ...] = (
    (
        "could not select device driver",
        "the Docker Engine at {address} can't give GPUs to containers",
        "Install the NVIDIA Container Toolkit and restart Docker.",
    ),
    (
        "bind source path does not exist",
        "the Docker Engine at {address} does not see this machine's files: {message}",
        "A path in compute.docker_args must be there; the engine must run on this machine, not in a virtual one.",
    ),
    (
        "docker-init",
        "the Docker Engine at {address} lacks its init program: {message}",
        "Install it (Debian: tini or docker.io), or point `init-path` in the engine's daemon.json to tini.",
    ),
    (
        "no space left on device",
        "the disk of the Docker Engine at {address} is full: {message}",
        "Make room there: docker system df.",
    ),
)


@contextmanager
def explained(api: DockerApi, plan: Plan, prepared: Prepared) -> Iterator[None]:
    """Turn a refusal into PreparationError, where the environment is to blame, or TargetError."""
    try:
        yield
    except RefusalError as error:
        raise _explain(error, api, plan, prepared) from error


def _explain(error: RefusalError, api: DockerApi, plan: Plan, prepared: Prepared) -> TfjobError:
    message = error.message
    if error.status == 404 and "no such image" in message.lower():
        return PreparationError(
            f"the image {prepared.image} is not in the Docker Engine at {api.address} any more",
            "Submit the job again.",
        )
    for words, told, hint in _REASONS:
        if words in message:
            return TargetError(told.format(address=api.address, message=message), hint)
    given = plan.container.docker_args if plan.container else ()
    return TargetError(
        f"the Docker Engine at {api.address} could not start a container: {message}",
        f"Check compute.docker_args: {' '.join(given)}" if given else "Look into the engine's own log.",
    )
