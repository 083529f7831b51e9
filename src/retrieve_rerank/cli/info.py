"""`retrieve-rerank info`: what an index holds, and what it was made with."""

from __future__ import annotations

import json as jsons
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from retrieve_rerank.cli.folder import IndexFolder
from retrieve_rerank.cli.options import Debug, Json
from retrieve_rerank.cli.streams import clean, for_people, guarded, put, show, with_examples

HELP = with_examples(
    "Say what an index holds, and what it was made with.\n\nIt loads no model.",
    "retrieve-rerank info --in my-index",
    "retrieve-rerank info --in my-index --json",
)


@guarded
def info(
    *,
    index: Annotated[Path, typer.Option("--in", metavar="DIR", help="Folder of an index.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what an index holds."""
    folder = IndexFolder.open(index)
    record = folder.record
    kinds = Counter(Path(source).suffix.lower() or "without an ending" for source in record.files)
    facts = {
        "index": str(index),
        "files": len(record.files),
        "passages": sum(file.passages for file in record.files.values()),
        "kinds": dict(kinds.most_common()),
        "folders": record.roots,
        "bi_encoder": record.bi_encoder,
        "cross_encoder": record.cross_encoder,
        "language": record.language,
        "words": folder.has_words,
        "complete": record.clean,
    }
    if not for_people(json=json):
        put(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = value if isinstance(value, (str, int)) else "the default" if value is None else jsons.dumps(value)
        show(f"{name.replace('_', ' '):<{width}}  {clean(str(shown))}")
