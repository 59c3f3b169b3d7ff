"""Which lines of a conda specification work: the same as in `tfjob.environments`, which makes environments of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from rattler import MatchSpec

from tfjob.environments import definition_of
from tfjob.errors import InvalidFile, PreparationError
from tfjob.spec import conda
from tfjob.spec.job import EnvironmentSpec
from tfjob.spec.packages import Objection, conda_package, needs_channel, pip_line

HINT = "Write it as python=3.11 or numpy>=1.26,<2; a line of a requirements file belongs into the pip list."


@pytest.mark.parametrize(
    "text",
    [
        *("-r requirements.txt", "./a.conda", "https://host/a.conda", "numpy @ https://host/a.whl", ""),
        *("tensorflow[and-cuda]==2.16.2", "numpy; python_version < '3.12'", "python@3.11", "numpy::"),
        *("python =>3.11", "python>3.11.", "numpy=", "numpy 1.26 py 3"),
    ],
)
def test_what_is_no_conda_package(text: str) -> None:
    message = f'found "{text}", which is no conda package; a name, with a version if need be, is allowed'
    assert conda_package(text) == Objection(message, HINT)


def test_what_is_too_long_is_no_conda_package() -> None:
    assert conda_package("numpy " + "1," * 500_000) is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, False) for text in ("python", "pip", "PIP", " Python = 3.11 ", "python>=3.10, <3.12", "pip=23.2")),
        *((text, False) for text in ("python 3.11.*", "python=*", "nvidia::cudnn", "conda-forge::python=3.11=h0*")),
        *((text, True) for text in ("numpy", "cudatoolkit=11.8", "python=3.11.7=h955ad1f_0", "pip x", "python>=3|<2")),
        *((text, True) for text in ("python[build=h0]", "libblas=*=*mkl", "numpy[version='>=1.26,<2', build=py311*]")),
    ],
)
def test_conda_packages_that_need_a_channel(text: str, expected: bool) -> None:
    assert conda_package(text) is None
    assert needs_channel(text) == expected


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
        *(
            (
                text,
                (
                    f'found "{text}", which is no requirement of pip; a name, with versions if need be, is allowed',
                    "Write it as numpy==1.26.4 or numpy>=1.26,<2.",
                ),
            )
            for text in ("six>=>1", "six=1", "six 1.2", "six~=1", "six>=1.*")
        ),
        *((text, None) for text in ("six==1.*", "six>1 --hash=sha256:1f", "six==${VERSION}", "git+https://host/six")),
        *((text, None) for text in ("numpy", "a[x]==2 ; python_version >= '3.9'", "# only", "--pre", "-r more.txt")),
    ],
)
def test_pip_lines(text: str, expected: Objection | None) -> None:
    assert pip_line(text) == expected


def _is_refused(dependency: object, *channels: str) -> bool:
    try:
        definition_of(EnvironmentSpec(conda={"dependencies": [dependency], "channels": list(channels)}))
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
        *("python", "pip", "Python", "numpy", "conda-forge::", "=", "==", ">=", "~=", "!=", ",", "|", " "),
        *("3.11", "*", ".", "h0_1", "[build=h0]", "-", "!", "(", ")"),
    )
)
def test_environments_are_made_of_conda_packages_that_pass(text: str) -> None:
    if conda_package(text) is None:
        assert not _is_refused(text, "a")
        assert _is_refused(text) == needs_channel(text)


versions = st.tuples(
    st.sampled_from(["=", "==", ">=", "<", "!="]), st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}", fullmatch=True)
)
builds = st.sampled_from(["", "=py311*", " py311h1_0", "[build=*_cpu]", "[subdir=noarch]"])


@given(
    st.sampled_from(["python", "numpy", "conda-forge::openmpi", "cuda-version", "_libgcc_mutex", "zlib.x"]),
    st.sampled_from(["", " "]),
    st.lists(versions.map("".join), max_size=3),
    st.sampled_from([",", " , ", "|"]),
    builds,
)
def test_conda_packages_as_conda_reads_them_pass(
    name: str, space: str, asked: list[str], separator: str, build: str
) -> None:
    text = name
    if asked:
        text += space + separator.join(asked)
    if len(asked) == 1 or build.startswith("["):
        text += build
    MatchSpec(text, strict=False)
    assert conda_package(text) is None


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


@pytest.mark.parametrize(
    ("line", "is_refused"),
    [
        ("--extra-index-url https://me:hunter2@index.example/simple", True),
        ("thing @ https://me:hunter2@host.example/thing-1.0-py3-none-any.whl", True),
        ("--extra-index-url https://me:${TOKEN}@index.example/simple", False),
        ("--extra-index-url https://me@index.example/simple", False),
        ("thing @ git+ssh://git@host.example/thing", False),
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(line: str, is_refused: bool) -> None:
    objection = pip_line(line)
    assert (objection is not None) is is_refused
    assert objection is None or "hunter2" not in "".join(objection)


def test_a_channel_with_a_password_or_a_token_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "environment.yml"
    file.write_text(
        "channels: ['https://me:hunter2@host.example/chan', 'https://host.example/t/hunter2/chan']\n"
        "dependencies: [python=3.11]\n"
    )
    with pytest.raises(InvalidFile) as refused:
        conda.load(file)
    assert len(refused.value.problems) == 2
    assert "hunter2" not in str(refused.value)
