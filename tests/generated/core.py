"""The core's doors without its indexes."""

from __future__ import annotations

import asyncio
import json
import types
from collections.abc import Iterator
from pathlib import Path

from tests.generated import KEPT, MODELS, TEXTS, Door


def core(folder: Path) -> Iterator[Door]:
    from retrieve_rerank import (
        BiEncoder,
        CrossEncoder,
        Hit,
        HybridRetriever,
        Passage,
        RetrieveRerank,
        SavedSetting,
        fuse,
        load_setting,
        split_paragraphs,
    )
    from retrieve_rerank.retrieval.saved import save_setting
    from tests import tiny

    (folder / "bi").mkdir()
    (folder / "cross").mkdir()
    encoder = BiEncoder(tiny.save_bi_encoder(folder / "bi"), precision="float32")
    model = CrossEncoder(tiny.save_cross_encoder(folder / "cross"), precision="float32")
    windows = CrossEncoder(model.model, precision="float32", long_passages="windows")
    passages = [
        Passage(id_, text, {"n": number, "tags": ["a"]})
        for number, (id_, text) in enumerate(zip(KEPT, TEXTS, strict=False))
    ]
    hits = [Hit(passage, rank, 1 / rank, rank, 1 / rank) for rank, passage in enumerate(passages, 1)]
    mixed = ["paris", passages[0], hits[1]]

    class First:
        def retrieve(self, query: str, k: int = 100) -> list[Hit]:
            return hits[:k]

    def saved(content: object) -> object:
        (folder / "setting.json").write_bytes(
            content if isinstance(content, bytes) else json.dumps(content).encode("utf-8", "surrogatepass")
        )
        return load_setting(folder / "setting.json")

    def made(first_stage: object, fetch_k: object, cross_encoder: object, model: object, measured: object) -> object:
        return SavedSetting(first_stage, fetch_k, cross_encoder, model, measured).make_cross_encoder()  # type: ignore[arg-type]

    def answer(first: object) -> object:
        return RetrieveRerank(types.SimpleNamespace(retrieve=lambda query, k: first), model).search("paris")  # type: ignore[arg-type]

    def scored(scores: object) -> object:
        scorer = types.SimpleNamespace(score=lambda query, texts: scores)
        return RetrieveRerank(First(), scorer).search("paris")  # type: ignore[arg-type]

    pipeline = RetrieveRerank(First(), model)
    hybrid = HybridRetriever([First(), First()])
    save_setting(SavedSetting("bm25", 20, "m", {"model": "m"}), folder / "right.json")
    limits = {"top_n": 2, "score_threshold": 0.1, "time_budget": 30.0}
    setting = {"format": 1, "first_stage": "bm25", "fetch_k": 20, "cross_encoder": "m", "model": {"model": "m"}}
    yield Door("Passage", lambda **of: repr(Passage(**of)), {"id": "a", "text": "paris", "metadata": {"a": 1}})
    yield Door("Hit", lambda **of: Hit(**of), {"passage": passages[0], "rank": 1, "score": 0.5, "logit": 1.0})
    yield Door(
        "BiEncoder", BiEncoder, dict(model=encoder.model, query_prompt="q", truncate_dim=8, metric=None, **MODELS)
    )
    yield Door(
        "CrossEncoder",
        CrossEncoder,
        dict(model=model.model, prompt="q", long_passages="truncate", max_windows=4, **MODELS),
    )
    yield Door("encode_queries", encoder.encode_queries, {"texts": TEXTS})
    yield Door("encode_documents", encoder.encode_documents, {"texts": TEXTS})
    yield Door("count_tokens", encoder.count_tokens, {"texts": TEXTS})
    yield Door("score", model.score, {"query": "paris", "texts": TEXTS})
    yield Door("rank", model.rank, dict(query="paris", passages=mixed, **limits))
    yield Door("rank in windows", windows.rank, dict(query="paris", passages=mixed, **limits))
    yield Door(
        "rank_many",
        model.rank_many,
        {"queries": ["paris", "rome"], "passages": [mixed, TEXTS], "top_n": 2, "score_threshold": 0.1},
    )
    yield Door(
        "fuse", fuse, {"rankings": [hits, hits[::-1]], "weights": [1.0, 2.0], "rrf_k": 60, "k": 3, "merge": "id"}
    )
    yield Door(
        "HybridRetriever",
        HybridRetriever,
        {"retrievers": [First(), First()], "weights": [1.0, 0.5], "rrf_k": 60, "on_error": "raise", "merge": "id"},
    )
    yield Door("hybrid.retrieve", hybrid.retrieve, {"query": "paris", "k": 3})
    yield Door("hybrid.retrieve_many", hybrid.retrieve_many, {"queries": ["paris"], "k": 3})
    yield Door(
        "RetrieveRerank",
        RetrieveRerank,
        dict(retriever=First(), cross_encoder=model, fetch_k=10, on_error="raise", scores="logits", **limits),
    )
    yield Door("search", pipeline.search, dict(query="paris", rewrites=["rome"], **limits))
    yield Door(
        "asearch",
        lambda **of: asyncio.run(pipeline.asearch(**of)),
        dict(query="paris", rewrites=["rome"], **limits),
        of=pipeline.asearch,
    )
    yield Door("search_many", pipeline.search_many, dict(queries=["paris", "rome"], **limits))
    yield Door("a first stage's answer", answer, {"first": hits})
    yield Door("a scorer's answer", scored, {"scores": [1.0, 2.0, 3.0]})
    yield Door("split_paragraphs", split_paragraphs, {"text": "paris\n\nrome"})
    yield Door(
        "SavedSetting",
        made,
        {"first_stage": "bm25", "fetch_k": 20, "cross_encoder": "m", "model": {"model": "m"}, "measured": {}},
    )
    yield Door("load_setting", lambda path: load_setting(path), {"path": str(folder / "right.json")})
    yield Door("a setting's file", saved, {"content": setting})
