"""How Sphinx builds the pages; nothing here reaches for the network."""

import re
import tomllib
from pathlib import Path
from typing import Any

from docutils.nodes import Element
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import Config
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.util.nodes import make_refnode

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"

project = "fuhu-runway"
author = "The fuhu-runway authors"
release = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["version"]
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

# Docstrings put names in single backquotes: links where they are ours, code where not.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "undoc-members": True}

# No inventory is fetched, so other projects' names cannot be looked up; ours all are.
nitpick_ignore_regex = [("py:.*", r"(?!fuhu_runway\b).*")]

html_theme = "furo"
html_title = f"fuhu-runway {release}"
html_show_copyright = False

NOT_MADE_BY_USERS = {
    *("BackgroundJob", "BaseJournal", "Task", "Clip", "Official", "Batch", "Summary", "Job"),
}
"""Handles that a method gives, and a base: how they are made says nothing to a reader."""


def shorten_signature(
    _app: Sphinx,
    what: str,
    name: str,
    _thing: object,
    _options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Leave out the arguments of what only the package makes, and the marks of factories."""
    if what == "exception" or (what == "class" and name.rpartition(".")[2] in NOT_MADE_BY_USERS):
        return "", None
    return signature and re.sub(r"NOTHING|<function \w+>", "...", signature), returns


def read_sections(  # noqa: PLR0917  (Sphinx calls it so)
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Read Google sections, and leave out what a module says of itself: the page says it."""
    # Not by the extension, which takes "Width to height: 16:9" for a type and its meaning.
    settings = Config()
    read = GoogleDocstring(without_sources(lines), settings, app, "object", name, thing, options)
    lines[:] = [] if what == "module" else read.lines()


def without_sources(lines: list[str]) -> list[str]:
    """Leave out where a docstring's facts were found: reference/sources.md has that."""
    text = re.sub(r"^( *)Source:\n(?:\1 +.*(?:\n|$)|\n)*", "", "\n".join(lines), flags=re.MULTILINE)
    return re.sub(r"\s*\([^()]*api-facts[^()]*\)", "", text).split("\n")


def find_by_last_name(
    app: Sphinx, env: BuildEnvironment, node: Element, contents: Element
) -> Any | None:
    """Link a bare name, as docstrings use it, to the one thing of ours that ends in it."""
    wanted = str(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or not wanted:
        return None
    ends = [
        (name, entry)
        for name, entry in env.domains.python_domain.objects.items()
        if not entry.aliased and f".{name}".endswith(f".{wanted}")
    ]
    if len(ends) != 1:
        return None
    ((name, entry),) = ends
    source = str(node.get("refdoc"))
    return make_refnode(app.builder, source, entry.docname, entry.node_id, contents, name)


def let_markdown_link_to_objects(_app: Sphinx, env: BuildEnvironment) -> None:
    """Accept `client.md#fuhu_runway.Client`, which leads to the page on a code host as well."""
    for name, entry in env.domains.python_domain.objects.items():
        slugs = env.metadata[entry.docname].setdefault("myst_slugs", {})
        slugs.setdefault(entry.node_id, (0, entry.node_id, name))


def setup(app: Sphinx) -> None:
    """Add what this project's docstrings need."""
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("autodoc-process-docstring", read_sections)
    app.connect("missing-reference", find_by_last_name)
    app.connect("env-updated", let_markdown_link_to_objects)
