"""Import every public name, search through the core, both frameworks and the command line: do these versions work?"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

import retrieve_rerank
import retrieve_rerank.evaluation
import retrieve_rerank.langchain
import retrieve_rerank.llama_index
import retrieve_rerank.testing
from tests import tiny

TEXTS = ["paris is the capital of france", "rome is the capital of italy", "bread is bread"]
TEXTS_BY_ID = {str(number): text for number, text in enumerate(TEXTS)}


def main() -> None:
    for module in (retrieve_rerank, retrieve_rerank.langchain, retrieve_rerank.llama_index, retrieve_rerank.testing):
        for name in module.__all__:
            getattr(module, name)
    folder = Path(tempfile.mkdtemp())
    for name in ("bi", "cross"):
        (folder / name).mkdir()
    encoder = retrieve_rerank.BiEncoder(tiny.save_bi_encoder(folder / "bi"))
    cross_encoder_path = str(tiny.save_cross_encoder(folder / "cross"))
    cross_encoder = retrieve_rerank.CrossEncoder(cross_encoder_path)

    index = retrieve_rerank.ChromaIndex(encoder, path=folder / "index")
    index.add(retrieve_rerank.Passage(str(number), text) for number, text in enumerate(TEXTS))
    search = retrieve_rerank.RetrieveRerank(index, cross_encoder, top_n=2)
    expected = [hit.passage.id for hit in search.search("capital of france")]
    assert [hit.passage.id for hit in asyncio.run(search.asearch("capital of france"))] == expected

    with retrieve_rerank.BM25Index(path=folder / "words") as words:
        words.add(retrieve_rerank.Passage(str(number), text) for number, text in enumerate(TEXTS))
    with retrieve_rerank.BM25Index(path=folder / "words") as words:
        hybrid = retrieve_rerank.RetrieveRerank(retrieve_rerank.HybridRetriever([index, words]), cross_encoder, top_n=2)
        ranks = [hit.retrieval_ranks for hit in hybrid.search("capital of france").candidates]
        assert ranks[0][1] == 1
        dataset = retrieve_rerank.evaluation.Dataset("smoke", TEXTS_BY_ID, {"q": "capital of france"}, {"q": {"0": 1}})
        assert retrieve_rerank.evaluation.evaluate({"hybrid": hybrid}, dataset).systems

    store = retrieve_rerank.langchain.ChromaVectorStore(
        embedding_function=retrieve_rerank.langchain.BiEncoderEmbeddings(model=encoder),
        persist_directory=folder / "index",
    )
    retriever = retrieve_rerank.langchain.RetrieveRerankRetriever(base_retriever=store, reranker=cross_encoder, top_n=2)
    documents: list[Document] = retriever.invoke("capital of france")
    assert [document.id for document in documents] == expected

    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(number))) for number, text in enumerate(TEXTS)]
    rerank = retrieve_rerank.llama_index.CrossEncoderRerank(model=cross_encoder, top_n=2)
    assert [node.node.node_id for node in rerank.postprocess_nodes(nodes, query_str="capital of france")] == expected

    answer = subprocess.run(
        [sys.executable, "-m", "retrieve_rerank", "rerank", "-", "--cross-encoder", cross_encoder_path],
        input=json.dumps({"query": "capital of france", "passages": TEXTS}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    assert len(json.loads(answer)["hits"]) == len(TEXTS), answer
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in (retrieve_rerank,))
    print(f"smoke test passed: {versions}")


if __name__ == "__main__":
    main()
