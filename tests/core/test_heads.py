"""Every kind of head gives one raw logit a passage, whose sigmoid is what the model itself means by relevance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers

from retrieve_rerank import CrossEncoder, InvalidInputError, ModelError
from tests import tiny

QUERY = "what is the capital of france"
TEXTS = ["paris is the capital of france", "rome", "bread is the word", "italy"]
SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"


def scores_of(path: Path, **options: Any) -> tuple[np.ndarray, list[float]]:
    """Return logits and relevance scores in the order of TEXTS."""
    with CrossEncoder(path, precision="float32", **options) as model:
        hits = sorted(model.rank(QUERY, TEXTS), key=lambda hit: hit.passage.id)
        logits = model.score(QUERY, TEXTS)
    assert [hit.logit for hit in hits] == logits.tolist()
    return logits, [hit.score for hit in hits]


def theirs(path: Path, **options: Any) -> np.ndarray:
    """Return what sentence-transformers itself says."""
    model = sentence_transformers.CrossEncoder(str(path), device="cpu")
    return model.predict([(QUERY, text) for text in TEXTS], show_progress_bar=False, **options)


@pytest.mark.parametrize("activation", [SIGMOID, IDENTITY])
@pytest.mark.parametrize("where", ["sentence_transformers", "sbert_ce_default_activation_function", "saved"])
def test_a_saved_activation_is_not_applied_to_the_logits(tmp_path: Path, activation: str, where: str) -> None:
    """A model saved with a sigmoid would otherwise give sigmoid(sigmoid(x)), all between 0.5 and 0.73."""
    plain, _ = scores_of(tiny.save_cross_encoder(tmp_path))
    told: dict[str, object] = {where: {"activation_fn": activation} if where == "sentence_transformers" else activation}
    (tmp_path / "activated").mkdir()
    path = tiny.save_cross_encoder(tmp_path / "activated", settings={} if where == "saved" else told)
    if where == "saved":
        function = torch.nn.Sigmoid() if activation == SIGMOID else torch.nn.Identity()
        model = sentence_transformers.CrossEncoder(str(path), device="cpu", activation_fn=function)
        path = tmp_path / "saved"
        model.save(str(path))
    logits, scores = scores_of(path)
    assert np.array_equal(logits, plain)
    relevance = theirs(path)
    if activation == SIGMOID:
        assert scores == pytest.approx(relevance.tolist(), abs=1e-6)
    else:
        assert logits == pytest.approx(relevance, abs=1e-5)


def test_an_activation_baked_into_the_head_is_taken_out(tmp_path: Path) -> None:
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    path = tiny.save_cross_encoder_with_dense_head(tmp_path / "with", torch.nn.Sigmoid())
    logits, scores = scores_of(path)
    assert scores == pytest.approx(theirs(path, activation_fn=torch.nn.Identity()).tolist(), abs=1e-6)
    assert np.ptp(logits) > 0.05
    assert logits.min() < 0 or logits.max() > 1  # no probabilities
    path = tiny.save_cross_encoder_with_dense_head(tmp_path / "without", torch.nn.Identity())
    assert scores_of(path)[0] == pytest.approx(theirs(path, activation_fn=torch.nn.Identity()), abs=1e-5)


@pytest.mark.parametrize(
    ("names", "relevant"),
    [
        (("not_relevant", "relevant"), 1),
        (("Relevant", "Not Relevant"), 0),
        (("NO", "YES"), 1),
        (("True", "False"), 0),
        (("negative", "positive"), 1),
        (("not-entailment", "entailment"), 1),
        (("LABEL_0", "irrelevant"), 0),  # one name that tells is enough
        (("entailment", "neutral"), 0),
        ({"relevant": 0, "other": 1}, 0),  # in label2id alone
    ],
)
def test_the_score_of_two_labels_is_the_softmax_of_the_relevant_one(
    tmp_path: Path, names: tuple[str, str] | dict[str, int], relevant: int
) -> None:
    """Column 1 is not always the relevant one, as LangChain's class assumes."""
    if isinstance(names, dict):
        settings: dict[str, object] = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": names}
        path = tiny.save_cross_encoder(tmp_path, labels=2, settings=settings)
    else:
        path = tiny.save_cross_encoder(tmp_path, labels=2, names=names)
    logits, scores = scores_of(path)
    assert scores == pytest.approx(theirs(path, apply_softmax=True)[:, relevant].tolist(), abs=1e-6)
    assert logits.shape == (len(TEXTS),)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"id2label": {"0": "0", "1": "1"}, "label2id": {"0": 0, "1": 1}},
        {"id2label": {"0": "yes", "1": "true"}, "label2id": {"yes": 0, "true": 1}},
        {"id2label": {"0": "no", "1": "yes"}, "label2id": {"yes": 0, "no": 1}},  # they contradict each other
    ],
)
def test_names_that_do_not_tell_are_an_error_that_says_what_to_do(tmp_path: Path, settings: dict[str, object]) -> None:
    path = tiny.save_cross_encoder(tmp_path, labels=2, settings=settings)
    with pytest.raises(ModelError, match=r"has 2 labels.* id2label is \{0: '.*config\.json.*not_relevant"):
        CrossEncoder(path).score(QUERY, TEXTS)


def test_two_labels_in_bfloat16_stay_on_the_scale(tmp_path: Path) -> None:
    path = tiny.save_cross_encoder(tmp_path, labels=2, names=("no", "yes"))
    with CrossEncoder(path, precision="bfloat16") as model:
        assert model.score(QUERY, TEXTS) == pytest.approx(scores_of(path)[0], abs=0.1)


@pytest.fixture(scope="module")
def instructed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_instructed_reranker(tmp_path_factory.mktemp("instructed"))


def log_odds(path: Path, text: str) -> float:
    """Return how much more likely "yes" is than "no" as the next token of a text, straight from the network."""
    model = sentence_transformers.CrossEncoder(str(path), device="cpu")
    ids = model.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = model.transformers_model(input_ids=ids).logits[0, -1]
    yes, no = model.tokenizer.convert_tokens_to_ids(["yes", "no"])
    return float(logits[yes] - logits[no])


@pytest.mark.parametrize("prompt", [None, "is rome in italy"])
def test_a_language_models_logit_is_yes_minus_no_after_the_whole_template(instructed: Path, prompt: str | None) -> None:
    told = prompt or "is the passage what the query is of"
    expected = [log_odds(instructed, FRAME.format(told=told, query=QUERY, text=text)) for text in TEXTS]
    logits, scores = scores_of(instructed, prompt=prompt)
    assert logits == pytest.approx(np.array(expected), abs=1e-5)
    assert scores == pytest.approx((1 / (1 + np.exp(-np.array(expected)))).tolist(), abs=1e-6)


def test_an_instruction_that_the_template_drops_is_refused(tiny_language_model: Path, tmp_path: Path) -> None:
    path = tiny.save_language_model_reranker(tmp_path)
    (path / "chat_template.jinja").write_text(
        "{% for m in messages if m['role'] in ('query', 'document') %}{{ m['content'] }} {% endfor %}is",
        encoding="utf-8",
    )
    CrossEncoder(path).score(QUERY, TEXTS)
    with pytest.raises(InvalidInputError, match="no place for an instruction"):
        CrossEncoder(path, prompt="judge").score(QUERY, TEXTS)


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0]['content'] }} is", "is", "{{ nothing.at_all }}", "{{ raise_exception('roles') }}", "{%"],
)
@pytest.mark.parametrize("labels", ["answers", "one, language model", "one", "two"])
def test_a_template_that_drops_a_role_is_an_error(tmp_path: Path, labels: str, template: str) -> None:
    """Of a model with one label it was a `ValueError`, with advice that cannot be followed here."""
    if labels == "answers":
        path = tiny.save_language_model_reranker(tmp_path)
    elif labels == "one, language model":
        path = tiny.save_language_model_with_head(tmp_path / "model")
    else:
        path = tiny.save_cross_encoder(tmp_path, **({"labels": 2, "names": ("no", "yes")} if labels == "two" else {}))
    (path / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(ModelError, match=r"cannot read a query with a passage.* Mend the chat template") as caught:
        CrossEncoder(path).score(QUERY, TEXTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("precision", "within"), [("float32", 1e-5), ("bfloat16", 0.15)])
def test_left_padding_does_not_change_a_language_models_scores(
    instructed: Path, many_texts: Callable[[], list[str]], precision: Any, within: float
) -> None:
    texts = many_texts()[:60]
    with CrossEncoder(instructed, precision=precision) as model:
        together = model.score(QUERY, texts)
        alone = np.concatenate([model.score(QUERY, [text]) for text in texts])
    assert together == pytest.approx(alone, abs=within)
    assert together.std() > 0.3
    assert len(set(together.tolist())) > 55  # few ties, which a head rounded to bfloat16 would have


FRAME = "judge : {told} query : {query} passage : {text} the word is yes / no ? answer :"
PASSAGE_FIRST = "passage : {text} query : {query} of {told} answer :"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("frame", [FRAME, PASSAGE_FIRST])
@pytest.mark.filterwarnings("ignore::retrieve_rerank.TruncationWarning")
def test_what_stands_around_a_long_passage_is_never_cut(tmp_path: Path, frame: str, precision: Any) -> None:
    """A tokenizer cuts the end of a template: the question itself, or the words that the answer comes after."""
    path = tiny.save_instructed_reranker(tmp_path)
    messages = {
        f"{{{name}}}": f"{{{{ messages | selectattr('role', 'eq', '{role}') | map(attribute='content') | first }}}}"
        for name, role in (("told", "system"), ("query", "query"), ("text", "document"))
    }
    template = frame
    for name, found in messages.items():
        template = template.replace(name, found)
    (path / "chat_template.jinja").write_text(template, encoding="utf-8")
    query, prompt = ("paris " * 30).strip(), "is rome in italy"
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    around = len(tokenizer(frame.format(told=prompt, query=query, text=""), add_special_tokens=False)["input_ids"])
    words = ["rome", "bread", "italy", "word"] * 400
    with CrossEncoder(path, precision=precision, prompt=prompt) as model:
        room = model.max_length - around
        assert room > 100
        fits, cut, longer = (" ".join(words[:count]) for count in (room, room + 1, room * 4))
        hits = {hit.passage.text: hit for hit in model.rank(query, [fits, cut, longer])}
    assert [hits[text].truncated for text in (fits, cut, longer)] == [False, True, True]
    expected = log_odds(path, frame.format(told=prompt, query=query, text=fits))
    for text in (fits, cut, longer):
        assert hits[text].logit == pytest.approx(expected, abs=1e-5 if precision == "float32" else 0.3)
