"""On the test collections that lie beside the project: they load whole, and numbers agree with ir-measures."""

from __future__ import annotations

from pathlib import Path

import ir_measures
import pytest

from retrieve_rerank import BiEncoder, ChromaIndex, CrossEncoder, RetrieveRerank
from retrieve_rerank.evaluation import Dataset, evaluate, load_dataset, sample_questions

DATA = Path(__file__).parents[3] / "shared" / "data"
SIZES = {"cranfield": (1400, 225), "medquad": (16350, 1410), "squadshifts-reddit": (2033, 2086), "nq-gold": (2588, 546)}


def collection(name: str) -> Dataset:
    if not (DATA / name).is_dir():
        pytest.skip(f"the test collection {name} is not beside the project")
    return load_dataset(DATA / name)


@pytest.mark.parametrize("name", SIZES)
def test_every_passage_and_judged_question_is_read(name: str) -> None:
    dataset = collection(name)
    assert (len(dataset.passages), len(dataset.judgements)) == SIZES[name]
    assert dataset.notes == ()
    assert len(sample_questions(dataset.passages, n=50).queries) == 50


@pytest.mark.filterwarnings("ignore::retrieve_rerank.TruncationWarning")
def test_numbers_agree_and_do_not_exceed_the_ceiling(
    tmp_path: Path, bi_encoder_path: Path, cross_encoder_path: Path
) -> None:
    whole = collection("squadshifts-reddit").sample(6)
    judged = {passage for scores in whole.judgements.values() for passage in scores}
    some = [passage for place, passage in enumerate(whole.passages) if place % 16 == 0 or passage.id in judged]
    dataset = Dataset(whole.name, some, whole.queries, whole.judgements)
    with (
        BiEncoder(bi_encoder_path) as encoder,
        CrossEncoder(cross_encoder_path) as model,
        ChromaIndex(encoder) as index,
    ):
        index.add(dataset.passages)
        evaluation = evaluate({"re-ranked": RetrieveRerank(index, model, fetch_k=8)}, dataset)
    first, after = evaluation.systems
    assert after.pairs == 6 * 8
    assert after.means["R@100"] == first.means["R@100"] == first.ceiling["R@8"]
    for measure in evaluation.measures:
        assert first.means[measure] <= first.ceiling[measure] + 1e-12
        assert after.means[measure] <= first.ceiling[measure] + 1e-12
    measures = [ir_measures.parse_measure(name) for name in evaluation.measures]
    for system, path in zip(evaluation.systems, evaluation.to_runs(tmp_path), strict=True):
        qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "qrels.txt")))
        independent = ir_measures.calc_aggregate(measures, qrels, list(ir_measures.read_trec_run(str(path))))
        assert {str(name): value for name, value in independent.items()} == pytest.approx(dict(system.means), abs=1e-9)
