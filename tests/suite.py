"""Runs every test as `make test` does: among each other, and what failed so once more, alone.

    suite.py WORKERS

Tests of real parts share two processors with engines, schedulers and training, and some depend on how long something
takes. What fails among the others and passes alone is told as unsteady, with its failure in full above, and does not fail
the suite: each is a defect of a test or of what it tests, and wants to be looked at. CPython's own suite does so
(https://devguide.python.org/testing/run-write-tests/, `--rerun`). More than a few failures are no chance: they stand.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

UNSTEADY_AT_MOST = 4
TESTS_FAILED = 1
"""What pytest ends with where tests failed; all else (interrupted, not understood, nothing found) is no matter of chance."""


def main(workers: str, *arguments: str) -> int:
    # Ctrl-C is pytest's: it ends what its tests have started, and says what it has seen.
    signal.signal(signal.SIGINT, lambda *_: None)
    with tempfile.TemporaryDirectory(prefix="tfjob-suite-") as directory:
        cache = ["-o", f"cache_dir={directory}"]
        code = _pytest(*cache, "-n", workers, "--dist", "loadgroup", *arguments)
        failed = _failed(Path(directory))
        are_tests = all("::" in test for test in failed)  # no files that can't be read
        if code != TESTS_FAILED or not are_tests or not 0 < len(failed) <= UNSTEADY_AT_MOST:
            return code
        print(f"\nonce more, alone: {len(failed)} of the tests failed among the others", flush=True)
        code = _pytest("-p", "no:cacheprovider", "-n", "0", *failed)
    if code == 0:
        print("\nunsteady: failed among the others, passed alone; their failures are above, and want to be looked at")
        print(*(f"  {test}" for test in failed), sep="\n", flush=True)
    return code


def _pytest(*arguments: str) -> int:
    with subprocess.Popen([sys.executable, "-m", "pytest", *arguments]) as process:
        return process.wait()


def _failed(cache: Path) -> list[str]:
    """Return the tests that failed, as pytest takes them."""
    path = cache / "v" / "cache" / "lastfailed"
    return sorted(map(_without_group, json.loads(path.read_text()))) if path.exists() else []


def _without_group(test: str) -> str:
    """Return a test's own name. `--dist loadgroup` adds @GROUP to it; an @ before a ] is a parameter's."""
    return test[: test.rfind("@")] if test.rfind("@") > test.rfind("]") else test


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
