"""Options and depth reach what finds the documents, however it is wrapped and composed; else the call is refused."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_classic.retrievers import (
    ContextualCompressionRetriever,
    EnsembleRetriever,
    MergerRetriever,
    MultiQueryRetriever,
    ParentDocumentRetriever,
    TimeWeightedVectorStoreRetriever,
)
from langchain_core.documents import Document
from langchain_core.language_models import FakeListLLM
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    ConfigurableField,
    Runnable,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.stores import InMemoryStore
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore, VectorStoreRetriever
from langchain_text_splitters import CharacterTextSplitter
from pydantic import PrivateAttr

from retrieve_rerank import InvalidInputError
from retrieve_rerank.langchain import (
    BM25Retriever,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderReranker,
    HybridRetriever,
    RetrieveRerankRetriever,
)
from tests.langchain.stubs import WordEmbeddings

COUNT = 20


class Lengths:
    """Scores by the number in the text."""

    def score(self, query: str, texts: Any) -> list[float]:
        return [float(text.split()[-1]) for text in texts]


def documents() -> list[Document]:
    return [Document(f"a pump {n}", id=f"{n}", metadata={"tenant": "ab"[n % 2]}) for n in range(COUNT)]


@pytest.fixture(scope="module")
def store() -> Iterator[ChromaVectorStore]:
    made = ChromaVectorStore.from_documents(documents(), WordEmbeddings())
    yield made
    made.close()


def parents(store: VectorStore) -> ParentDocumentRetriever:
    made = ParentDocumentRetriever(
        vectorstore=type(store)(embedding_function=WordEmbeddings()),  # type: ignore[call-arg]
        docstore=InMemoryStore(),
        child_splitter=CharacterTextSplitter(chunk_size=100, chunk_overlap=0),
    )
    made.add_documents(documents())
    return made


class OfMyOwn(VectorStoreRetriever):
    """A retriever of a store that takes no options of a call."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:  # type: ignore[override]
        return self.vectorstore.similarity_search(query, **self.search_kwargs)


class Super(VectorStoreRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: Any, **kwargs: Any) -> list[Document]:
        return list(super()._get_relevant_documents(query, run_manager=run_manager, **kwargs))


class Composed(BaseRetriever):
    """Somebody's own that asks another, kept behind a private attribute, and hands on what it names."""

    inner: Any
    _kept: Any = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self._kept = [self.inner]

    def _get_relevant_documents(self, query: str, *, run_manager: Any, filter: Any = None) -> list[Document]:
        return list(self._kept[0].invoke(query, {"callbacks": run_manager.get_child()}, filter=filter))


class Plain(Runnable[str, list[Document]]):
    """No pydantic model."""

    def __init__(self, retriever: BaseRetriever) -> None:
        self.retriever = retriever

    def invoke(self, input: str, config: Any = None, **kwargs: Any) -> list[Document]:
        return self.retriever.invoke(input, config)


def _llm(*lines: str) -> Any:
    return FakeListLLM(responses=["\n".join(lines)] * 50)


QUESTION = PromptTemplate.from_template("Say it otherwise: {question}")
WHICH = ConfigurableField(id="which")
Make = Callable[[Any], Any]
COMPOSED: dict[str, Make] = {
    "store": lambda s: s,
    "diverse": lambda s: s.as_retriever(search_type="mmr", search_kwargs={"k": 1}),
    "ours": lambda s: ChromaRetriever(vectorstore=s, k=1),
    "sequence": lambda s: QUESTION | _llm("a") | StrOutputParser() | s.as_retriever(),
    "after a passthrough": lambda s: RunnablePassthrough() | s.as_retriever(),
    "before a function": lambda s: s.as_retriever() | RunnableLambda(lambda found: found),
    "branch": lambda s: RunnableBranch((lambda q: q == "x", s.as_retriever()), s.as_retriever()),
    "parallel": lambda s: RunnableParallel(found=s.as_retriever()) | RunnableLambda(lambda made: made["found"]),
    "bound": lambda s: s.as_retriever().bind(k=2).with_config(tags=["x"]).with_retry(),
    "fallbacks": lambda s: s.as_retriever().with_fallbacks([s.as_retriever()]),
    "fields": lambda s: s.as_retriever().configurable_fields(search_kwargs=ConfigurableField(id="kwargs")),
    "alternatives": lambda s: s.as_retriever().configurable_alternatives(WHICH, other=s.as_retriever()),
    "ensemble's fields": lambda s: EnsembleRetriever(
        retrievers=[s.as_retriever(), s.as_retriever()], weights=[1, 1]
    ).configurable_fields(weights=ConfigurableField(id="weights")),
    "ensemble": lambda s: EnsembleRetriever(retrievers=[s.as_retriever(), s.as_retriever().bind(k=1)]),
    "merger": lambda s: MergerRetriever(retrievers=[s.as_retriever(), s.as_retriever()]),
    "multi-query": lambda s: MultiQueryRetriever.from_llm(s.as_retriever(), _llm("a", "b")),
    "compression over an ensemble": lambda s: ContextualCompressionRetriever(
        base_compressor=CrossEncoderReranker(model=Lengths(), top_n=None),
        base_retriever=EnsembleRetriever(retrievers=[s.as_retriever(), s.as_retriever()]),
    ),
    "compression over a sequence": lambda s: ContextualCompressionRetriever(
        base_compressor=CrossEncoderReranker(model=Lengths(), top_n=None),
        base_retriever=RunnableLambda(lambda query: query) | s.as_retriever(),
    ),
    "parents": parents,
    "own subclass": lambda s: OfMyOwn(vectorstore=s),
    "own subclass that calls super": lambda s: Super(vectorstore=s),
    "own that asks another": lambda s: Composed(inner=MergerRetriever(retrievers=[s.as_retriever()])),
    "no pydantic model": lambda s: Plain(s.as_retriever()),
    "ours in theirs": lambda s: MergerRetriever(
        retrievers=[HybridRetriever(retrievers=[s]), ChromaRetriever(vectorstore=s)]
    ),
    "ours in ours": lambda s: RetrieveRerankRetriever(base_retriever=s, reranker=Lengths(), top_n=1),
    "method": lambda s: RunnableLambda(MergerRetriever(retrievers=[s.as_retriever()]).invoke),
    "function": lambda s: RunnableLambda(lambda query, k=4, filter=None: s.similarity_search(query, k, filter=filter)),
}


def pipeline(base: Any, **options: Any) -> RetrieveRerankRetriever:
    return RetrieveRerankRetriever(base_retriever=base, reranker=Lengths(), **options)


def shown(base: Any) -> str:
    return re.sub(r", i=\d+", "", repr(base))  # which the language model counts


async def every_way(retriever: BaseRetriever, **options: Any) -> list[list[Document]]:
    return [
        retriever.invoke("a", **options),
        await retriever.ainvoke("a", **options),
        *retriever.batch(["a"], **options),
        *(await retriever.abatch(["a"], **options)),
    ]


@pytest.mark.parametrize("name", COMPOSED)
async def test_a_filter_reaches_what_finds(name: str, store: ChromaVectorStore) -> None:
    """22.A: tenant b's documents came."""
    base = COMPOSED[name](store)
    before = shown(base)
    for retriever in (
        pipeline(base, top_n=COUNT),
        pipeline(HybridRetriever(retrievers=[base, store]), top_n=COUNT),
        HybridRetriever(retrievers=[base, store], k=COUNT),
    ):
        for found in await every_way(retriever, filter={"tenant": "a"}):
            assert {document.metadata["tenant"] for document in found} == {"a"}
            assert len(found) == COUNT // 2
    assert shown(base) == before


@pytest.mark.parametrize("name", COMPOSED)
async def test_the_depth_reaches_what_finds(name: str, store: ChromaVectorStore) -> None:
    retriever = pipeline(COMPOSED[name](store), top_n=COUNT, fetch_k=COUNT)
    for found in await every_way(retriever):
        assert [document.id for document in found] == [str(n) for n in reversed(range(COUNT))]
    assert len(retriever.invoke("a", fetch_k=7)) in (7, 14 if name == "parents" else 7)


async def test_what_is_configured_at_the_call_decides_what_is_followed(store: ChromaVectorStore) -> None:
    words = BM25Retriever.from_documents(documents(), k=1)
    base = store.as_retriever().configurable_alternatives(
        WHICH, words=words, none=RunnableLambda(lambda _: documents())
    )
    retriever = EnsembleRetriever(retrievers=[base])
    made = pipeline(retriever, top_n=COUNT)
    for which in ("default", "words"):
        config: Any = {"configurable": {"which": which}}
        for found in (
            made.invoke("a pump", config, filter={"tenant": "a"}),
            await made.ainvoke("a pump", config, filter={"tenant": "a"}),
        ):
            assert {document.metadata["tenant"] for document in found} == {"a"}
    with pytest.raises(InvalidInputError, match="'filter' cannot be shown to reach what RunnableLambda searches"):
        made.invoke("a", {"configurable": {"which": "none"}}, filter={"tenant": "a"})


class Swallows(BaseRetriever):
    k: int = 4

    def _get_relevant_documents(self, query: str, *, run_manager: Any, **kwargs: Any) -> list[Document]:
        return documents()[: self.k]


class NamesAndForgets(BaseRetriever):
    k: int = 4

    def _get_relevant_documents(self, query: str, *, run_manager: Any, filter: Any = None) -> list[Document]:
        return documents()[: self.k]


class OwnStore(BaseRetriever):
    """Searches a store in its own way."""

    stores: list[Any]

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return list(self.stores[0].similarity_search(query))


class Careless(InMemoryVectorStore):
    """Takes any option of a search and reads none."""

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return super().similarity_search(query, k)


REFUSED: dict[str, Make] = {
    "swallows": lambda s: Swallows(),
    "names and forgets": lambda s: NamesAndForgets(),
    "own store": lambda s: OwnStore(stores=[s]),
    "function": lambda s: RunnableLambda(lambda query: s.similarity_search(query)),
    "function that asks a retriever": lambda s: RunnableLambda(lambda query: s.as_retriever().invoke(query)),
    "function that makes a chain": lambda s: RunnableLambda(lambda query: s.as_retriever()),
    "function behind a retriever": lambda s: s.as_retriever() | RunnableLambda(lambda f: s.similarity_search("a")),
    "stock words": lambda s: EnsembleRetriever(retrievers=[s.as_retriever(), Swallows()]),
    "a branch": lambda s: RunnableBranch((lambda q: True, RunnableLambda(lambda q: documents())), s.as_retriever()),
    "a fallback": lambda s: s.as_retriever().with_fallbacks([RunnableLambda(lambda q: documents())]),
    "recent ones": lambda s: TimeWeightedVectorStoreRetriever(vectorstore=s),
    "careless store": lambda s: Careless(WordEmbeddings()),
    "careless store's": lambda s: Careless(WordEmbeddings()).as_retriever(),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_filter_that_cannot_be_shown_to_arrive_is_refused(name: str, store: ChromaVectorStore) -> None:
    base = REFUSED[name](store)
    for retriever in (pipeline(base), HybridRetriever(retrievers=[base])):
        with pytest.raises(InvalidInputError, match="'filter'"):
            retriever.invoke("a", filter={"tenant": "a"})
        with pytest.raises(InvalidInputError, match="'filter'"):
            await retriever.ainvoke("a", filter={"tenant": "a"})
        with pytest.raises(InvalidInputError, match="'filter'"):
            retriever.bind(filter={"tenant": "a"}).batch(["a"])


async def test_a_depth_that_cannot_be_set_is_told_once() -> None:
    class Few(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return documents()[:3]

    for base in (
        Few(),
        RunnableLambda(lambda _: documents()[:3]),
        MergerRetriever(retrievers=[Few()]),
        Few().with_retry(),
    ):
        retriever = pipeline(base, top_n=2)
        with pytest.warns(UserWarning, match="found 3 documents of the 100 that are looked for") as told:
            every = [*await every_way(retriever), *await every_way(retriever)]
        assert {len(found) for found in every} == {2}
        assert len(told) == 1
        assert told[0].filename == __file__
    hybrid = HybridRetriever(retrievers=[Few(), BM25Retriever.from_documents(documents())])
    with pytest.warns(UserWarning, match="Few found 3"):
        hybrid.invoke("a pump")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(pipeline(Few(), fetch_k=3).invoke("a")) == 3


async def test_a_step_that_leaves_out_what_was_found_is_told_once(store: ChromaVectorStore) -> None:
    few = RunnableLambda(lambda found: found[:3])
    both = EnsembleRetriever(retrievers=[store.as_retriever(), BM25Retriever.from_documents(documents())])
    best = CrossEncoderReranker(model=Lengths(), top_n=3)
    for base in (
        store.as_retriever() | few,
        ContextualCompressionRetriever(base_retriever=both, base_compressor=best),
        RunnableParallel(found=both) | RunnableLambda(lambda given: given["found"]) | few,
    ):
        retriever = pipeline(base, fetch_k=10, top_n=2)
        with pytest.warns(
            UserWarning, match="found 3 documents of the 10 that are looked for, and a retriever in it"
        ) as told:
            every = [*await every_way(retriever), *await every_way(retriever)]
        assert {len(found) for found in every} == {2}
        assert len(told) == 1
        # There are no more: nothing is told.
        assert (
            len(pipeline(store.as_retriever() | RunnableLambda(list), fetch_k=COUNT + 1, top_n=None).invoke("a"))
            == COUNT
        )


def test_k_is_refused_with_the_right_names(store: ChromaVectorStore) -> None:
    for options in ({"k": 3}, {"k": 3, "top_n": 2}):
        with pytest.raises(InvalidInputError, match=r"no option 'k' here: fetch_k .* and top_n"):
            pipeline(store).invoke("a", **options)
        with pytest.raises(InvalidInputError, match="no option 'k' here"):
            pipeline(store).bind(**options).batch(["a"])


@pytest.mark.parametrize(
    ("given", "expected"), [({}, 2), ({"top_n": 3}, 3), ({"top_n": 5}, 5), ({"top_n": None}, COUNT)]
)
def test_a_default_does_not_go_before_a_setting(given: Any, expected: int, store: ChromaVectorStore) -> None:
    """22.A: a re-ranker's top_n of 2 gave 5."""
    made = RetrieveRerankRetriever(
        base_retriever=store, reranker=CrossEncoderReranker(model=Lengths(), top_n=2), **given
    )
    copies = [made, made.model_copy(), made.with_config(tags=["x"])]
    for retriever in copies:
        assert len(retriever.invoke("a")) == expected
        assert len(retriever.invoke("a", top_n=1)) == 1
    other = made.model_copy(update={"reranker": CrossEncoderReranker(model=Lengths(), top_n=4)})
    assert len(other.invoke("a")) == (4 if not given else expected)
    every = RetrieveRerankRetriever(base_retriever=store, reranker=CrossEncoderReranker(model=Lengths(), top_n=None))
    assert len(every.invoke("a")) == COUNT


def test_a_stores_retriever_takes_options_of_a_search(store: ChromaVectorStore) -> None:
    """LangChain's drops what is no field of it."""
    retriever = store.as_retriever(k=COUNT, filter={"tenant": "a"}, tags=["mine"])
    assert len(retriever.invoke("a")) == COUNT // 2
    assert retriever.tags == ["mine"]
    both = store.as_retriever(search_type="mmr", search_kwargs={"k": 3, "filter": {"tenant": "b"}}, fetch_k=5)
    assert both.search_kwargs == {"k": 3, "filter": {"tenant": "b"}, "fetch_k": 5}
    assert {document.metadata["tenant"] for document in both.invoke("a")} == {"b"}
    with pytest.raises(InvalidInputError, match="'filtre'"):
        store.as_retriever(filtre={})


OURS: dict[str, Make] = {
    "dense": lambda s: ChromaRetriever(vectorstore=s),
    "words": lambda s: BM25Retriever.from_documents(documents(), k=COUNT),
    "hybrid": lambda s: HybridRetriever(retrievers=[s, BM25Retriever.from_documents(documents())]),
    "both stages": lambda s: pipeline(s, top_n=COUNT),
}


@pytest.mark.parametrize("name", OURS)
async def test_several_queries_find_each_document_once(name: str, store: ChromaVectorStore) -> None:
    """22.B: LangChain compares documents by ==, and the scores differ from query to query."""
    several = MultiQueryRetriever.from_llm(OURS[name](store), _llm("a pump", "pump 3", "a pump 7"))
    for found in (several.invoke("a pump"), await several.ainvoke("a pump")):
        assert sorted(int(document.id or -1) for document in found) == list(range(COUNT))
    found = pipeline(several, top_n=COUNT).invoke("a pump")
    assert [document.id for document in found] == [str(n) for n in reversed(range(COUNT))]
