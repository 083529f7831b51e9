"""What the core is made of can be pickled: settings and places travel; threads, loaded models and tokens stay."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank import (
    BiEncoder,
    BM25Index,
    ChromaIndex,
    CrossEncoder,
    HybridRetriever,
    InvalidInputError,
    Passage,
    RetrieveRerank,
)
from retrieve_rerank.indexes.words import Analyzer
from retrieve_rerank.models.threads import Worker
from tests.core.stubs import LetterEncoder, TableScorer, run_python

MARKER = "marker-of-a-secret"
TEXTS = ["paris is the capital of france", "rome is in italy", "bread", "what is a word"]


def letters_of(text: str) -> list[str]:
    return list(text.replace(" ", ""))


def again(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


WAYS = [again, copy.deepcopy]


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


def test_an_index_in_memory_cannot_be_pickled_and_says_so() -> None:
    with pytest.raises(InvalidInputError, match="in memory or a client's: it cannot be pickled"):
        pickle.dumps(ChromaIndex(LetterEncoder()))


def words_in(folder: Path, **options: Any) -> BM25Index:
    index = BM25Index(path=folder, **options)
    index.add(Passage(text, text) for text in TEXTS)
    index.save()
    return index


@pytest.mark.parametrize("way", WAYS, ids=["pickle", "copy"])
@pytest.mark.parametrize(
    "options", [{}, {"language": "german", "k1": 0.9, "b": 0.1}, {"tokenizer": letters_of}, {"language": None}]
)
def test_an_index_of_words(way: Any, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stemmer cannot be pickled, nor can a lock; an index opens its directory again, wherever the process is."""
    monkeypatch.chdir(tmp_path)
    index = words_in(Path("words"), **options)
    expected = index.retrieve("capitals of France")
    monkeypatch.chdir(tmp_path.parent)
    restored = way(index)
    assert restored.language == index.language
    assert restored.retrieve("capitals of France") == expected != []
    restored.add([Passage("new", "capital")])
    restored.save()
    assert index.get(["new"])[0].text == "capital"  # it is the same index, with threads and locks of its own
    assert restored.worker is not index.worker
    index.close()
    assert "new" in [hit.passage.id for hit in restored.retrieve("capital")]
    assert way(index).count() == 5  # as one of Chroma, a closed one is opened by its copy


@pytest.mark.parametrize("way", WAYS, ids=["pickle", "copy"])
def test_words_that_are_not_saved_are_not_left_behind(way: Any, tmp_path: Path) -> None:
    index = words_in(tmp_path)
    index.add([Passage("new", "capital")])
    with pytest.raises(InvalidInputError, match=re.escape(f"{str(tmp_path)!r} has changes that are not saved")):
        way(index)
    assert BM25Index(path=tmp_path).count() == 4  # nor is anything written in passing
    index.save()
    assert way(index).get(["new"])


@pytest.mark.parametrize("way", WAYS, ids=["pickle", "copy"])
def test_words_in_memory_cannot_be_pickled_and_say_so(way: Any) -> None:
    for thing in (BM25Index(), HybridRetriever([BM25Index()]), RetrieveRerank(BM25Index(), TableScorer({}))):
        with pytest.raises(InvalidInputError, match=r"in memory: it cannot be pickled or copied\. Give it a directory"):
            way(thing)


@pytest.mark.parametrize("way", [*WAYS, copy.copy], ids=["pickle", "deepcopy", "copy"])
def test_an_analyzer_makes_its_stemmer_again(way: Any) -> None:
    for analyzer in (Analyzer("de"), Analyzer(None), Analyzer("en", str.split)):
        restored = way(analyzer)
        assert restored.facts == analyzer.facts
        assert restored.words("und Häuser") == analyzer.words("und Häuser")
        assert [restored.stem(word) for word in ("und", "häuser")] == [analyzer.stem(w) for w in ("und", "häuser")]


def test_words_and_vectors_in_a_process_of_its_own(pipeline: RetrieveRerank, tmp_path: Path) -> None:
    words = words_in(tmp_path / "words")
    hybrid = HybridRetriever([pipeline.retriever, words], weights=[0.5, 1.0])
    whole = RetrieveRerank(hybrid, pipeline.cross_encoder, top_n=3)
    things = [words, hybrid, whole]
    expected = [[hit.passage.id for hit in thing.retrieve("capitals", 4)] for thing in (words, hybrid)]
    expected.append([hit.passage.id for hit in whole.search("capitals")])
    pickled = tmp_path / "things.pickle"
    pickled.write_bytes(pickle.dumps(things))
    for thing in (pipeline.retriever, words):
        thing.close()
    script = """
        import pickle, sys
        words, hybrid, whole = pickle.loads(open(sys.argv[1], "rb").read())
        for found in (words.retrieve("capitals", 4), hybrid.retrieve("capitals", 4), whole.search("capitals")):
            print(*[hit.passage.id for hit in found], sep="|")
    """
    found = run_python(script, str(pickled), warnings="ignore", forked=True).splitlines()
    assert found == ["|".join(row) for row in expected]


def test_a_worker_comes_back_as_one_of_its_own() -> None:
    worker = Worker("mine", patience=3.0)
    assert worker.run(lambda: 1) == 1
    restored = again(worker)
    assert restored.run(lambda: 2) == 2
    assert restored.thread is not worker.thread
    assert restored._patience == 3.0


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy])
def test_a_copy_keeps_the_secrets_that_a_pickle_leaves_out(way: Any) -> None:
    """A copy of the model, as pydantic makes one, could fetch no private model any more."""
    original = BiEncoder("a/b", token=MARKER)
    assert way(original)._settings["token"] == MARKER
    assert again(original)._settings["token"] is None
    served = CrossEncoder(endpoint="http://127.0.0.1:1", api_key=MARKER)
    assert way(served)._endpoint.headers == {"Authorization": f"Bearer {MARKER}"}
    assert way(served)._worker is not served._worker
    assert again(served)._endpoint.headers == {}
