"""JSON files whose text is a function of their values, with a schema version and a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from activation_dataset.fields import FieldError, Json
from activation_dataset.format import SCHEMA_VERSION


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


def read_sealed(text: str | bytes, digest_field: str) -> dict[str, Json]:
    """The other fields of an object that `sealed_text` wrote.

    Raises:
        FieldError: the text is not JSON, has another schema version, or does not match its digest.
    """
    try:
        value = json.loads(text)
        version = value.pop("schema_version")
        digest = value.pop(digest_field)
        unchanged = digest == digest_of({**value, "schema_version": version})
    except (ValueError, RecursionError) as error:
        raise FieldError(f"not valid JSON: {error}") from None
    except (KeyError, AttributeError, TypeError):
        raise FieldError(f"not an object with schema_version and {digest_field}") from None
    if version != SCHEMA_VERSION:
        raise FieldError(
            f"schema_version is {version}, but this package reads {SCHEMA_VERSION}: use a version "
            "of the package that reads it, or extract again"
        )
    if not unchanged:
        raise FieldError(f"{digest_field} does not match: the file was changed or is damaged")
    result: dict[str, Json] = value
    return result


def _line(value: Json) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)
