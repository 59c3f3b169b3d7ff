from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfjob.errors import InvalidFile, Problem, UsageError
from tfjob.spec.build import build
from tfjob.spec.job import (
    ComputeSpec,
    ContainerSpec,
    DatasetSpec,
    DistributionSpec,
    EnvironmentSpec,
    JobSpec,
    LimitsSpec,
    OutputSpec,
    OutputsSpec,
)
from tfjob.spec.load import load, load_text
from tfjob.spec.schema import schema
from tfjob.spec.text import read

Load = Callable[..., JobSpec]
Problems = Callable[..., list[str]]

SHELL = {"TOKEN": "x"}

DIGITS = """\
# yaml-language-server: $schema=…/job.schema.json
name: digits
experiment: tf-digits
description: Two hidden layers on handwritten digits
tags: {team: demo}
code: src                         # directory beside this file
script: train.py                  # script + arguments, or `command:` with one shell line
arguments: [--data-folder, "${{ dataset.digits }}", --batch-size, 64, --learning-rate, 0.010, --fast, true, 1e-3]
dataset:
  digits: {paths: [data/*.gz], mode: mount}       # or a registered name@version
environment:
  conda_file: environment.yml     # or `conda:` inline, `name:`, `dockerfile:`, `image:`
compute: {target: local, node_count: 1, gpus_per_node: 0}
distribution: {type: none}        # none | mpi | tensorflow
environment_variables: {TF_CPP_MIN_LOG_LEVEL: "2"}
outputs: {keep: [outputs]}
limits: {timeout_s: 3600, rendezvous_timeout_s: 120}
"""


def test_the_digits_job(folder: Path) -> None:
    file = folder / "job.yml"
    file.write_text(DIGITS)
    assert load(file, environ={}) == JobSpec(
        name="digits",
        display_name="digits",
        experiment="tf-digits",
        description="Two hidden layers on handwritten digits",
        tags=(("team", "demo"),),
        code=folder / "src",
        script="train.py",
        arguments=(
            *("--data-folder", "${{ dataset.digits }}", "--batch-size", "64"),
            *("--learning-rate", "0.010", "--fast", "true", "1e-3"),
        ),
        dataset=(("digits", DatasetSpec(paths=(f"{folder}/data/*.gz",))),),
        environment=EnvironmentSpec(
            conda={
                "name": "tf",
                "channels": ["conda-forge"],
                "dependencies": ["python=3.11", {"pip": ["tensorflow==2.16.2"]}],
            },
            conda_file=folder / "environment.yml",
        ),
        environment_variables=(("TF_CPP_MIN_LOG_LEVEL", "2"),),
        limits=LimitsSpec(timeout_s=3600.0),
        base_dir=folder,
        file=file,
        source=DIGITS,
    )


def test_what_is_heavy_is_imported_where_it_is_used(folder: Path) -> None:
    (folder / "job.yml").write_text("command: x\nenvironment: {conda_file: environment.yml}\n")
    heavy = {"yaml", "jsonschema", "difflib", "glob", "rattler", "docker", "uv", "typer", "rich", "tfjob.environments"}
    show = "print(*sys.modules, sep='\\n')"

    def modules(program: str) -> set[str]:
        command = [sys.executable, "-c", f"import sys, tfjob.spec.load\n{program}\n{show}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return set(done.stdout.split()) & {*heavy, "tfjob.spec.docker_arguments"}

    assert modules("") == set()
    assert modules("tfjob.spec.load.load('job.yml')") <= {"yaml", "jsonschema", "difflib", "glob"}


def test_what_is_not_given_has_its_default(load_job: Load, folder: Path) -> None:
    assert load_job("command: echo") == JobSpec(
        name="job", experiment="job", display_name="job", command="echo", base_dir=folder, source="command: echo"
    )


def test_everything_given(load_job: Load, folder: Path) -> None:
    job = load_job(
        """\
        $schema: job.schema.json
        name: nn
        display_name: A name
        properties: {commit: 0123abc, k: 0.10}
        command: echo
        dataset: {b: {paths: data/images.gz, type: file, mode: download}}
        environment: {conda: {dependencies: [python]}, base: gpu}
        compute:
          target: box
          runtime: process
          node_count: 2.0
          max_node_count: 2
          gpus_per_node: 4
          node_type: a100
          priority: low
          shm_size: 8g
          docker_args: --volume '/a b:/c'
          container_packages: baked
          properties: {partition: gpu}
        distribution: {type: tensorflow, worker_count: 3, parameter_server_count: 2, evaluator: true}
        secrets: [TOKEN, TOKEN]
        outputs:
          keep: [outputs/, outputs, ./a/b]
          named: {model: {type: file, description: d}, other: }
        limits: {timeout_s: 1.5, rendezvous_timeout_s: 2, allocation_timeout_s: 3, grace_period_s: 0}
        """,
        **SHELL,
    )
    assert job.experiment == "nn"
    assert job.display_name == "A name"
    assert job.properties == (("commit", "0123abc"), ("k", "0.10"))
    assert job.dataset == (("b", DatasetSpec(paths=(f"{folder}/data/images.gz",), type="file", mode="download")),)
    assert job.environment == EnvironmentSpec(conda={"dependencies": ["python"]}, base="gpu")
    assert job.compute == ComputeSpec(
        target="box",
        runtime="process",
        node_count=2,
        max_node_count=2,
        gpus_per_node=4,
        node_type="a100",
        priority="low",
        container=ContainerSpec("8g", ("--volume", "/a b:/c"), "baked"),
        properties=(("partition", "gpu"),),
    )
    assert job.distribution == DistributionSpec("tensorflow", None, 3, 2, evaluator=True)
    assert job.secrets == ("TOKEN",)
    assert job.outputs == OutputsSpec(("outputs", "a/b"), (("model", OutputSpec("file", "d")), ("other", OutputSpec())))
    assert job.limits == LimitsSpec(1.5, 2.0, 3.0, 0.0)
    assert isinstance(job.compute.node_count, int)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("environment: {image: x:1}", EnvironmentSpec(image="x:1")),
        ("environment: {name: tf@1}", EnvironmentSpec(name="tf@1")),
        ("environment: tf@1", EnvironmentSpec(name="tf@1")),
        (
            "environment: {dockerfile: Dockerfile, build_context: src, build_arguments: {A: 0.10}}",
            EnvironmentSpec(
                dockerfile=Path("/x/Dockerfile"), build_context=Path("/x/src"), build_arguments=(("A", "0.10"),)
            ),
        ),
        ("dataset: {a: digits@2}", DatasetSpec(name="digits@2")),
        ("dataset: {a: {name: digits, type: file}}", DatasetSpec(name="digits", type="file")),
    ],
)
def test_what_other_definitions_say_has_its_place(text: str, expected: object) -> None:
    root, _ = read(text, "job.yml")
    assert root is not None
    job = build(root, stem="job", base_dir=Path("/x"), conda_data=None)
    assert expected in {"environment": job.environment, **dict(job.dataset)}.values()


@pytest.mark.parametrize("packages", ["conda: {dependencies: [python]}", "conda_file: environment.yml"])
def test_an_image_with_packages_is_what_they_are_put_on(load_job: Load, packages: str) -> None:
    found = load_job(f"command: x\nenvironment: {{{packages}, image: a/b:1}}").environment
    assert found == load_job(f"command: x\nenvironment: {{{packages}, base: a/b:1}}").environment
    assert (found.base, found.image) == ("a/b:1", None)
    assert found.conda is not None


def test_variables_of_an_environment_are_as_written(load_job: Load) -> None:
    inline = "{dependencies: [python], variables: {A: 0.10, B: true, C: '${{ parameters.c }}', D: '$${{'}}"
    job = load_job(f"command: x\nparameters: {{c: 1e3}}\nenvironment: {{conda: {inline}}}")
    assert (job.environment.conda or {})["variables"] == {"A": "0.10", "B": "true", "C": "1e3", "D": "${{"}


def test_overrides_are_made_and_kept(load_job: Load) -> None:
    overrides = ("compute.node_count=2", "arguments[1]=0.20", "tags={a: b}")
    job = load_job("code: src\nscript: train.py\narguments: [--lr, 0.1]", *overrides)
    assert job.compute.node_count == 2
    assert job.arguments == ("--lr", "0.20")
    assert job.tags == (("a", "b"),)
    assert job.overrides == overrides


def test_problems_of_overrides_point_at_them(problems_of: Problems) -> None:
    assert problems_of(
        "command: x\nnmae: z\nenvironment: 'tf cpu'", "compute.node_cuont=2", "name=a b", "environment.name=x"
    ) == [
        'job.yml:2:1: nmae: found the unknown key "nmae"; see `tfjob schema` for the allowed ones. Did you mean name?',
        (
            'job.yml:3:14: environment: found text "tf cpu"; a mapping (keys with values) or a registered name, or name@version '
            "is allowed."
        ),
        (
            '--set compute.node_cuont=2:1:9: compute.node_cuont: found the unknown key "node_cuont"; target, runtime, '
            "node_count, max_node_count, gpus_per_node, node_type, priority, shm_size, docker_args, container_packages "
            "or properties is allowed. Did you mean node_count?"
        ),
        (
            '--set name=a b:1:6: name: found text "a b"; a name of at most 63 letters, digits, _, . and -, starting with a '
            "letter or digit is allowed."
        ),
        (
            '--set environment.name=x:1:13: environment: found text "tf cpu" where "name" should be a key; a mapping is allowed. '
            "Set environment to a mapping first, or whole."
        ),
    ]


def test_everything_is_reported_at_once(problems_of: Problems) -> None:
    found = problems_of(
        "name: a b\n"
        "nmae: x\n"
        "tags: {a: no, a: b}\n"
        "code: scr\n"
        "script: train.py\n"
        "command: z\n"
        "arguments: ['${{ env.NOPE }}', null]\n"
        "compute: {node_count: 0}\n"
        "services: {a: {port: 1}}\n"
    )
    assert [(line.split(":")[1], line.split(": ")[1]) for line in found] == [
        ("1", "name"),
        ("2", "nmae"),
        ("3", "tags.a"),
        ("3", "tags.a"),
        ("4", "code"),
        ("6", "command"),
        ("7", "arguments[0]"),
        ("7", "arguments[1]"),
        ("8", "compute.node_count"),
        ("9", "services"),
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train.yml", "train"),
        ("my job (1).yml", "my-job-1"),
        ("_.yml", "job"),
        ("ä" * 3 + ".yml", "job"),
        ("a" * 99, "a" * 63),
    ],
)
def test_the_name_comes_from_the_file(folder: Path, name: str, expected: str) -> None:
    (folder / name).write_text("command: x")
    assert load(folder / name).name == expected


def test_paths_are_from_the_file_not_from_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "job.yml").write_text("command: x\ncode: src\nenvironment: {conda_file: environment.yml}\nnmae: x")
    (folder / "environment.yml").write_text("dependencies: 3")
    monkeypatch.chdir(folder.parent)
    with pytest.raises(InvalidFile) as caught:
        load(f"{folder.name}/job.yml", overrides=["nmae=z"])
    assert [problem.file for problem in caught.value.problems] == ["--set nmae=z", f"{folder.name}/environment.yml"]


def test_a_file_that_is_not_there(folder: Path) -> None:
    (folder / "train.yml").write_text("name: x\nscript: train.py\n")
    (folder / "broken.yaml").write_text("command: {\n")
    with pytest.raises(UsageError) as caught:
        load(folder / "trian.yml")
    assert caught.value.message == f"there is no file {folder}/trian.yml"
    assert caught.value.hint == f"Did you mean {folder}/train.yml? Other job files there: {folder}/broken.yaml."
    with pytest.raises(UsageError, match=r"is a directory; a job file is needed$") as caught:
        load(folder)
    assert caught.value.hint == f"Job files there: {folder}/broken.yaml, {folder}/train.yml."
    with pytest.raises(UsageError, match=r"^there is no file .*/src/x\.yml$") as caught:
        load(folder / "src" / "x.yml")
    assert caught.value.hint == "There is no job file there either; one has a line script: … or command: …"
    with pytest.raises(UsageError, match=r"^there is no file") as caught:
        load(folder / "nowhere" / "x.yml")
    assert caught.value.hint == ""
    with pytest.raises(UsageError, match=r"^a\x00b cannot be read: .*[^.]$"):
        load("a\0b")


@pytest.mark.parametrize(
    ("given", "guess"),
    [("digts.yml", "digits.yml"), ("digits.yaml", "digits.yml"), ("digits", "digits.yml"), ("a7.yaml", "a7.yml")],
)
def test_the_nearest_job_file_is_named_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, given: str, guess: str
) -> None:
    for name in ("digits", *(f"a{number}" for number in range(9))):
        (folder / f"{name}.yml").write_text("command: x\n")
    (folder / "digts.yaml").write_text("dependencies: [python]\n")  # near, and no job
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError) as caught:
        load(given)
    assert caught.value.hint.startswith(f"Did you mean {guess}? Other job files there: ")
    assert caught.value.hint.endswith("and 4 more.")


def test_a_directory_beside_its_job_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "src.yml").write_text("command: x\n")
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match=r"^src is a directory; a job file is needed$") as caught:
        load("src/")
    assert caught.value.hint == "Did you mean src.yml?"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.yml", b"#!/usr/bin/env python3\nprint(1)\n", "this looks like a Python program, not a job file"),
        ("x.yml", b"#!/bin/sh\necho\n", "this looks like a program, not a job file"),
        ("x.yml", b"# Trains\nimport os\n", "this looks like a Python program, not a job file"),
        ("x", b"def main():\n    pass\n", "this looks like a Python program, not a job file"),
        ("train.py", b"", "this looks like a Python program, not a job file"),
        ("x.yml", b"\x1f\x8b\x08abc", "this is a binary file, not a job file"),
        ("x.zip", b"PK\x03\x04abc", "this is a binary file, not a job file"),
        ("x.py", b"\x89PNG\0\0", "this is a binary file, not a job file"),
        ("x.yml", "command: x".encode("utf-16"), "found UTF-16 or UTF-32 (by the mark at its start); UTF-8 is allowed"),
    ],
)
def test_a_file_that_is_no_job_file(folder: Path, name: str, data: bytes, message: str) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(InvalidFile) as caught:
        load(folder / name)
    assert [(problem[:4], problem.message) for problem in caught.value.problems] == [
        ((str(folder / name), 1, 1, ""), message)
    ]


def test_a_job_file_may_look_like_something_else(folder: Path) -> None:
    (folder / "job.py").write_text("#!/usr/bin/env python\ncommand: x\n")
    assert load(folder / "job.py").command == "x"


def test_a_file_that_is_no_text(folder: Path) -> None:
    (folder / "job.yml").write_bytes(b"command: x\nname: \xe4")
    with pytest.raises(InvalidFile, match=r"job\.yml:2:7: found the byte 0xe4, which is not UTF-8"):
        load(folder / "job.yml")


YAML_LIKE = st.text(alphabet="abc:- \n\t[]{}'\"#&*!|>%@`,?01<~$.=/") | st.text()


def problems_in(text: str, folder: Path, overrides: Sequence[str] = ()) -> tuple[Problem, ...] | None:
    """Return the problems of `text`, None if it is a job; anything else that is raised is a mistake of tfjob."""
    try:
        load_text(text, file="job.yml", base_dir=folder, overrides=overrides, environ={})
    except InvalidFile as error:
        return error.problems
    return None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(YAML_LIKE, st.lists(YAML_LIKE, max_size=2))
def test_any_text_is_a_job_or_has_problems(folder: Path, text: str, overrides: list[str]) -> None:
    assert problems_in(text, folder, overrides) != ()


def shaped(said: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return data that often fits the schema `said`, and sometimes does not."""
    if "enum" in said:
        return st.sampled_from(said["enum"])
    fitting: list[st.SearchStrategy[Any]] = [st.sampled_from(said.get("examples", ["x"]))]
    if "properties" in said:
        entries = {key: shaped(child) for key, child in said["properties"].items()}
        fitting.append(st.fixed_dictionaries({}, optional=entries))
    elif isinstance(said.get("additionalProperties"), dict):
        fitting.append(
            st.dictionaries(st.sampled_from(["a", "B_1", "a b"]), shaped(said["additionalProperties"]), max_size=2)
        )
    elif "items" in said:
        fitting.append(st.lists(shaped(said["items"]), max_size=2))
    return st.one_of(*fitting, st.sampled_from([None, True, 0, -1, 1.5, "", "x", "${{ run.id }}", [], {}]))


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=60)
@given(st.data())
def test_any_data_is_a_job_or_has_problems(folder: Path, data: st.DataObject) -> None:
    sections = {key: shaped(child) for key, child in schema()["properties"].items()}
    chosen = data.draw(st.lists(st.sampled_from(sorted(sections)), max_size=6, unique=True))
    job = {key: data.draw(sections[key]) for key in chosen}
    problems = problems_in(json.dumps(job), folder)
    assert problems != ()
    assert {problem.file for problem in problems or ()} <= {"job.yml", "environment.yml"}
    assert not any("\n" in str(problem) for problem in problems or ())


printable = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn", "Zl", "Zp")), max_size=10)
variable = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    arguments=st.lists(printable | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)),
    variables=st.dictionaries(variable, printable),
    nodes=st.integers(1, 10000),
    keep=st.lists(variable, min_size=1, unique=True),
)
def test_what_is_written_is_what_is_loaded(
    folder: Path, arguments: list[Any], variables: dict[str, str], nodes: int, keep: list[str]
) -> None:
    job = {
        "code": "src",
        "script": "train.py",
        "arguments": [value.replace("${{", "$${{") if isinstance(value, str) else value for value in arguments],
        "environment_variables": variables,
        "compute": {"node_count": nodes},
        "outputs": {"keep": keep},
    }
    loaded = load_text(json.dumps(job, ensure_ascii=False), file="job.yml", base_dir=folder, environ={})
    written = [value if isinstance(value, str) else json.dumps(value) for value in job["arguments"]]
    assert list(loaded.arguments) == written
    assert dict(loaded.environment_variables) == variables
    assert loaded.compute.node_count == nodes
    assert list(loaded.outputs.keep) == keep
