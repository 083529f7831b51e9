"""Passages fit the bi-encoder, lose nothing, and know where they are from."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieve_rerank import BiEncoder, InvalidInputError
from retrieve_rerank.cli.documents import Document
from retrieve_rerank.cli.splitting import Splitter
from tests.tiny import POSITIONS


@pytest.fixture(scope="module")
def encoder(tiny_dot_bi_encoder: Path) -> BiEncoder:
    return BiEncoder(tiny_dot_bi_encoder)  # the one with a document prompt, which takes room


@pytest.fixture(scope="module")
def splitter(encoder: BiEncoder) -> Splitter:
    return Splitter(encoder)


TEXTS = {
    "sentences": "Paris is the capital. " * 30,
    "long words": ("a" * 90 + "-") * 5,
    "one word that is unknown": "a" * 5_000,
    "no spaces": "漢字かな交じり文" * 40,
    "unknown to the vocabulary": "🙂 café naïve " * 30,
    "code": "```python\n" + "".join(f"value_{number} = {number}\n" for number in range(40)) + "```\n",
    "windows line ends": "# One\r\n\r\n" + "is the word of bread\r\n" * 20 + "\r\n## Two\r\n\r\nrome\r\n",
    "table": "| a | b |\n|---|---|\n" + "| paris | rome |\n" * 30,
}


@pytest.mark.parametrize("kind", ["text", "markdown"])
@pytest.mark.parametrize("name", list(TEXTS))
def test_no_passage_is_cut_and_no_word_lost(splitter: Splitter, encoder: BiEncoder, name: str, kind: str) -> None:
    text = TEXTS[name]
    passages = list(splitter.passages(Document(text, kind), "docs/a"))
    assert len(passages) > 1
    assert max(encoder.count_tokens([passage.text for passage in passages])) <= POSITIONS
    end = 0
    for passage in passages:
        start = passage.metadata["start"]
        assert text[start : passage.metadata["end"]] == passage.text
        skipped = text[end:start].replace("python", "")  # the word beside a fence
        assert not any(map(str.isalnum, skipped))
        end = passage.metadata["end"]
    assert not any(map(str.isalnum, text[end:]))
    encoder.encode_documents([passage.text for passage in passages])  # a TruncationWarning is an error here


def test_a_passage_knows_its_headings(splitter: Splitter) -> None:
    text = (
        "# Guide #\r\n\r\nfirst words\r\n\r\nInstall\r\n-------\r\n\r\n```\r\n# no heading\r\n```\r\n\r\n"
        "### By *hand*\r\n\r\nbread and bread and bread and bread\r\n\r\n## Use\r\n\r\nlast words\r\n"
    )
    passages = list(Splitter(splitter.encoder, 40).passages(Document(text, "markdown"), "a.md"))
    headings = [passage.metadata["heading"] for passage in passages]
    assert headings[0] == "Guide"
    assert "Guide > Install > By *hand*" in headings
    assert headings[-1] == "Guide > Use"
    assert not any("no heading" in heading for heading in headings)
    assert {passage.metadata["title"] for passage in passages} == {"Guide"}


def test_ids_stay_where_text_before_them_changes(splitter: Splitter) -> None:
    parts = [f"the word of paris {number} is the word of rome. " * 3 for number in range(6)]  # no two fit into one
    before = {passage.id for passage in splitter.passages(Document("\n\n".join(parts), "text"), "a.txt")}
    changed = "\n\n".join(["something new in front of it all, a b c d e f g h", *parts])
    after = {passage.id for passage in splitter.passages(Document(changed, "text"), "a.txt")}
    assert before < after
    elsewhere = {passage.id for passage in splitter.passages(Document("\n\n".join(parts), "text"), "b.txt")}
    assert not before & elsewhere


def test_equal_passages_of_a_file_have_ids_of_their_own(splitter: Splitter) -> None:
    text = "\n\n".join(["the same words of bread and bread once more"] * 4)
    passages = list(Splitter(splitter.encoder, 60).passages(Document(text, "text"), "a.txt"))
    assert len({passage.text for passage in passages}) == 1
    assert len({passage.id for passage in passages}) == len(passages) > 1


def test_a_record_keeps_its_id_unless_it_is_split(splitter: Splitter) -> None:
    facts = {"year": 2020}
    (whole,) = splitter.passages(Document("bread", "text", "Title", "r1", 5, metadata=facts), "a.jsonl")
    assert whole.id == "r1"
    assert whole.metadata == {"year": 2020, "source": "a.jsonl", "start": 0, "end": 5, "title": "Title"}
    split = list(splitter.passages(Document("bread is the bread. " * 20, "text", None, "r1"), "a.jsonl"))
    assert all(passage.id.startswith("r1#") for passage in split)


@pytest.mark.parametrize("text", ["", " \n\n ", "---\n\n***\n"])
def test_a_document_without_words_has_no_passages(splitter: Splitter, text: str) -> None:
    assert list(splitter.passages(Document(text, "markdown"), "a.md")) == []


def test_sizes_that_cannot_be_are_refused(encoder: BiEncoder) -> None:
    with pytest.raises(InvalidInputError, match=r"65 tokens would be cut: .* reads 64"):
        Splitter(encoder, 65)
    with pytest.raises(InvalidInputError, match="no room for text; give more than"):
        Splitter(encoder, 3)


def test_tokens_are_counted_as_they_are_read(encoder: BiEncoder, tiny_bi_encoder: Path) -> None:
    assert encoder.count_tokens([]) == []
    (bare,) = BiEncoder(tiny_bi_encoder).count_tokens(["paris is the capital"])
    (prompted,) = encoder.count_tokens(["paris is the capital"])
    assert bare == 6
    assert prompted == bare + len("passage:")
    assert encoder.count_tokens(["a " * 500]) == [500 + 2 + len("passage:")]  # uncut
