"""Sphinx's settings for the site that `make docs` builds; tools/site.py lays out its pages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from docutils.nodes import document
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

_ROOT = Path(__file__).parents[1]

project = "rx-backend"
release = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
nitpicky = True
# Names of other packages have no pages here, nor have type variables and what is private.
nitpick_ignore_regex = [
    ("py:.*", r"(?!operators\.|rx_backend\.).*"),
    ("py:.*", r".*\.(_.*|[A-Z](_co)?|Racer)"),
]

# Anchors as on GitHub.
myst_heading_anchors = 4

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 72
napoleon_use_ivar = True
toc_object_entries = False  # the pages of the API begin with a list

pygments_dark_style = "github-dark"
html_theme = "furo"
html_title = f"rx-backend {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = ">>> |\\.\\.\\. "
copybutton_prompt_is_regexp = True

# An operator's phase and ends; bounds in a signature; long names of type variables.
_FIELD = re.compile(r"^(Phase|Errors|On dispose): ")
_BOUND = re.compile(r"Annotated\[(?:~[\w.]+\.)?(.+?), <[^>]*>\]")
_VARIABLE = re.compile(r"[\w.]+\.([A-Z](_co)?)\b")


def docstring(
    _app: Sphinx, _what: str, _name: str, _: object, _o: object, lines: list[str]
) -> None:
    """Make fields of an operator's phase and ends, and shorten the types of attributes."""
    for number, line in enumerate(lines):
        text = _VARIABLE.sub(r"\1", line) if line.startswith(":vartype ") else line
        lines[number] = _FIELD.sub(r":\1: ", text)


def signature(
    _app: Sphinx, _what: str, _name: str, _: object, _o: object, arguments: str, returns: str
) -> tuple[str, str]:
    """Show a bounded argument by its type."""
    return arguments and _BOUND.sub(r"\1", arguments), returns


def exact(_app: Sphinx, doctree: document) -> None:
    """Look annotations up by their full names alone: `bytes` is no field of that name."""
    for reference in doctree.findall(pending_xref):
        if reference["reftype"] == "class":
            reference.attributes.pop("refspecific", None)


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-process-signature", signature)
    app.connect("doctree-read", exact)
