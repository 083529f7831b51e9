"""What the arguments of the components that these take the place of mean here, and what to write for the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from retrieve_rerank.checks import check_mapping
from retrieve_rerank.errors import InvalidInputError, shown, warn_caller
from retrieve_rerank.indexes.identity import SPACES
from retrieve_rerank.types import Metric

P = ParamSpec("P")
T = TypeVar("T")

# What to write instead of an argument that is not taken, and the value of it that asks for nothing.
BM25_RETRIEVER: Mapping[str, tuple[object, str]] = {
    "existing_bm25": (None, "give the nodes, and path= to keep the index in a directory and to open it again"),
    "skip_stemming": (False, "language=None takes all words as they are"),
    "token_pattern": (
        r"(?u)\b\w\w+\b",
        "tokenizer=re.compile(token_pattern).findall cuts texts so, without stop words and stemming",
    ),
    "corpus_weight_mask": (None, "filters= say which nodes count"),
}
HUGGING_FACE_EMBEDDING: Mapping[str, tuple[object, str]] = {
    "query_instruction": (None, "query_prompt= is its name here"),
    "text_instruction": (None, "document_prompt= is its name here"),
    "tokenizer_name": ("deprecated", "the model's own tokenizer is always taken"),
    "tokenizer": ("deprecated", "the model's own tokenizer is always taken"),
    "pooling": ("deprecated", "the model's own pooling is always taken"),
    "parallel_process": (False, "device= names the one device; give each process a model of its own"),
    "target_devices": (None, "device= names the one device; give each process a model of its own"),
    "show_progress_bar": (False, "the methods and pipelines that embed many nodes take show_progress=True"),
}
SENTENCE_TRANSFORMER_RERANK: Mapping[str, tuple[object, str]] = {
    "keep_retrieval_score": (False, "the retrieval score is always kept, in retrieval_score beside the node"),
    "cross_encoder_kwargs": (None, "write them as arguments: max_length=, trust_remote_code=, revision=, token="),
}


def in_place_of(arguments: Mapping[str, tuple[object, str]]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator for a method that says what to write instead of arguments which it does not take.

    Args:
        arguments: By the argument's name: the value that asks for nothing, which is left out, and what to write.
    """

    def decorated(method: Callable[P, T]) -> Callable[P, T]:
        names = list(signature(method).parameters)

        @wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            for name, (nothing, instead) in arguments.items():
                if given.get(name) not in (nothing, None):
                    raise InvalidInputError(f"{name} is not offered: {instead}")
                if name not in names:
                    kwargs.pop(name, None)
            return method(*args, **kwargs)

        return call

    return decorated


def asked_metric(collection_kwargs: Mapping[str, Any] | None, metric: Metric | None) -> Metric | None:
    """Return the metric that is asked for in the incumbent's way, or in ours; warn of what else is asked for."""
    if not collection_kwargs:
        return metric
    given = check_mapping(collection_kwargs, "collection_kwargs")
    metadata, configuration = (check_mapping(given.get(name), name) for name in ("metadata", "configuration"))
    hnsw = check_mapping(configuration.get("hnsw"), "hnsw")
    space = hnsw.get("space") or metadata.get("hnsw:space")
    unused = [f"[{name!r}]" for name in collection_kwargs if name not in ("metadata", "configuration")]
    unused += [f"['metadata'][{name!r}]" for name in metadata if name != "hnsw:space"]
    unused += [f"['configuration'][{name!r}]" for name in configuration if name != "hnsw"]
    unused += [f"['configuration']['hnsw'][{name!r}]" for name in hnsw if name != "space"]
    if unused:
        warn_caller(
            f"of collection_kwargs only the space is taken, and not {', '.join(unused)}. To have more, make the "
            "collection with Chroma's own client first, and give it as chroma_collection",
            UserWarning,
        )
    asked = metric if space is None else next((name for name, other in SPACES.items() if other == space), None)
    if space is not None and asked is None:
        raise InvalidInputError(f"the space must be one of {', '.join(SPACES.values())}; got {shown(space)}")
    if metric is not None and asked != metric:
        raise InvalidInputError(f"metric={metric!r} and the space {space!r} of collection_kwargs differ; give one")
    return asked
