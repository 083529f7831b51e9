"""Our classes inside the framework's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core import Settings, StorageContext, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms.mock import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import VectorIndexRetriever
from llama_index.core.schema import Document, IndexNode, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from retrieve_rerank import InvalidInputError
from retrieve_rerank.llama_index import (
    BiEncoderEmbedding,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderRerank,
    RerankedNode,
    RetrieveRerankRetriever,
)
from tests.llama_index.stubs import TableScorer, WordEmbedding, text_node


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may ask for the global LLM or embedding model: both would want a key of OpenAI's."""
    for name in ("llm", "embed_model"):
        monkeypatch.setattr(type(Settings), name, property(lambda _: pytest.fail("asked for the global models")))


@pytest.fixture
def embed_model(tiny_bi_encoder: Path) -> BiEncoderEmbedding:
    return BiEncoderEmbedding(tiny_bi_encoder)


TEXTS = ["paris is the capital of france", "rome is the capital of italy", "bread is bread"]


@pytest.mark.parametrize("use_async", [False, True])
def test_a_vector_store_index_builds_and_searches(
    embed_model: BiEncoderEmbedding, *, use_async: bool, tmp_path: Path
) -> None:
    store = ChromaVectorStore(persist_dir=tmp_path, embed_model=embed_model)
    nodes = [TextNode(text=text) for text in TEXTS]
    index = VectorStoreIndex(
        nodes,
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=embed_model,
        use_async=use_async,
    )
    found = index.as_retriever(similarity_top_k=3).retrieve(TEXTS[1])
    assert (found[0].text, found[0].score) == (TEXTS[1], pytest.approx(1.0, abs=1e-5))
    assert len(found) == 3

    again = VectorStoreIndex.from_vector_store(ChromaVectorStore(persist_dir=tmp_path), embed_model=embed_model)
    assert again.as_retriever(similarity_top_k=1).retrieve(TEXTS[1])[0].node_id == found[0].node_id
    again.delete_nodes([found[0].node_id])
    assert TEXTS[1] not in [node.text for node in again.as_retriever(similarity_top_k=3).retrieve(TEXTS[1])]


def test_text_nodes_are_found_beside_index_nodes() -> None:
    # The index restricts a query to the nodes that it keeps itself, which are its index nodes only.
    store = ChromaVectorStore(metric="dot")
    nodes = [text_node("a"), text_node("a b"), IndexNode(id_="i", text="a a", index_id="there")]
    storage_context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex(nodes, storage_context=storage_context, embed_model=WordEmbedding())
    retriever = index.as_retriever(similarity_top_k=9)
    assert retriever._node_ids == ["i"]
    assert [node.node_id for node in retriever.retrieve("a")] == ["i", "a", "a b"]
    store.delete_nodes(["a"])
    index.insert_nodes([IndexNode(id_="j", text="b", index_id="there")])
    store.delete_nodes(["j"])  # the index still sends it
    assert {node.node_id for node in index.as_retriever(similarity_top_k=9).retrieve("a")} == {"i", "a b"}
    asked = VectorIndexRetriever(index, similarity_top_k=9, node_ids=["i", "a b"])
    assert {node.node_id for node in asked.retrieve("a")} == {"i", "a b"}
    index.insert_nodes([text_node("a a a")])
    assert {node.node_id for node in asked.retrieve("a")} == {"i", "a b"}


def test_an_empty_query_to_an_index_is_an_error_not_any_nodes() -> None:
    store = ChromaVectorStore()
    index = VectorStoreIndex.from_vector_store(store, embed_model=WordEmbedding())
    index.insert_nodes([text_node("a")])
    with pytest.raises(InvalidInputError, match="no embedding"):
        index.as_retriever().retrieve("")


def test_mmr_and_refused_modes_through_an_index() -> None:
    store = ChromaVectorStore(metric="cosine")
    index = VectorStoreIndex.from_vector_store(store, embed_model=WordEmbedding())
    index.insert_nodes([text_node("a"), text_node("a a"), text_node("a b"), text_node("c")])
    mmr = index.as_retriever(
        similarity_top_k=2,
        vector_store_query_mode="mmr",
        vector_store_kwargs={"mmr_threshold": 0.2},
    )
    assert [node.text for node in mmr.retrieve("a")] == ["a", "c"]
    with pytest.raises(InvalidInputError, match="hybrid"):
        index.as_retriever(vector_store_query_mode=VectorStoreQueryMode.HYBRID).retrieve("a")


async def test_a_query_engine_answers_with_reranked_sources() -> None:
    embed_model, scorer = WordEmbedding(), TableScorer({"a": 1.0, "a b": 3.0, "b": 2.0})
    store = ChromaVectorStore(embed_model=embed_model)
    store.add(embed_model([text_node(text) for text in scorer.logits]))
    reranker = CrossEncoderRerank(scorer, top_n=2)
    engines = [
        RetrieverQueryEngine.from_args(
            RetrieveRerankRetriever(ChromaRetriever(store), reranker, top_n=2), llm=MockLLM()
        ),
        RetrieverQueryEngine.from_args(ChromaRetriever(store), llm=MockLLM(), node_postprocessors=[reranker]),
    ]
    for engine in engines:
        for response in (engine.query("a"), await engine.aquery("a")):
            assert [node.node_id for node in response.source_nodes] == ["a b", "b"]
            assert all(isinstance(node, RerankedNode) for node in response.source_nodes)
            assert [node.rerank_rank for node in response.source_nodes] == [1, 2]
            assert "a b\n\nb" in str(response)  # what the LLM was given: the texts, and no score
            assert "0." not in str(response)


def documents(**texts: str) -> list[Document]:
    return [Document(id_=id_, text=text, metadata={"source": id_}) for id_, text in texts.items()]


def texts(store: ChromaVectorStore) -> dict[str, str]:
    """All texts by document."""
    found: dict[str, list[str]] = {}
    for node in store.get_nodes():
        found.setdefault(node.metadata["source"], []).append(node.get_content())
    return {source: " ".join(sorted(parts)) for source, parts in found.items()}


@pytest.mark.parametrize("run", ["run", "arun"])
async def test_an_ingestion_pipeline_replaces_what_changed(run: str) -> None:
    store = ChromaVectorStore()
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=60, chunk_overlap=0), WordEmbedding()],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS,
    )

    async def ingest(**given: str) -> int:
        if run == "run":
            return len(pipeline.run(documents=documents(**given)))
        return len(await pipeline.arun(documents=documents(**given)))

    long = "a b c a b c a b c. " * 15
    assert await ingest(one=long, two="b b b.") > 2
    before = texts(store)
    assert before["one"].split().count("a") == 45
    assert await ingest(one=long, two="b b b.") == 0
    assert texts(store) == before
    assert await ingest(one="c c c.", two="b b b.") == 1
    assert texts(store) == {"one": "c c c.", "two": "b b b."}


def test_an_ingestion_pipeline_deletes_what_is_gone(tiny_bi_encoder: Path) -> None:
    store = ChromaVectorStore()
    pipeline = IngestionPipeline(
        transformations=[BiEncoderEmbedding(tiny_bi_encoder)],  # no splitter: each document is stored whole
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    pipeline.run(documents=documents(one="a", two="b"))
    assert texts(store) == {"one": "a", "two": "b"}
    pipeline.run(documents=documents(two="b b"))
    assert texts(store) == {"two": "b b"}


def test_an_ingestion_that_was_interrupted_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The docstore lags behind the store, or the store behind the docstore's deletions: the same call mends both."""
    store, docstore = ChromaVectorStore(), SimpleDocumentStore()

    def ingest(**given: str) -> None:
        pipeline = IngestionPipeline(
            transformations=[SentenceSplitter(chunk_size=60, chunk_overlap=0), WordEmbedding()],
            vector_store=store,
            docstore=docstore,
            docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
        )
        pipeline.run(documents=documents(**given))

    long = "a b c a b c a b c. " * 15
    ingest(one=long, two="b b b.", gone="a a a.")
    for method in ("add", "delete"):
        with monkeypatch.context() as patched:
            patched.setattr(ChromaVectorStore, method, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                ingest(one="c c c.", two="b b b.")
    ingest(one="c c c.", two="b b b.")
    assert texts(store) == {"one": "c c c.", "two": "b b b."}
