"""Measures by their names in ir-measures, per question. The only module that imports it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from retrieve_rerank.errors import InvalidInputError, in_one_line, require, shown

ir_measures = require("ir_measures", extra="evaluation")

Run = Mapping[str, Sequence[str]]
Judgements = Mapping[str, Mapping[str, int]]


def check_measures(measures: Sequence[str], judgements: Judgements | None = None) -> tuple[str, ...]:
    """Return the measures' names as ir-measures writes them.

    Args:
        measures: Names.
        judgements: What they will be computed on, where that is known: some measures take low grades only.

    Raises:
        InvalidInputError: If a name is unknown, or the measure cannot be computed here or has no mean.
    """
    if isinstance(measures, str) or not isinstance(measures, Sequence) or not measures:
        raise InvalidInputError(f'measures must be a list of names, such as ["nDCG@10"], got {shown(measures)}')
    highest = max((max(scores.values()) for scores in (judgements or {}).values()), default=1)
    names = []
    for name in measures:
        try:
            measure = ir_measures.parse_measure(str.__str__(name) if isinstance(name, str) else str(name))
        except (NameError, ValueError, RuntimeError) as error:  # the last, of an object that has no text
            raise InvalidInputError(
                f"{shown(name)} is not the name of a measure: {in_one_line(error)}. Expected a name of ir-measures, "
                "such as 'nDCG@10', 'RR@10', 'R@100', 'P@5' or 'AP'"
            ) from error
        cutoff = measure.params.get("cutoff", 1)
        if isinstance(cutoff, bool) or not isinstance(cutoff, int) or cutoff < 1:  # trec_eval's code would crash on it
            raise InvalidInputError(f"the cut-off of {name!r} must be a whole number >= 1")
        if not isinstance(measure.aggregator(), ir_measures.MeanAgg):
            raise InvalidInputError(f"{name!r} is a count, not a measure that has a mean over questions")
        try:  # now, not after an hour of scoring
            trial = {"1": {"a": max(1, highest), "b": 0}}  # numbers, as in `per_query`
            list(ir_measures.iter_calc([measure], trial, {"1": {"b": 2, "a": 1}}))
        except Exception as error:  # whatever the program behind the measure throws
            grades = f", where a grade is {highest} (ERR and nDCG of exp-log2 take 4 at most)" if highest > 4 else ""
            raise InvalidInputError(f"ir-measures cannot compute {name!r} here{grades}: {error!r}") from error
        names.append(str(measure))
    return tuple(dict.fromkeys(names))


def cutoff(measure: str) -> int | None:
    """Return the depth that a measure looks at, if it has one."""
    value = ir_measures.parse_measure(measure).params.get("cutoff")
    return value if isinstance(value, int) else None


def per_query(measures: Sequence[str], judgements: Judgements, run: Run) -> dict[str, dict[str, float]]:
    """Return the value of each measure for each judged question that it has one for.

    A question for which nothing was found has a measure's worst value. A measure such as Accuracy, which compares the
    relevant passages found with the others found, has none where there are not both.

    Args:
        measures: Names that `check_measures` returned.
        judgements: Relevance by question and passage.
        run: Passage ids by question, best first, without repeats.

    Raises:
        InvalidInputError: If ir-measures fails.
    """
    qrels, scored, queries = {}, {}, {}
    for number, (query, scores) in enumerate(judgements.items(), start=1):
        # Numbers stand for ids: what computes ERR takes no others for questions, and none with white space.
        queries[query] = str(number)
        ids = {passage: str(n) for n, passage in enumerate(dict.fromkeys([*run.get(query, ()), *scores]), start=1)}
        # What computes them counts levels from 0, and writes beside its memory where all of a question's are below -1.
        qrels[str(number)] = {ids[passage]: max(score, -1) for passage, score in scores.items()}
        # A question without hits is left out: some measures divide by the number of hits, and all count what is missing
        # as their worst. The place from the end is the score, so equal scores cannot reorder what was ranked, and
        # Compat, for which what was not found has the score 0, takes nothing found for worse than that.
        if found := run.get(query):
            scored[str(number)] = {ids[passage]: float(len(found) - place) for place, passage in enumerate(found)}
    values: dict[str, dict[str, float]] = {}
    for name in measures:
        # One at a time: among others, ir-measures gives what has no value the value 0.
        try:
            found_values = _values(ir_measures.parse_measure(name), qrels, scored)
        except Exception as error:  # whatever the program behind the measure throws
            raise InvalidInputError(f"ir-measures cannot compute {name!r} of these rankings: {error!r}") from error
        values[name] = {query: found_values[number] for query, number in queries.items() if number in found_values}
    return values


def _values(
    measure: Any, qrels: Mapping[str, Mapping[str, int]], run: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Return the values of one measure, without those that are no numbers."""
    try:
        found = {one.query_id: float(one.value) for one in ir_measures.iter_calc([measure], qrels, run)}
    except ZeroDivisionError:  # of a question for which it is not defined, and the others' are lost with it
        if len(qrels) == 1:
            return {}
        found = {}
        for query, scores in qrels.items():
            found.update(_values(measure, {query: scores}, {query: run[query]} if query in run else {}))
    return {query: value for query, value in found.items() if not math.isnan(value)}
