"""Retrievers over a directory are pickled and copied, also into a process of their own; those in memory say why not."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank import InvalidInputError
from tests.core.stubs import run_python
from tests.frameworks.adapters import Door, ids

PASSAGES = [("a", "alpha alpha"), ("b", "alpha beta"), ("c", "gamma"), ("d", "Running alphas")]


def kept(door: Door, folder: Path, **options: Any) -> list[Any]:
    """Return a retriever by words over a directory, a hybrid of it, and that hybrid re-ranked."""
    words = door.bm25(PASSAGES, path=folder, k=2, **options)
    hybrid = door.hybrid([words, words], weights=[0.5, 1.0])
    model = door.table({text: float(place) for place, (_, text) in enumerate(PASSAGES)})
    return [words, hybrid, door.retriever(hybrid, door.reranker(model), top_n=2)]


@pytest.mark.parametrize(
    "way", [lambda thing: pickle.loads(pickle.dumps(thing)), copy.deepcopy], ids=["pickle", "copy"]
)
@pytest.mark.parametrize("cut", [None, "german", str.split], ids=str)
async def test_the_same_is_found_and_it_is_the_same_directory(door: Door, way: Any, cut: Any, tmp_path: Path) -> None:
    options = {} if cut is None else {"language": cut} if isinstance(cut, str) else {door.cutter: cut}
    things = kept(door, tmp_path, **options)
    for thing in things:
        found = await door.ask(thing, "alpha")
        assert found[0]
        assert await door.ask(way(thing), "alpha") == found
    door.add(way(things[0]), [("new", "alpha alpha alpha")])
    assert "new" in ids((await door.ask(things[0], "alpha"))[0])


def test_what_is_in_memory_cannot_be_taken_along(door: Door) -> None:
    for thing in (door.bm25(PASSAGES), door.hybrid([door.bm25(PASSAGES)])):
        for way in (pickle.dumps, copy.deepcopy):
            with pytest.raises(InvalidInputError, match="in memory: it cannot be pickled or copied"):
                way(thing)


async def test_in_a_process_of_its_own(door: Door, tmp_path: Path) -> None:
    things = kept(door, tmp_path / "words")
    pickled = tmp_path / "retrievers.pickle"
    pickled.write_bytes(pickle.dumps(things))
    script = """
        import pickle, sys
        for thing in pickle.loads(open(sys.argv[1], "rb").read()):
            found = thing.invoke("alphas") if hasattr(thing, "invoke") else thing.retrieve("alphas")
            print(*[getattr(one, "node_id", None) or one.id for one in found], sep="")
    """
    expected = [ids((await door.ask(thing, "alphas"))[0]) for thing in things]
    assert run_python(script, str(pickled), warnings="ignore", forked=True).split() == expected
