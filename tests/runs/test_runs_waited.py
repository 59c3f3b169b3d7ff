from __future__ import annotations

from tfjob.engines.slurm.engine import JobView
from tfjob.runs.waited import Waited

WAITS = JobView("waiting", None)
AWAY = JobView("waiting", None, is_known=False)


def test_what_a_job_does_while_slurm_cannot_be_asked_is_not_counted() -> None:
    waited = Waited(100.0)
    assert waited.look(WAITS, 101.0) == 1.0
    assert waited.look(AWAY, 1000.0) == 1.0
    assert waited.look(WAITS, 2000.0) == 1.0  # it may have run meanwhile
    assert waited.look(WAITS, 2002.0) == 3.0


def test_a_job_that_has_run_waits_anew() -> None:
    waited = Waited(0.0)
    waited.look(WAITS, 50.0)
    assert waited.look(JobView("running", None), 60.0) == 0.0
    assert waited.look(WAITS, 61.0) == 1.0
    assert waited.look(JobView("coming", None), 62.0) == 2.0
