"""Files are read as what they are, or refused with the place and the reason."""

from __future__ import annotations

import io
import json
import re
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from retrieve_rerank import InvalidInputError, MissingDependencyError
from retrieve_rerank.cli.documents import Document, Fields, Reading, UnreadableError, check_named, read
from retrieve_rerank.cli.html import common_lines, without_lines

FIELDS = Fields()


def whole(content: bytes, name: str, fields: Fields = FIELDS) -> list[Document]:
    """The documents of a file of which nothing is left out, without their places."""
    reading = read(content, name, fields)
    assert reading == Reading(reading.documents)
    return [replace(document, line=None, whole=False) for document in reading.documents]


def problem(content: bytes, name: str, fields: Fields = FIELDS) -> str:
    """What is said of a file of which something is left out."""
    try:
        return read(content, name, fields).problem or ""
    except UnreadableError as error:
        return str(error)


LATIN = "<meta charset={}><p>A caf\xe9, a na\xefve one</p>"


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        # Separators that are no line ends, and cells beyond the header that are empty
        (
            "a.csv",
            "id,text\n1,one\u2028two\x0bthree\x0cfour\x85five\r\n".encode(),
            "one\u2028two\x0bthree\x0cfour\x85five",
        ),
        ("a.csv", b"id,text\n1,Hello,,\n", "Hello"),
        ("a.tsv", b"text\nBread, water and salt\n", "Bread, water and salt"),
        ("a.md", b'---\ntitle: "Hi \\ud83d\\ude00"\n---\nwords', "Hi \N{GRINNING FACE}\n\nwords"),
        # Pages: without ends, in great depth, and in their encoding
        ("a.htm", b"<head><title>T</title><p>words", "words"),
        ("a.html", b"<div>" * 3000 + b"words" + b"</div>" * 3000, "words"),
        ("a.html", '<ol start="½"><li>bread</li></ol>'.encode(), "bread"),
        ("a.html", LATIN.format("latin-1").encode("cp1252"), "A café, a naïve one"),
        ("a.html", LATIN.format("utf-8").encode(), "A café, a naïve one"),
        ("a.html", LATIN.format("nonsense").encode(), "A café, a naïve one"),
        ("a.html", LATIN.format("").encode("cp1252"), "A café, a naïve one"),  # as browsers read what does not say
        ("a.html", LATIN.format("latin-1").encode("utf-16"), "A café, a naïve one"),  # the mark is right
        ("a.html", "<?xml version='1.0' encoding='iso-8859-2'?><p>kůň</p>".encode("iso-8859-2"), "kůň"),
        ("a.html", b"<ul><li>one<li>two<ul><li>in<li>out</ul><li>three</ul>", "* one\n* two\n  + in\n  + out\n* three"),
        ("a.html", b"<ol><li><p>one<li><p>two</ol>", "1. one\n2. two"),
        ("a.html", b"<table><tr><th>a<th>b<tr><td>c<td>d</table>", "| a | b |\n| --- | --- |\n| c | d |"),
        ("a.html", b"<dl><dt>a<dd>b<dt>c<dd>d</dl>", "a\n:   b\n\nc\n:   d"),
        ("a.html", b"<p>one<p>two<div><p>three<p>four</div>", "one\n\ntwo\n\nthree\n\nfour"),
        ("a.html", b"<select><option>a<option>b</select>c", "a\n\nb\n\nc"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_read_of_one_document(name: str, content: bytes, text: str) -> None:
    (document,) = whole(content, name)
    assert document.text.strip() == text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *((name, "one\ntwo\ncaf\xe9".encode("latin-1"), "line 3 is not UTF-8") for name in ("a.txt", "a.md", "a.csv")),
        ("data", b"abc\0def", "NUL"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n\n[1]', "line 3 must be a JSON object"),
        ("a.jsonl", b'{"text": "\xe9"}', "line 1 is not UTF-8"),
        ("a.jsonl", b'{"body": "a", "id": 1}', r"line 1 has no text in 'text'; its fields: body, id. .*--text-field"),
        ("a.jsonl", b'{"text": 5}', "line 1 has no text"),
        ("a.jsonl", b'{"id": "a", "text": "1"}\n{"id": "a", "text": "2"}', "line 2 has the id 'a' of line 1"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.csv", b"a,b\n1,2\n", "line 2 has no text in 'text'; its fields: a, b"),
        ("a.csv", b'text\n"never closed', "is not CSV"),
        ("a.csv", b"id,text\n1,Hello, world\n", "line 2 has more cells than the header; quote"),
        ("a.tsv", b"id\ttext\n1\ta\tb\n", "line 2 has more cells than the header; quote"),
        ("a.html", b"<p>a <![foo[x]]> b</p>", "no HTML"),
        *(("a.ipynb", content, "it cannot be read as notebook") for content in (b"[]", b"{", b"[" * 100_000)),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_read_is_named_with_its_line(name: str, content: bytes, message: str) -> None:
    assert re.search(message, problem(content, name))


def test_the_encoding_that_is_named_is_for_what_does_not_say_its_own() -> None:
    assert whole(b"\xef\xbb\xbfone\r\ntwo", "a.TXT") == [Document("one\r\ntwo", "text", size=11)]
    for content in ("café".encode("cp1252"), "café".encode("utf-16")):
        assert read(content, "a.txt", FIELDS, encoding="cp1252").documents[0].text == "café"
    assert read(b"caf\x81", "a.txt", FIELDS, encoding="cp1252").notes[0].startswith("line 1 is not cp1252")


def test_html_keeps_headings_and_drops_what_is_for_browsers() -> None:
    page = (
        "<html><head><meta charset='latin-1'><title> Caf\xe9\n menu </title><style>p {color: red}</style></head>"
        "<body><nav>Home</nav><h2>Food &amp; drink</h2><p>A <b>strong</b> <a href='x'>coffee</a>_1*2</p>"
        "<script>alert('no')</script><pre>code\n  here</pre></body></html>"
    ).encode("latin-1")
    (document,) = whole(page, "a.html", FIELDS)
    assert document.kind == "markdown"
    assert document.title == "Café menu"
    assert "## Food & drink" in document.text
    assert "A **strong** coffee_1*2" in document.text
    assert "  here" in document.text
    for gone in ("Home", "alert", "color", "Café menu"):
        assert gone not in document.text


def test_json_lines_end_at_line_feeds_only() -> None:
    lines = '{"_id": 7, "text": "one\u2028two", "title": " T ", "year": 1, "deep": {}, "source": "x"}\n\n{"text": ""}\n'
    first, second = whole(("\ufeff" + lines).encode(), "a.jsonl", FIELDS)
    assert (first.id, first.text, first.title, first.metadata) == ("7", "one\u2028two", "T", {"year": 1})
    assert (second.id, second.text, second.title) == (None, "", None)


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")])
def test_csv_of_any_country(name: str, mark: str) -> None:
    long = "x" * 200_000  # more than the csv module takes by default
    rows = [["id", "body", "year"], ["1", '"two\nlines, ""quoted"""', "2020"], ["2", long, "2021"]]
    content = "".join(mark.join(row) + "\r\n" for row in rows).encode()
    first, second = whole(content, name, Fields(text="body"))
    assert (first.id, first.text, first.metadata) == ("1", 'two\nlines, "quoted"', {"year": "2020"})
    assert second.text == long


def test_what_is_not_read_is_refused_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match=r"paper.XLSX cannot be indexed: .XLSX files are not read"):
        check_named(tmp_path / "paper.XLSX")
    monkeypatch.setitem(sys.modules, "markitdown", None)
    with pytest.raises(MissingDependencyError, match=r"retrieve-rerank\[documents\]"):
        check_named(tmp_path / "paper.PDF")


def test_half_a_character_in_a_record_is_refused_with_its_line() -> None:
    for record in (r'{"text": "\ud83d"}', r'{"text": "a", "more": "\ude00"}', r'{"text": "a", "\ud83d": 1}'):
        reading = read(b'{"text": "whole \\ud83d\\ude00"}\n' + record.encode(), "a.jsonl", FIELDS)
        assert [document.text for document in reading.documents] == ["whole 😀"]
        assert "line 2 holds half a character" in str(reading.problem)


FRONT = "---\ntitle: 'How it''s done'  # comment\ntags:\n- a\ndescription: >-\n  From start\n  to end\n\ndate: 1\n---\n"


@pytest.mark.parametrize("front", [FRONT, FRONT.replace("\n", "\r\n")])
def test_of_front_matter_title_and_description_stay(front: str) -> None:
    (document,) = whole(f"{front}# One\n\ntwo".encode(), "a.md", FIELDS)
    assert document.title == "How it's done"
    assert document.text == "How it's done\n\nFrom start to end\n\n# One\n\ntwo"
    (plain,) = whole(f"{front}# One".encode(), "a.txt", FIELDS)
    assert plain.text == f"{front}# One"


@pytest.mark.parametrize(
    "text",
    [
        "---\nA sentence between two breaks, and no more.\n---\nthe rest",
        "---\n# Introduction\n\n- first point\n- second point\n\n---\n\nmore",
        "---\n# A title\n---\nb",
        "---\n\n    code\n\n---\nb",
        "---\nWarning: this page is old.\n\n- use another\n---\nthe rest",
        "---\ntitle: never closed\n",
        "---\ntitle: a: b\n---\nis no YAML",
        "---\ndate: 2024-13-45\n---\nno date",
        "---\n" + "[" * 9_000 + "\n---\nnested",
        "# One\n---\ntitle: x\n---\n",
        "---\n---\nnothing between",
        "---\n" + "- a: b\n-c: d\n" * 50_000 + "end",  # in no time
    ],
)
def test_what_is_no_front_matter_stays(text: str) -> None:
    assert whole(text.encode(), "a.md", FIELDS) == [Document(text, "markdown", size=len(text))]


def test_front_matter_may_have_no_title() -> None:
    for title in ("", "title:\n", "title: [a, b]\n", 'title: ""\n', "title: null\n"):
        (document,) = whole(f"---\nx: 1\n{title}---\ntext".encode(), "a.md", FIELDS)
        assert (document.title, document.text) == (None, "text")


def test_what_is_no_number_is_not_kept() -> None:
    """pandas writes NaN for what is missing; no JSON could tell it again."""
    (document,) = whole(b'{"text": "bread", "price": NaN, "far": -Infinity, "year": 2, "half": 0.5}', "a.jsonl", FIELDS)
    assert document.metadata == {"year": 2, "half": 0.5}


def test_stray_bytes_of_a_page_are_replaced_and_said() -> None:
    page = "<meta charset=utf-8>\n<p>naïve</p>\n<p>the caf".encode() + b"\xe9 and \x80</p>"
    reading = read(page, "a.html", FIELDS)
    assert "naïve" in reading.documents[0].text
    assert "caf\N{REPLACEMENT CHARACTER} and \N{REPLACEMENT CHARACTER}" in reading.documents[0].text
    assert reading.problem is None
    assert reading.notes == ["line 3 is not utf-8; what that cannot mean was replaced by \N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(("name", "start"), [("a.txt", ""), ("a.md", ""), ("a.csv", "text\n"), ("a.jsonl", None)])
def test_a_byte_order_mark_says_how_text_is_read(name: str, start: str | None, encoding: str) -> None:
    content = '{"text": "naïve café"}' if start is None else f"{start}naïve café"
    (document,) = whole(content.encode(encoding), name)
    assert document.text == "naïve café"


BLOCKS = ("summary", "aside", "header", "footer", "main", "address", "figure", "figcaption", "details", "option")


@pytest.mark.parametrize(
    "block", [*BLOCKS, "label", "button", "legend", "fieldset", "form", "dialog", "hgroup", "video", "dir"]
)
def test_blocks_of_a_page_are_borders(block: str) -> None:
    (document,) = whole(f"<body><{block}>Question?</{block}>Answer.<{block}>More</{block}></body>".encode(), "a.html")
    assert document.text.split() == ["Question?", "Answer.", "More"]


def test_navigation_and_permalinks_are_no_words_of_a_page() -> None:
    page = (
        "<div role='navigation'><ul><li>Home<nav>deep</nav></li></ul></div><nav>Menu</nav>"
        "<h2>Install<a href='#install'>#</a></h2><h3><a href='#x'>¶</a>Use <a href='y'>it</a> in C#</h3>"
        "<p>A paragraph §</p>"
    )
    (document,) = whole(page.encode(), "a.html")
    assert document.text.split("\n\n") == ["## Install", "### Use it in C#", "A paragraph §"]


def links(*places: str, after: str = "") -> str:
    return "".join(f"<li><a href='{place}'>Pump {number}</a>{after}</li>" for number, place in enumerate(places))


@pytest.mark.parametrize(
    "contents",
    [
        f"<ul>{links('#a', 'b.html', '../c/#d')}</ul>",
        f"<ol><li><a href='#x'>Pumps</a><ul>{links('#a', '#b')}</ul></li></ol>",
        "<table><tr><td>1. <a href='a'>Pumps</a></td><td><a href='b'>Valves</a><a href='c'>Up</a></td></tr></table>",
        "<div class='toc'><p>Table of Contents</p></div>",
        "<div class='section-toc'>Pumps</div><div class='fancy_toc'>Valves</div>",
        "<ul><li><a href='#p' accesskey='1'>Pumps</a></li></ul>",
        "<p>Next: <a href='#p' rel='next'>Pumps</a>, Up: <a href='#v' rel='up'>All of the valves</a></p>",
        "<div class='wide navheader'><table><tr><td>Prev: Valves</td></tr></table></div>",
    ],
)
def test_lists_of_contents_are_no_words_of_a_page(contents: str) -> None:
    (document,) = whole(
        f"<body class='toc'>{contents}<dl><dt>open()<a href='#open'>¶</a></dt></dl></body>".encode(), "a.html"
    )
    assert document.text.split() == ["open()"]


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("## See Also\n\n* [npm config](/commands/npm)\n* [npm](npm.md)\n", ["## See Also"]),
        ("1. [one](#one)\n   - [two](#two)\n2. [x](y.md)\n\nText", ["Text"]),
        ("[Home](/) | [Next](n.md) | [Up](../)\n\nText", ["Text"]),
        ("- [one](a.md): when it leaks\n- [b](c)", ["- [one](a.md): when it leaks", "- [b](c)"]),
        ("* [pump](https://pump.org)", ["* [pump](https://pump.org)"]),
        ("See [one](a.md) and [two](b.md)", ["See [one](a.md) and [two](b.md)"]),
        (
            "# Pump <a name='p'></a> {#pump}\n\n<!-- hidden\nwords -->Text <!-- too --> <b>bo</b>ld",
            ["# Pump", "Text   bold"],
        ),
        ("<details><summary>Question?</summary>Answer.\n</details>", ["Question? Answer."]),
        ("<script>\nvar x;\n</script>\n`<a name=x>` <a name=x> <https://a.org>", ["`<a name=x>`  <https://a.org>"]),
        ("```html\n<!-- code -->\n```", ["```html", "<!-- code -->", "```"]),
        ("a < b and c > d {#no}", ["a < b and c > d {#no}"]),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_of_markdown_its_words_stay_at_their_lines(markdown: str, expected: list[str], end: str) -> None:
    (document,) = whole(markdown.replace("\n", end).encode(), "a.md")
    assert [line.strip() for line in document.text.splitlines() if line.strip()] == expected
    assert document.text.count("\n") == markdown.count("\n")


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.html", "a.txt", "a.md"])
def test_a_file_that_is_not_what_it_is_called_is_left_out(name: str) -> None:
    for content in (b"plain text", b"PK\3\4\0", b"\x89PNG\0"):
        if content != b"plain text" or name in ("a.pdf", "a.docx"):
            with pytest.raises(UnreadableError, match=r"it is no (pdf|docx|text) file|is not UTF-8"):
                read(content, name, FIELDS)


@pytest.mark.parametrize(
    "items",
    [
        links("https://a.org/a", "//b.org/b", "mailto:c@d.org"),
        links("#a", "#b", "#c", after=": when it leaks"),
        links("#a", "#b"),
        "<li>Pump</li><li><a name='x'>Pump</a></li>",
    ],
)
def test_other_lists_are(items: str) -> None:
    (document,) = whole(f"<ul>{items}</ul>".encode(), "a.html")
    assert "Pump" in document.text


def test_the_head_of_a_table_stays_where_most_pages_have_it() -> None:
    pages = [f"| name | size |\n| --- | --- |\n| {number} | 1 |\n\nMade by hand\n" for number in range(6)]
    common = common_lines(pages)
    assert common == ["Made by hand"]
    assert without_lines(pages[0], common) == "| name | size |\n| --- | --- |\n| 0 | 1 |\n\n"


def test_a_notebook_is_its_cells() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "words"]},
        {"cell_type": "code", "source": "x = 1", "outputs": [{"text": "no"}]},
        {"cell_type": "code", "source": []},
    ]
    (document,) = whole(json.dumps({"cells": cells, "metadata": {}}).encode(), "a.ipynb")
    assert document == Document("# Title\nwords\n\n```python\nx = 1\n```", "markdown", size=document.size)


@pytest.mark.parametrize("value", ['!!int ""', "9" * 5_000, "!!float x", "!!timestamp x", "!!binary é", "&a [*a]"])
def test_front_matter_that_yaml_cannot_make_is_text(value: str) -> None:
    text = f"---\ntitle: {value}\n---\nwords"
    assert whole(text.encode(), "a.md")[0].text.endswith("words")


def docx(text: str) -> bytes:
    """The smallest file that a word processor opens."""
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    relations = "http://schemas.openxmlformats.org/package/2006/relationships"
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    types = "http://schemas.openxmlformats.org/package/2006/content-types"
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    parts = {
        "[Content_Types].xml": f"<Types xmlns='{types}'><Default Extension='rels' ContentType="
        f"'application/vnd.openxmlformats-package.relationships+xml'/><Override PartName='/word/document.xml' "
        f"ContentType='{main}'/></Types>",
        "_rels/.rels": f"<Relationships xmlns='{relations}'><Relationship Id='r' Type='{kind}' "
        "Target='word/document.xml'/></Relationships>",
        "word/document.xml": f"<w:document xmlns:w='{word}'><w:body><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:body>"
        "</w:document>",
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as package:
        for name, content in parts.items():
            package.writestr(name, content)
    return file.getvalue()


def pdf(text: str) -> bytes:
    """The smallest file with a page that has a text."""
    drawn = f"BT /F 12 Tf 20 100 Td ({text}) Tj ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents 4 0 R /Resources << /Font << /F 5 0 R >> >> >>",
        f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    content, places = "%PDF-1.4\n", []
    for number, thing in enumerate(objects, start=1):
        places.append(len(content))
        content += f"{number} 0 obj\n{thing}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n{len(content)}\n%%EOF\n"
    return f"{content}xref\n0 6\n0000000000 65535 f \n{table}{end}".encode()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries that read them
@pytest.mark.parametrize(("make", "name"), [(docx, "a.docx"), (pdf, "a.pdf")])
def test_documents_of_offices_are_read_where_their_extra_is_installed(make: Callable[[str], bytes], name: str) -> None:
    pytest.importorskip("markitdown")
    (document,) = whole(make("Level the bed first."), name)
    assert document.text.strip() == "Level the bed first."
    with pytest.raises(UnreadableError, match="it cannot be read as office"):
        read(make("x")[:60], name, FIELDS)
