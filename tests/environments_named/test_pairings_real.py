"""The rules on the real packages: what is told does happen, and does not where nothing is told."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from environments_named.real_packages import Installed, install, solve
from support import free_ports

from tfjob.foresight import cuda
from tfjob.foresight.pairings import Facts, check

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("pairings"), pytest.mark.timeout(600)]

WORKERS = """\
import numpy as np
import tensorflow as tf

strategy = tf.distribute.MultiWorkerMirroredStrategy()
data = tf.data.Dataset.from_tensor_slices((np.zeros((64, 4), "float32"), np.zeros((64, 1), "float32"))).batch(8)
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
with strategy.scope():
    model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
model.fit(data.with_options(options), epochs=1, verbose=0)
print("fit has ended")
"""
SERVERS = """\
import sys
import numpy as np
import tensorflow as tf

resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
if resolver.task_type in ("worker", "ps"):
    server = tf.distribute.Server(resolver.cluster_spec(), job_name=resolver.task_type, task_index=0, protocol="grpc")
    server.join()
strategy = tf.distribute.ParameterServerStrategy(resolver)
with strategy.scope():
    model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
data = tf.data.Dataset.from_tensor_slices((np.zeros((64, 4), "float32"), np.zeros((64, 1), "float32"))).batch(8).repeat()
model.fit(data, epochs=1, steps_per_epoch=4, verbose=0)
print("fit has ended")
"""


def rules(facts: Facts) -> list[str]:
    return [finding.rule for finding in check(facts)]


def words(tasks: list[subprocess.Popen[str]]) -> list[str]:
    """What tasks print until they have ended; none goes on after that."""
    try:
        return [task.communicate(timeout=400)[0] for task in tasks]
    finally:
        end(tasks)


def end(tasks: list[subprocess.Popen[str]]) -> None:
    for task in tasks:
        task.kill()
        task.communicate()


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(tmp_path_factory.mktemp("newest") / "venv", "tensorflow-cpu==2.21.0")


def test_fit_of_two_workers_fails_with_keras_3_and_of_one_works(newest: Installed, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(WORKERS)

    def train(count: int) -> list[str]:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(count)]}
        configs = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": n}}) for n in range(count)]
        tasks = [newest.start("python", script, TF_CONFIG=config) for config in configs]
        return words(tasks)

    facts = Facts(packages=newest.packages, distribution="tensorflow", workers=2, code={"train.py": WORKERS})
    assert rules(facts) == ["multi-worker-keras-3-fit"]
    for said in train(2):
        assert "PerReplica" in said
        assert "unsupported type" in said
        assert "fit has ended" not in said
    assert rules(Facts(packages=newest.packages, distribution="tensorflow", code={"train.py": WORKERS})) == []
    assert "fit has ended" in train(1)[0]


def test_fit_under_parameter_servers_fails_with_keras_3(newest: Installed, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SERVERS)
    facts = Facts(
        packages=newest.packages, distribution="tensorflow", workers=2, parameter_servers=1, code={"train.py": SERVERS}
    )
    assert rules(facts) == ["parameter-server-keras-3-fit"]
    kinds = ("chief", "worker", "ps")
    cluster = {kind: [f"127.0.0.1:{port}"] for kind, port in zip(kinds, free_ports(3), strict=True)}
    tasks = [
        newest.start("python", script, TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": kind, "index": 0}}))
        for kind in kinds
    ]
    try:
        [said] = words(tasks[:1])
    finally:
        end(tasks[1:])
    assert tasks[0].returncode
    assert "ClusterCoordinator.create_per_worker_dataset" in said


def test_legacy_keras_needs_tf_keras(newest: Installed) -> None:
    code = "import tensorflow as tf; print(tf.keras.layers)"
    facts = Facts(packages=newest.packages, variables={"TF_USE_LEGACY_KERAS": "1"}, code={"a.py": code})
    assert [(finding.rule, finding.severity) for finding in check(facts)] == [
        ("legacy-keras-without-tf-keras", "error")
    ]
    exit_code, said = newest.run("python", "-c", code, TF_USE_LEGACY_KERAS="1")
    assert exit_code
    assert "ImportError: Keras cannot be imported" in said


def test_numpy_2_with_a_tensorflow_that_does_not_bound_it(tmp_path: Path) -> None:
    assert rules(Facts(requirements=("tensorflow-cpu==2.14.0", "setuptools<82"))) == [
        "numpy-2-with-unbounded-tensorflow"
    ]
    made = install(tmp_path / "venv", "tensorflow-cpu==2.14.0", "setuptools<82")
    packages = made.packages
    assert packages["numpy"].startswith("2.")
    assert [(finding.rule, finding.severity) for finding in check(Facts(packages=packages))] == [
        ("numpy-2-with-old-tensorflow", "error")
    ]
    assert made.run("python", "-c", "import tensorflow")[0]
    made.install("numpy<2")
    assert check(Facts(packages=made.packages)) == ()
    assert made.run("python", "-c", "import tensorflow")[0] == 0


def test_setuptools_and_tensorboard(tmp_path: Path) -> None:
    made = install(tmp_path / "venv", "tensorboard==2.17.1")
    assert rules(Facts(packages=made.packages)) == ["setuptools-without-pkg-resources"]
    exit_code, said = made.run("tensorboard", "--version")
    assert exit_code
    assert "No module named 'pkg_resources'" in said
    made.install("setuptools<82")
    assert check(Facts(packages=made.packages)) == ()
    assert made.run("tensorboard", "--version")[0] == 0
    made.install("tensorboard==2.21.0", "setuptools>=82")
    assert check(Facts(packages=made.packages)) == ()
    assert made.run("tensorboard", "--version")[0] == 0


def test_tf_keras_brings_a_second_tensorflow() -> None:
    lines = ("tensorflow-cpu==2.18.1", "tf-keras==2.18.0", "setuptools<82")
    assert rules(Facts(requirements=lines)) == ["tensorflow-twice"]
    packages = solve(*lines)
    assert isinstance(packages, dict)
    assert packages["tensorflow"] == packages["tensorflow-cpu"] == "2.18.1"
    assert rules(Facts(packages=packages)) == ["tensorflow-twice"]


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        (("tensorflow==2.18.1", "tf-keras==2.17.0", "setuptools<82"), "tf-keras-other-minor"),
        (("tensorflow==2.17.1", "numpy>=2", "setuptools<82"), "numpy-2-with-old-tensorflow"),
    ],
)
def test_what_packages_refuse_themselves(lines: tuple[str, ...], rule: str) -> None:
    assert rules(Facts(requirements=lines)) == [rule]
    assert "unsatisfiable" in str(solve(*lines))


@pytest.mark.parametrize(
    ("version", "first", "last"),
    [
        (row["version"], *row["python"])
        for row in yaml.safe_load(Path(cuda.__file__).with_suffix(".yml").read_text())["tensorflow"]
    ],
)
def test_the_pythons_of_the_table_are_those_there_are_wheels_for(version: str, first: str, last: str) -> None:
    line = f"tensorflow-cpu=={version}.*"

    def has_wheels(python: str) -> bool:
        return isinstance(solve(line, python=python, options=("--no-deps",)), dict)

    def next_to(python: str, step: int) -> str:
        return f"3.{int(python.partition('.')[2]) + step}"

    assert has_wheels(first)
    assert has_wheels(last)
    for python in (next_to(first, -1), next_to(last, 1)):
        is_told = "python-outside-of-tensorflow" in rules(Facts(requirements=(line,), python=f"=={python}.*"))
        assert (is_told, has_wheels(python)) == (True, False), python
