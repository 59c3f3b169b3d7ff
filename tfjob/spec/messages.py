"""What the schema has against a file, in words: what was found, what is allowed, what to do.

`check` compares a tree with a schema and returns the problems, and the tree with everything marked bad that has one, so
that later checks look only at what is sound.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tfjob.spec import schema as schemas
from tfjob.spec.nearest import nearest
from tfjob.spec.scalars import resolve
from tfjob.spec.tree import (
    MapNode,
    Node,
    ScalarNode,
    Where,
    describe,
    find,
    key_place,
    plain,
    quoted,
    rebuilt,
    show,
    spoiled,
    walk,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tfjob.errors import Problem

__all__ = ["check"]

Homes = Mapping[str, tuple[tuple[str, str], ...]]

_MANY_KEYS = 12  # more are listed only where no hint can be given

_YAML_FILE = re.compile(r"[\w./~-]+\.ya?ml", re.IGNORECASE)
_PATH = re.compile(r"[^\s{}]*[/*][^\s{}]*")
_PLAIN_PATH = re.compile(r"[\w./~-]+")
_SIZE = re.compile(r"([1-9]\d{0,8})\s*([bkmg])(?:i?b)?", re.IGNORECASE)
_LIMITS = (
    "What a container may use is said in docker_args: [--cpus, 4, --memory, 16g]; on Slurm, what a job takes in "
    "sbatch_options of the target."
)
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION_PART = re.compile(
    r"(\d{1,9}(?:\.\d{1,9})?)\s*(?:(d)(?:ays?)?|(h)(?:(?:ou)?rs?)?|(m)(?:in(?:ute)?s?)?|(s)(?:ec(?:ond)?s?)?)\s*"
)
_DURATION = re.compile(f"(?:{_DURATION_PART.pattern})+")

_KINDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "array": "a list",
    "object": "a mapping (keys with values)",
    "null": "nothing",
}


def check(root: Node, schema: dict[str, Any]) -> tuple[list[Problem], Node]:
    """Return everything `schema` has against `root`, and `root` with the nodes concerned marked bad."""
    problems = list(_key_traps(root, schema))
    homes = functools.cache(lambda: _homes(schema))
    judged: dict[Where, Problem] = {}
    for error in sorted(_validator(schema).iter_errors(plain(root)), key=lambda error: error.validator != "type"):
        where: Where = tuple(error.absolute_path)
        node = find(root, where)
        if node is None or node.bad:
            continue
        if error.validator == "additionalProperties":
            section = _section(where, schema)
            problems += _unknown_keys(root, where, section, error.schema, homes)
        elif error.validator == "pattern" and "propertyNames" in error.absolute_schema_path:
            place = key_place(root, (*where, error.instance))
            message = f"found the key {quoted(error.instance)}; {error.schema['x-says']} is allowed"
            problems.append(place.problem((*where, error.instance), message))
        elif error.validator == "required":
            problems += _missing_keys(root, where, error.schema, node)
        elif where not in judged:
            message, hint = _explain(error, node, where)
            judged[where] = node.place.problem(where, message, hint)
    problems += judged.values()
    sound = rebuilt(root, lambda where, node: spoiled(node) if where in judged else node)
    return list(dict.fromkeys(problems)), sound


def _validator(schema: dict[str, Any]) -> Any:
    return _validator_class()(schema)


@functools.cache
def _validator_class() -> Any:
    from jsonschema import Draft202012Validator, ValidationError, validators  # noqa: PLC0415  # 75 ms

    def pattern(_validator: Any, expected: str, instance: Any, _schema: Any) -> Iterator[Any]:
        """As JSON Schema has it: unlike Python's, its $ does not match before a final newline."""
        if isinstance(instance, str) and not re.search(re.sub(r"\$$", r"\\Z", expected), instance):
            yield ValidationError(instance)

    extend: Any = validators.extend
    return extend(Draft202012Validator, {"pattern": pattern})


def _explain(error: Any, node: Node, where: Where) -> tuple[str, str]:
    """Return message and hint for one thing that the schema has against `node`."""
    found, said = describe(node), error.schema
    if error.validator == "enum":
        choices = [str(choice) for choice in said["enum"]]
        guess = nearest(str(plain(node)), choices)
        return f"found {found}; {_listed(choices, 'or')} is allowed", f"Did you mean {guess}?" if guess else ""
    if error.validator == "type":
        return f"found {found}; {_allowed(said)} is allowed", _type_hint(said, node, where)
    if error.validator == "maximum":
        return f"found {found}; {_allowed(said)} and at most {said['maximum']} is allowed", ""
    return f"found {found}; {_allowed(said)} is allowed", _file_hint(said, node, where) or _size_hint(node, where)


def _allowed(said: dict[str, Any]) -> str:
    """Return in words what `said` allows."""
    if "enum" in said:
        return _listed(said["enum"], "or")
    kinds: list[str] = []
    for kind in schemas.types(said):
        if kind == "boolean":
            kinds += ("true", "false")
        else:
            kinds.append(
                said["x-says"] if kind == "string" and "x-says" in said else _KINDS[kind] + _bounds(said, kind)
            )
    return _listed(kinds, "or")


def _bounds(said: dict[str, Any], kind: str) -> str:
    if kind == "array":
        return " that is not empty" if said.get("minItems") else ""
    if kind not in {"integer", "number"}:
        return ""
    if "exclusiveMinimum" in said:
        return f" above {said['exclusiveMinimum']}"
    return f" of at least {said['minimum']}" if "minimum" in said else ""


def _type_hint(said: dict[str, Any], node: Node, where: Where) -> str:
    if isinstance(node, ScalarNode):
        return _lone_hint(said, node, where) or _size_hint(node, where) or _scalar_hint(said, node, where)
    if isinstance(node, MapNode) and "string" in schemas.types(said):
        return 'If it is one text that holds ": ", put it in quotes.'
    return ""


def _file_hint(said: dict[str, Any], node: Node, where: Where) -> str:
    """Say how to name a file where a text is a name of something else, as `x-file` has it, and `node` is like a path."""
    text = plain(node)
    if "x-file" in said and isinstance(text, str) and _YAML_FILE.fullmatch(text):
        return f"Did you mean {show(where)}: {{{said['x-file']}: {text}}}?"
    if "x-path" in said and isinstance(text, str) and _PATH.fullmatch(text):
        path = text if _PLAIN_PATH.fullmatch(text) else quoted(text)
        return f"Did you mean {show(where)}: {{{said['x-path']}: [{path}]}}?"
    return ""


def _size_hint(node: Node, where: Where) -> str:
    """Say how a size is written, where one is allowed that has its unit as one small letter."""
    if not where or where[-1] != "shm_size" or not isinstance(node, ScalarNode):
        return ""
    if match := _SIZE.fullmatch(node.text.strip()):
        return f"Did you mean {match[1]}{match[2].lower()}?"
    return f"Give it a unit: {node.text}g is GiB." if node.text.isdecimal() else ""


def _lone_hint(said: dict[str, Any], node: ScalarNode, where: Where) -> str:
    """Say which key a value is for that stands where a mapping is allowed, as `x-lone` has it."""
    child = said["properties"][said["x-lone"]] if "x-lone" in said else {}
    if node.value in child.get("enum", ()) or (child and _fits(node.value, child)):
        return f"Did you mean {show(where)}: {{{said['x-lone']}: {node.text}}}?"
    return ""


def _scalar_hint(said: dict[str, Any], node: ScalarNode, where: Where) -> str:
    if node.value is None:
        if where and isinstance(where[-1], int):
            return 'Give it a value, remove it, or write "null" for the text.'
        return "Give it a value, or remove the key."
    if where and str(where[-1]).endswith("_s") and (seconds := _seconds(node.text)):
        return f"In seconds: {seconds}."
    if isinstance(node.value, str) and not node.plain and _fits(resolve(node.value)[0], said):
        return "Remove the quotes."
    could_be_text = "string" in schemas.types(said) and "enum" not in said
    if could_be_text and not isinstance(node.value, str) and re.search(said.get("pattern", ""), node.text):
        return f'Put it in quotes: "{node.text}".'
    return "Put it in brackets: [ ]." if "array" in schemas.types(said) else ""


def _seconds(text: str) -> str:
    """Return the time `text` (``10m``, ``1h 30min``) in seconds; empty where it is none."""
    if not _DURATION.fullmatch(text.lower()):
        return ""
    return (
        f"{sum(float(number) * _UNITS[''.join(units)] for number, *units in _DURATION_PART.findall(text.lower())):.10g}"
    )


def _fits(value: object, said: dict[str, Any]) -> bool:
    kinds = {bool: "boolean", int: "integer", float: "number"}
    kind = kinds.get(type(value))
    return kind in schemas.types(said) or (kind == "integer" and "number" in schemas.types(said))


def _missing_keys(root: Node, where: Where, said: dict[str, Any], node: Node) -> Iterator[Problem]:
    for key in said["required"]:
        if isinstance(node, MapNode) and key not in node.entries:
            example = said["properties"][key]["examples"][0]
            shown = f", such as {example}" if isinstance(example, str | int) else ""
            message = f"the key {key} is missing; it is required"
            yield key_place(root, where).problem(where, message, f"Add {key}{shown}.")


def _unknown_keys(
    root: Node, where: Where, section: str, said: dict[str, Any], homes: Callable[[], Homes]
) -> Iterator[Problem]:
    node = find(root, where)
    known = [key for key in said["properties"] if not key.startswith("$")]
    for key in node.entries if isinstance(node, MapNode) else ():
        if key in said["properties"]:
            continue
        hint = _LIMITS if key.lower() in said.get("x-limits", ()) else _key_hint(key, section, known, homes())
        is_listed = len(known) <= _MANY_KEYS or not hint
        allowed = f"{_listed(known, 'or')} is allowed" if is_listed else "see `tfjob schema` for the allowed ones"
        message = f"found the unknown key {quoted(key)}; {allowed}"
        yield key_place(root, (*where, key)).problem((*where, key), message, hint)


def _key_hint(key: str, section: str, known: list[str], homes: Homes) -> str:
    """Say where the unknown `key` belongs, or which known one it is probably meant to be."""
    found = [home for home in homes.get(key.lower(), ()) if not f"{section}.".startswith(f"{_way(*home)}.")]
    if here := [name for place, name in found if place == section]:
        return f"Did you mean {_listed(here, 'or')}?"  # another name, or other capitals, of a key of this very mapping
    if len(found) == 1:
        place, name = found[0]
        return f"It belongs under {place}." if name == key and place else f"Did you mean {_way(*found[0])}?"
    if close := nearest(key, known):
        return f"Did you mean {close}?"
    return f"Did you mean {_listed([_way(*home) for home in found], 'or')}?" if 1 < len(found) <= 3 else ""


def _section(where: Where, schema: dict[str, Any]) -> str:
    """Return what `where` is called in `Homes`: keys of the reader's own choice are NAME, indexes are left out."""
    section, said = "", schema
    for part in where:
        if isinstance(part, int):
            said = said["items"]
        elif part in said.get("properties", ()):
            section, said = _way(section, part), said["properties"][part]
        else:
            section, said = _way(section, "NAME"), said["additionalProperties"]
    return section


def _way(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name


def _homes(schema: dict[str, Any]) -> Homes:
    """Return where each key of `schema`, or another tool's name for it, belongs: sections, and the keys there."""
    homes: dict[str, list[tuple[str, str]]] = {}
    waiting: list[tuple[str, dict[str, Any]]] = [("", schema)]
    for section, said in waiting:  # which grows as it goes
        for key, child in said.get("properties", {}).items():
            for name in (key, *child.get("x-also", ())):
                homes.setdefault(name.lower(), []).append((section, key))
            waiting.append((_way(section, key), child))
        for inner, mark in (("additionalProperties", ".NAME"), ("items", "")):
            if isinstance(said.get(inner), dict):
                waiting.append((section + mark, said[inner]))
    return {name: tuple(places) for name, places in homes.items()}


def _key_traps(root: Node, schema: dict[str, Any]) -> Iterator[Problem]:
    """Find unquoted keys that YAML 1.1 does not read as text, in mappings whose keys are free."""
    for where, node in walk(root):
        if not isinstance(node, MapNode):
            continue
        said = schemas.lookup(where, schema)
        if said is None or said.get("additionalProperties") is False:
            continue
        for key, written in node.keys.items():
            # y and n are text to the libraries people use, YAML 1.1 or not, and good names of parameters
            trap = resolve(key)[1] if written.plain and key in node.entries and key.lower() not in {"y", "n"} else None
            if trap:
                message = trap.message.replace("quoted text, true or false is allowed", "quoted text is allowed")
                yield written.place.problem((*where, key), message, f"Quote it: {quoted(key)}.")


def _listed(words: list[str], last: str) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
