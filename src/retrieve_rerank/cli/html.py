"""HTML becomes Markdown: the words of a page without its navigation."""

from __future__ import annotations

import codecs
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from retrieve_rerank.errors import require

_NO_TEXT = ("title", "script", "style", "noscript", "template", "svg", "nav")
_DECLARATIONS = ("ProcessingInstruction", "XMLProcessingInstruction", "Declaration")
_NAVIGATION = ("navigation", "search", "menu", "menubar")  # roles
_CALLED_NAVIGATION = re.compile(r"^(nav|navbar|navheader|navfooter|navigation|breadcrumbs?|(\w+[-_])?toc)$")  # classes
_WHOLE = ("html", "body", "main", "article")  # which is no navigation, whatever its class
_LISTS = ("ul", "ol", "dl", "table")
_LEADS = {
    "next",
    "prev",
    "previous",
    "up",
    "contents",
    "index",
    "toc",
    "home",
    "start",
    "top",
}  # what links say they do
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)  # how a link to another site begins
# Block elements that the converter takes for words of a line, which would glue them to their neighbours.
_BLOCKS = (
    *("address", "aside", "button", "center", "details", "dialog", "fieldset", "figure", "footer", "form", "header"),
    *("hgroup", "label", "legend", "main", "menu", "optgroup", "option", "output", "search", "select", "summary"),
    *("textarea", "figcaption", "audio", "canvas", "dir", "iframe", "marquee", "object", "video"),
)
# Elements whose ends may be left out, as a next one ends them; and what begins anew within them.
_ENDED_BY_NEXT = (("li",), ("dt", "dd"), ("tr",), ("td", "th"), ("p",), ("option",))
_ANEW = ("ul", "ol", "dl", "table", "blockquote", "div")
_HEADINGS = tuple(f"h{level}" for level in range(1, 7))
_PERMALINKS = "#¶§🔗"
_FEWEST_LINKS = 3  # of a list of contents
_FEWEST_PAGES = 5  # of which what most have in common says something
_UNDER_HEAD = re.compile(r"\s*\|(?: ?:?-+:? ?\|)+\s*$")  # the line between a table's head and its rows
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
    for kinds in _ENDED_BY_NEXT:
        for element in soup(kinds):
            around = element.find_parent((*kinds, *_ANEW))
            if around is not None and around.name in kinds:
                around.insert_after(element)
    for element in [*soup(_NO_TEXT), *_navigation(soup)]:
        if not element.decomposed:  # with one around it
            element.decompose()
    for element in soup(_BLOCKS):
        element.name = "div"


def _navigation(soup: Any) -> Iterator[Any]:
    """Yield what leads through a page or a site: by its role, its class, or its links; permalinks, too."""
    yield from soup.find_all(attrs={"role": _NAVIGATION})
    yield from (element for element in soup.find_all(class_=_CALLED_NAVIGATION) if element.name not in _WHOLE)
    yield from filter(_is_contents, soup(_LISTS))
    for link in soup("a", href=True):
        if link.get("accesskey") or not _LEADS.isdisjoint(link.get("rel", ())):
            block = link.find_parent((*_LISTS, "p", "td", "div"))
            links = [size_of(each.get_text()) for each in block("a")] if block is not None else []
            if links and nearly_all(links, size_of(block.get_text()), 1, 0.6):  # "Next: ", "Up: " stand beside them
                yield block
    for link in soup("a"):
        text = link.get_text().strip()
        if not text.strip(_PERMALINKS) and (text or link.find_parent(_HEADINGS)):
            yield link


def _is_contents(block: Any) -> bool:
    """Whether a list is one of contents: nearly all its words are links, to places in its page or beside it."""
    links = [size_of(link.get_text()) for link in block("a", href=True) if not is_elsewhere(link["href"])]
    return nearly_all(links, size_of(block.get_text()), _FEWEST_LINKS)


def is_elsewhere(link: str) -> bool:
    """Whether a link leads to another site."""
    return _ELSEWHERE.match(link) is not None


def nearly_all(links: Sequence[int], words: int, fewest: int, share: float = 0.9) -> bool:
    """Whether links of these sizes are such a share of so many letters and digits, and at least `fewest`."""
    return len(links) >= fewest and sum(links) >= share * words


def size_of(text: str) -> int:
    """Return the count of letters and digits."""
    return sum(map(str.isalnum, text))


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
    """Yield the lines of a Markdown text, and whether one may be left out.

    It may if it has words, and is no heading, no code and not the head of a table, without which that is none.
    """
    fenced = False
    for line, following in pairwise([*page.split("\n"), ""]):
        fence = re.match(r"\s*(```|~~~)", line) is not None
        fenced ^= fence
        needed = fenced or fence or line.startswith("#") or _UNDER_HEAD.match(following) is not None
        yield line, not needed and any(map(str.isalnum, line))
