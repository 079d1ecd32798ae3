"""The site: Sphinx, MyST and Furo. ``tox -e docs`` builds it, with warnings as errors.

The pages are plain Markdown and read as well in the repository. What the site needs besides is in
``_extensions``: the table of contents is the list in ``index.md``, a link to a file of the
repository becomes a page with that file, and a diagram is drawn without a script. The build needs
no network, and a reader's browser loads nothing from elsewhere.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "_extensions"))

_version: dict[str, str] = {}
exec((ROOT / "gunicorn_grace/shared/version.py").read_text(encoding="utf-8"), _version)

project = "gunicorn-grace"
author = "the authors of gunicorn-grace"
release = version = _version["__version__"]

extensions = ["myst_parser", "contents", "diagrams", "repository", "tables"]
exclude_patterns = ["_extensions"]
nitpicky = True
highlight_language = "text"

# Headings get the anchors that they have in the repository.
myst_heading_anchors = 4

repository_root = str(ROOT)
# Where the sources can be read, such as https://example.org/gunicorn-grace/blob/main/. There is no
# published address yet: the site then has the linked files as pages of its own.
repository_address = ""

html_theme = "furo"
html_title = f"gunicorn-grace {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b5d3b",
        "color-brand-content": "#0b5d3b",
        "color-brand-visited": "#4a3a7a",
    },
    "dark_css_variables": {
        "color-brand-primary": "#6fd3a2",
        "color-brand-content": "#6fd3a2",
        "color-brand-visited": "#b9a5f0",
    },
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
