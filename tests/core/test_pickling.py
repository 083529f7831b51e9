"""What the core is made of can be pickled: settings and places travel; threads, loaded models and tokens stay."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank import BiEncoder, ChromaIndex, CrossEncoder, InvalidInputError, Passage, RetrieveRerank
from retrieve_rerank.models.worker import Worker
from tests.core.stubs import LetterEncoder, found, run_python

MARKER = "marker-of-a-secret"
TEXTS = ["paris is the capital of france", "rome is in italy", "bread", "what is a word"]


def again(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


@pytest.fixture
def pipeline(tiny_bi_encoder: Path, tiny_cross_encoder: Path, tmp_path: Path) -> RetrieveRerank:
    encoder = BiEncoder(tiny_bi_encoder, precision="float32", token=MARKER)
    index = ChromaIndex(encoder, path=tmp_path / "index")
    index.add(Passage(text, text) for text in TEXTS)
    model = CrossEncoder(tiny_cross_encoder, precision="float32", token=MARKER)
    return RetrieveRerank(index, model, top_n=2, on_error="retrieval_order")


def test_models_keep_their_settings_and_lose_their_token(tiny_bi_encoder: Path, tiny_cross_encoder: Path) -> None:
    encoder = BiEncoder(tiny_bi_encoder, precision="float32", max_length=8, query_prompt="find: ", token=MARKER)
    model = CrossEncoder(tiny_cross_encoder, precision="float32", max_length=40, token=MARKER)
    model.score("q", ["loaded"])
    assert again(encoder).settings == encoder.settings
    assert again(model).settings == model.settings
    assert again(model).loaded_precision is None
    assert (again(encoder).encode_queries(["capital"]) == encoder.encode_queries(["capital"])).all()
    assert (again(model).score("capital", TEXTS) == model.score("capital", TEXTS)).all()
    for original in (encoder, model):
        assert MARKER not in repr(pickle.dumps(original)) + repr(original) + repr(original.settings)
        assert type(original)(**original.settings).settings == original.settings


def test_a_pipeline_over_a_directory(pipeline: RetrieveRerank, tmp_path: Path) -> None:
    restored = again(pipeline)
    expected = pipeline.search("capital")
    result = restored.search("capital")
    assert (result.hits, result.candidates) == (expected.hits, expected.candidates)
    assert again(expected).hits == expected.hits
    restored.retriever.add([Passage("new", "capital")])
    assert pipeline.retriever.get(["new"])[0].text == "capital"  # it is the same collection
    assert MARKER not in repr(pickle.dumps(pipeline)) + repr(pipeline)


def test_in_a_process_of_its_own(pipeline: RetrieveRerank, tmp_path: Path) -> None:
    expected = [hit.passage.id for hit in pipeline.search("capital")]
    pickled = tmp_path / "pipeline.pickle"
    pickled.write_bytes(pickle.dumps(pipeline))
    pipeline.retriever.close()
    script = """
        import pickle, sys
        pipeline = pickle.loads(open(sys.argv[1], "rb").read())
        print(*[hit.passage.id for hit in pipeline.search("capital")], sep="\\n")
    """
    assert run_python(script, str(pickled), warnings="ignore").splitlines() == expected


def test_an_index_in_memory_cannot_be_pickled_and_says_so() -> None:
    with pytest.raises(InvalidInputError, match="in memory or a client's: it cannot be pickled"):
        pickle.dumps(ChromaIndex(LetterEncoder()))


def test_hits_and_results() -> None:
    hits = found(["a", "b"])
    assert again(hits) == hits


def test_a_worker_comes_back_as_one_of_its_own() -> None:
    worker = Worker("mine", patience=3.0)
    assert worker.run(lambda: 1) == 1
    restored = again(worker)
    assert restored.run(lambda: 2) == 2
    assert restored.thread is not worker.thread
    assert restored._patience == 3.0
