"""Does re-ranking help on your data, and what does it cost?

`load_dataset` reads questions with judgements, `evaluate` runs your pipelines on them, and the `Evaluation` answers.
"""

from retrieve_rerank.evaluation.choosing import HeldOut
from retrieve_rerank.evaluation.dataset import Dataset
from retrieve_rerank.evaluation.evaluation import Evaluation
from retrieve_rerank.evaluation.questions import sample_questions
from retrieve_rerank.evaluation.reading import load_dataset
from retrieve_rerank.evaluation.results import Comparison, Latency, System
from retrieve_rerank.evaluation.running import evaluate
from retrieve_rerank.evaluation.runs import StoredRun, load_run
from retrieve_rerank.evaluation.tuned import Setting, Tuning
from retrieve_rerank.evaluation.tuning import tune

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
