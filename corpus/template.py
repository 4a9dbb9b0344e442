"""How a task becomes text: a template of layouts with placeholders, read from a TOML file.

A template's file has the fields of `PromptTemplate`, all of them required. To write one, copy a
file of `corpus/templates/` and give its path to `load_template`; no code is involved.
"""

import dataclasses
import string
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType

# Of each field, the placeholders that it must have, once, and those that it may have.
_PLACEHOLDERS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "system": (frozenset(), frozenset()),
    "preamble": (frozenset(), frozenset()),
    "example": (frozenset({"input", "output"}), frozenset({"index"})),
    "query": (frozenset({"input"}), frozenset()),
    "grid": (frozenset({"rows"}), frozenset({"height", "width"})),
    "row": (frozenset({"cells"}), frozenset({"number"})),
    "row_separator": (frozenset(), frozenset()),
    "cell_separator": (frozenset(), frozenset()),
}


class TemplateError(ValueError):
    """A template that cannot be used; the message names its file, the field and what is allowed."""


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """How a task becomes text: `preamble`, an `example` for each training pair, then `query`.

    `{name}` is a placeholder, `{{` and `}}` are braces.

    Attributes:
        name: what the template is called in the metadata.
        chat: whether the text is a user's message, to go through the tokenizer's chat template.
        system: the system message of a chat, "" for none. Must be "" if not `chat`.
        preamble: the beginning of the text.
        example: a training pair: `{input}` and `{output}`, and if wanted `{index}`, from 1.
        query: a test pair: `{input}`. The model continues, or replies, after it.
        grid: a grid: `{rows}`, and if wanted `{height}` and `{width}`.
        row: a row of a grid: `{cells}`, and if wanted `{number}`, from 1.
        row_separator: what stands between the rows, such as a newline.
        cell_separator: what stands between the cells, such as nothing or a space.

    Raises:
        TemplateError: a placeholder is missing, doubled or unknown, or a brace is not closed.
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
            _check_placeholders(field, getattr(self, field))
        if not self.name:
            raise TemplateError("name: must not be empty; the metadata records it")
        if self.system and not self.chat:
            raise TemplateError("system: must be empty where chat is false; use preamble")

    def to_json(self) -> dict[str, str | bool]:
        """The whole template as a JSON object; `PromptTemplate(**fields)` is its inverse."""
        return dataclasses.asdict(self)


def shipped_templates() -> tuple[str, ...]:
    """The names of the templates that come with the package."""
    files = resources.files("corpus").joinpath("templates").iterdir()
    return tuple(sorted(Path(file.name).stem for file in files if file.name.endswith(".toml")))


def load_template(name_or_path: str) -> PromptTemplate:
    """A shipped template by its name, or any other by the path of its TOML file.

    Raises:
        TemplateError: there is no such template, or its file is not a valid one.
    """
    if name_or_path in shipped_templates():
        file = resources.files("corpus").joinpath("templates", f"{name_or_path}.toml")
        return parse_template(file.read_text("utf-8"), name_or_path)
    try:
        text = Path(name_or_path).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(
            f"prompt template {name_or_path!r} is neither one of {', '.join(shipped_templates())} "
            f"nor a TOML file that can be read: {error}"
        ) from error
    return parse_template(text, name_or_path)


def parse_template(text: str, path: str) -> PromptTemplate:
    """Read a template from TOML text; `path` names it in errors.

    Raises:
        TemplateError: not TOML, a field is missing, unknown or of the wrong type, or a placeholder
            is wrong.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TemplateError(f"{path}: not valid TOML: {error}") from error
    names = [field.name for field in dataclasses.fields(PromptTemplate)]
    for field in names:
        if field not in values:
            raise TemplateError(f"{path}: {field} is missing; a template has {', '.join(names)}")
    for field, value in values.items():
        if field not in names:
            raise TemplateError(f"{path}: {field} is unknown; a template has {', '.join(names)}")
        expected = bool if field == "chat" else str
        if not isinstance(value, expected):
            kind = "true or false" if field == "chat" else "a string"
            raise TemplateError(f"{path}: {field} is {value!r}; it must be {kind}")
    try:
        return PromptTemplate(**values)
    except TemplateError as error:
        raise TemplateError(f"{path}: {error}") from None


@dataclass(frozen=True, slots=True)
class Filled:
    """A layout with its placeholders filled in, and the offset at which each value starts."""

    text: str
    starts: Mapping[str, int]


def fill(layout: str, values: Mapping[str, str] = MappingProxyType({})) -> Filled:
    """Put `values` where a layout has their names."""
    parts: list[str] = []
    starts: dict[str, int] = {}
    position = 0
    for literal, placeholder in _segments(layout):
        parts.append(literal)
        position += len(literal)
        if placeholder is not None:
            starts[placeholder] = position
            parts.append(values[placeholder])
            position += len(values[placeholder])
    return Filled("".join(parts), starts)


@lru_cache(maxsize=64)
def _segments(layout: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((literal, name) for literal, name, _, _ in string.Formatter().parse(layout))


def _check_placeholders(field: str, layout: str) -> None:
    required, optional = _PLACEHOLDERS[field]
    known = sorted(required | optional)
    allowed = ", ".join(f"{{{name}}}" for name in known) or "none"
    try:
        found = [part[1:] for part in string.Formatter().parse(layout) if part[1] is not None]
    except ValueError as error:
        raise TemplateError(f"{field}: {error}; write {{{{ and }}}} for braces") from None
    names = [name for name, _, _ in found]
    for name, format_spec, conversion in found:
        if name not in known or format_spec or conversion:
            raise TemplateError(
                f"{field}: {{{name}}} is not a placeholder here; allowed: {allowed} (without "
                "format or index; write {{ and }} for braces)"
            )
    for name in sorted(required):
        if names.count(name) != 1:
            raise TemplateError(
                f"{field}: {{{name}}} stands {names.count(name)} times; it must stand once"
            )
