"""Which lines of a conda specification work: the same as in `tfjob.environments`, which makes environments of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tfjob.environments import definition_of
from tfjob.errors import PreparationError
from tfjob.spec.job import EnvironmentSpec
from tfjob.spec.packages import Objection, conda_package, pip_line

OTHER_HINT = "Move it to the pip list, if PyPI has it; other libraries must be on the machine."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "cudatoolkit=11.8",
            (
                'found the conda package "cudatoolkit=11.8", which is not supported by this version of tfjob',
                OTHER_HINT,
            ),
        ),
        (
            "nvidia::cudnn",
            ('found the conda package "nvidia::cudnn", which is not supported by this version of tfjob', OTHER_HINT),
        ),
        (
            "-r requirements.txt",
            (
                'found "-r requirements.txt", which is no conda package; python and pip, each with a version, are allowed',
                "Put a line of a requirements file into the pip list.",
            ),
        ),
        (
            "python=3.11.7=h955ad1f_0",
            (
                (
                    'found "python=3.11.7=h955ad1f_0", whose version is written in a way that is not supported by this '
                    "version of tfjob"
                ),
                "Write python=3.11, python==3.11 or python>=3.11.",
            ),
        ),
        (
            "pip x",
            (
                'found "pip x", whose version is written in a way that is not supported by this version of tfjob',
                "Write pip=24.0, pip==24.0 or pip>=24.0.",
            ),
        ),
        *(
            (text, None)
            for text in ("python", "pip", " Python = 3.11 ", "conda-forge::python>=3.10, <3.12", "pip=23.2")
        ),
    ],
)
def test_conda_packages(text: str, expected: Objection | None) -> None:
    assert conda_package(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "-e  . # mine",
            (
                'found "-e .", an editable install, which is not supported by this version of tfjob',
                (
                    "Put the source into the code directory, or make a wheel of it and name its folder with "
                    "--find-links FOLDER."
                ),
            ),
        ),
        (
            "./wheels/a.whl",
            (
                'found "./wheels/a.whl", a path of this machine, which is not supported by this version of tfjob',
                "Name the folder of a wheel with --find-links FOLDER, and the package by its name and version.",
            ),
        ),
        (
            "--user",
            (
                'found the option "--user", which is not supported by this version of tfjob',
                "Requirements, -r and -c files, and the options that name indexes work.",
            ),
        ),
        (
            "-r https://host/requirements.txt",
            (
                (
                    'found "-r https://host/requirements.txt", a file from the network, which is not supported by this '
                    "version of tfjob"
                ),
                "Keep the file beside the job.",
            ),
        ),
        *((text, None) for text in ("numpy", "a[x]==2 ; python_version >= '3.9'", "# only", "--pre", "-r more.txt")),
    ],
)
def test_pip_lines(text: str, expected: Objection | None) -> None:
    assert pip_line(text) == expected


def _is_refused(dependency: object) -> bool:
    try:
        definition_of(EnvironmentSpec(conda={"dependencies": [dependency]}))
    except PreparationError:
        return True
    return False


def _pieces(*pieces: str) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(pieces) | st.text(max_size=2), max_size=6).map("".join)


def _examples(*lines: str) -> Callable[[Callable[[str], None]], Callable[[str], None]]:
    def decorated(test: Callable[[str], None]) -> Callable[[str], None]:
        for line in lines:
            test = example(line)(test)
        return test

    return decorated


@_examples("python", "python 3.11*", "pip ~= 24.0, !=24.1.*", "python[version=3]", "python>=3|<2", "x::python", "", "3")
@given(
    _pieces(
        "python", "pip", "Python", "numpy", "conda-forge::", "=", "==", ">=", "~=", "!=", ",", " ", "3.11", "*", "."
    )
)
def test_conda_packages_are_those_of_which_environments_are_made(text: str) -> None:
    assert (conda_package(text) is not None) == _is_refused(text)


@_examples(
    "-e.", "-f wheels", "-fwheels", "--extra-index-url=https://a/b", "x @ file:a", "x@https://a/b.whl", "a.zip", "-q"
)
@given(
    _pieces(
        "-e",
        "-i",
        "-f",
        "-r http://a",
        "--pre",
        "--index-url",
        "--user",
        "=",
        " ",
        "x",
        "@",
        " @ ",
        "file:",
        "https://",
        "/",
    )
)
def test_pip_lines_are_those_of_which_environments_are_made(text: str) -> None:
    assume("\0" not in text)  # refused before
    assume("://" in text or not text.strip().startswith(("-r", "-c", "--r", "--c")))  # files are not looked at here
    assert (pip_line(text) is not None) == _is_refused({"pip": [text]})
