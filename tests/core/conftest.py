"""Further tiny models, for the corners of the core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from retrieve_rerank import CrossEncoder


@pytest.fixture
def model(tiny_cross_encoder: Path) -> Iterator[CrossEncoder]:
    """The tiny cross-encoder, loaded, in the precision of sentence-transformers."""
    from retrieve_rerank import CrossEncoder

    with CrossEncoder(tiny_cross_encoder, precision="float32") as opened:
        opened.score("what", ["loads the model"])
        yield opened


@pytest.fixture(scope="session")
def tiny_roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder with one position more than tokens, and a tokenizer without a limit."""
    from tests import tiny

    return tiny.save_roberta_cross_encoder(tmp_path_factory.mktemp("tiny-roberta"))


@pytest.fixture(scope="session")
def tiny_language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A re-ranker that is a language model with a chat template."""
    from tests import tiny

    return tiny.save_language_model_reranker(tmp_path_factory.mktemp("tiny-language-model"))


@pytest.fixture(scope="session")
def tiny_static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bi-encoder without a network or a limit."""
    from tests import tiny

    return tiny.save_static_bi_encoder(tmp_path_factory.mktemp("tiny-static"))


@pytest.fixture(scope="session")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network without a head, whose configuration claims one."""
    from tests import tiny

    return tiny.save_headless(tmp_path_factory.mktemp("headless"))


@pytest.fixture
def predict() -> Callable[..., object]:
    """What sentence-transformers' own CrossEncoder says: logits of pairs."""
    import sentence_transformers
    import torch

    def logits(path: Path, query: str, texts: list[str], **options: object) -> object:
        model = sentence_transformers.CrossEncoder(str(path), device="cpu")
        pairs = [(query, text) for text in texts]
        return model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False, **options)

    return logits


@pytest.fixture
def counted_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every forward pass of a BERT, in order, but for those that belong to loading it."""
    import transformers

    from retrieve_rerank.models import engine

    rows: list[int] = []
    forward, shorten = transformers.BertModel.forward, engine.read_first_token_only

    def counting(self: object, input_ids: torch.Tensor, *arguments: object, **options: object) -> object:
        rows.append(len(input_ids))
        return forward(self, input_ids, *arguments, **options)

    def uncounted(*arguments: Any) -> bool:
        before = len(rows)
        done = shorten(*arguments)
        del rows[before:]
        return done

    monkeypatch.setattr(transformers.BertModel, "forward", counting)
    monkeypatch.setattr(engine, "read_first_token_only", uncounted)
    return rows


@pytest.fixture
def many_texts() -> Callable[[], list[str]]:
    """Makes 200 different texts of 1 to 50 words in no order of length: several batches."""
    from tests.core.test_cross_encoder import many_texts

    return many_texts
