"""`tfjob compute …` and jobs that name a target, as people type them. No node is there: nothing of this asks one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from support import Tfjob

LAB = """\
name: lab
kind: docker
description: Three machines
nodes:
  - ssh://me@gpu1
  - {engine: ssh://me@gpu2, gpus: 2, labels: {type: a100}}
  - {name: c, engine: tcp://10.0.0.3:2375, gpus: 4, labels: {type: a100}}
"""


def planned(tfjob: Tfjob, text: str) -> dict[str, Any]:
    tfjob.write("job.yml", text)
    found: dict[str, Any] = json.loads(tfjob("plan", "job.yml", "-o", "json").stdout)
    return found


def test_created_found_changed_and_deleted(tfjob: Tfjob) -> None:
    tfjob.write("lab.yml", LAB)
    assert tfjob("compute", "create", "-f", "lab.yml").stdout == "Created lab: 3 nodes\n"
    assert tfjob("compute", "create", "-f", "lab.yml").stdout == "Unchanged: lab\n"
    assert tfjob("compute", "create", "other", "-f", "lab.yml").stdout == "Created other: 3 nodes\n"
    tfjob.write("lab.yml", LAB.replace("gpus: 4", "gpus: 8"))
    refused = tfjob("compute", "create", "-f", "lab.yml", exit_code=2).stderr
    assert "nodes.c.gpus: 4 → 8" in refused
    assert "tfjob compute update" in refused
    assert tfjob("compute", "update", "-f", "lab.yml").stdout == "Updated lab:\n  - nodes.c.gpus: 4 → 8\n"
    assert tfjob("compute", "update", "-f", "lab.yml").stdout == "Unchanged: lab\n"
    assert tfjob("compute", "delete", "lab").stdout == "Deleted lab\n"
    assert "Did you mean" not in tfjob("compute", "show", "lab", exit_code=3).stderr
    assert "no compute target 'lab'" in tfjob("compute", "delete", "lab", exit_code=3).stderr


def test_listed_and_shown(tfjob: Tfjob) -> None:
    assert tfjob("compute", "list").stdout.splitlines()[1].split()[:3] == ["local", "local", "1"]
    tfjob.write("lab.yml", LAB)
    tfjob.write("site.yml", "name: site\nkind: slurm\nlogin: ssh://me@login\npartition: gpu\n")
    tfjob("compute", "create", "-f", "lab.yml")
    assert tfjob("compute", "create", "-f", "site.yml").stdout == "Created site: Slurm from ssh://me@login\n"
    rows = tfjob("compute", "list").stdout.splitlines()
    assert rows[2] == "lab    docker  3      asked live  Three machines"
    assert rows[3].split() == ["site", "slurm"]
    documents = json.loads(tfjob("compute", "list", "-o", "json").stdout)
    assert [one["name"] for one in documents] == ["local", "lab", "site"]
    shown = tfjob("compute", "show", "lab").stdout
    assert "c     tcp://10.0.0.3:2375  4           type=a100" in shown
    assert json.loads(tfjob("compute", "show", "lab", "-o", "json").stdout)["nodes"][1]["gpus"] == 2
    assert "partition   gpu" in tfjob("compute", "show", "site").stdout
    assert json.loads(tfjob("compute", "show", "local", "-o", "json").stdout)["kind"] == "local"
    assert "kind        local" in tfjob("compute", "show", "local").stdout


def test_a_bad_file_creates_nothing(tfjob: Tfjob) -> None:
    tfjob.write("lab.yml", "name: lab\nkind: docker\nnodes: [gpu1]\nwait: 3\n")
    told = tfjob("compute", "create", "-f", "lab.yml", exit_code=2).stderr
    assert "lab.yml:3:9: nodes[0]" in told
    assert "Did you mean ssh://gpu1?" in told
    assert "Did you mean wait_s?" in told
    assert told.endswith("tfjob: 2 problems\n")
    assert not (tfjob.directory / ".tfjob").exists()


def test_the_schema_of_target_files_is_printed(tfjob: Tfjob) -> None:
    assert set(json.loads(tfjob("schema", "target").stdout)["$defs"]) == {"docker", "slurm"}


def test_local_can_be_neither_created_nor_deleted(tfjob: Tfjob) -> None:
    tfjob.write("lab.yml", LAB)
    assert "always there" in tfjob("compute", "create", "local", "-f", "lab.yml", exit_code=2).stderr
    assert "always there" in tfjob("compute", "delete", "local", exit_code=2).stderr


def test_a_target_that_a_run_uses_is_not_deleted(tfjob: Tfjob) -> None:
    tfjob.write("lab.yml", LAB)
    tfjob("compute", "create", "-f", "lab.yml")
    tfjob.write("job.yml", "command: 'true'\n")
    run = tfjob.submit("job.yml")
    tfjob("wait", run)
    record = tfjob.run_directory(run) / "record.json"
    form = json.loads(record.read_bytes())
    record.write_text(json.dumps({**form, "target": "lab", "state": "Running", "ended": None}))
    refused = tfjob("compute", "delete", "lab", exit_code=2).stderr
    assert f"1 run of this workspace uses the compute target lab: {run}" in refused
    assert f"tfjob cancel {run}" in refused
    record.write_text(json.dumps({**form, "target": "lab"}))
    tfjob("compute", "delete", "lab")


def test_a_plan_for_several_nodes_has_tasks_by_node_and_the_definition(tfjob: Tfjob) -> None:
    tfjob.write("lab.yml", LAB)
    tfjob("compute", "create", "-f", "lab.yml")
    plan = planned(
        tfjob,
        "command: 'true'\ncompute: {target: lab, node_count: 2, gpus_per_node: 2}\ndistribution: {type: tensorflow}\n",
    )
    assert (plan["target"], plan["runtime"], plan["node_count"]) == ("lab", "docker", 2)
    assert [(task["name"], task["node"], task["gpus"]) for task in plan["tasks"]] == [
        ("worker-0", 0, 2),
        ("worker-1", 1, 2),
    ]
    cluster = json.loads(plan["tasks"][1]["env"]["TF_CONFIG"])["cluster"]["worker"]
    assert cluster == [f"${{{{ node.{n}.address }}}}:${{{{ port.worker-{n} }}}}" for n in (0, 1)]
    assert [node["name"] for node in plan["cluster"]["nodes"]] == ["gpu1", "gpu2", "c"]
    assert plan["environment"]["image"]  # the base image cpu, for nothing else is asked for
    assert plan["container"]["packages"] == "baked"
    assert plan["slurm"] is None


def test_a_node_type_narrows_the_plan_to_nodes_with_that_label(tfjob: Tfjob) -> None:
    tfjob.write("lab.yml", LAB)
    tfjob("compute", "create", "-f", "lab.yml")
    plan = planned(tfjob, "command: 'true'\ncompute: {target: lab, node_count: 2, node_type: a100}\n")
    assert [node["name"] for node in plan["cluster"]["nodes"]] == ["gpu2", "c"]
    assert plan["node_type"] == "a100"


REFUSED = (
    ("{target: lba}", 3, "Did you mean lab?"),
    ("{target: lab, node_count: 4}", 5, "asks for 4 nodes; target lab has 3"),
    ("{target: lab, node_count: 3, node_type: a100}", 5, "asks for 3 nodes; target lab has 2"),
    ("{target: lab, node_count: 2, gpus_per_node: 4, node_type: a100}", 5, "declares fewer: gpu2 has 2, c has 4"),
    ("{target: lab, node_type: h100}", 5, "no node of the type h100"),
    ("{target: lab, runtime: process}", 2, "the nodes of target lab run containers"),
    ("{target: lab, properties: {partition: x}}", 2, "compute.properties has partition"),
    ("{target: site, properties: {queue: x}}", 2, "compute.properties has queue"),
    ("{target: site, runtime: docker}", 2, "target site says that its nodes run none"),
)


def test_what_can_never_run_is_refused_at_once(tfjob: Tfjob) -> None:
    tfjob.write("lab.yml", LAB)
    tfjob.write("site.yml", "name: site\nkind: slurm\nruntime: none\n")
    tfjob("compute", "create", "-f", "lab.yml")
    tfjob("compute", "create", "-f", "site.yml")
    for compute, exit_code, told in REFUSED:
        tfjob.write("job.yml", f"command: 'true'\ncompute: {compute}\n")
        assert told in tfjob("submit", "job.yml", exit_code=exit_code).stderr
    assert not list((tfjob.directory / ".tfjob" / "runs").iterdir())


def test_a_slurm_plan_has_the_target_as_the_job_wants_it(tfjob: Tfjob) -> None:
    tfjob.write("site.yml", "name: site\nkind: slurm\nconstraint: big\n")
    tfjob("compute", "create", "-f", "site.yml")
    plan = planned(
        tfjob,
        "command: 'true'\n"
        "compute: {target: site, node_count: 9, gpus_per_node: 8, node_type: a100, priority: low, properties: {partition: gpu}}\n",
    )
    assert (plan["runtime"], plan["cluster"], plan["environment"]) == ("process", None, None)
    slurm = plan["slurm"]
    assert (slurm["partition"], slurm["constraint"], slurm["sbatch_options"]) == ("gpu", "(big)&a100", ["--nice"])


def test_what_has_nothing_to_clean_is_told(tfjob: Tfjob) -> None:
    tfjob.write("site.yml", "kind: slurm\nname: site\n")
    tfjob("compute", "create", "-f", "site.yml")
    for target in ("local", "site"):
        refused = tfjob("compute", "clean", target, exit_code=2).stderr
        assert f"{target} has nothing to clean" in refused
        assert "Name a target with Docker Engines, or a Slurm cluster that has a login." in refused


def test_a_login_node_that_cannot_be_cleaned_is_told(tfjob: Tfjob) -> None:
    tfjob.environ["TFJOB_SSH_CONFIG"] = "/dev/null"
    tfjob.write("far.yml", "kind: slurm\nname: far\nlogin: ssh://127.0.0.1:9\ndirectory: /shared\n")
    tfjob("compute", "create", "-f", "far.yml")
    assert tfjob("compute", "clean", "far").stdout == "ssh://127.0.0.1:9  nothing was left\n"  # it need not be asked
    assert "ssh" in tfjob("compute", "clean", "far", "--kept", exit_code=5).stdout
