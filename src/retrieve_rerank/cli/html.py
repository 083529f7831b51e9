"""HTML becomes Markdown: the words of a page without its navigation."""

from __future__ import annotations

import codecs
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from retrieve_rerank.errors import require

_NO_TEXT = ("title", "script", "style", "noscript", "template", "svg", "nav")
_DECLARATIONS = ("ProcessingInstruction", "XMLProcessingInstruction", "Declaration")
_NAVIGATION = ("navigation", "search", "menu", "menubar")  # roles
# Block elements that the converter takes for words of a line, which would glue them to their neighbours.
_BLOCKS = (
    *("address", "aside", "button", "center", "details", "dialog", "fieldset", "figure", "footer", "form", "header"),
    *("hgroup", "label", "legend", "main", "menu", "optgroup", "option", "output", "search", "select", "summary"),
    *("textarea", "figcaption"),
)
_HEADINGS = tuple(f"h{level}" for level in range(1, 7))
_PERMALINKS = "#¶§🔗"
_FEWEST_PAGES = 5  # of which what most have in common says something
_AS_BROWSERS = {"ascii": "cp1252", "iso8859-1": "cp1252"}  # what these names mean on the web


def declared_encoding(content: bytes) -> str | None:
    """Return the encoding that a page names, as Python calls it; None where it names none that there is."""
    dammit = require("bs4", extra="cli").dammit
    declared = dammit.EncodingDetector.find_declared_encoding(content, is_html=True)
    try:
        name = codecs.lookup(declared or "").name
    except LookupError:
        return None
    return _AS_BROWSERS.get(name, name)


def to_markdown(page: str) -> tuple[str | None, str, bool]:
    """Return a page's title and its text, and whether that is Markdown, as it is where it can be converted.

    Raises:
        ValueError: If no parser reads it.
    """
    bs4 = require("bs4", extra="cli")
    markdownify = require("markdownify", extra="cli")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what the page is like
        try:
            soup = bs4.BeautifulSoup(page, "html.parser")
        except bs4.ParserRejectedMarkup as error:
            raise ValueError(f"it is no HTML that can be read: {error}") from error
        title = " ".join(soup.title.get_text().split()) if soup.title is not None else ""
        _simplify(soup)
        converter = markdownify.MarkdownConverter(
            heading_style="ATX", strip=["a", "img"], escape_asterisks=False, escape_underscores=False
        )
        try:
            return title or None, str(converter.convert_soup(soup)), True
        except (RecursionError, ValueError):  # elements in one another by the hundred; a list that begins at "½"
            return title or None, str(soup.get_text("\n")), False


def _simplify(soup: Any) -> None:
    """Take out what is for browsers only and the navigation, and make all blocks such as the converter knows."""
    for declaration in soup.find_all(string=lambda text: type(text).__name__ in _DECLARATIONS):
        declaration.extract()
    for element in [*soup(_NO_TEXT), *soup.find_all(attrs={"role": _NAVIGATION})]:
        if not element.decomposed:  # with one around it
            element.decompose()
    for heading in soup(_HEADINGS):
        for link in heading("a"):
            if not link.get_text().strip(_PERMALINKS + " \n"):
                link.decompose()
    for element in soup(_BLOCKS):
        element.name = "div"


def common_lines(pages: Iterable[str]) -> list[str]:
    """Return the lines that stand word for word on most of some pages: their navigation, header and footer."""
    times: Counter[str] = Counter()
    count = 0
    for page in pages:
        count += 1
        times.update({line for line, may_go in _lines(page) if may_go})
    return sorted(line for line, seen in times.items() if count >= _FEWEST_PAGES and 2 * seen > count)


def without_lines(page: str, lines: Collection[str]) -> str:
    """Return a page without some lines, of which headings and code stay."""
    gone = frozenset(lines)
    return "\n".join(line for line, may_go in _lines(page) if not may_go or line not in gone)


def _lines(page: str) -> Iterator[tuple[str, bool]]:
    """Yield the lines of a Markdown text, and whether one may be left out: it has words, and is no heading or code."""
    fenced = False
    for line in page.split("\n"):
        fence = re.match(r"\s*(```|~~~)", line) is not None
        fenced ^= fence
        yield line, not (fenced or fence or line.startswith("#")) and any(map(str.isalnum, line))
