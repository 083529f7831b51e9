"""A tuned setting as code and as a file: what is loaded searches as what was tuned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import TextNode

from retrieve_rerank import BM25Index, CrossEncoder, InvalidInputError, RetrieveRerank, SavedSetting, load_setting
from retrieve_rerank.evaluation import Dataset, Tuning, tune
from retrieve_rerank.langchain import BM25Retriever as LangChainBM25
from retrieve_rerank.langchain import RetrieveRerankRetriever as LangChainRetriever
from retrieve_rerank.llama_index import BM25Retriever as LlamaIndexBM25
from retrieve_rerank.llama_index import RetrieveRerankRetriever as LlamaIndexRetriever
from retrieve_rerank.models.settings import CrossEncoderSettings
from retrieve_rerank.retrieval.saved import REMEMBERED
from tests.core.stubs import TableScorer
from tests.evaluation.stubs import Shelf, dataset, logits

QUERIES = {"q1": "what is the capital", "q2": "bread"}


@pytest.fixture(scope="module")
def words() -> BM25Index:
    index = BM25Index()
    index.add(data().passages)
    return index


def data() -> Dataset:
    texts = {str(number): f"bread {'capital ' * (number % 3)}paris {number}" for number in range(12)}
    return Dataset("tiny", texts, QUERIES, {"q1": {"3": 1}, "q2": {"5": 1}})


def tuned(words: BM25Index, model: CrossEncoder) -> Tuning:
    return tune({"words": words}, {"tiny model": model}, data(), depths=[3, 6])


def test_the_file_makes_the_pipeline_that_was_tuned(words: BM25Index, tiny_cross_encoder: Path, tmp_path: Path) -> None:
    file = tmp_path / "setting.json"
    given: dict[str, Any] = {"precision": "float32", "max_length": 16, "long_passages": "windows", "max_windows": 3}
    with CrossEncoder(tiny_cross_encoder, **given, batch_tokens=64) as model:
        tuning = tuned(words, model)
        setting = tuning.curve("words", "tiny model")[1]
        tuning.save(file, setting)
        loaded = RetrieveRerank.load(file, {"words": words, "other": Shelf({})}, top_n=6)
        search = RetrieveRerank(words, model, fetch_k=6, top_n=6)
        for query in QUERIES.values():
            assert [hit.passage.id for hit in loaded.search(query)] == [hit.passage.id for hit in search.search(query)]
    assert isinstance(loaded.cross_encoder, CrossEncoder)
    assert {name: loaded.cross_encoder.settings[name] for name in given} == given
    loaded.cross_encoder.close()
    saved = load_setting(file)
    assert saved.model == {"model": str(tiny_cross_encoder), **given}
    assert (saved.first_stage, saved.fetch_k, saved.cross_encoder) == ("words", 6, "tiny model")
    assert saved.measured["quality"] == setting.quality
    assert saved.measured["dataset"] == "tiny"


def test_the_code_runs(words: BM25Index, tiny_cross_encoder: Path) -> None:
    with CrossEncoder(tiny_cross_encoder, precision="float32") as model:
        tuning = tuned(words, model)
        names: dict[str, Any] = {"words": words}
        exec(tuning.code(tuning.curve("words", "tiny model")[0]), names)
        made = names["search"]
        assert (made.fetch_k, made.cross_encoder.settings) == (3, model.settings)
        names = {"words": words, "query": "bread"}
        exec(tuning.code(tuning.settings[0]), names)
        assert len(names["hits"]) == 6  # as deep as it was measured


def test_neither_secrets_nor_leave_to_run_code_are_written(words: BM25Index, tiny_cross_encoder: Path) -> None:
    with CrossEncoder(tiny_cross_encoder, token="hf_secret", trust_remote_code=True) as model:
        tuning = tuned(words, model)
        said = f"{tuning.models} {tuning.code(tuning.settings[-1])}"
    assert "secret" not in said
    assert "trust" not in said


def test_a_file_cannot_turn_on_code_of_a_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "setting.json"
    model = {"model": "some/model", "trust_remote_code": True, "token": "x", "cache_folder": "/elsewhere"}
    file.write_text(json.dumps({"format": 1, "first_stage": "a", "fetch_k": 5, "cross_encoder": "m", "model": model}))
    made = load_setting(file).make_cross_encoder()
    assert made.settings["trust_remote_code"] is False
    assert made.settings["cache_folder"] is None


def test_a_scorer_of_another_kind_is_given_again(tmp_path: Path) -> None:
    shelf, scorer, file = Shelf({"one": "cad", "two": "efb"}), TableScorer(logits("abcdef")), tmp_path / "setting.json"
    tune({"shelf": shelf}, {"table": scorer}, dataset(), depths=[3]).save(file)
    assert load_setting(file).model is None
    with pytest.raises(InvalidInputError, match="does not say how 'table' is made; give it as cross_encoder"):
        RetrieveRerank.load(file, shelf)
    search = RetrieveRerank.load(file, shelf, scorer, top_n=1, score_threshold=0.1, time_budget=9, on_error="raise")
    assert [hit.passage.id for hit in search.search("one")] == ["a"]
    assert (search.fetch_k, search.score_threshold, search.time_budget) == (3, 0.1, 9.0)
    with pytest.raises(InvalidInputError, match="is for the first stage 'shelf'; given are \\['dense'\\]"):
        RetrieveRerank.load(file, {"dense": shelf}, scorer)


def test_a_setting_that_does_not_re_rank_is_no_pipeline(tmp_path: Path) -> None:
    shelf, file = Shelf({"one": "adc", "two": "bef"}), tmp_path / "setting.json"
    tune({"shelf": shelf}, {"bad": TableScorer(logits("fecbda"))}, dataset(), depths=[3]).save(file)
    assert not load_setting(file).reranked
    with pytest.raises(InvalidInputError, match="is not to re-rank: search 'shelf' by itself"):
        RetrieveRerank.load(file, shelf)
    with pytest.raises(InvalidInputError, match="there is no cross-encoder"):
        load_setting(file).make_cross_encoder()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no setting that Tuning.save wrote"),
        ("not json", "is no setting that Tuning.save wrote"),
        ("[" * 100_000, "is no setting that Tuning.save wrote"),
        ('{"format": 1, "first_stage": "a", "fetch_k": ' + "9" * 5_000 + "}", "is no setting that Tuning.save wrote"),
        ("\ud800", "is no setting that Tuning.save wrote"),
        ("[1]", "names no format"),
        ("{}", "names no format"),
        ('{"format": 2}', "has format 2, and this version reads 1"),
        ('{"format": 1}', "is no setting that Tuning.save wrote"),
        ('{"format": 1, "first_stage": "a", "fetch_k": 0}', "fetch_k"),
        ('{"format": 1, "first_stage": 7, "fetch_k": 5}', "first_stage of a setting must be a string"),
        ('{"format": 1, "first_stage": "a", "fetch_k": 5, "cross_encoder": 3}', "cross_encoder of a setting"),
        ('{"format": 1, "first_stage": "a", "fetch_k": 5, "model": "m"}', "must be a dict"),
        ('{"format": 1, "first_stage": "a", "fetch_k": 5, "depth": 3}', "depth"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_file_that_cannot_be_used(content: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "setting.json"
    if content is not None:
        file.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(InvalidInputError, match=message) as raised:
        load_setting(file)
    assert str(file) in str(raised.value)
    assert len(str(raised.value)) < 2_000


def test_a_setting_can_be_written_by_hand() -> None:
    setting = SavedSetting("words", 20, "mini", {"model": "some/model", "precision": "float32"})
    assert setting.make_cross_encoder().settings["precision"] == "float32"


def test_one_file_makes_the_retriever_of_each_framework(tiny_cross_encoder: Path, tmp_path: Path) -> None:
    file, query = tmp_path / "setting.json", "what is the capital"
    texts = {str(number): f"bread {'capital ' * (number % 4)}paris {'word ' * number}" for number in range(12)}
    index = BM25Index()
    data = Dataset("tiny", texts, {"q": query}, {"q": {"3": 1}})
    index.add(data.passages)
    with CrossEncoder(tiny_cross_encoder) as model:
        tuning = tune({"words": index}, {"tiny": model}, data, depths=[4, 7])
    tuning.save(file, tuning.curve("words", "tiny")[1])

    setting = load_setting(file)
    expected = RetrieveRerank.load(file, index, top_n=7).search(query)
    assert len(expected.candidates) == 7
    documents = [Document(text, id=name) for name, text in texts.items()]
    langchain = LangChainRetriever(
        base_retriever=LangChainBM25.from_documents(documents),
        reranker=setting.make_cross_encoder(),
        fetch_k=setting.fetch_k,
        top_n=7,
    )
    assert [document.id for document in langchain.invoke(query)] == [hit.passage.id for hit in expected]
    nodes = [TextNode(id_=name, text=text) for name, text in texts.items()]
    words = LlamaIndexBM25.from_defaults(nodes=nodes, similarity_top_k=20)
    llama_index = LlamaIndexRetriever(words, setting.make_cross_encoder(), fetch_k=setting.fetch_k, top_n=7)
    assert [node.node_id for node in llama_index.retrieve(query)] == [hit.passage.id for hit in expected]


def test_each_setting_of_a_cross_encoder_is_remembered_or_left_out_on_purpose() -> None:
    """A new setting that decides scores and is forgotten here would be dropped from tuned settings silently."""
    left_out = {"device", "batch_tokens", "cache_folder", "local_files_only", "token", "trust_remote_code"}
    of_the_place = {"api_key", "timeout", "max_concurrency"}
    assert {"model", *CrossEncoderSettings.model_fields} == {*REMEMBERED, *left_out, *of_the_place}
