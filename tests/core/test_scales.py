"""Other people's scores on our scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from retrieve_rerank import CrossEncoder, InvalidInputError, ModelError, RetrieveRerank
from retrieve_rerank.models.ranking import as_ranker
from tests.core.stubs import ListRetriever

HINT = "every score that Given gave lies in"


class Given:
    """Returns the scores that it was given, in order."""

    def __init__(self, *scores: float, kind: Any = list) -> None:
        self.scores = scores
        self.kind = kind

    def score(self, query: str, texts: Sequence[str]) -> Any:
        return self.kind(self.scores[: len(texts)])


class GivenAsync(Given):
    async def ascore(self, query: str, texts: Sequence[str]) -> Any:
        return self.score(query, texts)


@pytest.mark.parametrize("kind", [Given, GivenAsync])
async def test_probabilities_are_the_relevance_scores(kind: type[Given]) -> None:
    """A sigmoid on top of a probability gives 0.5 to 0.73 for everything."""
    scores = (0.2, 0.999, 0.5, 1e-9)
    ranker = as_ranker(kind(*scores), "probabilities")
    hits = ranker.rank("q", list("abcd"))
    assert [hit.passage.text for hit in hits] == list("bcad")
    assert [hit.score for hit in hits] == pytest.approx([0.999, 0.5, 0.2, 1e-9], rel=1e-12)
    assert [hit.logit for hit in hits][1:3] == pytest.approx([0.0, math.log(0.25)], abs=1e-12)
    assert await ranker.arank("q", list("abcd")) == hits
    assert [hit.passage.text for hit in ranker.rank("q", list("abcd"), score_threshold=0.5)] == ["b", "c"]


def test_the_ends_of_the_scale_are_numbers_and_tie_with_nothing() -> None:
    tiny, large = 5e-324, 1 - 2**-53  # the neighbours of 0 and 1
    hits = as_ranker(Given(0.0, tiny, large, 1.0, 0.0), "probabilities").rank("q", list("abcde"))
    assert [hit.passage.text for hit in hits] == list("dcbae")
    assert [hit.score for hit in hits] == pytest.approx([1.0, large, tiny, 0.0, 0.0], rel=1e-15, abs=0)
    logits = [hit.logit for hit in hits]
    assert all(math.isfinite(logit) for logit in logits if logit is not None)
    assert logits[0] > logits[1] > logits[2] > logits[3] == logits[4]  # type: ignore[operator]


@pytest.mark.parametrize("base", [0.9, 1e-4, 0.999999])
def test_neighbouring_probabilities_do_not_tie(base: float) -> None:
    """As float32 logits they would: float32's steps are wider there than the model's."""
    single = np.float32(base)
    for number, above in ((single, np.nextafter(single, np.float32(1))), (base, base * (1 + 1e-12))):
        hits = as_ranker(Given(number, above, kind=np.array), "probabilities").rank("q", ["a", "b"])
        assert [hit.passage.text for hit in hits] == ["b", "a"]


@pytest.mark.parametrize("score", [-0.001, 1.5, math.inf, -math.inf, math.nan])
def test_what_is_no_probability_is_refused(score: float) -> None:
    says = r'said to give probabilities, but gave .*use scores="logits"' if not math.isnan(score) else "NaN for 1 of 2"
    with pytest.raises(ModelError, match=says):
        as_ranker(Given(0.5, score), "probabilities").rank("q", ["a", "b"])


def test_logits_that_look_like_probabilities_are_mentioned_once() -> None:
    ranker = as_ranker(Given(0.1, 0.9))
    with pytest.warns(UserWarning, match=HINT) as warned:
        assert [hit.logit for hit in ranker.rank("q", ["a", "b"])] == [0.9, 0.1]
    assert len(warned) == 1
    assert 'scores="probabilities"' in str(warned[0].message)
    ranker.rank("q", ["a", "b"])  # a second warning would be an error here


@pytest.mark.parametrize("scores", [(0.1, 1.1), (-0.1, 0.5), (0.0, 1.0)])
def test_what_is_clearly_no_probability_is_not_mentioned(scores: tuple[float, ...]) -> None:
    as_ranker(Given(*scores)).rank("q", ["a", "b"])  # a warning would be an error here


def test_one_text_says_nothing_about_the_scale() -> None:
    as_ranker(Given(0.5, 0.5)).rank("q", ["a"])
    as_ranker(Given(0.5, 0.5)).rank("q", ["a", "a"])


def test_ragged_scores_are_a_model_error() -> None:
    with pytest.raises(ModelError, match="one number a pair"):
        as_ranker(Given(1.0, [1.0, 2.0])).rank("q", ["a", "b"])  # type: ignore[arg-type]


def test_the_scale_of_our_own_model_is_known() -> None:
    model = CrossEncoder("some/model")
    assert as_ranker(model) is model
    with pytest.raises(InvalidInputError, match="a CrossEncoder ranks by logits already"):
        as_ranker(model, "probabilities")
    with pytest.raises(InvalidInputError, match="scores must be 'logits' or 'probabilities'"):
        as_ranker(Given(), "percent")  # type: ignore[arg-type]


def test_the_pipeline_takes_either_scale() -> None:
    pipeline = RetrieveRerank(ListRetriever(["a", "b"]), Given(0.25, 0.75), scores="probabilities", score_threshold=0.5)
    assert [hit.score for hit in pipeline.search("q")] == pytest.approx([0.75])
    with pytest.raises(InvalidInputError, match="scores"):
        RetrieveRerank(ListRetriever([]), Given(), scores="logit")  # type: ignore[arg-type]
