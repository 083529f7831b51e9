"""What `tune` found: one record a setting, and the choice with everything that it rests on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from retrieve_rerank._files import atomic_write, write_text
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.evaluation import choosing, exporting, tuning_words
from retrieve_rerank.evaluation.choosing import HeldOut
from retrieve_rerank.evaluation.evaluation import machine
from retrieve_rerank.evaluation.results import Latency
from retrieve_rerank.retrieval.saved import save_setting
from retrieve_rerank.types import Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to search: a first stage, how deep it is re-ranked, and by what.

    Attributes:
        first_stage: Name of the first stage.
        fetch_k: How many candidates it is asked for. Without re-ranking, the deepest that was tried.
        cross_encoder: Name of the cross-encoder; None is no re-ranking.
        model: What the cross-encoder was made from: a hub name or a folder, or the name of its class.
        precision: What it computes in, where that is known.
        quality: Mean of the measure over the questions.
        low: Lower end of the 95 % interval of `quality` (bootstrap over questions, percentiles).
        high: Upper end.
        pairs: Pairs of question and passage that the cross-encoder reads a question, on average.
        latency: Seconds a question, first stage and re-ranking together.
        per_query: Value of the measure by question.

    Example:
        >>> from retrieve_rerank.evaluation import Latency, Setting
        >>> setting = Setting("BM25", 20, "mini", "some/model", "float32", 0.41, 0.36, 0.46, 20.0,
        ...                   Latency(0.08, 0.11, estimated=True), {"q1": 0.41})
        >>> setting.name
        'BM25 → mini, 20 deep'
    """

    first_stage: str
    fetch_k: int
    cross_encoder: str | None
    model: str | None
    precision: str | None
    quality: float
    low: float
    high: float
    pairs: float
    latency: Latency
    per_query: Mapping[str, float]

    @property
    def name(self) -> str:
        """What tables call it; unique in a tuning."""
        if self.cross_encoder is None:
            return f"{self.first_stage}, not re-ranked"
        return f"{self.first_stage} → {self.cross_encoder}, {self.fetch_k} deep"


@dataclass(frozen=True, slots=True, repr=False)
class Tuning:
    """What `tune` found: every setting that was tried, the one to take, and why.

    Attributes:
        dataset: Name of the dataset.
        weak: How its judgements were made, where no person judged.
        measure: Name of the measure that `quality` of a setting is.
        settings: All that was tried, each first stage without re-ranking among them.
        chosen: The setting to take.
        reason: Why that one, in a sentence.
        latency_budget: Seconds that nineteen of twenty questions may take, as asked for; None is no limit.
        quality: Mean of the measure that is wanted, as asked for; None is the best there is.
        depths: Depths that were tried.
        ceiling: By first stage and depth, the mean that a perfect re-ranking would reach.
        held_out: What choosing on one half of the questions is worth on the other; None where there are too few.
        notes: What the numbers do not say by themselves.
        questions: Number of questions.
        passages: Number of passages of the dataset.
        resamples: Of the bootstrap.
        seed: Of the bootstrap and the splits.
        seconds: How long the tuning took. A score from the cache counts as what it took when it was made.
        seconds_alone: How long it would have taken to run each setting by itself, added up in the same way.
        models: What `CrossEncoder(**arguments)` makes each cross-encoder from, by name; empty for one of another kind.
        scores: What a cross-encoder of another kind returns.
        machine: Processor, cores, versions.

    Example:
        >>> from retrieve_rerank import BM25Index
        >>> from retrieve_rerank.evaluation import Dataset, tune
        >>> from retrieve_rerank.testing import TableScorer
        >>> texts = {"p1": "Paris is in France.", "p2": "Paris is the capital of France."}
        >>> index = BM25Index()
        >>> dataset = Dataset("toy", texts, {"q1": "Paris"}, {"q1": {"p2": 1}})
        >>> report = index.add(dataset.passages)
        >>> scorer = TableScorer({texts["p1"]: -1.0, texts["p2"]: 2.0})
        >>> tuning = tune({"words": index}, {"table": scorer}, dataset, depths=[1, 2])
        >>> [(setting.name, round(setting.quality, 2)) for setting in tuning.settings]
        [('words, not re-ranked', 0.63), ('words → table, 1 deep', 0.0), ('words → table, 2 deep', 1.0)]
        >>> print(tuning.code().splitlines()[-1])
        search = RetrieveRerank(words, table, fetch_k=2)
    """

    dataset: str
    weak: str | None
    measure: str
    settings: tuple[Setting, ...]
    chosen: Setting
    reason: str
    latency_budget: float | None
    quality: float | None
    depths: tuple[int, ...]
    ceiling: Mapping[str, Mapping[int, float]]
    held_out: HeldOut | None
    notes: tuple[str, ...]
    questions: int
    passages: int
    resamples: int
    seed: int
    seconds: float
    seconds_alone: float
    models: Mapping[str, Mapping[str, str | int | float | bool | None]] = field(default_factory=dict)
    scores: Scale = "logits"
    machine: Mapping[str, str | int] = field(default_factory=machine)

    @property
    def frontier(self) -> tuple[Setting, ...]:
        """The settings that nothing beats in quality without taking longer at p95; the fastest first."""
        return choosing.frontier(self.settings)

    @property
    def first_stages(self) -> tuple[str, ...]:
        """Names of the first stages."""
        return tuple(dict.fromkeys(setting.first_stage for setting in self.settings))

    @property
    def cross_encoders(self) -> tuple[str, ...]:
        """Names of the cross-encoders."""
        names = dict.fromkeys(setting.cross_encoder for setting in self.settings)
        return tuple(name for name in names if name is not None)

    @property
    def met(self) -> bool:
        """Whether the chosen setting keeps to the budget and reaches the quality that were asked for."""
        in_time = self.latency_budget is None or self.chosen.latency.p95 <= self.latency_budget
        return in_time and (self.quality is None or self.chosen.quality >= self.quality)

    @property
    def answer(self) -> str:
        """One sentence: which setting to take, what it reaches, and what it costs."""
        return tuning_words.answer(self)

    def curve(self, first_stage: str, cross_encoder: str) -> tuple[Setting, ...]:
        """Return the settings of a first stage and a cross-encoder, the shallowest first.

        Raises:
            InvalidInputError: If there are none.
        """
        wanted = (first_stage, cross_encoder)
        found = [setting for setting in self.settings if (setting.first_stage, setting.cross_encoder) == wanted]
        if not found:
            raise InvalidInputError(
                f"{first_stage!r} with {cross_encoder!r} was not tried; there are the first stages "
                f"{list(self.first_stages)} and the cross-encoders {list(self.cross_encoders)}"
            )
        return tuple(sorted(found, key=lambda setting: setting.fetch_k))

    def choose(self, latency_budget: float | None = None, quality: float | None = None) -> Setting:
        """Return the setting to take for another budget or another quality.

        Args:
            latency_budget: Seconds that nineteen of twenty questions may take.
            quality: Mean of the measure that is enough: the fastest setting that reaches it.

        Raises:
            InvalidInputError: If no setting meets what is asked for; the message says what comes closest.
        """
        return choosing.choose(self.settings, latency_budget, quality).setting

    def code(self, setting: Setting | None = None) -> str:
        """Return Python code that makes the pipeline of a setting; None takes the chosen one.

        The first stage, and a cross-encoder that is no `CrossEncoder`, are variables of their names in it.
        """
        return tuning_words.code(self, self.chosen if setting is None else setting)

    def save(self, path: str | os.PathLike[str], setting: Setting | None = None) -> None:
        """Write a setting as a JSON file that `RetrieveRerank.load` and `load_setting` read; None: the chosen one."""
        with atomic_write(path, "the setting") as made:
            save_setting(tuning_words.saved(self, self.chosen if setting is None else setting), made)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything, values per question included, as one JSON object, in UTF-8."""
        exporting.write_json({"answer": self.answer, **asdict(self)}, Path(path), "the tuning")

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write a report as one HTML file that loads nothing from outside; `Evaluation.to_html` takes a tuning too.

        The setting to paste, quality against latency, how deep to re-rank, all settings, machine and versions.
        """
        from retrieve_rerank.evaluation.report.tuning import tuning_page  # only who looks pays for it

        write_text(tuning_page(self), path, "the report")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw quality against seconds a question with matplotlib: all settings, the frontier and the chosen one.

        Args:
            ax: Where; None takes a new figure.

        Returns:
            The axes that were drawn on.

        Raises:
            MissingDependencyError: If matplotlib is not installed.
        """
        from retrieve_rerank.evaluation.plotting import plot_tuning

        return plot_tuning(self, ax)

    def __repr__(self) -> str:
        return tuning_words.short(self)

    def _repr_html_(self) -> str:
        return tuning_words.html(self)
