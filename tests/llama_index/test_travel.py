"""Configurations travel: written down, read back, the same behaviour; nothing secret."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters, VectorStoreQuery
from pydantic import TypeAdapter

from retrieve_rerank import CrossEncoder, InvalidInputError, TruncationWarning
from retrieve_rerank.llama_index import (
    BiEncoderEmbedding,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderRerank,
    RetrieveRerankRetriever,
)
from tests.llama_index.stubs import TableScorer, scored

MARKER = "marker-of-a-secret"
TEXTS = ["paris is the capital of france", "rome is in italy", "bread", "what is a word"]
WAYS: list[Any] = [
    lambda component: type(component).from_dict(component.to_dict()),
    lambda component: type(component).from_json(component.to_json()),
    lambda component: type(component).from_dict(json.loads(component.model_dump_json())),
    lambda component: type(component).model_validate(component.model_dump()),
    lambda component: type(component).model_validate_json(component.model_dump_json()),
    lambda component: TypeAdapter(dict[str, type(component)]).validate_python({"it": component.to_dict()})["it"],
    lambda component: pickle.loads(pickle.dumps(component)),
]


@pytest.fixture(params=WAYS, ids=["dict", "json", "pydantic", "validate", "validate_json", "field", "pickle"])
def way(request: pytest.FixtureRequest) -> Any:
    return request.param


def shown(component: Any) -> str:
    """Everything that a component can be made to say of itself."""
    said = [repr(component), str(component), component.to_json(), component.model_dump_json(), str(component.to_dict())]
    return "\n".join([*said, repr(component.model_dump()), repr(pickle.dumps(component))])


def test_a_reranker_with_a_model_of_its_own_settings(way: Any, tiny_cross_encoder: Path) -> None:
    """L5: an object's settings are what the re-ranker is made of again."""
    model = CrossEncoder(
        tiny_cross_encoder, precision="float32", max_length=12, long_passages="windows", max_windows=2, token=MARKER
    )
    original = CrossEncoderRerank(model, top_n=2, on_error="retrieval_order", time_budget=30)
    restored = way(original)
    assert (restored.top_n, restored.on_error, restored.time_budget) == (2, "retrieval_order", 30)
    assert (restored.long_passages, restored.max_windows, restored.max_length) == ("windows", 2, 12)
    assert restored.precision == "float32"
    given = scored(*("bread " * 40 + text for text in TEXTS))
    with pytest.warns(TruncationWarning, match="4 of 4 passages have more than 2 windows"):
        expected = original.postprocess_nodes(given, query_str="capital")
    with pytest.warns(TruncationWarning, match="4 of 4 passages have more than 2 windows"):
        assert restored.postprocess_nodes(given, query_str="capital") == expected
    assert MARKER not in shown(original)
    assert MARKER not in shown(restored)


def test_a_reranker_by_name(way: Any, tiny_cross_encoder: Path) -> None:
    original = CrossEncoderRerank(tiny_cross_encoder, long_passages="windows", max_windows=3, token=MARKER)
    restored = way(original)
    assert restored.to_dict() == original.to_dict()
    expected = original.postprocess_nodes(scored(*TEXTS), query_str="capital")
    assert restored.postprocess_nodes(scored(*TEXTS), query_str="capital") == expected
    assert MARKER not in shown(original)


def test_another_scorer_cannot_be_made_again_and_says_so() -> None:
    original = CrossEncoderRerank(TableScorer({"a": 0.25, "b": 0.75}), scores="probabilities")
    for write in (original.to_dict(), json.loads(original.model_dump_json())):
        with pytest.raises(InvalidInputError, match="written down with a TableScorer as its model"):
            CrossEncoderRerank.from_dict(write)
        with pytest.raises(ValueError, match="written down with a TableScorer as its model"):
            CrossEncoderRerank.model_validate(write)
    restored = pickle.loads(pickle.dumps(original))
    assert restored.postprocess_nodes(scored("a", "b"), query_str="q") == original.postprocess_nodes(
        scored("a", "b"), query_str="q"
    )


def test_a_scorer_that_cannot_be_pickled_says_so() -> None:
    class Local(TableScorer):
        pass

    with pytest.raises(InvalidInputError, match="Local cannot be pickled"):
        pickle.dumps(CrossEncoderRerank(Local({})))


def test_embeddings(way: Any, tiny_dot_bi_encoder: Path) -> None:
    original = BiEncoderEmbedding(
        tiny_dot_bi_encoder, query_prompt="find: ", document_prompt="", normalize=True, truncate_dim=16, token=MARKER
    )
    restored = way(original)
    assert restored.get_query_embedding("capital") == original.get_query_embedding("capital")
    assert restored.get_text_embedding("capital") == original.get_text_embedding("capital")
    assert MARKER not in shown(original)


def filled(folder: Path, embed_model: BiEncoderEmbedding) -> ChromaVectorStore:
    store = ChromaVectorStore(collection_name="things", persist_dir=folder, embed_model=embed_model)
    nodes = [TextNode(id_=text, text=text, metadata={"length": len(text)}) for text in TEXTS]
    store.add(embed_model(nodes))
    return store


def test_a_store_in_a_directory(way: Any, tiny_bi_encoder: Path, tmp_path: Path) -> None:
    embed_model = BiEncoderEmbedding(tiny_bi_encoder, token=MARKER)
    original = filled(tmp_path, embed_model)
    query = VectorStoreQuery(query_embedding=embed_model.get_query_embedding("capital"), similarity_top_k=3)
    restored = way(original)
    assert restored.query(query) == original.query(query)
    assert restored.to_dict() == original.to_dict()
    assert MARKER not in original.model_dump_json()


def ids(found: list[NodeWithScore]) -> list[tuple[str, float | None]]:
    return [(node.node_id, node.score) for node in found]


@pytest.mark.parametrize(
    "way", [lambda thing: pickle.loads(pickle.dumps(thing)), copy.deepcopy], ids=["pickle", "copy"]
)
def test_stores_and_retrievers_can_be_pickled(
    way: Any, tiny_bi_encoder: Path, tiny_cross_encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embed_model = BiEncoderEmbedding(tiny_bi_encoder, precision="float32", token=MARKER)
    store = filled(tmp_path, embed_model)
    filters = MetadataFilters(filters=[MetadataFilter(key="length", value=5, operator=">")])
    first = ChromaRetriever(store, similarity_top_k=3, filters=filters)
    second = CrossEncoderRerank(tiny_cross_encoder, precision="float32")
    whole = RetrieveRerankRetriever(first, second, fetch_k=3, top_n=2, time_budget=30, on_error="retrieval_order")
    for original in (first, whole):
        restored = way(original)
        assert ids(restored.retrieve("capital")) == ids(original.retrieve("capital"))
    assert (restored.fetch_k, restored.top_n, restored.time_budget, restored.on_error) == (3, 2, 30, "retrieval_order")
    assert len(way(store).get_nodes()) == 4
    assert "unpickleable" not in caplog.text
    assert MARKER not in repr(pickle.dumps(whole))


def test_a_store_in_memory_cannot_be_pickled_and_says_so(tiny_bi_encoder: Path) -> None:
    store = ChromaVectorStore(embed_model=BiEncoderEmbedding(tiny_bi_encoder))
    for thing in (store, ChromaRetriever(store)):
        with pytest.raises(InvalidInputError, match="in memory or a client's"):
            pickle.dumps(thing)


class _Locked(BaseCallbackHandler):
    """A handler that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.lock = threading.Lock()

    def on_event_start(self, *arguments: Any, **options: Any) -> str:
        return ""

    def on_event_end(self, *arguments: Any, **options: Any) -> None: ...

    def start_trace(self, trace_id: str | None = None) -> None: ...

    def end_trace(self, *arguments: Any, **options: Any) -> None: ...


def test_pickling_takes_nothing_from_what_is_pickled(
    tiny_cross_encoder: Path, tiny_bi_encoder: Path, tmp_path: Path
) -> None:
    reranker = CrossEncoderRerank(model=str(tiny_cross_encoder), callback_manager=CallbackManager([_Locked()]))
    pickle.dumps(reranker)
    assert len(reranker.postprocess_nodes(scored("bread", "rome"), query_str="bread")) == 2
    store = ChromaVectorStore(persist_dir=str(tmp_path), embed_model=BiEncoderEmbedding(model=str(tiny_bi_encoder)))
    store.embed_model.callback_manager = CallbackManager([_Locked()])
    pickle.dumps(store)
    assert store.embed_model is not None


def test_a_store_without_a_directory_is_not_written_down(tiny_bi_encoder: Path) -> None:
    """Read back, it would be another one, and empty."""
    store = ChromaVectorStore(embed_model=BiEncoderEmbedding(model=str(tiny_bi_encoder)))
    for write in (store.to_dict, store.to_json):
        with pytest.raises(InvalidInputError, match="memory"):
            write()
