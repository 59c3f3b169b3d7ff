from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path

import pytest

from tfjob.spec.files import absolute, absolute_pattern, check
from tfjob.spec.job import JobSpec
from tfjob.spec.text import read

Problems = Callable[..., list[str]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "command: x\ncode: scr",
            'job.yml:2:7: code: found "scr", which does not exist; an existing directory is allowed. Did you mean src?',
        ),
        (
            "command: x\ncode: data/images.gz",
            (
                'job.yml:2:7: code: found "data/images.gz", which is no directory; '
                "an existing directory is allowed. It is looked for as {folder}/data/images.gz."
            ),
        ),
        (
            "code: src\nscript: trian.py",
            (
                'job.yml:2:9: script: found "trian.py", which is not in "src"; a file of the code directory is allowed. '
                "Did you mean train.py?"
            ),
        ),
        (
            "code: src\nscript: train.py --lr 3",
            (
                'job.yml:2:9: script: found "train.py --lr 3", which is not in "src"; a file of the code directory is allowed. '
                "Write script: train.py, and the rest under arguments: a list, one argument an item."
            ),
        ),
        (
            "code: src\nscript: run.sh",
            (
                'job.yml:2:9: script: found "run.sh", which is no Python file by its name; a Python file is allowed. '
                "For another program, write a command, such as command: bash run.sh"
            ),
        ),
        (
            "code: src\nscript: other.py",
            (
                'job.yml:2:9: script: found "other.py", which is not in "src"; a file of the code directory is allowed. '
                "Did you mean deep/other.py?"
            ),
        ),
        (
            "code: src\nscript: deep/othr.py",
            (
                'job.yml:2:9: script: found "deep/othr.py", which is not in "src"; a file of the code directory is allowed. '
                "Did you mean deep/other.py?"
            ),
        ),
        (
            "code: src\nscript: deep",
            'job.yml:2:9: script: found "deep", which is not in "src"; a file of the code directory is allowed.',
        ),
        (
            "command: x\ndataset:\n  a: {paths: [data, data/*.csv]}",
            (
                'job.yml:3:21: dataset.a.paths[1]: found "data/*.csv", which matches nothing; '
                "a glob that matches files is allowed. It is looked for as {folder}/data/*.csv."
            ),
        ),
        (
            "command: x\ndataset:\n  a: {paths: [data, bare]}",
            (
                'job.yml:3:21: dataset.a.paths[1]: found "bare", which has no file in it; a path with files is allowed. '
                "It is looked for as {folder}/bare."
            ),
        ),
        (
            "command: x\ndataset: {a: {paths: dat}}",
            (
                'job.yml:2:22: dataset.a.paths: found "dat", which does not exist; an existing file or directory is allowed. '
                "Did you mean data?"
            ),
        ),
        (
            "command: x\nenvironment: {conda_file: enviroment.yml}",
            (
                'job.yml:2:27: environment.conda_file: found "enviroment.yml", which does not exist; '
                "an existing file is allowed. Did you mean environment.yml?"
            ),
        ),
        (
            "command: x\nenvironment: {conda_file: src}",
            (
                'job.yml:2:27: environment.conda_file: found "src", which is no file; '
                "an existing file is allowed. It is looked for as {folder}/src."
            ),
        ),
    ],
)
def test_one_problem(problems_of: Problems, folder: Path, text: str, expected: str) -> None:
    (folder / "bare" / "in").mkdir(parents=True)
    (folder / "src" / "run.sh").touch()
    assert problems_of(text) == [
        expected.format(folder=folder).removesuffix(".") if "{folder}" in expected else expected
    ]


@pytest.mark.parametrize(
    ("text", "guess"),
    [
        ("code: srcs", "src"),
        ("environment: {conda_file: enviroment.yaml}", "environment.yml"),
        ("dataset: {a: {paths: srcc}}", "src.c"),
    ],
)
def test_what_is_suggested_is_of_the_right_kind(problems_of: Problems, folder: Path, text: str, guess: str) -> None:
    (folder / "src.c").touch()  # more like srcc than the directory
    (folder / "srcs.py").touch()
    (folder / "enviroment.yaml.d").mkdir()
    (folder / "enviroments.yaml").write_text("command: x\n")
    [found] = problems_of(f"command: x\n{text}")
    assert found.endswith(f" Did you mean {guess}?")
    (folder / "environment.yml").write_text("name: x\n")
    if "conda" in text:
        assert "Did you mean" not in problems_of(f"command: x\n{text}")[0]


@pytest.mark.parametrize(
    ("ignore", "script", "found"),
    [
        (
            (".gitignore", "# not yet\ntrain.py\n"),
            "train.py",
            (
                'found "train.py", which line 2 of its .gitignore ("train.py") leaves out; a file that the copy of the code '
                "has is allowed. Write a .tfjobignore there, which is read instead of .gitignore: with the other lines, if "
                "need be."
            ),
        ),
        (
            (".tfjobignore", "deep/\n!deep/other.py\n"),
            "./deep/other.py",
            (
                'found "./deep/other.py", which line 1 of its .tfjobignore ("deep/") leaves out; a file that the copy of '
                "the code has is allowed. Remove that line."
            ),
        ),
        (
            (".tfjobignore", ""),
            "outputs/late.py",
            (
                'found "outputs/late.py", and outputs is never part of the code; a file that the copy of the code has is '
                "allowed. Move it to another directory."
            ),
        ),
    ],
)
def test_a_script_that_the_copy_of_the_code_leaves_out(
    problems_of: Problems, folder: Path, ignore: tuple[str, str], script: str, found: str
) -> None:
    (folder / "src" / "outputs").mkdir()
    (folder / "src" / "outputs" / "late.py").touch()
    (folder / "src" / ignore[0]).write_text(ignore[1])
    assert problems_of(f"code: src\nscript: {script}") == [f"job.yml:2:9: script: {found}"]


def test_a_script_that_an_ignore_file_takes_back_in(problems_of: Problems, folder: Path) -> None:
    (folder / "src" / ".gitignore").write_text("*\n")
    (folder / "src" / ".tfjobignore").write_text("*.py\n!train.py\n")
    assert problems_of("code: src\nscript: train.py") == []


def test_directories_to_keep_that_the_code_has_as_files(problems_of: Problems, folder: Path) -> None:
    (folder / "src" / "link").symlink_to("deep")
    (folder / "src" / "old").touch()
    (folder / "src" / ".gitignore").write_text("old\n")
    assert problems_of("code: src\ncommand: x\noutputs: {keep: [deep/new, train.py, deep/other.py/x, link, old]}") == [
        (
            f'job.yml:3:{column}: outputs.keep[{index}]: found "{path}", and "{part}" of the code is {what}; a directory that '
            "the job makes or the code has is allowed. Name another directory, and write there."
        )
        for index, column, path, part, what in [
            (1, 28, "train.py", "train.py", "no directory"),
            (2, 38, "deep/other.py/x", "deep/other.py", "no directory"),
            (3, 55, "link", "link", "a link"),
        ]
    ]


def test_files_of_a_dockerfile(folder: Path) -> None:
    root, _ = read("environment: {dockerfile: src, build_context: nowhere}", "job.yml")
    assert root is not None
    assert list(map(str, check(root, folder))) == [
        (
            'job.yml:1:27: environment.dockerfile: found "src", which is no file; an existing file is allowed. '
            f"It is looked for as {folder}/src"
        ),
        (
            'job.yml:1:47: environment.build_context: found "nowhere", which does not exist; an existing directory is '
            f"allowed. It is looked for as {folder}/nowhere"
        ),
    ]


@pytest.mark.parametrize("text", ["x" * 5000, "a/" * 3000, "src/train.py/x", "[", "**/[!", "~nobody-there/x"])
def test_odd_paths_are_problems_and_nothing_else(problems_of: Problems, text: str) -> None:
    job = f"command: x\ncode: '{text}'\ndataset: {{a: {{paths: '{text}'}}}}\nenvironment: {{conda_file: '{text}'}}"
    assert len(problems_of(job)) == 3


@pytest.mark.parametrize("text", ["a\\0", "../\\0", "../a\\nb", "\\x1b[31m*"])
def test_characters_that_no_terminal_should_see(problems_of: Problems, text: str) -> None:
    found = problems_of(f'command: x\ncode: "{text}"\ndataset: {{a: {{paths: "{text}"}}}}')
    assert len(found) >= 2
    assert all(problem.isprintable() for problem in found)


def test_paths_become_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    assert absolute(folder, "src") == folder / "src"
    assert absolute(folder, ".") == folder
    assert absolute(folder, "../x").name == "x"
    assert ".." not in absolute(folder / "src", "../data").parts
    assert absolute(folder, "~/x") == folder / "home" / "x"
    assert absolute(folder, "/x/y") == Path("/x/y")


def test_patterns_become_absolute_globs(folder: Path) -> None:
    assert absolute_pattern(folder, "data/*.gz") == f"{folder}/data/*.gz"
    assert absolute_pattern(folder, "*.gz") == f"{folder}/*.gz"
    assert glob.glob(absolute_pattern(folder, "data/odd[1].gz")) == [f"{folder}/data/odd[1].gz"]
    assert glob.glob(absolute_pattern(folder / "src", "../data/i*.gz")) == [f"{folder}/data/images.gz"]


def test_a_folder_may_have_a_name_with_brackets(tmp_path: Path) -> None:
    odd = tmp_path / "a[b]*"
    odd.mkdir()
    (odd / "x.gz").touch()
    assert glob.glob(absolute_pattern(odd, "*.gz")) == [f"{odd}/x.gz"]


def test_what_a_job_names_is_found(load_job: Callable[..., JobSpec], folder: Path) -> None:
    job = load_job(
        "code: src\nscript: deep/other.py\ndataset: {a: {paths: [data/*.gz, data]}}\n"
        "environment: {conda_file: src/../environment.yml}"
    )
    assert job.code == folder / "src"
    assert job.dataset[0][1].paths == (f"{folder}/data/*.gz", f"{folder}/data")
    assert job.environment.conda_file == folder / "environment.yml"
