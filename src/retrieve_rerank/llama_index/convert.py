"""Nodes as Chroma's records and as the core's hits, and back: the one place where the two worlds meet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence, Sized
from typing import cast

import numpy as np
import numpy.typing as npt
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    IndexNode,
    MetadataMode,
    Node,
    NodeWithScore,
    TextNode,
)

from retrieve_rerank.checks import check_encodable, is_iterable
from retrieve_rerank.errors import InvalidInputError, shown
from retrieve_rerank.indexes.nearest import to_array
from retrieve_rerank.indexes.records import NODE_KEY, Record, to_record
from retrieve_rerank.llama_index.nodes import FusedNode, RerankedNode
from retrieve_rerank.llama_index.serialization import to_json
from retrieve_rerank.types import Hit, Passage

TYPE_KEY = "_node_type"
DOCUMENT_KEY = "document_id"  # the source document's id, three times: LlamaIndex's stores each look for another
NO_DOCUMENT = "None"

_DOCUMENT_KEYS = (DOCUMENT_KEY, "doc_id", "ref_doc_id")
_TYPES: dict[str, type[BaseNode]] = {
    kind.class_name(): kind for kind in (Document, ImageNode, IndexNode, Node, TextNode)
}


def check_nodes(nodes: Iterable[BaseNode]) -> list[BaseNode]:
    """Return `nodes` as a list, or raise InvalidInputError naming the first item that is not a node."""
    if isinstance(nodes, (str, BaseNode, NodeWithScore)) or not is_iterable(nodes):
        raise InvalidInputError(f"nodes must be a list of nodes, got {type(nodes).__name__}; wrap one: [node]")
    items = list(nodes)
    for position, item in enumerate(items):
        if not isinstance(item, BaseNode):
            cure = "; give its node: item.node" if isinstance(item, NodeWithScore) else ""
            raise InvalidInputError(
                f"nodes[{position}] must be a node such as TextNode, got {type(item).__name__}{cure}"
            )
    return items


def check_document_id(ref_doc_id: object) -> None:
    """Raise InvalidInputError if `ref_doc_id` cannot be the id of a source document."""
    if not isinstance(ref_doc_id, str) or not ref_doc_id or ref_doc_id == NO_DOCUMENT:
        raise InvalidInputError(
            f"ref_doc_id must be the id of a document, got {shown(ref_doc_id)} ({NO_DOCUMENT!r} marks nodes without "
            "one)"
        )


def node_to_record(node: BaseNode) -> Record:
    """Return `node` as a record in LlamaIndex's standard layout, which other stores of LlamaIndex read too.

    The text is the record's text. The user's metadata lie flat beside LlamaIndex's own keys, so that filters work, and
    whole in the node's JSON.

    Raises:
        InvalidInputError: If the node cannot be stored, naming it and the key.
    """
    what = f"node {node.node_id!r}"
    metadata = {key: to_json(value, f"metadata[{key!r}] of {what}") for key, value in node.metadata.items()}
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    check_encodable(text, f"the text of {what}")
    content = to_json(node, what)
    # The text is stored once, as the record's own; so is the vector.
    content.update(embedding=None, metadata=metadata)
    if "text" in content:
        content["text"] = ""
    content.pop("text_resource", None)
    try:
        dumped = json.dumps(content, ensure_ascii=False)
    except (ValueError, RecursionError) as error:  # a number of more digits than Python writes
        raise InvalidInputError(f"{what} cannot be written as JSON: {error}") from error
    check_encodable(dumped, what)
    bookkeeping = {NODE_KEY: dumped, TYPE_KEY: node.class_name()}
    bookkeeping.update(dict.fromkeys(_DOCUMENT_KEYS, node.ref_doc_id or NO_DOCUMENT))
    return to_record(Passage(node.node_id, text, metadata), bookkeeping)


def record_to_node(record: Record) -> BaseNode:
    """Return a record as the node that it was, or as a TextNode where something else than LlamaIndex wrote it."""
    content = record.metadata.get(NODE_KEY)
    if content is not None:
        kind = _TYPES.get(str(record.metadata.get(TYPE_KEY)), TextNode)
        try:
            node: BaseNode = kind.from_json(content)
        except (ValueError, TypeError, KeyError):
            pass  # not a node's JSON: the passage below has all that can be known
        else:
            if record.text or isinstance(node, TextNode):
                node.set_content(record.text)
            return node
    passage = record.passage
    return TextNode(id_=passage.id, text=passage.text, metadata=dict(passage.metadata))


def vectors_of(nodes: Sequence[BaseNode]) -> npt.NDArray[np.float32]:
    """Return the embeddings of `nodes`, an array (n, dimension).

    Raises:
        InvalidInputError: If a node has none, one of another length than the first node's, or one with NaN.
    """
    first = 0
    for node in nodes:
        if not is_iterable(node.embedding) or not isinstance(node.embedding, Sized) or len(node.embedding) == 0:
            raise InvalidInputError(
                f"node {node.node_id!r} has no embedding; embed the nodes first (VectorStoreIndex and an "
                "IngestionPipeline with the embedding model do), or set node.embedding"
            )
        first = first or len(node.embedding)
        if len(node.embedding) != first:
            raise InvalidInputError(
                f"the embedding of node {node.node_id!r} has {len(node.embedding)} numbers, that of node "
                f"{nodes[0].node_id!r} has {first}; embed all with one model"
            )
    vectors = to_array(cast(npt.ArrayLike, [node.embedding for node in nodes]), "the embeddings of nodes")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        bad = nodes[int(np.flatnonzero(~finite)[0])].node_id
        raise InvalidInputError(f"the embedding of node {bad!r} holds NaN or infinity; check the model that made it")
    return vectors


def nodes_to_hits(nodes: Sequence[NodeWithScore], mode: MetadataMode) -> list[Hit]:
    """Return retrieved nodes as candidates for the cross-encoder, which reads what `mode` says.

    Raises:
        InvalidInputError: If an item is not a NodeWithScore.
    """
    if isinstance(nodes, (str, NodeWithScore)) or not is_iterable(nodes):
        raise InvalidInputError(f"nodes must be a list of NodeWithScore, got {type(nodes).__name__}; wrap one: [node]")
    hits = []
    for position, item in enumerate(nodes):
        if not isinstance(item, NodeWithScore):
            raise InvalidInputError(
                f"nodes[{position}] must be a NodeWithScore, got {type(item).__name__}; wrap it: NodeWithScore(node=…)"
            )
        score, rank = item.score, position + 1
        if isinstance(item, RerankedNode) and item.rerank_rank is not None:
            # What the first stage said, not what the last re-ranking did.
            score, rank = item.retrieval_score, item.retrieval_rank or rank
        elif isinstance(item, FusedNode):
            rank = item.retrieval_rank or rank
        text = item.node.get_content(metadata_mode=mode)
        hits.append(
            Hit(
                Passage(item.node.node_id or str(position), text),
                rank=position + 1,
                score=math.nan,
                retrieval_rank=rank,
                retrieval_score=None if score is None else float(score),
                retrieval_ranks=item.retrieval_ranks if isinstance(item, (RerankedNode, FusedNode)) else (),
                logit=item.logit if isinstance(item, RerankedNode) else None,  # of an earlier re-ranking
            )
        )
    return hits


def hits_to_nodes(
    hits: Sequence[Hit], nodes: Sequence[NodeWithScore], degraded: str | None = None
) -> list[RerankedNode]:
    """Return ranked hits as new objects around the nodes that `nodes_to_hits` made them of."""
    return [
        RerankedNode(
            node=nodes[cast(int, hit.index)].node,
            # The first stage's score is on another scale than the relevances beside it.
            score=None if hit.logit is None else hit.score,
            logit=hit.logit,
            retrieval_score=hit.retrieval_score,
            retrieval_rank=hit.retrieval_rank,
            rerank_rank=hit.rank,
            retrieval_ranks=hit.retrieval_ranks,
            window=hit.window,
            truncated=hit.truncated,
            degraded=degraded,
            combined_score=hit.combined_score,
        )
        for hit in hits
    ]
