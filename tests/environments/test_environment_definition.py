from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tfjob.environments import Definition, definition_of
from tfjob.errors import ExitCode, PreparationError
from tfjob.spec.job import EnvironmentSpec


def read(*dependencies: Any, folder: Path | None = None, **more: Any) -> Definition:
    spec = EnvironmentSpec(conda={"dependencies": list(dependencies), **more})
    definition = definition_of(spec, base_dir=folder)
    assert definition is not None
    return definition


def problems(*dependencies: Any, folder: Path | None = None, **more: Any) -> str:
    with pytest.raises(PreparationError) as caught:
        read(*dependencies, folder=folder, **more)
    assert caught.value.exit_code == ExitCode.PREPARATION_FAILED
    assert caught.value.hint
    return caught.value.message


def test_no_environment_is_the_machines_own_python() -> None:
    assert definition_of(EnvironmentSpec()) is None


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("python", None),
        ("python=3.11", "==3.11.*"),
        ("python =3.11", "==3.11.*"),
        ("python = 3.11", "==3.11.*"),
        ("python=3.11.*", "==3.11.*"),
        ("python 3.11.*", "==3.11.*"),
        ("python 3.11*", "==3.11.*"),
        ("python==3.11.7", "==3.11.7"),
        ("python 3.11.7", "==3.11.7"),
        ("python>=3.10,<3.12", ">=3.10,<3.12"),
        ("python >=3.10, <3.12", ">=3.10,<3.12"),
        ("python!=3.11.3", "!=3.11.3"),
        ("python~=3.10", "~=3.10"),
        ("python>=3.10.*", ">=3.10"),
        ("Python=3", "==3.*"),
        ("python *", None),
    ],
)
def test_python_in_condas_forms(written: str, meant: str | None) -> None:
    assert read(written).python == meant


@pytest.mark.parametrize(
    "written",
    ["python=3.11.7=h955ad1f_0", "python[version='3.11']", "python>=3.10|<3.9", "conda-forge::python=3.12", "numpy"],
)
def test_what_only_a_channel_can_answer_is_kept_as_written(written: str) -> None:
    definition = read(written, channels=["conda-forge"])
    assert definition == Definition(packages=(written,), channels=("conda-forge",))
    assert definition.needs_channel
    assert not read("python=3.11", "pip", channels=["conda-forge"]).needs_channel


def test_channels_are_names_addresses_and_folders(tmp_path: Path) -> None:
    (tmp_path / "channel").mkdir()
    channels = ["conda-forge", "https://host/some/channel/", "./channel", f"{tmp_path}/channel"]
    folder = (tmp_path / "channel").as_uri()
    assert read("numpy", channels=channels, folder=tmp_path).channels == (
        "conda-forge",
        "https://host/some/channel",
        folder,
        folder,
    )


def test_pip_itself_may_be_asked_for() -> None:
    assert read("python=3.11", "pip", {"pip": ["six"]}) == Definition("==3.11.*", ("six",), has_pip=True)
    assert read("pip=23.2", {"pip": ["six"]}) == Definition(None, ("pip==23.2.*", "six"), has_pip=True)
    assert read("python") == Definition()


def test_packages_without_a_channel_are_named_at_once() -> None:
    message = problems("python=3.11", "cudatoolkit=11.8", "pip", "nvidia::cudnn", {"pip": ["six"]}, "-x")
    assert "`cudatoolkit=11.8`, `nvidia::cudnn`: no channel" in message
    assert "`-x` under `dependencies:` is not a package" in message
    assert read("nvidia::cudnn").packages == ("nvidia::cudnn",)


@pytest.mark.parametrize(
    "spec",
    [EnvironmentSpec(dockerfile=Path("Dockerfile")), EnvironmentSpec(image="some/image"), EnvironmentSpec(name="mine")],
)
def test_an_image_of_somebody_elses_has_no_definition(spec: EnvironmentSpec) -> None:
    assert definition_of(spec) is None


def test_variables_are_kept_and_change_no_package() -> None:
    with_variables = read("python", variables={"A": "1", "B": 2})
    assert with_variables.variables == (("A", "1"), ("B", "2"))
    assert with_variables.digest() == read("python").digest()
    assert "`depends:` means nothing" in problems("python", depends=[])


@pytest.mark.parametrize(
    "line",
    [
        "-e .",
        "--editable ./x",
        "./x",
        "../x",
        "/abs/x.whl",
        "x.whl",
        "sub/x",
        "x @ file:///a",
        "x@file:///a",
        "file:///a",
    ],
)
def test_what_is_of_this_machine_only_is_refused(line: str) -> None:
    assert line in problems({"pip": ["six", line]})


@pytest.mark.parametrize("line", ["x @ git+https://host/x@v1", "x @ https://host/x-1.whl", "https://host/x-1.whl"])
def test_what_comes_from_a_url_is_not(line: str) -> None:
    assert read({"pip": [line]}).requirements == (line,)


def test_lines_are_kept_in_order_without_comments() -> None:
    lines = ["b>=1  # why", "", "# only", "a[x]==2 ; python_version >= '3.9'", "--pre", "-i https://host/simple"]
    assert read({"pip": lines}).requirements == (
        "b>=1",
        "a[x]==2 ; python_version >= '3.9'",
        "--pre",
        "--index-url https://host/simple",
    )


@pytest.mark.parametrize("line", ["--user", "--target=/x", "-q"])
def test_other_options_are_refused(line: str) -> None:
    assert "this option is not supported" in problems({"pip": [line]})


def test_requirements_files_are_read_beside_the_conda_file(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "requirements.txt").write_text("six\n-r more/deep.txt\n-cmore/limits.txt\n--find-links=wheels\nlast\n")
    (tmp_path / "more" / "deep.txt").write_text("\ufeffdeep==1 \\\n  --hash=sha256:00\n")
    (tmp_path / "more" / "limits.txt").write_text("numpy<2\n")
    conda = {"dependencies": [{"pip": ["-r requirements.txt"]}]}
    definition = definition_of(EnvironmentSpec(conda=conda, conda_file=tmp_path / "environment.yml"))
    assert definition == Definition(
        requirements=(
            "six",
            "deep==1 --hash=sha256:00",
            "--constraint numpy<2",
            f"--find-links {tmp_path / 'wheels'}",
            "last",
        )
    )


def test_a_missing_requirements_file_is_named_with_who_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("-r b.txt\n")
    message = problems({"pip": ["-r a.txt", "--requirement=c.txt", "-r https://host/x.txt"]}, folder=tmp_path)
    assert f"`-r b.txt` in {tmp_path / 'a.txt'}: the file {tmp_path / 'b.txt'} is not there" in message
    assert f"the file {tmp_path / 'c.txt'} is not there" in message
    assert "from the network" in message


def test_files_that_name_each_other_or_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("-r b.txt\n")
    (tmp_path / "b.txt").write_text("-r a.txt\n")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    message = problems({"pip": ["-r a.txt", "-r c.txt"]}, folder=tmp_path)
    assert "names itself" in message
    assert "cannot be read" in message


def test_the_digest_follows_what_is_asked_not_how_it_is_laid_out(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("# comment\nsix\n")
    inline = read("python=3.11", {"pip": ["six"]})
    assert inline.digest() == read("python =3.11", {"pip": ["-r r.txt"]}, folder=tmp_path, name="x").digest()
    assert inline.digest() != read("python=3.11", {"pip": ["six", "pip"]}).digest()
    assert inline.digest() != read("python=3.10", {"pip": ["six"]}).digest()


@pytest.mark.parametrize("dependencies", ["six", {"pip": "six"}, [3], [["six"]], [{"conda": ["x"]}], [None]])
def test_what_has_the_wrong_shape_is_a_problem(dependencies: Any) -> None:
    with pytest.raises(PreparationError):
        definition_of(EnvironmentSpec(conda={"dependencies": dependencies}))
