from __future__ import annotations

import pytest

from tfjob.spec.scalars import resolve


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("True", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("0", 0),
        ("-0", 0),
        ("+5", 5),
        ("64", 64),
        ("0x1F", 31),
        ("1e-3", 0.001),
        ("1.", 1.0),
        (".5", 0.5),
        ("-1.5E+3", -1500.0),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("22:99", "22:99"),
        ("localhost:2222", "localhost:2222"),
        ("None", "None"),
        ("nope", "nope"),
        ("9" * 65, "9" * 65),
    ],
)
def test_values_have_their_meaning_of_yaml_1_2(text: str, value: object) -> None:
    assert resolve(text) == (value, None)
    assert type(resolve(text)[0]) is type(value)


@pytest.mark.parametrize("word", ["yes", "No", "ON", "off", "y", "N"])
def test_words_that_yaml_1_1_reads_as_truth_values(word: str) -> None:
    reading = "true" if word.lower() in {"yes", "on", "y"} else "false"
    trap = resolve(word)[1]
    assert trap is not None
    assert trap.is_word
    assert trap.message == (
        f"found {word} without quotes, which YAML 1.1 reads as {reading}; quoted text, true or false is allowed"
    )
    assert trap.hint == f'Write "{word}" for the text, or {reading}.'


@pytest.mark.parametrize(
    ("text", "message", "number"),
    [
        ("012", "which YAML 1.1 reads as 10 (octal) and YAML 1.2 as 12", "12"),
        ("-007", "which YAML 1.1 reads as -7 (octal) and YAML 1.2 as -7", "-7"),
        ("00", "which YAML 1.1 reads as 0 (octal) and YAML 1.2 as 0", "0"),
        ("089", "which YAML 1.1 reads as text and YAML 1.2 as 89", "89"),
        ("0o14", "which YAML 1.1 reads as text and YAML 1.2 as 12 (octal)", "12"),
        ("0b11", "which YAML 1.1 reads as 3 (binary) and YAML 1.2 as text", "3"),
        ("1_000", "which YAML 1.1 reads as the number 1000 and YAML 1.2 as text", "1000"),
        ("1_0.5", "which YAML 1.1 reads as the number 10.5 and YAML 1.2 as text", "10.5"),
        ("1:30", "which YAML 1.1 reads as the number 90 (base 60) and YAML 1.2 as text", "90"),
        ("-1:30:00", "which YAML 1.1 reads as the number -5400 (base 60) and YAML 1.2 as text", "-5400"),
        ("1:30.5", "which YAML 1.1 reads as the number 90.5 (base 60) and YAML 1.2 as text", "90.5"),
        ("2222:22", "which YAML 1.1 reads as the number 133342 (base 60) and YAML 1.2 as text", "133342"),
    ],
)
def test_numbers_that_readers_disagree_about(text: str, message: str, number: str) -> None:
    trap = resolve(text)[1]
    assert trap is not None
    assert trap.message.startswith(f"found {text}, {message}; a ")
    assert trap.hint == f'Write {number} or "{text}" for the text.'


@pytest.mark.parametrize("text", [".inf", "-.Inf", "+.INF", ".nan", ".NaN", "1e999", "-1e999"])
def test_numbers_that_are_not_finite(text: str) -> None:
    trap = resolve(text)[1]
    assert trap is not None
    assert trap.message == f"found {text}, which is no finite number; a finite number, or quoted text, is allowed"
