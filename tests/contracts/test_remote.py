"""A cross-encoder behind an inference server passes the contracts, whatever the server speaks."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from functools import cache

from retrieve_rerank import CrossEncoder
from retrieve_rerank.langchain import CrossEncoderReranker
from retrieve_rerank.llama_index import CrossEncoderRerank
from retrieve_rerank.testing import LangChainRerankerContract, LlamaIndexRerankerContract, RerankerContract
from tests.contracts.lookup import tiny_path
from tests.inference_server import InferenceServer, inference_server


@cache
def server(form: str) -> InferenceServer:
    """The server of a form, one in a process."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(inference_server(form))


@cache
def tiny_model() -> CrossEncoder:
    return CrossEncoder(tiny_path(), precision="float32")


def serving(form: str, scorer: object) -> str:
    """Let the server of a form answer what a scorer says; return its address."""
    server(form).scorer = scorer
    return server(form).url


class TestTextEmbeddingsInference(RerankerContract):
    in_process = False

    def make(self, scorer, *, top_n=None, score_threshold=None):
        return CrossEncoder(endpoint=serving("tei", scorer))

    def make_real(self):
        return CrossEncoder(endpoint=serving("tei", tiny_model()))


class TestVllm(RerankerContract):
    in_process = False

    def make(self, scorer, *, top_n=None, score_threshold=None):
        return CrossEncoder(endpoint=serving("vllm", scorer))

    def make_real(self):
        return CrossEncoder(endpoint=serving("vllm", tiny_model()))


class TestLangChainOverTextEmbeddingsInference(LangChainRerankerContract):
    in_process = False

    def make(self, scorer, *, top_n=None, score_threshold=None):
        return CrossEncoderReranker(endpoint=serving("tei", scorer), top_n=top_n, score_threshold=score_threshold)

    def make_real(self):
        return CrossEncoderReranker(endpoint=serving("tei", tiny_model()), top_n=None)


class TestLlamaIndexOverVllm(LlamaIndexRerankerContract):
    in_process = False

    def make(self, scorer, *, top_n=None, score_threshold=None):
        keep = 100 if top_n is None else top_n
        return CrossEncoderRerank(endpoint=serving("vllm", scorer), top_n=keep, score_threshold=score_threshold)

    def make_real(self):
        return CrossEncoderRerank(endpoint=serving("vllm", tiny_model()), top_n=100)
