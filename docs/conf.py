"""How Sphinx builds the pages; nothing here reaches for the network."""

import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"

project = "fuhu-runway"
author = "The fuhu-runway authors"
release = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["version"]
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False

# No inventory is fetched, so other projects' names cannot be looked up; ours all are.
nitpick_ignore_regex = [("py:.*", r"(?!fuhu_runway\b).*")]

html_theme = "furo"
html_title = f"fuhu-runway {release}"
