"""A tuned setting in a framework: the file that `Tuning.save` writes makes each framework's retriever."""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import TextNode

from retrieve_rerank import CrossEncoder, InvalidInputError, RetrieveRerank, SavedSetting, load_setting
from retrieve_rerank.evaluation import Dataset, tune
from retrieve_rerank.indexes.bm25 import BM25Index
from retrieve_rerank.langchain import BM25Retriever as LangChainBM25
from retrieve_rerank.langchain import RetrieveRerankRetriever as LangChainRetriever
from retrieve_rerank.llama_index import BM25Retriever as LlamaIndexBM25
from retrieve_rerank.llama_index import RetrieveRerankRetriever as LlamaIndexRetriever
from retrieve_rerank.models.settings import CrossEncoderSettings
from retrieve_rerank.retrieval.saved import REMEMBERED, save_setting
from tests.core.stubs import run_python

TEXTS = {str(number): f"bread {'capital ' * (number % 4)}paris {'word ' * number}" for number in range(12)}


def test_one_file_for_all(tiny_cross_encoder: Path, tmp_path: Path) -> None:
    file, query = tmp_path / "setting.json", "what is the capital"
    index = BM25Index()
    data = Dataset("tiny", TEXTS, {"q": query}, {"q": {"3": 1}})
    index.add(data.passages)
    with CrossEncoder(tiny_cross_encoder) as model:
        tuning = tune({"words": index}, {"tiny": model}, data, depths=[4, 7])
    tuning.save(file, tuning.curve("words", "tiny")[1])

    setting = load_setting(file)
    expected = RetrieveRerank.load(file, index, top_n=7).search(query)
    assert len(expected.candidates) == 7
    documents = [Document(text, id=name) for name, text in TEXTS.items()]
    langchain = LangChainRetriever(
        base_retriever=LangChainBM25.from_documents(documents),
        reranker=setting.make_cross_encoder(),
        fetch_k=setting.fetch_k,
        top_n=7,
    )
    assert [document.id for document in langchain.invoke(query)] == [hit.passage.id for hit in expected]
    nodes = [TextNode(id_=name, text=text) for name, text in TEXTS.items()]
    words = LlamaIndexBM25.from_defaults(nodes=nodes, similarity_top_k=20)
    llama_index = LlamaIndexRetriever(words, setting.make_cross_encoder(), fetch_k=setting.fetch_k, top_n=7)
    assert [node.node_id for node in llama_index.retrieve(query)] == [hit.passage.id for hit in expected]


@pytest.mark.parametrize("limit", [0, 40, 200])
def test_a_full_disk_leaves_the_old_file_as_it_was(tmp_path: Path, limit: int) -> None:
    file = tmp_path / "setting.json"
    save_setting(SavedSetting("words", 20, "mini", {"model": "a" * 300}), file)
    before = file.read_bytes()
    script = f"""
        import resource, signal, sys
        from retrieve_rerank.retrieval.saved import SavedSetting, save_setting
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        setting = SavedSetting("words", 30, "mini", {{"model": "b" * 300}})
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        try:
            save_setting(setting, sys.argv[1])
        except OSError as error:
            print("OSError")
    """
    assert run_python(script, str(file), warnings="ignore").strip() == "OSError"
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["setting.json"]


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"format": 1, "first_stage": "a", "fetch_k": ' + "9" * 5_000 + "}", "\ud800"]
)
def test_a_hostile_file_is_no_setting(tmp_path: Path, content: str) -> None:
    file = tmp_path / "setting.json"
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(InvalidInputError, match="is no setting that") as caught:
        load_setting(file)
    assert len(str(caught.value)) < 2_000


def test_each_setting_of_a_cross_encoder_is_remembered_or_left_out_on_purpose() -> None:
    """A new setting that decides scores and is forgotten here would be dropped from tuned settings silently."""
    left_out = {"device", "batch_tokens", "cache_folder", "local_files_only", "token", "trust_remote_code"}
    of_the_place = {"api_key", "timeout", "max_concurrency"}
    assert {"model", *CrossEncoderSettings.model_fields} == {*REMEMBERED, *left_out, *of_the_place}
