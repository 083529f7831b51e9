"""Search inside one document with the cross-encoder alone: no index, no bi-encoder.

    pip install "retrieve-rerank[demo]"
    python examples/in_document_search.py                                    # Python on its try statement
    python examples/in_document_search.py notes.txt "When is the meeting?"   # your text, your questions

Every paragraph is read together with the question; you see the three most relevant, with the line each begins at. Good
for up to some hundred paragraphs; beyond that, retrieve first (see quickstart.py).
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

from retrieve_rerank import CrossEncoder, RetrieveRerankError, split_paragraphs
from retrieve_rerank.demo import demo_models

QUESTIONS = (
    "When is the else clause executed?",
    "What happens to an exception if the finally clause executes a return statement?",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the document, answer the questions. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Search inside one document.")
    parser.add_argument("file", nargs="?", help="a text file; without it: the Python reference on the try statement")
    parser.add_argument("questions", nargs="*", metavar="QUESTION")
    parser.add_argument("--cross-encoder", metavar="MODEL", help="hub name or folder; default: the demo model")
    options = parser.parse_intermixed_args(arguments)
    if options.file and not options.questions:
        parser.error(f'ask something: in_document_search.py {options.file} "a question"')
    try:
        text = Path(options.file).read_text(encoding="utf-8-sig") if options.file else topics["try"]
        search(text, options.questions or QUESTIONS, options.cross_encoder or demo_models()[1])
    except (OSError, UnicodeError, RetrieveRerankError) as error:
        print(f"in_document_search: {error}", file=sys.stderr)
        return 1
    return 0


def search(text: str, questions: Sequence[str], model: str | Path) -> None:
    """Print the three paragraphs of `text` that answer each question best."""
    paragraphs = split_paragraphs(text)
    print(f"{len(paragraphs)} paragraphs, {len(text):,} characters")
    with CrossEncoder(model) as cross_encoder:
        cross_encoder.score("load", ["the model"])  # so that the first question's time is like the others'
        for question in questions:
            start = time.perf_counter()
            hits = cross_encoder.rank(question, paragraphs, top_n=3)
            print(f"\n{question}   ({time.perf_counter() - start:.2f} s)")
            for hit in hits:
                line = text.count("\n", 0, hit.passage.metadata["start"]) + 1
                print(f"\n  {hit.rank}.  relevance {hit.score:.3f}, line {line}")
                print(textwrap.indent(hit.passage.text, "      "))


if __name__ == "__main__":
    sys.exit(main())
