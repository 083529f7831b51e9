"""Does re-ranking help on your data, and what does it cost?

`load_dataset` reads questions with judgements, `evaluate` runs your pipelines on them, and the `Evaluation` answers.
"""

from retrieve_rerank.evaluation import results
from retrieve_rerank.evaluation.choosing import HeldOut, Setting, Tuning
from retrieve_rerank.evaluation.dataset import Dataset
from retrieve_rerank.evaluation.files import StoredRun, load_dataset, load_run
from retrieve_rerank.evaluation.measuring import evaluate
from retrieve_rerank.evaluation.questions import sample_questions
from retrieve_rerank.evaluation.results import Comparison, Evaluation, Latency, System
from retrieve_rerank.evaluation.tune import tune

__all__ = [
    "Comparison",
    "Dataset",
    "Evaluation",
    "HeldOut",
    "Latency",
    "Setting",
    "StoredRun",
    "System",
    "Tuning",
    "evaluate",
    "load_dataset",
    "load_run",
    "sample_questions",
    "tune",
]


def _presenter() -> results.Presenter:
    from retrieve_rerank.evaluation import page  # only who looks pays for it

    return page


results.Presented.presenter = _presenter
