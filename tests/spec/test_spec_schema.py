from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tfjob.spec import job
from tfjob.spec.schema import default, environment_schema, lookup, schema, target_schema

Said = dict[str, Any]

REQUIRED = {"": ("name", "experiment")}
SECTIONS: dict[str, Any] = {
    "": job.JobSpec,
    "dataset.*": job.DatasetSpec,
    "environment": job.EnvironmentSpec,
    "compute": job.ComputeSpec,
    "distribution": job.DistributionSpec,
    "outputs": job.OutputsSpec,
    "outputs.named.*": job.OutputSpec,
    "limits": job.LimitsSpec,
    "retries": job.RetriesSpec,
}
# Keys without a field: nothing of them is left once a job is loaded, or this version cannot do them.
WITHOUT_FIELD = {
    "": {"$schema", "parameters", "services", "sweep"},
    "compute": {"shm_size", "docker_args", "container_packages"},
    "outputs.named.*": {"mode", "path", "register"},
}
# Fields without a key.
WITHOUT_KEY = {"": {"base_dir", "file", "source", "overrides"}, "compute": {"container"}, "dataset.*": {"sha256"}}


def walk(said: Said, where: str = "") -> Iterator[tuple[str, Said]]:
    yield where, said
    for key, child in said.get("properties", {}).items():
        yield from walk(child, f"{where}.{key}" if where else key)
    for inner, mark in (("additionalProperties", ".*"), ("items", "[]")):
        if isinstance(said.get(inner), dict):
            yield from walk(said[inner], where + mark)


TARGETS = [target_schema("docker"), target_schema("slurm")]
EVERY = [entry for content in (schema(), environment_schema(), *TARGETS) for entry in walk(content)]


@pytest.mark.parametrize("content", [schema(), environment_schema(), *TARGETS])
def test_it_is_a_schema(content: Said) -> None:
    Draft202012Validator.check_schema(content)
    assert not any("$ref" in said for _, said in walk(content))


@pytest.mark.parametrize(("where", "said"), EVERY)
def test_every_key_is_explained(where: str, said: Said) -> None:
    assert said["title"]
    assert said["description"].endswith(".") or "…" in said["description"]
    assert "type" in said
    if where:
        assert said["examples"]
    if "pattern" in said:
        assert said["x-says"]
        re.compile(said["pattern"])
    if "propertyNames" in said:
        assert said["propertyNames"]["x-says"]
    if "enum" in said:
        assert len(said["enum"]) == len(said["enumDescriptions"])
    if "object" in said["type"]:
        assert "additionalProperties" in said
    assert set(said) <= {
        *(
            "title",
            "description",
            "type",
            "examples",
            "default",
            "enum",
            "enumDescriptions",
            "pattern",
            "x-says",
            "x-also",
            "x-file",
            "x-path",
            "x-lone",
            "x-limits",
            "patternErrorMessage",
            "doNotSuggest",
        ),
        *("properties", "additionalProperties", "propertyNames", "required", "items", "minItems"),
        *("minimum", "maximum", "exclusiveMinimum", "$schema", "$id"),
    }


@pytest.mark.parametrize(("where", "said"), EVERY)
def test_examples_and_defaults_are_valid(where: str, said: Said) -> None:
    validator = Draft202012Validator(said)
    for example in [*said.get("examples", []), *([said["default"]] if "default" in said else [])]:
        assert list(validator.iter_errors(example)) == [], where


@pytest.mark.parametrize("section", SECTIONS)
def test_keys_and_fields_agree(section: str) -> None:
    said = dict(walk(schema()))[section]
    keys = set(said["properties"]) - WITHOUT_FIELD.get(section, set())
    fields = {field.name for field in dataclasses.fields(SECTIONS[section])} - WITHOUT_KEY.get(section, set())
    assert keys == fields


@pytest.mark.parametrize("section", SECTIONS)
def test_defaults_agree_with_those_of_the_fields(section: str) -> None:
    said = dict(walk(schema()))[section]
    optional = SECTIONS[section](**dict.fromkeys(REQUIRED.get(section, ()), ""))
    for name, key in said["properties"].items():
        value = getattr(optional, name, None)
        if "default" in key and hasattr(optional, name) and not dataclasses.is_dataclass(value):
            assert value == key["default"] or list(value or ()) == list(key["default"])
    container = job.ContainerSpec()
    assert container.shm_size == default("compute", "shm_size")
    assert list(container.docker_args) == default("compute", "docker_args")
    assert container.packages == default("compute", "container_packages")


def test_a_text_that_may_be_a_file_leads_to_a_key_for_files() -> None:
    found = {
        where: said.get("x-file", said.get("x-path")) for where, said in EVERY if {"x-file", "x-path"} & said.keys()
    }
    assert found == {"environment": "conda_file", "dataset.*": "paths"}
    for where, key in found.items():
        assert dict(EVERY)[where]["properties"][key]["x-says"] == "a path"


def test_a_value_alone_leads_to_a_key_of_its_mapping() -> None:
    found = {where: said for where, said in EVERY if "x-lone" in said}
    assert set(found) == {"distribution", "retries"}
    for said in found.values():
        assert said["x-lone"] in said["properties"]


def test_what_is_no_longer_so_is_not_said() -> None:
    stale = [
        where
        for where, said in EVERY
        if "this version" in json.dumps([said["description"], said.get("enumDescriptions")])
    ]
    assert stale == []


def test_lookup() -> None:
    assert lookup(("compute", "node_count")) == schema()["properties"]["compute"]["properties"]["node_count"]
    assert (lookup(("arguments", 3)) or {})["title"] == "Argument"
    assert (lookup(("dataset", "x", "paths", 0)) or {})["title"] == "Path"
    assert lookup(("compute", "nope")) is None
    assert lookup(("name", "nope")) is None


def test_defaults() -> None:
    assert default("limits", "grace_period_s") == 5
    assert default("code") is None
    with pytest.raises(KeyError, match=r"limits\.nope"):
        default("limits", "nope")


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (("command",), "`bash -e -c`"),
        (("display_name",), "shows it nowhere yet"),
        (("tags",), "recorded with it and shown"),
        (("environment", "base"), "no effect without containers"),
        (("compute", "shm_size"), "no effect without containers"),
        (("compute", "docker_args"), "no effect without containers"),
        (("compute", "container_packages"), "no effect without containers"),
        (("environment", "image"), "the same as base"),
        (("environment", "conda_file"), "`tfjob env lock`"),
        (("environment", "conda", "variables"), "the job's value holds"),
        (("compute", "node_type"), "no effect on the target local"),
        (("compute", "priority"), "no effect on other targets"),
        (("compute", "properties"), "no effect on the target local"),
    ],
)
def test_what_is_said_of_keys_is_so(where: tuple[str, ...], text: str) -> None:
    assert text in (lookup(where) or {})["description"]


@pytest.mark.parametrize(
    ("where", "choice", "text"),
    [
        (("compute", "runtime"), "auto", "containers if the environment is an image or a Dockerfile"),
        (("compute", "container_packages"), "mounted", "mounted at /opt/env"),
        (("dataset", "x", "mode"), "mount", "links to the files"),
        (("dataset", "x", "mode"), "download", "every task has a private copy"),
    ],
)
def test_what_is_said_of_choices_is_so(where: tuple[str, ...], choice: str, text: str) -> None:
    said = lookup(where) or {}
    assert text in dict(zip(said["enum"], said["enumDescriptions"], strict=True))[choice]


def test_what_is_handed_out_may_be_changed() -> None:
    schema()["properties"].clear()
    assert schema()["properties"]
