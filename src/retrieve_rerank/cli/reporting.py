"""`retrieve-rerank report`: a saved evaluation as a page or as Markdown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from retrieve_rerank.cli.judging import check_outputs
from retrieve_rerank.cli.options import Debug
from retrieve_rerank.cli.streams import for_people, guarded, say, show
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
    from retrieve_rerank.evaluation.evaluation import Evaluation

    check_outputs(html, markdown, inputs=[file])
    evaluation = Evaluation.from_json(file)
    if html is not None:
        evaluation.to_html(html)
        say(f"report: {html}")
    if markdown is not None:
        markdown.write_text(evaluation.to_markdown(), encoding="utf-8")
        say(f"table: {markdown}")
    if html is not None or markdown is not None:
        return
    if for_people(json=False):
        from retrieve_rerank.cli.tables import evaluated

        show(*evaluated(evaluation))
    else:
        sys.stdout.write(evaluation.to_markdown())
