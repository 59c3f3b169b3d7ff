"""The job script as text: what a person reads, and could submit by hand."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engines.engine_bench import task
from engines_slurm.slurm_plans import slurm_plan, spread, workers

from tfjob.engines.slurm.script import preview_script, render_script, script_options
from tfjob.planning.plan import EnvironmentPlan, LimitsPlan, Plan, RetriesPlan
from tfjob.rundir import RunDirectory
from tfjob.targets.definition import SlurmDefinition

if TYPE_CHECKING:
    from support import Tfjob

RUN = RunDirectory(Path("/shared/ws/.tfjob/runs/digits-7k2m9x"))

GOLDEN = """\
#!/bin/bash -l
# Run digits-7k2m9x of tfjob. Its tasks are in slurm/gang.json; slurm/state.json tells how they are.
#SBATCH --job-name=digits-7k2m9x
#SBATCH --chdir=/shared/ws/.tfjob/runs/digits-7k2m9x
#SBATCH --output=/shared/ws/.tfjob/runs/digits-7k2m9x/slurm/job.log
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --partition=gpu
#SBATCH --account=physics
#SBATCH --qos=high
#SBATCH "--constraint=(a100)&ib"
#SBATCH --time=63
#SBATCH --signal=B:USR1@65
#SBATCH --requeue
#SBATCH --exclusive
#SBATCH "--comment=a \\"b\\""

module load cuda/12.4
export NCCL_DEBUG=WARN

[ -x /shared/store/prefix/bin/python3 ] || { echo "$(hostname) lacks" /shared/store/prefix/bin/python3 \
"or the Python that it is a link to" >&2; exit 127; }
exec /shared/store/prefix/bin/python3 -E -s -S -X utf8 /shared/ws/.tfjob/runs/digits-7k2m9x/slurm/program/start.py \
batch /shared/ws/.tfjob/runs/digits-7k2m9x
"""


def test_the_whole_of_it() -> None:
    target = SlurmDefinition(
        "site",
        partition="gpu",
        account="physics",
        qos="high",
        constraint="(a100)&ib",
        sbatch_options=("--exclusive", '--comment=a "b"'),
        setup=("module load cuda/12.4", "export NCCL_DEBUG=WARN"),
    )
    made = slurm_plan(
        *workers("true"),
        target=target,
        gpus=4,
        limits=LimitsPlan(3600.0, 120.0, 600.0, 5.0),
        retries=RetriesPlan(2, ("node_lost",)),
    )
    assert render_script(made, RUN, "/shared/store/prefix/bin/python3") == GOLDEN


def options(plan: Plan, run: RunDirectory = RUN) -> dict[str, str]:
    return {name: value for name, _, value in (option.partition("=") for option in script_options(plan, run))}


class TestOptions:
    def test_a_small_job_asks_for_little(self) -> None:
        bare = options(slurm_plan(target=SlurmDefinition("site")))
        assert bare["--nodes"] == "1"
        assert bare.keys().isdisjoint({"--gres", "--partition", "--account", "--qos", "--time", "--cpus-per-task"})
        assert "--no-requeue" in bare

    def test_tasks_of_one_node_get_a_cpu_each(self) -> None:
        assert options(slurm_plan(*workers("true", nodes=2, count=6)))["--cpus-per-task"] == "3"

    @pytest.mark.parametrize("own", ["--cpus-per-task=8", "-c8", "-c 8", "--exclusive", "--cpus-per-gpu=4"])
    def test_unless_the_target_says_how_many(self, own: str) -> None:
        target = SlurmDefinition("site", sbatch_options=(own,))
        lines = script_options(slurm_plan(*workers("true", nodes=1, count=4), target=target), RUN)
        assert [line for line in lines if "cpu" in line] == [line for line in [own] if "cpu" in line]
        assert lines[-1] == own

    @pytest.mark.parametrize(("timeout_s", "minutes"), [(0.5, "3"), (60, "4"), (3600, "63"), (86400, "1443")])
    def test_slurms_limit_is_behind_the_jobs_own(self, timeout_s: float, minutes: str) -> None:
        assert options(slurm_plan(limits=LimitsPlan(timeout_s, 60, 60, 5)))["--time"] == minutes

    def test_a_limit_of_the_targets_stands(self) -> None:
        target = SlurmDefinition("site", sbatch_options=("--time=10",))
        lines = script_options(slurm_plan(target=target, limits=LimitsPlan(60, 60, 60, 5)), RUN)
        assert [line for line in lines if "--time" in line] == ["--time=10"]

    def test_the_warning_leaves_the_grace_period(self) -> None:
        assert options(slurm_plan(limits=LimitsPlan(None, 60, 60, 120)))["--signal"] == "B:USR1@180"

    def test_only_a_lost_node_puts_a_job_back_in_the_queue(self) -> None:
        assert "--requeue" in options(slurm_plan(retries=RetriesPlan(1, ("node_lost", "failure"))))
        assert "--no-requeue" in options(slurm_plan(retries=RetriesPlan(1, ("failure",))))

    def test_a_percent_sign_is_no_pattern(self) -> None:
        run = RunDirectory(Path("/w/50%j/r"))
        assert options(slurm_plan(), run)["--output"] == "/w/50%%j/r/slurm/job.log"
        assert options(slurm_plan(), run)["--chdir"] == "/w/50%j/r"


@pytest.mark.parametrize("name", ["a b", "quote\"'", "$HOME `x` $(x)", "back\\slash", "#hash", "ä€", "-n"])
def test_no_path_breaks_the_script(name: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / name / "run")
    program = run.path / "slurm" / "program"
    program.mkdir(parents=True)
    (program / "start.py").write_text("import sys; print(sys.argv[1:], end='')")
    text = render_script(slurm_plan(), run, "python3")
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True, check=True)
    assert done.stdout == repr(["batch", str(run.path)])
    line = re.search(r'^#SBATCH "?(--chdir=.*?)"?$', text, re.MULTILINE)
    assert line is not None
    assert re.sub(r'\\(["\\])', r"\1", line[1]) == f"--chdir={run.path}"


def test_a_node_that_lacks_the_python_says_so(tmp_path: Path) -> None:
    python = tmp_path / "store's" / "python3"
    python.parent.mkdir()
    python.symlink_to("/usr/bin/python3.0")
    text = render_script(slurm_plan(), RUN, str(python))
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert done.stderr.endswith(f" lacks {python} or the Python that it is a link to\n")


def test_what_plan_shows_has_names_for_what_is_not_known(tmp_path: Path) -> None:
    with_packages = slurm_plan(*spread(task("true")), environment=EnvironmentPlan("d", definition=None))
    text = preview_script(with_packages, tmp_path)
    assert f"#SBATCH --chdir={tmp_path}/RUN\n" in text
    assert text.splitlines()[-1].startswith("exec python3 ")


@pytest.mark.parametrize(("target", "said", "limit_s"), [("site", "", None), ("site", "600", 600), ("local", "", 600)])
def test_only_in_slurms_queue_a_job_that_says_nothing_waits_without_a_limit(
    tfjob: Tfjob, target: str, said: str, limit_s: float | None
) -> None:
    tfjob("init")
    tfjob.write("site.yml", "name: site\nkind: slurm\n")
    tfjob("compute", "create", "-f", "site.yml")
    limits = f"limits: {{allocation_timeout_s: {said}}}\n" if said else ""
    tfjob.write("job.yml", f"command: 'true'\ncompute: {{target: {target}}}\n{limits}")
    made = json.loads(tfjob("plan", "job.yml", "-o", "json").stdout)
    assert made["limits"]["allocation_timeout_s"] == limit_s


def test_the_script_of_a_job_in_containers_says_so_to_its_program() -> None:
    made = replace(slurm_plan(*workers("true")), runtime="docker")
    assert render_script(made, RUN, "python3").splitlines()[-1].endswith(f"start.py batch {RUN.path} container")
