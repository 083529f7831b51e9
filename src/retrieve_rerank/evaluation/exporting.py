"""Files for other programs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from retrieve_rerank._files import write_text
from retrieve_rerank.evaluation.results import System


def write_json(content: Mapping[str, object], path: Path, what: str) -> None:
    """Write one JSON object, a line a member."""
    members = (f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in content.items())
    write_text("{\n" + ",\n".join(members) + "\n}\n", path, what)


def write_runs(judgements: Mapping[str, Mapping[str, int]], systems: Sequence[System], folder: Path) -> list[Path]:
    """Write `qrels.txt` and a run a system; return the runs' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    qrels = [
        f"{_column(query)} 0 {_column(passage)} {max(relevance, -1)}"  # as they were measured
        for query, scores in judgements.items()
        for passage, relevance in scores.items()
    ]
    _write(qrels, folder / "qrels.txt")
    paths: list[Path] = []
    for system in systems:
        tag = _free_name(system.name, {path.stem.casefold() for path in paths})
        # The rank is the score, so that equal scores cannot reorder what was ranked.
        lines = [
            f"{_column(query)} Q0 {_column(passage)} {rank} {-rank} {tag}"
            for query, ids in system.run.items()
            for rank, passage in enumerate(ids, start=1)
        ]
        paths.append(folder / f"{tag}.run")
        _write(lines, paths[-1])
    return paths


def _column(identifier: str) -> str:
    """Return an id that holds no white space."""
    return "".join(quote(mark) if mark.isspace() or mark == "%" else mark for mark in identifier)


def _free_name(name: str, taken: set[str]) -> str:
    """Return a file name, safe on every system, that is not taken."""
    tag = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "system"
    return next(
        free
        for number in range(1, len(taken) + 2)
        if (free := tag if number == 1 else f"{tag}-{number}").casefold() not in taken
    )


def _write(lines: Sequence[str], path: Path) -> None:
    write_text("".join(f"{line}\n" for line in lines), path, "the run")
