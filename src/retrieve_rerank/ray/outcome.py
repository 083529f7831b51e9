"""What became of a batch, as a worker tells it and as the driver adds it up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from retrieve_rerank import errors
from retrieve_rerank.errors import MissingDependencyError, RetrieveRerankError, in_one_line
from retrieve_rerank.types import AddReport

_SHOWN = 5


class PassagesFailedError(RetrieveRerankError):
    """Some passages could not be stored; all others were. Run it again: what is stored is not encoded again.

    Attributes:
        failures: Why, by the id of each passage that failed.
        report: What became of the others.
    """

    def __init__(self, message: str, failures: Mapping[str, str], report: AddReport) -> None:
        super().__init__(message)
        self.failures = failures
        self.report = report

    def __reduce__(self) -> tuple[type[PassagesFailedError], tuple[str, Mapping[str, str], AddReport]]:
        return PassagesFailedError, (str(self), self.failures, self.report)


@dataclass(frozen=True, slots=True)
class Fault:
    """An error that crossed from a process to another: the name of its class, and its message."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: BaseException) -> Fault:
        """Return an error as plain text, so that any error of any library can travel."""
        if isinstance(error, MissingDependencyError):  # made of other arguments than a message
            return cls("RetrieveRerankError", str(error))
        ours = isinstance(error, RetrieveRerankError) and type(error).__name__ in vars(errors)
        return cls(type(error).__name__, str(error)) if ours else cls("RetrieveRerankError", in_one_line(error))

    def error(self) -> RetrieveRerankError:
        """Return the error again."""
        made: RetrieveRerankError = getattr(errors, self.kind)(self.message)
        return made


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker did with one batch.

    Attributes:
        report: What became of the passages that were stored.
        failures: Why the others were not, by id.
        fault: An error because of which no other batch could be done either.
    """

    report: AddReport = field(default_factory=AddReport)
    failures: Mapping[str, str] = field(default_factory=dict)
    fault: Fault | None = None

    def to_json(self, warning: tuple[str, str] | None = None) -> str:
        """Return it as text, which any column holds, with the kind and message of a warning."""
        return json.dumps({**asdict(self), "warning": warning})

    @classmethod
    def from_json(cls, text: str) -> tuple[Outcome, tuple[str, str] | None]:
        """Return what `to_json` wrote, and the warning."""
        content = json.loads(text)
        fault, warning = content["fault"], content["warning"]
        outcome = cls(AddReport(**content["report"]), content["failures"], None if fault is None else Fault(**fault))
        return outcome, None if warning is None else (warning[0], warning[1])


def failed(failures: Mapping[str, str], report: AddReport, *, stopped: bool) -> PassagesFailedError:
    """Return the error for passages that could not be stored."""
    shown = "; ".join(f"{id_!r}: {reason}" for id_, reason in list(failures.items())[:_SHOWN])
    more = ", …" if len(failures) > _SHOWN else ""
    how = "stopped, as too many passages" if stopped else f"{len(failures)} passages"
    return PassagesFailedError(
        f"{how} could not be stored: {shown}{more}. {_counted(report)}. `failures` of this error has all of them; mend "
        "the cause and run it again: what is stored is not encoded again",
        dict(failures),
        report,
    )


def _counted(report: AddReport) -> str:
    counts: Sequence[str] = [f"{count} {name}" for name, count in asdict(report).items() if count]
    return f"Of the others, {', '.join(counts)}" if counts else "None was stored"
