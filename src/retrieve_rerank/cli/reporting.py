"""`retrieve-rerank report`: a saved evaluation as a page or as Markdown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from retrieve_rerank.cli.judging import check_outputs
from retrieve_rerank.cli.options import Debug
from retrieve_rerank.cli.streams import files_first, for_people, guarded, show, write_files
from retrieve_rerank.cli.texts import with_examples

HELP = with_examples(
    "Make a page or Markdown of what evaluate --save wrote.\n\n"
    "Without --html and --markdown the answer and the table are shown, as Markdown where stdout is no terminal.",
    "retrieve-rerank report evaluation.json --html report.html",
    "retrieve-rerank report evaluation.json",
)


@guarded
def report(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What evaluate --save wrote.", show_default=False)],
    *,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as a page.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as Markdown.")] = None,
    debug: Debug = False,
) -> None:
    """Make a page or Markdown of a saved evaluation."""
    from retrieve_rerank._files import write_text
    from retrieve_rerank.evaluation.results import Evaluation

    check_outputs(html, markdown, inputs=[file])
    evaluation = Evaluation.from_json(file)
    if html is not None or markdown is not None:
        with files_first(lambda: None) as written:
            write_files(
                written,
                ("report", html, evaluation.to_html),
                ("table", markdown, lambda path: write_text(evaluation.to_markdown(), path, "the table")),
            )
        return
    if for_people(json=False):
        from retrieve_rerank.cli.tables import evaluated

        show(*evaluated(evaluation))
    else:
        sys.stdout.write(evaluation.to_markdown())
