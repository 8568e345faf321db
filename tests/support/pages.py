"""The elements of HTML, read strictly."""

from html.parser import HTMLParser
from typing import Final

import attrs

#: What JupyterLab leaves in outputs that it does not trust (its `sanitizer.ts`), as far as it is
#: used here; it drops everything else.
ALLOWED: Final = {
    "div": {"style"},
    "span": {"style"},
    "strong": set(),
    "small": set(),
    "code": set(),
    "br": set(),
    "table": set(),
    "tr": set(),
    "th": set(),
    "td": set(),
    "progress": {"max", "value", "title", "style"},
    "video": {"controls", "preload", "src", "poster", "title", "style"},
}
ALLOWED_STYLES: Final = {
    "border-left",
    "max-height",
    "max-width",
    "overflow-wrap",
    "padding",
    "width",
}


@attrs.define(eq=False)
class Page(HTMLParser):
    """The elements and the text of a page; each element has to be closed."""

    tags: list[tuple[str, dict[str, str | None]]] = attrs.field(factory=list)
    text: str = ""
    _open: list[str] = attrs.field(factory=list)

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len(dict(attributes)) == len(attributes), "an attribute is given twice"
        self.tags.append((tag, dict(attributes)))
        if tag != "br":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, text: str) -> None:
        self.text += text

    def handle_comment(self, text: str) -> None:
        raise AssertionError(text)

    handle_decl = handle_pi = unknown_decl = handle_comment

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of each element of one kind."""
        return [attributes for name, attributes in self.tags if name == tag]


def read_page(html: str) -> Page:
    """Return the elements of *html*, and check that a notebook would keep all of it."""
    html.encode()  # half a character could not be sent to a notebook's page
    page = Page()
    page.feed(html)
    page.close()
    assert page._open == []
    for tag, attributes in page.tags:
        assert attributes.keys() <= ALLOWED[tag], (tag, attributes)
        styles = (attributes.get("style") or "").split(";")
        assert {style.partition(":")[0] for style in styles} <= {"", *ALLOWED_STYLES}
    return page
