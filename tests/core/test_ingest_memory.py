"""Indexing a generator holds a batch of it at a time, however many passages it gives; Chroma's own memory aside.

INGEST_PASSAGES in the environment sets how many. And a checkpoint is held once while it loads.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.core.stubs import run_python

PASSAGES = int(os.environ.get("INGEST_PASSAGES", "16000"))

# The same passages, in the same batches: through the index, or by Chroma's own call in a loop.
SCRIPT = """
    import json, sys, tracemalloc
    from itertools import islice
    from pathlib import Path

    import chromadb
    import numpy as np

    from retrieve_rerank import ChromaIndex, Passage

    way, path, count, batch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), 500

    class Table:
        dimension, metric, fingerprint = 8, "cosine", {"model": "table"}

        def encode_documents(self, texts):
            numbers = [int(text.split()[1]) for text in texts]
            return np.random.default_rng(numbers).normal(size=(len(texts), 8)).astype(np.float32)

        encode_queries = encode_documents

    resident, traced = [], []

    def look():
        for line in open("/proc/self/status"):
            if line.startswith("VmRSS"):
                resident.append(int(line.split()[1]) / 1024)
        traced.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.reset_peak()

    def passages():
        for number in range(count):
            if number % (count // 8) == 0:
                look()
            yield Passage(f"p{number}", f"text {number} " + "of some words " * 20, {"n": number})

    if way == "traced":
        tracemalloc.start()
    if way == "plain":
        stored = chromadb.PersistentClient(str(path)).create_collection(
            "passages", configuration={"hnsw": {"space": "cosine"}}
        )
        table, made = Table(), passages()
        while part := list(islice(made, batch)):
            texts = [passage.text for passage in part]
            stored.upsert(
                ids=[passage.id for passage in part],
                embeddings=table.encode_documents(texts),
                documents=texts,
                metadatas=[dict(passage.metadata) for passage in part],
            )
        look()
        assert stored.count() == count
    else:
        with ChromaIndex(Table(), path=path) as index:
            index.add(passages(), batch_size=batch)
            look()
            assert index.count() == count
    print(json.dumps({"resident": resident, "traced": traced}))
"""


def measured(way: str, folder: Path, count: int) -> dict[str, list[float]]:
    arguments = (way, str(folder / way), str(count))
    found: dict[str, list[float]] = json.loads(
        run_python(SCRIPT, *arguments, timeout=120 + count / 50, warnings="ignore")
    )
    return found


def test_what_python_holds_is_one_batch(tmp_path: Path) -> None:
    traced = measured("traced", tmp_path, 16000)["traced"][2:]
    print(f"MB at the peak of each eighth: {traced}")
    assert max(traced) - min(traced) < 2, traced  # 12,000 passages are ten


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_more_is_kept_than_by_chroma_itself(tmp_path: Path) -> None:
    ours, plain = (measured(way, tmp_path, PASSAGES)["resident"] for way in ("ours", "plain"))
    print(f"{PASSAGES} passages, MB at each eighth: ours {ours}, Chroma alone {plain}")
    # From the first quarter on, when everything is loaded that ever is; Chroma's index grows with what is in it.
    assert ours[-1] - ours[2] < plain[-1] - plain[2] + 32, (ours, plain)


LOADING = """
    import sys

    import torch
    from sentence_transformers import CrossEncoder as Plain, SentenceTransformer

    from retrieve_rerank import BiEncoder, CrossEncoder

    way, kind, path, precision = sys.argv[1:]

    def look(what):
        return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(what))

    before = look("VmRSS")
    if way == "plain":
        model = (Plain if kind == "cross" else SentenceTransformer)(
            path, device="cpu", model_kwargs={"dtype": getattr(torch, precision)}
        )
        model.predict([("a", "b")]) if kind == "cross" else model.encode(["b"])
    else:
        settings = {"device": "cpu", "precision": precision, "backend": "torch"}  # not converted for OpenVINO as well
        model = (CrossEncoder if kind == "cross" else BiEncoder)(path, **settings)
        model.score("a", ["b"]) if kind == "cross" else model.encode_queries(["b"])
    print(look("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["cross", "bi"])
@pytest.mark.parametrize(
    ("saved", "precision"), [("bfloat16", "bfloat16"), ("float32", "float32"), ("float32", "bfloat16")]
)
def test_a_checkpoint_is_held_once_while_it_loads(tmp_path: Path, kind: str, saved: str, precision: str) -> None:
    """One in bfloat16 was widened to float32 first, all of it, which is three times as much."""
    import torch
    import transformers

    torch.manual_seed(1)
    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    settings = transformers.BertConfig(vocab_size=8000, max_position_embeddings=64, num_labels=1, **sizes)
    made = transformers.BertForSequenceClassification if kind == "cross" else transformers.BertModel
    made(settings).to(getattr(torch, saved)).save_pretrained(tmp_path)
    tiny.save_tokenizer(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size / 2**20
    ours, plain = (
        float(run_python(LOADING, way, kind, str(tmp_path), precision, timeout=120, warnings="ignore", forked=True))
        for way in ("ours", "plain")
    )
    print(
        f"{size:.0f} MB in {saved}, computed in {precision}: ours {ours:.0f} MB, sentence-transformers {plain:.0f} MB"
    )
    assert ours < 1.3 * plain, (ours, plain)
