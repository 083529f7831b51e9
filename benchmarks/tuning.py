"""Is what `tune` picks as good as what an exhaustive search finds, at what part of its time? And adaptive depth?

    python benchmarks/tuning.py FOLDER … [--queries 200] [--depths …] [--cache FILE] [--indexes FOLDER] [--really N]

Each folder is a test collection, as `load_dataset` reads it. First stages: BM25, dense and hybrid. For each
collection:

- The questions (`--queries` of them, seeded; 0: all) are split in halves. `tune` chooses on one half. On the other,
  every setting is measured as a pipeline of its own: that is the exhaustive search, whose best setting nobody can know
  before. Its time is added up from what each question and each pair took (a score from the cache: what it took when it
  was made). `--really N` runs each setting afresh on N questions, by the wall clock, beside that sum.
- The same over 100 random splits, since one split says little.
- Adaptive depth: stop reading candidates once one of them is convincing (its logit passes a threshold), or once the top
  has not changed for a while. Rule and fixed depth are chosen on one half of the questions, 100 times, and measured on
  the other half against reading all 100 candidates. The target is a loss of nDCG@10 below 0.005 for at most half of the
  pairs. Left out where `--depths` ends before 100.

Needs the dev dependency group.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import ir_measures
import numpy as np
import numpy.typing as npt

from common import add_model_options, first_stages, models
from retrieve_rerank import BiEncoder, CrossEncoder, Retriever, RetrieveRerank, TruncationWarning
from retrieve_rerank.evaluation import Dataset, Evaluation, Setting, Tuning, evaluate, load_dataset, tune
from retrieve_rerank.evaluation.tune import DEPTHS

NDCG = ir_measures.nDCG @ 10
SPLITS = 100
LOSS, SHARE = 0.005, 0.5  # the target of adaptive depth
FIXED = (5, 10, 15, 20, 25, 30, 40, 50, 60, 75)

Array = npt.NDArray[np.float64]
Rule = Callable[[Sequence[float]], int]  # from all logits, in the first stage's order, to how many of them are read


def part(dataset: Dataset, ids: Sequence[str]) -> Dataset:
    """Return a dataset with some of its questions, searched in all its passages."""
    return Dataset(
        dataset.name,
        dataset.passages,
        {query: dataset.queries[query] for query in ids},
        {query: dataset.judgements[query] for query in ids},
    )


def halves(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Split the questions."""
    ids = np.random.default_rng(seed).permutation(sorted(dataset.judgements)).tolist()
    return part(dataset, ids[: len(ids) // 2]), part(dataset, ids[len(ids) // 2 :])


def same(tuning: Tuning, setting: Setting) -> Setting:
    """Return a setting as another tuning measured it."""
    return next(one for one in tuning.settings if one.name == setting.name)


def choice(here: Tuning, there: Tuning) -> None:
    """Print what was picked on one half, and how far it is from the best of the other."""
    picked, best = same(there, here.chosen), max(there.settings, key=lambda setting: setting.quality)
    print(
        f"picked on {here.questions} questions: {picked.name}; on the other {there.questions}: {picked.quality:.4f}, "
        f"best {best.quality:.4f} ({best.name}), difference {best.quality - picked.quality:.4f}"
    )
    ratio = here.seconds / there.seconds_alone * there.questions / here.questions
    print(
        f"time: tune {here.seconds:.1f} s, exhaustive search {there.seconds_alone:.1f} s (added up): {ratio:.3f} of it "
        "a question"
    )


def spread(tuning: Tuning) -> None:
    """Print the same over many splits."""
    print(f"chosen on all {tuning.questions} questions: {tuning.chosen.name}, {tuning.chosen.quality:.4f}")
    if tuning.held_out is None:
        return
    regrets = np.array(tuning.held_out.regrets)
    low, middle, high = np.percentile(regrets, [10, 50, 90])
    print(
        f"over {len(regrets)} splits: difference {regrets.mean():.4f} on average, p10 / p50 / p90 {low:.4f} / "
        f"{middle:.4f} / {high:.4f}, at most 0.01 in {np.mean(regrets <= 0.01):.0%}"
    )


def really(
    firsts: Mapping[str, Retriever], model: CrossEncoder, dataset: Dataset, depths: Sequence[int], count: int
) -> None:
    """Run each setting afresh on a few questions, and print the wall clock beside the sum."""
    few = dataset.sample(count, seed=1)
    evaluate({"warm": RetrieveRerank(firsts["BM25"], model)}, few.sample(1), ["nDCG@10"], resamples=1)
    tuning = tune(firsts, {"demo": model}, few, depths=depths, resamples=1)
    start = time.perf_counter()
    for name, first in firsts.items():
        evaluate({name: first}, few, ["nDCG@10"], resamples=1)
        for depth in depths:
            search = RetrieveRerank(first, model, fetch_k=depth)
            system = evaluate({"search": search}, few, ["nDCG@10"], resamples=1)["search"]
            assert system.means["nDCG@10"] == same_depth(tuning, name, depth).quality
    seconds = time.perf_counter() - start
    print(
        f"really, {len(few.judgements)} questions: each setting afresh took {seconds:.1f} s, the sum says "
        f"{tuning.seconds_alone:.1f} s; tune took {tuning.seconds:.1f} s, {tuning.seconds / seconds:.3f} of it"
    )


def same_depth(tuning: Tuning, first: str, depth: int) -> Setting:
    """Return the setting of a depth."""
    return next(one for one in tuning.curve(first, "demo") if one.fetch_k == depth)


def convincing(logit: float, cap: int, chunk: int) -> Rule:
    """Stop once a candidate has this logit, or `cap` are read."""

    def depth(logits: Sequence[float]) -> int:
        end = min(len(logits), cap)
        return next((read for read in range(chunk, end, chunk) if max(logits[:read]) >= logit), end)

    return depth


def settled(patience: int, top: int, chunk: int) -> Rule:
    """Stop once none of the last `patience` candidates came into the best `top`."""

    def depth(logits: Sequence[float]) -> int:
        for read in range(chunk, len(logits), chunk):
            if read - patience >= top:
                bar = sorted(logits[: read - patience], reverse=True)[top - 1]
                if max(logits[read - patience : read]) <= bar:
                    return read
        return len(logits)

    return depth


def rules(logits: Sequence[float]) -> dict[str, list[Rule]]:
    """Return the rules of each kind; thresholds are quantiles of the logits that were seen."""
    levels = np.quantile(logits, [0.5, 0.75, 0.9, 0.95, 0.975, 0.99]).tolist()
    fixed: list[Rule] = [lambda logits, depth=depth: min(depth, len(logits)) for depth in (*FIXED, 100)]  # type: ignore[misc]
    return {
        "fixed": fixed,
        "convincing": [
            convincing(level, cap, chunk) for level in levels for cap in (30, 50, 75, 100) for chunk in (5, 10)
        ],
        "settled": [settled(patience, top, 5) for patience in (5, 10, 20, 30, 40) for top in (1, 3, 5, 10)],
    }


def outcomes(evaluation: Evaluation, name: str) -> dict[str, tuple[Array, Array]]:
    """Return, for each kind of rule, nDCG@10 and pairs read: arrays (questions, rules)."""
    system = evaluation[name]
    before = evaluation[str(system.baseline)].run
    logits = {query: dict(zip(ids, system.scores[query], strict=True)) for query, ids in system.run.items()}
    in_order = {query: [float(logits[query][passage] or 0.0) for passage in ids] for query, ids in before.items()}
    qrels = {query: dict(scores) for query, scores in evaluation.judgements.items()}
    found = {}
    for kind, made in rules([logit for one in in_order.values() for logit in one]).items():
        quality, pairs = [], []
        for rule in made:
            run, read = {}, {}
            for query, ids in before.items():
                read[query] = rule(in_order[query])
                top = sorted(range(read[query]), key=lambda place: -in_order[query][place])
                order = [*(ids[place] for place in top), *ids[read[query] :]]
                run[query] = {passage: -float(rank) for rank, passage in enumerate(order)}
            values = {one.query_id: one.value for one in ir_measures.iter_calc([NDCG], qrels, run)}
            quality.append([values.get(query, 0.0) for query in sorted(before)])
            pairs.append([read[query] for query in sorted(before)])
        found[kind] = np.array(quality).T, np.array(pairs, dtype=float).T
    return found


def adaptive(evaluation: Evaluation, name: str) -> Iterator[str]:
    """Yield a line for each kind of rule: what those chosen on halves of the questions do on the other halves."""
    found = outcomes(evaluation, name)
    full = found["fixed"][0][:, -1]
    for kind, (quality, pairs) in found.items():
        random = np.random.default_rng(0)
        losses, shares = [], []
        for _ in range(SPLITS):
            order = random.permutation(len(full))
            here, there = order[: len(order) // 2], order[len(order) // 2 :]
            means = quality[here].mean(axis=0)
            good = np.flatnonzero(means >= means.max() - 0.002)
            pick = good[pairs[here].mean(axis=0)[good].argmin()]
            losses.append(full[there].mean() - quality[there, pick].mean())
            shares.append(pairs[there, pick].mean() / found["fixed"][1][there, -1].mean())
        reached = np.mean((np.array(losses) < LOSS) & (np.array(shares) <= SHARE))
        yield (
            f"| {evaluation.dataset} | {name} | {full.mean():.4f} | {kind} | {np.mean(losses):+.4f} | "
            f"{np.percentile(losses, 90):+.4f} | {np.mean(shares):.0%} | {reached:.0%} |"
        )


def main() -> None:
    """Measure each collection and print what was found; adaptive depth last, as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--cache", type=Path, help="SQLite file of scores, kept between runs")
    parser.add_argument("--indexes", type=Path, help="folder of Chroma indexes index-NAME, kept between runs")
    parser.add_argument("--really", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the split in halves")
    add_model_options(parser)
    arguments = parser.parse_args()
    bi_encoder, cross_encoder = models(arguments)
    warnings.simplefilter("ignore", TruncationWarning)
    lines: list[str] = []
    with BiEncoder(bi_encoder) as encoder, CrossEncoder(cross_encoder) as model:
        print(f"{platform.machine()}, {os.cpu_count()} cores, cross-encoder in {model.precision}")
        for folder in arguments.folders:
            dataset = load_dataset(folder)
            dataset = dataset.sample(arguments.queries) if arguments.queries else dataset
            path = None if arguments.indexes is None else arguments.indexes / f"index-{folder.name}"
            with first_stages(dataset.passages, encoder, path) as firsts:
                print(f"\n## {dataset.name}: {len(dataset.judgements)} questions, {len(dataset.passages)} passages")
                here, there = (
                    tune(
                        firsts,
                        {"demo": model},
                        half,
                        depths=arguments.depths,
                        cache=arguments.cache,
                        show_progress=sys.stderr.isatty(),
                    )
                    for half in halves(dataset, arguments.seed)
                )
                choice(here, there)
                whole = tune(firsts, {"demo": model}, dataset, depths=arguments.depths, cache=arguments.cache)
                spread(whole)
                if arguments.really:
                    really(firsts, model, dataset, whole.depths, arguments.really)
                if max(arguments.depths) < 100:
                    continue
                searches = {name: RetrieveRerank(first, model) for name, first in firsts.items()}
                evaluation = evaluate(searches, dataset, ["nDCG@10"], cache=arguments.cache, resamples=1)
                for name in searches:
                    lines += adaptive(evaluation, name)
    if not lines:
        return
    print("\n| collection | first stage | nDCG@10 of 100 | rule | mean loss | p90 loss | pairs | target reached in |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
