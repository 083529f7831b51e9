"""What other libraries mean: the arguments of the components that these take the place of, and their stores' scores.

LangChain's `similarity_search_with_score` is a distance in one store and a similarity in the next, and the relevance
scores made of it are wrong in some. What a store says of itself decides here. No store is imported: they are told by
the names of their classes.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables.config import run_in_executor
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
from typing_extensions import TypedDict

from retrieve_rerank.checks import check_mapping
from retrieve_rerank.errors import InvalidInputError, shown, warn_caller
from retrieve_rerank.indexes.client import connect
from retrieve_rerank.indexes.identity import SPACES, Identity
from retrieve_rerank.indexes.nearest import to_similarity
from retrieve_rerank.indexes.store import ChromaCollection
from retrieve_rerank.langchain.convert import with_marks
from retrieve_rerank.retrieval.first_stage import loads
from retrieve_rerank.types import Metric

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.config import Settings

Sense: TypeAlias = Callable[[float], float]

DEFAULT_NAME = "passages"
_THEIR_DEFAULT_NAME = "langchain"


class StoreOptions(TypedDict, total=False):
    """The arguments of a `ChromaVectorStore` beside its embeddings."""

    collection_name: str
    persist_directory: str | os.PathLike[str] | None
    client: ClientAPI | None
    client_settings: Settings | None
    metric: Metric | None
    assume_compatible: bool
    create_collection_if_not_exists: bool
    host: str | None
    port: int | str | None
    ssl: bool
    headers: dict[str, str] | None
    tenant: str | None
    database: str | None
    chroma_cloud_api_key: str | None
    collection_metadata: Mapping[str, Any] | None
    collection_configuration: Mapping[str, Any] | None
    relevance_score_fn: Callable[[float], float] | None
    retry_seconds: float
    lock_timeout: float
    search_breadth: int | None


# What arguments of the components that these take the place of are called here, or what to write instead.
INSTEAD = {
    "add_images": "images are not searched here; texts are",
    "base_compressor": "it is called reranker",
    "c": "it is called rrf_k",
    "collection_kwargs": "make the collection with Chroma's own client; it is opened as it is",
    "docs": "make the retriever by from_documents(docs)",
    "encode_image": "images are not searched here; texts are",
    "encode_kwargs": "write its values as arguments: normalize=, batch_tokens=",
    "fork": "fork the collection with Chroma's own client, and open it by its name",
    "hybrid_search": "HybridRetriever([store, BM25Retriever(…)]) searches by meaning and by words",
    "id_key": "documents are told apart by their ids, so put that value into Document.id; or give merge='text'",
    "model_kwargs": "write its values as arguments: device=, trust_remote_code=, revision=",
    "multi_process": "several processes are an inference server's (endpoint=) or Ray's",
    "query_encode_kwargs": "a prompt for queries is query_prompt=",
    "show_progress": "it is an argument of encode_documents and of ChromaIndex.add",
    "similarity_search_by_image": "images are not searched here; texts are",
    "similarity_search_by_image_with_relevance_score": "images are not searched here; texts are",
    "uris": "only documents, metadatas and embeddings are kept",
    "vectorizer": "the index is made of the documents; its weights are k1= and b=, and preprocess_func cuts texts",
}


def refuse(options: Mapping[str, Any]) -> None:
    """Raise InvalidInputError for options that nothing reads: a misspelt one must not be dropped."""
    if options:
        told = "; ".join(f"{name!r}: {INSTEAD.get(name, 'check its spelling')}" for name in sorted(options))
        raise InvalidInputError(f"unknown option {told}")


def client_for(
    client: ClientAPI | None,
    host: str | None,
    port: int | str | None,
    *,
    ssl: bool,
    headers: dict[str, str] | None,
    tenant: str | None,
    database: str | None,
    cloud_key: str | None,
    settings: Settings | None,
    folder: str | os.PathLike[str] | None,
) -> ClientAPI | None:
    """Return a client of the server that is named or with the settings that are given, or the client that was given.

    Raises:
        InvalidInputError: If more than one is named, or what Chroma Cloud needs is missing.
        RemoteError: If the server cannot be reached.
    """
    import chromadb
    import chromadb.config

    if settings is not None and any(other is not None for other in (client, host, cloud_key)):
        raise InvalidInputError(
            "client_settings are a directory's; a client that is given, or of a server, has its own"
        )
    if settings is not None and settings != chromadb.config.Settings():  # those of a client of ours
        if folder is None:
            raise InvalidInputError(
                "all of a process that is in memory shares one client of Chroma, so client_settings need a "
                "persist_directory; or make that client yourself: client=chromadb.EphemeralClient(client_settings)"
            )
        try:
            return chromadb.PersistentClient(os.fspath(folder), settings)
        except ValueError as error:  # the directory is open with other settings
            raise InvalidInputError(f"no client with these client_settings can be made: {error}") from error
    if host is None and cloud_key is None:
        if any(value is not None for value in (port, headers, tenant, database)) or ssl:
            raise InvalidInputError("port, ssl, headers, tenant and database are a server's: give host, too")
        return client
    if client is not None or (host is not None and cloud_key is not None):
        raise InvalidInputError("give one of client, host and chroma_cloud_api_key")
    if cloud_key is None:
        return connect(
            "" if host is None else host,
            8000 if port is None else port,
            ssl=ssl,
            headers=headers,
            tenant=tenant,
            database=database,
        )
    if tenant is None or database is None:
        raise InvalidInputError("chroma_cloud_api_key needs tenant and database, too")
    return chromadb.CloudClient(tenant=tenant, database=database, api_key=cloud_key)


def asked_space(
    metadata: Mapping[str, Any] | None, configuration: Mapping[str, Any] | None
) -> tuple[Metric | None, list[str]]:
    """Return the metric that was asked for in Chroma's ways, and what else was."""
    metadata = check_mapping(metadata, "collection_metadata")
    configuration = check_mapping(configuration, "collection_configuration")
    hnsw = check_mapping(configuration.get("hnsw"), "collection_configuration['hnsw']")
    others = {
        "collection_metadata": [key for key in metadata if key != "hnsw:space"],
        "collection_configuration": [key for key in configuration if key != "hnsw"],
        "collection_configuration['hnsw']": [key for key in hnsw if key != "space"],
    }
    unused = [f"{name}[{key!r}]" for name, keys in others.items() for key in keys]
    space = hnsw.get("space") or metadata.get("hnsw:space")
    if space is None:
        return None, unused
    for metric, name in SPACES.items():
        if name == space:
            return metric, unused
    raise InvalidInputError(f"the space must be one of {', '.join(SPACES.values())}; got {shown(space)}")


def tell_what_was_made(collection: ChromaCollection, unused: list[str]) -> None:
    """Warn of a collection that was made, where langchain-chroma would have made or opened another.

    Args:
        collection: As it was opened.
        unused: What was asked for and is not taken over.
    """
    if unused and collection.made:
        warn_caller(
            f"collection {collection.name!r} was made without {', '.join(unused)}: of these arguments only the space "
            "is taken over. To have more, make the collection with Chroma's own client first; it is opened as it is",
            UserWarning,
        )
    if collection.name == DEFAULT_NAME and _THEIR_DEFAULT_NAME in collection.beside:
        warn_caller(
            f"a new, empty collection {DEFAULT_NAME!r} was made beside {_THEIR_DEFAULT_NAME!r}, which is the default "
            f"name of langchain-chroma: pass collection_name={_THEIR_DEFAULT_NAME!r} to go on with that one",
            UserWarning,
        )


# What other people's code takes

# Parameters of searches that are no options.
_NO_OPTIONS = {"self", "query", "input", "config", "run_manager"}


def heeded(function: Callable[..., Any]) -> tuple[set[str], str | None]:
    """Return the options that a function names and heeds, and the name under which it heeds any other."""
    names, others = set(), None
    for item in inspect.signature(function).parameters.values():
        if item.kind is item.VAR_KEYWORD:
            others = item.name if loads(function, item.name) else None
        elif item.name not in _NO_OPTIONS and loads(function, item.name):
            names.add(item.name)
    return names, others


def hands_on_search_kwargs(kind: type[BaseRetriever]) -> bool:
    """Whether what a retriever's class searches with is its `search_kwargs`, as its code shows."""
    for name in ("_get_relevant_documents", "_aget_relevant_documents"):
        for class_ in kind.__mro__:
            method = class_.__dict__.get(name)
            if method is None or (loads(method, "super") and loads(method, name)):
                continue
            if class_ is BaseRetriever or loads(method, "search_kwargs") or loads(method, "_get_relevant_documents"):
                break
            return False
    return True


def reads_search_kwargs(kind: type[BaseRetriever]) -> bool:
    """Whether a retriever's class looks at its `search_kwargs` at all."""
    if issubclass(kind, VectorStoreRetriever):
        return hands_on_search_kwargs(kind)
    methods = [method for class_ in kind.__mro__ for method in vars(class_).values() if inspect.isfunction(method)]
    return any(loads(method, "search_kwargs") for method in methods)


# Other vector stores

# Where retrievers of other libraries leave the score of each document, in its metadata. Larger is better in all.
_SCORE_KEYS = {"ElasticsearchRetriever": "_score", "AsyncElasticsearchRetriever": "_score"}

# The names that stores give to their filter; many drop a name that is not theirs without a word.
_FILTERS = ("filter", "filters", "where", "where_document", "expr", "pre_filter", "metadata_filter")
_SEARCHES = (
    "similarity_search",
    "similarity_search_with_score",
    "similarity_search_by_vector",
    "similarity_search_with_score_by_vector",
)


def similarity_of(store: VectorStore, options: Mapping[str, Any]) -> Sense | None:
    """Return what makes a similarity, larger is better, of a score of `store.similarity_search_with_score`.

    A store that is not known here is asked for its relevance function.

    Args:
        store: Any vector store.
        options: Of the search; some stores take the metric there.

    Returns:
        None where the store has no scores for such a search, or none that are known to be similarities.
    """
    for class_ in type(store).__mro__:
        if class_.__name__ in _SENSES:
            try:
                return _SENSES[class_.__name__](store, options)
            except (AttributeError, KeyError, TypeError):  # a version that keeps its metric elsewhere
                break
    try:
        return store._select_relevance_score_fn()  # noqa: SLF001 - there is no public way that does not also warn
    except (NotImplementedError, ValueError):
        return None


def _fall(scores: Sequence[float]) -> bool:
    """Whether scores are numbers that fall, or stay, along the store's own order: larger is better, then."""
    return all(map(math.isfinite, scores)) and all(
        after <= before + 1e-6 * max(1.0, abs(before)) for before, after in pairwise(scores)
    )


def prepared(store: VectorStore, options: Mapping[str, Any], search_type: str) -> dict[str, Any]:
    """Return the options of a search, so that a filter among them chooses in the store and not among what was found.

    Raises:
        InvalidInputError: If the store would drop the filter without a word, or cannot but starve it.
    """
    known = {
        name
        for search in _SEARCHES
        for name in inspect.signature(getattr(store, search, lambda: None)).parameters
        if name in _FILTERS
    }
    given = [name for name in _FILTERS if options.get(name) is not None]
    for name in given:
        if known and name not in known:
            raise InvalidInputError(
                f"{type(store).__name__} has no option {name!r}; its filter is given as {' or '.join(sorted(known))}"
            )
        search = "max_marginal_relevance_search" if search_type == "mmr" else "similarity_search"
        names, others = heeded(getattr(type(store), search))
        if name not in names and others is None:
            raise InvalidInputError(f"{type(store).__name__} has no option {name!r}: its {search} drops it")
    if given:
        for class_ in type(store).__mro__:
            if class_.__name__ in _UNSTARVED:
                return {**options, **_UNSTARVED[class_.__name__](store, options, search_type)}
    return dict(options)


def score_key_of(retriever: object) -> str | None:
    """Return the metadata key under which a retriever leaves the score of each document; None if it does not say."""
    declared = getattr(type(retriever), "score_key", None)
    if isinstance(declared, str):
        return declared
    return next((_SCORE_KEYS[c.__name__] for c in type(retriever).__mro__ if c.__name__ in _SCORE_KEYS), None)


def _same(score: float) -> float:
    return score


def _inverse(distance: float) -> float:
    return 1.0 / (1.0 + distance)


def _inverse_of_square(squared: float) -> float:
    return to_similarity(squared, "euclidean")


def _complement(distance: float) -> float:
    return 1.0 - distance


def _always_same(store: Any, options: Mapping[str, Any]) -> Sense:
    return _same


def _ours(store: Any, options: Mapping[str, Any]) -> Sense:
    similarity: Sense = store.collection.similarity
    return similarity


def _chroma(store: Any, options: Mapping[str, Any]) -> Sense:
    metric = Identity.read(store._collection.configuration_json, store._collection.metadata).metric  # noqa: SLF001
    return lambda distance: to_similarity(distance, metric)


def _faiss(store: Any, options: Mapping[str, Any]) -> Sense | None:
    # The store's distance_strategy is a wish: "COSINE" makes an L2 index. The index knows.
    if store.index.metric_type == 0:  # inner product
        return _same
    if store.index.metric_type != 1:  # L2, squared
        return None
    if store._normalize_L2:  # noqa: SLF001
        return lambda squared: 1.0 - squared / 2.0  # of unit vectors, the cosine
    return _inverse_of_square


def _qdrant(store: Any, options: Mapping[str, Any]) -> Sense | None:
    if getattr(store, "retrieval_mode", "dense") != "dense":  # dot products of sparse vectors, or fused ranks
        return _same
    return {"cosine": _same, "dot": _same, "euclid": _inverse, "manhattan": _inverse}.get(store.distance.lower())


def _milvus(store: Any, options: Mapping[str, Any]) -> Sense | None:
    if store._is_multi_vector:  # noqa: SLF001 - fused by a ranker
        return _same
    known = [settings for settings in (store.search_params, store.index_params) if isinstance(settings, Mapping)]
    metric = next((settings["metric_type"] for settings in known if settings.get("metric_type")), "")
    return {"COSINE": _same, "IP": _same, "BM25": _same, "L2": _inverse_of_square}.get(metric)


def _lancedb(store: Any, options: Mapping[str, Any]) -> Sense | None:
    if options.get("query_type", "vector") != "vector":
        return None  # it gives no scores then
    # The store's `distance` is a wish, too: the search takes its own option, the vectors' index, or L2.
    table, metric = store.get_table(options.get("name")), options.get("metrics")
    if metric is None:
        made = [table.index_stats(index.name).distance_type for index in table.list_indices()]
        metric = next((kind for kind in made if kind), "l2")
    return {"l2": _inverse_of_square, "cosine": _complement, "dot": _complement}.get(metric)


def _elasticsearch(store: Any, options: Mapping[str, Any]) -> Sense | None:
    return None if getattr(store._store.retrieval_strategy, "hybrid", False) else _same  # noqa: SLF001


_SENSES: dict[str, Callable[[Any, Mapping[str, Any]], Sense | None]] = {
    "ChromaVectorStore": _ours,
    "Chroma": _chroma,
    "FAISS": _faiss,
    "InMemoryVectorStore": _always_same,
    "QdrantVectorStore": _qdrant,
    "Milvus": _milvus,
    "LanceDB": _lancedb,
    "ElasticsearchStore": _elasticsearch,
    "OpenSearchVectorSearch": _always_same,
}


def _fetch_all(store: Any, options: Mapping[str, Any], search_type: str) -> dict[str, Any]:
    """FAISS filters what it has fetched, 20 unless told."""
    return {"fetch_k": max(options.get("fetch_k") or 0, store.index.ntotal)}


def _filter_first(store: Any, options: Mapping[str, Any], search_type: str) -> dict[str, Any]:
    """LanceDB filters what it has found, unless told."""
    if search_type == "mmr":
        raise InvalidInputError(
            "LanceDB's mmr search filters what it has found, and may return nothing where there is much; use the "
            "search type 'similarity' with a filter"
        )
    return {"prefilter": True}


_UNSTARVED: dict[str, Callable[[Any, Mapping[str, Any], str], dict[str, Any]]] = {
    "FAISS": _fetch_all,
    "LanceDB": _filter_first,
}


class ScoredStoreRetriever(VectorStoreRetriever):
    """A vector store's own retriever that keeps the store's scores, turned so that larger is better."""

    score_key: ClassVar[str] = "retrieval_score"

    @classmethod
    def of(cls, plain: VectorStoreRetriever) -> ScoredStoreRetriever:
        """Return `plain` with scores; in traces it keeps its name."""
        fields = {name: getattr(plain, name) for name in type(plain).model_fields}
        return cls(**{**fields, "name": plain.get_name()})

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        options, store = self.search_kwargs | kwargs, self.vectorstore
        if self.search_type == "similarity_score_threshold":
            return _scored(store.similarity_search_with_relevance_scores(query, **options))
        similarity = similarity_of(store, options) if self.search_type == "similarity" else None
        if similarity is not None:
            try:
                return _scored(store.similarity_search_with_score(query, **options), similarity)
            except NotImplementedError:
                pass
        found = super()._get_relevant_documents(query, run_manager=run_manager, **options)
        return [with_marks(document, {}) for document in found]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        options, store = self.search_kwargs | kwargs, self.vectorstore
        if self.search_type == "similarity_score_threshold":
            return _scored(await store.asimilarity_search_with_relevance_scores(query, **options))
        similarity = None
        if self.search_type == "similarity":  # which some stores read from a file or a server
            similarity = await run_in_executor(None, similarity_of, store, options)
        if similarity is not None:
            try:
                return _scored(await store.asimilarity_search_with_score(query, **options), similarity)
            except NotImplementedError:
                pass
        found = await super()._aget_relevant_documents(query, run_manager=run_manager, **options)
        return [with_marks(document, {}) for document in found]


def _scored(found: list[tuple[Document, float]], similarity: Sense = float) -> list[Document]:
    scores = [float(similarity(float(score))) for _, score in found]
    larger_is_better = _fall(scores)
    return [
        with_marks(document, {"retrieval_score": score} if larger_is_better else {})
        for (document, _), score in zip(found, scores, strict=True)
    ]
