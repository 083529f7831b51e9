"""Configurations travel: written down, read back, the same behaviour; nothing secret, and no code but ours."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumpd, dumps
from langchain_core.load import load as load_by_langchain
from langchain_core.load import loads as loads_by_langchain
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from retrieve_rerank import BiEncoder, CrossEncoder, InvalidInputError, TruncationWarning
from retrieve_rerank import langchain as package
from retrieve_rerank.langchain import (
    BiEncoderEmbeddings,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderReranker,
    RetrieveRerankRetriever,
    load,
)
from tests.langchain.stubs import ListRetriever, TableCrossEncoder, WordEmbeddings

MARKER = "marker-of-a-secret"
TEXTS = ["paris is the capital of france", "rome is in italy", "bread", "what is a word"]


pytestmark = pytest.mark.filterwarnings("ignore:The function `loads?` is in beta")


def by_dumpd(component: Any) -> Any:
    return load(dumpd(component))


def by_json(component: Any) -> Any:
    return load(json.loads(dumps(component)))


def by_pydantic(component: Any) -> Any:
    return type(component).model_validate_json(component.model_dump_json())


def by_pickle(component: Any) -> Any:
    return pickle.loads(pickle.dumps(component))


WAYS = [by_dumpd, by_json, by_pydantic, by_pickle, copy.deepcopy]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def way(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return request.param  # type: ignore[no-any-return]


def documents() -> list[Document]:
    return [Document(text, id=str(number), metadata={"title": f"t{number}"}) for number, text in enumerate(TEXTS)]


def shown(component: Any) -> str:
    """Everything that a component can be made to say of itself."""
    said = [repr(component), str(component), dumps(component), repr(dumpd(component)), component.model_dump_json()]
    return "\n".join([*said, repr(component.model_dump()), repr(pickle.dumps(component))])


def test_a_reranker_by_name(way: Any, tiny_cross_encoder: Path) -> None:
    original = CrossEncoderReranker(
        model=tiny_cross_encoder,
        top_n=None,
        score_threshold=0.0,
        text_template="{title}: {page_content}",
        time_budget=30,
        on_error="retrieval_order",
        long_passages="windows",
        max_windows=3,
    )
    restored = way(original)
    assert type(restored) is CrossEncoderReranker
    assert restored.model_dump() == original.model_dump()
    assert restored.compress_documents(documents(), "capital") == original.compress_documents(documents(), "capital")


def test_a_reranker_with_a_model_of_its_own_settings(way: Any, tiny_cross_encoder: Path) -> None:
    model = CrossEncoder(tiny_cross_encoder, precision="float32", max_length=12, prompt="", token=MARKER)
    original = CrossEncoderReranker(model=model, top_n=2)
    restored = way(original)
    assert restored.model.settings == model.settings
    given = [Document("bread " * 9 + text) for text in TEXTS]
    with pytest.warns(TruncationWarning, match="4 of 4"):  # max_length came along
        expected = original.compress_documents(given, "capital")
    with pytest.warns(TruncationWarning, match="4 of 4"):
        assert restored.compress_documents(given, "capital") == expected
    assert MARKER not in shown(original)
    assert MARKER not in shown(restored)
    first = CrossEncoderReranker(model="some/model").as_runnable()
    assert MARKER not in shown(RetrieveRerankRetriever(base_retriever=first, reranker=original))
    assert MARKER not in shown(original.as_runnable())


@pytest.mark.parametrize("shape", ["fields", "object"])
def test_embeddings(way: Any, shape: str, tiny_dot_bi_encoder: Path) -> None:
    settings: dict[str, Any] = {
        "query_prompt": "find: ",
        "document_prompt": "",
        "normalize": True,
        "truncate_dim": 16,
        "max_length": 8,
        "precision": "float32",
        "token": MARKER,
    }
    if shape == "fields":
        original = BiEncoderEmbeddings(model=str(tiny_dot_bi_encoder), **settings)
    else:
        original = BiEncoderEmbeddings(model=BiEncoder(tiny_dot_bi_encoder, **settings))
    restored = way(original)
    assert restored.encoder.settings == original.encoder.settings
    assert restored.embed_query("capital") == original.embed_query("capital")
    assert restored.embed_documents(["rome", "bread"]) == original.embed_documents(["rome", "bread"])
    assert len(restored.embed_query("capital")) == 16
    assert MARKER not in shown(original)
    assert MARKER not in shown(restored)


@pytest.fixture
def stored(tiny_bi_encoder: Path, tmp_path: Path) -> ChromaVectorStore:
    embeddings = BiEncoderEmbeddings(model=BiEncoder(tiny_bi_encoder, precision="float32", token=MARKER))
    store = ChromaVectorStore("things", embeddings, tmp_path / "store")
    store.add_documents(documents())
    return store


def test_a_store_in_a_directory(way: Any, stored: ChromaVectorStore) -> None:
    original = ChromaRetriever(vectorstore=stored, k=3, filter={"title": {"$ne": "t2"}}, score_threshold=-1.0)
    restored = way(original)
    assert restored.vectorstore.collection.name == "things"
    assert restored.invoke("capital") == original.invoke("capital")
    assert len(restored.invoke("capital")) == 3
    restored.add_documents([Document("capital capital", id="9")])
    assert stored.get_by_ids(["9"])[0].page_content == "capital capital"  # it is the same collection
    assert MARKER not in shown(original)


@pytest.mark.parametrize("base", ["store", "retriever", "bound"])
def test_the_whole_pipeline(way: Any, base: str, stored: ChromaVectorStore, tiny_cross_encoder: Path) -> None:
    first: Any = ChromaRetriever(vectorstore=stored, k=4)
    first = {"store": stored, "retriever": first, "bound": first.with_config(tags=["mine"])}[base]
    original = RetrieveRerankRetriever(
        base_retriever=first,
        reranker=CrossEncoderReranker(model=CrossEncoder(tiny_cross_encoder, precision="float32")),
        fetch_k=3,
        top_n=2,
        score_threshold=0.0,
        time_budget=30,
        on_error="retrieval_order",
        tags=["here"],
        metadata={"team": "search"},
    )
    restored = way(original)
    assert restored.invoke("capital") == original.invoke("capital")
    assert len(restored.invoke("capital")) == 2
    for name in ("fetch_k", "top_n", "score_threshold", "time_budget", "on_error", "tags", "metadata"):
        assert getattr(restored, name) == getattr(original, name)
    assert MARKER not in shown(original)


@pytest.mark.parametrize("way", [by_dumpd, by_json, copy.deepcopy], ids=lambda way: way.__name__)
def test_a_step_and_a_chain_of_them(way: Any, tiny_cross_encoder: Path) -> None:
    step = CrossEncoderReranker(model=tiny_cross_encoder).as_runnable(top_n=1, score_threshold=0.0, time_budget=30)
    job: Any = {"query": "capital", "documents": documents()}
    restored = way(step)
    assert restored.invoke(job) == step.invoke(job)
    assert len(restored.invoke(job)) == 1
    chain = RunnablePassthrough() | RunnableParallel(best=step, given=RunnablePassthrough())
    assert way(chain).invoke(job) == chain.invoke(job)


def test_what_cannot_be_written_down_says_so_when_it_is_read() -> None:
    table = CrossEncoderReranker(model=TableCrossEncoder({}))
    in_memory = ChromaRetriever(vectorstore=ChromaVectorStore(embedding_function=WordEmbeddings()))
    foreign = RetrieveRerankRetriever(
        base_retriever=InMemoryVectorStore(WordEmbeddings()), reranker=CrossEncoderReranker(model="some/model")
    )
    listed = RetrieveRerankRetriever(
        base_retriever=ListRetriever(documents=[]), reranker=CrossEncoderReranker(model="some/model")
    )
    for component, name in (
        (table, "stubs.TableCrossEncoder"),
        (in_memory, "ChromaVectorStore"),
        (foreign, "InMemoryVectorStore"),
        (listed, "ListRetriever"),
    ):
        for write in (dumpd, lambda component: json.loads(component.model_dump_json())):
            written: Any = write(component)
            read = load if "lc" in written else type(component).model_validate
            with pytest.raises(ValueError, match=rf"{name} in it, which cannot be"):
                read(written)
    with pytest.raises(InvalidInputError, match="RunnableLambda in it, which cannot be restored"):
        load(dumpd(RunnableLambda(len) | table.as_runnable()))
    with pytest.raises(InvalidInputError, match="in memory or a client's: it cannot be pickled"):
        pickle.dumps(in_memory)


def test_a_foreign_model_survives_pickling() -> None:
    original = CrossEncoderReranker(model=TableCrossEncoder({"a": 0.25, "b": 0.75}), scores="probabilities")
    restored = by_pickle(original)
    given = [Document("a"), Document("b")]
    assert restored.compress_documents(given, "q") == original.compress_documents(given, "q")


@pytest.mark.parametrize(
    "harmful",
    [
        {"lc": 1, "type": "constructor", "id": ["subprocess", "Popen"], "kwargs": {"args": ["true"]}},
        {"lc": 1, "type": "constructor", "id": ["retrieve_rerank", "langchain", "_load", "load"], "kwargs": {}},
        {"lc": 1, "type": "constructor", "id": ["retrieve_rerank", "indexes", "chroma", "ChromaIndex"], "kwargs": {}},
        {"lc": 1, "type": "constructor", "id": ["langchain_core", "runnables", "base", "RunnableLambda"], "kwargs": {}},
        {"lc": 1, "type": "not_implemented", "id": ["os", "system"], "repr": "system"},
    ],
    ids=lambda harmful: harmful["id"][-1],
)
def test_nothing_but_our_classes_is_made(harmful: dict[str, Any]) -> None:
    reranker = dumpd(CrossEncoderReranker(model="some/model"))
    nested = {**reranker, "kwargs": {**reranker["kwargs"], "model": harmful}}
    for dumped in (harmful, nested, {"list": [harmful]}):
        with pytest.raises(InvalidInputError, match=f"{harmful['id'][-1]} in it, which cannot be restored"):
            load(dumped)
    with pytest.raises(ValueError, match="cannot be restored"):
        CrossEncoderReranker.model_validate({"model": harmful})
    with pytest.raises(ValueError, match="cannot be written down"):
        CrossEncoderReranker.model_validate({"model": {"class": "subprocess.Popen", "args": ["true"]}})


def test_the_checkpoints_own_code_runs_only_if_the_reader_allows_it() -> None:
    model = CrossEncoder("some/model", trust_remote_code=True)
    for component in (
        CrossEncoderReranker(model=model),
        BiEncoderEmbeddings(model="some/model", trust_remote_code=True),
        BiEncoderEmbeddings(model=BiEncoder("some/model", trust_remote_code=True)),
    ):
        dumped = dumpd(component)
        with pytest.raises(InvalidInputError, match="asks to run code that comes with the checkpoint 'some/model'"):
            load(dumped)
        restored = load(dumped, trust_remote_code=True)
        assert dumpd(restored) == dumped


def test_what_is_no_dump_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="a mapping; got str"):
        load("{}")  # type: ignore[arg-type]


def test_every_component_of_the_package_travels() -> None:
    """A class that is added and forgets to say that it can be written down is found here."""
    stores = {"ChromaVectorStore"}  # LangChain's vector stores are no Serializable
    for name in set(package.__all__) - stores - {"load"}:
        kind = getattr(package, name)
        assert kind.is_lc_serializable(), name
        assert kind.lc_id()[0] == "retrieve_rerank"


def test_a_dump_is_small_and_readable() -> None:
    dumped = dumpd(CrossEncoderReranker(model="some/model", top_n=3))
    assert dumped == {
        "lc": 1,
        "type": "constructor",
        "id": ["retrieve_rerank", "langchain", "reranker", "CrossEncoderReranker"],
        "kwargs": {
            "model": "some/model",
            "top_n": 3,
            "precision": "auto",
            "backend": "auto",
            "timeout": 60.0,
            "max_concurrency": 8,
            "long_passages": "truncate",
            "max_windows": 16,
            "on_error": "raise",
            "scores": "logits",
            "rerank_weight": 1.0,
        },
    }


def test_how_a_store_searches_and_waits_travels(tiny_bi_encoder: Path, tmp_path: Path) -> None:
    embeddings = BiEncoderEmbeddings(model=str(tiny_bi_encoder))
    store = ChromaVectorStore("things", embeddings, str(tmp_path), search_breadth=500, lock_timeout=2.5)
    store.add_texts(["bread"])
    back = by_dumpd(ChromaRetriever(vectorstore=store)).vectorstore.collection
    assert (back.search_breadth, back.lock_timeout) == (500, 2.5)


@pytest.mark.parametrize("nested", [False, True])
def test_langchains_own_load_switches_no_code_on(nested: bool) -> None:
    """The allowed class is ours, the arguments are the dump's."""
    fields: dict[str, Any] = {"model": "some/model", "trust_remote_code": True}
    dumped: Any = {"lc": 1, "type": "constructor", "id": BiEncoderEmbeddings.lc_id(), "kwargs": fields}
    if nested:
        model = {"__lc_escaped__": {"class": "CrossEncoder", **fields}}
        dumped = {"lc": 1, "type": "constructor", "id": CrossEncoderReranker.lc_id(), "kwargs": {"model": model}}
    allowed: list[Any] = [BiEncoderEmbeddings, CrossEncoderReranker]
    for read, given in ((load_by_langchain, dumped), (loads_by_langchain, json.dumps(dumped))):
        with pytest.raises(InvalidInputError, match="asks to run code that comes with the checkpoint 'some/model'"):
            read(given, allowed_objects=allowed, valid_namespaces=["retrieve_rerank"])
    assert BiEncoderEmbeddings(**fields).encoder.settings["trust_remote_code"] is True
