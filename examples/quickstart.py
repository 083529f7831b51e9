"""Ask the documentation of Python's standard library: retrieve with a bi-encoder, re-rank with a cross-encoder.

    pip install "retrieve-rerank[demo]"
    python examples/quickstart.py                                             # four questions, then yours
    python examples/quickstart.py "Does a sort keep equal items in order?"    # your question only

The first run reads the docstrings of the Python that runs it and indexes them: some 5,500 passages, a minute on two
cores, with a progress bar. Later runs reuse that index and answer within seconds. For every question you see the best
five before and after re-ranking, how far each moved, and what each step took.

The models are small ones that need no model hub (see retrieve_rerank.demo). Others, by name or folder:

    python examples/quickstart.py --cross-encoder cross-encoder/ms-marco-MiniLM-L6-v2
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from retrieve_rerank import BiEncoder, ChromaIndex, CrossEncoder, Hit, Passage, RetrieveRerank, RetrieveRerankError
from retrieve_rerank.demo import cache_folder, demo_models
from stdlib_docs import stdlib_passages

QUESTIONS = (
    "How do I copy a directory with everything in it?",
    "Which encoding is used when a text file is opened without one?",
    "What happens to a thread when the main program exits?",
    "How much free space is left on the disk?",
)


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
        search = RetrieveRerank(index, cross_encoder, fetch_k=100, top_n=5)
        for question in _questions(options):
            _answer(search, question)
    if options.cross_encoder is None:
        note = (
            "The demo re-ranker is small and learned from questions about encyclopedia, forum, shop and health texts: "
            "on these docs it lifts some answers and buries others. For real work use a trained one:"
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
    if not options.ask:
        yield from QUESTIONS
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


def _answer(search: RetrieveRerank, question: str) -> None:
    """Print the best five before and after re-ranking, side by side, and the text of the best."""
    try:
        result = search.search(question)
    except RetrieveRerankError as error:  # such as a question that is too long for the model
        print(f"\n{error}")
        return
    width = _width()
    left = (width - 3) // 2
    right = width - 3 - left
    print("\n" + _bold("\n".join(textwrap.wrap(question, width))))
    print("─" * left + "─┬─" + "─" * right)
    print(f"{'BEFORE: bi-encoder, similarity':{left}} │ AFTER: cross-encoder, relevance")
    for before, after in zip(result.candidates, result, strict=False):
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
    head = f"{hit.rank} {hit.score:6.3f}  {moved}"
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
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="without one: four built-in ones, then yours")
    parser.add_argument("--ask", action="store_true", help="only questions that are typed, or piped in, one a line")
    parser.add_argument("--bi-encoder", metavar="MODEL", help="hub name or folder; default: the demo model")
    parser.add_argument("--cross-encoder", metavar="MODEL", help="hub name or folder; default: the demo model")
    parser.add_argument(
        "--modules", type=lambda names: names.split(","), default=[], help="only these, such as json,shutil"
    )
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
