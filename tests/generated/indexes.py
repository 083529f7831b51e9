"""The indexes' doors."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path

from tests.generated import KEPT, TEXTS, WHERE, WORDS, Door, answers


def indexes(folder: Path) -> Iterator[Door]:
    from retrieve_rerank import BiEncoder, BM25Index, ChromaIndex, HybridRetriever, Passage, RetrieveRerank
    from tests import tiny

    (folder / "bi").mkdir()
    encoder = BiEncoder(tiny.save_bi_encoder(folder / "bi"), precision="float32")
    passages = [
        Passage(id_, text, {"n": number, "kind": "fact"})
        for number, (id_, text) in enumerate(zip(KEPT, TEXTS, strict=False))
    ]
    new = [Passage("new-1", "paris", {"a": 1, "b": ["x", "y"], "c": None}), Passage("new-2", "rome", {"a": {"b": 1}})]
    search = {"query": "paris", "k": 3, "where": WHERE, "where_document": WORDS}
    many = {"queries": ["paris", "rome"], "k": 3, "where": WHERE, "where_document": WORDS}
    mmr = {"mmr_lambda": 0.5, "mmr_pool": 10}
    chroma = ChromaIndex(encoder, path=folder / "chroma")
    words = BM25Index(path=folder / "words")
    both = RetrieveRerank(
        HybridRetriever([chroma, words]), types.SimpleNamespace(score=lambda query, texts: [1.0] * len(texts))
    )
    for index in (chroma, words):
        index.add(passages)

        def found(index=index):
            return sorted(hit.passage.id for hit in index.retrieve("capital word", 10, where={"kind": "fact"}))

        after = answers(index.count, found)
        name = type(index).__name__
        yield Door(f"{name}.add", index.add, {"passages": new, "batch_size": 10}, after)
        yield Door(f"{name}.get", index.get, {"ids": KEPT}, after)
        yield Door(f"{name}.delete", index.delete, {"ids": ["new-1", "nothing"]}, after)
        yield Door(f"{name}.retrieve", index.retrieve, search | (mmr if index is chroma else {}), after)
        yield Door(f"{name}.retrieve_many", index.retrieve_many, many | (mmr if index is chroma else {}), after)
    for name in ("strange", "spare"):
        with ChromaIndex(encoder, path=folder / name) as index:
            index.add(passages)
            if name == "strange":
                index.collection.handle.modify(metadata={"made": "elsewhere"})
    after = answers(chroma.count, lambda: [passage.id for passage in chroma.get(KEPT)])
    yield Door(
        "replace_source",
        chroma.replace_source,
        {"source_id": "atlas", "passages": new, "source_key": "source", "batch_size": 2},
        after,
    )
    yield Door("check", chroma.check, {"samples": 3}, after)
    yield Door(
        "adopt",
        ChromaIndex.adopt,
        {"encoder": encoder, "collection": "passages", "client": None, "path": str(folder / "strange"), "samples": 2},
    )
    yield Door("repair", chroma.repair, {"samples": 3}, after)
    yield Door(
        "recover",
        ChromaIndex.recover,
        {"encoder": encoder, "collection": "passages", "path": str(folder / "spare")},
    )
    yield Door("search with options", both.search, {"query": "paris", "where": WHERE, "where_document": WORDS})
    options = {
        "metric": "cosine",
        "assume_compatible": False,
        "retry_seconds": 1.0,
        "lock_timeout": 0.0,
        "search_breadth": 10,
    }
    yield Door(
        "ChromaIndex",
        lambda **of: ChromaIndex(**of).close(),
        dict(encoder=encoder, collection="passages", path=None, client=None, **options),
        of=ChromaIndex,
    )
    yield Door(
        "BM25Index",
        lambda **of: BM25Index(**of).close(),
        {"path": None, "language": "en", "tokenizer": None, "k1": 1.2, "b": 0.75},
        of=BM25Index,
    )
