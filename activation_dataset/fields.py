"""Strict conversion between dataclasses and JSON: every field, of its type, and no other."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from activation_dataset.sites import Site, forward_order, parse_site

Json = Any
"""A value that json can hold."""

_LARGEST_INTEGER = 2**53  # of those that float64 holds exactly


class FieldError(ValueError):
    """A field of a JSON object that is missing, unknown, or not of its type."""


def to_json(value: Any) -> Json:
    """The value for json of a dataclass, mapping, sequence, array or plain value.

    A class with a method `to_json` is converted by it.
    """
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value):
        return {each.name: to_json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def from_json(kind: Any, value: Json, where: str) -> Any:
    """Restore a value of a type from the result of `to_json`.

    Args:
        kind: the type: a dataclass, str, int (at least 0), float (finite, at least 0), a Literal,
            Site, tuple[X, ...], Mapping[str | int | Site, X], NDArray (float64, finite), or Any. A
            class with a class method `from_json(value, where)` is converted by it.
        value: the JSON.
        where: path of the value in errors; empty for the whole file.

    Raises:
        FieldError: a field is missing, unknown or wrong. The message gives its path, the value, and
            what is allowed.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if hasattr(kind, "from_json"):
        return kind.from_json(value, where)
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    if origin is tuple:
        items = enumerate(_expect(list, value, where, "a list"))
        return tuple(from_json(arguments[0], each, f"{where}[{index}]") for index, each in items)
    if origin is Mapping:
        return _mapping(*arguments, value, where)
    if origin is np.ndarray:
        return _vector(value, where)
    if origin is Literal:
        if value not in arguments:
            raise _wrong(value, where, " or ".join(f'"{each}"' for each in arguments))
        return value
    if kind == Site:
        return _site(value, where)
    return value if kind is Any else _plain(kind, value, where)


def check_names(found: Collection[str], expected: Collection[str], where: str) -> None:
    """Raise FieldError unless an object has exactly the expected fields."""
    for name in expected:
        if name not in found:
            raise FieldError(f"{_path(where, name)} is missing")
    for name in found:
        if name not in expected:
            raise FieldError(f"{_path(where, name)} is not a known field")


def _dataclass(kind: Any, value: Json, where: str) -> Any:
    value = _expect(dict, value, where, "an object")
    hints = get_type_hints(kind)
    names = [each.name for each in fields(kind)]
    check_names(value, names, where)
    parts = {name: from_json(hints[name], value[name], _path(where, name)) for name in names}
    try:
        return kind(**parts)
    except ValueError as error:
        raise FieldError(f"{where}: {error}" if where else str(error)) from None


def _mapping(key_kind: Any, kind: Any, value: Json, where: str) -> dict[Any, Any]:
    read_key = {str: str, int: int, Site: parse_site}[key_kind]
    found = {}
    for text, each in _expect(dict, value, where, "an object").items():
        try:
            key = read_key(text)
        except ValueError as error:
            raise FieldError(f"{where} has the key {text!r}: {error}") from None
        if str(key) != text:
            raise FieldError(f"{where} has the key {text!r}, expected {str(key)!r}")
        found[key] = from_json(kind, each, _path(where, text))
    if key_kind == Site:
        return {site: found[site] for site in sorted(found, key=forward_order)}
    return found


def _vector(value: Json, where: str) -> NDArray[np.float64]:
    if not isinstance(value, list) or not all(map(_is_number, value)):
        raise _wrong(value, where, "a list of finite numbers")
    return np.array(value, np.float64)


def _site(value: Json, where: str) -> Site:
    try:
        site = parse_site(str(value))
    except ValueError as error:
        raise FieldError(f"{where}: {error}") from None
    if site != value or type(site) is not type(value):
        raise _wrong(value, where, repr(site))
    return site


def _plain(kind: type, value: Json, where: str) -> Any:
    if kind is int:
        if type(value) is not int or value < 0:
            raise _wrong(value, where, "an integer of at least 0")
        return value
    if kind is float:
        if not _is_number(value) or value < 0:
            raise _wrong(value, where, "a finite number of at least 0")
        return float(value)
    return _expect(kind, value, where, "a string")


def _expect(kind: type, value: Json, where: str, allowed: str) -> Any:
    if not isinstance(value, kind):
        raise _wrong(value, where, allowed)
    return value


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return type(value) is int and abs(value) <= _LARGEST_INTEGER


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _wrong(value: Json, where: str, allowed: str) -> FieldError:
    shown = f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:80]
    return FieldError(f"{where or 'the file'} is {shown}, expected {allowed}")
