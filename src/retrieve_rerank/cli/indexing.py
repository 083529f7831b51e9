"""`retrieve-rerank index`: files into an index, which follows them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieve_rerank.cli.index_folder import Library, Record, made_folder
from retrieve_rerank.cli.options import (
    BiEncoderName,
    CrossEncoderName,
    Debug,
    Demo,
    Device,
    Json,
    Language,
    Models,
    PrecisionName,
    PrecisionOption,
    has_bm25,
    model_name,
)
from retrieve_rerank.cli.streams import for_people, guarded, put, result, say
from retrieve_rerank.cli.texts import with_examples
from retrieve_rerank.errors import InvalidInputError

if TYPE_CHECKING:
    from retrieve_rerank.cli.finding import Found
    from retrieve_rerank.cli.following import Outcome

HELP = with_examples(
    "Index files, or bring an index up to date.\n\n"
    "Text (.txt, .rst), Markdown, HTML, JSONL and CSV are read, in folders by their endings; PDF is not. Files are "
    "split into passages at headings, paragraphs and sentences, none longer than the bi-encoder reads. Run it again "
    "after files have changed: only what is new is encoded, and passages of files that are gone go, too. The index "
    "knows its models, so that searching names none.",
    "retrieve-rerank index docs --to my-index --demo",
    "retrieve-rerank index docs --to my-index              # again, after changes",
    "retrieve-rerank index faq.jsonl --to faq-index --demo --text-field answer --title-field question",
)


@guarded
def index(
    paths: Annotated[
        list[Path], typer.Argument(exists=True, metavar="FILES", help="Files and folders.", show_default=False)
    ],
    *,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder of the index, made if missing.")],
    demo: Demo = False,
    bi_encoder: BiEncoderName = None,
    cross_encoder: CrossEncoderName = None,
    device: Device = None,
    precision: PrecisionOption = PrecisionName.AUTO,
    tokens: Annotated[
        int | None,
        typer.Option("--passage-tokens", min=1, help="Of a passage at most; at first 256, or what the model reads."),
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(help="Field of the text in JSONL and CSV; at first text, then kept.")
    ] = None,
    title_field: Annotated[str | None, typer.Option(help="Field of the title; likewise.")] = None,
    id_field: Annotated[str | None, typer.Option(help="Field of the id; likewise, and _id.")] = None,
    language: Language = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Index files, or bring an index up to date."""
    from retrieve_rerank._files import locked
    from retrieve_rerank.cli.finding import find
    from retrieve_rerank.cli.following import follow

    wanted = Models(model_name(bi_encoder, demo=demo), model_name(cross_encoder, demo=demo), device, precision)
    made_folder(to)
    with locked(to / "lock", 0.0):
        library = _library(to, wanted, language)
        record = library.record
        record.tokens = tokens or record.tokens
        named = {"text": text_field, "title": title_field, "id": id_field}
        fields = {name: field for name, field in named.items() if field is not None}
        found = find(paths, {name: Path(root) for name, root in record.roots.items()}, to)
        if not found.files:
            raise InvalidInputError(_nothing(paths, found))
        models = Models(record.bi_encoder, None, device, precision)
        with models.make_bi_encoder() as encoder:
            outcome = follow(library, found, paths, encoder, fields, record.tokens)
    result(lambda: _report(outcome, found, library, json=json))
    if outcome.failed:
        raise typer.Exit(1)


def _library(folder: Path, wanted: Models, language: str | None) -> Library:
    """Return the index, which is new or was made by the same bi-encoder. What it was made with is kept."""
    if not Library.is_there(folder):
        if any(item.name != "lock" for item in folder.iterdir()):
            raise InvalidInputError(f"{folder} holds something else than an index; give an empty or a new folder")
        return Library(folder, Record(wanted.bi_encoder, wanted.cross_encoder, language or "en"))
    library = Library.open(folder)
    record = library.record
    if wanted.bi_encoder not in (None, record.bi_encoder):
        raise InvalidInputError(
            f"{folder} was made with the bi-encoder {record.bi_encoder or 'that is the default'!r}, not "
            f"{wanted.bi_encoder!r}, and vectors of two models cannot be compared; index into another folder"
        )
    if language not in (None, record.language):
        raise InvalidInputError(
            f"{folder} was made for the language {record.language!r}, not {language!r}; index into another folder"
        )
    record.cross_encoder = wanted.cross_encoder or record.cross_encoder
    return library


def _nothing(paths: list[Path], found: Found) -> str:
    there = ", ".join(str(path) for path in paths)
    return (
        f"there is nothing to index in {there}{_others(found)}; expected text, Markdown, HTML, JSONL or CSV files. "
        "Nothing was changed"
    )


def _others(found: Found) -> str:
    if not found.left_out:
        return ""
    kinds = ", ".join(f"{ending} ({count})" for ending, count in found.left_out.most_common(8))
    pdf = "; PDF is not read, convert it to text first" if ".pdf" in found.left_out else ""
    return f" (files left out, by ending: {kinds}{pdf})"


def _report(outcome: Outcome, found: Found, library: Library, *, json: bool) -> None:
    for name, reason in outcome.failed.items():
        say(f"warning: {name}: {reason}; left out")
    if others := _others(found):
        say(f"note:{others}")
    if not has_bm25():
        say('note: passages are found by their vectors only; for words, too: pip install "retrieve-rerank[hybrid]"')
    if not for_people(json=json):
        put({"index": str(library.folder), **outcome.counts})
        return
    counts = outcome.counts
    say(
        f"{counts['files']} files, {counts['passages']} passages in {library.folder}: "
        f"{counts['added']} passages added, {counts['updated']} updated, {counts['removed']} removed, "
        f"{counts['unchanged']} unchanged"
    )
