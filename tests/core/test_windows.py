"""Long passages in windows."""

from __future__ import annotations

import asyncio
import math
import pickle
import re
import time
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from retrieve_rerank import CrossEncoder, InvalidInputError, Passage, TruncationWarning
from retrieve_rerank.models.engine import _Text
from retrieve_rerank.models.ranking import Scoring
from retrieve_rerank.models.reading import Pieces, split, spread, token_spans
from tests import tiny

QUERY = "paris"


def words(text: str) -> list[tuple[int, int]]:
    """Return the spans of words: a tokenizer to compute by hand with."""
    return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]


FOUR = "One two three. Four five! Six seven? Eight."  # 4 + 3 + 3 + 2 tokens
EQUAL = "A a a. B b. C c. D d d."
SEVEN = "one two three four five six seven"


@pytest.mark.parametrize(
    ("text", "size", "overlap", "windows"),
    [
        (FOUR, 12, 0, [FOUR]),
        (FOUR, 7, 0, ["One two three. Four five!", "Six seven? Eight."]),
        (FOUR, 5, 0, ["One two three.", "Four five!", "Six seven? Eight."]),
        (EQUAL, 7, 3, ["A a a. B b.", "B b. C c.", "C c. D d d."]),  # neighbours share whole sentences
        (EQUAL, 7, 2, ["A a a. B b.", "C c. D d d."]),
        # The last reaches back: a short window lacks context, and short texts are often scored too high.
        ("A a. B b. C c. D d.", 9, 0, ["A a. B b. C c.", "B b. C c. D d."]),
        (SEVEN, 3, 0, ["one two three", "four five six", "seven"]),  # a sentence longer than a window
        (SEVEN, 3, 1, ["one two three", "three four five", "five six seven"]),
        ("", 5, 1, []),
        ("   ", 5, 1, []),
    ],
)
def test_windows_worked_out_by_hand(text: str, size: int, overlap: int, windows: list[str]) -> None:
    assert [text[start:end] for start, end in split(text, words(text), size, overlap)] == windows


def test_a_window_is_cut_between_words_and_a_longer_word_between_tokens() -> None:
    letters = [(at, at + 1) for at, letter in enumerate(SEVEN) if not letter.isspace()]  # each letter a token
    pieces = [SEVEN[start:end] for start, end in split(SEVEN, letters, 9, 0)]
    assert all(set(piece.split()) <= set(SEVEN.split()) for piece in pieces)
    text = "abcdefghij"
    letters = [(at, at + 1) for at in range(10)]
    assert [text[start:end] for start, end in split(text, letters, 4, 0)] == ["abcd", "efgh", "ij"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Who said “no.” Then he left.", ["Dr.", "Who said “no.”", "Then he left."]),
        ("It costs 3.50 today. Fine.", ["It costs 3.50 today.", "Fine."]),
        ("第一句。第二句！第三句", ["第一句。", "第二句！", "第三句"]),
        ("a line\nanother\n\na third", ["a line", "another", "a third"]),
        ("Wait… what?! Yes.", ["Wait…", "what?!", "Yes."]),
    ],
)
def test_what_ends_a_sentence(text: str, sentences: list[str]) -> None:
    tokens = [(at, at + 1) for at, letter in enumerate(text) if not letter.isspace()]
    longest = max(len(sentence.replace(" ", "")) for sentence in sentences)
    windows = [text[start:end] for start, end in split(text, tokens, longest, 0)]
    assert all(window.startswith(tuple(sentences)) and window.endswith(tuple(sentences)) for window in windows)
    assert windows[0].startswith(sentences[0])
    assert windows[-1].endswith(sentences[-1])


@given(
    st.lists(st.sampled_from(["word", "a", "end.", "so?\n", "一。", "  "]), max_size=60).map(" ".join),
    st.integers(1, 12),
    st.integers(0, 11),
)
def test_windows_cover_every_token_in_order_and_none_is_too_large(text: str, size: int, overlap: int) -> None:
    tokens = words(text)
    windows = split(text, tokens, size, min(overlap, size - 1))
    assert windows == sorted(windows)
    assert len(set(windows)) == len(windows)
    held = [[token for token in tokens if start <= token[0] and token[1] <= end] for start, end in windows]
    assert [token for token in tokens if any(token in window for window in held)] == tokens
    assert all(0 < len(window) <= size for window in held)
    for earlier, later in pairwise(held[:-1]):
        assert len(set(earlier) & set(later)) <= overlap
    assert all(text[start:end] == text[start:end].strip() for start, end in windows)


def test_taken_windows_are_spread_from_the_first_to_the_last() -> None:
    windows = [(number, number + 1) for number in range(10)]
    assert spread(windows, 10) == windows
    assert spread(windows, 4) == [windows[0], windows[3], windows[6], windows[9]]
    assert spread(windows, 2) == [windows[0], windows[9]]
    assert spread(windows, 1) == [windows[0]]
    assert spread([], 3) == []


@pytest.mark.parametrize(
    ("logits", "best", "window"),
    [((7.0, 1.0, 7.0), 7.0, (0, 1)), ((7.0, math.nan, 9.0), math.nan, (2, 3)), ((1.0, 2.0, 3.0), 3.0, (4, 5))],
)
def test_the_best_window_counts_the_first_among_equals_and_nan_beats_all(
    logits: tuple[float, ...], best: float, window: tuple[int, int]
) -> None:
    scoring = Scoring("q", ["a b c"])
    text = _Text(scoring, 0, Pieces(("a", "b", "c"), (1, 1, 1), ((0, 1), (2, 3), (4, 5))))
    for number in (2, 0, 1):
        assert scoring.scores == [None]
        text.put(number, logits[number])
    [score] = scoring.scores
    assert score is not None
    np.testing.assert_equal(score.logit, best)
    assert score.window == window


# The real path, on a model that reads 64 tokens.


@pytest.fixture
def model(tiny_cross_encoder: Path) -> Iterator[CrossEncoder]:
    with CrossEncoder(tiny_cross_encoder, precision="float32", long_passages="windows") as model:
        yield model


def numbered(sentences: int) -> str:
    return " ".join(f"the word {number} is bread of rome in italy." for number in range(sentences))


def test_a_long_passages_score_is_that_of_its_best_window(model: CrossEncoder) -> None:
    text = numbered(40)
    (hit,) = model.rank(QUERY, [text])
    assert hit.window is not None
    start, end = hit.window
    assert text[start:end].startswith("the word")
    assert text[start:end].endswith("italy.")
    assert model.score(QUERY, [text[start:end]])[0] == pytest.approx(hit.logit, abs=1e-5)
    assert not hit.truncated
    every = [f"the word {number} is bread of rome in italy." for number in range(40)]
    assert len({*model.score(QUERY, every).tolist()}) == 40  # windows differ, so the best one is a choice


def test_a_short_passage_is_scored_whole(model: CrossEncoder, tiny_cross_encoder: Path) -> None:
    texts = ["rome", "word " * (tiny.POSITIONS - 4)]  # the second fits exactly
    hits = model.rank(QUERY, texts)
    assert [(hit.window, hit.truncated) for hit in hits] == [(None, False)] * 2
    plain = CrossEncoder(tiny_cross_encoder, precision="float32")
    assert plain.rank(QUERY, texts) == hits


@pytest.mark.parametrize("fixture", ["tiny_cross_encoder", "tiny_roberta", "tiny_language_model"])
def test_windows_are_scored_as_texts_of_their_own(request: pytest.FixtureRequest, fixture: str) -> None:
    path = request.getfixturevalue(fixture)
    text = numbered(30)
    with CrossEncoder(path, precision="float32", long_passages="windows", max_windows=99) as model:
        (hit,) = model.rank(QUERY, [text])
        assert hit.window is not None
        tokens = token_spans(transformers.AutoTokenizer.from_pretrained(path), text)
        reading = model._worker.run(model._loaded)._reading(QUERY)
        size = tiny.POSITIONS - reading.around - 2
        windows = split(text, tokens, size, min(48, size // 4))
        assert len(windows) > 5
        scores = model.score(QUERY, [text[start:end] for start, end in windows]).tolist()
    assert hit.logit == pytest.approx(max(scores), abs=1e-5)
    assert hit.window == windows[scores.index(max(scores))]


def test_a_passage_with_too_many_windows_is_reported(tiny_cross_encoder: Path, counted_rows: list[int]) -> None:
    model = CrossEncoder(tiny_cross_encoder, precision="float32", long_passages="windows", max_windows=3)
    text = numbered(40)
    with pytest.warns(
        TruncationWarning, match="1 of 3 passages have more than 3 windows .*raise max_windows"
    ) as caught:
        hits = model.rank(QUERY, [text, "rome", numbered(8)])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert {hit.passage.id for hit in hits if hit.truncated} == {"0"}
    assert sum(counted_rows) <= 3 + 1 + 3
    model.close()


def test_a_text_without_a_border_is_cut_too(model: CrossEncoder) -> None:
    (hit,) = model.rank(QUERY, ["bread" * 19])  # one word of 91 tokens
    assert hit.window is not None
    assert hit.window[1] - hit.window[0] < 70
    (hit,) = model.rank(QUERY, ["word " * 400])
    assert hit.window is not None


def test_equal_windows_and_equal_texts_are_scored_once(tiny_cross_encoder: Path, counted_rows: list[int]) -> None:
    model = CrossEncoder(tiny_cross_encoder, precision="float32", long_passages="windows", max_windows=99)
    sentence = "the word is bread of rome in italy."
    model.rank(QUERY, [" ".join([sentence] * 100)])
    once = sum(counted_rows)
    assert once <= 3  # all windows but the last have the same words
    counted_rows.clear()
    model.rank(QUERY, [" ".join([sentence] * 100), " ".join([sentence] * 100), " ".join([sentence] * 200)])
    assert sum(counted_rows) <= once + 1
    model.close()


async def test_windows_of_all_passages_share_batches_and_async_gives_the_same(
    model: CrossEncoder, counted_rows: list[int]
) -> None:
    texts = [numbered(20).replace("bread", name) for name in ("rome", "paris", "bread", "word", "italy", "france")]
    hits = model.rank(QUERY, texts)
    assert sum(counted_rows) > 20
    assert len(counted_rows) < 6
    assert await model.arank(QUERY, texts) == hits
    for found in await asyncio.gather(*(model.arank(QUERY, texts) for _ in range(3))):
        # Calls at the same time share batches, which rounds differently.
        assert {hit.passage.id: hit.window for hit in found} == {hit.passage.id: hit.window for hit in hits}
        logits = {hit.passage.id: hit.logit for hit in found}
        assert [logits[hit.passage.id] for hit in hits] == pytest.approx([hit.logit for hit in hits], abs=1e-5)
    scores = model.score(QUERY, texts)
    assert scores.tolist() == [hit.logit for hit in sorted(hits, key=lambda hit: hit.passage.id)]


def test_a_time_budget_marks_passages_whose_windows_were_not_all_scored(model: CrossEncoder) -> None:
    texts = [numbered(20).replace("bread", name) for name in ("rome", "paris", "bread")]
    assert [hit.logit for hit in model.rank(QUERY, texts, time_budget=1e-9)] == [None] * 3
    hits, plain = model.rank(QUERY, texts, time_budget=60), model.rank(QUERY, texts)
    assert [(hit.passage.id, hit.window) for hit in hits] == [(hit.passage.id, hit.window) for hit in plain]


def test_nan_in_one_window_is_an_error(model: CrossEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = model._worker.run(model._loaded)
    plain = engine.to_logits

    def one_nan(rows: Any) -> Any:
        logits = plain(rows).clone()
        logits[-1] = float("nan")
        return logits

    monkeypatch.setattr(engine, "to_logits", one_nan)
    with pytest.raises(Exception, match="NaN for 1 of 1 passages"):
        model.rank(QUERY, [numbered(40)])


def test_the_query_is_never_cut_and_must_leave_room(model: CrossEncoder) -> None:
    assert model.rank("paris " * 50, [numbered(2)])[0].window is not None
    with pytest.raises(InvalidInputError, match="leaves no room for a passage"):
        model.rank("paris " * 61, [numbered(10)])


def test_settings_are_checked_shown_and_travel(tiny_cross_encoder: Path) -> None:
    with pytest.raises(InvalidInputError, match="long_passages must be 'truncate' or 'windows'; got 'cut'"):
        CrossEncoder(tiny_cross_encoder, long_passages="cut")  # type: ignore[arg-type]
    for value in (0, -1, 1.5, True, None):
        with pytest.raises(InvalidInputError, match="max_windows"):
            CrossEncoder(tiny_cross_encoder, max_windows=value)  # type: ignore[arg-type]
    model = CrossEncoder(tiny_cross_encoder, precision="float32", long_passages="windows", max_windows=3)
    assert "long_passages='windows', max_windows=3)" in repr(model)
    assert "windows" not in repr(CrossEncoder(tiny_cross_encoder))
    copy = pickle.loads(pickle.dumps(model))
    assert repr(copy) == repr(model)
    with pytest.warns(TruncationWarning, match="more than 3 windows"):
        hits = copy.rank(QUERY, [numbered(40)])
    assert hits[0].window is not None


FILLER = [
    "The museum opened its doors in 1931 and was rebuilt after the war.",
    "Ticket sales rose by four percent in the second year.",
    "A new roof was paid for by the members of the club.",
    "Rain is common in spring, and the summers are dry.",
    "The committee meets on the first Monday of each month.",
    "Bread is baked every morning in the old mill.",
]


def test_a_fact_after_token_600_is_found_by_a_real_model(cross_encoder_path: Path) -> None:
    """A model that reads 512 tokens does not see it; in windows it does, and the hit says where."""
    fact = "The capital of Australia is Canberra."
    filler = " ".join(FILLER * 10)
    tokenizer = transformers.AutoTokenizer.from_pretrained(cross_encoder_path)
    assert len(tokenizer(filler, verbose=False)["input_ids"]) > 600
    passages = [Passage("has it", f"{filler} {fact} {' '.join(FILLER)}"), Passage("has not", " ".join(FILLER * 11))]
    query = "What is the capital of Australia?"
    with CrossEncoder(cross_encoder_path, precision="float32") as plain, pytest.warns(TruncationWarning):
        blind = {hit.passage.id: hit.logit for hit in plain.rank(query, passages)}
    assert blind["has it"] == pytest.approx(blind["has not"], abs=1e-4)
    with CrossEncoder(cross_encoder_path, precision="float32", long_passages="windows") as model:
        best, other = model.rank(query, passages)
    assert best.passage.id == "has it"
    assert best.window is not None
    assert fact in best.passage.text[slice(*best.window)]
    assert best.logit is not None
    assert other.logit is not None
    assert best.logit > other.logit + 3
    assert best.score > 0.3
    assert other.score < 0.05
    assert not best.truncated


def test_a_long_run_of_blanks_takes_no_time() -> None:
    """It held the interpreter for seconds, the event loop with it."""
    text = "a " + " " * 200_000 + "b. c"
    start = time.perf_counter()
    assert split(text, [(0, 1), (200_002, 200_003), (200_005, 200_006)], 2, 1)
    assert time.perf_counter() - start < 1.0


# Tokens that are not where words are: blanks that are tokens, scripts without blanks.

ASKED = "who is the treasurer"
LINES = ["the score of the model is", "the treasurer is Adeyemi.", "who reads a long table, and what is in it?"]
PARTS = [*LINES, " " * 40, "\t\t\n", "👩‍👩‍👧‍👦", "🙂", "東京は日本の首都です。", "ก็", "\u0301" * 9, "x" * 90]


@pytest.fixture(scope="module")
def bytes_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrossEncoder]:
    """As RoBERTa reads: tokens of bytes, and blanks are tokens that stand nowhere in the text."""
    path = tmp_path_factory.mktemp("bytes")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(  # type: ignore[assignment]
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        **tiny.SMALLEST,
        max_position_embeddings=66,
        num_labels=1,
        initializer_range=0.3,
        pad_token_id=1,
        type_vocab_size=1,
    )
    transformers.RobertaForSequenceClassification(config).save_pretrained(path)
    with CrossEncoder(path, long_passages="windows", max_windows=10_000, precision="float32") as model:
        yield model


def check_windows(model: CrossEncoder, text: str) -> None:
    """Every window is read whole, and together they hold all that is no blank."""
    engine = model._worker.run(model._loaded)
    reading = engine._reading(ASKED)
    [cut] = reading.pieces([text], engine.max_windows)
    assert not cut.truncated
    assert not text.strip() or max(reading.lengths(list(cut.pieces))) <= engine.max_length
    if cut.windows is not None:
        covered = {place for start, end in cut.windows for place in range(start, end)}
        assert [text[place] for place in range(len(text)) if place not in covered and not text[place].isspace()] == []


def test_blanks_that_are_tokens_count(bytes_model: CrossEncoder) -> None:
    """A table with columns: a window had the tokens of its words only, and the model cut off most of it."""
    row = "the score" + " " * 30 + "of the model" + " " * 30 + "is\n"
    text = row * 20 + "the treasurer is Adeyemi." + " " * 30 + "\n" + row * 20
    check_windows(bytes_model, text)
    check_windows(bytes_model, "a" + " " * 5000 + "b")
    check_windows(bytes_model, " " * 5000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of what was cut
        (hit,) = bytes_model.rank(ASKED, [text])
    assert hit.window is not None
    assert not hit.truncated


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PARTS), min_size=4))
def test_every_window_of_any_text_is_read_whole(bytes_model: CrossEncoder, parts: list[str]) -> None:
    check_windows(bytes_model, "".join(parts * 3))


def test_a_tokenizer_that_tells_no_places_and_a_script_without_blanks(tmp_path: Path) -> None:
    """All of a text was one word, so that its beginning was read in every window."""
    query, needle = "会計係は誰ですか", "会計係には山田さんが選ばれた。"
    filler = "会議で予算が議論された。" * 12
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({*query, *needle, *filler})]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    transformers.BertJapaneseTokenizer(
        str(tmp_path / "vocab.txt"),
        word_tokenizer_type="basic",
        subword_tokenizer_type="character",
        model_max_length=64,
    ).save_pretrained(tmp_path)
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        **tiny.SMALLEST,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=0.3,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    text = filler + needle + filler
    with CrossEncoder(tmp_path, long_passages="windows", max_windows=100, precision="float32") as model:
        check_windows(model, text)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (hit,) = model.rank(query, [text])
        assert hit.window is not None
        start, end = hit.window
        assert end - start < 64
        assert hit.logit == pytest.approx(float(model.score(query, [text[start:end]])[0]), abs=1e-5)
        tokenizer = model._worker.run(model._loaded).model.tokenizer
        assert token_spans(tokenizer, "会議 abc") == [(0, 1), (1, 2), *[(3, 6)] * len(tokenizer.tokenize("abc"))]


def test_a_chat_template_that_makes_fewer_tokens_of_a_passage_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was asked for the place of a token that is not there."""
    with CrossEncoder(tiny.save_instructed_reranker(tmp_path, positions=64)) as model:
        reading = model._worker.run(model._loaded)._reading("what is")
        text = "paris " * 100
        monkeypatch.setattr(reading, "spans", lambda text: [(0, 5)])
        assert reading.fit(text) == "paris"
