"""Windows of texts whose tokens are not where words are: blanks that are tokens, scripts without blanks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from retrieve_rerank import CrossEncoder
from retrieve_rerank.models.reading import token_spans
from tests import tiny

QUERY = "who is the treasurer"
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
    reading = engine._reading(QUERY)
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
        (hit,) = bytes_model.rank(QUERY, [text])
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
