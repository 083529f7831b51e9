"""A LangChain (LCEL) chain with retrieve & re-rank: question in, answer with sources out.

You see, for each question, the re-ranked sources with their relevance and where the first stage had them, and the
answer of a stand-in for the LLM, which needs no key and quotes the best source. One line puts in a real one.

    pip install "retrieve-rerank[langchain,demo]"
    python examples/langchain_chain.py ["your question about Python's statistics functions" ...]
"""

from __future__ import annotations

import inspect
import random
import statistics
import sys
import textwrap

from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough

from retrieve_rerank.demo import demo_models
from retrieve_rerank.langchain import (
    BiEncoderEmbeddings,
    ChromaVectorStore,
    CrossEncoderReranker,
    RetrieveRerankRetriever,
)

QUESTIONS = ["What is the most common value in my data?", "How do I shuffle a list?"]
PROMPT = ChatPromptTemplate.from_template("Answer from these sources only:\n\n{context}\n\nQuestion: {question}")


def documents() -> list[Document]:
    """Return the documentation of the functions of random and statistics, cut to what the demo model reads."""
    functions = [getattr(module, name) for module in (random, statistics) for name in module.__all__]
    return [Document((inspect.getdoc(each) or "")[:800], id=f"{each.__module__}.{each.__name__}") for each in functions]


def stand_in_llm(prompt: PromptValue) -> AIMessage:
    """Quote the best source: the first of the context."""
    return AIMessage(prompt.to_string().split("\n\n")[1])


def context(found: list[Document]) -> str:
    """Join the sources, best first."""
    summaries = (" ".join(document.page_content.partition("\n\n")[0].split()) for document in found)
    return "\n\n".join(f"[{document.id}] {summary}" for document, summary in zip(found, summaries, strict=True))


def main() -> None:
    """Answer the questions."""
    bi_encoder, cross_encoder = demo_models()
    store = ChromaVectorStore.from_documents(documents(), BiEncoderEmbeddings(model=bi_encoder))
    retriever = RetrieveRerankRetriever(
        base_retriever=store, reranker=CrossEncoderReranker(model=cross_encoder), fetch_k=50, top_n=3
    )
    llm: Runnable[PromptValue, AIMessage] = RunnableLambda(stand_in_llm)
    # llm = init_chat_model("openai:gpt-5-mini")  # a real one: pip install langchain langchain-openai
    answer = RunnablePassthrough.assign(context=lambda job: context(job["sources"])) | PROMPT | llm | StrOutputParser()
    chain = RunnablePassthrough.assign(sources=lambda job: retriever.invoke(job["question"])).assign(answer=answer)
    for question in sys.argv[1:] or QUESTIONS:
        result = chain.invoke({"question": question})
        print(f"\n{question}")
        for document in result["sources"]:
            scores = document.metadata
            print(f"  {scores['relevance_score']:.2f}  {document.id:26} (was {scores['retrieval_rank']})")
        print(textwrap.indent(textwrap.fill(result["answer"], 90), "  > "))


if __name__ == "__main__":
    main()
