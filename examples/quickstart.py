"""Ask the documentation of Python's standard library: retrieve with a bi-encoder, re-rank with a cross-encoder.

    pip install "retrieve-rerank[demo]"
    python examples/quickstart.py                                             # ten questions, then yours
    python examples/quickstart.py "Does a sort keep equal items in order?"    # your question only

The first run reads the docstrings of the Python that runs it and indexes them: some 5,500 passages, a minute on two
cores, with a progress bar. Later runs reuse that index and answer within seconds. For a question you see the best five
before and after re-ranking, how far each moved, and what each step took.

The ten questions are not ours, and are chosen by a rule: the first ten of Python's own FAQ (of the programming chapter
its "General Questions", as the rest is about the language, then the library chapter) whose answer there links to a
module, class or function of the standard library. The first one that it links to is the answer that is looked for: its
documentation, or that of anything in it. The first question is shown in full, and a table has the ranks of all ten
answers before and after re-ranking, whichever way they went.

The models are small ones that need no model hub (see retrieve_rerank.demo). Others, by name or folder:

    python examples/quickstart.py --cross-encoder cross-encoder/ms-marco-MiniLM-L6-v2

Both stages vote on the order; `--rerank-weight 1` leaves it to the cross-encoder alone.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import platform
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from retrieve_rerank import (
    BiEncoder,
    ChromaIndex,
    CrossEncoder,
    Hit,
    Passage,
    RetrieveRerank,
    RetrieveRerankError,
    SearchResult,
)
from retrieve_rerank.demo import RERANK_WEIGHT, cache_folder, demo_models
from stdlib_docs import stdlib_passages

# https://docs.python.org/3/faq: each question, and the first thing that its answer links to.
QUESTIONS = {
    "Is there a source code level debugger with breakpoints, single-stepping, etc.?": "breakpoint",
    "Is there a curses/termcap package for Python?": "curses",
    "Is there an equivalent to C's onexit() in Python?": "atexit",
    "How do I test a Python program or component?": "doctest",
    "How do I create documentation from doc strings?": "pydoc",
    "How do I program using threads?": "threading",
    "None of my threads seem to run: why?": "time.sleep",
    "How do I parcel out work among a bunch of worker threads?": "concurrent.futures",
    "What kinds of global value mutation are thread-safe?": "sys.setswitchinterval",
    "Can't we get rid of the Global Interpreter Lock?": "concurrent.futures.ProcessPoolExecutor",
}
SHOWN = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Index once, then answer. Returns the exit status."""
    options = _options(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an old console may lack the arrows
    try:
        _run(options)
    except RetrieveRerankError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. What is indexed stays: the next run goes on from there.", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    print(_bold(f"Retrieve & re-rank over the documentation of Python {platform.python_version()}") + "\n")
    print("Loading the models ...", end=" ", flush=True)
    start = time.perf_counter()
    encoder = BiEncoder(options.bi_encoder or demo_models()[0])
    cross_encoder = CrossEncoder(options.cross_encoder or demo_models()[1])
    where = f"{cross_encoder.precision} on {cross_encoder.device}"  # asking for it loads the model
    folder = _index_folder(encoder, options.modules)
    print(f"{time.perf_counter() - start:.1f} s, {where}")

    with ChromaIndex(encoder, "stdlib", path=folder) as index:
        _fill(index, folder / "complete", options.modules)
        index.retrieve("warm up", k=1)  # opens the index's files, so that the first question's time is like the others'
        demo = options.cross_encoder is None
        weight = options.rerank_weight if options.rerank_weight is not None else RERANK_WEIGHT if demo else 1.0
        search = RetrieveRerank(index, cross_encoder, fetch_k=100, top_n=None, rerank_weight=weight)
        if not (options.questions or options.ask):
            _answer_the_faq(search)
        for question in _questions(options):
            _answer(search, question)
    if demo:
        note = (
            "The demo re-ranker is small and learned from questions about encyclopedia, forum, shop and health texts, "
            f"so it has {weight:.0%} of the votes here. For real work use a trained one:"
        )
        print(f"\n{textwrap.fill(note, _width())}\n    --cross-encoder cross-encoder/ms-marco-MiniLM-L6-v2")


def _fill(index: ChromaIndex, complete: Path, modules: Sequence[str]) -> None:
    """Index the documentation, unless an earlier run has finished doing so."""
    if complete.exists() and index.count():
        print(f"Index of {index.count():,} passages reused:\n  {complete.parent}")
        return
    passages = list(stdlib_passages(modules))
    print(f"Indexing {len(passages):,} passages, this once:\n  {complete.parent}")
    start = time.perf_counter()
    report = index.add(passages, batch_size=256, show_progress=True)
    complete.touch()
    known = f", {report.unchanged:,} were there already" if report.unchanged else ""
    print(f"Indexed in {time.perf_counter() - start:.0f} s{known}")


def _index_folder(encoder: BiEncoder, modules: Sequence[str]) -> Path:
    # One index for every interpreter, selection and encoder; the encoder's name or folder does not matter.
    facts = sorted((key, value) for key, value in encoder.fingerprint.items() if key != "model")
    digest = sha256(repr((facts, sorted(modules))).encode()).hexdigest()
    return cache_folder() / f"quickstart-python-{platform.python_version()}-{digest[:8]}"


def _questions(options: argparse.Namespace) -> Iterator[str]:
    if options.questions:
        yield from options.questions
        return
    terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    while terminal or options.ask:
        if terminal:
            print("\nYour question (an empty line ends): ", end="", flush=True)
        try:
            question = sys.stdin.readline().strip()
        except KeyboardInterrupt:
            print()
            return
        if not question:
            return
        yield question


def _answer_the_faq(search: RetrieveRerank) -> None:
    """Ask the built-in questions; show the first in full, and the rank of each one's answer before and after."""
    print(f"Asking {len(QUESTIONS)} questions of Python's FAQ ...", end=" ", flush=True)
    start = time.perf_counter()
    results = [search.search(question) for question in QUESTIONS]
    print(f"{time.perf_counter() - start:.1f} s")
    _show(results[0])
    ranks = [
        (_rank(one.candidates, name), _rank(one, name)) for one, name in zip(results, QUESTIONS.values(), strict=True)
    ]
    print("\n" + _bold("Rank of the answer that the FAQ names\nbefore  after"))
    for (before, after), (question, name) in zip(ranks, QUESTIONS.items(), strict=True):
        shown = "".join(f"{'–' if math.isinf(rank) else rank:>6} " for rank in (before, after))
        print("\n".join(textwrap.wrap(f"{shown}  {name}: {question}", _width(), subsequent_indent=" " * 16)))
    up, down = sum(after < before for before, after in ranks), sum(after > before for before, after in ranks)
    print(
        f"{up} higher after re-ranking, {down} lower, {len(ranks) - up - down} as before (–: not among the candidates)"
    )


def _rank(hits: Sequence[Hit], name: str) -> float:
    """Return the rank of the first hit that documents a name or what is in it; infinity where none does."""
    ids = (hit.passage.id for hit in hits)
    found = (rank for rank, id_ in enumerate(ids, 1) if id_ == name or id_.startswith((f"{name}.", f"{name}#")))
    return next(found, math.inf)


def _answer(search: RetrieveRerank, question: str) -> None:
    """Answer a question, or say why not."""
    try:
        _show(search.search(question))
    except RetrieveRerankError as error:  # such as a question that is too long for the model
        print(f"\n{error}")


def _show(result: SearchResult) -> None:
    """Print the best before and after re-ranking, side by side, and the text of the best."""
    width = _width()
    left = (width - 3) // 2
    right = width - 3 - left
    print("\n" + _bold("\n".join(textwrap.wrap(result.query, width))))
    print("─" * left + "─┬─" + "─" * right)
    alone = not result or result[0].combined_score is None
    after_by = "cross-encoder, relevance" if alone else "both stages, combined score"
    print(f"{'BEFORE: bi-encoder, similarity':{left}} │ AFTER: {after_by}")
    for before, after in zip(result.candidates[:SHOWN], result[:SHOWN], strict=False):
        up = (after.retrieval_rank or after.rank) - after.rank
        moved = f"↑{up}" if up > 0 else f"↓{-up}" if up < 0 else "="
        name, text = _cell(before, "", left)
        new_name, new_text = _cell(after, f"{moved:4} ", right)
        print(_bold(f"{name:{left}}") + " │ " + _bold(new_name))
        print(f"{text:{left}} │ {new_text}")
    print("─" * left + "─┴─" + "─" * right)
    if result:
        best = result[0].passage
        answer = textwrap.wrap(f"{best.id}: {_text(best)}", width, max_lines=max(4, 480 // width), placeholder=" …")
        print("\n".join(answer))
    took = result.timings
    found = f"{len(result.candidates)} candidates found in {took.retrieve_seconds:.3f} s"
    print(f"({found}, re-ranked in {took.rerank_seconds:.2f} s)")


def _cell(hit: Hit, moved: str, width: int) -> tuple[str, str]:
    """Return two lines of at most `width` characters: what was found, and the beginning of its text."""
    score = hit.score if hit.combined_score is None else hit.combined_score
    head = f"{hit.rank} {score:6.3f}  {moved}"
    room = width - len(head)
    name = hit.passage.id if len(hit.passage.id) <= room else "…" + hit.passage.id[1 - room :]
    text = _text(hit.passage)
    room = width - 10
    return head + name, " " * 10 + (text if len(text) <= room else text[: room - 1] + "…")


def _text(passage: Passage) -> str:
    return " ".join(passage.text.partition("\n\n")[2].split())


def _width() -> int:
    return max(60, min(140, shutil.get_terminal_size().columns))


def _bold(text: str) -> str:
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[1m{text}\x1b[0m"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ask the documentation of Python's standard library.")
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="without one: ten of Python's FAQ, then yours")
    parser.add_argument("--ask", action="store_true", help="only questions that are typed, or piped in, one a line")
    parser.add_argument("--bi-encoder", metavar="MODEL", help="hub name or folder; default: the demo model")
    parser.add_argument("--cross-encoder", metavar="MODEL", help="hub name or folder; default: the demo model")
    parser.add_argument(
        "--rerank-weight",
        type=float,
        metavar="W",
        help="of the cross-encoder in the order, 0 to 1; default: the demo's",
    )
    parser.add_argument(
        "--modules", type=lambda names: names.split(","), default=[], help="only these, such as json,shutil"
    )
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
