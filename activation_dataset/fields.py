"""Strict reading of JSON objects: each field once, of its type, and no other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class FieldError(ValueError):
    """A field of a JSON object that is missing, unknown, or not of its type."""


class Fields:
    """Takes the fields of one JSON object one by one; `done` refuses what was not taken.

    Every method raises `FieldError` with the path of the field, what is there and what is allowed.
    """

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, Mapping):
            raise FieldError(f"{where} is {_kind(value)}, expected an object")
        self._value, self._where = value, where
        self._taken: set[str] = set()

    def text(self, name: str, allowed: Sequence[str] = ()) -> str:
        value = self._take(name)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        if allowed and value not in allowed:
            raise self._wrong(name, value, " or ".join(f'"{each}"' for each in allowed))
        return value

    def integer(self, name: str, minimum: int = 0) -> int:
        value = self._take(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise self._wrong(name, value, f"an integer of at least {minimum}")
        return value

    def number(self, name: str) -> float:
        """A finite number of at least 0."""
        value = self._take(name)
        if not _is_number(value) or value < 0:
            raise self._wrong(name, value, "a finite number of at least 0")
        return float(value)

    def vector(self, name: str) -> NDArray[np.float64]:
        """A list of finite numbers, [n] float64."""
        value = self._take(name)
        if not isinstance(value, list) or not all(map(_is_number, value)):
            raise self._wrong(name, value, "a list of finite numbers")
        return np.array(value, np.float64)

    def integers(self, name: str) -> tuple[int, ...]:
        value = self._take(name)
        if not isinstance(value, list) or any(type(each) is not int or each < 0 for each in value):
            raise self._wrong(name, value, "a list of integers of at least 0")
        return tuple(value)

    def texts(self, name: str, allowed: Sequence[str] = ()) -> tuple[str, ...]:
        """A list of strings, of the allowed ones if there are any."""
        value = self._take(name)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self._wrong(name, value, "a list of strings")
        if allowed and any(each not in allowed for each in value):
            raise FieldError(f"{self.path(name)} is {value}, expected some of {list(allowed)}")
        return tuple(value)

    def items(self, name: str) -> list[Any]:
        """A list of anything."""
        value = self._take(name)
        if not isinstance(value, list):
            raise self._wrong(name, value, "a list")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """An object of anything."""
        value = self._take(name)
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return value

    def path(self, name: str) -> str:
        """The path of a field, as errors give it."""
        return f"{self._where}.{name}" if self._where else name

    def done(self) -> None:
        unknown = sorted(self._value.keys() - self._taken)
        if unknown:
            raise FieldError(f"{self.path(unknown[0])} is not a known field")

    def _take(self, name: str) -> Any:
        if name not in self._value:
            raise FieldError(f"{self.path(name)} is missing")
        self._taken.add(name)
        return self._value[name]

    def _wrong(self, name: str, value: object, allowed: str) -> FieldError:
        return FieldError(f"{self.path(name)} is {_kind(value)}, expected {allowed}")


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    # An integer too large for a float is no number that was written here.
    return type(value) is int and abs(value) <= 2**53


def _kind(value: object) -> str:
    """The value in few words, for errors."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
