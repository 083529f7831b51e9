"""The settings of both models: the name, type, default, meaning and check of each, said once.

`ModelOptions` and its two kinds give type checkers and editors the keywords of a constructor that takes
`**settings: Unpack[BiEncoderOptions]`; `ModelSettings` and its two kinds are the same as pydantic fields, with the
defaults, meanings and checks. A component of a framework inherits the fields, before the framework's own base class:
`class Embeddings(BiEncoderSettings, Framework)`. It makes its model by `self.make(BiEncoder, name)`; its pickles hold
no secret; and to validate it from a mapping or from JSON is to read it back. `documented` completes a class's docstring
and signature.

A configuration that is read back, from a dump, a file, a folder or a pickle, was written by who knows whom. Every door
makes what it makes of one inside of `with reading_back():`. There, no model runs its checkpoint's code, no secret is
taken from what was read, and the environment's key goes to no address that only stands there.
"""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar, cast
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.fields import FieldInfo
from typing_extensions import Self, TypedDict

from retrieve_rerank.checks import check_count, check_mapping, check_prompt, check_seconds
from retrieve_rerank.errors import InvalidInputError, shown
from retrieve_rerank.models.calibration import Calibration, as_calibration
from retrieve_rerank.models.precision import Precision
from retrieve_rerank.types import Metric, Scale

Backend = Literal["auto", "torch", "openvino"]
Protocol = Literal["tei", "infinity", "vllm", "openai"]
LongPassages = Literal["truncate", "windows"]
Argument: TypeAlias = str | int | float | bool | tuple[float, float] | None  # of a model, but for secrets

KEY_VARIABLE = "RETRIEVE_RERANK_API_KEY"  # looked at if no key is given, as in a process that got no pickled one
ENDPOINT_VARIABLE = "RETRIEVE_RERANK_ENDPOINT"  # the address that the environment's key is for

_PRECISIONS: dict[str, tuple[str, ...]] = {
    "auto": ("auto", "float32", "bfloat16", "float16"),
    "torch": ("auto", "float32", "bfloat16", "float16"),
    "openvino": ("auto", "float32", "bfloat16"),
}
LEFT_BEHIND = {"token": None, "api_key": None, "trust_remote_code": False}  # by pickles
# In a model's docstring, what stands for the settings that both models share.
_OTHERS = "**settings: Every other argument is explained in `retrieve_rerank.models.settings`."

M = TypeVar("M")
K = TypeVar("K", bound=type)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a model must run for a setting to mean something; one without a place is for both.

    Attributes:
        elsewhere: What is said of the setting if it is given and the model runs elsewhere.
    """

    elsewhere: str


_LOCAL = _Place("cannot be given together with endpoint: the server decides it. Set it there")
_TOKENIZER = _Place(
    "cannot be given together with endpoint: it needs the model's tokenizer, which the server keeps; split long "
    "passages before they are indexed, or run the model in this process"
)
_SERVED = _Place("can be given for a server only; give endpoint, too")


def _check_count(value: int, info: ValidationInfo) -> int:
    return check_count(value, str(info.field_name))


def _check_prompt(value: str | None, info: ValidationInfo) -> str | None:
    return check_prompt(value, str(info.field_name))


def _check_seconds(value: float | None, info: ValidationInfo) -> float | None:
    return check_seconds(value, str(info.field_name))


def _check_key(value: str | None) -> str | None:
    if value is not None and (not isinstance(value, str) or not _sendable(value)):
        raise InvalidInputError("api_key must be a string of ASCII characters in one line; what was given is not")
    return value


def _check_url(url: str | None) -> str | None:
    # Never shown in an error: there may be a password in it.
    if url is None:
        return None
    if not isinstance(url, str):
        raise InvalidInputError(f"endpoint must be a URL such as 'http://localhost:8080', got {type(url).__name__}")
    try:
        parts = urlsplit(url.strip())
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise InvalidInputError("endpoint must be a URL such as 'http://localhost:8080'; what was given is none")
    if "@" in parts.netloc:
        raise InvalidInputError(
            "endpoint has a user or a password in it, which would be written wherever an address is; give it as "
            "api_key='Basic …', with user:password in base64"
        )
    if parts.query or parts.fragment:
        raise InvalidInputError("endpoint must end with its path: no ?query and no #fragment; give a key as api_key")
    return url.strip().rstrip("/")


def _check_calibration(value: object) -> tuple[float, float] | None:
    """Return temperature and offset: what is written down needs no file to be read back."""
    if value is None:
        return None
    if isinstance(value, (str, os.PathLike)) and _reading.get() is not None:
        raise InvalidInputError("calibration of a configuration is a temperature and an offset, not the path of a file")
    found = as_calibration(value)
    return found.temperature, found.offset


def _as_text(value: object) -> object:
    """Return a path, or torch's own object for a device, as the text that names it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return str(value) if type(value).__module__ == "torch" else value


_Count: TypeAlias = Annotated[int, BeforeValidator(_check_count)]
_Prompt: TypeAlias = Annotated[str | None, BeforeValidator(_check_prompt)]
_Text: TypeAlias = Annotated[str | None, BeforeValidator(_as_text)]

_setting = partial(Field, frozen=True)  # what a model was made of cannot change under it
_secret = partial(_setting, exclude=True, repr=False)


class ModelOptions(TypedDict, total=False):
    """The keywords of `ModelSettings`."""

    device: str | None
    precision: Precision
    backend: Backend
    revision: str | None
    cache_folder: str | os.PathLike[str] | None
    local_files_only: bool
    token: str | bool | None
    trust_remote_code: bool
    max_length: int | None
    batch_tokens: int | None
    endpoint: str | None
    api_key: str | None
    protocol: Protocol | None
    timeout: float
    max_concurrency: int


class BiEncoderOptions(ModelOptions, total=False):
    """The keywords of `BiEncoderSettings`."""

    query_prompt: str | None
    document_prompt: str | None
    normalize: bool | None
    truncate_dim: int | None
    metric: Metric | None


class CrossEncoderOptions(ModelOptions, total=False):
    """The keywords of `CrossEncoderSettings`."""

    prompt: str | None
    long_passages: LongPassages
    max_windows: int
    server_scores: Scale | None
    calibration: Calibration | tuple[float, float] | str | os.PathLike[str] | None


class ModelSettings(BaseModel):
    """What both models can be told. The name of a model is none of its settings."""

    model_config = ConfigDict(
        extra="forbid",
        protected_namespaces=(),
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # there may be a key in it
    )

    device: Annotated[_Text, _LOCAL] = _setting(default=None)
    """ "cpu", "cuda", "cuda:1", "mps"; None takes the best there is."""
    precision: Annotated[Precision, _LOCAL] = _setting(default="auto")
    """ "auto" takes bfloat16 (or float16) where the processor or GPU computes in it, else float32. Vectors and logits
    always leave in float32. The model's own `precision` says what was chosen."""
    backend: Annotated[Backend, _LOCAL] = _setting(default="auto")
    """What computes the network: "torch"; "openvino", on the processor, in float32 or bfloat16; "auto" takes OpenVINO
    where it is installed, the model is an encoder such as BERT on an x86 processor, and what OpenVINO makes of a few
    texts is what torch does; else torch. The model's `repr` says which one, and why. For OpenVINO, the network is
    converted at the first load, and kept in `cache_folder`, or beside the Hugging Face cache."""
    revision: Annotated[str | None, _LOCAL] = _setting(default=None)
    """Branch, tag or commit on the hub."""
    cache_folder: Annotated[_Text, _LOCAL] = _setting(default=None)
    """Where downloads are kept; None is the hub client's default."""
    local_files_only: Annotated[bool, _LOCAL] = _setting(default=False)
    """Never ask the hub."""
    token: Annotated[str | bool | None, _LOCAL] = _secret(default=None)
    """Hub token for private models. Never written down; in another process, set HF_TOKEN."""
    trust_remote_code: Annotated[bool, _LOCAL] = _setting(default=False)
    """Run code that comes with the checkpoint. Only for repositories whose code you have read. A configuration that is
    read back cannot switch it on, and a pickle leaves it behind."""
    max_length: Annotated[_Count | None, _LOCAL] = _setting(default=None)
    """Tokens that are read of a text, or of query and passage together; None takes the model's own limit."""
    batch_tokens: Annotated[_Count | None, _LOCAL] = _setting(default=None)
    """Tokens, with padding, that are computed in one batch; None takes what suits the device. Results depend on
    it no more than the precision rounds: in float32 not visibly. Less takes less memory, more may keep a large GPU
    busier."""
    endpoint: Annotated[str | None, BeforeValidator(_check_url), _SERVED] = _setting(default=None)
    """Address of an inference server that runs the model instead, such as "http://localhost:8080": Text Embeddings
    Inference, Infinity, vLLM, or another with OpenAI's `/embeddings` or Cohere's `/rerank`. What only concerns a model
    in this process cannot be given with it. `model` is then the name that the server knows it by; without it, the only
    one that it serves."""
    api_key: Annotated[str | None, BeforeValidator(_check_key), _SERVED] = _secret(default=None)
    """Sent to the server in the Authorization header, and never written down; None takes the environment's
    RETRIEVE_RERANK_API_KEY, if there is one. That goes to an address that the caller gave; to one that was read back
    (from a file, a dump or a pickle) only if the environment's RETRIEVE_RERANK_ENDPOINT names the same."""
    protocol: Annotated[Protocol | None, _SERVED] = _setting(default=None)
    """What the server speaks: "tei", "infinity", "vllm" or "openai"; None asks it."""
    timeout: Annotated[float, BeforeValidator(_check_seconds), _SERVED] = _setting(default=60.0)
    """Seconds that one answer of the server may take."""
    max_concurrency: Annotated[_Count, _SERVED] = _setting(default=8)
    """Requests to the server that are under way at once, for all callers together."""

    _given: Collection[str] | None = PrivateAttr(default=None)  # as `reading_back` takes it; None if nothing was read

    if not TYPE_CHECKING:  # checkers read the arguments off the fields

        def __init__(self, *arguments: Any, **fields: Any) -> None:
            # Whoever calls the constructor gives arguments; all other ways lead over a configuration.
            called = _called.set(type(self))
            try:
                super().__init__(*arguments, **fields)
            finally:
                _called.reset(called)

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], **LEFT_BEHIND}}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        with reading_back():  # LlamaIndex calls the constructor
            super().__setstate__(state)
        self._given = ()

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Return the settings that a model's constructor was given, checked.

        Raises:
            InvalidInputError: If one of them cannot be used.
            TypeError: If there is no such setting.
        """
        if unknown := [name for name in arguments if name not in cls.model_fields]:
            raise TypeError(
                f"unexpected keyword argument {unknown[0]!r}; the settings are {', '.join(cls.model_fields)}"
            )
        try:
            return cls(**arguments)
        except ValidationError as error:
            raise InvalidInputError(in_words(error)) from error

    @property
    def arguments(self) -> dict[str, Any]:
        """The settings by their names, secrets among them, without what a framework's class adds."""
        kind = next(base for base in type(self).__mro__ if base.__module__ == __name__)
        return {name: getattr(self, name) for name in cast("type[ModelSettings]", kind).model_fields}

    @property
    def changed_settings(self) -> list[str]:
        """Names of the settings that are not the defaults."""
        return [name for name, value in self.arguments.items() if value != type(self).model_fields[name].default]

    @property
    def shown(self) -> dict[str, Any]:
        """The settings that count where the model runs, by their names, without secrets."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in self.arguments.items()
            if not fields[name].exclude and not self._misplaced(fields[name])
        }

    def make(self, kind: Callable[..., M], model: str | os.PathLike[str]) -> M:
        """Return a model of these settings: `kind(model, …)`.

        Args:
            kind: The class.
            model: Its name.
        """
        if self._given is None:
            self._given = _reading.get()
        with reading_back(self._given) if self._given is not None else nullcontext():
            return kind(model, **self.arguments)

    @model_validator(mode="wrap")  # "before" comes after the constructor where a class has one of its own
    @classmethod
    def _read_back(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if _called.get() is cls or not isinstance(data, Mapping):
            return handler(data)
        check_mapping(data, "a configuration")
        with reading_back():
            return handler(data)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, setting in type(self).model_fields.items():
            if (place := self._misplaced(setting)) and getattr(self, name) != setting.default:
                raise InvalidInputError(f"{name} {place.elsewhere}")
        if self.precision not in _PRECISIONS[self.backend]:
            able = " or ".join(f"backend={other!r}" for other, known in _PRECISIONS.items() if self.precision in known)
            raise InvalidInputError(
                f"precision={self.precision!r} needs {able}; backend={self.backend!r} computes in "
                f"{', '.join(_PRECISIONS[self.backend])}"
            )
        if self.backend == "openvino" and self.device not in (None, "cpu"):
            raise InvalidInputError(
                f"backend={self.backend!r} runs on the processor here, got device={shown(self.device)}; leave device "
                "out, or use backend='torch' for a GPU"
            )
        return self

    def _misplaced(self, setting: FieldInfo) -> _Place | None:
        """Return the place of a setting that means nothing where this model runs."""
        places = (place for place in setting.metadata if isinstance(place, _Place))
        return next((place for place in places if (place is _SERVED) is (self.endpoint is None)), None)


class BiEncoderSettings(ModelSettings):
    """What a bi-encoder can be told."""

    query_prompt: _Prompt = _setting(default=None)
    """Text put before every query; None takes the model's saved prompt, "" takes none. No saved prompt is known of a
    model at a server: one that it was trained with must be given."""
    document_prompt: _Prompt = _setting(default=None)
    """Text put before every passage; None takes the model's saved prompt, "" takes none."""
    normalize: bool | None = _setting(default=None)
    """Scale vectors to length 1 (True), leave them as they are (False), or do as the model does (None). Text Embeddings
    Inference does not know what the model does, and scales, unless `metric` is "dot" or "euclidean"."""
    truncate_dim: _Count | None = _setting(default=None)
    """Keep the first dimensions only, for models trained for it; None takes the number that the model has
    saved, if any."""
    metric: Annotated[Metric | None, _SERVED] = _setting(default=None)
    """What a server's vectors are compared by, which no server tells; None takes "cosine" where their length is 1, and
    asks for it where it is not."""


class CrossEncoderSettings(ModelSettings):
    """What a cross-encoder can be told."""

    prompt: Annotated[_Prompt, _LOCAL] = _setting(default=None)
    """Instruction put before the pair, or where the model's chat template has its place; None takes the model's saved
    prompt, "" takes none."""
    long_passages: Annotated[LongPassages, _TOKENIZER] = _setting(default="truncate")
    """What is done with a passage that is longer than the model reads with the query. "truncate" scores its beginning;
    "windows" cuts it into overlapping windows at sentence borders, scores each, and keeps the best. Either way the
    query is never cut, and what was not read is reported."""
    max_windows: Annotated[_Count, _TOKENIZER] = _setting(default=16)
    """How many windows of one passage are scored at most; of one that has more, as many are taken, spread evenly over
    its text."""
    server_scores: Annotated[Scale | None, _SERVED] = _setting(default=None)
    """What the server's scores are: "logits", or "probabilities" in [0, 1]; None is logits, for which all kinds are
    asked but "openai", whose standard has probabilities only. Of these the logits are computed, up to where they reach
    0 or 1."""
    calibration: Annotated[tuple[float, float] | None, BeforeValidator(_check_calibration)] = _setting(default=None)
    """How a relevance is made of a logit: what `CrossEncoder.calibrate` returned, the file that it was saved to, or a
    temperature and an offset. None takes what the checkpoint or its family states, else the sigmoid of the logit, which
    is a probability only if the model was trained for it. The order never depends on it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An inference server.

    Attributes:
        url: Without a slash at its end; never with a user or a password in it.
        api_key: As in `ModelSettings`.
        protocol: What it speaks; None asks it.
        timeout: Seconds that one answer may take.
        max_concurrency: Requests that are under way at once.
        vouched: Whether the caller gave the address; if not, it was read back.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    protocol: Protocol | None = None
    timeout: float = 60.0
    max_concurrency: int = 8
    vouched: bool = True

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        key = self._key
        if not key:
            return {}
        if not _sendable(key):
            raise InvalidInputError(
                f"{KEY_VARIABLE} must be ASCII characters in one line; what the environment has is not"
            )
        return {"Authorization": key if key.startswith(("Bearer ", "Basic ")) else f"Bearer {key}"}

    @property
    def key_advice(self) -> str:
        """What to do where the server wants another key, or any."""
        if self.api_key or self._vouched or not os.environ.get(KEY_VARIABLE):
            return "Check api_key"
        return (
            f"The key in {KEY_VARIABLE} was not sent, because this address was read from a configuration. If it is "
            f"right, give endpoint as an argument, or set {ENDPOINT_VARIABLE} to it beside the key"
        )

    def pickled(self) -> Endpoint:
        """Return what a pickle holds of it: no key, and an address that whoever reads it did not give."""
        return replace(self, api_key=None, vouched=False)

    def hide(self, text: str) -> str:
        """Return `text` without the key."""
        key = self._key
        if not key:
            return text
        return text.replace(key, "***").replace(key.split(" ", 1)[-1], "***")

    @property
    def _key(self) -> str | None:
        return self.api_key or (os.environ.get(KEY_VARIABLE) if self._vouched else None) or None

    @property
    def _vouched(self) -> bool:
        return self.vouched or os.environ.get(ENDPOINT_VARIABLE, "").strip().rstrip("/") == self.url


@contextmanager
def reading_back(given: Collection[str] = ()) -> Iterator[None]:
    """Tell whatever is made inside that its settings were read back, and are no arguments of a call.

    Args:
        given: Names of the settings that the caller did give as arguments, beside what was read. Inside of another
            `reading_back`, those of the outermost count.
    """
    outer = _reading.get()
    token = _reading.set(frozenset(given) if outer is None else outer)
    try:
        yield
    finally:
        _reading.reset(token)


def vouched(model: str, arguments: Mapping[str, Any]) -> bool:
    """Return whether the caller gave the endpoint among these settings, which may have been read back.

    Args:
        model: The model's name, for errors.
        arguments: All settings.

    Raises:
        InvalidInputError: If settings that were read back ask for what only a caller may.
    """
    given = _reading.get()
    if given is None:
        return True
    if arguments["trust_remote_code"] and "trust_remote_code" not in given:
        raise InvalidInputError(
            f"the configuration asks to run code that comes with the checkpoint {model!r}; if you have read that code, "
            "allow it with the argument trust_remote_code=True of the call that reads the configuration, or make the "
            "model in code"
        )
    for name in ("token", "api_key"):
        if isinstance(arguments[name], str) and name not in given:
            raise InvalidInputError(
                f"the configuration has a {name} in it, and no secret is taken from what is read; give it as an "
                f"argument, or set {'HF_TOKEN' if name == 'token' else KEY_VARIABLE} in the environment"
            )
    return "endpoint" in given


def in_words(error: ValidationError) -> str:
    """Return what pydantic found wrong in this package's words, which do not show what was given as a secret."""
    said: dict[str, None] = {}
    for fault in error.errors(include_url=False):
        name = str(fault["loc"][0]) if fault["loc"] else ""
        reason = fault.get("ctx", {}).get("error")
        if isinstance(reason, Exception):  # a check of ours
            said[str(reason) if name in str(reason) else f"{name}: {reason}"] = None
        elif fault["type"] == "literal_error":
            said[f"{name} must be {fault['ctx']['expected']}; got {shown(fault['input'])}"] = None
        else:
            said[f"{name}: {fault['msg']}, got {type(fault['input']).__name__}"] = None
    return "; ".join(said)


def documented(settings: type[ModelSettings]) -> Callable[[K], K]:
    """Return a decorator that completes a class's signature, and its docstring where `_OTHERS` stands."""

    def put(kind: K) -> K:
        own = inspect.signature(kind)
        parameters = [part for name, part in own.parameters.items() if name not in settings.model_fields]
        parameters = [part for part in parameters if part.kind is not part.VAR_KEYWORD]
        for name, setting in settings.model_fields.items():
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=setting.default))
        cast(Any, kind).__signature__ = own.replace(parameters=parameters)
        if kind.__doc__ is not None:
            lines = [f"{name}: {setting.description}" for name, setting in settings.model_fields.items()]
            told = "\n".join(textwrap.fill(line, 110, subsequent_indent="    ") for line in lines)
            kind.__doc__ = inspect.cleandoc(kind.__doc__).replace(_OTHERS, textwrap.indent(told, "    ").lstrip())
        return kind

    return put


def _sendable(key: str) -> bool:
    return key.isascii() and key.isprintable() and key == key.strip() and bool(key)


_called: ContextVar[type | None] = ContextVar("_called", default=None)  # whose constructor is under way
_reading: ContextVar[Collection[str] | None] = ContextVar("_reading", default=None)
