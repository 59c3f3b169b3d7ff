"""Files that say where a prefix was made are changed to say where it will be; nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfjob.environments.relocation import rewrite


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "building" / "prefix"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    return folder


def script(stage: Path, name: str, text: str) -> Path:
    path = stage / "bin" / name
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("final", ["env", "a" * 200, "with a space"])
@pytest.mark.parametrize(
    "first",
    [
        "#!{stage}/bin/python\n",
        "#!{stage}/bin/python -E\n",
        "#!/bin/sh\n'''exec' '{stage}/bin/python' \"$0\" \"$@\"\n' '''\n",
        "#!/bin/sh\n'''exec' \"{stage}/bin/python\" \"$0\" \"$@\"\n' '''\n",
    ],
)
def test_a_script_finds_its_python_wherever_that_is(stage: Path, tmp_path: Path, first: str, final: str) -> None:
    code = "import sys\nprint(sys.argv[1:], 'ok')\n"
    script(stage, "tool", first.format(stage=stage) + code)
    assert rewrite(stage, tmp_path / final) == ["bin/tool"]
    stage.rename(tmp_path / final)
    tool = tmp_path / final / "bin" / "tool"
    assert subprocess.check_output([tool, "a b", "c"], text=True) == "['a b', 'c'] ok\n"
    assert str(stage) not in tool.read_text()
    if final == "env":
        assert tool.read_text().startswith(f"#!{tmp_path}/env/bin/python")


def test_only_text_of_its_own_is_changed(stage: Path, tmp_path: Path) -> None:
    script(stage, "shell", f"#!/bin/sh\nexec {stage}/bin/other\n")
    (stage / "binary").write_bytes(b"\0" + os.fsencode(stage))
    (stage / "plain").write_text("nothing of it")
    (stage / "link").symlink_to(stage / "plain")
    cached = tmp_path / "cached"
    cached.write_text(f"from {stage}")
    (stage / "shared").hardlink_to(cached)
    before = {name: (stage / name).read_bytes() for name in ("binary", "plain", "shared")}
    assert rewrite(stage, Path("/opt/env")) == ["bin/shell"]
    assert (stage / "bin" / "shell").read_text() == "#!/bin/sh\nexec /opt/env/bin/other\n"
    assert os.access(stage / "bin" / "shell", os.X_OK)
    assert {name: (stage / name).read_bytes() for name in before} == before
    assert sorted(path.name for path in stage.iterdir()) == ["bin", "binary", "link", "plain", "shared"]
