"""The limit of open files, raised for connections to very many nodes."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from tfjob.dockerapi.open_files import allow_many


@pytest.fixture
def hard() -> Iterator[int]:
    """The limit that this process may have; what it has is put back afterwards."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_low_limit_is_raised_and_a_high_one_stays(hard: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    allow_many()
    raised = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert raised == (min(hard, 1 << 16) if hard != resource.RLIM_INFINITY else 1 << 16, hard)
    allow_many()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == raised
