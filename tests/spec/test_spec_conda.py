from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tfjob.errors import InvalidFile
from tfjob.spec.conda import load
from tfjob.spec.job import JobSpec

Problems = Callable[..., list[str]]
JOB = "command: x\nenvironment: {conda_file: environment.yml}"


def test_it_is_plain_data(folder: Path) -> None:
    assert load(folder / "environment.yml") == {
        "name": "tf",
        "channels": ["conda-forge"],
        "dependencies": ["python=3.11", {"pip": ["tensorflow==2.16.2"]}],
    }


def test_the_prefix_is_ignored(folder: Path) -> None:
    (folder / "environment.yml").write_text("dependencies: [python]\nprefix: /opt/x")
    assert load(folder / "environment.yml") == {"dependencies": ["python"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["environment.yml:1:1: found an empty file; keys with values are allowed."]),
        (
            "dependencies:\n  - python=3.11\n  - 3.11\n  - ''\n  - pip: [a, '', 3]\n  - pip: [b]\n  - pip:\n  - {pop: [x]}",
            [
                (
                    "environment.yml:3:5: dependencies[1]: found the number 3.11; a conda package such as python=3.11 or "
                    'a mapping (keys with values) is allowed. Put it in quotes: "3.11".'
                ),
                (
                    "environment.yml:4:5: dependencies[2]: found empty text; a conda package such as python=3.11 or "
                    "a mapping (keys with values) is allowed."
                ),
                (
                    "environment.yml:5:14: dependencies[3].pip[1]: found empty text; a requirement such as numpy==1.26.4 is "
                    "allowed."
                ),
                (
                    "environment.yml:5:18: dependencies[3].pip[2]: found the number 3; a requirement such as numpy==1.26.4 is "
                    'allowed. Put it in quotes: "3".'
                ),
                (
                    "environment.yml:6:5: dependencies[4]: found a second list of pip packages; one is allowed. "
                    "Put all pip packages in one list."
                ),
                (
                    "environment.yml:7:5: dependencies[5]: found a second list of pip packages; one is allowed. "
                    "Put all pip packages in one list."
                ),
                (
                    "environment.yml:7:9: dependencies[5].pip: found nothing (null); a list is allowed. "
                    "Give it a value, or remove the key."
                ),
                "environment.yml:8:5: dependencies[6]: the key pip is missing; it is required. Add pip.",
                (
                    "environment.yml:8:5: dependencies[6]: found a second list of pip packages; one is allowed. "
                    "Put all pip packages in one list."
                ),
                'environment.yml:8:6: dependencies[6].pop: found the unknown key "pop"; pip is allowed. Did you mean pip?',
            ],
        ),
        (
            "dependencies:\n  - numpy=1.26\n  - python=3.11=h0\n  - {pip: [six, -e .]}",
            [
                (
                    'environment.yml:2:5: dependencies[0]: found the conda package "numpy=1.26", which is not supported by '
                    "this version of tfjob. Move it to the pip list, if PyPI has it; other libraries must be on the machine."
                ),
                (
                    'environment.yml:3:5: dependencies[1]: found "python=3.11=h0", whose version is written in a way that is '
                    "not supported by this version of tfjob. Write python=3.11, python==3.11 or python>=3.11."
                ),
                (
                    'environment.yml:4:17: dependencies[2].pip[1]: found "-e .", an editable install, which is not supported '
                    "by this version of tfjob. Put the source into the code directory, or make a wheel of it and name its "
                    "folder with --find-links FOLDER."
                ),
            ],
        ),
        (
            "dependencies: [python]\nvariables: {A: no, 'b c': x}",
            [
                (
                    "environment.yml:2:1: variables: found variables of the environment, which are not supported by this "
                    "version of tfjob. Put them under environment_variables of the job."
                ),
                (
                    "environment.yml:2:16: variables.A: found no without quotes, which YAML 1.1 reads as false; "
                    'quoted text, true or false is allowed. Write "no" for the text, or false.'
                ),
                (
                    'environment.yml:2:20: variables."b c": found the key "b c"; a name of letters, digits and _, '
                    "starting with a letter or _ is allowed."
                ),
            ],
        ),
    ],
)
def test_problems_have_its_own_places(problems_of: Problems, folder: Path, text: str, expected: list[str]) -> None:
    (folder / "environment.yml").write_text(text)
    assert problems_of(JOB) == expected


def test_requirements_files_that_are_not_there(problems_of: Problems, folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "environment.yml").write_text("dependencies:\n  - pip: [-r requirements.txt, '--constraint=more/a.txt']")
    (folder / "requirement.txt").touch()
    (folder / "more" / "a.txt").write_text("six \\\n  --hash=x\n\n-r b.txt\n-r a.txt  # itself\n-e .\n-r http://x/y\n")
    missing = "which names no file; the name of an existing file is allowed."
    expected = [
        (
            f'environment.yml:2:11: dependencies[0].pip[0]: found "-r requirements.txt", {missing} '
            "Did you mean requirement.txt?"
        ),
        f'more/a.txt:4:1: found "-r b.txt", {missing} It is looked for as {folder}/more/b.txt.',
    ]
    found = [line if line.endswith("?") else f"{line}." for line in problems_of(JOB)]
    assert found[:2] == expected
    assert [line.partition(", ")[0] for line in found[2:]] == [
        'more/a.txt:6:1: found "-e ."',
        'more/a.txt:7:1: found "-r http://x/y"',
    ]
    inline = problems_of("command: x\nenvironment: {conda: {dependencies: [{pip: [-r more/b.txt, -r more/a.txt]}]}}")
    assert inline[0].startswith(
        'job.yml:2:45: environment.conda.dependencies[0].pip[0]: found "-r more/b.txt", which names no file'
    )
    assert [line.partition(": ")[0] for line in inline[1:]] == [f"more/a.txt:{number}:1" for number in (4, 6, 7)]


def test_a_requirements_file_of_which_environments_are_made(load_job: Callable[..., JobSpec], folder: Path) -> None:
    (folder / "a.txt").write_text("six\n-r b.txt\n")
    (folder / "b.txt").write_text("\ufeffnumpy\n")
    (folder / "binary.txt").write_bytes(b"\xff\xfe")
    load_job("command: x\nenvironment: {conda: {dependencies: [{pip: [-r a.txt, -cb.txt, -r binary.txt]}]}}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "# for training\nnumpy\ntensorflow[and-cuda]==2.16.2 ; python_version > '3.9'\n-r more.txt\n--pre\n",
            (
                "this looks like a requirements.txt; list it in an environment.yml as: "
                "dependencies: [python, {pip: [-r environment.yml]}]"
            ),
        ),
        ("numpy\nfoo: bar\n", None),
        ("- numpy\n", None),
        ("import os\n", "this looks like a Python program, not a conda file"),
        ("PK\x03\x04", "this is a binary file, not a conda file"),
    ],
)
def test_a_file_that_is_no_conda_file(problems_of: Problems, folder: Path, text: str, message: str | None) -> None:
    (folder / "environment.yml").write_text(text)
    found = problems_of(JOB)
    assert (found == [f"environment.yml:1:1: {message}."]) == (message is not None)


def test_problems_of_the_job_come_first(problems_of: Problems, folder: Path) -> None:
    (folder / "environment.yml").write_text("dependencies: []")
    assert [line.split(":")[0] for line in problems_of(JOB + "\nnmae: x")] == ["job.yml", "environment.yml"]


def test_the_same_inline(problems_of: Problems, load_job: Callable[..., JobSpec]) -> None:
    job = load_job("command: x\nenvironment: {conda: {dependencies: [python=3.11, {pip: [a]}], channels: [b]}}")
    assert job.environment.conda == {"dependencies": ["python=3.11", {"pip": ["a"]}], "channels": ["b"]}
    found = problems_of(
        "command: x\nenvironment: {conda: {dependencies: [{pip: [a]}, {pip: [./b]}, cudnn], variables: {A: 1}}}"
    )
    assert [line.partition(";")[0].partition(", which")[0] for line in found] == [
        "job.yml:2:50: environment.conda.dependencies[1]: found a second list of pip packages",
        'job.yml:2:57: environment.conda.dependencies[1].pip[0]: found "./b", a path of this machine',
        'job.yml:2:64: environment.conda.dependencies[2]: found the conda package "cudnn"',
        "job.yml:2:72: environment.conda.variables: found variables of the environment",
    ]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match=r"nope\.yml:1:1: cannot be read: No such file or directory"):
        load(tmp_path / "nope.yml")
