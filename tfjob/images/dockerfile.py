"""A Dockerfile, and the files beside it, that build by hand what tfjob bakes: the same Python, the same packages.

Everything comes from the lock, with its hashes. Where packages are downloaded from is not written down: pip's own
configuration is handed to the build as a secret, which stays out of the image.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfjob.environments.lock import dump
from tfjob.environments.wheels import replace
from tfjob.images.added import SSH
from tfjob.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tfjob.environments.definition import Definition
    from tfjob.environments.lock import Lock

__all__ = ["conda_file", "dockerfile", "files"]

# Options of a requirements file that say where to look: those belong to whoever builds.
_WHERE = ("-i ", "--index-url", "--extra-index-url", "-f ", "--find-links", "--trusted-host", "--no-index")
_SETTINGS = """\
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca SSL_CERT_FILE=/run/secrets/ca; fi; \\
    if [ -s /run/secrets/pip ]; then export PIP_CONFIG_FILE=/run/secrets/pip; fi; \\
    if [ -d /build/wheels ]; then export PIP_FIND_LINKS=/build/wheels; fi; \\
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1; \\
"""
_MOUNTS = "--mount=type=bind,target=/build --mount=type=secret,id=pip --mount=type=secret,id=ca"


def files(
    lock: Lock,
    base: str,
    *,
    definition: Definition | None = None,
    conda: str | None = None,
    ssh: bool = True,
    wheels: Mapping[str, Path] | None = None,
) -> dict[str, str]:
    """Return the files of a folder that builds the environment, by their names: ``Dockerfile``, ``README.md`` and more.

    `base` is the image to start from, best with its digest. `conda` is the text of the conda file it was made from; without,
    one is written from `definition`. `ssh` adds an SSH server and client where the base has none. `wheels` are those of
    source packages that tfjob built (name → file): whoever writes the files puts them into a folder ``wheels`` beside.
    """
    found = {
        "Dockerfile": dockerfile(lock, base, ssh=ssh),
        "README.md": _readme(lock, base),
        "environment.lock": lock.text,
        "requirements.txt": _requirements(replace(lock.pip_text, wheels, by_place=False) if wheels else lock.pip_text),
    }
    text = conda if conda is not None else conda_file(definition) if definition is not None else None
    found |= {"environment.yml": text} if text is not None else {}
    if lock.conda is not None:
        found["conda.lock"] = dump(lock.conda)
        found["conda_installer.py"] = Path(__file__).with_name("conda_installer.py").read_text(encoding="utf-8")
    return found


def dockerfile(lock: Lock, base: str, *, ssh: bool = True) -> str:
    """Return the Dockerfile for a lock on the image `base`."""
    command = "python" + ".".join(lock.python_version.split(".")[:2])
    text = [
        f"# Made by tfjob {__version__} for Python {lock.python_version} on {lock.platform}: README.md says how to build it.",
        f"ARG BASE={base}",
    ]
    if lock.conda is not None:
        text += [
            "# Where the packages are put together: any image with Python 3.9 or newer and venv.",
            "ARG BUILDER=${BASE}",
            "FROM ${BUILDER} AS packages",
            "USER 0",
            *_run(
                [
                    "python3 -m venv /opt/installer",
                    "/opt/installer/bin/pip install --quiet 'py-rattler>=0.20'",
                    "/opt/installer/bin/python /build/conda_installer.py /build/conda.lock /opt/env /build/conda",
                ]
            ),
            *_pip_from_outside(lock),
            "",
            "FROM ${BASE}",
            "USER 0",
            *(_ssh() if ssh else []),
            "COPY --from=packages /opt/env /opt/env",
        ]
    else:
        text += [
            "FROM ${BASE}",
            "USER 0",
            *(_ssh() if ssh else []),
            f"RUN {command} -m venv /opt/env",
            *_pip(lock, "/opt/env/bin/python"),
        ]
    text += ["COPY environment.lock /opt/env/environment.lock", "ENV PATH=/opt/env/bin:${PATH}", ""]
    return "\n".join(text)


def conda_file(definition: Definition) -> str:
    """Return a conda file that asks for what a definition asks for."""
    clauses = (definition.python or "").split(",")
    exact = clauses[0] if len(clauses) == 1 and clauses[0].startswith("==") else ""
    plain = exact.replace("==", "=").removesuffix(".*") if exact.endswith(".*") else exact
    asked: list[Any] = [f"python{plain}" if exact else f"python {definition.python or ''}".strip()]
    asked += ["pip"] if definition.has_pip or definition.requirements else []
    asked += list(definition.packages)
    asked += [{"pip": list(definition.requirements)}] if definition.requirements else []
    value: dict[str, Any] = {"channels": list(definition.channels)} if definition.channels else {}
    value["dependencies"] = asked
    if definition.variables:
        value["variables"] = dict(definition.variables)
    return dump(value)


def _run(commands: Iterable[str]) -> list[str]:
    """Return an instruction that runs these commands with the settings for downloads."""
    lines = f"RUN {_MOUNTS} \\\n    set -eu; \\\n{_SETTINGS}" + "; \\\n".join(f"    {one}" for one in commands)
    return lines.split("\n")


def _pip(lock: Lock, python: str) -> list[str]:
    """Return the instruction for the pip part; tools that came with the Python only to install are taken out again."""
    hashes = "--require-hashes " if lock.has_all_hashes else ""
    kept = {name.lower().replace("_", "-") for name in lock.packages}
    removed = [name for name in ("wheel", "setuptools", "pip") if name not in kept]
    commands = [f"{python} -m pip --version >/dev/null 2>&1 || {python} -m ensurepip"]
    if lock.pip_packages:
        commands.append(f"{python} -m pip install --no-cache-dir --no-deps {hashes}-r /build/requirements.txt")
    if removed:
        commands.append(f"{python} -m pip uninstall --quiet --yes {' '.join(removed)}")
    if "pip" in removed:
        commands.append("rm -f /opt/env/bin/pip /opt/env/bin/pip3*")
    commands.append(f"{python} -m compileall -q --invalidation-mode unchecked-hash -j 0 /opt/env/lib || true")
    return _run(commands)


def _pip_from_outside(lock: Lock) -> list[str]:
    """Return the instruction for the pip part beside conda packages: by the installer's pip, as conda's Python may have none."""
    hashes = "--require-hashes " if lock.has_all_hashes else ""
    pip = "/opt/installer/bin/python -m pip --python /opt/env/bin/python"
    commands = (
        [f"{pip} install --no-cache-dir --no-deps {hashes}-r /build/requirements.txt"] if lock.pip_packages else []
    )
    compiling = "-m compileall -q --invalidation-mode unchecked-hash -j 0 /opt/env/lib || true"
    return _run([*commands, f"/opt/env/bin/python {compiling}"])


def _ssh() -> list[str]:
    """Return the instruction that adds an SSH server and client where there is none, by whatever package manager."""
    lines = ["RUN if ! command -v sshd >/dev/null || ! command -v ssh >/dev/null; then \\"]
    for number, tool in enumerate(SSH.packages):
        command = SSH.install(tool)
        lines.append(f"    {'elif' if number else 'if'} command -v {tool} >/dev/null; then {command}; \\")
    lines.append("    fi; fi; \\")
    return [*lines, f"    {SSH.after}"]


def _requirements(pip_text: str) -> str:
    lines = [line for line in pip_text.splitlines() if not line.strip().startswith(_WHERE)]
    return "\n".join(lines).strip("\n") + "\n"


def _readme(lock: Lock, base: str) -> str:
    count = len(lock.packages)
    text = f"""\
# An environment to build by hand

{count} packages for Python {lock.python_version} on `{base}`, in `/opt/env`. `environment.lock` is what tfjob solved;
`requirements.txt` is its pip part, with hashes. Nothing here says where packages are downloaded from: that is your
pip's configuration.

## Build

    DOCKER_BUILDKIT=1 docker build --tag NAME .

With pip's configuration, and the certificates of a proxy or a mirror of your own (both are seen by the build only, and
are not in the image):

    DOCKER_BUILDKIT=1 docker build --tag NAME \\
      --secret id=pip,src=$HOME/.config/pip/pip.conf --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt .

Without a network: download the packages where there is one, with the same Python, then build anywhere. Wheels of your
own go into the same folder.

    pip download --no-deps --dest wheels --requirement requirements.txt

Another base image: `--build-arg BASE=IMAGE`; it must have the same C library or a newer one ({lock.platform}).
"""
    if lock.conda is not None:
        text += """
## Conda packages

`conda.lock` is a lock file of rattler, which pixi reads too. `conda_installer.py` installs it with py-rattler from PyPI.
The stage that does needs a Python with venv: if the base image has none, `--build-arg BUILDER=IMAGE`. Without a network,
put the packages' files into a folder `conda` and py-rattler's wheel into `wheels`.
"""
    return (
        text
        + """
## Use

    docker run --rm NAME python -c 'import sys; print(sys.version)'

In a job: `environment: {image: NAME}`.
"""
    )
