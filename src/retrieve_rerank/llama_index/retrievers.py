"""The two stages in a row, as a LlamaIndex retriever."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle

from retrieve_rerank.checks import check_count, check_queries, check_query, check_seconds, check_threshold
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.llama_index.first_stage import Index, check_retriever, first_stage
from retrieve_rerank.llama_index.fusion import afind, find
from retrieve_rerank.llama_index.postprocessor import CrossEncoderRerank
from retrieve_rerank.retrieval.crew import Crew
from retrieve_rerank.retrieval.rerank import OnError, check_on_error
from retrieve_rerank.types import Scorer


class RetrieveRerankRetriever(BaseRetriever):
    """Retrieve candidates with any retriever, order them with a cross-encoder, keep the best.

    What is given is asked, never modified: the first stage's number of nodes is set on a copy.

    Args:
        retriever: Any LlamaIndex retriever, or an index. One that does not say how many nodes it returns (it has no
            `similarity_top_k`) is asked as it is.
        reranker: A `CrossEncoderRerank`, or a model for one.
        fetch_k: How many candidates the first stage is asked for.
        top_n: How many nodes to return at most; goes before the re-ranker's own.
        score_threshold: Nodes whose relevance score is below are left out; None takes the re-ranker's own.
        time_budget: Seconds that the whole search may take: what the first stage leaves is the re-ranker's, whose own
            budget is not used then. The first stage is never cut off. None takes the re-ranker's own, for the
            re-ranking alone.
        on_error: What happens when the re-ranking fails, as in `CrossEncoderRerank`; None takes the re-ranker's own. A
            first stage that fails raises in any case.
        rewrites: Gives the query in other words, a list of texts. The first stage looks for each of them, too, and what
            they find is fused (see `retrieve_rerank.fuse`); the re-ranking is by the query. None looks for the query.
        callback_manager: LlamaIndex's callbacks.
        verbose: Whether LlamaIndex prints which objects of index nodes it enters.

    Raises:
        InvalidInputError: If an argument cannot be used.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> from retrieve_rerank.llama_index import BiEncoderEmbedding, ChromaRetriever, ChromaVectorStore
        >>> from retrieve_rerank.llama_index import CrossEncoderRerank, RetrieveRerankRetriever
        >>> embed_model = BiEncoderEmbedding(bi_encoder_path)
        >>> store = ChromaVectorStore(embed_model=embed_model)
        >>> texts = ["Paris is the capital of France.", "Rome is in Italy.", "Bread is baked."]
        >>> ids = store.add(embed_model([TextNode(text=text) for text in texts]))
        >>> reranker = CrossEncoderRerank(model=cross_encoder_path)
        >>> retriever = RetrieveRerankRetriever(ChromaRetriever(store), reranker, top_n=1)
        >>> found = retriever.retrieve("What is the capital of France?")
        >>> [(node.text, node.rerank_rank) for node in found]
        [('Paris is the capital of France.', 1)]
    """

    def __init__(
        self,
        retriever: BaseRetriever | Index,
        reranker: CrossEncoderRerank | str | os.PathLike[str] | Scorer,
        *,
        fetch_k: int = 100,
        top_n: int = 5,
        score_threshold: float | None = None,
        time_budget: float | None = None,
        on_error: OnError | None = None,
        rewrites: Callable[[str], Sequence[str]] | None = None,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> None:
        check_retriever(retriever, "retriever")
        self.retriever = retriever
        self.reranker = reranker if isinstance(reranker, CrossEncoderRerank) else CrossEncoderRerank(reranker)
        self.fetch_k = check_count(fetch_k, "fetch_k")
        self.top_n = check_count(top_n, "top_n")
        self.score_threshold = check_threshold(score_threshold)
        self.time_budget = check_seconds(time_budget, "time_budget")
        self.on_error = None if on_error is None else check_on_error(on_error)
        if rewrites is not None and not callable(rewrites):
            raise InvalidInputError(
                f"rewrites must be a function from the query to a list of texts, got {type(rewrites).__name__}"
            )
        self.rewrites = rewrites
        self._crew = Crew("retrieve-rerank first stage")
        super().__init__(callback_manager=callback_manager, verbose=verbose)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        bundle = _checked(query_bundle)
        start = time.perf_counter()
        first, queries = first_stage(self.retriever, self.fetch_k), self._in_other_words(bundle)
        candidates = find(first, bundle, queries, self.fetch_k)
        return self._second_stage(start).postprocess_nodes(candidates, query_bundle=bundle)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        bundle = _checked(query_bundle)
        start = time.perf_counter()
        first, arun = first_stage(self.retriever, self.fetch_k), self._crew.arun
        # Whoever rewrites may ask a server for it.
        queries = [] if self.rewrites is None else await arun(self._in_other_words, bundle)
        candidates = await afind(first, bundle, queries, self.fetch_k, arun)
        return await self._second_stage(start).apostprocess_nodes(candidates, query_bundle=bundle)

    def _in_other_words(self, bundle: QueryBundle) -> list[str]:
        return [] if self.rewrites is None else check_queries(self.rewrites(bundle.query_str), "rewrites")

    def _second_stage(self, start: float) -> CrossEncoderRerank:
        # A copy for one call shares the model and nothing else.
        changed: dict[str, Any] = {"top_n": self.top_n}
        if self.score_threshold is not None:
            changed["score_threshold"] = self.score_threshold
        if self.on_error is not None:
            changed["on_error"] = self.on_error
        if not self.reranker.callback_manager.handlers:
            changed["callback_manager"] = self.callback_manager
        if self.time_budget is None:
            return self.reranker.model_copy(update=changed)
        changed["time_budget"] = self.time_budget
        return self.reranker.model_copy(update=changed).after(time.perf_counter() - start)


def _checked(bundle: QueryBundle) -> QueryBundle:
    check_query(bundle.query_str)  # before the first stage does work that the second cannot use
    return bundle
