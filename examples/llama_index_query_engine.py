"""A LlamaIndex query engine with retrieve & re-rank: question in, answer with sources out.

You see, for each question, the sources of the answer with their relevance, and their rank in the first stage → after
re-ranking, then the beginning of the answer. LlamaIndex's MockLLM stands in for the LLM: it needs no key and repeats
what it was asked. One line puts in a real one.

    pip install "retrieve-rerank[llama-index,demo]"
    python examples/llama_index_query_engine.py ["your question about Python's file and iteration tools" ...]
"""

from __future__ import annotations

import inspect
import itertools
import pathlib
import shutil
import sys
import textwrap

from llama_index.core import VectorStoreIndex
from llama_index.core.llms.mock import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, TextNode

from retrieve_rerank.demo import demo_models
from retrieve_rerank.llama_index import (
    BiEncoderEmbedding,
    ChromaVectorStore,
    CrossEncoderRerank,
    RerankedNode,
    RetrieveRerankRetriever,
)

QUESTIONS = ["How do I copy a folder and everything in it?", "How do I make every combination of two items?"]


def nodes() -> list[TextNode]:
    """Return the documentation of shutil, itertools and Path, cut to what the demo model reads."""
    found = []
    for owner in (shutil, itertools, pathlib.Path):
        for name, member in inspect.getmembers(owner, callable):
            text = inspect.getdoc(member) or ""
            if not name.startswith("_") and text:
                full_name = f"{owner.__name__}.{name}"
                found.append(TextNode(id_=full_name, text=text[:600], metadata={"name": full_name}))
    return found


def show(sources: list[NodeWithScore]) -> None:
    """Print the sources, best first."""
    for source in sources:
        if isinstance(source, RerankedNode):
            moved = f"{source.retrieval_rank} → {source.rerank_rank}"
            print(f"  {source.score:.2f}  {source.node_id:40} rank {moved}")


def main() -> None:
    """Answer the questions."""
    bi_encoder, cross_encoder = demo_models()
    embed_model = BiEncoderEmbedding(bi_encoder)
    store = ChromaVectorStore(embed_model=embed_model)
    index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
    index.insert_nodes(nodes())
    retriever = RetrieveRerankRetriever(index, CrossEncoderRerank(cross_encoder), fetch_k=50, top_n=3)
    llm = MockLLM()
    # llm = OpenAI(model="gpt-5-mini")  # a real one: pip install llama-index-llms-openai
    engine = RetrieverQueryEngine.from_args(retriever, llm=llm)
    for question in sys.argv[1:] or QUESTIONS:
        response = engine.query(question)
        print(f"\n{question}")
        show(response.source_nodes)
        print(textwrap.indent(textwrap.fill(textwrap.shorten(str(response), 270, placeholder=" …"), 90), "  > "))


if __name__ == "__main__":
    main()
