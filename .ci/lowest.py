"""Print the lowest version that pyproject.toml admits of each dependency, one requirement a line, for pip.

Usage: python .ci/lowest.py EXTRA...
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib  # every virtual environment has pip

_LOWER_BOUND = re.compile(r"^([\w.-]+)(?:\[[\w,-]+\])?\s*(?:>=|==)\s*([\w.]+)")


def main(extras: list[str]) -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    lowest: dict[str, str] = {}  # of a package that several extras bound, the highest bound holds
    for requirement in wanted:
        if requirement.startswith(project["name"]):
            continue
        if (bound := _LOWER_BOUND.match(requirement)) is None:
            raise SystemExit(
                f"pyproject.toml gives no lower bound for {requirement!r}; add one, such as {requirement}>=1"
            )
        known = lowest.get(bound[1], "0")
        lowest[bound[1]] = max(known, bound[2], key=lambda version: [int(part) for part in version.split(".")])
    print(*(f"{name}=={version}" for name, version in lowest.items()), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
