from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfjob.planning.plan import LimitsPlan, Plan, TaskPlan
from tfjob.runs.record import Failure, Phase, Record
from tfjob.spec.job import ContainerSpec, OutputSpec
from tfjob.values import Pairs, decode, encode

LIMITS = {"timeout_s": None, "rendezvous_timeout_s": 1.0, "allocation_timeout_s": 2.0, "grace_period_s": 3.0}
TASK = {"name": "main", "type": "main", "index": 0, "node": 0, "argv": ["true"], "env": {"A": "1"}}
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=8),
    int: st.integers(),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    Path: st.text("ab", min_size=1, max_size=8).map(Path),
}


def values_of(hint: Any) -> st.SearchStrategy[Any]:  # noqa: PLR0911  # a table of types, one line each
    """Any value that the type allows."""
    if hint == Pairs:
        return st.dictionaries(SCALARS[str], SCALARS[str], max_size=3).map(lambda found: tuple(found.items()))
    arguments, origin = get_args(hint), get_origin(hint)
    if origin in (Union, UnionType):
        return st.one_of([st.none() if kind is NoneType else values_of(kind) for kind in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple and arguments[1:] == (...,):
        return st.lists(values_of(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, arguments))
    if is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        return st.builds(hint, **{field.name: values_of(hints[field.name]) for field in fields(hint)})
    return SCALARS[hint]


@pytest.mark.parametrize("kind", [Plan, Record])
@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_what_was_written_is_read_back_equal(kind: type[Any], data: st.DataObject) -> None:
    value = data.draw(values_of(kind))
    assert decode(kind, json.loads(json.dumps(encode(value)))) == value


def test_people_can_read_what_is_written() -> None:
    assert encode(TaskPlan("main", "main", 0, 0, ("a", "b"), env=(("X", "1"), ("Y", "2")))) == {
        "name": "main",
        "type": "main",
        "index": 0,
        "node": 0,
        "argv": ["a", "b"],
        "env": {"X": "1", "Y": "2"},
        "gpus": 0,
        "port": None,
        "ends_run": True,
        "launched": False,
    }


def test_pairs_keep_their_order() -> None:
    pairs = (("z", "1"), ("a", "2"))
    assert decode(TaskPlan, encode(TaskPlan("t", "t", 0, 0, (), env=pairs))).env == pairs


def test_unknown_keys_are_ignored_at_every_depth() -> None:
    task = {**TASK, "from_a_newer_tfjob": [1]}
    assert decode(TaskPlan, task) == decode(TaskPlan, TASK)
    failed: dict[str, object] = {"task": None, "node": None, "exit_code": 1, "signal": None, "message": "m", "new": {}}
    record = dict.fromkeys(("id", "name", "experiment", "created", "dir", "target"), "x")
    found = decode(Record, {**record, "state": "Failed", "failure": failed})
    assert found.failure == Failure(None, None, 1, None, "m")


def test_what_is_left_out_has_its_default() -> None:
    assert decode(TaskPlan, TASK).ends_run is True
    assert decode(Phase, {"name": "Running", "started": "now"}).ended is None


def test_a_whole_number_is_a_float_where_one_belongs() -> None:
    found = decode(LimitsPlan, {**LIMITS, "grace_period_s": 5})
    assert found.grace_period_s == 5.0
    assert isinstance(found.grace_period_s, float)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (TaskPlan, {**TASK, "name": 1}),
        (TaskPlan, {**TASK, "name": None}),
        (TaskPlan, {**TASK, "index": "0"}),
        (TaskPlan, {**TASK, "index": True}),
        (TaskPlan, {**TASK, "index": 0.5}),
        (TaskPlan, {**TASK, "ends_run": 1}),
        (TaskPlan, {**TASK, "argv": "true"}),
        (TaskPlan, {**TASK, "argv": {"true": 1}}),
        (TaskPlan, {**TASK, "argv": ["true", 1]}),
        (TaskPlan, {**TASK, "env": ["A=1"]}),
        (TaskPlan, {**TASK, "env": {"A": 1}}),
        (TaskPlan, {key: value for key, value in TASK.items() if key != "argv"}),
        (TaskPlan, ["main"]),
        (TaskPlan, "main"),
        (TaskPlan, None),
        (LimitsPlan, {**LIMITS, "timeout_s": "1"}),
        (LimitsPlan, {**LIMITS, "timeout_s": True}),
        (OutputSpec, {"type": "nonsense"}),
        (OutputSpec, {"type": ["directory"]}),
        (ContainerSpec, []),
    ],
)
def test_wrong_types_are_refused(kind: type[Any], value: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        decode(kind, value)


def test_an_unknown_state_is_refused() -> None:
    record = dict.fromkeys(("id", "name", "experiment", "created", "dir", "target"), "x")
    with pytest.raises(ValueError, match="Sleeping"):
        decode(Record, {**record, "state": "Sleeping"})


def test_tuples_of_a_fixed_length_have_that_length() -> None:
    with pytest.raises(ValueError, match="zip"):
        decode(tuple[str, int], ["a", 1, 2])
