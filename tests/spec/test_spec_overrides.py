from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfjob.spec.overrides import apply
from tfjob.spec.text import read
from tfjob.spec.tree import Node, ScalarNode, find, key_place, plain, show

SOURCE = "name: a\ntags: {b: c}\narguments: [x, 0.10, {k: v}]\nempty:\n"


def tree(text: str = SOURCE) -> Node:
    root, problems = read(text, "job.yml")
    assert root is not None
    assert problems == []
    return root


def made(*overrides: str) -> object:
    root, problems = apply(tree(), overrides)
    assert problems == []
    return plain(root)


@pytest.mark.parametrize(
    ("override", "where", "value"),
    [
        ("name=b", ("name",), "b"),
        ("name=two words", ("name",), "two words"),
        ('name="no"', ("name",), "no"),
        ('name=""', ("name",), ""),
        ("name=a=b", ("name",), "a=b"),
        ("tags.b=1e-3", ("tags", "b"), 0.001),
        ("tags.new=true", ("tags", "new"), True),
        ('tags."a.b"=x', ("tags", "a.b"), "x"),
        (r'tags."a\"b"=x', ("tags", 'a"b'), "x"),
        ('tags."[0]"=x', ("tags", "[0]"), "x"),
        ("tags={x: [1, 2]}", ("tags",), {"x": [1, 2]}),
        ("arguments[1]=128", ("arguments", 1), 128),
        ("arguments[2].k=w", ("arguments", 2, "k"), "w"),
        ("arguments=[]", ("arguments",), []),
        ("empty.x=1", ("empty", "x"), 1),
        ("new.deep.key=1", ("new", "deep", "key"), 1),
        ("new=[1,\n 2]", ("new",), [1, 2]),
    ],
)
def test_what_is_set(override: str, where: tuple[str | int, ...], value: object) -> None:
    root, problems = apply(tree(), [override])
    assert problems == []
    node = find(root, where)
    assert node is not None
    assert plain(node) == value
    assert node.place.file.startswith("--set ")


def test_only_what_is_set_changes() -> None:
    assert made("arguments[0]=z") == {
        "name": "a",
        "tags": {"b": "c"},
        "arguments": ["z", 0.1, {"k": "v"}],
        "empty": None,
    }


def test_later_overrides_see_earlier_ones() -> None:
    assert made("new={a: [1]}", "new.a[0]=2", "new.b=3")["new"] == {"a": [2], "b": 3}  # type: ignore[index]


def test_the_text_as_written_and_the_place_are_kept() -> None:
    root, _ = apply(tree(), ["tags.lr=0.10"])
    node = find(root, ("tags", "lr"))
    assert isinstance(node, ScalarNode)
    assert node.text == "0.10"
    assert node.place == ("--set tags.lr=0.10", 1, 9)
    assert key_place(root, ("tags", "lr")) == ("--set tags.lr=0.10", 1, 6)
    assert key_place(root, ("tags", "b")).file == "job.yml"


def test_an_alias_is_not_changed_through_another() -> None:
    root, _ = apply(tree("a: &x {b: 1}\nc: *x"), ["c.b=2"])
    assert plain(root) == {"a": {"b": 1}, "c": {"b": 2}}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "=1",
            '1:1: found no key here; KEY.KEY[INDEX]=VALUE is allowed, keys with other characters in double quotes ("a.b").',
        ),
        (
            "name[0]x=1",
            (
                "1:8: name[0]: found text that is no key after the one before; KEY.KEY[INDEX]=VALUE is allowed, "
                'keys with other characters in double quotes ("a.b").'
            ),
        ),
        ("", "1:1: found no =; KEY=VALUE is allowed, such as compute.node_count=2."),
        ("foo", "1:4: foo: found no =; KEY=VALUE is allowed, such as compute.node_count=2."),
        ("name b", "1:5: name: found no =; KEY=VALUE is allowed, such as compute.node_count=2."),
        ("arguments[3]", "1:13: arguments[3]: found no =; KEY=VALUE is allowed, such as compute.node_count=2."),
        (
            "compute.gpus_per_node",
            "1:22: compute.gpus_per_node: found no =; KEY=VALUE is allowed, such as compute.node_count=2.",
        ),
        ("arguments[-1]=0.1", "1:10: arguments: found the index -1; a whole number from 0 is allowed."),
        (
            "argumnts[3]=1",
            (
                "1:9: argumnts: found nothing where [3] should be an item; an index of a list is allowed. "
                "Did you mean arguments?"
            ),
        ),
        (
            "outputs.kep[0]=x",
            (
                "1:12: outputs.kep: found nothing where [0] should be an item; an index of a list is allowed. "
                "Did you mean outputs.keep?"
            ),
        ),
        (
            "tags..b=1",
            '1:6: tags: found no key here; KEY.KEY[INDEX]=VALUE is allowed, keys with other characters in double quotes ("a.b").',
        ),
        (
            "[0]=1",
            '1:1: found no key here; KEY.KEY[INDEX]=VALUE is allowed, keys with other characters in double quotes ("a.b").',
        ),
        (
            "arguments[x]=1",
            "1:10: arguments: found the index x; a whole number from 0 is allowed.",
        ),
        (
            r'"\q"=1',
            r"1:1: found a backslash that starts no escape; \" and \\ and other escapes of JSON are allowed.",
        ),
        ("name=", '1:6: name: found no value; a value is allowed. Write "" for an empty text.'),
        (
            "name=a: b",
            (
                "1:6: name: found a mapping without brackets; a single value, {key: value} is allowed. "
                'If it is one text, put it in double quotes: "…".'
            ),
        ),
        (
            "name=- b",
            (
                "1:6: name: found a list without brackets; a single value, [first, second] is allowed. "
                'If it is one text, put it in double quotes: "…".'
            ),
        ),
        (
            "name=a #b",
            "1:6: name: found a comment (after #) in the value; one value is allowed. Put a text with # in double quotes.",
        ),
        (
            "name=[a, b",
            (
                "1:11: name[2]: the [ of line 1, column 6 is not closed here; a comma or ] is allowed. "
                "Close it with ], or put a comma before this."
            ),
        ),
        (
            "tags.b=no",
            (
                "1:8: tags.b: found no without quotes, which YAML 1.1 reads as false; quoted text, true or false is allowed. "
                'Write "no" for the text, or false.'
            ),
        ),
        (
            "arguments[3]=1",
            (
                "1:10: arguments[3]: found the index 3 of a list of length 3; [0] to [2] are allowed. "
                "Set the whole list: arguments=[…]."
            ),
        ),
        (
            "name.x=1",
            '1:6: name: found text "a" where "x" should be a key; a mapping is allowed. Set name to a mapping first, or whole.',
        ),
        (
            "arguments.x=1",
            (
                '1:11: arguments: found a list where "x" should be a key; a mapping is allowed. '
                "Set arguments to a mapping first, or whole."
            ),
        ),
        (
            "tags[0]=1",
            (
                "1:5: tags: found a mapping (keys with values) where [0] should be an item; an index of a list is allowed. "
                "Set the whole list: tags=[…]."
            ),
        ),
        (
            "new[0]=1",
            "1:4: new: found nothing where [0] should be an item; an index of a list is allowed. Set the whole list: new=[…].",
        ),
    ],
)
def test_what_cannot_be_set(override: str, expected: str) -> None:
    root, problems = apply(tree(), [override])
    assert [str(problem) for problem in problems] == [f"--set {override}:{expected}"]
    assert plain(root) == plain(tree())


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("learning_rate=3", "Arguments of the script are set by index: arguments[1]=3."),
        ("--learning-rate=3", "Arguments of the script are set by index: arguments[1]=3."),
        ("Learning-Rate=[1]", "Arguments of the script are set by index: arguments[1]=[1]."),
        ("epochs=3", "Arguments of the script are set by index: arguments[2]=--epochs=3."),
        ("fast=true", "Arguments of the script are set by index; --fast is arguments[3]."),
        ("verbose=true", "Arguments of the script are set by index; -verbose is arguments[6]."),
        ("shift=1", "Arguments of the script are set by index: arguments[5]=1."),
        ("--other=3", "Arguments of the script are set by index: arguments[N]=VALUE."),
        ("depth=3", "Parameters are set by name: parameters.depth=3."),
    ],
)
def test_options_of_the_script_and_parameters_have_their_own_keys(override: str, hint: str) -> None:
    root = tree("parameters: {depth: 2}\narguments: [--learning-rate, 0.1, --epochs=2, --fast, --shift, -1, -verbose]")
    found, problems = apply(root, [override])
    assert found == root
    key = override.partition("=")[0]
    message = f'found the unknown key "{key}"; see `tfjob schema` for the allowed ones'
    assert [(problem.message, problem.hint) for problem in problems] == [(message, hint)]


def test_other_unknown_keys_are_left_to_the_schema() -> None:
    root = tree("arguments: [--name, x]")
    assert [apply(root, [f"{key}=3"])[1] for key in ("nmae", "name", "other", "tags.name")] == [[], [], [], []]
    assert apply(tree("command: x"), ["--other=3"])[1] == []


def test_depth_is_bounded() -> None:
    problems = apply(tree(), [".".join("a" * 40) + "=1"])[1]
    assert [problem.message for problem in problems] == ["nested deeper than 32 levels; at most 32 are allowed"]


printable = st.characters(exclude_categories=("Cs", "Cc", "Cn", "Zl", "Zp"))
keys = st.text(printable, min_size=1, max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(printable, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(keys, min_size=1, max_size=4), values)
def test_what_is_set_is_found(where: list[str], value: object) -> None:
    root, problems = apply(tree("{}"), [f"{show(tuple(where))}={json.dumps(value, ensure_ascii=False)}"])
    assert problems == []
    node = find(root, tuple(where))
    assert node is not None
    assert plain(node) == value


@given(st.text() | st.text(alphabet='ab.[]="01{}: \n#\\'))
def test_any_text_is_set_or_has_problems(override: str) -> None:
    _, problems = apply(tree(), [override])
    assert all("\n" not in str(problem) for problem in problems)
