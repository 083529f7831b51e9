"""A bi-encoder as the framework's embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentence_transformers

from tests.frameworks.adapters import Door

TEXT = "def f():\n    return 1"


async def test_saved_prompts_reach_queries_and_documents_and_newlines_stay(
    door: Door, tiny_dot_bi_encoder: Path
) -> None:
    """H1, H3: LangChain's class calls plain `encode` and turns newlines into spaces. L6: LlamaIndex's empties them."""
    model = sentence_transformers.SentenceTransformer(str(tiny_dot_bi_encoder), device="cpu")
    embedding = door.embedding(str(tiny_dot_bi_encoder), precision="float32")
    for query, document, last in await door.vectors(embedding, TEXT, [TEXT, ""]):
        np.testing.assert_allclose(query, model.encode_query(TEXT), atol=1e-5)
        np.testing.assert_allclose(document, model.encode_document(TEXT), atol=1e-5)
        np.testing.assert_allclose(last, model.encode_document(""), atol=1e-5)
        assert not np.allclose(query, model.encode(TEXT), atol=1e-3)
        assert not np.allclose(query, document, atol=1e-3)
        assert {type(number) for number in query + document} == {float}


async def test_given_prompts_go_before_the_saved_ones_each_for_its_side(door: Door, tiny_dot_bi_encoder: Path) -> None:
    """H4: the stock class gives queries the documents' options."""
    name = str(tiny_dot_bi_encoder)
    ((query, document), _) = await door.vectors(door.embedding(name), "paris", ["paris"])
    ((same, other), _) = await door.vectors(door.embedding(name, document_prompt="word: "), "paris", ["paris"])
    assert query == same
    assert document != other
    bare = door.embedding(name, precision="float32", query_prompt="", document_prompt="")
    ((query, document), _) = await door.vectors(bare, "paris", ["paris"])
    assert query == pytest.approx(document, abs=1e-6)


async def test_async_gives_the_same_vectors(door: Door, tiny_bi_encoder: Path) -> None:
    for texts in (["paris", "bread", ""], []):
        one, other = await door.vectors(door.embedding(str(tiny_bi_encoder)), "rome", texts)
        assert one == other
        assert len(one) == 1 + len(texts)


@pytest.mark.parametrize("wrong", [{"precision": "int3"}, {"max_length": 0}, {"truncate_dim": 0}, {"model": " "}])
def test_settings_that_cannot_be_used(door: Door, wrong: dict[str, object]) -> None:
    with pytest.raises(door.refusal, match=next(iter(wrong))):
        door.embedding(**{"model": "some/model", **wrong})
