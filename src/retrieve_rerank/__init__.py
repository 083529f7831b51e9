"""Retrieve & re-rank: a bi-encoder finds candidates, a cross-encoder orders them.

The names below load on first use, so importing this package costs neither torch nor chromadb.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrieve_rerank.errors import (
        DegradedWarning,
        IndexLockedError,
        IndexMismatchError,
        InvalidInputError,
        MissingDependencyError,
        ModelError,
        RemoteError,
        RetrieveRerankError,
        TruncationWarning,
    )
    from retrieve_rerank.indexes.bm25 import BM25Index
    from retrieve_rerank.indexes.chroma import ChromaIndex
    from retrieve_rerank.indexes.reports import AdoptReport, IndexCheck, RepairReport
    from retrieve_rerank.models.bi_encoder import BiEncoder
    from retrieve_rerank.models.calibration import Calibration
    from retrieve_rerank.models.cross_encoder import CrossEncoder
    from retrieve_rerank.retrieval.fusion import fuse
    from retrieve_rerank.retrieval.hybrid import HybridRetriever
    from retrieve_rerank.retrieval.paragraphs import split_paragraphs
    from retrieve_rerank.retrieval.pipeline import RetrieveRerank
    from retrieve_rerank.retrieval.saved import SavedSetting, load_setting
    from retrieve_rerank.search_result import SearchResult, Timings
    from retrieve_rerank.types import AddReport, Encoder, Hit, Passage, Retriever, Scorer

__version__ = "0.1.0"

_ROOMS = {
    "AddReport": "types",
    "AdoptReport": "indexes.reports",
    "BM25Index": "indexes.bm25",
    "BiEncoder": "models.bi_encoder",
    "Calibration": "models.calibration",
    "ChromaIndex": "indexes.chroma",
    "CrossEncoder": "models.cross_encoder",
    "DegradedWarning": "errors",
    "Encoder": "types",
    "Hit": "types",
    "HybridRetriever": "retrieval.hybrid",
    "IndexCheck": "indexes.reports",
    "IndexLockedError": "errors",
    "IndexMismatchError": "errors",
    "InvalidInputError": "errors",
    "MissingDependencyError": "errors",
    "ModelError": "errors",
    "Passage": "types",
    "RemoteError": "errors",
    "RepairReport": "indexes.reports",
    "RetrieveRerank": "retrieval.pipeline",
    "RetrieveRerankError": "errors",
    "SavedSetting": "retrieval.saved",
    "Retriever": "types",
    "Scorer": "types",
    "SearchResult": "search_result",
    "Timings": "search_result",
    "TruncationWarning": "errors",
    "fuse": "retrieval.fusion",
    "load_setting": "retrieval.saved",
    "split_paragraphs": "retrieval.paragraphs",
}

__all__ = [
    "AddReport",
    "AdoptReport",
    "BM25Index",
    "BiEncoder",
    "Calibration",
    "ChromaIndex",
    "CrossEncoder",
    "DegradedWarning",
    "Encoder",
    "Hit",
    "HybridRetriever",
    "IndexCheck",
    "IndexLockedError",
    "IndexMismatchError",
    "InvalidInputError",
    "MissingDependencyError",
    "ModelError",
    "Passage",
    "RemoteError",
    "RepairReport",
    "RetrieveRerank",
    "RetrieveRerankError",
    "Retriever",
    "SavedSetting",
    "Scorer",
    "SearchResult",
    "Timings",
    "TruncationWarning",
    "fuse",
    "load_setting",
    "split_paragraphs",
]


def __getattr__(name: str) -> object:
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
