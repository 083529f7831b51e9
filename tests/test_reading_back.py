"""A configuration that is read back runs no checkpoint's code, holds no secret, and gets no key for its own address."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.load import dumpd
from pydantic import TypeAdapter

from retrieve_rerank import BiEncoder, CrossEncoder, InvalidInputError, SavedSetting
from retrieve_rerank.langchain import BiEncoderEmbeddings, CrossEncoderReranker, RetrieveRerankRetriever, load
from retrieve_rerank.llama_index import BiEncoderEmbedding, CrossEncoderRerank
from retrieve_rerank.models.settings import reading_back

KEY, URL = "key-of-the-environment", "http://127.0.0.1:1/models"


def dump_of(kind: type, **fields: Any) -> dict[str, Any]:
    return {"lc": 1, "type": "constructor", "id": kind.lc_id(), "kwargs": fields}  # type: ignore[attr-defined]


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


# How each door reads `fields`, the settings of a model named "some/model".
DOORS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "setting": lambda fields: SavedSetting("BM25", 3, "m", {"model": "some/model", **fields}).make_cross_encoder(),
    "dump": lambda fields: load(dump_of(BiEncoderEmbeddings, model="some/model", **fields)),
    "dump by the other name": lambda fields: load(dump_of(BiEncoderEmbeddings, model_name="some/model", **fields)),
    "mapping in a dump": lambda fields: load(
        dump_of(CrossEncoderReranker, model={"class": "CrossEncoder", "model": "some/model", **fields})
    ),
    "escaped mapping in a dump": lambda fields: load(
        dump_of(
            CrossEncoderReranker,
            model={"__lc_escaped__": {"class": "CrossEncoder", "model": "some/model", **fields}},
        )
    ),
    "LangChain's JSON": lambda fields: BiEncoderEmbeddings.model_validate_json(
        json.dumps({"model": "some/model", **fields})
    ),
    "LangChain's re-ranker": lambda fields: CrossEncoderReranker.model_validate({"model": "some/model", **fields}),
    "from_dict": lambda fields: BiEncoderEmbedding.from_dict({"model_name": "some/model", **fields}),
    "from_json": lambda fields: CrossEncoderRerank.from_json(json.dumps({"model": "some/model", **fields})),
    "LlamaIndex's JSON": lambda fields: CrossEncoderRerank.model_validate_json(
        json.dumps({"model": "some/model", **fields})
    ),
    "LlamaIndex's strings": lambda fields: BiEncoderEmbedding.model_validate_strings(
        {"model_name": "some/model", **{name: str(value) for name, value in fields.items()}}
    ),
    "another pydantic model": lambda fields: TypeAdapter(list[BiEncoderEmbedding]).validate_python(
        [{"model_name": "some/model", **fields}]
    )[0],
}
MADE = [
    lambda **fields: BiEncoder("some/model", **fields),
    lambda **fields: CrossEncoder("some/model", **fields),
    lambda **fields: BiEncoderEmbeddings(model="some/model", **fields),
    lambda **fields: CrossEncoderReranker(model="some/model", **fields),
    lambda **fields: BiEncoderEmbedding("some/model", **fields),
    lambda **fields: CrossEncoderRerank("some/model", **fields),
]


def model_of(thing: Any) -> Any:
    """Return the core's model within a component of a framework."""
    found = getattr(thing, "encoder", None) or getattr(thing, "_ranker", thing)
    assert isinstance(found, (BiEncoder, CrossEncoder))
    return found


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("value", [True, "true", 1], ids=repr)
def test_no_door_switches_code_on(door: str, value: object) -> None:
    if door == "setting":  # which leaves out what does not decide scores
        assert DOORS[door]({"trust_remote_code": value}).settings["trust_remote_code"] is False
        return
    with pytest.raises(ValueError, match="asks to run code that comes with the checkpoint 'some/model'"):
        DOORS[door]({"trust_remote_code": value})


def test_an_argument_of_the_call_allows_code() -> None:
    fields = {"model_name": "some/model", "trust_remote_code": True}
    made = [
        load(dump_of(BiEncoderEmbeddings, **fields), trust_remote_code=True),
        BiEncoderEmbedding.from_dict(fields, trust_remote_code=True),
        SavedSetting("BM25", 3, "m", {"model": "some/model"}).make_cross_encoder(trust_remote_code=True),
        *(make(trust_remote_code=True) for make in MADE),
    ]
    for thing in made:
        assert model_of(thing).settings["trust_remote_code"] is True
        if hasattr(thing, "model_copy"):
            assert model_of(thing.model_copy(update={"max_length": 9})).settings["trust_remote_code"] is True


@pytest.mark.parametrize("make", MADE)
def test_a_pickle_leaves_trust_behind(make: Callable[..., Any]) -> None:
    made = make(trust_remote_code=True)
    thing = pickled(made)
    assert model_of(thing).settings["trust_remote_code"] is False
    if hasattr(thing, "model_copy"):
        assert model_of(thing.model_copy(update={"max_length": 9})).settings["trust_remote_code"] is False
    assert model_of(made).settings["trust_remote_code"] is True


@pytest.mark.parametrize("name", ["token", "api_key"])
def test_no_secret_is_taken_from_what_is_read(name: str) -> None:
    fields = {name: "secret-in-a-file", **({} if name == "token" else {"endpoint": URL})}
    for door in set(DOORS) - {"setting", "another pydantic model"}:  # which shows what it is given
        with pytest.raises(ValueError, match=f"has a {name} in it") as caught:
            DOORS[door](fields)
        assert "secret-in-a-file" not in str(caught.value)


@pytest.mark.parametrize("door", DOORS)
def test_the_environments_key_stays_here_if_only_a_file_names_the_address(
    door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRIEVE_RERANK_API_KEY", KEY)
    model = model_of(DOORS[door]({"endpoint": URL}))
    assert model._endpoint.headers == {}
    assert "RETRIEVE_RERANK_ENDPOINT" in model._endpoint.key_advice
    monkeypatch.setenv("RETRIEVE_RERANK_ENDPOINT", "http://127.0.0.1:1/other")
    assert model._endpoint.headers == {}
    monkeypatch.setenv("RETRIEVE_RERANK_ENDPOINT", f"{URL}/")
    assert model._endpoint.headers == {"Authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize("make", MADE)
def test_an_address_is_the_callers_until_it_is_pickled(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRIEVE_RERANK_API_KEY", KEY)
    made = make(endpoint=URL)
    assert model_of(made)._endpoint.headers == {"Authorization": f"Bearer {KEY}"}
    again = pickled(made)
    assert model_of(again)._endpoint.headers == {}
    if hasattr(again, "model_copy"):
        assert model_of(again.model_copy(update={"timeout": 3.0}))._endpoint.headers == {}
    given = {"model_name": "some/model", "endpoint": URL}
    assert model_of(BiEncoderEmbedding.from_dict(given, endpoint=URL))._endpoint.headers


def test_a_model_object_in_code_is_no_configuration() -> None:
    model = CrossEncoder("some/model", trust_remote_code=True)
    reranker = CrossEncoderReranker.model_validate({"model": model})
    assert model_of(reranker) is model
    with pytest.raises(InvalidInputError, match="asks to run code"):
        load(dumpd(reranker))
    with pytest.raises(ValueError, match="asks to run code"):
        RetrieveRerankRetriever.model_validate(
            {
                "base_retriever": load(dumpd(CrossEncoderReranker(model="some/model"))),
                "reranker": {"model": {"class": "CrossEncoder", "model": "some/model", "trust_remote_code": True}},
            }
        )


def test_reading_ends_with_its_block() -> None:
    with reading_back(["trust_remote_code"]), reading_back():  # of two, the outer one is the caller's
        assert CrossEncoder("some/model", trust_remote_code=True)
    with reading_back(), pytest.raises(InvalidInputError, match="asks to run code"):
        CrossEncoder("some/model", trust_remote_code=True)
    assert CrossEncoder("some/model", trust_remote_code=True).settings["trust_remote_code"] is True
