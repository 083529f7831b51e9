"""Whoever is killed while changing an index has lost nothing: real processes, really killed, and the same call again.

After each kill, a look at what is there, a resume to the end and a comparison of everything with what was given.
CHROMA_KILLS in the environment sets how often, CHROMA_PASSAGES how many passages, CHROMA_SEED which moments.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.core.stubs import run_python

KILLS = int(os.environ.get("CHROMA_KILLS", "5"))
PASSAGES = int(os.environ.get("CHROMA_PASSAGES", "1500"))
SEED = int(os.environ.get("CHROMA_SEED", "7"))

SCRIPT = """
    import json, os, random, shutil, signal, sys, time
    from pathlib import Path

    import chromadb  # before the forks, which must not open anything in this process
    import numpy as np

    from retrieve_rerank import ChromaIndex, Passage

    path, kills, count, seed = Path(sys.argv[1]), *map(int, sys.argv[2:])
    made = np.random.default_rng(5).normal(size=(count, 24)).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)

    class Table:
        dimension, metric, fingerprint = 24, "cosine", {"model": "table", "dimension": 24}
        encoded = 0

        def encode_documents(self, texts):
            self.encoded += len(texts)
            return made[[int(text.split()[1]) for text in texts]]

        encode_queries = encode_documents

    KINDS = [
        lambda n: {"list": [n, n + 1], "words": ["a", str(n)]},
        lambda n: {"chroma:kept": n, "none": None, "mixed": [1, "a", 0.5]},
        lambda n: {f"key {key}": key / 7 for key in range(60)},
        lambda n: {"huge": 2**80 + n, "tiny": 5e-324, "inf": float("inf"), "": "no key"},
        lambda n: {"long": list(range(7000))} if n % 250 == 4 else {"short": [True, False]},
    ]

    def passage(number):
        metadata = {"n": number, "odd": bool(number % 2), "deep": {"n": [number]}, **KINDS[number % 5](number)}
        return Passage(f"p{number}", f"text {number}", metadata)

    def in_child(work):
        "Run work in a forked child; its answer, or None if it did not live to give one."
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(tell, json.dumps(work()).encode())
            except BaseException as error:
                os.write(tell, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
            os._exit(0)
        os.close(tell)
        return child, ready

    def answer(child, ready):
        content = b""
        while part := os.read(ready, 65536):
            content += part
        os.close(ready)
        os.waitpid(child, 0)
        return json.loads(content) if content else None

    def add(batch_size):
        index = ChromaIndex(Table(), path=path)
        report = index.add((passage(number) for number in range(count)), batch_size=batch_size)
        answer = {"encoded": index.encoder.encoded, "unchanged": report.unchanged}
        index.close()
        return answer

    def clear():
        with ChromaIndex(Table(), path=path) as index:
            index.clear()
            return index.count()

    def repair():
        with ChromaIndex(Table(), path=path) as index:
            report = index.repair()
            return [report.before.is_damaged, report.after.is_damaged]

    def adopt():
        report = ChromaIndex.adopt(Table(), path=path)
        return report.adopted

    def opened_by_chroma():
        return chromadb.PersistentClient(str(path)).get_collection("passages", embedding_function=None)

    def damage():
        "Vectors of other texts, as a second writer through Chroma's own client leaves them."
        ids = [f"p{number}" for number in range(200, 260)]
        opened_by_chroma().update(ids=ids, embeddings=made[:60])

    def disown():
        "A collection that does not say who made its vectors."
        opened_by_chroma().modify(metadata={"made": "elsewhere"})

    def left():
        "How many passages are there, and how many of them are not what was given."
        with ChromaIndex(Table(), path=path) as index:
            stored = [record.passage for record in index.collection.read()]
            assert len({each.id for each in stored}) == len(stored) == index.count()
            return [len(stored), sum(each != passage(each.metadata["n"]) for each in stored)]

    def look(expected=None):
        expected = None if expected is None else np.load(expected)
        given = []
        with ChromaIndex(Table(), path=path, search_breadth=200) as index:  # enough here, and much faster
            stored = {record.id: record.passage for record in index.collection.read()}
            wrong = sum(stored.get(f"p{number}") != passage(number) for number in range(count))
            ids, vectors_off, lost = [f"p{number}" for number in range(count)], 0, 0
            for start in range(0, count, 1000):
                part = ids[start : start + 1000]
                vectors = index.collection.vectors(part)
                given += [vectors[i] for i in part]
                found = index.collection.query(made[start : start + 1000], 1)
                lost += sum(not hits or hits[0].record.id != i for i, hits in zip(part, found))
            every = {found.record.id for found in index.collection.query(made[:1], count + 10)[0]}
            if expected is None:  # Chroma may have changed their last digits, as it scales them
                assert np.allclose(given, made, atol=1e-6)
                np.save(f"{path}.npy", given)
            else:
                vectors_off = int((np.array(given) != expected).any(axis=1).sum())
            state = {"count": index.count(), "wrong": wrong, "vectors": vectors_off, "lost": lost}
            return {**state, "all": len(every)}

    right = {"count": count, "wrong": 0, "vectors": 0, "lost": 0, "all": count}

    def timed(work):
        begin = time.perf_counter()
        done = answer(*in_child(work))
        return done, time.perf_counter() - begin

    # What is changed, how, what the same call says afterwards, and how long it takes.
    kept = {name: Path(f"{path}-{name}") for name in ("whole", "damaged", "strange")}
    seconds = {}
    whole, seconds["add"] = timed(lambda: add(250))
    assert whole == {"encoded": count, "unchanged": 0}, whole
    found = answer(*in_child(look))
    assert found == right, found
    for name, change in (("whole", lambda: None), ("damaged", damage), ("strange", disown)):
        assert answer(*in_child(change)) is None
        shutil.copytree(path, kept[name])
        shutil.rmtree(path)
        shutil.copytree(kept["whole"], path)
    CALLS = {"clear": ("whole", clear, [0]), "repair": ("damaged", repair, [[True, False], [False, False]])}
    CALLS["adopt"] = ("strange", adopt, [True])
    for name, (begun, work, says) in CALLS.items():
        shutil.rmtree(path)
        shutil.copytree(kept[begun], path)
        said, seconds[name] = timed(work)
        assert said == says[0], (name, said)

    def killed_in(number, name):
        "Kill a call at some moment; whether it was still alive."
        shutil.rmtree(path)
        if name == "add":
            # Small batches meet Chroma's rewriting of its files inside a batch, large ones at its end.
            batch_size = seeded.choice([100, 250, 700, 1000])
            child, ready = in_child(lambda: add(batch_size))
        else:
            shutil.copytree(kept[CALLS[name][0]], path)
            child, ready = in_child(CALLS[name][1])
        if name == "add" and number % 2:  # in the middle of the rewriting
            deadline = time.monotonic() + 60
            rounds = seeded.randrange(1, max(2, count // 1000 + 1))
            before = None
            while rounds and time.monotonic() < deadline:
                stamps = sorted(file.stat().st_mtime_ns for file in path.glob("*-*/length.bin") if file.exists())
                if stamps and stamps != before:
                    before, rounds = stamps, rounds - 1
            time.sleep(seeded.choice([0, 0, 0.001, 0.003, 0.01]))
        else:
            time.sleep(seeded.uniform(0, seconds[name]))
        os.kill(child, signal.SIGKILL)
        return answer(child, ready) is None

    seeded = random.Random(seed)
    seen = {"kills": 0, "too late": 0, "encoded again": 0}
    for number in range(kills):
        name = ("add", "add", *CALLS)[number % 5]
        killed = killed_in(number, name)
        seen["kills" if killed else "too late"] += 1
        if name != "add":
            there = answer(*in_child(left))
            assert there == [count, 0] or (name == "clear" and 0 <= there[0] <= count and not there[1]), (name, there)
            said = answer(*in_child(CALLS[name][1]))
            assert said in CALLS[name][2], (number, name, said)
        again = answer(*in_child(lambda: add(250)))
        assert "error" not in again, (number, name, again)
        assert again["encoded"] + again["unchanged"] == count, (number, name, again)
        if name in ("repair", "adopt"):
            assert again["encoded"] == 0, (number, name, again)
        found = answer(*in_child(lambda: look(f"{path}.npy")))
        assert found == right, (number, name, again, found)
        seen["encoded again"] += again["encoded"]
        seen[name] = seen.get(name, 0) + killed
        if kills > 20:
            print(number, name, killed, again, file=sys.stderr, flush=True)
    print(json.dumps(seen))
"""


@pytest.mark.skipif(not hasattr(os, "fork") or not hasattr(signal, "SIGKILL"), reason="no fork here")
def test_killed_while_changing(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "index"), str(KILLS), str(PASSAGES), str(SEED)]
    seen = json.loads(run_python(SCRIPT, *arguments, timeout=120 + KILLS * (5 + PASSAGES / 250), warnings="ignore"))
    assert seen["kills"] + seen["too late"] == KILLS
    assert seen["kills"] > KILLS / 2, seen
