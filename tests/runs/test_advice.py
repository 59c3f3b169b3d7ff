from __future__ import annotations

from dataclasses import replace

from runs.test_verdict import plan

from tfjob.environments.definition import Definition
from tfjob.planning.plan import EnvironmentPlan
from tfjob.runs.advice import advice

MISSING = ("Traceback (most recent call last):", "ModuleNotFoundError: No module named 'tensorflow.keras'")


def test_a_missing_module_without_an_environment_is_sent_to_one() -> None:
    assert "names no `environment`" in advice(plan(), MISSING)


def test_a_missing_module_of_an_environment_is_to_be_added() -> None:
    asked = replace(plan(), environment=EnvironmentPlan("d", definition=Definition(requirements=("six",))))
    assert "the package that has tensorflow to the pip list" in advice(asked, MISSING)


def test_where_there_is_nothing_to_say_nothing_is_said() -> None:
    assert advice(plan(), ("Killed",)) == ""


def test_an_image_without_mpirun_is_told_what_to_do() -> None:
    assert "openmpi-bin" in advice(plan(), ("tfjob: command not found: mpirun (PATH is /bin)",))
