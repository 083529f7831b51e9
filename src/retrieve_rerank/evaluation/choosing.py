"""What `tune` found, and which setting to take: not the luckiest, but a good one that is no slower than it must be."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

from retrieve_rerank import __version__
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.evaluation.dataset import counted
from retrieve_rerank.evaluation.results import Latency, Presented, machine, write_json
from retrieve_rerank.evaluation.significance import mean
from retrieve_rerank.models.settings import Argument
from retrieve_rerank.retrieval.saved import SavedSetting, save_setting
from retrieve_rerank.types import Scale

Array = npt.NDArray[np.float64]

TOLERANCE = 0.002  # of the measure, which lies in [0, 1]: what a faster setting may be worse
SPLITS = 100
_FEWEST = 10  # questions that can be split


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to search: a first stage, how deep it is re-ranked, by what, and how much that counts.

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
        rerank_weight: How much the cross-encoder counts in the order; 0 without re-ranking.

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
    rerank_weight: float = 1.0

    @property
    def name(self) -> str:
        """What tables call it; unique in a tuning."""
        if self.cross_encoder is None:
            return f"{self.first_stage}, not re-ranked"
        weight = "" if self.rerank_weight == 1 else f", weight {self.rerank_weight:g}"
        return f"{self.first_stage} → {self.cross_encoder}, {self.fetch_k} deep{weight}"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What choosing on one half of the questions is worth on the other half.

    The questions were split in halves `splits` times; each time, the rule that made the choice chose on one half, and
    the setting that it took was measured on the other.

    Attributes:
        splits: How many splits.
        tuned: Mean quality of the setting taken, on the half that it was chosen on, and so too good.
        quality: Mean quality of the setting taken, on the other half.
        best: Mean quality of whichever setting is best on the other half: nobody can know it before.
        regret: `best` less `quality`.
        spread: The 90th percentile of that difference over the splits.
        agreement: Share of the splits in which the setting taken is the one that was chosen on all questions.
        regrets: `best` less `quality` in each split.
        target: The quality that was asked for; None where the best was wanted.
        reached: Share of the splits in which the setting taken reached it on the other half.

    Example:
        >>> from retrieve_rerank.evaluation import HeldOut
        >>> HeldOut(splits=100, tuned=0.43, quality=0.41, best=0.42, regret=0.01, spread=0.03, agreement=0.6).regret
        0.01
    """

    splits: int
    tuned: float
    quality: float
    best: float
    regret: float
    spread: float
    agreement: float
    regrets: tuple[float, ...] = ()
    target: float | None = None
    reached: float = 0.0


@dataclass(frozen=True, slots=True, repr=False)
class Tuning(Presented):
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
        weight_chosen: Whether the choice is among all weights; where choosing the weight is worth nothing on questions
            that it was not made on, it is among the settings of weight 1.

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
        >>> [(setting.name, round(setting.quality, 2)) for setting in tuning.at_weight(1.0)]
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
    models: Mapping[str, Mapping[str, Argument]] = field(default_factory=dict)
    scores: Scale = "logits"
    machine: Mapping[str, str | int] = field(default_factory=machine)
    weight_chosen: bool = True

    @property
    def frontier(self) -> tuple[Setting, ...]:
        """The settings that nothing beats in quality without taking longer at p95; the fastest first."""
        best: list[Setting] = []
        for setting in sorted(self.settings, key=lambda one: (one.latency.p95, -one.quality)):
            if not best or setting.quality > best[-1].quality:
                best.append(setting)
        return tuple(best)

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
    def weight(self) -> float:
        """The weight that the chosen setting re-ranks with; where it does not re-rank, the largest that was tried."""
        if self.chosen.cross_encoder is not None:
            return self.chosen.rerank_weight
        return max(one.rerank_weight for one in self.settings)

    def at_weight(self, rerank_weight: float) -> tuple[Setting, ...]:
        """Return the settings of one weight, and the first stages without re-ranking."""
        return tuple(one for one in self.settings if one.cross_encoder is None or one.rerank_weight == rerank_weight)

    def curve(self, first_stage: str, cross_encoder: str, rerank_weight: float = 1.0) -> tuple[Setting, ...]:
        """Return the settings of a first stage, a cross-encoder and a weight, the shallowest first.

        Raises:
            InvalidInputError: If there are none.
        """
        wanted, tried = (first_stage, cross_encoder), self.at_weight(rerank_weight)
        found = [setting for setting in tried if (setting.first_stage, setting.cross_encoder) == wanted]
        if not found:
            raise InvalidInputError(
                f"{first_stage!r} with {cross_encoder!r} was not tried; there are the first stages "
                f"{list(self.first_stages)}, the cross-encoders {list(self.cross_encoders)} and the weights "
                f"{sorted({one.rerank_weight for one in self.settings})}"
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
        return choose(self.settings if self.weight_chosen else self.at_weight(1.0), latency_budget, quality)[0]

    def code(self, setting: Setting | None = None) -> str:
        """Return Python code that makes the pipeline of a setting; None takes the chosen one.

        The first stage, and a cross-encoder that is no `CrossEncoder`, are variables of their names in it.
        """
        wanted = self.chosen if setting is None else setting
        first = _variable(wanted.first_stage)
        head = f"# {wanted.name}: {self.measure} {wanted.quality:.3f} on {self.dataset}\n"
        if wanted.cross_encoder is None:
            # As deep as it was measured: what a hybrid finds first depends on how deep it looks.
            call = f"{first}.retrieve(query, k={wanted.fetch_k})[:10]"
            return f"{head}# It does not re-rank: the first stage by itself.\nhits = {call}\n"
        arguments = self.models.get(wanted.cross_encoder)
        if arguments:
            imports = "from retrieve_rerank import CrossEncoder, RetrieveRerank\n\n"
            model = f"CrossEncoder({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
        else:
            imports, model = "from retrieve_rerank import RetrieveRerank\n\n", _variable(wanted.cross_encoder)
        scale = "" if arguments or self.scores == "logits" else f", scores={self.scores!r}"
        weight = "" if wanted.rerank_weight == 1 else f", rerank_weight={wanted.rerank_weight:g}"
        return f"{imports}{head}search = RetrieveRerank({first}, {model}, fetch_k={wanted.fetch_k}{weight}{scale})\n"

    def save(self, path: str | os.PathLike[str], setting: Setting | None = None) -> None:
        """Write a setting as a JSON file that `RetrieveRerank.load` and `load_setting` read; None: the chosen one."""
        wanted = self.chosen if setting is None else setting
        saved = SavedSetting(
            first_stage=wanted.first_stage,
            fetch_k=wanted.fetch_k,
            rerank_weight=1.0 if wanted.cross_encoder is None else wanted.rerank_weight,
            cross_encoder=wanted.cross_encoder,
            model=None if wanted.cross_encoder is None else self.models.get(wanted.cross_encoder) or None,
            measured={
                "dataset": self.dataset,
                "weak": self.weak,
                "measure": self.measure,
                "questions": self.questions,
                "quality": wanted.quality,
                "low": wanted.low,
                "high": wanted.high,
                "p50": wanted.latency.p50,
                "p95": wanted.latency.p95,
                "pairs": wanted.pairs,
                "retrieve-rerank": __version__,
            },
        )
        save_setting(saved, path)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything, values per question included, as one JSON object, in UTF-8."""
        write_json({"answer": self.answer, **asdict(self)}, path, "the tuning")


def choose(settings: Sequence[Setting], latency_budget: float | None, quality: float | None) -> tuple[Setting, str]:
    """Return the setting to take, and why.

    Raises:
        InvalidInputError: If none meets the budget or the quality.
    """
    within = "" if latency_budget is None else f" within latency_budget={latency_budget:g} s"
    fast = _fast_enough(settings, latency_budget)
    means = _means(_table(fast))
    best = fast[int(means.argmax())]
    if quality is not None and best.quality < quality:
        raise InvalidInputError(
            f"no setting{within} reaches quality={quality:g}: the best is {best.quality:.3f}, by {best.name!r}"
        )
    setting = fast[_pick(means, fast, quality)]
    among = f"of the {counted(len(fast), 'setting')}{within}"
    if quality is not None:
        return setting, f"It is the fastest {among} that reaches {quality:g}."
    if setting is best:
        return setting, f"It is the best {among}, and none within {TOLERANCE:g} of it is faster at p95."
    return (
        setting,
        f"It is the fastest at p95 {among} within {TOLERANCE:g} of the best, {best.name!r} with {best.quality:.3f}: so "
        "small a difference is no reason to wait.",
    )


def closest(settings: Sequence[Setting], latency_budget: float | None, quality: float | None) -> tuple[Setting, str]:
    """As `choose`; where none meets what is asked for, return the setting that comes closest, and say so."""
    try:
        return choose(settings, latency_budget, quality)
    except InvalidInputError as error:
        fast = [one for one in settings if latency_budget is None or one.latency.p95 <= latency_budget]
        fastest = min(settings, key=lambda one: one.latency.p95)
        setting = max(fast, key=lambda one: one.quality, default=fastest)
        return setting, f"Not what was asked for, {error}: it comes closest."


def check(
    settings: Sequence[Setting], chosen: Setting, latency_budget: float | None, quality: float | None, *, seed: int
) -> HeldOut | None:
    """Return what choosing on one half of the questions is worth on the other; None of too few questions."""
    if latency_budget is not None:
        latency_budget = max(latency_budget, chosen.latency.p95)  # where none keeps it, as the choice was made
    fast = _fast_enough(settings, latency_budget)
    table = _table(fast)
    if len(table) < _FEWEST:
        return None
    random = np.random.default_rng(seed)
    taken, tuned, held_out, best = [], [], [], []
    for _ in range(SPLITS):
        order = random.permutation(len(table))
        here, there = _means(table[order[: len(table) // 2]]), _means(table[order[len(table) // 2 :]])
        pick = _pick(here, fast, quality)
        taken.append(fast[pick] is chosen)
        tuned.append(here[pick])
        held_out.append(there[pick])
        best.append(there.max())
    regret = np.array(best) - np.array(held_out)
    return HeldOut(
        splits=SPLITS,
        tuned=float(np.mean(tuned)),
        quality=float(np.mean(held_out)),
        best=float(np.mean(best)),
        regret=float(regret.mean()),
        spread=float(np.percentile(regret, 90)),
        agreement=float(np.mean(taken)),
        regrets=tuple(regret.tolist()),
        target=quality,
        reached=0.0 if quality is None else float(np.mean(np.array(held_out) >= quality)),
    )


def _pick(means: Array, settings: Sequence[Setting], quality: float | None) -> int:
    """Return the position of the setting to take, given the means over some questions."""
    enough = means.max() - TOLERANCE if quality is None else min(quality, means.max())
    places = np.flatnonzero(means >= enough).tolist()
    best: int = min(places, key=lambda place: (settings[place].latency.p95, -means[place]))
    return best


def _fast_enough(settings: Sequence[Setting], latency_budget: float | None) -> list[Setting]:
    fast = [setting for setting in settings if latency_budget is None or setting.latency.p95 <= latency_budget]
    if not fast:
        fastest = min(settings, key=lambda setting: setting.latency.p95)
        raise InvalidInputError(
            f"no setting keeps latency_budget={latency_budget:g} s at p95: the fastest is {fastest.name!r} with "
            f"{fastest.latency.p95:.3g} s"
        )
    return fast


def _table(settings: Sequence[Setting]) -> Array:
    """Return the values, array (questions, settings); NaN where the measure has none."""
    queries = sorted({query for setting in settings for query in setting.per_query})
    return np.array([[setting.per_query.get(query, np.nan) for setting in settings] for query in queries])


def _means(table: Array) -> Array:
    """Return the settings' means; one without any value is the worst."""
    return np.nan_to_num(mean(table))


def _variable(name: str) -> str:
    return re.sub(r"\W|^(?=\d)", "_", name)
