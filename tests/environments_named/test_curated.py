from __future__ import annotations

import pytest
from environments_named.real_packages import solve

from tfjob.environments import curated
from tfjob.environments.definition import definition_of
from tfjob.environments.registered import find
from tfjob.errors import NotFound
from tfjob.foresight.pairings import Facts, check


@pytest.mark.parametrize("name", curated.names())
def test_every_file_is_an_environment_of_its_name(name: str) -> None:
    file = curated.read(name)
    assert file.name == name
    assert name.startswith(curated.PREFIX)
    assert file.version
    assert file.description.endswith(".")
    assert dict(file.tags) == {"framework": "tensorflow", "device": name.rpartition("-")[2]}
    definition = definition_of(file.spec, base_dir=file.base_dir)
    assert definition is not None
    assert (definition.python, definition.channels) == ("==3.11.*", ("conda-forge",))
    assert not definition.needs_channel, "where a Python 3.11 is at hand, no channel is asked"
    base: str = file.spec.base
    assert base == "cpu" or base.startswith("nvidia/cuda:")


def test_they_are_listed_by_version() -> None:
    assert curated.names() == tuple(
        f"tfjob-tensorflow-{version}-{device}" for version in ("2.15", "2.18", "2.21") for device in ("cpu", "gpu")
    )


def test_one_that_is_not_there() -> None:
    with pytest.raises(NotFound, match=r"there is no environment 'tfjob-tensorflow-2\.1-cpu'") as caught:
        curated.read("tfjob-tensorflow-2.1-cpu")
    assert caught.value.hint.startswith("Did you mean tfjob-tensorflow-2.")
    with pytest.raises(NotFound) as caught:
        curated.path("tfjob-../../x")
    assert caught.value.hint.startswith("It has tfjob-tensorflow-2.15-cpu, ")


@pytest.mark.real
@pytest.mark.parametrize("name", curated.names())
def test_they_can_be_solved_and_nothing_in_them_is_known_to_fail(name: str) -> None:
    environment = find(name, None)
    definition = definition_of(environment.spec)
    assert definition is not None
    packages = solve(*definition.requirements)
    assert isinstance(packages, dict), packages
    version = name.split("-")[2]
    tensorflow = packages.get("tensorflow", packages.get("tensorflow-cpu", ""))
    assert tensorflow.startswith(f"{version}.")
    assert ("tensorflow" in packages) != ("tensorflow-cpu" in packages)
    assert ("horovod" in packages) == (version == "2.15")
    facts = Facts(packages=packages, python="3.11.2", distribution="mpi", variables=dict(environment.variables))
    assert check(facts) == ()
    if name.endswith("gpu"):
        assert packages["nvidia-cuda-runtime-cu12"].startswith("12.2." if version == "2.15" else "12.5.")
        assert packages["nvidia-cudnn-cu12"].startswith("8.9." if version == "2.15" else "9.3.")


def test_a_name_without_its_device_is_that_for_every_machine() -> None:
    with pytest.raises(NotFound) as caught:
        find("tfjob-tensorflow-2.18", None)
    assert caught.value.hint == "Did you mean tfjob-tensorflow-2.18-cpu?"
