"""LangChain's doors."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from pathlib import Path

from tests.generated import KEPT, MODELS, TEXTS, WHERE, WORDS, Door, answers


def langchain(folder: Path) -> Iterator[Door]:
    from langchain_core.documents import Document
    from langchain_core.load import dumpd

    from retrieve_rerank.langchain import (
        BiEncoderEmbeddings,
        BM25Retriever,
        ChromaRetriever,
        ChromaVectorStore,
        CrossEncoderReranker,
        HybridRetriever,
        RetrieveRerankRetriever,
        load,
    )
    from tests import tiny

    (folder / "bi").mkdir()
    (folder / "cross").mkdir()
    embeddings = BiEncoderEmbeddings(model=str(tiny.save_bi_encoder(folder / "bi")), precision="float32")
    store = ChromaVectorStore("passages", embeddings, folder / "chroma")
    metadatas = [{"n": number, "kind": "fact"} for number in range(3)]
    store.add_texts(TEXTS, metadatas, ids=KEPT)
    after = answers(store.collection.count, lambda: [document.id or "" for document in store.get_by_ids(KEPT)])
    words = BM25Retriever.from_texts(TEXTS, metadatas, KEPT)
    model = CrossEncoderReranker(model=str(tiny.save_cross_encoder(folder / "cross")), precision="float32")
    dense = ChromaRetriever(vectorstore=store, k=3)
    hybrid = HybridRetriever(retrievers=[dense, words], k=3)
    search = RetrieveRerankRetriever(base_retriever=hybrid, reranker=model, fetch_k=10)
    documents = [Document(text, id=f"new-{number}", metadata={"a": [1, 2]}) for number, text in enumerate(TEXTS)]
    filters = {"filter": WHERE, "where_document": WORDS}
    vector = [0.1] * 32
    for name in ("similarity_search", "similarity_search_with_score", "similarity_search_with_vectors"):
        yield Door(name, getattr(store, name), dict(query="paris", k=3, **filters), after)
    yield Door(
        "similarity_search_with_relevance_scores",
        store.similarity_search_with_relevance_scores,
        dict(query="paris", k=3, score_threshold=0.1, **filters),
    )
    yield Door("similarity_search_by_vector", store.similarity_search_by_vector, dict(embedding=vector, k=3, **filters))
    mmr = dict(k=2, fetch_k=5, lambda_mult=0.5, **filters)
    yield Door("mmr", store.max_marginal_relevance_search, dict(query="paris", **mmr), after)
    yield Door("mmr by vector", store.max_marginal_relevance_search_by_vector, dict(embedding=vector, **mmr))
    yield Door("search", store.search, {"query": "paris", "search_type": "similarity", "k": 3})
    yield Door(
        "add_texts",
        store.add_texts,
        {"texts": TEXTS, "metadatas": [{"a": 1}, {"b": None}, {}], "ids": ["x", "y", None], "batch_size": 2},
        after,
    )
    yield Door("add_documents", store.add_documents, {"documents": documents}, after)
    yield Door(
        "add metadata",
        lambda **of: store.add_documents([Document("paris", id="new-1", **of)]),
        {"metadata": {"a": 1, "b": [1]}},
        after,
    )
    yield Door("update_documents", store.update_documents, {"ids": ["x", "y", "z"], "documents": documents}, after)
    yield Door("update_document", store.update_document, {"document_id": "x", "document": documents[0]}, after)
    yield Door("delete", store.delete, {"ids": ["x", "new-1"]}, after)
    yield Door("get_by_ids", lambda ids: store.get_by_ids(ids), {"ids": KEPT}, after)
    yield Door(
        "get",
        store.get,
        {"ids": KEPT, "where": WHERE, "limit": 2, "offset": 0, "where_document": WORDS, "include": ["documents"]},
        after,
    )
    yield Door(
        "as_retriever",
        lambda **of: store.as_retriever(**of).invoke("paris"),
        {"search_type": "mmr", "search_kwargs": {"k": 3}},
        made=True,
    )
    options = {
        "metric": "cosine",
        "host": None,
        "port": None,
        "headers": None,
        "tenant": None,
        "collection_metadata": {"hnsw:space": "cosine"},
        "collection_configuration": None,
    }
    yield Door(
        "ChromaVectorStore",
        lambda **of: ChromaVectorStore(**of).close(),
        dict(
            collection_name="new", embedding_function=embeddings, persist_directory=None, retry_seconds=1.0, **options
        ),
    )
    yield Door(
        "dense.invoke",
        dense.invoke,
        dict(input="paris", k=3, score_threshold=0.1, lambda_mult=0.5, fetch_k=4, **filters),
        after,
    )
    yield Door("words.invoke", words.invoke, dict(input="paris", k=3, **filters))
    yield Door("hybrid.invoke", hybrid.invoke, dict(input="paris", k=3, **filters), after)
    limits = {"top_n": 2, "score_threshold": 0.1, "time_budget": 30.0, "on_error": "raise"}
    yield Door(
        "search.invoke", search.invoke, dict(input="paris", fetch_k=5, rewrites=["rome"], **limits, **filters), after
    )
    yield Door(
        "search.ainvoke", lambda **of: asyncio.run(search.ainvoke(**of)), dict(input="paris", fetch_k=5, **limits)
    )
    # Of a text, LangChain makes an input of each letter.
    yield Door("search.batch", lambda one, **of: search.batch([one, "rome"], **of), {"one": "paris"}, of=search.batch)
    yield Door("compress_documents", model.compress_documents, {"documents": documents, "query": "paris"})
    yield Door(
        "as_runnable", lambda **of: model.as_runnable(**of).invoke({"query": "paris", "documents": documents}), limits
    )
    yield Door("as_runnable's input", model.as_runnable().invoke, {"input": {"query": "paris", "documents": documents}})
    yield Door("embed_documents", embeddings.embed_documents, {"texts": TEXTS})
    yield Door("embed_query", embeddings.embed_query, {"text": "paris"})
    yield Door(
        "CrossEncoderReranker",
        CrossEncoderReranker,
        dict(model=model.model, text_template="{page_content}", prompt=None, **limits, **MODELS),
        made=True,
    )
    yield Door(
        "BiEncoderEmbeddings", BiEncoderEmbeddings, dict(model="m", truncate_dim=8, normalize=None, **MODELS), made=True
    )
    yield Door(
        "ChromaRetriever",
        ChromaRetriever,
        {"vectorstore": store, "k": 3, "filter": WHERE, "score_threshold": 0.1},
        made=True,
    )
    yield Door(
        "HybridRetriever",
        HybridRetriever,
        {"retrievers": [dense, words], "weights": [1.0, 2.0], "rrf_k": 60, "k": 3, "merge": "id"},
        made=True,
    )
    yield Door(
        "RetrieveRerankRetriever",
        RetrieveRerankRetriever,
        dict(base_retriever=dense, reranker=model, fetch_k=10, **limits),
        made=True,
    )
    yield Door(
        "BM25Retriever.from_texts",
        BM25Retriever.from_texts,
        {"texts": TEXTS, "metadatas": metadatas, "ids": KEPT, "bm25_params": {"k1": 1.0, "b": 0.5}, "k": 3},
        made=True,
    )
    yield Door("BM25Retriever.add_documents", words.add_documents, {"documents": documents})
    yield Door("BM25Retriever.delete", words.delete, {"ids": ["new-1"]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dumped = dumpd(RetrieveRerankRetriever(base_retriever=dense, reranker=model))
    yield Door("load", load, {"dumped": dumped}, made=True)
