"""The lock file: what is in it, that it is read as it was written, and what is said of one that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tfjob.environments.channels import ConfiguredChannels, channel_alias
from tfjob.environments.credentials import credentials_of, with_credentials, without_credentials
from tfjob.environments.lock import CondaRecord, Lock, dump, load_yaml_12
from tfjob.environments.pip_hashes import only_asked
from tfjob.errors import ExitCode, PreparationError, UsageError

PIP = """\
six==1.17.0 \\
    --hash=sha256:4721 \\
    --hash=sha256:8a3f
    # via -r requirements.in
delta @ git+https://user:secret@host/delta@0123abcd
"""
HASH = "1234567890e12345678901234567890123456789012345678901234567890123"


def conda(*packages: str, sha256: str = HASH) -> dict[str, Any]:
    listed = [{"conda": f"https://me:pw@host/t/tk-1/linux-64/{name}.conda", "sha256": sha256} for name in packages]
    urls = [{"conda": one["conda"]} for one in listed]
    environment = {"channels": [{"url": "https://host"}], "packages": {"linux-64": urls}}
    return {
        "version": 7,
        "platforms": [{"name": "linux-64"}],
        "environments": {"default": environment},
        "packages": listed,
    }


def lock(**changed: Any) -> Lock:
    given: dict[str, Any] = {
        "definition": "d" * 64,
        "asked": ["python==3.11.*", "pip: six"],
        "python_version": "3.11.7",
        "platform": "linux-x86_64-glibc2.36",
        "base": None,
        "pip_text": PIP,
        "conda": conda("python-3.11.7-h1_0", "my-tool-1_0-0"),
    }
    return Lock.make(**{**given, **changed})


def test_a_lock_is_read_as_it_was_written() -> None:
    written = lock(base="sha256:abc")
    again = Lock.parse(written.text)
    assert again == written
    assert (again.definition, again.python_version, again.base) == ("d" * 64, "3.11.7", "sha256:abc")
    assert again.packages == {
        "python": "3.11.7",
        "my-tool": "1_0",
        "six": "1.17.0",
        "delta": "git+https://host/delta@0123abcd",
    }
    assert again.conda_records[0] == CondaRecord(
        "my-tool", "1_0", "0", "https://host/linux-64/my-tool-1_0-0.conda", HASH
    )
    assert again.pip_text == without_credentials(PIP)
    assert not again.has_all_hashes
    assert yaml.safe_load(again.text) == load_yaml_12(again.text)


def test_the_file_says_what_it_is_and_how_to_use_it() -> None:
    text = lock().text
    head = text[: text.index("\nversion: 1\n")].splitlines()
    assert all(line.startswith("#") for line in head)
    for words in ("every package of one environment", "for Python 3.11.7 on linux", "pip: six", "tfjob env lock"):
        assert words in "\n".join(head)


def test_no_credentials_are_in_it() -> None:
    text = lock(asked=["channel: https://me:pw@host/t/tk-1/main"]).text
    for secret in ("secret", "pw", "tk-1", "//me:", "user:"):
        assert secret not in text


@pytest.mark.parametrize(
    ("address", "bare"),
    [
        ("https://user:pw@host/simple", "https://host/simple"),
        ("https://token@host/simple", "https://host/simple"),
        ("git+https://token@host/x@v1", "git+https://host/x@v1"),
        ("git+ssh://git@host/x@v1", "git+ssh://git@host/x@v1"),
        ("ssh://git:pw@host/x", "ssh://host/x"),
        ("https://host/t/tk-12/main/linux-64", "https://host/main/linux-64"),
        ("see https://a:b@one/ and https://two/c@d", "see https://one/ and https://two/c@d"),
        ("file:///a/t/b/c", "file:///a/t/b/c"),
    ],
)
def test_credentials_are_taken_out_of_addresses(address: str, bare: str) -> None:
    assert without_credentials(address) == bare


def test_credentials_of_the_definition_are_put_back_where_they_belong() -> None:
    known = credentials_of(["x @ git+https://me:pw@host/x@v1", "https://me:p2@other/t/tk/main"])
    text = "x @ git+https://host/x@0123\nhttps://other/main/noarch/y.conda\nhttps://other/mainly\n"
    assert with_credentials(text, known) == (
        "x @ git+https://me:pw@host/x@0123\nhttps://me:p2@other/t/tk/main/noarch/y.conda\nhttps://other/mainly\n"
    )


def test_the_digest_is_of_what_is_installed() -> None:
    one = lock()
    assert one.digest() == lock(asked=["six"], definition="e" * 64).digest()
    moved = one.text.replace("https://host/linux-64", "file:///elsewhere/linux-64").replace("# via", "# by way of")
    assert moved != one.text
    assert Lock.parse(moved).digest() == one.digest()
    others = [lock(base="sha256:1"), lock(python_version="3.11.8", conda=None), lock(platform="linux-x86_64-glibc2.31")]
    others += [lock(pip_text=PIP.replace("4721", "4722")), lock(conda=conda("python-3.11.7-h1_0", sha256="ab" * 32))]
    others += [lock(conda=None), lock(pip_text="")]
    assert len({one.digest(), *(other.digest() for other in others)}) == len(others) + 1


@pytest.mark.parametrize(
    "text", ["1234e567", "0123", "1_0", "no", "1:30", "0o17", ".5", "", "~", "2024-01-01", "1e3", "="]
)
def test_text_stays_text_in_both_kinds_of_yaml(text: str) -> None:
    written = dump({"build": text, "size": 12, "flag": True, "none": None})
    assert yaml.safe_load(written) == load_yaml_12(written) == {"build": text, "size": 12, "flag": True, "none": None}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version: 1\n", "version: 2\n", "the lock has version 2; this tfjob reads version 1"),
        ("version: 1\n", "", "the lock has version none"),
        ("python: 3.11.7", "python: 3.11", "`python` is 3.11, not text"),
        ("python: 3.11.7", "python: three", "not a full version"),
        ("platform: linux-x86_64-glibc2.36\n", "", "`platform` is missing"),
        ("six==1.17.0", "six>=1.17.0", "`six>=1.17.0 --hash"),
        ("python-3.11.7-h1_0.conda", "python.conda", "is no conda package"),
        ("python-3.11.7-h1_0.conda", "other-3.11.7-h1_0.conda", "there is no `python`"),
        ("my-tool-1_0-0.conda", "python-3.11.8-h1_0.conda", "python is twice"),
        ("python: 3.11.7", "python: 3.11.8", "`python` is 3.11.8, but python 3.11.7 is among its conda packages"),
        (
            "    sha256: '" + HASH,
            "    sha256: 'zzzz",
            "the `sha256` of python-3.11.7-h1_0.conda under `conda` is 'zzzz",
        ),
        ("    sha256: '" + HASH + "'\n", "", "the `sha256` of python-3.11.7-h1_0.conda under `conda` is missing"),
        ("  environments:", "  environs:", "`conda: environments:` must have `default` only"),
        ("    default:", "    other:", "`conda: environments:` must have `default` only"),
        ("        linux-64:", "        linux-aarch64:", "is for linux-aarch64; the lock's platform"),
        ("  - name: linux-64", "  - name: osx-64", "`conda: platforms:` must have linux-64 only"),
        ("platform: linux-x86_64", "platform: linux-aarch64", "linux-aarch64-glibc2.36 is linux-aarch64"),
        ("platform:", "made: 2024-99-99\nplatform:", "the lock cannot be read: it is no YAML"),
        ("  packages:", "  packaged:", "`conda` is no lock file of rattler"),
        ("platform:", "platform: [", "in line"),
    ],
)
def test_what_is_wrong_with_a_lock_is_said(old: str, new: str, said: str) -> None:
    text = lock().text
    assert old in text
    with pytest.raises(UsageError, match="the lock") as caught:
        Lock.parse(text.replace(old, new))
    assert said in caught.value.message
    assert "tfjob env lock" in caught.value.hint
    assert caught.value.exit_code == ExitCode.BAD_INPUT


def test_a_bad_merge_of_a_lock_is_noticed() -> None:
    text = lock().text
    listed = "        - conda: https://host/linux-64/my-tool-1_0-0.conda\n"
    kept = f"  - conda: https://host/linux-64/my-tool-1_0-0.conda\n    sha256: '{HASH}'\n"
    for old, new, times in ((listed, "", (0, 1)), (listed, listed * 2, (2, 1)), (kept, "", (1, 0))):
        assert old in text
        with pytest.raises(UsageError) as caught:
            Lock.parse(text.replace(old, new))
        assert f"my-tool-1_0-0.conda is {times[0]} times under" in caught.value.message
        assert f"and {times[1]} times under `conda: packages:`" in caught.value.message
        assert "merge" in caught.value.hint


@pytest.mark.parametrize("text", ["", "six==1.17.0\n", "- a\n", "\0", "[" * 1000])
def test_another_file_is_no_lock(text: str) -> None:
    with pytest.raises(UsageError, match="the lock"):
        Lock.parse(text)


def test_hashes_of_the_pip_section_limit_those_of_the_lock() -> None:
    solved = "six==1.17.0 ; python_version > '3' \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n    # via x\n"
    solved += "two==1 \\\n    --hash=sha256:cc\n"
    assert only_asked(solved, ("six", "--pre"), ()) == solved
    one = only_asked(solved, ("Six==1.17.0 --hash=sha256:BB --hash=sha256:dd",), ())
    assert one == solved.replace("    --hash=sha256:aa \\\n", "")
    limited = ("six --hash=sha256:aa --hash=sha256:bb", "--constraint six --hash sha256:aa", "gone --hash=sha256:00")
    assert only_asked(solved, limited, ()) == solved.replace("aa \\\n    --hash=sha256:bb", "aa")
    with pytest.raises(PreparationError, match=r"^six==1.17.0 .* was chosen, and none of its 2 files has a hash"):
        only_asked(solved, ("six --hash=sha256:ee",), ())
    with pytest.raises(PreparationError, match=r"of six, which comes from conda"):
        only_asked(solved, ("six --hash=sha256:aa",), ("six",))


def test_defaults_stands_for_what_condarc_says(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    with pytest.raises(PreparationError, match="`default_channels` of") as caught:
        ConfiguredChannels(["defaults"], home)
    assert "`conda-forge`" in caught.value.hint
    (tmp_path / ".condarc").write_text("default_channels: [https://host/main, r]\nchannel_alias: https://mirror\n")
    channels = ConfiguredChannels(["defaults", "x"], home)
    assert channels.urls == ("https://host/main", "https://mirror/r", "https://mirror/x")
    with pytest.raises(PreparationError, match="may be any of https://host/main, r"):
        channels.url("defaults")
    assert ConfiguredChannels(["defaults"], {**home, "CONDA_DEFAULT_CHANNELS": "y"}).urls == ("https://mirror/y",)


@pytest.mark.parametrize("name", ["http://[bad", "a:b", "http:/\\/x", "https://"])
def test_what_is_no_channel_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(PreparationError) as caught:
        ConfiguredChannels([name], {"HOME": str(tmp_path)})
    assert f"the channel `{name}`" in caught.value.message


def test_names_of_channels_follow_condas_own_configuration(tmp_path: Any) -> None:
    home = {"HOME": str(tmp_path)}
    assert channel_alias(home) is None
    (tmp_path / ".condarc").write_text("channel_alias: https://mirror/conda\n")
    assert channel_alias(home) == "https://mirror/conda/"
    assert channel_alias({**home, "CONDA_CHANNEL_ALIAS": "https://other"}) == "https://other/"
    assert channel_alias({**home, "CONDA_CHANNEL_ALIAS": str(tmp_path)}) == f"{tmp_path.as_uri()}/"
    (tmp_path / ".condarc").write_text("channels: [\n")
    assert channel_alias(home) is None
