from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfjob.planning.plan import Plan, TaskPlan, bind
from tfjob.spec.expressions import UnknownName, escape
from tfjob.spec.job import DatasetSpec, OutputSpec, OutputsSpec

Planned = Callable[..., Plan]
TEXTS = st.text(max_size=12) | st.text("${} .'\"\\\nrunid", max_size=24)


def values_for(plan: Plan) -> dict[str, str]:
    """All that a run knows; every value is `<its name>`."""
    names = ["run.id", "run.dir", "outputs.dir", "logs.dir", "environment.path", "environment.prefix"]
    names += [f"{section}.{name}" for section, name in (("outputs", "best"), ("dataset", "digits"))]
    names += [f"node.{node}.{what}" for node in range(plan.node_count) for what in ("address", "name", "interface")]
    names += [f"{what}.{task.name}" for task in plan.tasks for what in ("port", "gpus")]
    names += ["restart.count", "mpi.subnets"]
    return {name: f"<{name}>" for name in [*names, "entrypoint.python", "entrypoint.file"]}


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    nodes = draw(st.integers(1, 4))
    common: dict[str, Any] = {"nodes": nodes, "gpus": draw(st.integers(0, 5))}
    kind = draw(st.sampled_from(["none", "mpi", "tensorflow"]))
    if kind == "mpi":
        common["process_count_per_node"] = draw(st.none() | st.integers(1, 4))
    if kind == "tensorflow":
        common["worker_count"] = draw(st.none() | st.integers(1, 9))
        common["parameter_server_count"] = draw(st.integers(0, 3))
        common["evaluator"] = draw(st.booleans())
    return {**common, "type": kind}


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(job=jobs(), odd=TEXTS)
def test_a_bound_task_has_nothing_left_to_resolve(planned: Planned, job: dict[str, Any], odd: str) -> None:
    late = "${{ dataset.digits }}:${{outputs.best}}:${{ run.id }}:${{ task.name }}"
    plan = planned(
        **job,
        arguments=(late, escape(odd)),
        environment_variables=(("LATE", late), ("ODD", escape(odd))),
        dataset=(("digits", DatasetSpec(paths=("/digits",))),),
        outputs=OutputsSpec(named=(("best", OutputSpec()),)),
    )
    values = values_for(plan)
    assert len({task.name for task in plan.all_tasks}) == len(plan.all_tasks)
    for task in plan.tasks:
        filled = bind(task, values)
        expected = f"<dataset.digits>:<outputs.best>:<run.id>:{task.name}"
        assert filled.argv[-2:] == (expected, odd)
        env = dict(filled.env)
        assert (env.pop("LATE"), env.pop("ODD")) == (expected, odd)
        assert all("${{" not in value for value in env.values())
        assert env["TFJOB_DATASET_DIGITS"] == "<dataset.digits>"
        assert "[]" not in env.get("TF_CONFIG", "")
    if plan.launcher:
        filled = bind(plan.launcher, values)
        assert all("${{" not in text for text in (*filled.argv, *dict(filled.env).values()))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(job=jobs())
def test_gpus_are_neither_lost_nor_given_twice(planned: Planned, job: dict[str, Any]) -> None:
    plan = planned(**job)
    for node in range(plan.node_count):
        shares = [task.gpus for task in plan.tasks if task.node == node and not task.launched and task.type != "ps"]
        if shares:
            assert sum(shares) == plan.gpus_per_node
            assert max(shares) - min(shares) <= 1


def test_a_value_is_never_read_as_a_template() -> None:
    task = TaskPlan("main", "main", 0, 0, ("${{ a }}",), env=(("A", "x${{ a }}y"),))
    filled = bind(task, {"a": "${{ b }} $${{"})
    assert filled.argv == ("${{ b }} $${{",)
    assert filled.env == (("A", "x${{ b }} $${{y"),)


def test_a_name_without_a_value_is_an_error() -> None:
    with pytest.raises(UnknownName, match=r"run\.id"):
        bind(TaskPlan("main", "main", 0, 0, ("${{ run.id }}",)), {})
