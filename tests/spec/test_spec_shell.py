from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfjob.spec.shell import fill, literal, variable

LINES = [
    "printf %s ${{ x }}",
    "printf %s '${{ x }}'",
    'printf %s "${{ x }}"',
    "printf '%s' a\\'b >/dev/null; printf %s ${{ x }}",
    "# it's a comment\nprintf %s ${{ x }}",
    "echo one#two's end' >/dev/null; printf %s \"${{ x }}\"",
]
AWKWARD = [
    "",
    "plain",
    "two words",
    "it's",
    'say "x"',
    "$HOME",
    "`id`",
    "$(id)",
    "a\\b",
    "; exit 7",
    "*",
    "new\nline",
    "ü",
]


def run(line: str, **variables: str) -> str:
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, check=True, env={"PATH": "/usr/bin:/bin", "HOME": "/h", **variables}
    )
    return done.stdout.decode()


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("value", AWKWARD)
def test_a_value_arrives_as_it_is_in_whatever_quotes(line: str, value: str) -> None:
    assert run(fill(line, {"x": value}.get, literal, final=True)) == value
    assert run(fill(line, {"x": "V"}.get, variable, final=True), V=value) == value


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20), st.sampled_from(LINES))
def test_any_text_arrives(value: str, line: str) -> None:
    assert run(fill(line, {"x": value}.get, literal, final=True)) == value


def test_what_is_not_known_yet_stays_and_does_not_disturb_what_follows() -> None:
    once = fill("run '${{ late }}' \"${{ x }}\"", {"x": "a b"}.get, literal, final=False)
    assert once == "run '${{ late }}' \"a b\""
