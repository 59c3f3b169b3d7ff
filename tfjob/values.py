"""Frozen values to JSON and back: what lets a Plan lie in a file, travel to a node, and be the same value there.

Understands dataclasses, tuples, `X | None`, scalars, Path, and `Pairs` (an ordered mapping of strings, kept as a tuple so
that values stay hashable, written as a JSON object so that people can read it).
"""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["Pairs", "decode", "encode"]

Pairs = tuple[tuple[str, str], ...]
_PLAIN = {str, int, float, bool, type(None)}
_T = TypeVar("_T")


def encode(value: Any) -> Any:
    """The JSON form of a frozen value: dataclasses and Pairs become objects, tuples become lists."""
    if is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        return {f.name: _encode_as(hints[f.name], getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple | list):
        return [item if type(item) in _PLAIN else encode(item) for item in value]
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def decode(kind: type[_T], value: Any) -> _T:
    """The value of type `kind` whose JSON form is `value`. Unknown keys are ignored: a newer tfjob may have written them.

    Raises KeyError, TypeError or ValueError when `value` is not such a form.
    """
    return _decode(kind, value)  # type: ignore[no-any-return]  # the type is the caller's


def _encode_as(hint: Any, value: Any) -> Any:
    return dict(value) if hint == Pairs else encode(value)


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(kind: type) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]


def _decode(hint: Any, value: Any) -> Any:  # noqa: C901, PLR0911  # a table of types, one line each
    if hint == Pairs:
        return tuple((key, _decode(str, item)) for key, item in _decode(dict, value).items())
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _decode_union(hint, value)
    if origin is tuple:
        return _decode_tuple(get_args(hint), value)
    if hint is Any:
        return value
    if origin is Literal:
        if value not in get_args(hint):
            raise ValueError(f"found {value!r}; {', '.join(map(str, get_args(hint)))} are allowed")
        return value
    if is_dataclass(hint):
        _decode(dict, value)
        hints = _hints(hint)  # type: ignore[arg-type]  # a dataclass type, by the check above
        known = {f.name: _decode(hints[f.name], value[f.name]) for f in fields(hint) if f.name in value}
        return hint(**known)  # type: ignore[operator]  # the same
    if hint is Path:
        return Path(_decode(str, value))
    if hint is float and type(value) is int:
        return float(value)
    kind = origin or hint
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"found {value!r} where {kind.__name__} belongs")
    return value


def _decode_union(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    (kind,) = (arg for arg in get_args(hint) if arg is not type(None))
    return _decode(kind, value)


def _decode_tuple(arguments: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    _decode(list, value)  # a text is a sequence too, and never what was written here
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        if arguments[0] in _PLAIN:  # there may be tens of thousands, and no reason to ask of each what is to be done
            return tuple([item if type(item) is arguments[0] else _decode(arguments[0], item) for item in value])
        inner = get_args(arguments[0]) if get_origin(arguments[0]) is tuple else ()
        if inner and _PLAIN.issuperset(inner):
            kinds = list(inner)
            return tuple(
                [tuple(item) if list(map(type, item)) == kinds else _decode(arguments[0], item) for item in value]
            )
        return tuple(_decode(arguments[0], item) for item in value)
    return tuple(_decode(kind, item) for kind, item in zip(arguments, value, strict=True))
