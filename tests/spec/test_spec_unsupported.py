"""What has a place in the file and no implementation: `validate` finds it, as `plan` and `submit` would."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Problems = Callable[..., list[str]]


@pytest.mark.parametrize(
    ("line", "place", "what", "hint"),
    [
        ("services: {a: {port: 1}}", "1: services", "a service", "Remove it."),
        (
            "sweep: {search_space: {}, objective: {goal: maximize, primary_metric: a}, limits: {max_total_trials: 1}}",
            "1: sweep",
            "a sweep",
            "Submit the job once for each value, with --set.",
        ),
        ("compute: {max_node_count: 2}", "11: compute.max_node_count", "a job that grows", "Use node_count."),
        ("code: git+https://x/y", "1: code", "code from an address", "Use a directory."),
        (
            "dataset: {a: {paths: data, mode: direct}}",
            "28: dataset.a.mode",
            "the mode direct",
            "Use mount or download.",
        ),
        (
            "dataset: {a: {paths: data, type: mltable}}",
            "28: dataset.a.type",
            "the type mltable",
            "Use directory or file.",
        ),
        (
            "outputs: {named: {a: {type: mltable}}}",
            "23: outputs.named.a.type",
            "the type mltable",
            "Use directory or file.",
        ),
        (
            "outputs: {named: {a: {mode: upload}}}",
            "23: outputs.named.a.mode",
            "this mode",
            "Use mount, or leave it out.",
        ),
        (
            "outputs: {named: {a: {path: x}}}",
            "23: outputs.named.a.path",
            "an output stored elsewhere",
            "Remove it; the output is kept with the run.",
        ),
        (
            "outputs: {named: {a: {register: x}}}",
            "23: outputs.named.a.register",
            "registering an output",
            "Remove it; the output is kept with the run.",
        ),
    ],
)
def test_one_problem(problems_of: Problems, line: str, place: str, what: str, hint: str) -> None:
    assert problems_of(f"command: x\n{line}") == [
        f"job.yml:2:{place}: found {what}, which is not supported by this version of tfjob. {hint}"
    ]


@pytest.mark.parametrize("line", ["dataset: {a: 3}", "environment: 3", "dataset: {a: }", "environment: a b"])
def test_what_has_a_problem_already_is_passed_over(problems_of: Problems, line: str) -> None:
    assert not any("not supported" in problem for problem in problems_of(f"command: x\n{line}"))


@pytest.mark.parametrize(
    "line",
    [
        "retries: {max: 2, on: [failure]}\nservices: {}",
        "compute: {runtime: auto}",
        "compute: {runtime: docker, container_packages: baked}",
        "compute: {target: box, node_count: 3, gpus_per_node: 99}",  # for the workspace to say
        "environment: {}",
        "environment: {conda_file: environment.yml}",
        "environment: tf@3",
        "dataset: {a: digits@2, b: {name: digits, mode: download}, c: {paths: s3://a/b}}",
        "environment: {name: tf}",
        "environment: {image: a/b:1}",
        "environment: {dockerfile: Dockerfile, build_context: src, build_arguments: {A: 1}}",
        "environment: {conda: {channels: [a], dependencies: [numpy], variables: {A: 1}}}",
    ],
)
def test_no_problem(problems_of: Problems, line: str) -> None:
    assert problems_of(f"command: x\n{line}") == []
