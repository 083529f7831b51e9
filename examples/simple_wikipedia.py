"""Ask Simple English Wikipedia: titles and paragraphs into a persistent index, then retrieve and re-rank.

    pip install "retrieve-rerank[demo]"
    python examples/simple_wikipedia.py simplewiki-2020-11-01.jsonl.gz
    python examples/simple_wikipedia.py simplewiki-2020-11-01.jsonl.gz --limit 20000 "Who painted the Mona Lisa?"

The file is that of the sentence-transformers tutorial, https://sbert.net/datasets/simplewiki-2020-11-01.jsonl.gz, with
one article a line: {"id": ..., "title": ..., "paragraphs": [...]}. For each question you see the best passages with
their relevance and where they stood before. A second run encodes only what is new; a larger --limit adds to the index.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import textwrap
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from retrieve_rerank import BiEncoder, ChromaIndex, CrossEncoder, Passage, RetrieveRerank, RetrieveRerankError
from retrieve_rerank.demo import cache_folder, demo_models
from splitting import pieces

SOURCE = "https://sbert.net/datasets/simplewiki-2020-11-01.jsonl.gz"
QUESTIONS = ("What is the capital of the United States?", "When did the Cold War end?", "Why is the sky blue?")


def passages(file: Path, limit: int) -> Iterator[Passage]:
    """Yield the paragraphs of the first `limit` articles (0: of all), each under its article's title."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in islice(lines, limit or None):
            article = json.loads(line)
            texts = [piece for paragraph in article["paragraphs"] for piece in pieces(paragraph)]
            for number, text in enumerate(texts):
                yield Passage(f"{article['id']}-{number}", f"{article['title']}\n\n{text}", {"title": article["title"]})


def main() -> int:
    """Index the file, answer the questions. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Ask Simple English Wikipedia.")
    parser.add_argument("file", type=Path, help=SOURCE)
    parser.add_argument("questions", nargs="*", metavar="QUESTION")
    parser.add_argument("--limit", type=int, default=5000, help="articles to read; 0: all, hours on a CPU")
    parser.add_argument("--index", type=Path, help="folder of the index; default: in the cache directory")
    parser.add_argument("--bi-encoder", metavar="MODEL", help="hub name or folder; default: the demo model")
    parser.add_argument("--cross-encoder", metavar="MODEL", help="hub name or folder; default: the demo model")
    options = parser.parse_intermixed_args()  # the questions may come after --limit
    if not options.file.is_file():
        print(f"There is no file {options.file}. Get it here: {SOURCE}", file=sys.stderr)
        return 2
    try:
        encoder = BiEncoder(options.bi_encoder or demo_models()[0])
        index = ChromaIndex(encoder, "simple-wikipedia", path=options.index or cache_folder() / "simple-wikipedia")
        print(index.add(passages(options.file, options.limit), batch_size=256, show_progress=True))
        search = RetrieveRerank(index, CrossEncoder(options.cross_encoder or demo_models()[1]), top_n=3)
        for question in options.questions or QUESTIONS:
            print(f"\n{question}")
            for hit in search.search(question):
                print(f"\n  {hit.rank}. {hit.passage.metadata['title']}: {hit.score:.3f} (was {hit.retrieval_rank})")
                print(textwrap.indent(textwrap.fill(hit.passage.text.partition("\n\n")[2], 100), " " * 5))
    except (OSError, RetrieveRerankError) as error:
        print(f"simple_wikipedia: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
