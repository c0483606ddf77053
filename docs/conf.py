"""Sphinx's settings for the site that `make docs` builds; tools/site.py lays out its pages."""

from __future__ import annotations

import builtins
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

# The anchors of GitHub, and of its Markdown what the documents use.
myst_heading_anchors = 4
myst_linkify_fuzzy_links = False

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 72
napoleon_use_ivar = True
toc_object_entries = False  # the pages of the API begin with a list

html_theme = "furo"
html_title = f"rx-backend {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = ">>> |\\.\\.\\. "
copybutton_prompt_is_regexp = True

_FIELD = re.compile(r"(?P<name>Phase|Errors|On dispose): (?P<text>.*)")


def fields(_app: Sphinx, _what: str, _name: str, _it: object, _o: object, lines: list[str]) -> None:
    """Make fields of the lines that an operator's docstring has on its phase and its ends."""
    lines[:] = [_FIELD.sub(r":\g<name>: \g<text>", line) for line in lines]


def exact(_app: Sphinx, doctree: document) -> None:
    """Look annotations up by their full names alone: `bytes` is no field of that name."""
    for reference in doctree.findall(pending_xref):
        if not reference.get("refspecific", True) or hasattr(builtins, reference["reftarget"]):
            reference.attributes.pop("refspecific", None)


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("autodoc-process-docstring", fields)
    app.connect("doctree-read", exact)
