from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from tfjob.errors import InvalidFile, UsageError
from tfjob.spec.environment_file import EnvironmentFile, environment_file_schema, load
from tfjob.spec.job import EnvironmentSpec

CONDA = "name: tf\nchannels: [conda-forge]\ndependencies:\n  - python=3.11\n  - pip: [tensorflow==2.16.2]\n"
CONDA_DATA = {
    "name": "tf",
    "channels": ["conda-forge"],
    "dependencies": ["python=3.11", {"pip": ["tensorflow==2.16.2"]}],
}
KEYS = (
    "name, version, description, tags, conda_file, conda, base, dockerfile, build_context, build_arguments, image, build, "
    "os_type, inference_config or environment_variables"
)
Load = Callable[[str], EnvironmentFile]
Problems = Callable[[str], list[str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "conda.yml").write_text(CONDA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def load_text(folder: Path) -> Load:
    def load_text(text: str) -> EnvironmentFile:
        (folder / "env.yml").write_text(text)
        return load("env.yml")

    return load_text


@pytest.fixture
def problems_of(load_text: Load) -> Problems:
    def problems_of(text: str) -> list[str]:
        with pytest.raises(InvalidFile) as caught:
            load_text(text)
        return [str(problem) for problem in caught.value.problems]

    return problems_of


def test_a_conda_file_is_an_environment_of_its_own_name(folder: Path) -> None:
    spec = EnvironmentSpec(conda=CONDA_DATA, conda_file=folder / "conda.yml")
    assert load("conda.yml") == EnvironmentFile(spec, name="tf", base_dir=folder)


def test_every_key_of_the_packages_form(folder: Path, load_text: Load) -> None:
    made = load_text(
        "$schema: x\nname: tf-cpu\nversion: 1.10\ndescription: |\n  Two\n  lines\ntags: {team: demo, n: 3}\n"
        "conda_file: conda.yml\nbase: gpu\nenvironment_variables: {TF_USE_LEGACY_KERAS: 1}\n"
    )
    spec = EnvironmentSpec(conda=CONDA_DATA, conda_file=folder / "conda.yml", base="gpu")
    assert made == EnvironmentFile(
        spec, "tf-cpu", "1.10", "Two\nlines", (("team", "demo"), ("n", "3")), (("TF_USE_LEGACY_KERAS", "1"),), folder
    )


def test_packages_written_in_place(folder: Path, load_text: Load) -> None:
    made = load_text("name: a\nconda: {dependencies: [python=3.11]}\n")
    assert made.spec == EnvironmentSpec(conda={"dependencies": ["python=3.11"]})
    assert made.base_dir == folder


def test_an_image(load_text: Load) -> None:
    assert load_text("name: a\nimage: r/i:1").spec == EnvironmentSpec(image="r/i:1")


def test_a_dockerfile(folder: Path, load_text: Load) -> None:
    made = load_text("name: a\ndockerfile: docker/Dockerfile\nbuild_context: .\nbuild_arguments: {A: 3.10}")
    assert made.spec == EnvironmentSpec(
        dockerfile=folder / "docker" / "Dockerfile", build_context=folder, build_arguments=(("A", "3.10"),)
    )


def test_azure_packages_on_an_image(folder: Path, load_text: Load) -> None:
    text = "$schema: https://example.org/environment.schema.json\nname: a\nversion: 2\nos_type: linux\nimage: r/i:1\n"
    named = load_text(f"{text}conda_file: ./conda.yml")
    assert named.version == "2"
    assert named.spec == EnvironmentSpec(conda=CONDA_DATA, conda_file=folder / "conda.yml", base="r/i:1")
    inline = load_text(f"{text}conda_file:\n  channels: [conda-forge]\n  dependencies: [python=3.11]\n")
    assert inline.spec.conda == {"channels": ["conda-forge"], "dependencies": ["python=3.11"]}
    assert (inline.spec.base, inline.spec.image, inline.spec.conda_file) == ("r/i:1", None, None)


@pytest.mark.parametrize("rest", ["", ", dockerfile_path: Dockerfile"])
def test_azure_build(folder: Path, load_text: Load, rest: str) -> None:
    made = load_text(f"name: a\nbuild: {{path: docker/{rest}}}\ninference_config: {{liveness_route: {{path: /}}}}")
    assert made.spec.dockerfile == folder / "docker" / "Dockerfile"
    assert made.spec.build_context == folder / "docker"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["env.yml:1:1: found an empty file; keys with values are allowed."]),
        ("name: a", [("env.yml:1:1: found none of conda_file, conda, dockerfile, build, image; one of them is required. "
                     "Add conda_file: environment.yml, or image: IMAGE.")]),
        ("name: a b\nversion: ''\nimage: i", [
            ('env.yml:1:7: name: found text "a b"; a name of at most 63 letters, digits, _, . and -, starting with a '
            "letter or digit is allowed."),
            ("env.yml:2:10: version: found empty text; a version of at most 63 letters, digits, _, . and -, starting "
            "with a letter or digit, a whole number or a number is allowed."),
        ]),
        ("image: i\ndockerfile: docker/Dockerfile\nbase: gpu", [
            ("env.yml:1:1: image: found both dockerfile and image; one of conda_file, conda, dockerfile, build, image is "
            "allowed. Remove dockerfile or image."),
            "env.yml:3:1: base: found base without packages; it is allowed with conda_file or conda. Remove it.",
        ]),
        ("image: i\nbase: gpu\nconda_file: conda.yml\nbuild_context: .", [
            ("env.yml:1:1: image: found image with base and packages; one of the two images is allowed. "
            "Remove it, or remove base."),
            ("env.yml:4:1: build_context: found build_context without dockerfile; it is allowed with dockerfile. "
            "Add dockerfile, or remove it."),
        ]),
        ("version: 3\ndependencies: [python]", [
            (
                'env.yml:1:1: version: found the unknown key "version"; name, channels, dependencies, variables or prefix is '
                "allowed."
            ),
        ]),
        ("image: i\nimagee: x\nos_type: windows", [
            (f'env.yml:2:1: imagee: found the unknown key "imagee"; {KEYS} is allowed. '
            "Did you mean image?"),
            'env.yml:3:10: os_type: found text "windows"; linux is allowed.',
        ]),
        ("image: i\nenvironment_variables: {TF_CONFIG: x, A: '${{ run.id }}'}", [
            ("env.yml:2:25: environment_variables.TF_CONFIG: found TF_CONFIG, which tfjob sets itself; other names are "
            "allowed. Choose another name."),
            ('env.yml:2:42: environment_variables.A: found the expression "${{ run.id }}"; plain text is allowed. '
            "Expressions belong into job files, under environment_variables."),
        ]),
        ("script: train.py\ncode: src", [
            ("env.yml:1:1: this looks like a job file, not an environment file. Put what stands under its environment: "
            "into a file of its own."),
        ]),
        ("build: {path: 'https://host/x.git'}", [
            ('env.yml:1:15: build.path: found "https://host/x.git"; a directory of this machine is allowed. '
            "Fetch it first and give its path."),
        ]),
    ],
)  # fmt: skip
def test_problems(problems_of: Problems, text: str, expected: list[str]) -> None:
    assert problems_of(text) == expected


def test_what_the_disk_lacks(folder: Path, problems_of: Problems) -> None:
    assert problems_of("conda_file: cond.yml") == [
        (
            'env.yml:1:13: conda_file: found "cond.yml", which does not exist; an existing file is allowed. '
            "Did you mean conda.yml?"
        )
    ]
    assert problems_of("build: {path: dockr}") == [
        (
            f'env.yml:1:15: build.path: found "dockr", and there is no directory {folder}/dockr; '
            "an existing directory is allowed."
        )
    ]
    assert problems_of("build: {path: docker, dockerfile_path: D}") == [
        (
            f'env.yml:1:40: build.dockerfile_path: found "D", and there is no Dockerfile {folder}/docker/D; '
            "an existing Dockerfile is allowed."
        )
    ]


def test_problems_of_the_named_conda_file_have_its_own_places(folder: Path, problems_of: Problems) -> None:
    (folder / "conda.yml").write_text("dependencies:\n  - python=3.11\n  - pip: [-r nowhere.txt]\n")
    (found,) = problems_of("name: a\nconda_file: conda.yml\n")
    assert found.startswith('conda.yml:3:11: dependencies[1].pip[0]: found "-r nowhere.txt", which names no file')


def test_problems_of_packages_written_in_place(problems_of: Problems) -> None:
    (found,) = problems_of("name: a\nconda_file:\n  dependencies: [python, {pip: [-r nowhere.txt]}]\n")
    assert found.startswith('env.yml:3:33: conda_file.dependencies[1].pip[0]: found "-r nowhere.txt"')


def test_other_files(folder: Path) -> None:
    (folder / "requirements.txt").write_text("numpy==1.0\n")
    with pytest.raises(InvalidFile, match=r"looks like a requirements\.txt"):
        load("requirements.txt")
    (folder / "train.py").write_text("import tensorflow\n")
    with pytest.raises(InvalidFile, match="looks like a Python program, not an environment file"):
        load("train.py")
    with pytest.raises(UsageError, match=r"the environment file nowhere\.yml cannot be read: No such file"):
        load("nowhere.yml")


def test_the_schema_is_complete() -> None:
    schema = environment_file_schema()
    Draft202012Validator.check_schema(schema)
    assert "$ref" not in str(schema)
    for key, said in schema["properties"].items():
        assert said["title"], key
        assert said["description"].endswith("."), key
        for example in said["examples"]:
            assert not list(Draft202012Validator(said).iter_errors(example)), key
