"""Page of HTML that needs no other file and no network: tiles, then sections in two columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template


@dataclass(frozen=True)
class Section:
    """Part of a page: heading and introduction in plain text, then HTML. Wide ones come last."""

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
    """HTML of a page, given plain text except for `details`, HTML below the sections.

    A tile is a name, a value, and a note that may be empty.
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
