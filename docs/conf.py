"""Sphinx configuration of the site; ``docs/build`` runs it."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

import gallery  # noqa: E402  (from docs/extensions)

import learnreg  # noqa: E402

project = "learnreg"
author = "learnreg developers"
version = release = learnreg.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "docstrings",
    "mathml",
    "repository",
    "api_coverage",
]
exclude_patterns = ["_build", "extensions", "generated/examples", "**/*.ipynb", "generated/gallery/**/*.py"]
suppress_warnings = [
    "config.cache",  # the gallery's configuration holds functions
    "myst.header",  # parts of pages may begin at any level
]

# Markdown as the repository's readers see it: formulas in ```math blocks, links by the headings' names.
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3

autosummary_generate = True
autosummary_filename_map = {"learnreg.hypergradient": "learnreg.hypergradient-function"}  # Hypergradient, on macOS
autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 100
templates_path = ["_templates"]
smartquotes = False  # f'' is a second derivative

sphinx_gallery_conf = gallery.configuration()

html_theme = "pydata_sphinx_theme"
html_title = "learnreg"
html_extra_path = ["llms.txt"]
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "header_links_before_dropdown": 7,
}
html_sidebars = {name: [] for name in ("index", "start", "benchmarks", "architecture", "changelog", "glossary")}
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
