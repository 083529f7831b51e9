"""The lexical first stage as a LlamaIndex retriever."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Protocol

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.base import BaseIndex
from llama_index.core.schema import BaseNode, IndexNode, NodeWithScore, QueryBundle
from llama_index.core.storage.docstore.types import BaseDocumentStore
from llama_index.core.vector_stores.types import MetadataFilters

from retrieve_rerank.checks import check_count, check_query
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.bm25 import BM25Index
from retrieve_rerank.indexes.records import Record, check_ids
from retrieve_rerank.indexes.words import Analyzer
from retrieve_rerank.llama_index.compat import BM25_RETRIEVER, in_place_of
from retrieve_rerank.llama_index.convert import (
    DOCUMENT_KEY,
    NO_DOCUMENT,
    check_document_id,
    check_nodes,
    node_to_record,
    record_to_node,
)
from retrieve_rerank.llama_index.filters import Condition, to_condition


class Stemmer(Protocol):
    """What PyStemmer's stemmers do."""

    def stemWord(self, word: str) -> str:  # noqa: N802 - its name there
        """Return a word without its ending."""


class BM25Retriever(BaseRetriever):
    """Nodes found by the words of their text, with BM25. Needs the extra `hybrid`, and neither a model nor an LLM.

    The nodes come back as they were stored: text, metadata, relationships and hash. Nodes with none of the query's
    words are not found. An empty query is one for the nodes that pass the filters, in no order.

    Args:
        nodes: What to store, beside what is in the directory already.
        path: Directory of the index; it is made if missing. Whatever stores or deletes nodes saves before it returns,
            so give many nodes at once. None: in memory only.
        language: Name or code of the language; see `retrieve_rerank.BM25Index`.
        similarity_top_k: How many nodes at most. A stage after this one, such as `RetrieveRerankRetriever`, asks for as
            many as it needs.
        filters: What the nodes must pass; see `ChromaVectorStore`.
        tokenizer: Turns a text into words instead; then nothing else is done to them. It is not saved.
        stemmer: PyStemmer's stemmer of the language, as the language says already.
        callback_manager: LlamaIndex's callbacks.
        objects: Index nodes whose objects are searched in turn when they are found. Those of stored index nodes are,
            too; of these only nodes are saved, and other objects must be given again when a saved index is opened.
        object_map: The same as objects by the `index_id` of their index nodes.
        verbose: Whether LlamaIndex prints which of these it enters.

    Raises:
        InvalidInputError: If an argument cannot be used.
        IndexMismatchError: If the saved index is of another language or tokenizer.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> from retrieve_rerank.llama_index import BM25Retriever
        >>> nodes = [TextNode(text="Paris is the capital of France."), TextNode(text="Bread is baked.")]
        >>> retriever = BM25Retriever.from_defaults(nodes=nodes)
        >>> [node.text for node in retriever.retrieve("the capitals of Europe")]
        ['Paris is the capital of France.']
    """

    @in_place_of(BM25_RETRIEVER)
    def __init__(
        self,
        nodes: Sequence[BaseNode] | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        language: str | None = "en",
        similarity_top_k: int = 2,
        filters: MetadataFilters | None = None,
        tokenizer: Callable[[str], list[str]] | None = None,
        stemmer: Stemmer | None = None,
        callback_manager: CallbackManager | None = None,
        objects: list[IndexNode] | None = None,
        object_map: dict[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        items = check_nodes(() if nodes is None else nodes)
        if stemmer is not None:
            _check_stemmer(stemmer, language, items)
        to_condition(filters)  # a filter that cannot be used is known now, not at the first query
        self.similarity_top_k = check_count(similarity_top_k, "similarity_top_k")
        self.filters = filters
        self._index = BM25Index(path=path, language=language, tokenizer=tokenizer)
        self._objects: dict[str, Any] = {}  # by the ids of the index nodes that have them
        super().__init__(callback_manager=callback_manager, objects=objects, object_map=object_map, verbose=verbose)
        self.add_nodes(items)

    @classmethod
    @in_place_of(BM25_RETRIEVER)
    def from_defaults(
        cls,
        index: BaseIndex[Any] | None = None,
        nodes: Sequence[BaseNode] | None = None,
        docstore: BaseDocumentStore | None = None,
        stemmer: Stemmer | None = None,
        language: str | None = "en",
        similarity_top_k: int = 2,
        verbose: bool = False,  # noqa: FBT001, FBT002 - the incumbent's order
        skip_stemming: bool = False,  # noqa: FBT001, FBT002
        token_pattern: str = r"(?u)\b\w\w+\b",
        filters: MetadataFilters | None = None,
        tokenizer: Callable[[str], list[str]] | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
    ) -> BM25Retriever:
        """Return a retriever with nodes in it, given in one of three ways; all else is as for the class.

        Args:
            index: An index whose document store has the nodes.
            nodes: The nodes.
            docstore: A document store with the nodes.
            stemmer: As for the class.
            language: As for the class.
            similarity_top_k: As for the class.
            verbose: As for the class.
            skip_stemming: Not offered.
            token_pattern: Not offered.
            filters: As for the class.
            tokenizer: As for the class.
            path: As for the class.

        Raises:
            InvalidInputError: If not exactly one of the three is given, or an argument cannot be used.
        """
        if sum(source is not None for source in (index, nodes, docstore)) != 1:
            raise InvalidInputError("give exactly one of index, nodes and docstore; to open a saved index, use path")
        if nodes is None:
            store = docstore if index is None else index.docstore
            nodes = list(store.docs.values()) if store is not None else []
            if not nodes:
                raise InvalidInputError(
                    "the document store has no nodes. An index on a vector store that keeps the text, such as "
                    "ChromaVectorStore, has them there: give nodes=vector_store.get_nodes()"
                )
        return cls(
            nodes,
            path=path,
            language=language,
            similarity_top_k=similarity_top_k,
            filters=filters,
            tokenizer=tokenizer,
            stemmer=stemmer,
            verbose=verbose,
        )

    def add_nodes(self, nodes: Sequence[BaseNode]) -> list[str]:
        """Store nodes and return their ids; nodes whose ids are stored are replaced, of equal ids the last wins."""
        items = check_nodes(nodes)
        objects = {node.node_id: node.obj for node in items if isinstance(node, IndexNode) and node.obj is not None}
        # All are checked before any is stored.
        records = [node_to_record(_without_object(node)) for node in items]
        self._index.add_records(records)
        for node in items:
            self._objects.pop(node.node_id, None)
        self._objects |= objects
        self._save()
        return [node.node_id for node in items]

    def delete_nodes(self, node_ids: Sequence[str]) -> None:
        """Delete nodes by id; ids that are not stored are no error."""
        self._index.delete(node_ids)
        self._save()

    def delete_ref_doc(self, ref_doc_id: str) -> None:
        """Delete all nodes of a source document; that there are none is no error.

        A document that was stored whole, not split into nodes, is its own source.
        """
        check_document_id(ref_doc_id)
        found = self._index.get_records(where={DOCUMENT_KEY: ref_doc_id})
        found += self._index.get_records([ref_doc_id], where={DOCUMENT_KEY: NO_DOCUMENT})
        self.delete_nodes([record.id for record in found])

    def get_nodes(self, node_ids: Sequence[str] | None = None) -> list[BaseNode]:
        """Return nodes by id, in the order asked for, or all; ids that are not stored are left out."""
        return list(map(self._node, self._index.get_records(None if node_ids is None else check_ids(node_ids))))

    def close(self) -> None:
        """Release the index. One without a path is gone."""
        self._index.close()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        condition, k = to_condition(self.filters), check_count(self.similarity_top_k, "similarity_top_k")
        options: dict[str, Any] = {"where": condition.where, "where_document": condition.where_document}
        if isinstance(query_bundle.query_str, str) and not query_bundle.query_str and condition != Condition():
            matching = self._index.get_records(**options)[:k]
            return [NodeWithScore(node=self._node(record)) for record in matching]
        found = self._index.search_records([check_query(query_bundle.query_str)], k, **options)[0]
        return [NodeWithScore(node=self._node(record), score=score) for record, score in found]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await self._index.worker.arun(self._retrieve, query_bundle)

    def _node(self, record: Record) -> BaseNode:
        node = record_to_node(record)
        if isinstance(node, IndexNode):
            node.obj = self._objects.get(node.node_id, node.obj)
        return node

    def _save(self) -> None:
        if self._index.path is not None:
            self._index.save()


def _without_object(node: BaseNode) -> BaseNode:
    """Return an index node without an object that has no form in JSON; any other node as it is."""
    if isinstance(node, IndexNode) and not isinstance(node.obj, BaseNode):
        return node.model_copy(update={"obj": None})
    return node


def _check_stemmer(stemmer: Stemmer, language: str | None, nodes: Iterable[BaseNode]) -> None:
    """Raise InvalidInputError if a stemmer is not that of the language, as far as the first nodes show."""
    ours = Analyzer(language)
    for node in islice(nodes, 100):
        for word in ours.words(node.get_content()):
            stem = ours.stem(word)
            if stem is not None and stemmer.stemWord(word) != stem:
                raise InvalidInputError(
                    f"the stemmer makes {stemmer.stemWord(word)!r} of {word!r}, that of language={language!r} makes "
                    f"{stem!r}; leave the stemmer out and give its language"
                )
