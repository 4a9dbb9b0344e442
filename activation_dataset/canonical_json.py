"""JSON files whose text is a function of their values, with a schema version and a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from activation_dataset.fields import FieldError, Fields
from activation_dataset.format import SCHEMA_VERSION

Json = Any
"""A value that json can hold."""


def plain(value: Mapping[str, Json]) -> Json:
    """The value after a round trip through JSON: keys are strings, tuples are lists."""
    return json.loads(json.dumps(value, allow_nan=False))


def digest_of(value: Mapping[str, Json]) -> str:
    """SHA-256, in hex, of the value on one line.

    Raises:
        ValueError: the value cannot be written as JSON.
    """
    return hashlib.sha256(_line(value).encode("utf-8")).hexdigest()


def sealed_text(value: Mapping[str, Json], digest_field: str) -> str:
    """Text of an object, with the schema version and its own digest in two more fields.

    The text has a line for each field, and for each element of `batches` and `statistics`.
    """
    versioned = {**value, "schema_version": SCHEMA_VERSION}
    sealed = {**versioned, digest_field: digest_of(versioned)}
    lines = []
    for key in sorted(sealed):
        field = sealed[key]
        if key == "batches" and field:
            text = "[\n    " + ",\n    ".join(map(_line, field)) + "\n  ]"
        elif key == "statistics" and field:
            parts = [f"{_line(each)}: {_line(field[each])}" for each in sorted(field)]
            text = "{\n    " + ",\n    ".join(parts) + "\n  }"
        else:
            text = _line(field)
        lines.append(f"  {_line(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_sealed(text: str | bytes, digest_field: str) -> Fields:
    """The other fields of an object that `sealed_text` wrote.

    Raises:
        FieldError: the text is not JSON, has another schema version, or does not match its digest.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FieldError(f"not valid JSON: {error}") from None
    fields = Fields(value, "")
    version = fields.integer("schema_version")
    if version != SCHEMA_VERSION:
        remedy = "install a newer version of it" if version > SCHEMA_VERSION else "extract again"
        raise FieldError(
            f"schema_version is {version}, but this package reads {SCHEMA_VERSION}: {remedy}"
        )
    digest = fields.text(digest_field)
    rest = {name: each for name, each in value.items() if name != digest_field}
    try:
        unchanged = digest == digest_of(rest)
    except (ValueError, RecursionError) as error:
        raise FieldError(f"a value that cannot be written: {error}") from None
    if not unchanged:
        raise FieldError(f"{digest_field} does not match: the file was changed or is damaged")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _line(value: Json) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)
