from __future__ import annotations

import time
from pathlib import Path

import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from retrieve_rerank import BiEncoder, InvalidInputError, ModelError
from retrieve_rerank.llama_index import BiEncoderEmbedding
from tests.llama_index.stubs import recorded, ticks_during

TEXT = "rome is the capital of italy"


@pytest.fixture(scope="module")
def asymmetric(tiny_dot_bi_encoder: Path) -> BiEncoderEmbedding:
    return BiEncoderEmbedding(tiny_dot_bi_encoder, precision="float32")


def test_a_batch_is_one_call_of_the_encoder(tiny_bi_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = BiEncoder.encode_documents

    def counted(self: BiEncoder, texts: list[str], **options: bool) -> object:
        calls.append(len(texts))
        return original(self, texts, **options)

    monkeypatch.setattr(BiEncoder, "encode_documents", counted)
    BiEncoderEmbedding(tiny_bi_encoder).get_text_embedding_batch([str(number) for number in range(300)])
    BiEncoderEmbedding(tiny_bi_encoder, embed_batch_size=2).get_text_embedding_batch(["a", "b", "c"])
    assert calls == [300, 2, 1]


def test_nodes_are_embedded_as_the_framework_does_it(asymmetric: BiEncoderEmbedding) -> None:
    node = TextNode(text="bread", metadata={"title": "rome", "secret": 1}, excluded_embed_metadata_keys=["secret"])
    asymmetric([node])
    assert node.embedding == pytest.approx(asymmetric.get_text_embedding("title: rome\n\nbread"), abs=1e-5)


def test_the_cache_never_gives_a_query_the_vector_of_a_text(tiny_dot_bi_encoder: Path) -> None:
    cache = SimpleKVStore()
    model = BiEncoderEmbedding(tiny_dot_bi_encoder, embeddings_cache=cache)
    plain = BiEncoderEmbedding(tiny_dot_bi_encoder)
    for _ in range(2):  # the second time everything comes out of the cache
        assert model.get_text_embedding(TEXT) == plain.get_text_embedding(TEXT)
        assert model.get_query_embedding(TEXT) == plain.get_query_embedding(TEXT)
        assert model.get_text_embedding_batch([TEXT]) == [plain.get_text_embedding(TEXT)]
    assert len(cache.get_all("embeddings")) == len(cache.get_all("query_embeddings")) == 1


async def test_cached_queries_are_not_encoded_again(tiny_bi_encoder: Path) -> None:
    model = BiEncoderEmbedding(tiny_bi_encoder, embeddings_cache=SimpleKVStore())
    first = model.get_query_embedding(TEXT)
    model.encoder.encode_queries = model.encoder.aencode_queries = None  # type: ignore[method-assign, assignment]
    assert model.get_query_embedding(TEXT) == first
    assert await model.aget_query_embedding(TEXT) == first


async def test_the_event_loop_is_not_blocked(tiny_bi_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = BiEncoderEmbedding(tiny_bi_encoder)
    for name in ("_encode",):
        original = getattr(BiEncoder, name)

        def slow(self: BiEncoder, *given: object, _original: object = original, **options: object) -> object:
            time.sleep(0.2)
            return _original(self, *given, **options)  # type: ignore[operator]

        monkeypatch.setattr(BiEncoder, name, slow)
    for call in (
        model.aget_query_embedding(TEXT),
        model.aget_text_embedding(TEXT),
        model.aget_text_embedding_batch([TEXT]),
        model.acall([TextNode(text=TEXT)]),
    ):
        _, ticks = await ticks_during(call)
        assert ticks >= 5


@pytest.mark.parametrize(
    "other",
    [
        {"query_prompt": "q: "},
        {"document_prompt": "d: "},
        {"normalize": False},
        {"truncate_dim": 16},
        {"max_length": 32},
        {"precision": "bfloat16"},
        {"backend": "openvino"},
        {"revision": "v2"},
    ],
)
def test_whatever_changes_vectors_changes_the_ingestion_hash(tiny_bi_encoder: Path, other: dict[str, object]) -> None:
    from llama_index.core.ingestion.pipeline import get_transformation_hash

    nodes = [TextNode(text=TEXT)]
    assert get_transformation_hash(nodes, BiEncoderEmbedding(tiny_bi_encoder)) != get_transformation_hash(
        nodes, BiEncoderEmbedding(tiny_bi_encoder, **other)
    )


def test_configuration_cannot_change_under_the_encoder(asymmetric: BiEncoderEmbedding) -> None:
    with pytest.raises(ValueError, match="frozen"):
        asymmetric.query_prompt = "other"


def test_model_is_another_name_for_model_name(tiny_bi_encoder: Path) -> None:
    assert BiEncoderEmbedding(model=tiny_bi_encoder).model_name == str(tiny_bi_encoder)
    assert BiEncoderEmbedding().model_name == "sentence-transformers/multi-qa-mpnet-base-dot-v1"
    with pytest.raises(InvalidInputError, match="give one"):
        BiEncoderEmbedding("one", model="other")


@pytest.mark.parametrize(("size", "says"), [(0, "embed_batch_size"), (4096, "2048")])
def test_a_batch_size_that_the_framework_does_not_take_says_so(size: int, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        BiEncoderEmbedding("some/model", embed_batch_size=size)


def test_an_error_comes_at_once(tmp_path: Path) -> None:
    """L7: the peer sleeps for 8 seconds and more before it shows a local error."""
    start = time.perf_counter()
    with pytest.raises(ModelError):
        BiEncoderEmbedding(tmp_path / "nothing").get_text_embedding("text")
    with pytest.raises(InvalidInputError):
        BiEncoderEmbedding(tmp_path / "nothing").get_text_embedding("lone surrogate \ud800")
    assert time.perf_counter() - start < 3


def test_events_come_in_pairs_for_queries(tiny_bi_encoder: Path) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    model = BiEncoderEmbedding(tiny_bi_encoder, callback_manager=CallbackManager([debug]))
    with recorded("EmbeddingStartEvent", "EmbeddingEndEvent") as recorder:
        vector = model.get_query_embedding(TEXT)
    assert recorder.names == ["EmbeddingStartEvent", "EmbeddingEndEvent"]
    assert recorder.events[1].chunks == [TEXT]
    assert recorder.events[1].embeddings == [vector]
    assert [len(pair) for pair in debug.get_event_pairs(CBEventType.EMBEDDING)] == [2]


def test_a_rate_limiter_is_asked_for_queries_too(tiny_bi_encoder: Path) -> None:
    class Limiter:
        asked = 0

        def acquire(self) -> None:
            self.asked += 1

    limiter = Limiter()
    BiEncoderEmbedding(tiny_bi_encoder, rate_limiter=limiter).get_query_embedding(TEXT)  # type: ignore[arg-type]
    assert limiter.asked == 1
