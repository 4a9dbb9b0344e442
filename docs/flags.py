"""The directive `flags`, which lists what an argparse parser takes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib import import_module

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Flags(SphinxDirective):
    """Lists the flags that a function's parser takes, by group, or by command if it has commands.

    The argument is `module:function`. With `:group:`, only that group is listed.
    """

    required_arguments = 1
    option_spec = {"group": str}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the page."""
        module, _, function = self.arguments[0].partition(":")
        parser: argparse.ArgumentParser = getattr(import_module(module), function)()
        commands = [
            action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
        ]
        if commands:
            return [
                self._section(name, command.description or "", command._actions)
                for name, command in commands[0].choices.items()
            ]
        return [
            self._section(_capitalized(group.title or ""), "", group._group_actions)
            for group in parser._action_groups
            if self.options.get("group", group.title) == group.title
            if any(not isinstance(action, argparse._HelpAction) for action in group._group_actions)
        ]

    def _section(self, title: str, text: str, actions: list[argparse.Action]) -> nodes.section:
        section = nodes.section("", nodes.title(text=title))
        section["ids"].append(nodes.make_id(title))
        self.state.document.note_implicit_target(section)
        if text:
            section += nodes.paragraph(text=text)
        section += nodes.definition_list("", *_items(actions), classes=["flags"])
        return section


def _items(actions: list[argparse.Action]) -> Iterator[nodes.definition_list_item]:
    for action in actions:
        if isinstance(action, argparse._HelpAction):
            continue
        names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        term = nodes.term("", "", nodes.literal(text=" ".join([names, *_values(action)])))
        term["ids"].append(f"flag-{action.dest}")
        # "--" in a help text begins a flag; smart quotes would turn it into a dash.
        body = nodes.definition("", nodes.paragraph(text=_help(action), support_smartquotes=False))
        yield nodes.definition_list_item("", term, body)


def _values(action: argparse.Action) -> list[str]:
    """Return the placeholder for the values of a flag; none for a switch or an argument."""
    if not action.option_strings or action.nargs == 0:
        return []
    if action.choices and not action.metavar:
        name = "|".join(map(str, action.choices))
    else:
        name = str(action.metavar or action.dest.upper())
    return [{"?": f"[{name}]", "+": f"{name} [{name} ...]"}.get(str(action.nargs), name)]


def _help(action: argparse.Action) -> str:
    text = re.sub(r"\s+", " ", action.help or "").strip()
    text = text.replace("%%", "%")
    if action.required and action.option_strings:
        text = f"{text} (required)"
    elif action.default is not None and action.nargs != 0 and "default: " not in text:
        text = f"{text} (default: {action.default})"
    return _capitalized(text)


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("flags", Flags)
    return {"parallel_read_safe": True}
