"""Is our re-ranking slower than sentence-transformers' own? Both sides in turn, in one process, on the same weights.

    python benchmarks/speed.py CORPUS.jsonl [--passages 100] [--rounds 7] [--model FOLDER]

The file has one JSON object a line with "text". Prints medians of wall-clock seconds and their ratios, for passages as
they are and for passages cut to 100 words, and how far the scores are from sentence-transformers' own. Backends whose
packages are not installed are left out. Run it on a machine that does nothing else: a second busy process makes
such figures worthless. The model defaults to the demo cross-encoder. Needs the dev dependency group.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import sentence_transformers
import torch

from retrieve_rerank import CrossEncoder, MissingDependencyError
from retrieve_rerank.demo import demo_models

QUERY = "which method gives the best agreement with the measured values"
Scores = npt.NDArray[np.float32]
OURS: tuple[tuple[Literal["torch", "openvino"], Literal["auto", "float32"]], ...] = (
    *(("torch", "float32"), ("torch", "auto")),
    *(("openvino", "float32"), ("openvino", "auto")),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--passages", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with arguments.corpus.open(encoding="utf-8", newline="\n") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, arguments.passages)]
    model = str(arguments.model or demo_models()[1])
    stock = sentence_transformers.CrossEncoder(model)
    identity = torch.nn.Identity()
    sides: dict[str, Callable[[list[str]], Scores]] = {
        "sentence-transformers, float32": lambda texts: np.asarray(
            stock.predict([(QUERY, text) for text in texts], activation_fn=identity, show_progress_bar=False)
        )
    }
    for backend, precision in OURS:
        ours = CrossEncoder(model, backend=backend, precision=precision)
        try:
            side = f"ours, {backend}, {ours.precision}"
        except MissingDependencyError as error:
            print(f"left out: {backend}, {precision}: {error}", file=sys.stderr)
            continue
        sides.setdefault(side, partial(ours.score, QUERY))  # "auto" may be float32 again
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__},"
    )
    print(
        f"sentence-transformers {sentence_transformers.__version__}, {len(texts)} passages, {arguments.rounds} rounds\n"
    )
    print(
        "| passages | side | median s | min–max s | against sentence-transformers | largest difference in logit | "
        "of its top 10 |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, chosen in {"as they are": texts, "cut to 100 words": [" ".join(t.split()[:100]) for t in texts]}.items():
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        scores = {side: run(chosen) for side, run in sides.items()}  # the first round warms up and is not counted
        for _ in range(arguments.rounds):
            for side, run in sides.items():
                start = time.perf_counter()
                run(chosen)
                seconds[side].append(time.perf_counter() - start)
        base = next(iter(sides))
        for side, values in seconds.items():
            ratio = statistics.median(seconds[base]) / statistics.median(values)
            difference = float(np.abs(scores[side] - scores[base]).max())
            shared = len({*np.argsort(-scores[side])[:10]} & {*np.argsort(-scores[base])[:10]})
            print(
                f"| {name} | {side} | {statistics.median(values):.2f} | {min(values):.2f}–{max(values):.2f} | "
                f"{ratio:.2f}× | {difference:.1e} | {shared} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
