from __future__ import annotations

import os
from pathlib import Path

import pytest

from tfjob.environments.interpreters import Interpreter, choose, installed, matches
from tfjob.environments.pip_settings import configuration_files, pip_options, uv_settings
from tfjob.environments.uv import explanation
from tfjob.errors import PreparationError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_pips_files_in_pips_order(tmp_path: Path) -> None:
    files = configuration_files({"HOME": str(tmp_path), "PIP_CONFIG_FILE": "/named.conf"})
    assert files[0] == Path("/etc/xdg/pip/pip.conf")
    assert files[1] == Path("/etc/pip.conf")
    assert files[2:4] == (tmp_path / ".pip/pip.conf", tmp_path / ".config/pip/pip.conf")
    assert files[-1] == Path("/named.conf")
    assert configuration_files({"PIP_CONFIG_FILE": os.devnull}) == ()


def test_later_files_sections_and_variables_win(tmp_path: Path) -> None:
    first = write(tmp_path / "1", "[global]\nindex-url = one\ntimeout = 1\ncert = a\n[install]\nno_index = yes\n")
    broken = write(tmp_path / "2", "index-url = no section\n")
    second = write(tmp_path / "3", "[global]\nindex-url = two\nno-index = no\n[list]\ncert = never\n")
    options = pip_options({"PIP_TIMEOUT": "9", "PIP_PROXY": ""}, (first, broken, tmp_path / "none", second))
    assert options == {"index-url": "two", "timeout": "9", "cert": "a", "no-index": "yes"}


def test_folders_that_are_not_there_are_left_out_and_said(tmp_path: Path) -> None:
    links = f"{tmp_path} {tmp_path}/gone file://{tmp_path}/lost https://host/links"
    environ = {"PIP_FIND_LINKS": links, "PIP_EXTRA_INDEX_URL": f"file://{tmp_path}/no", "PIP_CERT": "/no/cert"}
    settings = uv_settings(environ, ())
    assert settings.environment["UV_FIND_LINKS"] == f"{tmp_path},https://host/links"
    assert "UV_EXTRA_INDEX_URL" not in settings.environment
    assert "SSL_CERT_FILE" not in settings.environment
    assert [note.rpartition(" = ")[2] for note in settings.notes] == [
        f"{tmp_path}/no",
        f"{tmp_path}/gone",
        f"{tmp_path}/lost",
        "/no/cert",
    ]


def test_uvs_own_settings_win_and_what_would_change_a_build_is_taken_out(tmp_path: Path) -> None:
    cert = write(tmp_path / "ca.pem", "")
    environ = {
        "PIP_INDEX_URL": "https://pip/simple",
        "UV_DEFAULT_INDEX": "https://uv/simple",
        "PIP_EXTRA_INDEX_URL": "https://more/simple",
        "PIP_CERT": str(cert),
        "PIP_TRUSTED_HOST": "a b",
        "PIP_NO_INDEX": "1",
        "PIP_ONLY_BINARY": ":all:",
        "UV_PYTHON": "3.9",
        "UV_SYSTEM_PYTHON": "1",
        "VIRTUAL_ENV": "/x",
        "PYTHONPATH": "/y",
        "HOME": "/h",
    }
    settings = uv_settings(environ, ())
    assert settings.environment["UV_DEFAULT_INDEX"] == "https://uv/simple"
    assert settings.environment["UV_EXTRA_INDEX_URL"] == "https://more/simple"
    assert settings.environment["UV_INSECURE_HOST"] == "a b"
    assert settings.environment["SSL_CERT_FILE"] == str(cert)
    assert settings.arguments == ("--no-index", "--only-binary=:all:")
    assert not {"UV_INDEX_URL", "UV_PYTHON", "UV_SYSTEM_PYTHON", "VIRTUAL_ENV", "PYTHONPATH"} & set(
        settings.environment
    )
    assert settings.environment["HOME"] == "/h"


@pytest.mark.parametrize(
    ("specifier", "fits"),
    [
        ("==3.11.*", True),
        ("==3.11", False),
        ("==3.11.7", True),
        (">=3.10,<3.12", True),
        (">3.11", True),
        ("<3.11", False),
        ("~=3.10", True),
        ("~=3.11.5", True),
        ("~=3.10.5", False),
        ("!=3.11.*", False),
        ("==3.*", True),
        ("==3.11.7rc1", False),
    ],
)
def test_versions_and_specifiers(specifier: str, fits: bool) -> None:
    assert matches((3, 11, 7), specifier) is fits


def interpreter(version: str) -> Interpreter:
    major, minor, patch = (int(number) for number in version.split("."))
    return Interpreter(Path(f"/usr/bin/python{version}"), (major, minor, patch), f"cpython-{major}{minor}")


def test_the_newest_that_fits_is_chosen() -> None:
    there = [interpreter(version) for version in ("3.9.18", "3.11.2", "3.11.7", "3.13.0")]
    assert choose("==3.11.*", there).version_text == "3.11.7"
    assert choose(">=3.9,<3.11", there).version_text == "3.9.18"
    assert choose(None, [interpreter("3.9.1"), interpreter("3.10.1")]).version_text == "3.10.1"


def test_any_python_means_the_one_tfjob_runs_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.version_info", (3, 11, 2, "final", 0))
    assert choose(None, [interpreter("3.13.0"), interpreter("3.11.7")]).version_text == "3.11.7"


def test_a_python_that_is_not_there_is_told_with_those_that_are() -> None:
    there = [interpreter(version) for version in ("3.8.10", "3.13.0", "3.11.2", "3.13.1", "3.12.3")]
    for asked, message, hint in (
        (
            "==3.99.*",
            "the environment asks for python=3.99; this machine has 3.8, 3.11, 3.12, 3.13",
            "Ask for one of these, or install it: `uv python install 3.99`.",
        ),
        (
            ">=3.9,<3.11",
            "the environment asks for python>=3.9,<3.11; this machine has 3.8, 3.11, 3.12, 3.13",
            "Ask for one of these, or install it: `uv python install 3.9`.",
        ),
        (
            "==3.11.7",
            "the environment asks for python==3.11.7; this machine has 3.8.10, 3.11.2, 3.12.3, 3.13.0, 3.13.1",
            "Write `python=3.11`, with one `=`, to take any 3.11 there is.",
        ),
    ):
        with pytest.raises(PreparationError) as caught:
            choose(asked, there)
        assert (caught.value.message, caught.value.hint) == (message, hint)
    with pytest.raises(PreparationError, match="python; this machine has no Python that tfjob can use"):
        choose(None, [])


def test_scripts_and_broken_programs_are_no_pythons(tmp_path: Path) -> None:
    for name, text in (("python3.8", "#!/bin/sh\nexit 127\n"), ("python3.9", "\x7fELF broken"), ("python3", "")):
        write(tmp_path / "bin" / name, text).chmod(0o755)
    found = installed({"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)})
    assert all(tmp_path not in one.path.parents for one in found)
    assert found, "the Python that runs this test"


def test_folders_that_cannot_be_read_hold_no_pythons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert installed({"PATH": str(tmp_path), "HOME": str(tmp_path), "PYENV_ROOT": str(tmp_path)})


OLD_LAYOUT = """\
warning: something else
  \u00d7 No solution found when resolving dependencies:
  ╰─▶ Because nosuch was not found in the package registry and you require nosuch, we can conclude that
      your requirements are unsatisfiable.
"""
NEW_LAYOUT = """\
Downloading a (1.0MiB)
error: Failed to build `a==1`
  cause: The build backend returned an error
  cause: Call to `setuptools.build_meta` failed (exit status: 1)

         [stderr]
         Traceback (most recent call last):
           File "x", line 1, in y
         ValueError: no compiler {found}
             ^^^

hint: Build failures usually indicate a problem with the package
"""


def test_uvs_reasons_in_both_layouts() -> None:
    message, hint = explanation(OLD_LAYOUT.splitlines())
    assert message.startswith("No solution found when resolving dependencies:\n  Because nosuch was not found")
    assert message.endswith("requirements are unsatisfiable.")
    assert hint.startswith("Check the name.")
    message, hint = explanation(NEW_LAYOUT.splitlines())
    assert message.splitlines()[0] == "Failed to build `a==1`"
    assert message.splitlines()[-1] == "  ValueError: no compiler {found}"
    assert "Traceback" not in message
    assert "no wheel" in hint


def test_a_long_reason_is_cut_and_an_unknown_one_kept() -> None:
    message, hint = explanation(["error: new kind", *(f"  line {number}" for number in range(100)), "hint: try {this}"])
    assert len(message.splitlines()) < 20
    assert hint.format(lock="x") == "try {this}"
    assert explanation(["nothing known"]) == ("", "")
