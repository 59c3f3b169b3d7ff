from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def leases() -> Iterator[Path]:
    """A directory of leases as all users of a machine share it."""
    parent = Path(tempfile.mkdtemp())
    parent.chmod(0o755)
    directory = parent / "leases"
    directory.mkdir()
    directory.chmod(0o1777)
    yield directory
    shutil.rmtree(parent)
