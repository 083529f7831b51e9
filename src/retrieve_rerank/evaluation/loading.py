"""An evaluation read back from its JSON file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.evaluation import presenting
from retrieve_rerank.evaluation.evaluation import FORMAT, Evaluation
from retrieve_rerank.evaluation.results import Comparison, Latency, System

T = TypeVar("T")


def read_evaluation(path: Path) -> Evaluation:
    """Read what `Evaluation.to_json` wrote.

    Raises:
        InvalidInputError: If the file is missing, is something else, or is of another version's format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read as an evaluation: {error}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise InvalidInputError(
            f"{path} is not an evaluation that this version reads (format {found!r}, expected {FORMAT}); "
            "write it anew with Evaluation.to_json"
        )
    if "systems" not in content:
        raise InvalidInputError(
            f"{path} is no evaluation: it has no systems. Evaluation.to_json (retrieve-rerank evaluate --save) writes "
            "one; a setting that was tuned is another file"
        )
    try:
        evaluation = _evaluation(content)
        _check(evaluation)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInputError(f"{path} is not a whole evaluation: {type(error).__name__} {error}") from error
    return evaluation


def _evaluation(content: Any) -> Evaluation:
    return Evaluation(
        dataset=_text(content["dataset"]),
        weak=_optional(_text)(content["weak"]),
        measures=_row(_text)(content["measures"]),
        judgements=_table(_table(_whole))(content["judgements"]),
        systems=_row(_system)(content["systems"]),
        comparisons=_row(_comparison)(content["comparisons"]),
        notes=_row(_text)(content["notes"]),
        passages=_whole(content["passages"]),
        resamples=_whole(content["resamples"]),
        seed=_whole(content["seed"]),
        machine=_table(lambda value: value if isinstance(value, str) else _whole(value))(content["machine"]),
        queries=_table(_text)(content["queries"]),
        texts=_table(_text)(content["texts"]),
    )


def _system(content: Any) -> System:
    return System(
        name=_text(content["name"]),
        baseline=_optional(_text)(content["baseline"]),
        description=_text(content["description"]),
        fetch_k=_whole(content["fetch_k"]),
        run=_table(_row(_text))(content["run"]),
        per_query=_table(_table(_number))(content["per_query"]),
        means=_table(_number)(content["means"]),
        ceiling=_table(_number)(content["ceiling"]),
        unjudged=_table(_whole)(content["unjudged"]),
        retrieve=_latency(content["retrieve"]),
        rerank=_optional(_latency)(content["rerank"]),
        pairs=_whole(content["pairs"]),
        truncated=_whole(content["truncated"]),
        scores=_table(_row(_optional(_number)))(content["scores"]),
        cut=_table(_row(_whole))(content["cut"]),
        total=_optional(_latency)(content.get("total")),
    )


def _latency(content: Any) -> Latency:
    return Latency(_number(content["p50"]), _number(content["p95"]), content["estimated"] is True)


def _comparison(content: Any) -> Comparison:
    return Comparison(
        system=_text(content["system"]),
        baseline=_text(content["baseline"]),
        measure=_text(content["measure"]),
        difference=_number(content["difference"]),
        low=_number(content["low"]),
        high=_number(content["high"]),
        p=_number(content["p"]),
        p_holm=_number(content["p_holm"]),
        wins=_whole(content["wins"]),
        ties=_whole(content["ties"]),
        losses=_whole(content["losses"]),
    )


def _check(evaluation: Evaluation) -> None:
    """Raise where one part names what another lacks: now, and not when a report is half written."""
    questions = set(evaluation.judgements)
    for system in evaluation.systems:
        for values in (system.run, *(system.per_query[name] for name in evaluation.measures)):
            if set(values) != questions:
                raise ValueError(f"system {system.name!r} has other questions than the judgements")
        if system.baseline is not None:
            found = evaluation[system.baseline].run
            if any(set(ids) != set(found[query]) for query, ids in system.run.items()):
                raise ValueError(f"system {system.name!r} ranks other passages than its first stage")
            for measure in evaluation.measures:
                evaluation.comparison(system.name, measure)
    presenting.markdown(evaluation)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no string")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r:.40} is no whole number")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r:.40} is no number")
    return float(value)


def _optional(kind: Callable[[Any], T]) -> Callable[[Any], T | None]:
    return lambda value: None if value is None else kind(value)


def _row(kind: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    def read(value: Any) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise TypeError(f"{value!r:.40} is no list")
        return tuple(kind(item) for item in value)

    return read


def _table(kind: Callable[[Any], T]) -> Callable[[Any], Mapping[str, T]]:
    return lambda value: {name: kind(item) for name, item in value.items()}
