"""How much of a text is read: of passages and of queries, by all kinds of bi-encoders, and never silently."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from sentence_transformers.sentence_transformer import modules

from retrieve_rerank import BiEncoder, ChromaIndex, CrossEncoder, InvalidInputError, Passage, TruncationWarning
from tests import tiny


def router(folder: Path, sides: list[list[torch.nn.Module]]) -> Path:
    whole = modules.Router.for_query_document(query_modules=sides[0], document_modules=sides[1])
    sentence_transformers.SentenceTransformer(modules=[whole], device="cpu").save_pretrained(str(folder))
    return folder


def configured(path: Path, **settings: int) -> Path:
    """Write settings of sentence-transformers' own into a checkpoint."""
    file = path / "sentence_bert_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return path


def test_a_routers_queries_have_their_own_limit(tmp_path: Path) -> None:
    query = "what is the capital of france " * 6
    with BiEncoder(tiny.save_router(tmp_path / "short", (32, 64))) as encoder:
        assert encoder.max_length == 64
        with pytest.warns(TruncationWarning, match=r"1 of 1 texts are longer than .* reads \(32 tokens\)"):
            encoder.encode_queries([query])
    with BiEncoder(tiny.save_router(tmp_path / "long", (64, 32))) as encoder, warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode_queries([query])  # which is read whole
        with pytest.raises(TruncationWarning, match=r"\(32 tokens\)"):
            encoder.encode_documents([query])


def test_a_routers_networks_have_positions_for_so_much_only(tmp_path: Path) -> None:
    path = tiny.save_router(tmp_path / "model", (32, 64))
    with pytest.raises(InvalidInputError, match="max_length is 500, but this model has positions for 32 tokens"):
        _ = BiEncoder(path, max_length=500).max_length
    sides = []
    for seed in range(2):
        side = tmp_path / str(seed)
        side.mkdir()
        torch.manual_seed(seed)
        settings = transformers.RobertaConfig(
            vocab_size=200,
            **tiny.SMALLEST,
            max_position_embeddings=65,
            pad_token_id=0,
        )
        transformers.RobertaModel(settings).save_pretrained(side)
        tiny.save_tokenizer(side, 10**9)  # a tokenizer that knows no limit
        sides.append(list(sentence_transformers.SentenceTransformer(str(side), device="cpu")))
    with BiEncoder(router(tmp_path / "both", sides)) as encoder:
        assert encoder.max_length == 64
        with pytest.warns(TruncationWarning):
            assert encoder.encode_documents(["paris " * 200]).shape == (1, 32)


def test_normalizing_on_the_routes_can_be_left_out(tmp_path: Path) -> None:
    loaded = sentence_transformers.SentenceTransformer(
        str(tiny.save_router(tmp_path / "model", (64, 64))), device="cpu"
    )
    sides = [[*loaded[0].sub_modules[route], modules.Normalize()] for route in ("query", "document")]
    path = router(tmp_path / "normalized", sides)
    with BiEncoder(path) as as_it_is, BiEncoder(path, normalize=False) as plain:
        assert np.linalg.norm(as_it_is.encode_documents(["paris"])) == pytest.approx(1, abs=1e-3)
        assert np.linalg.norm(plain.encode_documents(["paris"])) > 1.5
        assert (as_it_is.fingerprint["normalize"], plain.fingerprint["normalize"]) == (True, False)


def test_a_checkpoint_may_have_other_limits_for_each_kind_of_text(tmp_path: Path) -> None:
    path = configured(tiny.save_bi_encoder(tmp_path), document_length=16, query_length=8)
    with BiEncoder(path) as encoder:
        assert encoder.max_length == 16
        with pytest.warns(TruncationWarning, match=r"\(16 tokens\)"):
            encoder.encode_documents(["paris " * 20])
        with pytest.warns(TruncationWarning, match=r"\(8 tokens\)"):
            encoder.encode_queries(["paris " * 12])
    with BiEncoder(path, max_length=12) as encoder:
        with pytest.warns(TruncationWarning, match=r"\(12 tokens\)"):
            first, second = encoder.encode_documents(["paris " * 10, "paris " * 10 + "rome " * 3])
        assert first == pytest.approx(second, abs=1e-6)


def test_a_chat_templates_own_words_count(tmp_path: Path) -> None:
    settings = transformers.Qwen3Config(
        vocab_size=200,
        **tiny.SMALLEST,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    transformers.Qwen3Model(settings).save_pretrained(tmp_path)
    template = "{% for m in messages %}{{ '[CLS] ' + m['role'] + ' ' + m['content'] + ' [SEP] ' }}{% endfor %}"
    tiny.save_chat_tokenizer(tmp_path, template, 64)
    with BiEncoder(tmp_path, document_prompt="the ") as encoder:
        texts = ["paris", "paris is the capital of france", "rome " * 40]
        model = encoder._worker.run(encoder._loaded).model
        read = [model.preprocess([text], prompt="the ", task="document")["input_ids"].shape[1] for text in texts]
        assert encoder.count_tokens(texts) == read
        room = 64 - (read[0] - 1)
        with pytest.warns(UserWarning, match="plain network"):
            encoder.encode_documents(texts[:1])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encoder.encode_documents(["paris " * room])
        with pytest.warns(TruncationWarning):
            encoder.encode_documents(["paris " * (room + 1)])


def test_a_prompt_that_leaves_no_room_is_named(tiny_bi_encoder: Path, tiny_cross_encoder: Path) -> None:
    """All texts had one vector."""
    for options in ({"query_prompt": "what " * 70}, {"max_length": 2}):
        encoder = BiEncoder(tiny_bi_encoder, **options)
        with encoder, pytest.raises(InvalidInputError, match=r"there without any text: .* Shorten query_prompt"):
            encoder.encode_queries(["paris", "rome"])
    model = CrossEncoder(tiny_cross_encoder, prompt="what " * 70)
    with model, pytest.raises(InvalidInputError, match="tokens with the prompt and this cross-encoder reads 64"):
        model.rank("paris", ["rome"])


# A long call says once how much it cut, where its caller is.

TEXTS = ["rome " * (200 if number % 3 == 0 else 2) + str(number) for number in range(30)]


@pytest.fixture
def encoder(tiny_bi_encoder: Path) -> Iterator[BiEncoder]:
    with BiEncoder(tiny_bi_encoder) as model:
        yield model


def passages() -> Iterator[Passage]:
    return (Passage(str(number), text) for number, text in enumerate(TEXTS))


def broken() -> Iterator[Passage]:
    yield from list(passages())[:8]
    raise RuntimeError("the file ends here")


def test_an_index_says_once_what_all_its_batches_cut(encoder: BiEncoder) -> None:
    with ChromaIndex(encoder) as index:
        with pytest.warns(TruncationWarning, match="10 of 30 texts are longer than") as caught:
            index.add(passages(), batch_size=4)
        assert [warning.filename for warning in caught] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            index.add(passages(), batch_size=4)  # nothing is encoded
            index.add([Passage("short", "rome")])
        with pytest.warns(TruncationWarning, match="1 of 1 texts"):
            encoder.encode_documents(TEXTS[:1])  # by itself as before


def test_what_was_cut_before_a_failure_is_said(encoder: BiEncoder) -> None:
    with (
        ChromaIndex(encoder) as index,
        pytest.warns(TruncationWarning, match="3 of 8 texts"),
        pytest.raises(RuntimeError, match="the file ends"),
    ):
        index.add(broken(), batch_size=4)


def test_each_model_is_told_of_its_own(encoder: BiEncoder, tiny_dot_bi_encoder: Path) -> None:
    def asking(other: BiEncoder) -> Iterator[Passage]:
        for passage in passages():
            other.encode_queries([passage.text])
            yield passage

    with BiEncoder(tiny_dot_bi_encoder) as other, ChromaIndex(encoder) as index:
        with pytest.warns(TruncationWarning) as caught:
            index.add(asking(other), batch_size=4)
        said = sorted(str(warning.message).split(" reads")[0] for warning in caught)
        both = sorted(f"10 of 30 texts are longer than {model.model!r}" for model in (encoder, other))
        assert said == both


async def test_a_task_that_outlives_the_call_is_heard(encoder: BiEncoder) -> None:
    tasks: list[asyncio.Task[object]] = []

    async def later() -> object:
        return encoder.encode_queries(TEXTS[:1])

    def starting() -> Iterator[Passage]:
        tasks.append(asyncio.get_running_loop().create_task(later()))
        yield Passage("short", "rome")

    with ChromaIndex(encoder) as index:
        index.add(starting())
        with pytest.warns(TruncationWarning, match="1 of 1 texts"):
            await tasks[0]


def test_where_warnings_are_errors_the_calls_own_error_comes_first(encoder: BiEncoder) -> None:
    with ChromaIndex(encoder) as index, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="the file ends"):
            index.add(broken(), batch_size=4)
        with pytest.raises(TruncationWarning):
            index.add(passages(), batch_size=4)
