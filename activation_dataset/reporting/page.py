"""Self-contained HTML page: tiles, then sections in two columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template


@dataclass(frozen=True)
class Section:
    """Section of a page.

    Attributes:
        title: heading, plain text.
        text: introduction, plain text.
        html: content.
        wide: True for a section of full width, after all others.
    """

    title: str
    text: str
    html: str
    wide: bool = False


def page(
    title: str,
    subtitle: str,
    tiles: Iterable[tuple[str, str, str]],
    sections: Sequence[Section],
    footer: str,
    details: str = "",
) -> str:
    """Return the HTML of a page.

    Args:
        title: heading, plain text.
        subtitle: text below the heading, plain text.
        tiles: name, value and note of each tile, plain text. The note may be empty.
        sections: sections of the page.
        footer: text at the end, plain text.
        details: HTML below the sections.
    """
    template = Template((files("activation_dataset.reporting") / "report.html").read_text("utf-8"))
    return template.substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        tiles="".join(_tile(*each) for each in tiles),
        narrow="\n".join(_section(each) for each in sections if not each.wide),
        wide="\n".join(_section(each) for each in sections if each.wide),
        details=details,
        footer=escape(footer),
    )


def _tile(name: str, value: str, note: str) -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    return f"<div><dt>{escape(name)}</dt><dd>{escape(value)}{small}</dd></div>"


def _section(section: Section) -> str:
    head = f"<h2>{escape(section.title)}</h2><p>{escape(section.text)}</p>"
    return f"<section>{head}{section.html}</section>"
