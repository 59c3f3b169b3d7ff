from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tfjob.errors import InvalidFile
from tfjob.spec.conda import load
from tfjob.spec.job import JobSpec

Problems = Callable[..., list[str]]
JOB = "command: x\nenvironment: {conda_file: environment.yml}"
WITHOUT = (
    "only python and pip with plain versions are allowed without. Add channels: [conda-forge], or where else it is; "
    "or move it to the pip list, if PyPI has it."
)
OWN = "which tfjob sets itself; names other than TF_CONFIG, CUDA_VISIBLE_DEVICES and TFJOB_* are allowed."


def test_it_is_plain_data(folder: Path) -> None:
    assert load(folder / "environment.yml") == {
        "name": "tf",
        "channels": ["conda-forge"],
        "dependencies": ["python=3.11", {"pip": ["tensorflow==2.16.2"]}],
    }


def test_the_values_of_variables_are_as_written(folder: Path) -> None:
    text = "dependencies: [python]\nvariables: {A: 0.10, B: true, C: 'no', D: 1e3}"
    (folder / "environment.yml").write_text(text)
    assert load(folder / "environment.yml")["variables"] == {"A": "0.10", "B": "true", "C": "no", "D": "1e3"}


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
            "dependencies:\n  - numpy=1.26\n  - numpy[x]\n  - python=3.11\n  - {pip: [six, -e .]}",
            [
                f'environment.yml:2:5: dependencies[0]: found the conda package "numpy=1.26" without channels; {WITHOUT}',
                (
                    'environment.yml:3:5: dependencies[1]: found "numpy[x]", which is no conda package; a name, with a '
                    "version if need be, is allowed. Write it as python=3.11 or numpy>=1.26,<2; a line of a requirements "
                    "file belongs into the pip list."
                ),
                (
                    'environment.yml:5:17: dependencies[3].pip[1]: found "-e .", an editable install, which is not supported '
                    "by this version of tfjob. Put the source into the code directory, or make a wheel of it and name its "
                    "folder with --find-links FOLDER."
                ),
            ],
        ),
        (
            "channels: []\ndependencies:\n  - python=3.11=h0\n  - conda-forge::numpy\n  - pip\n  - openmpi\n  - cuda>=12",
            [
                (
                    'environment.yml:3:5: dependencies[0]: found the conda package "python=3.11=h0" and 2 more without '
                    f"channels; {WITHOUT}"
                ),
            ],
        ),
        (
            "channels: [./none, a b, conda-forge]\ndependencies: [numpy]",
            [
                (
                    'environment.yml:1:12: channels[0]: found "./none", which is no directory; a channel\'s directory, name '
                    "or address is allowed. It is looked for as {folder}/none"
                ),
                (
                    'environment.yml:1:20: channels[1]: found text "a b"; a channel (a name, address or directory) without '
                    "spaces is allowed."
                ),
            ],
        ),
        (
            "dependencies: [python]\nvariables: {A: no, 'b c': x, TF_CONFIG: '', TFJOB_X: 1}",
            [
                (
                    "environment.yml:2:16: variables.A: found no without quotes, which YAML 1.1 reads as false; "
                    'quoted text, true or false is allowed. Write "no" for the text, or false.'
                ),
                (
                    'environment.yml:2:20: variables."b c": found the key "b c"; a name of letters, digits and _, '
                    "starting with a letter or _ is allowed."
                ),
                f"environment.yml:2:30: variables.TF_CONFIG: found TF_CONFIG, {OWN} See distribution.",
                f"environment.yml:2:45: variables.TFJOB_X: found TFJOB_X, {OWN} Choose another name.",
            ],
        ),
    ],
)
def test_problems_have_its_own_places(problems_of: Problems, folder: Path, text: str, expected: list[str]) -> None:
    (folder / "environment.yml").write_text(text)
    assert problems_of(JOB) == [line.replace("{folder}", str(folder)) for line in expected]


@pytest.mark.parametrize(
    "text",
    [
        "channels: [conda-forge]\ndependencies: [python=3.11=h0*, numpy, 'cuda-version>=12,<13', 'libblas=*=*mkl']",
        "channels: [./src, ~/, 'file:///nowhere', 'https://host/channel']\ndependencies: [numpy]",
        "dependencies: [python=3.11, pip>=24, conda-forge::openmpi]",
        "dependencies: [python]\nvariables: {TF_USE_LEGACY_KERAS: 1, PATH: /mine}",
    ],
)
def test_what_is_taken_with_channels_and_variables(problems_of: Problems, folder: Path, text: str) -> None:
    (folder / "environment.yml").write_text(text)
    assert problems_of(JOB) == []


def test_channels_in_folders_are_beside_the_file_that_names_them(problems_of: Problems, folder: Path) -> None:
    (folder / "src" / "environment.yml").write_text("channels: [./deep]\ndependencies: [numpy]")
    assert problems_of("command: x\nenvironment: {conda_file: src/environment.yml}") == []
    inline = "command: x\nenvironment: {conda: {channels: [./deep], dependencies: [numpy]}}"
    assert [line.partition(";")[0] for line in problems_of(inline)] == [
        'job.yml:2:34: environment.conda.channels[0]: found "./deep", which is no directory'
    ]


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
        "command: x\nenvironment: {conda: {dependencies: [{pip: [a]}, {pip: [./b]}, cudnn], variables: {TFJOB_A: 1}}}"
    )
    assert [line.partition(";")[0].partition(", which")[0] for line in found] == [
        "job.yml:2:50: environment.conda.dependencies[1]: found a second list of pip packages",
        'job.yml:2:57: environment.conda.dependencies[1].pip[0]: found "./b", a path of this machine',
        'job.yml:2:64: environment.conda.dependencies[2]: found the conda package "cudnn" without channels',
        "job.yml:2:84: environment.conda.variables.TFJOB_A: found TFJOB_A",
    ]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match=r"nope\.yml:1:1: cannot be read: No such file or directory"):
        load(tmp_path / "nope.yml")
