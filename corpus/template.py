"""Templates of the text of a task: layouts with placeholders, read from a TOML file.

A template file has the fields of `PromptTemplate`, all of which are required. To write a template,
copy a file from `corpus/templates/` and give its path to `load_template`.
"""

import dataclasses
import os
import string
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

# Placeholders that each field must have exactly once, and optional placeholders.
_PLACEHOLDERS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "system": ((), ()),
    "preamble": ((), ()),
    "example": (("input", "output"), ("index",)),
    "query": (("input",), ()),
    "grid": (("rows",), ("height", "width")),
    "row": (("cells",), ("number",)),
    "row_separator": ((), ()),
    "cell_separator": ((), ()),
}

STAND_INS = "".join(map(chr, range(0xFDD0, 0xFDD0 + 20)))
"""Noncharacters that stand for the digits of inputs and outputs while a prompt is rendered."""


class TemplateError(ValueError):
    """An invalid template. The message names its file, the field and what is allowed."""


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """Layout of a task's text: `preamble`, an `example` for each training pair, then `query`.

    `{name}` is a placeholder; `{{` and `}}` are braces.

    Attributes:
        name: name of the template in the metadata.
        chat: True if the text is a user's message for the tokenizer's chat template.
        system: system message of a chat, "" for none. Must be "" if `chat` is False.
        preamble: beginning of the text.
        example: layout of a training pair: `{input}`, `{output}` and optionally `{index}`, from 1.
        query: layout of a test pair: `{input}`. The model continues or replies after it.
        grid: layout of a grid: `{rows}` and optionally `{height}` and `{width}`.
        row: layout of a row: `{cells}` and optionally `{number}`, from 1.
        row_separator: text between rows, such as a newline.
        cell_separator: text between cells, such as a space, or "" for none.

    Raises:
        TemplateError: if a placeholder is missing, repeated or unknown, or a brace is not closed.
    """

    name: str
    chat: bool
    system: str
    preamble: str
    example: str
    query: str
    grid: str
    row: str
    row_separator: str
    cell_separator: str

    def __post_init__(self) -> None:
        for field in _PLACEHOLDERS:
            _check_layout(field, getattr(self, field))
        if not self.name:
            raise TemplateError("name: must not be empty, because the metadata records it")
        if self.system and not self.chat:
            raise TemplateError("system: must be empty if chat is false; use preamble")

    def to_json(self) -> dict[str, str | bool]:
        """Return the template as a JSON object; `PromptTemplate(**fields)` is the inverse."""
        return dataclasses.asdict(self)


def shipped_templates() -> tuple[str, ...]:
    """Return the names of the templates that come with the package."""
    files = resources.files("corpus").joinpath("templates").iterdir()
    return tuple(sorted(Path(file.name).stem for file in files if file.name.endswith(".toml")))


def load_template(name_or_path: str | os.PathLike[str]) -> PromptTemplate:
    """Load a shipped template by its name, or another template by the path of its TOML file."""
    name_or_path = os.fspath(name_or_path)
    if name_or_path in shipped_templates():
        file = resources.files("corpus").joinpath("templates", f"{name_or_path}.toml")
        return parse_template(file.read_text("utf-8"), name_or_path)
    try:
        text = Path(name_or_path).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(
            f"prompt template {name_or_path!r} is neither one of {', '.join(shipped_templates())} "
            f"nor a readable TOML file: {error}"
        ) from error
    return parse_template(text, name_or_path)


def parse_template(text: str, path: str) -> PromptTemplate:
    """Read a template from TOML text, or raise `TemplateError`; `path` names it in errors."""
    try:
        values = tomllib.loads(text)
        fields = {field.name: field.type for field in dataclasses.fields(PromptTemplate)}
        for name in (*fields, *values):
            if name not in values or name not in fields:
                fault = "missing" if name in fields else "unknown"
                raise TemplateError(f"{name} is {fault}; a template has {', '.join(fields)}")
            if type(values[name]) is not fields[name]:
                kind = "true or false" if fields[name] is bool else "a string"
                raise TemplateError(f"{name} is {values[name]!r}; it must be {kind}")
        return PromptTemplate(**values)
    except tomllib.TOMLDecodeError as error:
        raise TemplateError(f"{path}: not valid TOML: {error}") from error
    except TemplateError as error:
        raise TemplateError(f"{path}: {error}") from None


def _check_layout(field: str, layout: str) -> None:
    required, optional = _PLACEHOLDERS[field]
    allowed = ", ".join(f"{{{name}}}" for name in (*required, *optional)) or "none"
    try:
        parts = [part[1:] for part in string.Formatter().parse(layout) if part[1] is not None]
    except ValueError as error:
        raise TemplateError(f"{field}: {error}; write {{{{ and }}}} for braces") from None
    for name, format_spec, conversion in parts:
        if name not in (*required, *optional) or format_spec or conversion:
            raise TemplateError(
                f"{field}: {{{name}}} is not a placeholder here; allowed: {allowed} (without "
                "format or index; write {{ and }} for braces)"
            )
    for name in required:
        if (count := [part[0] for part in parts].count(name)) != 1:
            raise TemplateError(f"{field}: {{{name}}} occurs {count} times; it must occur once")
    if not set(STAND_INS).isdisjoint(layout):
        raise TemplateError(f"{field}: the characters U+FDD0 to U+FDE3 are not allowed")
