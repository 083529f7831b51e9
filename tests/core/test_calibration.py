"""A relevance means what it says once it is calibrated; the order never changes by it."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retrieve_rerank import Calibration, CrossEncoder, InvalidInputError
from retrieve_rerank.models.calibration import fit, sigmoid
from tests import tiny

QUERY, TEXTS = "capital of france", ["paris is the capital of france", "rome", "bread", "italy"]


def drawn(queries: int, seed: int = 0, slope: float = 0.4, offset: float = -2.0) -> tuple[list[Any], list[Any]]:
    """Return logits and labels of which the probability is known, 20 for each query."""
    random = np.random.default_rng(seed)
    logits = [random.normal(3, 4, 20) for _ in range(queries)]
    labels = [(random.random(20) < 1 / (1 + np.exp(-slope * each - offset))).astype(float) for each in logits]
    return logits, labels


def error(relevances: np.ndarray, labels: np.ndarray) -> float:
    """Return the expected calibration error, in ten bins."""
    bins = np.minimum((relevances * 10).astype(int), 9)
    gaps = [abs((relevances - labels)[bins == number].sum()) for number in range(10)]
    return float(sum(gaps) / len(labels))


def test_a_fit_finds_what_the_labels_were_drawn_from_and_how_sure_it_is() -> None:
    found = fit(*drawn(400))
    assert (1 / found.temperature, found.offset) == pytest.approx((0.4, -2.0), abs=0.1)
    assert (found.queries, found.pairs) == (400, 8000)
    inside = 0
    for seed in range(40):
        low, high = fit(*drawn(50, seed)).interval(4.0)
        inside += low <= sigmoid(0.4 * 4.0 - 2.0) <= high
    assert 33 <= inside <= 40  # of 40, 95 % are 38
    few, many = (fit(*drawn(count)).interval(4.0) for count in (20, 400))
    assert few[1] - few[0] > 2 * (many[1] - many[0])


def test_held_out_questions_are_calibrated_and_a_threshold_keeps_its_precision() -> None:
    found = fit(*drawn(50), precision=0.5)
    logits, labels = (np.concatenate(part) for part in drawn(200, seed=1))
    plain = np.array([sigmoid(logit) for logit in logits])
    relevances = np.array([found.relevance(logit) for logit in logits])
    assert error(relevances, labels) < 0.25 * error(plain, labels)
    assert found.threshold is not None
    assert labels[relevances >= found.threshold].mean() == pytest.approx(0.5, abs=0.05)
    with pytest.warns(UserWarning, match="no threshold on these 1000 pairs leaves passages of which 100% are"):
        assert fit(*drawn(50), precision=1.0).threshold is None
    assert found.threshold == fit(*drawn(50), precision=0.5).threshold  # the same again


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_fit_converges_whatever_the_logits_are(scale: float) -> None:
    """Also where a threshold divides all relevant from all others, which has no finite fit."""
    logits, labels = drawn(50)
    found = fit([each * scale for each in logits], labels)
    assert (scale / found.temperature, found.offset) == pytest.approx((0.4, -2.0), abs=0.25)
    parted = fit([np.array([-1.0, -0.5, 0.5, 1.0]) * scale], [np.array([0.0, 0.0, 1.0, 1.0])])
    assert 0.5 < parted.relevance(scale) < 1.0
    assert parted.interval(scale)[0] >= 0.0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 1, 1, 1], "4 are relevant and 0 are not; a fit needs both"),
        ([0, 0, 0, 0], "0 are relevant"),
        (None, "have lower logits than the others"),
        ([0, 2, 0, 0], r"pairs\[1\] must say True or False"),
        ([0, "yes", 0, 0], r"pairs\[1\] must say True or False"),
        ([0, math.nan, 0, 0], r"pairs\[1\] must say True or False"),
    ],
)
def test_pairs_that_do_not_tell_are_refused(tiny_cross_encoder: Path, labels: Any, message: str) -> None:
    with CrossEncoder(tiny_cross_encoder) as model:
        if labels is None:  # the wrong way round
            labels = (model.score(QUERY, TEXTS).argsort().argsort() < 2).tolist()
        with pytest.raises(InvalidInputError, match=message):
            model.calibrate([(QUERY, text, label) for text, label in zip(TEXTS, labels, strict=True)])


@pytest.mark.parametrize("pairs", [5, ["a"], [("a", "b")], [("", "b", True)], [("a", 5, True)], "abc"])
def test_what_are_no_pairs(pairs: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"pair"):
        CrossEncoder("no-such-model").calibrate(pairs)
    with pytest.raises(InvalidInputError, match="precision must be a share"):
        CrossEncoder("no-such-model").calibrate([("a", "b", True)], precision=50)


async def test_a_calibration_changes_scores_and_thresholds_and_never_the_order(
    tiny_cross_encoder: Path, tmp_path: Path
) -> None:
    with CrossEncoder(tiny_cross_encoder) as model:
        assert model.calibration.temperature == 1.0
        assert model.calibration.source.startswith("none")
        plain = model.rank(QUERY, TEXTS)
        judged = [(QUERY, hit.passage.text, hit.rank < 3) for hit in plain]
        fitted = model.calibrate(judged, precision=0.3)
        assert await model.acalibrate(judged, precision=0.3) == fitted
        assert [hit.score for hit in model.rank(QUERY, TEXTS)] == [sigmoid(hit.logit or 0.0) for hit in plain]
    file = tmp_path / "calibration.json"
    fitted.save(file)
    for given in (fitted, file, str(file), (fitted.temperature, fitted.offset)):
        with CrossEncoder(tiny_cross_encoder, calibration=given) as model:
            hits = model.rank(QUERY, TEXTS)
            assert [hit.passage.id for hit in hits] == [hit.passage.id for hit in plain]
            assert [hit.logit for hit in hits] == [hit.logit for hit in plain]
            assert [hit.score for hit in hits] == [fitted.relevance(hit.logit or 0.0) for hit in plain]
            kept = model.rank(QUERY, TEXTS, score_threshold=hits[1].score)
            assert len(kept) == 2
            assert await model.arank(QUERY, TEXTS) == model.rank_many([QUERY], [TEXTS])[0] == hits
            again = CrossEncoder(**json.loads(json.dumps(model.settings)))
            assert again.settings == pickle.loads(pickle.dumps(model)).settings == model.settings
            assert again.calibration == model.calibration == Calibration(fitted.temperature, fitted.offset)


@pytest.mark.parametrize("value", [5, (1.0,), (0, 1), (-1.0, 0.0), (math.inf, 0.0), (1.0, math.nan), ("a", "b"), {}])
def test_what_is_no_calibration(value: Any) -> None:
    with pytest.raises(InvalidInputError, match="calibration"):
        CrossEncoder("no-such-model", calibration=value)


@pytest.mark.parametrize("content", [None, "", "[]", '{"temperature": 2}', '{"temperature": 2, "offset": 1, "x": 1}'])
def test_a_file_that_holds_no_calibration(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "calibration.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"calibration\.json' (is no calibration|cannot be read)"):
        CrossEncoder("no-such-model", calibration=file)


def test_what_a_checkpoint_or_its_family_states(tmp_path: Path) -> None:
    def stated(folder: str, **settings: Any) -> Calibration:
        (tmp_path / folder).mkdir()
        path = tiny.save_cross_encoder(tmp_path / folder, **settings)
        return CrossEncoder(path.rename(path.parent / folder)).calibration

    def activation(name: str) -> dict[str, Any]:
        return {"settings": {"sentence_transformers": {"activation_fn": f"torch.nn.modules.{name}"}}}

    assert stated("plain").source.startswith("none")
    assert stated("raw", **activation("linear.Identity")).source.startswith("none")
    assert "saved activation" in stated("sure", **activation("activation.Sigmoid")).source
    assert "two labels" in stated("two", labels=2, names=("no", "yes")).source
    assert stated("zerank-2").temperature == 5.0
    answers = tiny.save_instructed_reranker(tmp_path / "answers")
    assert "yes and no" in CrossEncoder(answers).calibration.source
    (tmp_path / "head").mkdir()
    head = tiny.save_cross_encoder_with_dense_head(tmp_path / "head", torch.nn.Sigmoid())
    assert "last part of its head" in CrossEncoder(head).calibration.source
