"""Does re-ranking help, over which first stage, and with what say? nDCG@10 at every weight of the cross-encoder.

    python benchmarks/weights.py FOLDER [FOLDER ...] [--queries 100] [--work FOLDER] [--table docs/pages/FILE.md]

Each folder is a test collection, as `load_dataset` reads it. BM25, dense and hybrid search find 100 candidates for each
question of a seeded sample. A weight of 0 keeps their order, 1 is that of the cross-encoder alone, and R@100 is the
ceiling. Each pair is scored once, whatever the number of weights and first stages, and kept in `--work`: the command
can be stopped, and run again with more collections.

What a cross-encoder does to text that it was trained on says little about other text, so such collections are marked,
and left out of the means. Needs the dev dependency group.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from common import add_model_options, first_stages, models, write_table
from retrieve_rerank import BiEncoder, CrossEncoder, RetrieveRerank, TruncationWarning
from retrieve_rerank.demo import RERANK_WEIGHT
from retrieve_rerank.evaluation import Evaluation, evaluate, load_dataset

WEIGHTS = tuple(step / 10 for step in range(11))
# What the demo re-ranker was trained on: all that train_demo_reranker.py names in SETS.
SEEN = {
    "medquad",
    "boolq",
    "nq-gold",
    "squadshifts-reddit",
    "squadshifts-amazon",
    "squadshifts-wiki",
    "squad2-dev",
    "selqa",
}


def measured(folder: Path, encoder: BiEncoder, model: CrossEncoder, queries: int, work: Path) -> Evaluation:
    """Evaluate all first stages and re-rankings of a collection; vectors and scores are kept in `work`."""
    dataset = load_dataset(folder)
    some = dataset.sample(queries) if 0 < queries < len(dataset.judgements) else dataset
    with first_stages(dataset.passages, encoder, work / f"index-{folder.name}") as firsts:
        return evaluate(
            {name: RetrieveRerank(first, model) for name, first in firsts.items()},
            some,
            ["nDCG@10"],
            resamples=1,
            cache=work / "scores.sqlite",
            show_progress=sys.stderr.isatty(),
        )


def row(label: str, first: str, recall: str, values: Sequence[float]) -> str:
    """Return a line of the table, with the best value in bold."""
    best = max(range(len(values)), key=values.__getitem__)
    shown = [f"**{value:.3f}**" if place == best else f"{value:.3f}" for place, value in enumerate(values)]
    return f"| {label} | {first} | {recall} | {' | '.join(shown)} |"


def summary(unseen: Mapping[str, Sequence[Sequence[float]]], weight: float) -> list[str]:
    """Return the rows of the means, and what one weight gives and costs."""
    lines = []
    for name, rows in unseen.items():
        means = [fmean(column) for column in zip(*rows, strict=True)]
        lines.append(row(f"mean of {len(rows)} not trained on", name, "", means))
    place = WEIGHTS.index(weight)
    changes = [values[place] - values[0] for rows in unseen.values() for values in rows]
    if changes:
        lines.append(
            f"\nWith the weight {weight:g}, over what the model was not trained on: {fmean(changes):+.3f} on average, "
            f"{min(changes):+.3f} at worst, better in {sum(change > 0 for change in changes)} of {len(changes)} rows."
        )
    return lines


def main() -> None:
    """Print the table, and write it into a page if one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--queries", type=int, default=100, help="a seeded sample of this many; 0: all")
    parser.add_argument("--work", type=Path, default=Path("weights"), help="folder of indexes and scores")
    parser.add_argument("--weight", type=float, choices=WEIGHTS, default=RERANK_WEIGHT, help="that is summed up")
    parser.add_argument("--table", type=Path, help="Markdown file whose table is written anew")
    add_model_options(parser)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", TruncationWarning)
    arguments.work.mkdir(parents=True, exist_ok=True)
    bi_encoder, cross_encoder = models(arguments)
    lines = [f"| collection, questions | first stage | R@100 | {' | '.join(f'{weight:g}' for weight in WEIGHTS)} |"]
    lines.append("|---" * (len(WEIGHTS) + 3) + "|")
    unseen: dict[str, list[list[float]]] = {}
    with BiEncoder(bi_encoder) as encoder, CrossEncoder(cross_encoder) as model:
        for folder in arguments.folders:
            found = measured(folder, encoder, model, arguments.queries, arguments.work)
            seen = arguments.cross_encoder is None and folder.name in SEEN
            label = f"{folder.name}{' (trained on)' if seen else ''}, {len(found.judgements)}"
            for system in found.systems:
                if system.baseline is not None:
                    values = [system.by_weight[weight][0] for weight in WEIGHTS]
                    lines.append(row(label, system.name, f"{found[system.baseline].ceiling['R@100']:.3f}", values))
                    if not seen:
                        unseen.setdefault(system.name, []).append(values)
    lines += summary(unseen, arguments.weight)
    print("\n".join(lines))
    if arguments.table:
        write_table(arguments.table, Path(__file__).name, "\n".join(lines))


if __name__ == "__main__":
    main()
