"""JSON files with a canonical text, a schema version and a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from activation_dataset.fields import FieldError, Json
from activation_dataset.format import SCHEMA_VERSION


def digest_of(value: Mapping[str, Json]) -> str:
    """Return the SHA-256, in hex, of a value as one line of JSON.

    Raises:
        ValueError: if JSON cannot represent the value.
    """
    return hashlib.sha256(_line(value).encode("utf-8")).hexdigest()


def sealed_text(value: Mapping[str, Json], digest_field: str) -> str:
    """Return the text of an object with two additional fields, the schema version and a digest.

    The second line has the digest: the SHA-256, in hex, of the text without this line. The fields
    follow, sorted by name, one per line. Each element of `batches` and `statistics` also has its
    own line.
    """
    versioned = {**value, "schema_version": SCHEMA_VERSION}
    lines = [f"  {_line(key)}: {_lines(key, versioned[key])}" for key in sorted(versioned)]
    rest = ",\n".join(lines) + "\n}\n"
    return f"{{\n{_digest_line(rest.encode(), digest_field)}\n{rest}"


def read_sealed(text: str | bytes, digest_field: str) -> dict[str, Json]:
    """Return the fields of an object that `sealed_text` wrote, without version and digest.

    Raises:
        FieldError: if `sealed_text` did not write this text.
    """
    content = text.encode() if isinstance(text, str) else text
    try:
        value = json.loads(content)
        del value[digest_field]
        version = value.pop("schema_version")
    except (ValueError, RecursionError) as error:
        raise FieldError(f"not valid JSON: {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise FieldError(f"not an object with schema_version and {digest_field}") from None
    if version != SCHEMA_VERSION:
        raise FieldError(
            f"schema_version is {version}, but this package reads {SCHEMA_VERSION}: use a version "
            f"of the package that reads {version}, or extract again"
        )
    opening, _, rest = content.partition(b"\n")
    line, _, rest = rest.partition(b"\n")
    if opening != b"{" or line.decode(errors="replace") != _digest_line(rest, digest_field):
        raise FieldError(f"{digest_field} does not match: the file was changed or is damaged")
    result: dict[str, Json] = value
    return result


def _digest_line(rest: bytes, digest_field: str) -> str:
    digest = hashlib.sha256(b"{\n" + rest).hexdigest()
    return f'  "{digest_field}": "{digest}",'


def _lines(key: str, value: Json) -> str:
    if key == "batches" and value:
        return "[\n    " + ",\n    ".join(map(_line, value)) + "\n  ]"
    if key == "statistics" and value:
        parts = [f"{_line(each)}: {_line(value[each])}" for each in sorted(value)]
        return "{\n    " + ",\n    ".join(parts) + "\n  }"
    return _line(value)


def _line(value: Json) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)
