"""What users of LangChain's components wrote, and the same with ours in their place: both are run."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import langchain_chroma
import numpy as np
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker as ClassicReranker
from langchain_core.documents import Document
from langchain_huggingface import HuggingFaceEmbeddings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it is no longer maintained, and says so
    from langchain_community.cross_encoders import HuggingFaceCrossEncoder
    from langchain_community.retrievers import BM25Retriever as CommunityBM25

from retrieve_rerank import CrossEncoder, IndexMismatchError, InvalidInputError, RemoteError
from retrieve_rerank.langchain import (
    BiEncoderEmbeddings,
    BM25Retriever,
    ChromaVectorStore,
    CrossEncoderReranker,
    HybridRetriever,
    RetrieveRerankRetriever,
    compat,
)
from tests.chroma_server import ChromaServer
from tests.langchain.stubs import WordEmbeddings

TEXTS = ["a a a", "a a b", "c", "b b a"]


@pytest.mark.filterwarnings("ignore:legacy embedding function config")
def test_code_written_for_the_incumbent_runs(tmp_path: Path) -> None:
    """The same calls on langchain-chroma and on ours, with the same metric, give the same answers."""
    answers = []
    for kind, options in (
        (langchain_chroma.Chroma, {"collection_configuration": {"hnsw": {"space": "cosine"}}}),
        (ChromaVectorStore, {}),
    ):
        db = kind.from_texts(
            TEXTS,
            embedding=WordEmbeddings(),
            metadatas=[{"n": number} for number in range(4)],
            ids=["0", "1", "2", "3"],
            collection_name="incumbent",
            persist_directory=str(tmp_path / kind.__name__),
            **options,
        )
        db.update_document("2", Document("c c", metadata={"n": 2}))
        db.delete(ids=["3"])
        answers.append(
            {
                "search": db.similarity_search("a", k=2),
                "filter": db.similarity_search("a", k=2, filter={"n": {"$gt": 0}}),
                "text": db.similarity_search("a", k=2, where_document={"$contains": "c"}),
                "distance": [(d.id, pytest.approx(s)) for d, s in db.similarity_search_with_score("a", k=3)],
                "relevance": [
                    (d.id, pytest.approx(s)) for d, s in db.similarity_search_with_relevance_scores("a", k=3)
                ],
                "retriever": db.as_retriever(search_kwargs={"k": 1}).invoke("b"),
                "ids": sorted(db.get()["ids"]),
                "count": db._collection.count(),
                "by vector": db.similarity_search_by_vector_with_relevance_scores([1.0, 0.0, 0.0, 0.0], k=1)[0][0].id,
                "with vectors": [(d.id, v.tolist()) for d, v in db.similarity_search_with_vectors("a", k=2)],
                "some": db.get(ids=["0", "1"], include=["embeddings"])["embeddings"].tolist(),
                "not asked for": db.get(include=["embeddings"])["documents"],
            }
        )
    assert answers[0] == answers[1]


def test_collections_of_the_incumbent_open(tmp_path: Path) -> None:
    """Without a fingerprint, a stored text is embedded again: the same vector, the same model."""
    langchain_chroma.Chroma.from_texts(TEXTS, WordEmbeddings("one"), persist_directory=str(tmp_path))
    ours = ChromaVectorStore("langchain", WordEmbeddings("one"), tmp_path)
    assert ours.metric == "euclidean"
    assert ours.similarity_search("c", k=1)[0].page_content == "c"
    with pytest.raises(IndexMismatchError, match="model was 'one', now 'two'"):
        ChromaVectorStore("langchain", WordEmbeddings("two"), tmp_path)


def test_a_collection_that_says_nothing_and_fits_nothing_warns(tmp_path: Path) -> None:
    class Other(WordEmbeddings):
        def _count(self, text: str, last: float) -> list[float]:
            return [*reversed(super()._count(text, last)[:3]), last]

    langchain_chroma.Chroma.from_texts(["a a b"], Other(), persist_directory=str(tmp_path))
    with pytest.warns(UserWarning, match="does not say which encoder made it"):
        ChromaVectorStore("langchain", WordEmbeddings(), tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"collection_metadata": {"hnsw:space": "ip"}}, {"collection_configuration": {"hnsw": {"space": "ip"}}}],
)
def test_the_incumbents_ways_to_give_a_metric(options: dict[str, Any]) -> None:
    assert ChromaVectorStore(embedding_function=WordEmbeddings(), **options).metric == "dot"
    assert ChromaVectorStore.from_texts(["a"], WordEmbeddings(), **options).metric == "dot"
    with pytest.raises(InvalidInputError, match="space must be one of"):
        ChromaVectorStore(collection_metadata={"hnsw:space": "manhattan"})


def test_scores_by_vector_are_distances_as_in_the_incumbent() -> None:
    store = ChromaVectorStore.from_texts(["a", "b"], WordEmbeddings(), ids=["1", "2"])
    found = store.similarity_search_by_vector_with_relevance_scores(WordEmbeddings().embed_query("a"))
    assert found == store.similarity_search_with_score("a")
    assert found[0][1] < found[1][1]


@pytest.mark.parametrize("include", ["embeddings", ["documents", "distances"]])
def test_what_get_cannot_include_is_refused(include: Any) -> None:
    with pytest.raises(InvalidInputError, match="include must be a list of"):
        ChromaVectorStore().get(include=include)


def test_the_name_that_is_another_by_default(tmp_path: Path) -> None:
    """The import alone would find nothing, without a word."""
    langchain_chroma.Chroma.from_texts(TEXTS, WordEmbeddings(), persist_directory=str(tmp_path))
    with pytest.warns(UserWarning, match="pass collection_name='langchain' to go on with that one"):
        ChromaVectorStore(embedding_function=WordEmbeddings(), persist_directory=tmp_path)
    again = ChromaVectorStore("langchain", WordEmbeddings(), tmp_path)
    assert again.similarity_search("c", k=1)[0].page_content == "c"


async def test_a_search_of_a_collection_that_a_slip_made_warns_once(tmp_path: Path) -> None:
    ChromaVectorStore.from_texts(TEXTS, WordEmbeddings(), persist_directory=tmp_path)
    for slip in ("passage", "passsages"):
        store = ChromaVectorStore(slip, WordEmbeddings(), tmp_path)
        assert store.get()["ids"] == []
        with pytest.warns(UserWarning, match="was made just now and is empty, .* There are also: .*'passages'"):
            assert await store.asimilarity_search("a") == []
        assert store.similarity_search("a") == []
    meant = ChromaVectorStore("another", WordEmbeddings(), tmp_path)
    meant.add_texts(["a"])
    assert len(meant.similarity_search("a")) == 1


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_chromas_own_metric_is_no_obstacle(tmp_path: Path, tiny_bi_encoder: Path, metric: str) -> None:
    """langchain-chroma compares by L2 unless told, which is the order of the cosine where vectors have the length 1."""
    embeddings = BiEncoderEmbeddings(model=str(tiny_bi_encoder))
    space = {"euclidean": "l2", "dot": "ip"}.get(metric, metric)
    theirs = langchain_chroma.Chroma.from_texts(
        ["paris is the capital", "bread is baked"],
        embeddings,
        persist_directory=str(tmp_path),
        collection_configuration={"hnsw": {"space": space}},
    )
    expected = theirs.similarity_search_with_score("paris", k=2)
    for _ in range(2):  # the first writes the model down
        ours = ChromaVectorStore("langchain", embeddings, tmp_path)
        assert ours.metric == metric
        found = ours.similarity_search_with_score("paris", k=2)
        assert [document.page_content for document, _ in found] == [document.page_content for document, _ in expected]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-3)
        ours.close()


def test_a_metric_that_orders_otherwise_is_an_obstacle(tmp_path: Path, tiny_dot_bi_encoder: Path) -> None:
    embeddings = BiEncoderEmbeddings(model=str(tiny_dot_bi_encoder))
    langchain_chroma.Chroma.from_texts(["paris", "bread is baked"], embeddings, persist_directory=str(tmp_path))
    with pytest.raises(IndexMismatchError, match=r"by 'euclidean', .* made for 'dot'.* pass metric='euclidean'"):
        ChromaVectorStore("langchain", embeddings, tmp_path)
    assert ChromaVectorStore("langchain", embeddings, tmp_path, metric="euclidean").metric == "euclidean"


class Foreign(WordEmbeddings):
    """Another library's embeddings, which run one of our models and tell its name only."""

    def __init__(self, path: Path) -> None:
        self._within = BiEncoderEmbeddings(model=str(path), precision="float32")
        self.model_name = "tiny"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._within.embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        return self._within.embed_query(text)


@pytest.mark.parametrize("ours_first", [False, True])
def test_the_embeddings_may_be_swapped_before_or_after_the_store(
    tmp_path: Path, tiny_bi_encoder: Path, tiny_dot_bi_encoder: Path, ours_first: bool
) -> None:
    """What tells a name only is tried against the vectors; it was refused for the facts that it does not tell."""
    first, second = Foreign(tiny_bi_encoder), BiEncoderEmbeddings(model=str(tiny_bi_encoder))
    if ours_first:
        first, second = second, first  # type: ignore[assignment]
    store = ChromaVectorStore.from_texts(["paris is the capital", "bread is baked"], first, persist_directory=tmp_path)
    for embeddings in (second, first, second):
        again = ChromaVectorStore(embedding_function=embeddings, persist_directory=tmp_path)
        assert again.similarity_search("bread", k=1)[0].page_content == "bread is baked"
        again.close()
    store.close()
    other = BiEncoderEmbeddings(model=str(tiny_dot_bi_encoder)) if not ours_first else Foreign(tiny_dot_bi_encoder)
    with pytest.raises(IndexMismatchError, match="another"):
        ChromaVectorStore(embedding_function=other, persist_directory=tmp_path, metric="cosine")


@pytest.mark.parametrize(
    ("options", "unused"),
    [
        ({"collection_metadata": {"hnsw:space": "ip", "hnsw:M": 32}}, r"collection_metadata\['hnsw:M'\]"),
        ({"collection_configuration": {"hnsw": {"ef_construction": 300}}}, r"\['hnsw'\]\['ef_construction'\]"),
        ({"collection_configuration": {"hnws": {"space": "l2"}}}, r"collection_configuration\['hnws'\]"),
    ],
)
def test_what_is_not_taken_over_is_said_where_it_counts(tmp_path: Path, options: dict[str, Any], unused: str) -> None:
    with pytest.warns(UserWarning, match=f"made without {unused}|made without collection_configuration{unused}"):
        ChromaVectorStore(embedding_function=WordEmbeddings(), persist_directory=tmp_path, **options)
    ChromaVectorStore(embedding_function=WordEmbeddings(), persist_directory=tmp_path, **options)


def test_a_server_is_named_as_there(chroma_server: ChromaServer) -> None:
    name = f"c-{uuid.uuid4().hex}"
    place = {"host": "127.0.0.1", "port": chroma_server.port, "collection_name": name}
    theirs = langchain_chroma.Chroma.from_texts(TEXTS, WordEmbeddings(), None, ["1", "2", "3", "4"], **place)
    ours = ChromaVectorStore.from_texts(["a"], WordEmbeddings(), None, ["5"], **place)
    assert sorted(theirs.get()["ids"]) == sorted(ours.get()["ids"]) == ["1", "2", "3", "4", "5"]
    ours.delete_collection()
    with pytest.raises(RemoteError, match=r"cannot reach a Chroma server at 127\.0\.0\.1:1"):
        ChromaVectorStore(embedding_function=WordEmbeddings(), host="127.0.0.1", port=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 8000}, "give host, too"),
        ({"host": "a", "client": object()}, "one of client, host and chroma_cloud_api_key"),
        ({"host": "a", "persist_directory": "b"}, "not both"),
        ({"chroma_cloud_api_key": "key", "tenant": "t"}, "needs tenant and database"),
    ],
)
def test_a_place_that_is_named_badly(options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "connect", lambda *_, **__: object())
    with pytest.raises(InvalidInputError, match=message):
        ChromaVectorStore(embedding_function=WordEmbeddings(), **options)


# The other components, each with the line that the README's table gives for it


QUERY = "capital of france"
FACTS = ["paris is the capital of france", "bread is in the bread", "rome is what", "a word"]


@pytest.fixture
def facts() -> list[Document]:
    return [Document(text, id=str(number), metadata={"n": number}) for number, text in enumerate(FACTS)]


def contents(documents: Sequence[Document]) -> list[tuple[str, int]]:
    return [(document.page_content, document.metadata["n"]) for document in documents]


@pytest.mark.parametrize("prompts", [False, True])
def test_hugging_face_embeddings(tiny_bi_encoder: Path, tiny_dot_bi_encoder: Path, prompts: bool) -> None:
    path = str(tiny_dot_bi_encoder if prompts else tiny_bi_encoder)
    theirs = HuggingFaceEmbeddings(
        model_name=path,
        model_kwargs={"device": "cpu"},
        encode_kwargs={"prompt_name": "document"} if prompts else {"normalize_embeddings": True},
        query_encode_kwargs={"prompt_name": "query"} if prompts else {"normalize_embeddings": True},
    )
    given: dict[str, Any] = {} if prompts else {"normalize": True}
    ours = BiEncoderEmbeddings(model_name=path, device="cpu", precision="float32", **given)  # type: ignore[call-arg]
    for before, after in (
        (theirs.embed_documents(FACTS), ours.embed_documents(FACTS)),
        ([theirs.embed_query(QUERY)], [ours.embed_query(QUERY)]),
    ):
        assert np.asarray(after) == pytest.approx(np.asarray(before), abs=1e-5)


def test_cross_encoder_reranker_and_contextual_compression(tiny_cross_encoder: Path, facts: list[Document]) -> None:
    base = ChromaVectorStore.from_documents(facts, WordEmbeddings()).as_retriever(search_kwargs={"k": 4})
    theirs = ClassicReranker(model=HuggingFaceCrossEncoder(model_name=str(tiny_cross_encoder)), top_n=2)
    ours = CrossEncoderReranker(model=str(tiny_cross_encoder), top_n=2)
    expected = contents(theirs.compress_documents(facts, QUERY))
    assert contents(ours.compress_documents(facts, QUERY)) == expected
    before = ContextualCompressionRetriever(base_retriever=base, base_compressor=theirs)
    after = RetrieveRerankRetriever(base_retriever=base, reranker=ours, top_n=2)
    ours_within = ContextualCompressionRetriever(base_retriever=base, base_compressor=ours)
    for retriever in (before, after, ours_within):
        assert contents(retriever.invoke(QUERY)) == expected
    with CrossEncoder(tiny_cross_encoder) as model:
        our_model = ClassicReranker(model=model.as_langchain(), top_n=2)
        assert contents(our_model.compress_documents(facts, QUERY)) == expected


def test_ensemble_retriever(facts: list[Document]) -> None:
    store = ChromaVectorStore.from_documents(facts, WordEmbeddings())
    retrievers = [store.as_retriever(search_kwargs={"k": 3}), BM25Retriever.from_documents(facts, k=3)]
    before = EnsembleRetriever(retrievers=retrievers, weights=[0.3, 0.7]).invoke(QUERY)
    after = HybridRetriever(retrievers=retrievers, weights=[0.3, 0.7], k=3, merge="text").invoke(QUERY)
    assert contents(after) == contents(before)[:3]


def test_bm25_retriever_of_the_community(facts: list[Document]) -> None:
    before = CommunityBM25.from_documents(facts, k=1).invoke("rome")
    after = BM25Retriever.from_documents(facts, k=1).invoke("rome")
    assert contents(after) == contents(before) == [("rome is what", 2)]
