"""Indexing on a cluster ends in the collection that one process makes, whatever dies on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retrieve_rerank import ChromaIndex
from retrieve_rerank.ray import index
from tests.chroma_server import ChromaServer
from tests.ray.stubs import Traced, encoded, passages

pytestmark = [pytest.mark.usefixtures("cluster")]


def same(left: ChromaIndex, right: ChromaIndex) -> None:
    pairs = [dict(sorted((r.id, r) for r in index.collection.read())) for index in (left, right)]
    assert pairs[0].keys() == pairs[1].keys()
    ids = list(pairs[0])
    assert all(pairs[0][i].equals(pairs[1][i]) and pairs[1][i].equals(pairs[0][i]) for i in ids)
    vectors = [index.collection.vectors(ids) for index in (left, right)]
    assert all(np.allclose(vectors[0][i], vectors[1][i], atol=1e-5) for i in ids)
    assert left.collection.metric == right.collection.metric
    assert left.collection.handle.metadata == right.collection.handle.metadata


def test_the_same_passages_make_the_same_collection(server: ChromaServer, tmp_path: Path) -> None:
    encoder = Traced(tmp_path)
    report = index(
        passages(500), encoder, collection="same", host=server.host, port=server.port, batch_size=50, concurrency=2
    )
    assert (report.added, report.updated, report.unchanged) == (500, 0, 0)
    assert encoded(tmp_path) == 500
    alone = ChromaIndex(encoder)
    alone.add(passages(500))
    same(alone, ChromaIndex(encoder, "same", client=server.client()))
