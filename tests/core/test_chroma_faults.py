"""What strangers, full disks, stopped processes and Chroma itself do to an index, and what becomes of it."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest

from retrieve_rerank import ChromaIndex, InvalidInputError, Passage, RetrieveRerankError
from tests.core.stubs import LetterEncoder, letters, passages, run_python

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")


def stranger(path: Path, **options: Any) -> tuple[Any, chromadb.Collection]:
    """Chroma's own client of a directory, and a collection that it made."""
    client = chromadb.PersistentClient(str(path.resolve()))
    configuration: Any = {"hnsw": {"space": "cosine"}}
    made = client.create_collection("passages", configuration=configuration, embedding_function=None, **options)
    return client, made


# What Chroma logs and cannot apply


@pytest.mark.parametrize("metadata", [{"pages": list(range(7_000)), "x": 1}, {"list": [1.0, float("nan")], "x": 1}])
@pytest.mark.parametrize("ours", [True, False])
def test_an_index_whose_log_is_stuck_is_said_to_be_and_put_right(
    tmp_path: Path, metadata: dict[str, Any], ours: bool
) -> None:
    client, theirs = stranger(tmp_path)
    theirs.upsert(ids=["a"], documents=["aa"], embeddings=np.array([letters("aa")]), metadatas=[{"x": 1}])
    if ours:
        ChromaIndex(LetterEncoder(), client=client).add([Passage("b", "bb")])
    with pytest.raises(chromadb.errors.ChromaError):
        theirs.upsert(ids=["odd"], documents=["cc"], embeddings=np.array([letters("cc")]), metadatas=[metadata])
    client.close()
    with ChromaIndex(LetterEncoder(), path=tmp_path) as index:
        for call in (index.count, lambda: index.retrieve("a"), lambda: index.add(passages("d")), index.clear):
            with pytest.raises(RetrieveRerankError, match=r"more metadata than Chroma can apply.*repair\(\)"):
                call()
        found = index.check()
        assert (found.ok, found.stuck) == (False, ("odd",))
        assert "every call fails" in str(found)
        report = index.repair()
        assert (report.before.ok, report.after.ok) == (False, True)
        (odd,) = index.get(["odd"])
        kept, given = (json.dumps(one, sort_keys=True).replace("NaN", "null") for one in (odd.metadata, metadata))
        assert kept == given
        assert index.retrieve("c", k=1, where={"x": 1})[0].passage.id == "odd"
        index.add([Passage("later", "dd")])
    with ChromaIndex(LetterEncoder(), path=tmp_path) as index:
        assert sorted(index.collection.ids()) == ["a", *(["b"] if ours else []), "later", "odd"]
        assert index.check().ok


# A stranger's embedding function


class Planted:
    """An embedding function that must not be made of what is stored."""

    made = 0

    @staticmethod
    def name() -> str:
        return "planted"

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> Planted:
        Planted.made += 1
        raise AssertionError("code of a stranger's choice ran")


@pytest.mark.parametrize("place", ["configuration", "schema", "sparse"])
@pytest.mark.parametrize("door", ["index", "adopt", "live"])
def test_an_embedding_function_that_is_stored_is_never_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, door: str
) -> None:
    from chromadb.utils import embedding_functions as functions

    for known in (functions.known_embedding_functions, functions.sparse_known_embedding_functions):
        monkeypatch.setitem(known, "planted", Planted)
    client, theirs = stranger(tmp_path)
    theirs.upsert(ids=["a"], documents=["aa"], embeddings=np.array([letters("aa")]))
    client.close()
    _plant(tmp_path, place)
    shutil.copytree(tmp_path, tmp_path / "copy")
    client = chromadb.PersistentClient(str((tmp_path / "copy").resolve()))
    theirs = client.get_collection("passages", embedding_function=None)
    with suppress(ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.upsert(ids=["b"], documents=["bb"], embeddings=np.array([letters("bb")]))
    assert Planted.made, "Chroma builds it no longer: this shows nothing"
    client.close()
    monkeypatch.setattr(Planted, "made", 0)
    if door == "adopt":
        assert ChromaIndex.adopt(LetterEncoder(), path=tmp_path).adopted
    client = chromadb.PersistentClient(str(tmp_path.resolve()))
    if door == "live":
        from retrieve_rerank.indexes.records import Record
        from retrieve_rerank.indexes.store import ChromaCollection

        collection = ChromaCollection("-", handle=client.get_collection("passages", embedding_function=None))
        collection.write([Record("b", "bb", {"x": 1})], [letters("bb")])
        collection.upsert([Record("b", "bb", {"x": 2})], LetterEncoder().encode_documents)
    else:
        with ChromaIndex(LetterEncoder(), path=tmp_path) as index:
            index.add([Passage("b", "bb", {"x": 1})])
            index.add([Passage("b", "bb", {"x": 2})])
            assert index.check().ok
            assert index.retrieve("b", k=1)[0].passage.metadata == {"x": 2}
            index.delete(["a"])
    assert Planted.made == 0
    client.close()


def _plant(folder: Path, place: str) -> None:
    import sqlite3
    from contextlib import closing

    function = {"type": "known", "name": "planted", "config": {"trust_remote_code": True}}
    with closing(sqlite3.connect(folder / "chroma.sqlite3")) as database:
        (text,) = database.execute("SELECT schema_str FROM collections").fetchone()
        schema = json.loads(text)
        if place == "configuration":  # as versions before the schema wrote it
            schema = None
            configuration = {"vector_index": {"hnsw": {"space": "cosine"}}, "embedding_function": function}
            database.execute("UPDATE collections SET config_json_str = ?", [json.dumps(configuration)])
        elif place == "schema":
            index = schema["keys"]["#embedding"]["float_list"]["vector_index"]
            index["config"]["embedding_function"] = function
        else:
            config = {"embedding_function": function, "source_key": "#document", "bm25": False}
            schema["keys"]["sparse"] = {"sparse_vector": {"sparse_vector_index": {"enabled": True, "config": config}}}
        database.execute("UPDATE collections SET schema_str = ?", [schema and json.dumps(schema)])
        database.commit()


# Where the system says no


@posix
def test_no_free_file_descriptor_is_an_error_of_ours(tmp_path: Path) -> None:
    script = """
        import os, resource, sys
        from retrieve_rerank import ChromaIndex, Passage, RetrieveRerankError
        from retrieve_rerank.testing import LetterEncoder

        with ChromaIndex(LetterEncoder(), path=sys.argv[1]) as index:
            index.add([Passage(str(n), "ab") for n in range(5)])
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        said = []
        for options in ({"path": sys.argv[1]}, {}):
            try:
                ChromaIndex(LetterEncoder(), **options)
            except RetrieveRerankError as error:
                said.append(str(error))
        for number in held:
            os.close(number)
        with ChromaIndex(LetterEncoder(), path=sys.argv[1]) as index:
            print(index.count(), len(said), *said)
    """
    shown = run_python(script, str(tmp_path / "index"), warnings="ignore")
    assert shown.startswith("5 ")


@posix
def test_who_opens_beside_a_process_that_is_stopped_in_a_write_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retrieve_rerank.indexes import client, directory

    with ChromaIndex(LetterEncoder(), path=tmp_path) as index:
        index.add([Passage(str(n), "ab" * (n + 1)) for n in range(1_200)])
    script = """
        import sys, time
        from pathlib import Path
        from retrieve_rerank.indexes.directory import Directory
        shared = Directory(Path(sys.argv[1]))
        with shared.held(), shared.alone():
            print("in it", flush=True)
            time.sleep(300)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "in it\n"
    os.kill(writer.pid, signal.SIGSTOP)
    monkeypatch.setattr(directory, "READER_SECONDS", 0.2)
    monkeypatch.setattr(client, "READER_SECONDS", 0.2)
    try:
        start = time.monotonic()
        with pytest.warns(UserWarning, match="a copy of it is searched"):
            index = ChromaIndex(LetterEncoder(), path=tmp_path)
        assert index.count() == 1_200
        assert len(index.retrieve("a", k=5)) == 5
        assert time.monotonic() - start < 20
        with pytest.raises(InvalidInputError, match="cannot be written"):
            index.add(passages("a"))
        place = index.collection.directory
        assert place is not None
        index.close()
        del index
        gc.collect()
        assert not place.exists()
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()


def test_a_client_with_other_settings_is_what_is_in_the_way(tmp_path: Path) -> None:
    settings = chromadb.Settings(allow_reset=True)
    client: Any = chromadb.PersistentClient(str(tmp_path.resolve()), settings)
    with pytest.raises(
        InvalidInputError, match="open in this process through a Chroma client with other settings"
    ) as said:
        ChromaIndex(LetterEncoder(), path=tmp_path)
    assert "can be written" not in str(said.value)
    ChromaIndex(LetterEncoder(), client=client).add(passages("a"))
    client.close()


def test_two_of_one_name_in_memory_are_told_apart() -> None:
    with ChromaIndex(LetterEncoder(), "shared") as first, ChromaIndex(LetterEncoder(), "shared") as second:
        assert second.retrieve("a") == []
        first.add(passages("a"))
        with pytest.warns(UserWarning, match=r"'shared' is empty.*private to it.*client=chromadb.EphemeralClient\(\)"):
            assert second.retrieve("a") == []
        assert second.retrieve("a") == []  # said once
        with ChromaIndex(LetterEncoder(), "other") as third:
            assert third.retrieve("a") == []


def test_the_last_index_in_memory_gives_its_room_back() -> None:
    """Chroma keeps 2.5 MB of each collection that was deleted, until its store goes."""
    script = """
        import gc
        from retrieve_rerank import ChromaIndex, Passage
        from retrieve_rerank.testing import LetterEncoder

        def room():
            gc.collect()
            return int(open("/proc/self/statm").read().split()[1]) * 4096

        def one():
            with ChromaIndex(LetterEncoder()) as index:
                index.add([Passage("a", "ab")])
                index.retrieve("a")

        one()
        before = room()
        for _ in range(40):
            one()
        print((room() - before) / 40 / 2**20)
    """
    if not Path("/proc/self/statm").exists():
        pytest.skip("no such file here")
    assert float(run_python(script)) < 1.0
