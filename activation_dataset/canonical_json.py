"""JSON whose text is a function of its values, to be hashed and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Json = Any
"""A value that json can hold."""


def parse(text: str | bytes) -> Json:
    """Reads JSON; unlike json.loads, without NaN and infinities.

    Raises:
        ValueError: the text is not JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def plain(value: Mapping[str, Json]) -> Json:
    """As json gives it back: keys are strings, tuples are lists."""
    return json.loads(json.dumps(value, allow_nan=False))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _line(value: Json) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def digest_of(value: Mapping[str, Json]) -> str:
    """SHA-256, in hex, of the value on one line.

    Raises:
        ValueError: the value cannot be written as JSON.
    """
    return hashlib.sha256(_line(value).encode("utf-8")).hexdigest()


def canonical_text(value: Mapping[str, Json]) -> str:
    """A line for each field, and for each element of `batches` and `statistics`."""
    lines = []
    for key in sorted(value):
        field = value[key]
        if key == "batches" and field:
            text = "[\n    " + ",\n    ".join(map(_line, field)) + "\n  ]"
        elif key == "statistics" and field:
            parts = [f"{_line(layer)}: {_line(field[layer])}" for layer in sorted(field)]
            text = "{\n    " + ",\n    ".join(parts) + "\n  }"
        else:
            text = _line(field)
        lines.append(f"  {_line(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
