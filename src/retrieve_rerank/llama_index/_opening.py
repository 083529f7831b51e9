"""What the vector store is given to open: a live collection."""

from __future__ import annotations

from retrieve_rerank.errors import InvalidInputError


def check_collection(collection: object) -> None:
    """Raise InvalidInputError if what was given is no live collection."""
    import chromadb  # takes longer to import than a framework

    if not isinstance(collection, chromadb.Collection):
        raise InvalidInputError(
            f"chroma_collection must be a chromadb.Collection, got {type(collection).__name__}; make one with "
            "client.get_or_create_collection(name), or give collection_name and persist_dir"
        )
