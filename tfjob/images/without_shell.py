"""The Python of an image that has no shell to look into it with, such as a distroless one."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from tfjob.errors import PreparationError
from tfjob.images.container import OWNER, _owner
from tfjob.images.engine import connected

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["answer_without_shell"]

# By the image's own PATH, then where Debian's and Docker's images have it.
_PYTHONS = ("python3", "/usr/bin/python3", "/usr/local/bin/python3")


def answer_without_shell(image: str, question: str, *, doing: str, log: Callable[[str], None]) -> str:
    """Return the answer of an image's Python to a question (its -c text), and its path; empty when it has none.

    `doing` completes "the Docker Engine could not …". Raises TargetError when no engine answers.
    """
    question = f"{question}; import os; print(os.path.realpath(sys.executable))"
    for python in _PYTHONS:
        try:
            lines = _output(image, [python, "-I", "-S", "-c", question], doing)
        except PreparationError as error:  # there is none
            log(error.message)
            continue
        if len(lines) == 2:
            return " ".join(lines)
    return ""


def _output(image: str, command: list[str], doing: str) -> list[str]:
    """Run a program in a throw-away container, and return the lines it prints."""
    with connected(doing) as client:
        created = client.api.create_container(
            image,
            entrypoint=command[:1],
            command=command[1:],
            user=f"{os.geteuid()}:{os.getegid()}",
            working_dir="/",
            labels={OWNER: _owner(os.getpid())},
            host_config=client.api.create_host_config(network_mode="none"),
        )
        try:
            client.api.start(created["Id"])
            client.api.wait(created["Id"])
            return (
                bytes(client.api.logs(created["Id"], stdout=True, stderr=False))
                .decode("utf-8", "replace")
                .split("\n")[:-1]
            )
        finally:
            with contextlib.suppress(Exception):
                client.api.remove_container(created["Id"], force=True)
