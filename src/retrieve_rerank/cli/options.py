"""Options that several commands share, and the models that they name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieve_rerank.errors import InvalidInputError, require

if TYPE_CHECKING:
    from retrieve_rerank.models.bi_encoder import BiEncoder
    from retrieve_rerank.models.cross_encoder import CrossEncoder

DEMO = "demo"


class FirstStage(str, Enum):
    """What finds the candidates."""

    HYBRID = "hybrid"
    BM25 = "bm25"
    DENSE = "dense"


class PrecisionName(str, Enum):
    """What a model computes in, of what torch takes."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


Demo = Annotated[bool, typer.Option("--demo", help="Use the two small demo models, which need no model hub.")]
BiEncoderName = Annotated[
    str | None, typer.Option("--bi-encoder", metavar="MODEL", help="Hub name or folder of the bi-encoder.")
]
CrossEncoderName = Annotated[
    str | None,
    typer.Option(
        "--cross-encoder",
        metavar="MODEL",
        help="Hub name or folder of the cross-encoder, or the http(s) address of an inference server that runs it.",
    ),
]
CrossEncoderNames = Annotated[
    list[str] | None,
    typer.Option(
        "--cross-encoder",
        metavar="MODEL",
        help="Hub name or folder of a cross-encoder, or the http(s) address of a server; may be repeated.",
    ),
]
PrecisionOption = Annotated[
    PrecisionName, typer.Option("--precision", help="What the models compute in; auto keeps the ranking.")
]
RerankWeight = Annotated[
    float | None,
    typer.Option(
        "--rerank-weight",
        min=0,
        max=1,
        metavar="N",
        help="How much the cross-encoder counts in the order, from 0 (the order before) to 1 (its own), as usual.",
    ),
]
Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1 or mps; left out: the best there is.")
]
Language = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Language of the texts, for BM25: en, de, …, or none; at first en."),
]
Json = Annotated[bool, typer.Option("--json", help="JSON lines, on a terminal too.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error arose, and libraries' warnings.")]


@dataclass(frozen=True, slots=True)
class Models:
    """Which models to use, and how.

    Attributes:
        bi_encoder: A hub name, a folder or `demo`; None is the class's own default.
        cross_encoder: Likewise, or the address of an inference server.
        device: As the classes take it.
        precision: As the classes take it.
    """

    bi_encoder: str | None = None
    cross_encoder: str | None = None
    device: str | None = None
    precision: PrecisionName = PrecisionName.AUTO

    def make_bi_encoder(self) -> BiEncoder:
        """Return the bi-encoder; it loads at its first use."""
        from retrieve_rerank.models.bi_encoder import BiEncoder

        if self.bi_encoder is None:
            return BiEncoder(device=self.device, precision=self.precision.value)
        model = _demo(0) if self.bi_encoder == DEMO else self.bi_encoder
        return BiEncoder(model, device=self.device, precision=self.precision.value)

    def make_cross_encoder(self) -> CrossEncoder:
        """Return the cross-encoder; it loads at its first use."""
        from retrieve_rerank.models.cross_encoder import CrossEncoder

        if self.cross_encoder is None:
            return CrossEncoder(device=self.device, precision=self.precision.value)
        if self.cross_encoder.startswith(("http://", "https://")):
            return CrossEncoder(endpoint=self.cross_encoder, device=self.device, precision=self.precision.value)
        model = _demo(1) if self.cross_encoder == DEMO else self.cross_encoder
        return CrossEncoder(model, device=self.device, precision=self.precision.value)


def model_name(given: str | None, *, demo: bool) -> str | None:
    """Return the model that an option names; a folder in full, as it may be wanted from another place.

    Raises:
        InvalidInputError: If the option is there and empty.
    """
    if given is None:
        return DEMO if demo else None
    if not given.strip():
        raise InvalidInputError("the name of a model is empty; give a hub name or a folder")
    folder = Path(given).expanduser()
    return str(folder.resolve()) if folder.is_dir() else given


def check_language(name: str | None) -> None:
    """Raise InvalidInputError where BM25 does not know a language that was named, before anything is made."""
    if name not in (None, "none") and has_bm25():
        from retrieve_rerank.indexes.words import language_name

        language_name(name)


def has_bm25() -> bool:
    """Whether the extra that finds passages by their words is installed."""
    from importlib.util import find_spec

    return find_spec("bm25s") is not None


def check_first_stages(given: list[FirstStage] | None) -> list[str]:
    """Return first stages, each once; without a name, words and vectors together where that is installed."""
    if not given:
        return ["hybrid"] if has_bm25() else ["dense"]
    names = [stage.value for stage in given]
    if set(names) != {"dense"}:
        require("bm25s", extra="hybrid")
    return list(dict.fromkeys(names))


def _demo(place: int) -> Path:
    from retrieve_rerank.demo import demo_models

    return demo_models()[place]
