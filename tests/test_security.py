"""What nobody can make this package do: run code, leave its directory, tell a secret, or read a value as a filter."""

from __future__ import annotations

import ast
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

import retrieve_rerank
from retrieve_rerank import BiEncoder, BM25Index, ChromaIndex, CrossEncoder, InvalidInputError, ModelError, Passage
from tests import tiny
from tests.core.stubs import LetterEncoder, passages

SOURCE = Path(retrieve_rerank.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
PICKLES_ITS_OWN = SOURCE / "testing"  # the contracts pickle a user's object and read that back

# Calls that run what they are given, by their full name or, for methods, by their last.
RUNS_CODE = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "runpy.run_path"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "joblib.load", "cloudpickle.loads"),
    *("marshal.loads", "shelve.open", "torch.load", "yaml.load", "yaml.unsafe_load", "numpy.load", "np.load"),
    "pd.read_pickle",
}
SAFE_WITH = {"np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}


def full_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def dangerous(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            found += [name for name in names if name.split(".")[0] in ("pickle", "dill", "joblib", "shelve", "marshal")]
        if not isinstance(node, ast.Call):
            continue
        name = full_name(node.func)
        options = {option.arg: getattr(option.value, "value", "?") for option in node.keywords}
        if name in RUNS_CODE and not (name in SAFE_WITH and options.get(SAFE_WITH[name][0]) is SAFE_WITH[name][1]):
            found.append(name)
        for option, value in options.items():
            if (option in ("shell", "allow_pickle", "trust_remote_code") and value is True) or (
                option or ""
            ).startswith("allow_dangerous"):
                found.append(f"{name}({option}=…)")
    return found


def test_the_test_below_sees_what_it_looks_for() -> None:
    assert len(FILES) > 50
    for line in [
        *["eval(x)", "import pickle", "from pickle import loads", "torch.load(f)", "yaml.load(f)", "np.load(f)"],
        *["subprocess.run(x, shell=True)", "FAISS.load_local(x, allow_dangerous_deserialization=True)", "exec(x)"],
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ]:
        assert dangerous(ast.parse(line)), line
    assert not dangerous(
        ast.parse("np.load(f, allow_pickle=False)\nre.compile(x)\nmodel.eval()\nf(trust_remote_code=x)")
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_no_source_runs_what_it_reads(file: Path) -> None:
    allowed = {"pickle", "pickle.loads"} if PICKLES_ITS_OWN in file.parents else set()
    assert set(dangerous(ast.parse(file.read_text("utf-8")))) <= allowed


class Trap:
    """Whoever unpickles this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def bi(tmp_path: Path) -> str:
    (tmp_path / "bi").mkdir()
    return str(tiny.save_bi_encoder(tmp_path / "bi"))


@pytest.fixture
def cross(tmp_path: Path) -> str:
    (tmp_path / "cross").mkdir()
    return str(tiny.save_cross_encoder(tmp_path / "cross"))


def test_weights_as_pickle_are_not_loaded(tmp_path: Path, bi: str, cross: str) -> None:
    for kind, model in ((BiEncoder, bi), (CrossEncoder, cross)):
        trap = tmp_path / f"{kind.__name__} ran"
        for weights in Path(model).rglob("*.safetensors"):
            weights.unlink()
        (Path(model) / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(trap)))
        with kind(model, device="cpu") as opened, pytest.raises(ModelError, match="safetensors"):
            opened.encode_queries(["a"]) if isinstance(opened, BiEncoder) else opened.score("a", ["b"])
        assert not trap.exists()


def test_code_beside_the_weights_is_not_run(tmp_path: Path) -> None:
    model = Path(tiny.save_cross_encoder(tmp_path))
    trap = tmp_path / "ran"
    (model / "evil.py").write_text(f"import pathlib\npathlib.Path({str(trap)!r}).touch()\nclass Evil: pass\n")
    config = json.loads((model / "config.json").read_text())
    config.update(
        auto_map=dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForSequenceClassification"), "evil.Evil"),
        model_type="evil",
    )
    (model / "config.json").write_text(json.dumps(config))
    with CrossEncoder(model, device="cpu") as opened, pytest.raises((ModelError, InvalidInputError)):
        opened.score("a", ["b"])
    assert not trap.exists()


# Ids and names are no paths

NASTY = [
    *("../outside", "/etc/passwd", "..\\outside", "a/../../b", "\x00", "a\x00.json", "CON", "~", "%2e%2e/"),
    *("x" * 100_000, "\x1b[2J", "\u202e", "'; DROP TABLE embeddings; --", '{"$ne": ""}', "$ne", "#document"),
]


@pytest.mark.parametrize(
    "name", ["../outside", "/tmp/outside", "..", "a/../b", "a\\b", "abc\x00", "$ne", "a b", "n" * 600]
)
def test_a_collections_name_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match="name is 3 to 512 letters"):
        ChromaIndex(LetterEncoder(), name, path=tmp_path / "store")
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "store").exists()


def test_a_recovered_collections_name_is_no_path_and_no_statement(tmp_path: Path) -> None:
    ChromaIndex(LetterEncoder(), path=tmp_path / "store").close()
    (tmp_path / "outside").mkdir()
    for name in ("../outside", "' OR 1=1 --", "%"):
        with pytest.raises(InvalidInputError, match="there is no collection"):
            ChromaIndex.recover(LetterEncoder(), name, path=tmp_path / "store")
    assert (tmp_path / "outside").is_dir()


def test_ids_are_stored_as_they_are_and_are_no_paths(tmp_path: Path) -> None:
    store = tmp_path / "inner" / "store"
    with ChromaIndex(LetterEncoder(), path=store) as dense, BM25Index(path=tmp_path / "inner" / "words") as words:
        for index in (dense, words):
            index.add([Passage(id_, "a text", {"file": id_}) for id_ in NASTY])
            assert [passage.id for passage in index.get(NASTY)] == NASTY
            assert index.retrieve("text", k=100, where={"file": {"$eq": NASTY[0]}})[0].passage.id == NASTY[0]
            index.delete(NASTY[::2])
            assert index.count() == len(NASTY[1::2])
            with pytest.raises(InvalidInputError, match="lone surrogate"):
                index.delete(["\ud800"])
            with pytest.raises(InvalidInputError, match="lone surrogate"):
                index.add([Passage("\udfff", "text")])
    assert {place.name for place in tmp_path.iterdir()} == {"inner"}
    assert {place.name for place in (tmp_path / "inner").iterdir()} == {"store", "words"}


@pytest.mark.parametrize("name", ["../../outside", "/etc", "generation-../../outside"])
def test_an_index_file_cannot_name_a_file_outside(tmp_path: Path, name: str) -> None:
    """The file that names the current generation is the only one that names another."""
    path = tmp_path / "words"
    with BM25Index(path=path) as index:
        index.add(passages("one", "two"))
    (tmp_path / "outside").mkdir()
    pointers = [file for file in path.iterdir() if file.is_file() and "generation" in file.read_text("utf-8", "ignore")]
    assert pointers, "the layout has changed: this test looks at nothing"
    for file in pointers:
        file.write_text(re.sub(r"generation-[\w-]+", name, file.read_text("utf-8")), "utf-8")
    with pytest.raises(retrieve_rerank.RetrieveRerankError):
        BM25Index(path=path).retrieve("one")
    assert list((tmp_path / "outside").iterdir()) == []


# A user's string is a value


@pytest.fixture(params=["chroma", "bm25"])
def owned(request: pytest.FixtureRequest) -> Any:
    index: Any = ChromaIndex(LetterEncoder()) if request.param == "chroma" else BM25Index()
    owners = ["alice", '{"$ne": ""}', "$ne", "a' OR '1'='1", "%", "_", "*", "\x00"]
    index.add(Passage(owner, "a text", {"owner": owner}) for owner in owners)
    yield index
    index.close()


@pytest.mark.parametrize("user", ['{"$ne": ""}', "$ne", "a' OR '1'='1", "%", "_", "*", "\x00"])
def test_a_string_in_a_filter_is_only_itself(owned: Any, user: str) -> None:
    for where in ({"owner": user}, {"owner": {"$eq": user}}, {"owner": {"$in": [user]}}):
        assert [hit.passage.id for hit in owned.retrieve("text", where=where)] == [user]


@pytest.mark.parametrize("value", [{"$ne": ""}, {"$gt": 0}, ["alice", "bob"], {"$or": []}, None, b"alice"])
def test_what_is_no_value_cannot_stand_for_one(owned: Any, value: Any) -> None:
    """A request's JSON that holds {"$ne": ""} where a name was meant finds everything, unless `$eq` is written."""
    with pytest.raises(InvalidInputError):
        owned.retrieve("text", where={"owner": {"$eq": value}})


def test_operators_in_metadata_are_values(owned: Any) -> None:
    metadata = {"owner": "mallory", "$ne": "alice", "#document": "x", "nested": {"$or": [{"a": 1}]}}
    owned.add([Passage("mallory", "a text", metadata)])
    assert dict(owned.get(["mallory"])[0].metadata) == metadata
    assert "mallory" not in [hit.passage.id for hit in owned.retrieve("text", where={"owner": "alice"})]


@pytest.mark.parametrize("part", ["%", "_", '" OR "1"="1', "a*", "')--", "NEAR(a b)"])
def test_a_string_in_a_text_filter_is_only_itself(owned: Any, part: str) -> None:
    owned.add([Passage("with it", f"before {part} after"), Passage("without", "before after")])
    hits = owned.retrieve("before after text", k=50, where_document={"$contains": part})
    assert [hit.passage.id for hit in hits] == ["with it"]


def test_a_text_filter_with_a_nul_is_refused_where_chroma_would_find_everything() -> None:
    with ChromaIndex(LetterEncoder()) as index:
        index.add(passages("before after", "another"))
        for part in ("\x00", "before\x00no such text"):
            for where_document in ({"$contains": part}, {"$or": [{"$contains": "a"}, {"$contains": part}]}):
                with pytest.raises(InvalidInputError, match="NUL"):
                    index.retrieve("text", where_document=where_document)
            with pytest.raises(InvalidInputError, match="NUL"):
                index.retrieve("text", where={"#document": {"$contains": part}})


# Secrets

SECRET = "hf_AbCdEfGhIjKlMnOpQrSt"


def test_tokens_are_not_shown(bi: str, cross: str) -> None:
    with (
        BiEncoder(bi, token=SECRET) as encoder,
        CrossEncoder(cross, token=SECRET) as model,
        ChromaIndex(encoder) as index,
    ):
        for thing in (encoder, model, index, retrieve_rerank.RetrieveRerank(index, model)):
            assert SECRET not in f"{thing!r} {thing!s}"
        assert SECRET not in json.dumps(dict(encoder.fingerprint))
        assert SECRET not in json.dumps(dict(index.collection.handle.metadata or {}))


def test_a_missing_model_does_not_tell_the_token() -> None:
    opened = CrossEncoder("no-such/model", token=SECRET, local_files_only=True)
    with opened, pytest.raises(ModelError) as caught:
        opened.score("a", ["b"])
    chain, error = "", caught.value
    while error is not None:
        chain += f"{error!r}\n"
        error = error.__cause__ or error.__context__
    assert SECRET not in chain
