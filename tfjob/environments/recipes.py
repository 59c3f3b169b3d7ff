"""How source packages are built that need more than an isolated build, as data: `recipes.yml` says what each field means.

A recipe fits certain versions of one package. Its static metadata let uv solve without building anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfjob.durable import digest_of
from tfjob.errors import PreparationError

__all__ = ["Program", "Recipe", "load", "metadata_text", "needed"]

_FILE = Path(__file__).with_name("recipes.yml")


@dataclass(frozen=True)
class Program:
    """Something a place must have: what it is in words, the names it goes by, and the Debian package it is in."""

    title: str
    names: tuple[str, ...]
    debian: str


@dataclass(frozen=True)
class Recipe:
    """How one package is built. The fields are those of `recipes.yml`; those that start with `gpu_` are its `gpu`."""

    package: str
    versions: tuple[str, ...]
    tested: str
    minutes: int
    requires: tuple[str, ...]
    extras: tuple[str, ...]
    against: Mapping[str, tuple[str, ...]]
    mpi: Mapping[str, str]
    gpu_packages: tuple[str, ...]
    gpu_headers: tuple[str, ...]
    gpu_variables: Mapping[str, str]
    tools: tuple[str, ...]
    programs: tuple[Program, ...]
    variables: Mapping[str, str]
    files: Mapping[str, str]
    passed: tuple[str, ...]
    digest: str
    """What changes when the same sources would be built in another way."""


def load(file: Path = _FILE) -> tuple[Recipe, ...]:
    """Read the recipes that come with tfjob, or those of another file of the same form."""
    import yaml  # noqa: PLC0415 (only those who build pay for it)

    entries: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return tuple(_recipe(package, entry) for package, entry in entries.items())


def _recipe(package: str, entry: Mapping[str, Any]) -> Recipe:
    gpu = entry.get("gpu", {})
    builds = [entry.get(key) for key in ("number", "tools", "variables", "files")]
    return Recipe(
        package=package,
        versions=tuple(entry["versions"]),
        tested=entry["tested"],
        minutes=entry["minutes"],
        requires=tuple(entry.get("requires", ())),
        extras=tuple(entry.get("extras", ())),
        against={title: tuple(names) for title, names in entry.get("against", {}).items()},
        mpi=dict(entry.get("mpi", {})),
        gpu_packages=tuple(gpu.get("packages", ())),
        gpu_headers=tuple(gpu.get("headers", ())),
        gpu_variables=dict(gpu.get("variables", {})),
        tools=tuple(entry["tools"]),
        programs=tuple(
            Program(title, tuple(one["names"]), one["debian"]) for title, one in entry.get("programs", {}).items()
        ),
        variables=dict(entry.get("variables", {})),
        files=dict(entry.get("files", {})),
        passed=tuple(entry.get("passed", ())),
        digest=digest_of(builds),
    )


def needed(packages: Mapping[str, str], recipes: tuple[Recipe, ...]) -> tuple[Recipe, ...]:
    """Return the recipes of the packages of a lock (name → version). One that came from a URL is built as it is.

    Raises PreparationError when a package has a recipe, but not for this version.
    """
    found = []
    for recipe in recipes:
        version = packages.get(recipe.package, "")
        if version in recipe.versions:
            found.append(recipe)
        elif version and "://" not in version:
            versions = " and ".join(recipe.versions)
            raise PreparationError(
                f"{recipe.package} {version} has to be built from source, and tfjob knows how to build {versions} only",
                f"Ask for `{recipe.package}=={recipe.versions[-1]}`.",
            )
    return tuple(found)


def metadata_text(recipes: tuple[Recipe, ...]) -> str:
    """Return what the packages of these recipes need, as a configuration file of uv (its `dependency-metadata`, TOML)."""
    entries = [
        f"[[dependency-metadata]]\nname = {json.dumps(recipe.package)}\nversion = {json.dumps(version)}\n"
        f"requires-dist = {json.dumps(recipe.requires)}\nprovides-extra = {json.dumps(recipe.extras)}\n"
        for recipe in recipes
        for version in recipe.versions
    ]
    return "\n".join(entries)
