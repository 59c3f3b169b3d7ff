from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfjob.spec.text import MAX_BYTES, MAX_DEPTH, MAX_VALUES, decode, read
from tfjob.spec.tree import MapNode, ScalarNode, find, plain


def lines(text: str) -> list[str]:
    return [str(problem) for problem in read(text, "f")[1]]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "f:1:1: found an empty file; keys with values are allowed."),
        ("\n# x\n", "f:1:1: found nothing but comments or empty lines; keys with values are allowed."),
        (
            "a:\n\tb: 1",
            "f:2:1: a: found a tab before the first word of the line; spaces are allowed. Indent with spaces.",
        ),
        (
            "a:\n  - b\n \t- c",
            "f:3:2: a[0]: found a tab before the first word of the line; spaces are allowed. Indent with spaces.",
        ),
        (
            "a:\n- b\n - c\n - d",
            (
                "f:3:2: a[0]: found - at the start of a line that goes on with the text before; an item in the column of the "
                "others is allowed. Indent it as the item before, or put the whole text in quotes."
            ),
        ),
        (
            "a: 1\n---\nb: 2",
            (
                "f:2:1: found a second document (after ---); one document in a file is allowed. "
                "Put each job in a file of its own."
            ),
        ),
        (
            "a: b\n  - c",
            (
                "f:2:3: a: found - at the start of a line that goes on with the text before; an item in the column of the "
                "others is allowed. Indent it as the item before, or put the whole text in quotes."
            ),
        ),
        (
            "a: 1\n...\n---\n",
            (
                "f:3:1: found a second document (after ---); one document in a file is allowed. "
                "Put each job in a file of its own."
            ),
        ),
        (
            "{a: b} c",
            (
                "f:1:8: found more text after the end of the value; one value is allowed. "
                "Quote the whole text if it belongs together."
            ),
        ),
        (
            "%YAML 1.2\n---\na: 1",
            "f:1:1: found a YAML directive (a line that starts with %); plain YAML is allowed. Remove the line.",
        ),
        (
            "a: 1\nb: 2\na: 3",
            "f:3:1: a: found a second time, after line 1, column 1; once is allowed. Remove one of the two.",
        ),
        (
            "x:\n  a: 1\n  a: {b: c}",
            "f:3:3: x.a: found a second time, after line 2, column 3; once is allowed. Remove one of the two.",
        ),
        ("1: x", 'f:1:1: found the number 1 as a key; text is allowed. Quote it: "1".'),
        ("a: {true: x}", 'f:1:5: a: found true as a key; text is allowed. Quote it: "true".'),
        (
            "a: {? [b] : c}",
            'f:1:7: a: found a list as a key; text is allowed. If this is an expression, quote it: "${{ … }}".',
        ),
        ("a: {~: c}", "f:1:5: a: found nothing (null) as a key; text is allowed. Name the key."),
        (
            "012: c",
            (
                "f:1:1: found 012, which YAML 1.1 reads as 10 (octal) and YAML 1.2 as 12; a number without leading zeros, "
                'or quoted text, is allowed. Quote it: "012".'
            ),
        ),
        ("a: !x 1", 'f:1:4: a: found the tag "!x"; values without tags are allowed. Remove the tag.'),
        (
            "a: !!python/object/apply:os.system [ls]",
            (
                'f:1:4: a: found the tag "!!python/object/apply:os.system"; '
                "values without tags are allowed. Remove the tag."
            ),
        ),
        (
            "a: *b",
            (
                "f:1:4: a: *b repeats &b, which is not there; a name that stands before, as &name, is allowed. "
                'If it is a text, write "*b".'
            ),
        ),
        (
            "a: &b [*b]",
            (
                "f:1:8: a[0]: *b stands inside the value that it repeats; a name that stands before, as &name, is allowed. "
                "Remove it."
            ),
        ),
        ("<<: 3\na: 1", "f:1:5: << merges the number 3; a mapping, or a list of mappings, is allowed."),
        (
            BOMB,
            (
                "f:4:24: d[4]: more than 5,000 values (aliases expanded); at most 5,000 are allowed. "
                "Keep data in files of its own."
            ),
        ),
        ("[" * 500, "f:1:33: nested deeper than 32 levels; at most 32 are allowed."),
        (
            "a: b\x07",
            (
                "f:1:5: found the control character U+0007; printable text is allowed. "
                "Remove it, or write it as an escape in double quotes."
            ),
        ),
        (
            "a: 1\nb\0",
            (
                "f:2:2: found the control character U+0000; printable text is allowed. "
                "Is the file UTF-16, or not a text file? Save it as UTF-8."
            ),
        ),
        (
            r'a: "x\0"',
            (
                "f:1:4: a: found a NUL character or half a surrogate pair in the text; neither can be passed to a program. "
                "Remove it."
            ),
        ),
        (
            'a: 1\nb: "x\n',
            (
                "f:2:4: b: the quote opened here is not closed; text between two quotes of one kind is allowed. "
                "Add the closing quote."
            ),
        ),
        (
            "a: b: c",
            (
                'f:1:5: found ": " where no key can stand; one "key: value" on a line is allowed. '
                'Put text that holds ": " in double quotes; else check the indentation of this line and the one before.'
            ),
        ),
        (
            "a:\n  b: 1\n c: 2",
            (
                "f:3:2: found no key of the mapping that starts at line 1, where one should be; a key in its column is allowed. "
                "Check the indentation; text that goes on after a closing quote belongs into one pair of quotes."
            ),
        ),
        (
            "- a\nb: 1",
            (
                "f:2:1: [1]: this line does not belong to the list that starts at line 1; items with - in its column are "
                "allowed. Indent it like the other items, or give the list a key of its own."
            ),
        ),
        (
            "a: [1, 2\nb: 3\n",
            (
                "f:2:2: a[2]: the [ of line 1, column 4 is not closed here; a comma or ] is allowed. "
                "Close it with ], or put a comma before this."
            ),
        ),
        (
            "a: [${{ x.y }}]",
            (
                "f:1:6: a[1]: the [ of line 1, column 4 is not closed here; a comma or ] is allowed. "
                'Inside [ ] and { } an expression needs quotes: "${{ … }}".'
            ),
        ),
        (
            "a: {b: ${{ x.y }}}",
            (
                "f:1:9: a: the { of line 1, column 4 is not closed here; a comma or } is allowed. "
                'Inside [ ] and { } an expression needs quotes: "${{ … }}".'
            ),
        ),
        ("a: @b", 'f:1:4: a: found text that starts with "@"; it is allowed in quotes. Put the text in quotes.'),
        (
            "a: *.py",
            (
                "f:1:5: a: found * or & without a name after it; *name repeats what &name marks. "
                'If it is a text such as *.py, put it in quotes: "*.py".'
            ),
        ),
        (
            r'a: "\q"',
            (
                r"f:1:5: a: found a backslash in double quotes that starts no escape; \n, \t, \", \\ and other escapes are "
                r"allowed. Use single quotes, or write \\ for a backslash."
            ),
        ),
        (
            "a: 1\nb\nc: 2",
            (
                'f:2:1: this line is no "key: value"; a key, a colon and a space are allowed. '
                "Add the colon, or indent the line if it goes on with the text before."
            ),
        ),
        (
            "a: - b",
            (
                'f:1:4: a: found "- " on the line of its key; a list that starts on the next line, or [a, b], is allowed. '
                'Put the items on lines of their own, or quote the text: "- …".'
            ),
        ),
        (
            "a: >9x\n",
            (
                "f:1:6: a: not readable as YAML: did not find expected comment or line break. "
                "Put text with special characters in quotes."
            ),
        ),
    ],
)
def test_one_problem(text: str, expected: str) -> None:
    assert lines(text) == [expected]


def test_all_problems_of_a_text_are_found() -> None:
    found = lines("a: no\na: 1\nb: [012, 1:30]\nc: !x z\nd: [")
    assert [line.split(" ")[0] for line in found] == ["f:1:4:", "f:2:1:", "f:3:5:", "f:3:10:", "f:4:4:", "f:5:5:"]


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"a": {"b": 1, "c": 2}, "d": {"c": 3, "b": 1}}),
        (
            "a: &x {b: 1}\nc: &y {b: 2, d: 3}\ne: {<<: [*x, *y]}",
            {"a": {"b": 1}, "c": {"b": 2, "d": 3}, "e": {"b": 1, "d": 3}},
        ),
        ("a: &x [1]\nb: *x\nc: &x 2\nd: *x", {"a": [1], "b": [1], "c": 2, "d": 2}),
        ("--- # x\na: |\n  b\n  c\n... # end\n# more\n", {"a": "b\nc\n"}),
        ("a: 2024-01-01\nb: 1e-3\nc: null\nd:", {"a": "2024-01-01", "b": 0.001, "c": None, "d": None}),
        ("\"no\": 'no'", {"no": "no"}),
        ("on: 1", {"on": 1}),
    ],
)
def test_values(text: str, data: object) -> None:
    root, problems = read(text, "f")
    assert problems == []
    assert root is not None
    assert plain(root) == data


def test_scalars_keep_their_text_and_place() -> None:
    root, _ = read("a: [0.10, true, 1e-3,\n  '0x1F', two words]", "f")
    assert root is not None
    items = [find(root, ("a", index)) for index in range(5)]
    assert [item.text for item in items if isinstance(item, ScalarNode)] == [
        "0.10",
        "true",
        "1e-3",
        "0x1F",
        "two words",
    ]
    assert [item.place[1:] for item in items if item] == [(1, 5), (1, 11), (1, 17), (2, 3), (2, 11)]


def test_limits_are_exact() -> None:
    assert lines("[" * MAX_DEPTH + "]" * MAX_DEPTH) == []
    assert len(lines("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))) == 1
    assert lines("[" + "1," * (MAX_VALUES - 1) + "]") == []
    assert len(lines("[" + "1," * MAX_VALUES + "]")) == 1
    assert decode(b"a" * MAX_BYTES, "f")[1] == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a" * (MAX_BYTES + 1), "f:1:1: larger than 1 MiB; a file of at most 1 MiB is allowed."),
        (
            "a: 1".encode("utf-16"),
            "f:1:1: found UTF-16 or UTF-32 (by the mark at its start); UTF-8 is allowed. Save the file as UTF-8.",
        ),
        (
            "a: 1\nb: ä\xff".encode("latin-1"),
            "f:2:4: found the byte 0xe4, which is not UTF-8; UTF-8 is allowed. Save the file as UTF-8.",
        ),
        (
            "ä: \udcff".encode("utf-8", "surrogateescape"),
            "f:1:4: found the byte 0xff, which is not UTF-8; UTF-8 is allowed. Save the file as UTF-8.",
        ),
    ],
)
def test_bytes_that_are_no_text(data: bytes, expected: str) -> None:
    assert [str(problem) for problem in decode(data, "f")[1]] == [expected]


def test_a_byte_order_mark_of_utf_8_is_fine() -> None:
    assert decode("\ufeffa: 1".encode(), "f") == ("a: 1", [])


@given(st.text() | st.text(alphabet="ab:- \n\t[]{}'\"#&*!|>%@`,?01<~$"))
def test_any_text_is_read_or_has_problems(text: str) -> None:
    root, problems = read(text, "f")
    assert root is not None or problems
    assert all(problem.line >= 1 and problem.column >= 1 for problem in problems)
    assert all("\n" not in str(problem) for problem in problems)
    if isinstance(root, MapNode):
        assert root.entries.keys() == root.keys.keys()


@given(st.binary())
def test_any_bytes_are_decoded_or_have_a_problem(data: bytes) -> None:
    text, problems = decode(data, "f")
    assert len(problems) <= 1
    assert not (text and problems)


def test_what_is_nested_deeper_than_the_parser_itself_goes_is_told_alike() -> None:
    (line,) = lines("[" * 100_000)  # newer versions of libyaml stop by themselves, further on
    assert line.endswith(": nested deeper than 32 levels; at most 32 are allowed.")
