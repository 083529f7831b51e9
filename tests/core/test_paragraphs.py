"""One document as passages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieve_rerank import InvalidInputError, split_paragraphs

TEXTS = st.text(alphabet=st.sampled_from("ab \t\n\r\u00a0\u2028é"), max_size=60)


@pytest.mark.parametrize(
    ("text", "paragraphs"),
    [
        ("", []),
        (" \n\t\n ", []),
        ("one", ["one"]),
        ("one\ntwo", ["one\ntwo"]),
        ("one\n\ntwo", ["one", "two"]),
        ("one\r\n\r\ntwo", ["one", "two"]),
        ("one\r\rtwo", ["one", "two"]),
        ("one\n \t \ntwo", ["one", "two"]),
        ("one\n\n\n\n\ntwo", ["one", "two"]),
        ("\n\none\n\n", ["one"]),
        ("  one  \n\n  two  ", ["one", "two"]),
        ("one\r\ntwo", ["one\r\ntwo"]),
    ],
)
def test_blank_lines_divide(text: str, paragraphs: list[str]) -> None:
    assert [passage.text for passage in split_paragraphs(text)] == paragraphs


@given(TEXTS)
def test_spans_point_at_the_paragraph(text: str) -> None:
    passages = split_paragraphs(text)
    for passage in passages:
        assert text[passage.metadata["start"] : passage.metadata["end"]] == passage.text
        assert passage.text == passage.text.strip() != ""
    assert [passage.id for passage in passages] == [f"p{number}" for number in range(len(passages))]


@given(TEXTS)
def test_nothing_but_white_space_is_lost_and_order_is_kept(text: str) -> None:
    joined = "".join(passage.text for passage in split_paragraphs(text))
    assert "".join(joined.split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "says"), [(None, "NoneType"), (b"bytes", "bytes"), (["a"], "list"), ("\ud800", "surrogate")]
)
def test_what_is_no_text_is_refused(text: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        split_paragraphs(text)


def test_a_large_text_splits_in_linear_time() -> None:
    text = "word\n" * 20_000 + "\n" * 20_000 + " \n" * 20_000 + "end"
    assert [len(passage.text) for passage in split_paragraphs(text)] == [99_999, 3]
