from __future__ import annotations

from collections.abc import Callable

import pytest

from tfjob.spec.job import JobSpec

Load = Callable[..., JobSpec]
Problems = Callable[..., list[str]]


SHELL = {"TOKEN": "abc"}


def test_what_is_known_is_replaced_and_the_rest_left(load_job: Load) -> None:
    job = load_job(
        "parameters: {lr: 0.10, where: '${{ env.PLACE }}'}\n"
        "description: in ${{ env.PLACE }}, $${{ not this }}\n"
        "command: train --lr=${{parameters.lr}} ${{ dataset.d }} ${{run.id}} ${{ parameters.where }} $${{ x }}\n"
        "dataset: {d: {paths: data}}\n"
        "outputs: {named: {model: }}\n"
        "environment_variables: {OUT: '${{ outputs.model }}', HOME_OF: '${{ env.PLACE }}'}",
        PLACE="here",
    )
    assert job.description == "in here, ${{ not this }}"
    assert job.command == "train --lr=0.10 ${{ dataset.d }} ${{ run.id }} here $${{ x }}"
    assert job.environment_variables == (("OUT", "${{ outputs.model }}"), ("HOME_OF", "here"))


def test_a_value_never_becomes_an_expression(load_job: Load) -> None:
    job = load_job("command: x ${{ env.A }}\ndescription: ${{ env.A }}", A="${{ run.id }}")
    assert job.command == "x '$${{ run.id }}'"
    assert job.description == "${{ run.id }}"


def test_a_number_may_come_from_an_expression(load_job: Load, problems_of: Problems) -> None:
    text = (
        "parameters: {k: 2}\ncommand: x\ncompute: {node_count: '${{ parameters.k }}', gpus_per_node: '${{ env.GPUS }}'}"
    )
    job = load_job(text, GPUS="4")
    assert (job.compute.node_count, job.compute.gpus_per_node) == (2, 4)
    assert problems_of(text, GPUS="four") == [
        'job.yml:3:61: compute.gpus_per_node: found text "four"; a whole number of at least 0 is allowed.'
    ]


def test_a_name_may_look_like_a_number(load_job: Load) -> None:
    assert load_job("command: x\nname: ${{ env.N }}", N="12").name == "12"


def test_overrides_take_part(load_job: Load) -> None:
    job = load_job("command: x\nparameters: {a: 1}", "parameters.a=1e-3", "command=y ${{ parameters.a }}")
    assert job.command == "y 1e-3"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "command: ${{ env.HOEM }}",
            (
                "command: found env.HOEM, which is not set in this shell; a variable that is set is allowed. "
                "Did you mean env.HOME?"
            ),
        ),
        (
            "command: ${{ env.ZZZ }}",
            (
                "command: found env.ZZZ, which is not set in this shell; a variable that is set is allowed. "
                "Set it: export ZZZ=…"
            ),
        ),
        (
            "command: ${{ env.BYTES }}",
            "command: found env.BYTES, whose value is not UTF-8 text; text is allowed.",
        ),
        (
            "command: ${{ parameters.b }}",
            "command: found parameters.b, which is not among the parameters; rate can be used. Add it under parameters.",
        ),
        (
            "command: ${{ parameters.rat }}",
            (
                "command: found parameters.rat, which is not among the parameters; rate can be used. "
                "Did you mean parameters.rate?"
            ),
        ),
        (
            "command: ${{ dataset.digit }}",
            "command: found dataset.digit, which is not declared; dataset.digits can be used. Did you mean dataset.digits?",
        ),
        (
            "command: ${{ outputs.modle }}",
            "command: found outputs.modle, which is not declared; outputs.dir can be used. Declare it under outputs.named.",
        ),
        (
            "command: ${{ run.di }}",
            (
                "command: found the unknown name run.di; env.NAME, parameters.NAME, dataset.digits, logs.dir, node.index, "
                "outputs.dir, restart.count, run.dir, run.id, task.index, task.name, task.type are allowed. Did you mean run.dir?"
            ),
        ),
        (
            "command: ${{ run.id",
            "command: found ${{ without }} after it; ${{ name }}, or $${{ for the text itself, is allowed.",
        ),
        (
            'command: "${{ a b }}"',
            'command: found "a b" between ${{ and }}; a dotted name such as run.id is allowed.',
        ),
    ],
)
def test_one_problem(problems_of: Problems, line: str, expected: str) -> None:
    text = f"{line}\nparameters: {{rate: 1}}\ndataset: {{digits: {{paths: data}}}}"
    assert problems_of(text, HOME="/root", BYTES="\udcff") == [f"job.yml:1:10: {expected}"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dataset.x", "no dataset is declared. Declare it under dataset."),
        ("search_space.x", "no search space is declared. Declare it under sweep.search_space."),
        ("parameters.x", "the file has no parameters. Add it under parameters."),
    ],
)
def test_a_name_of_a_section_that_is_empty(problems_of: Problems, name: str, expected: str) -> None:
    assert problems_of(f"command: ${{{{ {name} }}}}") == [f"job.yml:1:10: command: found {name}; {expected}"]


def test_late_names_have_their_places(problems_of: Problems) -> None:
    assert problems_of("command: x\ntags: {a: '${{ run.id }}'}") == [
        (
            "job.yml:2:11: tags.a: found ${{ run.id }}, whose value only a run has; "
            "it is allowed in command, arguments and environment_variables."
        )
    ]


def test_parameters_do_not_refer_to_one_another(problems_of: Problems) -> None:
    assert problems_of("command: x\nparameters: {a: 1, b: '${{ parameters.a }}'}") == [
        "job.yml:2:23: parameters.b: found parameters.a in a parameter; env.NAME is allowed here. Write the value itself."
    ]


def test_all_problems_of_a_text_are_reported(problems_of: Problems) -> None:
    assert len(problems_of("command: ${{ env.A }} ${{ env.B }} ${{ dataset.c }}")) == 3


def test_secrets_are_not_written_out(problems_of: Problems) -> None:
    assert problems_of("command: x ${{ env.TOKEN }}\nsecrets: [TOKEN]", **SHELL) == [
        (
            "job.yml:1:10: command: found env.TOKEN, which is a secret; a variable that is not among the secrets is allowed, "
            "for expressions are recorded. Tasks have it as a variable of their own."
        )
    ]
