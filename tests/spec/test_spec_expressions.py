from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfjob.spec.expressions import ExpressionError, UnknownName, escape, names, substitute

NAMES = ("run.id", "dataset.x", "env.HOME")
texts = st.text(alphabet="ab ${}.\n") | st.text()


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", ()),
        ("plain {{ x }} $ { }", ()),
        ("${{ run.id }}", ("run.id",)),
        ("${{run.id}}-${{  dataset.x\t}}${{run.id}}", ("run.id", "dataset.x")),
        ("$${{ run.id }}", ()),
        ("$$${{ run.id }}", ("run.id",)),
        ("$$$${{ run.id }}", ()),
        ("${{ a }}", ("a",)),
    ],
)
def test_names(template: str, expected: tuple[str, ...]) -> None:
    assert names(template) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("${{ run.id", "found ${{ without }} after it; ${{ name }}, or $${{ for the text itself, is allowed"),
        ("${{}}", "found ${{ }} without a name; a name such as ${{ run.id }} is allowed"),
        ("${{ a b }}", 'found "a b" between ${{ and }}; a dotted name such as run.id is allowed'),
        ("${{ 1.a }}", 'found "1.a" between ${{ and }}; a dotted name such as run.id is allowed'),
        ("${{ a. }}", 'found "a." between ${{ and }}; a dotted name such as run.id is allowed'),
        ("${{ ${{ a }} }}", 'found "${{ a" between ${{ and }}; a dotted name such as run.id is allowed'),
    ],
)
def test_malformed(template: str, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        names(template)
    assert str(caught.value) == message


def test_dollars_before_an_expression_are_read_in_pairs() -> None:
    values = {"run.id": "r"}
    assert [substitute("$" * n + "{{ run.id }}", values, final=True) for n in range(6)] == [
        "{{ run.id }}",
        "r",
        "${{ run.id }}",
        "$r",
        "$${{ run.id }}",
        "$$r",
    ]


def test_unknown_names_stay_or_are_refused() -> None:
    assert substitute("a ${{run.id}} $${{", {}, final=False) == "a ${{ run.id }} $${{"
    with pytest.raises(UnknownName) as caught:
        substitute("${{ run.id }}", {}, final=True)
    assert caught.value.name == "run.id"


def test_values_may_come_from_a_function() -> None:
    assert substitute("${{ run.id }}", lambda name: name.upper(), final=True) == "RUN.ID"


def test_a_value_never_becomes_an_expression() -> None:
    once = substitute("${{ env.HOME }}{{ run.id }}", {"env.HOME": "$"}, final=False)
    assert names(once) == ()
    assert substitute(once, {}, final=True) == "${{ run.id }}"


@given(texts)
def test_escape_stands_for_exactly_its_text(text: str) -> None:
    assert substitute(escape(text), {}, final=True) == text
    assert names(escape(text)) == ()


@given(st.lists(texts | st.sampled_from([f"${{{{{name}}}}}" for name in NAMES]), max_size=6).map("".join), st.data())
def test_in_two_steps_as_at_once(template: str, data: st.DataObject) -> None:
    try:
        found = names(template)
    except ExpressionError:
        return
    values = {name: data.draw(texts) for name in found}
    early = {name: values[name] for name in found if data.draw(st.booleans())}
    at_once = substitute(template, values, final=True)
    partly = substitute(template, early, final=False)
    assert substitute(partly, values, final=True) == at_once
    assert set(names(partly)) == set(found) - set(early)
    assert substitute(partly, {}, final=False) == partly
