"""The tree of errors, and how a missing extra is reported."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from retrieve_rerank import errors
from retrieve_rerank.errors import MissingDependencyError, RetrieveRerankError, TruncationWarning, in_one_line, require


def test_every_error_has_our_base_and_the_builtin_that_callers_catch_and_nothing_else_is_in_the_tree() -> None:
    expected = {
        "ModelError": Exception,
        "IndexMismatchError": ValueError,
        "IndexLockedError": Exception,
        "MissingDependencyError": ImportError,
        "InvalidInputError": ValueError,
        "RemoteError": Exception,
    }
    ours = {kind.__name__: kind for kind in RetrieveRerankError.__subclasses__() if kind.__module__ == errors.__name__}
    assert ours.keys() == expected.keys()
    for name, builtin in expected.items():
        assert issubclass(ours[name], builtin)
        assert getattr(errors, name) is ours[name]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Authorization: Bearer abc.def-123 was refused", "Authorization: *** was refused"),
        ("Authorization: ApiKey c2VjcmV0 was refused", "Authorization: *** was refused"),
        ("authorization=token abcdef, status 401", "authorization=***, status 401"),
        ("{'Authorization': 'Basic dXNlcjpwYXNz', 'n': 1}", "{'Authorization': '***', 'n': 1}"),
        ("[(b'authorization', b'Bearer a b')]", "[(b'authorization', b'***')]"),
        ("no bearer abcdef given", "no bearer *** given"),
        ("401 for https://me:secret-word@host/path", "401 for https://***@host/path"),
        ("401 for https://me:secret@word@host/path", "401 for https://***@host/path"),
        ("http://a:b@one,http://c:d@two", "http://***@one,http://***@two"),
        ("GET /v1?api_key=abc123&q=x failed", "GET /v1?api_key=***&q=x failed"),
        ("GET /v1?q=x&key=abc123&sig=x%2F failed", "GET /v1?q=x&key=***&sig=*** failed"),
        ("{'token': 'abc123'}", "{'token': '***'}"),
        ('{"password": "it\'s, you know", "n": 1}', '{"password": "***", "n": 1}'),
        (r"{\"password\": \"abc 123\"}", r'{\"password\": \"***"}'),
        ("Incorrect API key provided: abc123", "Incorrect API key provided: ***"),
        ("the key sk-abcdefgh12345678 is unknown", "the key *** is unknown"),
        ("hf_abcdefghijkl is no token", "*** is no token"),
        ("the token ghp_abcdefghijkl expired", "the token *** expired"),
        ("gsk_abcdefghijkl, AKIAABCDEFGHIJKL, AIzaSyabc-defgh, xoxb-12345678-9", "***, ***, ***, ***"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIx.c2ln is expired", "*** is expired"),
        ("the tokenizer has no pad token", "the tokenizer has no pad token"),
        ("http://host:9200/a@b and authorization failed", "http://host:9200/a@b and authorization failed"),
        ("password: ''", "password: ''"),
        ("a\n b\t:", "a b"),
    ],
)
def test_an_error_in_one_line_shows_no_secret(message: str, shown: str) -> None:
    assert in_one_line(ValueError(message)) == f"ValueError: {shown}"


def test_an_error_in_one_line_is_short_and_hides_what_the_caller_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "of the environment")
    shown = in_one_line(
        ValueError("mine and of the environment " + "x" * 400), lambda text: text.replace("mine", "***")
    )
    assert shown.startswith("ValueError: *** and *** xxx")
    assert len(shown) == 300
    assert in_one_line(ValueError()) == "ValueError"


def test_truncation_is_a_warning_that_users_can_filter() -> None:
    assert issubclass(errors.TruncationWarning, UserWarning)
    assert not issubclass(errors.TruncationWarning, RetrieveRerankError)


def test_a_missing_dependency_names_the_exact_command_also_when_it_was_pickled() -> None:
    made = MissingDependencyError("bm25s", "hybrid")
    for error in (made, pickle.loads(pickle.dumps(made))):
        assert 'pip install "retrieve-rerank[hybrid]"' in str(error)
        assert (error.package, error.extra) == ("bm25s", "hybrid")


def test_require_returns_the_module() -> None:
    assert require("pickle", extra="none") is pickle


@pytest.mark.parametrize("package", ["no_such_package", "no_such_package.part"])
def test_require_names_the_extra_of_a_missing_package(package: str) -> None:
    with pytest.raises(MissingDependencyError, match=r"retrieve-rerank\[some\]") as caught:
        require(package, extra="some")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_require_does_not_blame_the_extra_for_a_broken_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rr_installed_but_broken.py").write_text("import rr_its_own_dependency\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="rr_its_own_dependency") as caught:
        require("rr_installed_but_broken", extra="some")
    assert not isinstance(caught.value, MissingDependencyError)


def test_a_warning_points_at_the_users_line_through_a_framework(tiny_cross_encoder: Path) -> None:
    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode

    from retrieve_rerank.langchain import CrossEncoderReranker
    from retrieve_rerank.llama_index import CrossEncoderRerank

    long = "word " * 100
    ways: list[Callable[[], object]] = [
        lambda: CrossEncoderReranker(model=str(tiny_cross_encoder)).compress_documents([Document(long)], "word"),
        lambda: CrossEncoderRerank(tiny_cross_encoder).postprocess_nodes(
            [NodeWithScore(node=TextNode(text=long))], query_str="word"
        ),
    ]
    for way in ways:
        with pytest.warns(TruncationWarning) as caught:
            way()
        assert caught[0].filename == __file__
