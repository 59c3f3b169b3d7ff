"""What contradicts itself, and names and paths that cannot be: job files with one thing wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Problems = Callable[..., list[str]]

SHELL = {"TOKEN": "x"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # script, command, code
        (
            "name: a",
            (
                "job.yml:1:1: found neither script nor command; one of the two is required. "
                "Add script: train.py (with code: DIRECTORY), or command: …."
            ),
        ),
        (
            "code: src\nscript: train.py\ncommand: x",
            (
                "job.yml:3:1: command: found both script and command; one of the two is allowed. "
                "Remove command, or remove script and arguments."
            ),
        ),
        (
            "command: x\narguments: [a]",
            (
                "job.yml:2:1: arguments: found arguments with command; arguments are allowed with script. "
                "Write them into the command."
            ),
        ),
        (
            "script: train.py",
            (
                "job.yml:1:1: script: found script without code; the directory that holds the script is required. "
                "Add code: DIRECTORY, such as code: src."
            ),
        ),
        (
            "code: src\nscript: /src/train.py",
            (
                'job.yml:2:9: script: found the absolute path "/src/train.py"; a path inside the code directory is allowed. '
                "Write it relative to code."
            ),
        ),
        (
            "code: src\nscript: deep/../../src/train.py",
            (
                'job.yml:2:9: script: found the path "deep/../../src/train.py", which leaves it by ..; '
                "a path inside the code directory is allowed. Write it relative to code."
            ),
        ),
        # environment
        (
            "command: x\nenvironment:\n  conda_file: environment.yml\n  conda: {dependencies: [python]}",
            (
                "job.yml:4:3: environment.conda: found both conda_file and conda; "
                "one of conda_file, conda, dockerfile, image, name is allowed. Remove conda_file or conda."
            ),
        ),
        (
            "command: x\nenvironment: {build_arguments: {a: b}}",
            (
                "job.yml:2:15: environment.build_arguments: found build_arguments without dockerfile; "
                "it is allowed with dockerfile. Add dockerfile, or remove it."
            ),
        ),
        (
            "command: x\nenvironment: {build_context: src}",
            (
                "job.yml:2:15: environment.build_context: found build_context without dockerfile; "
                "it is allowed with dockerfile. Add dockerfile, or remove it."
            ),
        ),
        (
            "command: x\nenvironment: environment.yml",
            (
                'job.yml:2:14: environment: found the registered environment "environment.yml", which looks like a file; '
                "a registered name, or name@version, is allowed. Did you mean environment: {conda_file: environment.yml}?"
            ),
        ),
        (
            "command: x\nenvironment: Dockerfile.gpu",
            (
                'job.yml:2:14: environment: found the registered environment "Dockerfile.gpu", which looks like a file; '
                "a registered name, or name@version, is allowed. Did you mean environment: {dockerfile: Dockerfile.gpu}?"
            ),
        ),
        *(
            (
                f"command: x\nenvironment: {{conda: {{dependencies: [python]}}, {key}: '{image}'}}",
                (
                    f'job.yml:2:{column}: environment.{key}: found "{image}", which is no name of an image; NAME:TAG or '
                    f"REGISTRY/NAME:TAG is allowed.{hint}"
                ),
            )
            for key, column, image, hint in [
                ("image", 55, "docker://a/b:1", " Did you mean a/b:1?"),
                ("image", 55, "TensorFlow/tensorflow", " Did you mean tensorflow/tensorflow?"),
                ("base", 54, "a/b:", ""),
                ("base", 54, "GPU", " Did you mean gpu?"),
            ]
        ),
        (
            "command: x\nenvironment: {conda_file: environment.yml, base: gpu, image: a/b:1}",
            (
                "job.yml:2:55: environment.image: found both base and image with conda_file; one image to put the packages "
                "on is allowed. Remove base or image."
            ),
        ),
        (
            "command: x\nenvironment: {image: a/b:1, conda: {dependencies: [python]}, base: a/b:1}",
            (
                "job.yml:2:15: environment.image: found both base and image with conda; one image to put the packages "
                "on is allowed. Remove base or image."
            ),
        ),
        (
            "command: x\nenvironment: {image: a/b:1, base: gpu}",
            (
                "job.yml:2:29: environment.base: found base with image; it is allowed with conda_file or conda. Remove it."
            ),
        ),
        (
            "command: x\nenvironment: {name: tf, base: gpu}",
            "job.yml:2:25: environment.base: found base with name; it is allowed with conda_file or conda. Remove it.",
        ),
        *(
            (
                f"command: x\nenvironment: {{image: a, {other}}}",
                (
                    f"job.yml:2:{column}: environment.{later}: found both {first} and {later}; one of conda_file, conda, "
                    f"dockerfile, image, name is allowed. Remove {first} or {later}."
                ),
            )
            for other, first, later, column in [
                ("name: tf", "image", "name", 25),
                ("dockerfile: Dockerfile", "dockerfile", "image", 15),
            ]
        ),
        *(
            (
                f"command: x\nenvironment: {{{key}: {value}}}\ncompute: {{runtime: process}}",
                (
                    f"job.yml:3:20: compute.runtime: found process with environment.{key}, which needs a container; "
                    "docker or auto is allowed. Set it to docker, or leave it out."
                ),
            )
            for key, value in [("image", "a/b:1"), ("dockerfile", "Dockerfile")]
        ),
        # datasets
        (
            "command: x\ndataset: {a: {mode: mount}}",
            ("job.yml:2:11: dataset.a: found neither name nor paths; one of the two is required. Give paths: [PATH]."),
        ),
        # names
        (
            "command: x\ndataset: {x_1: {paths: data}, X_1: {paths: data}}",
            (
                "job.yml:2:31: dataset.X_1: found the dataset X_1 beside x_1, both TFJOB_DATASET_X_1 in a task; "
                "names that differ in more than capital letters are allowed. Rename one of them."
            ),
        ),
        (
            "command: x\noutputs: {named: {m: , M: }}",
            (
                "job.yml:2:24: outputs.named.M: found the output M beside m, both TFJOB_OUTPUTS_M in a task; "
                "names that differ in more than capital letters are allowed. Rename one of them."
            ),
        ),
        (
            "command: x\noutputs: {named: {dir: }}",
            (
                "job.yml:2:19: outputs.named.dir: found an output of the name dir, which is reserved: "
                "${{ outputs.dir }} is the directory of all outputs; any other name is allowed. Rename it."
            ),
        ),
        # distribution and compute
        (
            "command: x\ndistribution: {type: tensorflow, process_count_per_node: 2}",
            (
                "job.yml:2:34: distribution.process_count_per_node: found process_count_per_node with type tensorflow; "
                "it is allowed with type mpi. Set distribution.type to mpi, or remove it."
            ),
        ),
        (
            "command: x\ndistribution: {process_count_per_node: 2}",
            (
                "job.yml:2:16: distribution.process_count_per_node: found process_count_per_node with type none; "
                "it is allowed with type mpi. Set distribution.type to mpi, or remove it."
            ),
        ),
        (
            "command: x\ndistribution: {type: mpi, worker_count: 2}",
            (
                "job.yml:2:27: distribution.worker_count: found worker_count with type mpi; "
                "it is allowed with type tensorflow. Set distribution.type to tensorflow, or remove it."
            ),
        ),
        (
            "command: x\ndistribution: {type: mpi, parameter_server_count: 2}",
            (
                "job.yml:2:27: distribution.parameter_server_count: found parameter_server_count with type mpi; "
                "it is allowed with type tensorflow. Set distribution.type to tensorflow, or remove it."
            ),
        ),
        (
            "command: x\ndistribution: {evaluator: true}",
            (
                "job.yml:2:16: distribution.evaluator: found evaluator with type none; "
                "it is allowed with type tensorflow. Set distribution.type to tensorflow, or remove it."
            ),
        ),
        (
            "command: x\ndistribution: {type: tensorflow, worker_count: 0}",
            "job.yml:2:48: distribution.worker_count: found the number 0; a whole number of at least 1 is allowed.",
        ),
        (
            "command: x\ncompute: {node_count: 3, max_node_count: 2}",
            "job.yml:2:42: compute.max_node_count: found 2, below node_count (3); a whole number of at least 3 is allowed.",
        ),
        (
            "command: x\ncompute: {gpus_per_node: 1}\ndistribution: {type: mpi, process_count_per_node: 2}",
            (
                "job.yml:3:51: distribution.process_count_per_node: found 2 processes on a node with 1 GPU; "
                "at most 1 is allowed. Lower it, or raise compute.gpus_per_node."
            ),
        ),
        (
            "command: x\ncompute: {node_count: 2, gpus_per_node: 1}\ndistribution: {type: tensorflow, worker_count: 3}",
            (
                "job.yml:3:48: distribution.worker_count: found 3 tasks that need a GPU each (3 workers) on 2 x 1 GPUs; "
                "at most 2 are allowed. Raise compute.node_count or compute.gpus_per_node, or have fewer tasks."
            ),
        ),
        (
            (
                "command: x\ncompute: {node_count: 1, gpus_per_node: 1}\n"
                "distribution: {type: tensorflow, parameter_server_count: 1, evaluator: true}"
            ),
            (
                "job.yml:3:58: distribution.parameter_server_count: found 3 tasks that need a GPU each "
                "(1 worker, a chief, an evaluator) on 1 x 1 GPUs; at most 1 is allowed. "
                "Raise compute.node_count or compute.gpus_per_node, or have fewer tasks."
            ),
        ),
        (
            "command: x\ncompute: {docker_args: --name 'a}",
            (
                "job.yml:2:24: compute.docker_args: found a quote that is not closed; a line for the shell is allowed. "
                "Close the quote, or write a list: [ ]."
            ),
        ),
        (
            "command: x\ncompute: {docker_args: --ulimit memlock=-1 --name mine}",
            (
                "job.yml:2:24: compute.docker_args: found --name, which tfjob does not pass on: tfjob names containers by "
                "run and task. Remove --name."
            ),
        ),
        (
            "command: x\ncompute:\n  docker_args:\n    - --ulimit\n    - memlock=-1\n    - --cpus=many",
            (
                "job.yml:6:7: compute.docker_args[2]: found --cpus many; a number of processors, such as 1.5, is allowed."
            ),
        ),
        (
            "command: x\ncompute: {docker_args: [--privileged, --ulimit memlock=-1]}",
            (
                'job.yml:2:39: compute.docker_args[1]: found "--ulimit memlock=-1", two arguments in one item; one argument '
                "is allowed. Write --ulimit=memlock=-1, or make it two items."
            ),
        ),
        (
            'command: x\ncompute: {docker_args: ["--privileged", "--env", "A\\e[2J\\n"]}',
            (
                r"job.yml:2:41: compute.docker_args[1]: found --env A\x1b[2J\n; NAME=VALUE is allowed; a value of your shell's "
                "is passed on by `secrets`."
            ),
        ),
        # outputs
        *(
            (
                f"command: x\noutputs: {{keep: [{path}]}}",
                (
                    f"job.yml:2:18: outputs.keep[0]: found {found}; a directory inside the working directory is allowed. "
                    "Write outputs, or another name without / before it or .. in it."
                ),
            )
            for path, found in [
                ("/x", '"/x"'),
                ("a/../b", '"a/../b"'),
                ("~/x", '"~/x"'),
                (".", '".", the working directory itself'),
                ('""', '"", the working directory itself'),
            ]
        ),
        (
            "command: x\noutputs: {keep: [./logs/x]}",
            (
                'job.yml:2:18: outputs.keep[0]: found "./logs/x", and logs is kept already, as the run\'s logs/user; '
                "another directory is allowed. Remove it."
            ),
        ),
        # variables
        *(
            (
                f"command: x\nenvironment_variables: {{{name}: 1}}",
                (
                    f"job.yml:2:25: environment_variables.{name}: found {name}, which tfjob sets itself; "
                    f"names other than TF_CONFIG, CUDA_VISIBLE_DEVICES and TFJOB_* are allowed. {hint}."
                ),
            )
            for name, hint in [
                ("TF_CONFIG", "See distribution"),
                ("CUDA_VISIBLE_DEVICES", "See compute.gpus_per_node"),
                ("TFJOB_X", "Choose another name"),
            ]
        ),
        (
            "command: x\nsecrets: [TOKEM]",
            (
                "job.yml:2:11: secrets[0]: found TOKEM, which is not set in this shell; a variable that is set is allowed. "
                "Did you mean TOKEN?"
            ),
        ),
        (
            "command: x\nsecrets: [TOKEN]\nenvironment_variables: {TOKEN: a}",
            (
                "job.yml:2:11: secrets[0]: found TOKEN also under environment_variables; one of the two is allowed. "
                "A secret belongs here only: remove it there."
            ),
        ),
    ],
)
def test_one_problem(problems_of: Problems, text: str, expected: str) -> None:
    assert problems_of(text, **SHELL) == [expected.replace("….", "…")]


@pytest.mark.parametrize(
    "text",
    [
        "command: x\nretries: {max: 0}\nservices: {}",
        "command: x\ncompute: {node_count: 2, max_node_count: 2}",
        "command: x\ncompute: {gpus_per_node: 2}\ndistribution: {type: mpi, process_count_per_node: 2}",
        (
            "command: x\ncompute: {gpus_per_node: 3}\n"
            "distribution: {type: tensorflow, worker_count: 1, parameter_server_count: 5, evaluator: true}"
        ),
        "command: x\ndistribution: {type: tensorflow, worker_count: 9}",
        "command: x\nsecrets: [TOKEN]",
        "command: x\noutputs: {keep: [a/b, ./c], named: {m: null, DIR: null}}\ndataset: {m: {paths: data}, n: {paths: data}}",
        "command: x\ncompute: {target: box, runtime: process, node_count: 7}",
        "code: src\nscript: ./deep/../train.py",
        "command: x\nenvironment: {conda: {dependencies: [python]}, base: gpu}",
        "command: x\nenvironment: {conda: {dependencies: [python]}, image: a/b:1}\ncompute: {runtime: process}",
        "command: x\nenvironment: {conda_file: environment.yml, image: a/b:1}",
        "command: x\nenvironment: {image: a/b:1}\ncompute: {runtime: docker, container_packages: baked}",
        "command: x\nenvironment: {dockerfile: Dockerfile}",
        "command: x\nenvironment: yml",
        "command: x\nenvironment: {name: odd.yml}",
        "command: x\ncompute: {docker_args: [--cpus, 1.5, -v, '/a b:/c', --privileged]}",
        "command: x\ncompute: {docker_args: --ulimit memlock=-1 -v '/a b:/c'}",
        "command: x\ncompute: {docker_args: ''}",
    ],
)
def test_no_problem(problems_of: Problems, text: str) -> None:
    assert problems_of(text, **SHELL) == []


@pytest.mark.parametrize(
    "image",
    [
        *("debian", "debian:12", "a/b_c/d-e__f:v1.2_x", "localhost/a", "localhost:5000/a:1", "host:5000/a"),
        *("registry.example.org/team/a:1", "127.0.0.1:5000/a", "[::1]:5000/a", f"a@sha256:{'0' * 64}"),
        *(f"sha256:{'0' * 64}", f"a/b:1@sha256:{'0' * 64}", "0123456789ab", "cpu", "gpu"),
    ],
)
def test_names_of_images(problems_of: Problems, image: str) -> None:
    assert problems_of(f"command: x\nenvironment: {{image: '{image}'}}") == []
    assert problems_of(f"command: x\nenvironment: {{conda_file: environment.yml, base: '{image}'}}") == []


def test_what_is_too_long_is_no_name_of_an_image(problems_of: Problems) -> None:
    (found,) = problems_of(f"command: x\nenvironment: {{image: {'a.' * 300_000}}}")
    assert found.endswith('…", which is no name of an image; NAME:TAG or REGISTRY/NAME:TAG is allowed.')


def test_what_is_unsupported_and_contradicts_the_rest_is_told_both(problems_of: Problems) -> None:
    supported = " which is not supported by this version of tfjob"
    assert [
        line.partition(supported)[0]
        for line in problems_of("command: x\ndataset: {a: {name: b, paths: data, mode: direct}}")
    ] == [
        "job.yml:2:11: dataset.a: found both name and paths; one of the two is required. Give paths: [PATH].",
        "job.yml:2:37: dataset.a.mode: found the mode direct,",
    ]


def test_every_argument_of_docker_is_told(problems_of: Problems) -> None:
    found = problems_of("command: x\ncompute:\n  docker_args: [--rm, --cpus, '2', --cpu, 3, -p, '80:80']")
    assert [line.partition(",")[0] for line in found] == [
        "job.yml:3:17: compute.docker_args[0]: found --rm",
        "job.yml:3:36: compute.docker_args[3]: found --cpu",
        "job.yml:3:46: compute.docker_args[5]: found -p",
    ]
    in_one_line = problems_of("command: x\ncompute: {docker_args: --rm --cpus 2 --net host}")
    assert [line.partition(",")[0] for line in in_one_line] == [
        "job.yml:2:24: compute.docker_args: found --rm",
        "job.yml:2:24: compute.docker_args: found --net",
    ]
    overridden = problems_of("command: x", "compute.docker_args=[--cpus]")
    assert overridden == [
        (
            "--set compute.docker_args=[--cpus]:1:22: compute.docker_args[0]: found --cpus without a value. "
            "Write --cpus=VALUE."
        )
    ]
    bad = problems_of("command: x\ncompute: {docker_args: [--cpus, true, --name]}")
    assert [line.split(": ")[1] for line in bad] == ["compute.docker_args[1]"]  # first things first


def test_nothing_is_built_on_what_has_a_problem(problems_of: Problems) -> None:
    found = problems_of(
        "code: 3\nscript: train.py\ncompute: {gpus_per_node: 1}\ndistribution: {type: tensorflow, worker_count: x}"
    )
    assert [line.split(": ")[1] for line in found] == ["code", "distribution.worker_count"]


def test_a_default_that_an_editor_inserted_says_nothing(problems_of: Problems) -> None:
    inserted = "{type: none, parameter_server_count: 0, evaluator: false}"
    assert problems_of(f"command: x\ndistribution: {inserted}") == []
    assert len(problems_of("command: x\ndistribution: {type: none, parameter_server_count: 1}")) == 1
