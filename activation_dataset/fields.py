"""Strict conversion between dataclasses and JSON, with exactly the fields and their types."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from activation_dataset.sites import Site, forward_order, parse_site

_type_hints = cache(get_type_hints)

Json = Any
"""Any value that JSON can represent."""

_ALLOWED = {
    str: "a string",
    int: "an integer of at least 0",
    float: "a finite number of at least 0",
    Site: "a layer number or the name of another site",
    tuple: "a list",
    Mapping: "an object",
    Literal: "an allowed string",
    np.ndarray: "a list of finite numbers",
}


class FieldError(ValueError):
    """Error for a field of a JSON object that is missing, unknown or of the wrong type."""


def to_json(value: Any) -> Json:
    """Convert a dataclass, mapping, sequence, array or object with `to_json` to a JSON value."""
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
        kind: type of the value: a dataclass, str, int (at least 0), float (finite, at least 0), a
            Literal, Site, tuple[X, ...], Mapping[str | int | Site, X], NDArray (float64, finite),
            Any, or a class with a class method `from_json(value, where)`.
        value: JSON value.
        where: path of the value in error messages; empty for the whole file.

    Raises:
        FieldError: if a field is missing, unknown or wrong. The message gives the path of the
            field, its value and the allowed values.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if hasattr(kind, "from_json"):
        return kind.from_json(value, where)
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    if origin is tuple and isinstance(value, list):
        items = enumerate(value)
        return tuple(from_json(arguments[0], each, f"{where}[{index}]") for index, each in items)
    if origin is Mapping and isinstance(value, dict):
        return _mapping(arguments[0], arguments[1], value, where)
    if origin is Literal and value in arguments:
        return value
    if origin is np.ndarray and (vector := _numbers(value)) is not None:
        return vector
    return value if kind is Any else _plain(kind, value, where)


def check_names(found: Collection[str], expected: Collection[str], where: str) -> None:
    """Check that an object has exactly the expected fields.

    Raises:
        FieldError: if a field is missing or unknown.
    """
    for name in expected:
        if name not in found:
            raise FieldError(f"{_path(where, name)} is missing")
    for name in found:
        if name not in expected:
            raise FieldError(f"{_path(where, name)} is not a known field")


def _dataclass(kind: Any, value: Json, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(value, where, "an object")
    hints = _type_hints(kind)
    names = [each.name for each in fields(kind)]
    check_names(value, names, where)
    parts = {name: from_json(hints[name], value[name], _path(where, name)) for name in names}
    try:
        return kind(**parts)
    except ValueError as error:
        raise FieldError(f"{where}: {error}" if where else str(error)) from None


def _mapping(key_kind: Any, kind: Any, value: dict[str, Json], where: str) -> dict[Any, Any]:
    read_key: Callable[[str], Any] = parse_site if key_kind == Site else key_kind
    found = {}
    for text, each in value.items():
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


def _plain(kind: Any, value: Json, where: str) -> Any:
    if kind is str and isinstance(value, str):
        return value
    if kind is int and type(value) is int and value >= 0:
        return value
    if kind is float and (number := _numbers([value])) is not None and number[0] >= 0:
        return float(value)
    if kind == Site and type(value) in (int, str):
        with suppress(ValueError):
            if parse_site(str(value)) == value:
                return value
    raise _wrong(value, where, _ALLOWED.get(kind) or _ALLOWED[get_origin(kind)])


def _numbers(value: Json) -> NDArray[np.float64] | None:
    if not isinstance(value, list) or not set(map(type, value)) <= {int, float}:
        return None
    try:
        numbers = np.array(value, np.float64)
    except OverflowError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _wrong(value: Json, where: str, allowed: str) -> FieldError:
    shown = f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:80]
    return FieldError(f"{where or 'the file'} is {shown}, expected {allowed}")
