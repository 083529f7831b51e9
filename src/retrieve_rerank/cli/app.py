"""The commands under one name."""

from __future__ import annotations

from typing import Annotated

import typer

from retrieve_rerank import __version__
from retrieve_rerank.cli import evaluate, index, info, rerank, search, tune
from retrieve_rerank.cli.streams import with_examples

_HELP = with_examples(
    "Retrieve & re-rank: index your files, search them, re-rank anything, and measure whether it helps.\n\n"
    "Data go to stdout: a table on a terminal, JSON lines elsewhere or with --json. Progress and warnings go to "
    "stderr. Exit status: 0, 1 where something failed, 2 for a wrong call, 130 after Ctrl-C.",
    "retrieve-rerank index docs --to my-index --demo",
    'retrieve-rerank search "how do I install it?" --in my-index',
    title="Begin with",
)

app = typer.Typer(
    name="retrieve-rerank",
    help=_HELP,
    no_args_is_help=True,
    # Plain text: it starts faster, and panels leave the words little room in 80 columns.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("index", help=index.HELP)(index.index)
app.command("search", help=search.HELP)(search.search)
app.command("rerank", help=rerank.HELP)(rerank.rerank)
app.command("evaluate", help=evaluate.HELP)(evaluate.evaluate)
app.command("tune", help=tune.HELP)(tune.tune)
app.command("info", help=info.HELP)(info.info)


def _say_version(asked: bool) -> None:  # noqa: FBT001 - typer's way
    if asked:
        typer.echo(f"retrieve-rerank {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version, and end.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; ends the process."""
    app(prog_name="retrieve-rerank")
