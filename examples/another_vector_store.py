"""The same re-ranking step over another vector store: swap Chroma for any LangChain store, one line.

You see the top 3 of the same question over Chroma and over LangChain's in-memory store, with the scores of both stages.
They are equal: the stores find the same candidates, and the cross-encoder orders them. Whether a store says distance or
similarity, `retrieval_score` is larger for what is nearer.

    pip install "retrieve-rerank[langchain,demo]"
    python examples/another_vector_store.py
"""

from __future__ import annotations

from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from retrieve_rerank.demo import demo_models
from retrieve_rerank.langchain import (
    BiEncoderEmbeddings,
    ChromaVectorStore,
    CrossEncoderReranker,
    RetrieveRerankRetriever,
)

QUESTION = "What do I need to bake bread?"
TEXTS = {
    "ingredients": "Flour, water, salt and yeast are all it takes to bake a simple loaf of bread.",
    "history": "People have baked bread for more than ten thousand years.",
    "toast": "Toast is bread that was browned by heat, often eaten at breakfast.",
    "cake": "A cake needs sugar, eggs and butter beside the flour.",
    "oven": "The oven should be hot before the loaf goes in.",
    "paris": "Paris has more than a thousand bakeries.",
}


def main() -> None:
    """Search both stores."""
    bi_encoder, cross_encoder = demo_models()
    embeddings = BiEncoderEmbeddings(model=bi_encoder)
    reranker = CrossEncoderReranker(model=cross_encoder)
    stores: list[VectorStore] = [
        ChromaVectorStore(embedding_function=embeddings),
        InMemoryVectorStore(embeddings),  # or FAISS, Qdrant, Milvus, LanceDB, …; `.as_retriever()` will do, too
    ]
    print(QUESTION)
    for store in stores:
        store.add_texts(list(TEXTS.values()), ids=list(TEXTS))
        retriever = RetrieveRerankRetriever(base_retriever=store, reranker=reranker, top_n=3)
        print(f"\n  {type(store).__name__}")
        for document in retriever.invoke(QUESTION):
            scores = document.metadata
            print(
                f"    {scores['relevance_score']:.3f}  {document.id:12} "
                f"(similarity {scores['retrieval_score']:.3f}, was {scores['retrieval_rank']})"
            )


if __name__ == "__main__":
    main()
