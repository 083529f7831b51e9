"""The commands under one name."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand

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


class _Command(TyperCommand):
    """A command whose help says of an argument what it is for, and not its Python type, as typer would."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for item in self.params:
            if isinstance(item, TyperArgument):
                vars(item)["display_type_rich"] = lambda ctx: None


app = typer.Typer(
    name="retrieve-rerank",
    help=_HELP,
    no_args_is_help=True,
    # Plain text: it starts faster, and panels leave the words little room in 80 columns.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("index", cls=_Command, help=index.HELP)(index.index)
app.command("search", cls=_Command, help=search.HELP)(search.search)
app.command("rerank", cls=_Command, help=rerank.HELP)(rerank.rerank)
app.command("evaluate", cls=_Command, help=evaluate.HELP)(evaluate.evaluate)
app.command("tune", cls=_Command, help=tune.HELP)(tune.tune)
app.command("info", cls=_Command, help=info.HELP)(info.info)


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
