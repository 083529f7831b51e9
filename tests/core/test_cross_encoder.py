"""Logits are those of sentence-transformers, whatever else is in the batch."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers

from retrieve_rerank import CrossEncoder, InvalidInputError, ModelError, TruncationWarning
from tests import tiny
from tests.core.stubs import close_to

Predict = Callable[..., Any]

QUERY = "what is the capital of france"
TEXTS = ["paris is the capital of france", "", "rome", "two\nlines", "bread " * 40, "é ü 123 !?", "word", "the word is"]


def many_texts() -> list[str]:
    """Return 200 different texts of 1 to 50 words in no order of length: several batches."""
    words = random.Random(5)
    names = ["paris", "rome", "bread", "word", "the", "italy", "capital"]
    return [" ".join([*words.choices(names, k=words.randrange(1, 47)), f"{number}"]) for number in range(200)]


@pytest.mark.parametrize("texts", [TEXTS, many_texts()])
def test_logits_equal_those_of_sentence_transformers(
    model: CrossEncoder, tiny_cross_encoder: Path, predict: Predict, texts: list[str]
) -> None:
    logits = model.score(QUERY, texts)
    assert (logits.shape, logits.dtype) == ((len(texts),), np.float32)
    assert logits == close_to(predict(tiny_cross_encoder, QUERY, texts))
    assert logits.std() > 0.05  # the model tells texts apart, so the comparison means something


def test_logits_equal_those_of_the_real_model(cross_encoder_path: Path, predict: Predict) -> None:
    texts = ["Rome is in Italy.", "Paris is the capital of France.", "Bread is baked.\n" * 30, ""]
    with CrossEncoder(cross_encoder_path, precision="float32") as model:
        logits = model.score("What is the capital of France?", texts)
    assert logits == close_to(predict(cross_encoder_path, "What is the capital of France?", texts))
    assert logits.argmax() == 1


def test_scores_do_not_depend_on_the_batch(model: CrossEncoder) -> None:
    texts = many_texts()
    scores = dict(zip(texts, model.score(QUERY, texts), strict=True))
    shuffled = random.Random(3).sample(texts, len(texts))
    assert model.score(QUERY, shuffled) == close_to([scores[text] for text in shuffled])
    assert model.score(QUERY, texts[:7]) == close_to([scores[text] for text in texts[:7]])
    for text in texts[::23]:
        assert model.score(QUERY, [text]) == close_to([scores[text]])


def test_bfloat16_scores_hardly_depend_on_the_batch_and_keep_the_order(tiny_cross_encoder: Path) -> None:
    texts = many_texts()[:80]
    with CrossEncoder(tiny_cross_encoder, precision="float32") as exact:
        logits = exact.score(QUERY, texts)
    with CrossEncoder(tiny_cross_encoder, precision="bfloat16") as model:
        together, alone = model.score(QUERY, texts), np.concatenate([model.score(QUERY, [text]) for text in texts])
        assert np.array_equal(model.score(QUERY, texts), together)  # the same call gives the same, to the last bit
        hits = model.rank(QUERY, texts)
    assert together == pytest.approx(alone, abs=0.04)
    assert len(set(together.tolist())) == 80  # no ties that float32 does not have
    for better, worse in pairwise(hits):
        assert logits[int(better.passage.id)] > logits[int(worse.passage.id)] - 0.1


def test_equal_texts_are_scored_once(model: CrossEncoder, counted_rows: list[int]) -> None:
    logits = model.score(QUERY, ["rome", "bread", "rome", "rome", "bread"])
    assert sum(counted_rows) == 2
    assert logits.tolist() == [logits[0], logits[1], logits[0], logits[0], logits[1]]
    assert logits[0] != logits[1]
    counted_rows.clear()
    assert len(model.rank(QUERY, ["rome", "bread", "rome", "rome", "bread"])) == 5
    assert sum(counted_rows) == 2


def test_texts_of_similar_length_share_a_batch(model: CrossEncoder, counted_rows: list[int]) -> None:
    model.score(QUERY, many_texts())
    assert sum(counted_rows) == 200
    assert 2 <= len(counted_rows) < 20


@pytest.mark.parametrize(
    ("fixture", "around"),  # [CLS] query [SEP] passage [SEP], or the words of the template
    [
        ("tiny_cross_encoder", 3),
        ("tiny_roberta", 3),
        ("tiny_language_model", 9),
    ],
)
def test_a_long_passage_gives_way_and_the_query_is_never_cut(
    request: pytest.FixtureRequest, fixture: str, around: int
) -> None:
    query = "paris " * 40  # longer than what is left for the passage
    room = tiny.POSITIONS - around - 40
    with CrossEncoder(request.getfixturevalue(fixture), precision="float32") as model:
        fits = model.score(query, ["rome " * room])
        with pytest.warns(TruncationWarning):
            cut = model.score(query, ["rome " * room + "bread " * 100])
        assert cut == close_to(fits)
        assert model.score("paris " * 39, ["rome " * room]) != close_to(fits)


def test_truncation_is_warned_of_once_with_counts_and_marked(model: CrossEncoder) -> None:
    room = tiny.POSITIONS - 3 - 1
    texts = ["word " * room, "word " * (room + 1), "rome", "bread " * 300]
    with pytest.warns(TruncationWarning, match=r"2 of 4 passages are longer .*\(64 tokens with the query\)") as caught:
        hits = model.rank("paris", texts)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert {hit.passage.id for hit in hits if hit.truncated} == {"1", "3"}
    model.rank("paris", texts[:1])  # fits exactly: no warning, which would be an error here
    with pytest.warns(TruncationWarning) as caught:
        model.score("paris", texts)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(("words", "fits"), [(60, True), (61, False), (500, False)])
def test_a_query_that_leaves_no_room_is_refused(model: CrossEncoder, words: int, fits: bool) -> None:
    if fits:
        with pytest.warns(TruncationWarning):
            assert model.score("paris " * words, ["rome bread"]).shape == (1,)
    else:
        with pytest.raises(
            InvalidInputError, match=rf"the query has {words + 3} tokens .* reads 64 .*shorten the query"
        ):
            model.score("paris " * words, ["rome"])


def test_a_language_models_template_counts_towards_the_length(tiny_language_model: Path) -> None:
    room = tiny.POSITIONS - 9 - 1  # the template has nine words of its own
    with CrossEncoder(tiny_language_model) as model:
        model.score("paris", ["word " * room])  # fits exactly: no warning, which would be an error here
        with pytest.warns(TruncationWarning, match="1 of 2 passages"):
            model.score("paris", ["word " * (room + 1), "word"])
        with pytest.raises(InvalidInputError, match="leaves no room for a passage"):
            model.score("paris " * (room + 1), ["word"])


def test_max_length_shortens_what_is_read(tiny_cross_encoder: Path) -> None:
    with CrossEncoder(tiny_cross_encoder, precision="float32", max_length=8) as model:
        assert model.max_length == 8
        with pytest.warns(TruncationWarning, match="8 tokens"):
            cut = model.score("paris", ["rome is the capital of italy"])
        assert cut == close_to(model.score("paris", ["rome is the capital"]))


def test_no_texts_have_no_scores_and_load_nothing() -> None:
    model = CrossEncoder("no-such-model")
    assert model.rank(QUERY, []) == []
    scores = model.score(QUERY, [])
    assert (scores.shape, scores.dtype) == ((0,), np.float32)


def test_prompts_saved_given_and_switched_off(tiny_cross_encoder: Path, tmp_path: Path) -> None:
    prompted = sentence_transformers.CrossEncoder(
        str(tiny_cross_encoder), device="cpu", prompts={"task": "find the "}, default_prompt_name="task"
    )
    prompted.save_pretrained(str(tmp_path))
    saved, given, off = (
        CrossEncoder(tmp_path, precision="float32", prompt=prompt).score("capital", ["rome", "paris"])
        for prompt in (None, "what is the ", "")
    )
    plain = CrossEncoder(tiny_cross_encoder, precision="float32")
    assert saved == close_to(plain.score("find the capital", ["rome", "paris"]))
    assert given == close_to(plain.score("what is the capital", ["rome", "paris"]))
    assert off == close_to(plain.score("capital", ["rome", "paris"]))
    with CrossEncoder(tiny_cross_encoder, prompt="the ") as model:  # a prompt counts towards the length
        with pytest.warns(TruncationWarning, match="1 of 1"):
            model.score("paris", ["word " * (tiny.POSITIONS - 3 - 1)])
        with pytest.raises(InvalidInputError, match="the query has 64 tokens"):
            model.score("paris " * 60, ["word"])


@pytest.mark.parametrize(
    ("query", "texts", "says"),
    [
        *((query, ["a"], "query") for query in ("", "  ", None, 5, "\ud800")),
        *((QUERY, texts, "text|passage") for texts in ("one text", None, [None], ["a", 5], ["\ud800"])),
    ],
)
async def test_unusable_input_is_refused_before_anything_loads(query: Any, texts: Any, says: str) -> None:
    model = CrossEncoder("no-such-model")
    for method in (model.score, model.rank):
        with pytest.raises(InvalidInputError, match=says):
            method(query, texts)
    for method in (model.ascore, model.arank):
        with pytest.raises(InvalidInputError, match=says):
            await method(query, texts)


def test_logits_that_are_no_numbers_are_an_error(model: CrossEncoder) -> None:
    network = model._worker.run(model._loaded).model.transformers_model
    network.classifier.bias.data[:] = float("nan")
    with pytest.raises(ModelError, match="NaN for 2 of 2 passages"):
        model.rank(QUERY, ["a", "b"])
