"""Whoever is killed while saving leaves the old index or the new one: real processes, really killed.

BM25_KILLS in the environment sets how often.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.core.stubs import run_python

KILLS = int(os.environ.get("BM25_KILLS", "40"))

SCRIPT = """
    import json, os, random, signal, sys, time
    from pathlib import Path
    from retrieve_rerank import BM25Index, Passage

    path, kills = Path(sys.argv[1]), int(sys.argv[2])
    words = [f"word{number}" for number in range(500)]

    def corpus(seed):
        seeded = random.Random(seed)
        ids = [f"{seed if number % 2 else 'shared'}-{number}" for number in range(1500)]
        return [Passage(id, " ".join(seeded.choices(words, k=30)), {"seed": seed}) for id in ids]

    queries = ["word1 word2 word3", "word77", "word499 word0"]
    corpora = [corpus(0), corpus(1)]
    ids = sorted({passage.id for passages in corpora for passage in passages})

    def state(index):
        return index.get(ids), index.retrieve_many(queries, 50)

    states = []
    for passages in corpora:
        with BM25Index() as index:
            index.add(passages)
            states.append(state(index))

    def change(index, to):
        # Half of it is replaced in place, the other half goes.
        index.delete([passage.id for passage in corpora[1 - to]][1::2])
        index.add(corpora[to])

    with BM25Index(path=path) as index:
        index.add(corpora[0])
        index.save()
        change(index, 1)
        begin = time.perf_counter()
        index.save()
        seconds = time.perf_counter() - begin

    is_now, seen = 1, {"old": 0, "new": 0, "half": 0}
    seeded = random.Random(7)
    for _ in range(kills):
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            index = BM25Index(path=path)
            change(index, 1 - is_now)
            index.retrieve("word1")
            os.write(tell, b"x")
            index.save()
            os._exit(0)
        os.close(tell)
        assert os.read(ready, 1) == b"x"
        os.close(ready)
        time.sleep(seeded.uniform(0, 1.6 * seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen["half"] += len(list(path.glob("generation-*"))) > 1
        with BM25Index(path=path) as index:
            found = state(index)
        assert found in states, "neither the old index nor the new one"
        seen["old" if found == states[is_now] else "new"] += 1
        # A machine that is busy saves slower, or faster, than it did: the kills follow it.
        seconds *= 1.15 if found == states[is_now] else 0.9
        is_now = states.index(found)
    with BM25Index(path=path) as index:  # and it can be written on
        change(index, 1 - is_now)
        index.save()
        assert state(index) == states[1 - is_now]
    assert len(list(path.glob("generation-*"))) == 1
    print(json.dumps(seen))
"""


@pytest.mark.skipif(not hasattr(os, "fork") or not hasattr(signal, "SIGKILL"), reason="no fork here")
def test_killed_while_saving(tmp_path: Path) -> None:
    seen = json.loads(run_python(SCRIPT, str(tmp_path), str(KILLS), timeout=60 + KILLS, warnings="ignore"))
    assert seen["old"] + seen["new"] == KILLS
    assert min(seen["old"], seen["new"], seen["half"]) > 0, seen  # the kills were not all too early or too late
