"""Checking and repairing LlamaIndex's store: as the core does it, with LlamaIndex's embedding models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from llama_index.core.base.embeddings.base import BaseEmbedding

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.collection import ChromaCollection
from retrieve_rerank.indexes.health import check
from retrieve_rerank.indexes.repairing import repair
from retrieve_rerank.indexes.reports import IndexCheck, RepairReport


class Healthy:
    """Adds `check` and `repair` to a store of one collection."""

    _collection: ChromaCollection
    embed_model: BaseEmbedding | None

    def check(
        self, embed_model: BaseEmbedding | None = None, *, samples: int | None = 100, show_progress: bool = False
    ) -> IndexCheck:
        """Compare the stored nodes with what queries return; see `ChromaIndex.check`.

        Args:
            embed_model: What embedded the nodes, instead of the store's own; without either, no samples are compared.
            samples: How many nodes, evenly spread, to embed again and compare with their stored vectors; None is all.
            show_progress: Show a bar on stderr.
        """
        model = embed_model or self.embed_model
        encoder = None if model is None else _Encoder(model)
        return check(self._collection, encoder, samples=samples, show_progress=show_progress)

    def repair(
        self, embed_model: BaseEmbedding | None = None, *, samples: int | None = 1000, show_progress: bool = False
    ) -> RepairReport:
        """Make every stored node one that queries find, once; see `ChromaIndex.repair`, and `check` for the arguments.

        Raises:
            InvalidInputError: If neither the store nor the call has an embedding model.
        """
        model = embed_model or self.embed_model
        if model is None:
            raise InvalidInputError("repair needs the embedding model that embedded the nodes: repair(embed_model)")
        return repair(self._collection, _Encoder(model), samples=samples, show_progress=show_progress)


class _Encoder:
    def __init__(self, model: BaseEmbedding) -> None:
        self._model = model

    def encode_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return an array (len(texts), dimension)."""
        return np.asarray(self._model.get_text_embedding_batch(list(texts)), np.float32)
