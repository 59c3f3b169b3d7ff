from __future__ import annotations

import os

import pytest

from tfjob.images.dockerfile_text import instructions, parents

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def needed(text: str, **arguments: str) -> tuple[str, ...]:
    return parents(text, arguments, needed_only=True)


def test_images_that_files_come_from() -> None:
    text = """\
FROM one AS First
RUN --network=none --mount=type=bind,from=two,source=/x,target=/y --mount=type=cache,target=/c make
FROM three
COPY --chown=1:1 --from=four /a /a
ADD --from=FIRST /b /b
COPY --from=0 /c /c
RUN --mount=from=1 true
COPY from=no /d
FROM five:5000/x/y@sha256:abc
COPY --from=1 /e /e
"""
    assert needed(text) == ("one", "two", "three", "four", "five:5000/x/y@sha256:abc")


def test_stages_that_are_not_needed() -> None:
    text = "FROM a AS one\nCOPY --from=b /x /x\nFROM c AS two\nFROM d AS three\nFROM two\nCOPY --from=e / /\n"
    assert needed(text) == ("c", "e")
    assert parents(text, {}) == ("a", "b", "c", "d", "e")
    assert needed("# nothing\n") == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ARG A=1 B=2\nFROM image:$A-$B", "image:1-2"),
        ('ARG A="1" B=\'2\'\nFROM "image:${A}"', "image:1"),
        ("ARG A=1\nARG B=${A}2\nFROM image:${B:?need}", "image:12"),
        ("ARG A\nFROM image:${A:-${B:-3}}", "image:3"),
        ("ARG A=\nFROM image:${A-1}${A:-2}", "image:2"),
        ("FROM image:$TARGETARCH$TARGETVARIANT-${TARGETOS}-$BUILDARCH", f"image:{ARCHITECTURE}-linux-{ARCHITECTURE}"),
        ("FROM --platform=$BUILDPLATFORM image", "image"),
        # Only the builder can tell.
        ("FROM image:${B:?need}", "image:${B:?need}"),
        ("ARG A=1.2\nFROM image:${A%.*}", "image:${A%.*}"),
        ("FROM --platform=linux/other image", "image$"),
        ("FROM image and more", "$"),
    ],
)
def test_names_with_arguments(text: str, expected: str) -> None:
    assert needed(text) == (expected,)


def test_arguments_given() -> None:
    assert needed("ARG A=1 B\nFROM $A:$B$TARGETOS", A="image", B="2", TARGETOS="x") == ("image:2x",)


def test_what_is_no_heredoc() -> None:
    text = 'FROM a\nRUN cat <<<word\nRUN echo "<<END" 1<<2\nRUN <<-A cat <<"B"\n x\n\tA\nFROM x\nB\nCOPY --from=b x /\n'
    assert [one.line for one in instructions(text)] == [1, 2, 3, 4, 9]
    assert needed(text) == ("a", "b")
