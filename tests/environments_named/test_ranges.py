from __future__ import annotations

import itertools

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tfjob.foresight.ranges import Range, exact, listed, parse

VERSIONS = [f"2.{minor}.{patch}" for minor in (0, 9, 14, 15, 16, 17, 18) for patch in (0, 1, 2)] + [
    "1.15",
    "3.0",
    "3",
    "2.15",
]
SPECIFIERS = [
    *("==2.15.1", "==2.15", "==2.15.0", "==2.15.*", "~=2.15", "~=2.15.1", ">=2.16", ">2.15", "<2.18", "<2.18.0", "<=2.15"),
    *(">=2.15,<2.17", ">=2.14,!=2.15,<2.16", "!=2.15", "", "==2.0.*", "===2.15.1"),
]  # fmt: skip


WITH_A_RANGE_OF_THEIR_OWN = [one for one in SPECIFIERS if "!=" not in one and not one.startswith(">2")]


def test_what_is_said_to_be_within_is() -> None:
    for one, other in itertools.product(SPECIFIERS, WITH_A_RANGE_OF_THEIR_OWN):
        if parse(one).is_within(parse(other)):
            inside = [version for version in VERSIONS if Version(version) in SpecifierSet(one)]
            assert all(Version(version) in SpecifierSet(other) for version in inside), (one, other)


def test_a_version_is_within_exactly_what_allows_it() -> None:
    for version, specifier in itertools.product(VERSIONS, WITH_A_RANGE_OF_THEIR_OWN):
        is_allowed = Version(version) in SpecifierSet(specifier)
        assert exact(version).is_within(parse(specifier)) == is_allowed, (version, specifier)


def test_what_follows_the_release_does_not_count() -> None:
    assert exact("2.15.0.post1").is_within(parse("==2.15"))
    assert exact("2.19.0rc1").is_within(parse(">=2.19"))


def test_conda_packages() -> None:
    assert parse("=2.15") == Range((2, 15), (2, 16), "2.15")
    assert parse("2.15.1 cpu_py311_0").is_within(parse("==2.15.1"))
    assert parse("=2.15.1=cpu_py311_0").is_within(parse("==2.15.*"))


@pytest.mark.parametrize(
    ("specifier", "minor"),
    [("==2.15.1", "2.15"), ("~=2.15.0", "2.15"), ("==2.15.*", "2.15"), (">=2.15,<2.16", "2.15"), ("==3.0", "3.0")],
)
def test_the_minor_version_that_is_certain(specifier: str, minor: str) -> None:
    assert parse(specifier).minor == minor


@pytest.mark.parametrize("specifier", ["", ">=2.15", "~=2.15", "<2.16", ">=2.15,<2.17"])
def test_several_minor_versions(specifier: str) -> None:
    assert parse(specifier).minor is None


def test_lines() -> None:
    found = listed(
        [
            *("--pre", "--index-url https://example.org", "tensorflow[and-cuda]==2.15.1", "Tf_Keras (>=2.15)"),
            *(
                "numpy ; python_version < '3'",
                "conda-forge::libjpeg=3",
                "x @ https://example.org/x.whl",
                "h5py",
                "h5py<4",
            ),
            *("--constraint tf.keras<2.16", "--constraint protobuf<5"),
        ]
    )
    assert {name: one.text for name, one in found.items()} == {
        "tensorflow": "2.15.1",
        "tf-keras": ">=2.15,<2.16",
        "libjpeg": "3",
        "x": "",
        "h5py": "<4",
    }
    assert found["tf-keras"].minor == "2.15"
