from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tfjob.spec.messages import check
from tfjob.spec.schema import config_schema, environment_schema, schema
from tfjob.spec.text import read
from tfjob.spec.tree import find


def lines(text: str) -> list[str]:
    root, problems = read(text, "f")
    assert root is not None
    found = [*problems, *check(root, schema())[0]]
    return [str(problem) for problem in sorted(found, key=lambda problem: problem[:3])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # unknown keys
        (
            "experimnt: x",
            'f:1:1: experimnt: found the unknown key "experimnt"; see `tfjob schema` for the allowed ones. Did you mean experiment?',
        ),
        (
            "compute: {node_cuont: 2}",
            (
                'f:1:11: compute.node_cuont: found the unknown key "node_cuont"; target, runtime, node_count, max_node_count, '
                "gpus_per_node, node_type, priority, shm_size, docker_args, container_packages or properties is allowed. "
                "Did you mean node_count?"
            ),
        ),
        (
            "compute: {Node_Count: 2}",
            (
                'f:1:11: compute.Node_Count: found the unknown key "Node_Count"; target, runtime, node_count, max_node_count, '
                "gpus_per_node, node_type, priority, shm_size, docker_args, container_packages or properties is allowed. "
                "Did you mean node_count?"
            ),
        ),
        (
            "gpus_per_node: 1",
            (
                'f:1:1: gpus_per_node: found the unknown key "gpus_per_node"; see `tfjob schema` for the allowed ones. '
                "It belongs under compute."
            ),
        ),
        (
            "paths: [x]",
            'f:1:1: paths: found the unknown key "paths"; see `tfjob schema` for the allowed ones. It belongs under dataset.NAME.',
        ),
        (
            "instance_count: 2",
            (
                'f:1:1: instance_count: found the unknown key "instance_count"; see `tfjob schema` for the allowed ones. '
                "Did you mean compute.node_count?"
            ),
        ),
        (
            "inputs: {}",
            'f:1:1: inputs: found the unknown key "inputs"; see `tfjob schema` for the allowed ones. Did you mean parameters or dataset?',
        ),
        (
            "timeout_s: 3",
            (
                'f:1:1: timeout_s: found the unknown key "timeout_s"; see `tfjob schema` for the allowed ones. '
                "Did you mean limits.timeout_s or sweep.limits.timeout_s?"
            ),
        ),
        (
            "limits: {x: 3}",
            (
                'f:1:10: limits.x: found the unknown key "x"; timeout_s, rendezvous_timeout_s, allocation_timeout_s or '
                "grace_period_s is allowed."
            ),
        ),
        (
            'retries: {"a b": 3}',
            'f:1:11: retries."a b": found the unknown key "a b"; max or on is allowed.',
        ),
        # types
        ("[a]", "f:1:1: found a list; a mapping (keys with values) is allowed."),
        ("job", 'f:1:1: found text "job"; a mapping (keys with values) is allowed.'),
        (
            "name: 3",
            (
                "f:1:7: name: found the number 3; a name of at most 63 letters, digits, _, . and -, starting with a letter or digit "
                'is allowed. Put it in quotes: "3".'
            ),
        ),
        ("description: 0.10", 'f:1:14: description: found the number 0.10; text is allowed. Put it in quotes: "0.10".'),
        ("description: true", 'f:1:14: description: found true; text is allowed. Put it in quotes: "true".'),
        ("description: [a]", "f:1:14: description: found a list; text is allowed."),
        (
            "description: {a: b}",
            (
                "f:1:14: description: found a mapping (keys with values); text is allowed. "
                'If it is one text that holds ": ", put it in quotes.'
            ),
        ),
        (
            "compute:",
            "f:1:9: compute: found nothing (null); a mapping (keys with values) is allowed. Give it a value, or remove the key.",
        ),
        ("arguments: --x", 'f:1:12: arguments: found text "--x"; a list is allowed. Put it in brackets: [ ].'),
        (
            "arguments: [null]",
            (
                "f:1:13: arguments[0]: found nothing (null); text, a number, true or false is allowed. "
                'Give it a value, remove it, or write "null" for the text.'
            ),
        ),
        (
            "arguments:\n  - --x: 3",
            (
                "f:2:5: arguments[0]: found a mapping (keys with values); text, a number, true or false is allowed. "
                'If it is one text that holds ": ", put it in quotes.'
            ),
        ),
        (
            'compute: {node_count: "two"}',
            'f:1:23: compute.node_count: found text "two"; a whole number of at least 1 is allowed.',
        ),
        (
            'compute: {node_count: "2"}',
            'f:1:23: compute.node_count: found text "2"; a whole number of at least 1 is allowed. Remove the quotes.',
        ),
        (
            "limits: {timeout_s: 10m}",
            'f:1:21: limits.timeout_s: found text "10m"; a number above 0 is allowed. In seconds: 600.',
        ),
        (
            "compute: {node_count: 1.5}",
            "f:1:23: compute.node_count: found the number 1.5; a whole number of at least 1 is allowed.",
        ),
        (
            "compute: {node_count: true}",
            "f:1:23: compute.node_count: found true; a whole number of at least 1 is allowed.",
        ),
        (
            'distribution: {evaluator: "true"}',
            'f:1:27: distribution.evaluator: found text "true"; true or false is allowed. Remove the quotes.',
        ),
        (
            "distribution: {type: 3}",
            "f:1:22: distribution.type: found the number 3; none, mpi or tensorflow is allowed.",
        ),
        # ranges, choices, patterns
        (
            "compute: {gpus_per_node: -1}",
            "f:1:26: compute.gpus_per_node: found the number -1; a whole number of at least 0 is allowed.",
        ),
        (
            "compute: {node_count: 99999}",
            "f:1:23: compute.node_count: found the number 99999; a whole number of at least 1 and at most 10000 is allowed.",
        ),
        ("limits: {timeout_s: 0}", "f:1:21: limits.timeout_s: found the number 0; a number above 0 is allowed."),
        (
            "distribution: {type: MPI}",
            'f:1:22: distribution.type: found text "MPI"; none, mpi or tensorflow is allowed. Did you mean mpi?',
        ),
        *(
            (
                f"compute: {{shm_size: {size}}}",
                f"f:1:21: compute.shm_size: found {found}; a number with b, k, m or g, such as 2g, is allowed. {hint}",
            )
            for size, found, hint in [
                ("2 GB", 'text "2 GB"', "Did you mean 2g?"),
                ("2", "the number 2", "Give it a unit: 2g is GiB."),
                ('"2"', 'text "2"', "Give it a unit: 2g is GiB."),
            ]
        ),
        *(
            (
                f"{key}: {value}",
                f"f:1:{len(key) + 3}: {key}: found {found}; a mapping (keys with values) is allowed. Did you mean {meant}?",
            )
            for key, value, found, meant in [
                ("distribution", "tensorflow", 'text "tensorflow"', "distribution: {type: tensorflow}"),
                ("retries", "3", "the number 3", "retries: {max: 3}"),
            ]
        ),
        *(
            (
                f"dataset: {{d: '{path}'}}",
                (
                    f'f:1:14: dataset.d: found text "{path}"; a mapping (keys with values) or a registered name, or '
                    f"name@version is allowed. Did you mean dataset.d: {{paths: [{shown}]}}?"
                ),
            )
            for path, shown in [("./data", "./data"), ("*.gz", '"*.gz"'), ("s3://b/x", '"s3://b/x"')]
        ),
        (
            "compute: {cpus: 4}",
            (
                'f:1:11: compute.cpus: found the unknown key "cpus"; target, runtime, node_count, max_node_count, '
                "gpus_per_node, node_type, priority, shm_size, docker_args, container_packages or properties is allowed. "
                "What a container may use is said in docker_args: [--cpus, 4, --memory, 16g]; on Slurm, what a job takes in "
                "sbatch_options of the target."
            ),
        ),
        (
            "compute: {shm_size: 2gb}",
            'f:1:21: compute.shm_size: found text "2gb"; a number with b, k, m or g, such as 2g, is allowed. Did you mean 2g?',
        ),
        (
            'name: "a\\n"',
            (
                'f:1:7: name: found text "a\\n"; a name of at most 63 letters, digits, _, . and -, starting with a letter or digit '
                "is allowed."
            ),
        ),
        ("command: ' '", 'f:1:10: command: found text " "; a line for the shell is allowed.'),
        (
            "dataset: {a-b: x}",
            'f:1:11: dataset.a-b: found the key "a-b"; a name of letters, digits and _, starting with a letter or _ is allowed.',
        ),
        (
            "dataset: {a: {paths: []}}",
            "f:1:22: dataset.a.paths: found an empty list; a list that is not empty or a path is allowed.",
        ),
        (
            "environment: a b",
            'f:1:14: environment: found text "a b"; a mapping (keys with values) or a registered name, or name@version is allowed.',
        ),
        (
            "environment: envs/cpu.yaml",
            (
                'f:1:14: environment: found text "envs/cpu.yaml"; a mapping (keys with values) or a registered name, or '
                "name@version is allowed. Did you mean environment: {conda_file: envs/cpu.yaml}?"
            ),
        ),
        (
            "compute: {container_packages: bake}",
            'f:1:31: compute.container_packages: found text "bake"; mounted or baked is allowed. Did you mean baked?',
        ),
        # required
        (
            "sweep:\n  search_space: {}\n  objective: {goal: maximize}\n  limits: {max_total_trials: 2}",
            "f:3:3: sweep.objective: the key primary_metric is missing; it is required. Add primary_metric, such as accuracy.",
        ),
        # traps
        (
            "tags: {on: x}",
            (
                "f:1:8: tags.on: found on without quotes, which YAML 1.1 reads as true; quoted text is allowed. "
                'Quote it: "on".'
            ),
        ),
        (
            "distribution: {evaluator: yes}",
            (
                "f:1:27: distribution.evaluator: found yes without quotes, which YAML 1.1 reads as true; "
                'quoted text, true or false is allowed. Write "yes" for the text, or true.'
            ),
        ),
    ],
)
def test_one_problem(text: str, expected: str) -> None:
    assert lines(text) == [expected]


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        ("gpus gpu gpu_count num_gpus", "Did you mean compute.gpus_per_node?"),
        ("nodes num_nodes instance_count", "Did you mean compute.node_count?"),
        ("compute.gpus compute.gpu compute.gpu_count compute.num_gpus", "Did you mean gpus_per_node?"),
        ("compute.nodes compute.num_nodes compute.instance_count", "Did you mean node_count?"),
        ("env compute.env", "Did you mean environment or environment_variables?"),
        ("environment.env environment.env_vars", "Did you mean environment_variables?"),
        ("variables env_vars", "Did you mean environment_variables?"),
        ("image conda conda_file limits.image compute.conda", "It belongs under environment."),
        ("cmd Cmd run", "Did you mean command?"),
        ("args ARGS argv", "Did you mean arguments?"),
        ("timeout compute.timeout", "Did you mean limits.timeout_s?"),
        ("limits.timeout limits.time_limit", "Did you mean timeout_s?"),
        (
            "np processes process_count_per_instance ranks compute.np",
            "Did you mean distribution.process_count_per_node?",
        ),
        ("distribution.np distribution.processes", "Did you mean process_count_per_node?"),
        ("workers compute.num_workers", "Did you mean distribution.worker_count?"),
        ("distribution.workers distribution.num_workers", "Did you mean worker_count?"),
        ("ps num_ps", "Did you mean distribution.parameter_server_count?"),
        ("distribution.ps distribution.parameter_servers", "Did you mean parameter_server_count?"),
        ("distribution.strategy distribution.backend", "Did you mean type?"),
        ("pip", "It belongs under environment.conda.dependencies."),
        ("requirements", "Did you mean environment.conda.dependencies.pip?"),
        ("dependencies environment.dependencies", "It belongs under environment.conda."),
        ("entry_script entrypoint", "Did you mean script?"),
        ("source_directory src", "Did you mean code?"),
        ("volumes steps framework", ""),
        ("dataset.digits.path dataset.digits.file", "Did you mean paths?"),
        ("max_retries", "Did you mean retries.max?"),
        ("compute.resources", ""),  # what it stands for is where it is
    ],
)
def test_hints_for_what_others_call_it(keys: str, hint: str) -> None:
    for way in keys.split():
        *sections, key = way.split(".")
        text = f"{key}: 1"
        for section in reversed(sections):
            text = f"{section}: {{{text}}}"
        root, _ = read(text, "f")
        assert root is not None
        found = [problem for problem in check(root, schema())[0] if "unknown" in problem.message]
        assert [(problem.path, problem.hint) for problem in found] == [(way, hint)]


def _other_names(said: dict[str, Any], where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, str]]:
    for key, child in said.get("properties", {}).items():
        yield from ((where, key, other) for other in child.get("x-also", ()))
        yield from _other_names(child, (*where, key))
    if isinstance(said.get("additionalProperties"), dict):
        yield from _other_names(said["additionalProperties"], (*where, "NAME"))


@pytest.mark.parametrize(("where", "key", "other"), list(_other_names(schema())))
def test_every_other_name_leads_to_the_key_where_the_key_belongs(where: tuple[str, ...], key: str, other: str) -> None:
    root: Any = {other: 1}
    for part in reversed(where):
        root = {part: root}
    tree, _ = read(json.dumps(root), "f")
    assert tree is not None
    hints = [problem.hint for problem in check(tree, schema())[0] if "unknown" in problem.message]
    assert len(hints) == 1
    assert key in hints[0].removesuffix("?").split()


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        *(
            ("10m", "600"),
            ("1h", "3600"),
            ("90s", "90"),
            ("1.5 Hours", "5400"),
            ("1h 30min", "5400"),
            ("2 days", "172800"),
        ),
        *(("soon", ""), ("10ms", ""), ("m", ""), ("10", "")),
    ],
)
def test_a_time_is_told_in_seconds(written: str, seconds: str) -> None:
    hints = [line.partition(" is allowed.")[2] for line in lines(f"limits: {{grace_period_s: '{written}'}}")]
    assert (hints == [f" In seconds: {seconds}."]) == bool(seconds)
    assert not lines(f"compute: {{node_count: '{written}'}}")[0].endswith(f"In seconds: {seconds}.")


def test_a_key_that_the_schema_knows_is_no_trap() -> None:
    assert lines('retries: {on: [failure]}\ntags: {"on": x}') == []


def test_conda_files_have_hints_of_their_own() -> None:
    root, _ = read("dependencie: [a]", "f")
    assert root is not None
    assert [str(problem) for problem in check(root, environment_schema())[0]] == [
        (
            'f:1:1: dependencie: found the unknown key "dependencie"; name, channels, dependencies, variables or prefix is '
            "allowed. Did you mean dependencies?"
        ),
        "f:1:1: the key dependencies is missing; it is required. Add dependencies.",
    ]


def test_each_schema_has_hints_of_its_own() -> None:
    for said, key, hint in (
        (schema(), "gpus", "Did you mean compute.gpus_per_node?"),
        (environment_schema(), "gpus", ""),
        (config_schema(), "gpus", "It belongs under local."),
        (config_schema(), "cpu", "It belongs under images."),
        (environment_schema(), "pip", "It belongs under dependencies."),
        (config_schema(), "pip", ""),
        (
            {"type": "object", "properties": {"b": {"x-also": ["gpus"]}}, "additionalProperties": False},
            "gpus",
            "Did you mean b?",
        ),
    ):
        root, _ = read(f"{key}: 1", "f")
        assert root is not None
        assert next(problem.hint for problem in check(root, said)[0] if "unknown" in problem.message) == hint


def test_what_has_a_problem_is_marked() -> None:
    root, _ = read("name: a b\ncompute: {node_count: x, gpus_per_node: 1}", "f")
    assert root is not None
    _, sound = check(root, schema())
    bad = {where: getattr(find(sound, where), "bad", None) for where in [("name",), ("compute", "node_count")]}
    assert bad == {("name",): True, ("compute", "node_count"): True}
    assert not getattr(find(sound, ("compute", "gpus_per_node")), "bad", None)
