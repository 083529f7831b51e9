"""`retrieve-rerank evaluate`: does re-ranking help on this data, and what does it cost?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieve_rerank.cli.folder import (
    IndexFolder,
    all_passages,
    first_stages,
    made_folder,
    open_vectors,
    open_words,
    own_files,
)
from retrieve_rerank.cli.options import (
    DEMO,
    BiEncoderName,
    CrossEncoderNames,
    Debug,
    Demo,
    Device,
    FirstStage,
    Json,
    Language,
    Models,
    PrecisionName,
    PrecisionOption,
    RerankWeight,
    check_first_stages,
    check_language,
    model_name,
)
from retrieve_rerank.cli.streams import (
    files_first,
    for_people,
    guarded,
    put,
    say,
    show,
    show_bars,
    with_examples,
    write_files,
)
from retrieve_rerank.errors import InvalidInputError

if TYPE_CHECKING:
    from retrieve_rerank.evaluation import Dataset, Evaluation
    from retrieve_rerank.models.bi_encoder import BiEncoder
    from retrieve_rerank.retrieval.pipeline import RetrieveRerank
    from retrieve_rerank.types import Retriever

HELP = with_examples(
    "Measure whether re-ranking helps, by how much, and at what cost.\n\n"
    "DATASET is a folder in the BEIR layout; its index is kept in the cache, and so are the scores, so that a second "
    "run is fast. Or take an index of yours, with questions and judgements in files, or with weak questions that are "
    "made from its own passages.",
    "retrieve-rerank evaluate my-dataset --demo --html report.html --save evaluation.json",
    "retrieve-rerank evaluate my-dataset --demo --sample 50 --first-stage bm25 --first-stage dense --runs runs",
    "retrieve-rerank evaluate --in my-index --sample-questions 100",
    "retrieve-rerank evaluate --from evaluation.json --html again.html    # what was saved, measuring nothing",
)


DatasetFolder = Annotated[
    Path | None,
    typer.Argument(metavar="DATASET", help="Folder in the BEIR layout: corpus.jsonl, queries.jsonl, qrels.tsv."),
]
IndexOption = Annotated[Path | None, typer.Option("--in", metavar="DIR", help="An index of yours instead.")]
Queries = Annotated[
    Path | None, typer.Option("--queries", metavar="FILE", help='Questions: lines {"id": …, "text": …}.')
]
Qrels = Annotated[
    Path | None, typer.Option("--qrels", metavar="FILE", help="Judgements: question, passage, relevance; tabs between.")
]
QUESTIONS = 250  # minutes, not hours, where each question costs a hundred pairs
Sample = Annotated[
    int | None,
    typer.Option(
        "--sample",
        min=0,
        metavar="N",
        help=f"Take so many judged questions; 0: all; left out: {QUESTIONS} if there are more.",
    ),
]
SampleQuestions = Annotated[
    int | None,
    typer.Option(
        "--sample-questions", min=1, metavar="N", help="Make so many weak questions from the passages of --in."
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", metavar="FILE", help="Where scores are kept; left out: beside the cached index."),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Score everything anew, to measure how long it takes.")]


@guarded
def evaluate(
    dataset: DatasetFolder = None,
    *,
    index: IndexOption = None,
    saved: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Show what --save wrote instead of measuring.")
    ] = None,
    queries: Queries = None,
    qrels: Qrels = None,
    sample: Sample = None,
    sample_questions: SampleQuestions = None,
    language: Language = None,
    first_stage: Annotated[
        list[FirstStage] | None,
        typer.Option(
            metavar="hybrid|bm25|dense", help="May be repeated; left out: hybrid, or dense where there is no BM25."
        ),
    ] = None,
    fetch_k: Annotated[int, typer.Option(min=1, metavar="N", help="How many candidates to re-rank.")] = 100,
    rerank_weight: RerankWeight = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name in ir-measures, may be repeated, the first decides; left out: nDCG@10, RR@10, R@100.",
        ),
    ] = None,
    demo: Demo = False,
    bi_encoder: BiEncoderName = None,
    cross_encoder: CrossEncoderNames = None,
    device: Device = None,
    precision: PrecisionOption = PrecisionName.AUTO,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as a page.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as Markdown.")] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything as JSON, for --from.")] = None,
    runs: Annotated[Path | None, typer.Option(metavar="DIR", help="Write TREC runs and qrels.")] = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure whether re-ranking helps."""
    from retrieve_rerank._files import write_text
    from retrieve_rerank.evaluation import Evaluation
    from retrieve_rerank.evaluation import evaluate as run

    check_outputs(html, markdown, save, cache, folder=runs, inputs=[dataset, queries, qrels, saved], index=index)
    if saved is not None:
        measured = (dataset, index, queries, qrels, sample, sample_questions, language, first_stage, measure)
        if demo or any(option is not None for option in (*measured, rerank_weight, bi_encoder, cross_encoder)):
            raise typer.BadParameter("--from shows what was measured; leave out what says what to measure, and how")
        evaluation = Evaluation.from_json(saved)
    else:
        measures, names = check_measures(measure), check_first_stages(first_stage)
        source = Source(dataset, index, queries, qrels, sample, sample_questions, language)
        models = Models(model_name(bi_encoder, demo=demo), None, device, precision)
        with ExitStack() as opened:
            ground = opened.enter_context(prepared(source, models, names))
            stages = opened.enter_context(ground.stages(names))
            options = {"fetch_k": fetch_k, "rerank_weight": 1.0 if rerank_weight is None else rerank_weight}
            pipelines = _pipelines(stages, cross_encoders(cross_encoder, index, demo=demo), models, options, opened)
            evaluation = run(
                pipelines,
                ground.dataset,
                measures,
                fetch_k=fetch_k,
                cache=ground.cache(cache, without=no_cache),
                show_progress=show_bars(),
            )
    with files_first(lambda: _tell(evaluation, json=json)) as written:
        write_files(
            written,
            ("evaluation", save, evaluation.to_json),  # what holds everything first
            ("report", html, evaluation.to_html),
            ("table", markdown, lambda path: write_text(evaluation.to_markdown(), path, "the table")),
            ("runs", runs, evaluation.to_runs),
        )


def cross_encoders(given: list[str] | None, index: Path | None, *, demo: bool) -> list[str | None]:
    """Return which cross-encoders to use: those given, else the index's own, else the default one."""
    if given:
        return [model_name(name, demo=demo) for name in dict.fromkeys(given)]
    if demo or index is None:
        return [model_name(None, demo=demo)]
    return [IndexFolder.open(index).record.cross_encoder]


def short_names(models: list[str | None]) -> dict[str | None, str]:
    """Return what tables call cross-encoders: the end of the name, where that is enough."""
    ends = {model: DEMO if model == DEMO else Path(model or "default").name for model in models}
    return ends if len(set(ends.values())) == len(ends) else {model: model or "default" for model in models}


def _pipelines(
    stages: Mapping[str, Retriever],
    names: list[str | None],
    models: Models,
    options: Mapping[str, Any],
    opened: ExitStack,
) -> Mapping[str, Retriever | RetrieveRerank]:
    from retrieve_rerank.retrieval.pipeline import RetrieveRerank

    pipelines: dict[str, Retriever | RetrieveRerank] = {**stages}
    shown = short_names(names)
    for name in names:
        scorer = opened.enter_context(replace(models, cross_encoder=name).make_cross_encoder())
        for stage, retriever in stages.items():
            pipelines[f"{stage} → {shown[name]}"] = RetrieveRerank(retriever, scorer, **options)
    return pipelines


def _tell(evaluation: Evaluation, *, json: bool) -> None:
    if for_people(json=json):
        from retrieve_rerank.cli.tables import evaluated

        show(*evaluated(evaluation))
        return
    for note in evaluation.notes:
        say(f"note: {note}")
    changes = {change.system: change for change in evaluation.comparisons if change.measure == evaluation.measures[0]}
    for system in evaluation.systems:
        change = changes.get(system.name)
        put(
            {
                "dataset": evaluation.dataset,
                "weak": evaluation.weak,
                "questions": len(evaluation.judgements),
                "system": system.name,
                "baseline": system.baseline,
                "fetch_k": system.fetch_k,
                "rerank_weight": system.rerank_weight,
                "by_weight": {f"{weight:g}": mean for weight, (mean, _, _) in system.by_weight.items()},
                "means": system.means,
                "ceiling": system.ceiling,
                "verdict": None if change is None else change.verdict,
                "change": None if change is None else change.difference,
                "interval": None if change is None else [change.low, change.high],
                "p": None if change is None else change.p_holm,
                "retrieve_p50_seconds": system.retrieve.p50,
                "retrieve_p95_seconds": system.retrieve.p95,
                "rerank_p50_seconds": None if system.rerank is None else system.rerank.p50,
                "rerank_p95_seconds": None if system.rerank is None else system.rerank.p95,
                "rerank_estimated": system.rerank is not None and system.rerank.estimated,
            }
        )


@dataclass(frozen=True, slots=True)
class Source:
    """Where questions and passages come from, as the options say."""

    dataset: Path | None
    index: Path | None
    queries: Path | None
    qrels: Path | None
    sample: int | None
    sample_questions: int | None
    language: str | None


@dataclass(frozen=True, slots=True)
class Ground:
    """Questions, and the folder with the indexes of their passages."""

    dataset: Dataset
    folder: Path
    encoder: BiEncoder
    language: str

    @contextmanager
    def stages(self, names: list[str]) -> Iterator[Mapping[str, Retriever]]:
        """Open first stages over the passages."""
        with first_stages(self.folder, names, self.encoder, self.language) as opened:
            yield opened

    def cache(self, given: Path | None, *, without: bool) -> Path | None:
        """Return the file that scores are kept in."""
        if without:
            return None
        return given or self.folder / "scores.sqlite"


@contextmanager
def prepared(source: Source, models: Models, names: list[str], *, weak: int | None = None) -> Iterator[Ground]:
    """Read the questions, and make the indexes of their passages, unless an earlier run has.

    Args:
        source: Where they come from.
        models: The bi-encoder among them is used where there is no index.
        names: First stages that will be opened.
        weak: How many questions to make of an index without judgements; None makes none.

    Raises:
        InvalidInputError: If the options do not go together, or a file cannot be used.
    """
    from retrieve_rerank.evaluation import load_dataset

    _check(source, weak)
    if source.dataset is not None:
        spoken = source.language or "en"
        if set(names) != {"dense"}:
            check_language(spoken)  # before passages are encoded for nothing
        dataset = load_dataset(source.dataset, queries=_here(source.queries), qrels=_here(source.qrels))
        with models.make_bi_encoder() as encoder:
            yield _cached(_sampled(dataset, source.sample, QUESTIONS), encoder, spoken, names)
        return
    folder = source.index or Path()
    opened = IndexFolder.open(folder)
    opened.tell(cross_encoder=False)
    language = opened.record.language
    if models.bi_encoder not in (None, DEMO, opened.record.bi_encoder):
        raise typer.BadParameter(
            f"{folder} was made with {opened.record.bi_encoder or 'the default bi-encoder'}; leave --bi-encoder "
            "out, or index the files with the other one into another folder"
        )
    if source.language not in (None, language):
        raise typer.BadParameter(
            f"{folder} was made for the language {language!r}, not {source.language!r}; leave --language out, or index "
            "the files into another folder"
        )
    own = Models(opened.record.bi_encoder, None, models.device, models.precision)
    with own.make_bi_encoder() as encoder:
        if source.qrels is not None and source.queries is not None:
            opened.check_stages(names)
            dataset = _judged(opened, encoder, source.queries, source.qrels)
            yield Ground(_sampled(dataset, source.sample, QUESTIONS), folder, encoder, language)
        else:
            dataset = _weak(opened, encoder, source.sample_questions or weak or 0)
            yield _cached(_sampled(dataset, source.sample, 0), encoder, language, names)


def _check(source: Source, weak: int | None) -> None:
    if (source.dataset is None) == (source.index is None):
        raise typer.BadParameter("give either a DATASET or an index of yours with --in DIR")
    if source.index is None:
        if source.sample_questions is not None:
            raise typer.BadParameter("--sample-questions makes questions of an index; give one with --in DIR")
        return
    judged = source.queries is not None, source.qrels is not None
    if any(judged) and not all(judged):
        raise typer.BadParameter("--queries and --qrels go together")
    if any(judged) and source.sample_questions is not None:
        raise typer.BadParameter("give either --queries with --qrels, or --sample-questions")
    if not any(judged) and source.sample_questions is None and weak is None:
        raise typer.BadParameter(
            "an index has no questions: give --queries with --qrels, or --sample-questions 100, which makes weak ones"
        )


def _sampled(dataset: Dataset, n: int | None, default: int) -> Dataset:
    """Return some of the questions; 0 takes all. Where nobody asked for fewer, say so before it takes long."""
    count = default if n is None else n
    some = dataset.sample(count) if count else dataset
    if n is None and some is not dataset:
        say(f"note: {some.notes[0]}; --sample 0 takes all")
    return some


def _here(file: Path | None) -> Path | None:
    """Return a file so that it is looked for in the current folder first, as on any command line."""
    return file.absolute() if file is not None and file.is_file() else file


def _judged(opened: IndexFolder, encoder: BiEncoder, queries: Path, qrels: Path) -> Dataset:
    from retrieve_rerank.evaluation.dataset import Dataset
    from retrieve_rerank.evaluation.files import load_judgements, load_queries

    with opened.open_vectors(encoder) as index:
        passages = list(all_passages(index))
    texts = load_queries(queries)
    return Dataset(opened.folder.resolve().name, passages, texts, load_judgements(qrels, texts, passages))


def _weak(opened: IndexFolder, encoder: BiEncoder, n: int) -> Dataset:
    from retrieve_rerank.evaluation.questions import sample_questions

    with opened.open_vectors(encoder) as index:
        dataset = sample_questions(all_passages(index), n=n, name=opened.folder.resolve().name)
    made = len(dataset.judgements)
    say(f"note: {made} weak question{'' if made == 1 else 's'}: {dataset.weak}")
    if made < n:
        few = ", too few to choose a setting by" if made < 20 else ""
        say(f"warning: {n} were asked for, and the passages give no more{few}")
    return dataset


def _cached(dataset: Dataset, encoder: BiEncoder, language: str, names: list[str]) -> Ground:
    """Return the dataset with its index, which is kept in the user's cache."""
    from retrieve_rerank.demo import cache_folder

    facts = {} if set(names) == {"bm25"} else _facts(encoder)  # asking for them loads the model
    digest = sha256(repr([language, *sorted(facts.items())]).encode())
    for passage in dataset.passages:
        digest.update(repr((passage.id, passage.text)).encode("utf-8", "surrogatepass"))
    safe = "".join(mark if mark.isalnum() or mark in "-_" else "-" for mark in dataset.name)[:60]
    folder = made_folder(cache_folder() / f"evaluation-{safe}-{digest.hexdigest()[:12]}")
    _fill(folder, dataset, encoder, language, names)
    return Ground(dataset, folder, encoder, language)


def _facts(encoder: BiEncoder) -> dict[str, str | int | float | bool]:
    return {name: value for name, value in encoder.fingerprint.items() if name != "model"}  # which is a path, or a name


def _fill(folder: Path, dataset: Dataset, encoder: BiEncoder, language: str, names: list[str]) -> None:
    """Store the passages that are missing in the indexes that are needed."""
    from retrieve_rerank._files import locked

    count = len(dataset.passages)
    with locked(folder / "lock"):
        if set(names) != {"bm25"}:
            with open_vectors(folder, encoder) as vectors:
                if vectors.count() < count:
                    vectors.add(dataset.passages, batch_size=256, show_progress=show_bars())
        if set(names) != {"dense"}:
            with open_words(folder, language) as words:
                if words.count() < count:
                    words.add(dataset.passages, show_progress=show_bars())


def check_outputs(
    *files: Path | None, folder: Path | None = None, inputs: Iterable[Path | None] = (), index: Path | None = None
) -> None:
    """Refuse files, and a folder of files, that cannot be written or are read too, before anything takes long."""
    kept = set() if index is None else {path.resolve() for path in own_files(index)}
    for path in (*files, folder):
        if path is not None and kept & {path.resolve(), *path.resolve().parents}:
            raise typer.BadParameter(f"{path} is a part of the index in {index}; name another")
    taken = {file.resolve() for file in inputs if file is not None}
    for file in files:
        if file is None:
            continue
        if not file.resolve().parent.is_dir():
            raise typer.BadParameter(f"the folder of {file} does not exist; make it first")
        if file.is_dir():
            raise typer.BadParameter(f"{file} is a folder; name a file")
        read = file.suffix in (".jsonl", ".tsv") and file.exists() and taken & {*file.resolve().parents}
        if read or file.resolve() in taken:
            raise typer.BadParameter(f"{file} is named twice or is read, and would be written over; name another")
        taken.add(file.resolve())
    if folder is not None and folder.exists() and not folder.is_dir():
        raise typer.BadParameter(f"{folder} is no folder; name one that the files are put into")
    if folder is not None and taken & {folder.resolve(), (folder / "qrels.txt").resolve()}:
        raise typer.BadParameter(f"the runs' qrels.txt in {folder} may be written over yours; name another folder")


def check_measures(names: list[str] | None) -> list[str]:
    """Return the measures, before anything takes long."""
    from retrieve_rerank.evaluation.measures import check_measures as checked

    try:
        return list(checked(names or ["nDCG@10", "RR@10", "R@100"]))
    except InvalidInputError as error:
        raise typer.BadParameter(str(error)) from error
