"""Settings of Sphinx, which builds these pages with `make docs`."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]

project = "Qwen activations"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "flags"]

# A reference to a name of this project that no page documents is an error. Other libraries have
# no pages here, and a build without a network cannot read theirs.
nitpicky = True
PACKAGES = ("activation_dataset", "beam_pipeline", "corpus", "qwen", "transforms")
nitpick_ignore_regex = [("py:.*", rf"(?!({'|'.join(PACKAGES)})\b).*")]
# Types in public signatures that users have no need to read about.
nitpick_ignore = [
    ("py:class", name)
    for name in (
        "activation_dataset.example.DecodedExample",
        "activation_dataset.input_counts.Written",
        "activation_dataset.layout.Layout",
        "activation_dataset.reading.shards.Shards",
        "activation_dataset.sites.Row",
        "corpus.repeats.Seen",
        "qwen.checkpoint.CheckpointFolder",
        "qwen.checkpoint.RandomWeights",
        "qwen.config.LayerKind",
        "qwen.model_files.ModelFiles",
        "transforms.whole_file.WholeFile",
    )
]

myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline"]

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 60
napoleon_numpy_docstring = False
default_role = "literal"

smartquotes_action = "D"
highlight_language = "text"

html_theme = "furo"
html_title = project
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_domain_indices = False
html_use_index = False
html_show_copyright = False
html_show_sphinx = False


def keep_colon(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Put an empty comment before the docstring of a value: napoleon reads `A: b` as a type."""
    if what in {"attribute", "data", "property"}:
        lines[:0] = ["..", ""]


def unlink_builtins(app: Sphinx, doctree: nodes.document) -> None:
    """Unlink builtins, which Sphinx would mistake for attributes such as `InputFile.bytes`."""
    for reference in list(doctree.findall(addnodes.pending_xref)):
        if hasattr(builtins, reference["reftarget"]):
            reference.replace_self(reference.children)


def setup(app: Sphinx) -> None:
    """Register handlers that run before napoleon (priority 500) and before links are resolved."""
    app.connect("doctree-read", unlink_builtins)
    app.connect("autodoc-process-docstring", keep_colon, priority=400)
