"""`tune` writes a setting that `search` takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retrieve_rerank import HybridRetriever
from tests.cli.conftest import Run
from tests.cli.test_evaluate import dataset

__all__ = ["dataset"]


@pytest.fixture
def own(run: Run, tmp_path: Path, models: tuple[str, ...]) -> Path:
    """An index that questions can be made of."""
    (tmp_path / "notes").mkdir()
    for word in ("paris", "rome", "bread", "france", "italy", "capital"):
        text = f"what is the {word}. the word {word} is the word of the {word} in it\n"
        (tmp_path / "notes" / f"{word}.txt").write_text(text)
    run("index", "notes", "--to", "made", *models)
    return tmp_path / "made"


def test_an_index_is_tuned_without_judgements_and_searched_so(run: Run, own: Path, tiny_cross_encoder: Path) -> None:
    done = run("tune", "--in", "made", "--depth", 2, "--depth", 4, "--save", "setting.json", "--html", "tuning.html")
    (chosen,) = [line for line in done.lines if line["chosen"]]
    assert chosen["weak"]
    assert chosen["questions"] == 6
    assert "weak questions" in done.err
    assert (own.parent / "tuning.html").read_text().startswith("<!doctype html>")
    saved = json.loads((own.parent / "setting.json").read_text())
    assert (saved["first_stage"], saved["fetch_k"]) == (chosen["first_stage"], chosen["fetch_k"])
    assert saved["rerank_weight"] == (chosen["rerank_weight"] or 1)

    # Whatever was chosen: a setting of each kind is searched as it says.
    saved.update(first_stage="bm25", fetch_k=3, cross_encoder="model", model={"model": str(tiny_cross_encoder)})
    (own.parent / "setting.json").write_text(json.dumps(saved))
    hits = run("search", "the word in paris", "--in", "made", "--setting", "setting.json", "--top-n", 9).lines
    assert len(hits) == 3  # as deep as the setting is
    assert all(hit["logit"] is not None and "retrieval_ranks" not in hit for hit in hits)
    saved.update(rerank_weight=0)
    (own.parent / "setting.json").write_text(json.dumps(saved))
    voted = run("search", "the word in paris", "--in", "made", "--setting", "setting.json", "--top-n", 9).lines
    assert [hit["retrieval_rank"] for hit in voted] == [1, 2, 3]
    assert all("combined_score" in hit for hit in voted)
    own_weight = ("--setting", "setting.json", "--rerank-weight", 1, "--top-n", 9)
    saved.update(rerank_weight=1.0)
    assert [hit["id"] for hit in run("search", "the word in paris", "--in", "made", *own_weight).lines] == [
        hit["id"] for hit in hits
    ]
    changed = run("search", "the word in paris", "--in", "made", "--setting", "setting.json", "--fetch-k", 2).lines
    assert len(changed) == 2
    saved.update(cross_encoder=None, model=None)
    (own.parent / "setting.json").write_text(json.dumps(saved))
    plain = run("search", "the word in paris", "--in", "made", "--setting", "setting.json").lines
    assert all(hit["logit"] is None for hit in plain)
    saved.update(first_stage="my own")
    (own.parent / "setting.json").write_text(json.dumps(saved))
    refused = run("search", "bread", "--in", "made", "--setting", "setting.json", status=1)
    assert "is for a first stage 'my own', which an index does not have" in refused.err


def test_a_dataset_is_tuned_over_precisions_within_a_budget(run: Run, dataset: Path, models: tuple[str, ...]) -> None:
    options = (
        "--depth",
        2,
        "--rerank-weight",
        0.5,
        "--precision",
        "float32",
        "--precision",
        "bfloat16",
        "--first-stage",
        "bm25",
    )
    done = run("tune", dataset, *models, *options, "--latency-budget", "60s", "--measure", "RR@10")
    assert all(line["measure"] == "RR@10" and line["first_stage"] == "bm25" for line in done.lines)
    assert {line["rerank_weight"] for line in done.lines} <= {0, 0.5}
    impossible = run("tune", dataset, *models, *options, "--quality", "1", "--latency-budget", "0.000001ms", status=1)
    assert "Not what was asked for" in impossible.err
    assert len([line for line in impossible.lines if line["chosen"]]) == 1


@pytest.mark.parametrize("time", ["300", "0ms", "-3s", "fast", "nans"])
def test_a_time_needs_its_unit(run: Run, time: str) -> None:
    assert "is no time; write 300ms or 0.3s" in run("tune", "toy", f"--latency-budget={time}", status=2).err


def test_few_questions_and_a_missing_folder_are_said_before_anything_takes_long(run: Run, own: Path) -> None:
    done = run("tune", "--in", "made", "--first-stage", "bm25", "--depth", 2, "--sample-questions", 50)
    assert "warning: 50 were asked for, and the passages give no more, too few to choose a setting by" in done.err
    assert done.err.count("note: ") > 1  # what its numbers do not say
    assert all(line["p95_seconds"] > 0 for line in done.lines)
    for option in ("--save", "--html"):
        refused = run("tune", "--in", "made", option, "nowhere/out", status=2)
        assert "does not exist" in " ".join(refused.err.replace("│", "").split())
    refused = run("search", "paris", "--in", "made", "--setting", str(own / "retrieve-rerank.json"), status=1)
    assert "no setting" in refused.err


def test_a_setting_is_changed_by_options_and_needs_its_model(run: Run, own: Path, tiny_cross_encoder: Path) -> None:
    setting = own.parent / "setting.json"
    content = {"format": 1, "first_stage": "bm25", "fetch_k": 3, "cross_encoder": "mine"}
    setting.write_text(json.dumps(content))
    search = ("search", "the word in paris", "--in", "made", "--setting", "setting.json")
    assert "does not say how 'mine' is made; name the model with --cross-encoder" in run(*search, status=1).err
    setting.write_text(json.dumps({**content, "model": {"model": str(tiny_cross_encoder), "precision": "float32"}}))
    exact, low = (
        [hit["logit"] for hit in run(*search, *options).lines] for options in ((), ("--precision", "bfloat16"))
    )
    assert exact != low
    assert sorted(exact) == pytest.approx(sorted(low), abs=0.3)


def test_without_re_ranking_the_first_stage_is_asked_as_deep_as_it_was_measured(
    run: Run, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = HybridRetriever.retrieve

    def spy(self: HybridRetriever, query: str, k: int = 100, **options: object) -> object:
        asked.append(k)
        return real(self, query, k, **options)

    monkeypatch.setattr(HybridRetriever, "retrieve", spy)
    setting = own.parent / "setting.json"
    setting.write_text(json.dumps({"format": 1, "first_stage": "hybrid", "fetch_k": 40}))
    search = ("search", "the word in paris", "--in", "made", "--top-n", 2)
    for options in (("--setting", "setting.json"), ("--no-rerank",), ("--no-rerank", "--fetch-k", 1)):
        assert len(run(*search, *options).lines) == 2
    assert asked == [40, 100, 2]
