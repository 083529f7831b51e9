"""The contracts catch what they are for: each flaw fails the checks that are about it, and no others."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from retrieve_rerank import Hit, InvalidInputError, Passage
from retrieve_rerank.testing import (
    ListRetriever,
    RerankerContract,
    RetrieverContract,
    VectorStoreContract,
    hits_of,
    run_contract,
)
from tests.core.stubs import run_python


class Ranked:
    """A re-ranker without fault, but for one."""

    def __init__(self, scorer, flaw=None):
        self.scorer = scorer
        self.flaw = flaw
        self.calls = 0

    def rank(self, query, hits, *, top_n=None, score_threshold=None):
        top_n = self._checked(top_n)
        if self.flaw == "no empty list" and not hits:
            raise IndexError("list index out of range")
        texts = [hit.passage.text for hit in hits]
        if self.flaw != "scores twins twice":
            texts = list(dict.fromkeys(texts))
        try:
            logits = self._logits(query, texts)
        except RuntimeError:
            if self.flaw == "hides the cause":
                raise RuntimeError("re-ranking failed") from None
            if self.flaw == "swallows errors":
                return list(hits)
            raise
        by_text = dict(zip(texts, logits, strict=False))
        kept = []
        for rank, hit in enumerate(self._ordered(hits, by_text)[:top_n], start=1):
            score = float(1 / (1 + np.exp(-by_text[hit.passage.text])))
            if not score_threshold or score >= score_threshold:
                kept.append(self._scored(hit, rank, score, len(hits)))
        return kept

    def _checked(self, top_n):
        if self.flaw == "takes 0 as all":
            return top_n or None
        if top_n is not None and top_n < 1 and self.flaw != "cuts from the end":
            raise ValueError("top_n must be >= 1")
        return top_n

    def _logits(self, query, texts):
        logits = np.asarray(self.scorer.score(query, texts), np.float64)
        if len(logits) != len(texts) and self.flaw != "zips":
            raise ValueError("a wrong number of scores")
        if np.isnan(logits).any() and self.flaw != "sorts NaN":
            raise ValueError("NaN")
        if self.flaw == "saturates":
            return (1 / (1 + np.exp(-logits.astype(np.float32)))).astype(np.float64)
        return logits

    def _ordered(self, hits, by_text):
        known = [hit for hit in hits if hit.passage.text in by_text]
        if self.flaw == "reverses ties":
            known.reverse()
        ranked = sorted(known, key=lambda hit: -by_text[hit.passage.text])
        if self.flaw == "worst first":
            ranked.reverse()
        if self.flaw == "merges twins":
            return list({hit.passage.text: hit for hit in ranked}.values())
        return ranked

    def _scored(self, hit, rank, score, count):
        changed = {"numpy's floats": np.float32(score), "no scores": None, "scores shrink in company": score / count}
        score = changed.get(self.flaw, score)
        if self.flaw == "changes inputs":
            hit.passage.metadata["score"] = score
        passage = hit.passage
        if self.flaw == "adds to the text":
            passage = replace(passage, text=passage.text + " ")
        return replace(hit, passage=passage, rank=rank, score=score)

    async def arank(self, query, hits, **options):
        if self.flaw == "blocks the loop":
            return self.rank(query, hits, **options)
        if self.flaw == "async keeps the order":
            return list(hits)
        try:
            if self.flaw == "breaks when cancelled" and self.calls:
                raise RuntimeError("still busy")
            self.calls += 1
            found = await asyncio.to_thread(self.rank, query, hits, **options)
            self.calls -= 1
            return found
        finally:
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("flaw", "caught"),
    [
        (None, set()),
        ("takes 0 as all", {"top_n_below_one_is_refused"}),
        ("cuts from the end", {"top_n_below_one_is_refused"}),
        ("no empty list", {"nothing_gives_nothing"}),
        ("scores twins twice", {"equal_texts_are_scored_once"}),
        ("merges twins", {"equal_texts_stay_two"}),
        ("hides the cause", {"the_cause_of_a_failure_is_raised"}),
        ("swallows errors", {"the_cause_of_a_failure_is_raised"}),
        ("zips", {"a_wrong_number_of_scores_is_an_error"}),
        ("sorts NaN", {"nan_is_an_error"}),
        ("saturates", {"saturated_scores_stay_in_order", "a_threshold_cuts_below"}),
        ("numpy's floats", {"scores_are_plain_floats"}),
        ("no scores", {"scores_reach_the_caller"}),
        ("scores shrink in company", {"other_passages_do_not_change_a_score"}),
        ("blocks the loop", {"async_lets_the_event_loop_run"}),
        ("breaks when cancelled", {"a_cancelled_call_does_not_break_the_next"}),
    ],
)
def test_a_flaw_of_a_reranker_is_caught(flaw, caught):
    class Flawed(RerankerContract):
        def make(self, scorer, *, top_n=None, score_threshold=None):
            return Ranked(scorer, flaw)

    failed = {check for check, outcome in run_contract(Flawed).items() if outcome.startswith("FAIL")}
    assert failed == caught


@pytest.mark.parametrize(
    ("flaw", "caught"),
    [
        ("worst first", "best_first"),
        ("reverses ties", "ties_keep_the_order_given"),
        ("changes inputs", "inputs_stay_as_they_were"),
        ("adds to the text", "ranking_the_result_again_changes_nothing"),
        ("async keeps the order", "async_is_sync"),
    ],
)
def test_a_flaw_that_spoils_more_than_one_check_is_caught(flaw, caught):
    class Flawed(RerankerContract):
        def make(self, scorer, *, top_n=None, score_threshold=None):
            return Ranked(scorer, flaw)

    assert run_contract(Flawed)[caught].startswith("FAIL: ")


class Found:
    """A retriever by shared letters, without fault, but for one."""

    def __init__(self, passages, encoder, flaw=None):
        self.passages = passages
        self.encoder = encoder
        self.flaw = flaw

    def retrieve(self, query, k):
        if not query.strip() and self.flaw != "takes empty queries":
            raise ValueError("the query is empty")
        if k < 1 and self.flaw != "takes k=0":
            raise ValueError("k must be >= 1")
        if not self.passages:
            if self.flaw == "fails when empty":
                raise IndexError("no passages")
            return []
        [vector] = self.encoder.encode_queries([query])
        vectors = self.encoder.encode_documents([passage.text for passage in self.passages])
        scores = vectors @ vector / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vector)
        if self.flaw == "distances":
            scores = 1 - scores
        order = np.argsort(scores if self.flaw == "distances" else -scores, kind="stable")
        if self.flaw == "merges twins":
            order = [at for at in order if self.passages[at].text not in {self.passages[b].text for b in order[:at]}]
        if self.flaw == "one too many":
            k += 1
        return [
            Hit(
                Passage(f"{rank}", self.passages[at].text) if self.flaw == "loses ids" else self.passages[at],
                rank=rank - (self.flaw == "counts from 0"),
                score=np.float32(scores[at]) if self.flaw == "numpy's floats" else float(scores[at]),
            )
            for rank, at in enumerate(order[:k], start=1)
        ]

    def __getstate__(self):
        if self.flaw == "cannot be pickled":
            raise TypeError("cannot pickle 'lock' object")
        return {**self.__dict__, "passages": self.passages[:-1] if self.flaw == "forgets one" else self.passages}

    async def aretrieve(self, query, k):
        if self.flaw == "blocks the loop":
            return self.retrieve(query, k)
        return await asyncio.to_thread(self.retrieve, query, k - (self.flaw == "async finds less"))


_AFTER = "a_changed_result_does_not_change_the_next"


@pytest.mark.parametrize(
    ("flaw", "caught"),
    [
        (None, set()),
        ("takes empty queries", {"an_empty_query_is_refused"}),
        ("takes k=0", {"k_below_one_is_refused"}),
        ("fails when empty", {"an_empty_store_gives_nothing"}),
        ("distances", {"ranks_and_scores_follow_the_order"}),
        ("one too many", {"k_limits", "best_first", "ids_and_metadata_survive", _AFTER}),
        ("counts from 0", {"ranks_and_scores_follow_the_order"}),
        ("numpy's floats", {"scores_are_plain_floats"}),
        ("blocks the loop", {"async_lets_the_event_loop_run"}),
        ("async finds less", {"async_is_sync"}),
        ("cannot be pickled", {"written_down_and_read_again"}),
        ("forgets one", {"written_down_and_read_again"}),
    ],
)
def test_a_flaw_of_a_retriever_is_caught(flaw, caught):
    class Flawed(RetrieverContract):
        def make(self, passages, k, encoder):
            return Found(passages, encoder, flaw)

        def make_kept(self, passages, k, encoder, folder):
            return self.make(passages, k, encoder)

    failed = {check for check, outcome in run_contract(Flawed).items() if outcome.startswith("FAIL")}
    assert failed == caught


def test_lost_ids_of_a_retriever_are_caught():
    class Flawed(RetrieverContract):
        def make(self, passages, k, encoder):
            return Found(passages, encoder, "loses ids")

    outcomes = run_contract(Flawed)
    assert {outcomes[check][:5] for check in ("best_first", "ids_and_metadata_survive")} == {"FAIL:"}


class Stored:
    """A store in a dictionary, without fault, but for one."""

    def __init__(self, encoder, flaw=None):
        self.encoder = encoder
        self.flaw = flaw
        self.passages = {}

    def add(self, passages):
        given = passages if self.flaw == "no generators" else list(passages)
        if self.flaw == "no generators":
            len(given)
        if self.flaw == "limit" and len(given) > 5_461:
            raise ValueError("batch too large")
        if self.flaw == "no empty add" and not given:
            raise ValueError("nothing to add")
        self.encoder.encode_documents([passage.text for passage in given])
        if self.flaw == "first wins":
            given = [passage for passage in given if passage.id not in self.passages]
        if self.flaw == "no twins" and len({passage.id for passage in given}) < len(given):
            raise ValueError("duplicate ids")
        for passage in given:
            old = self.passages.get(passage.id)
            metadata = {**(old.metadata if old and self.flaw == "merges" else {}), **passage.metadata}
            if self.flaw == "drops metadata":
                metadata.pop("thing", None)
            if any(not isinstance(value, (str, int)) for value in metadata.values()):
                if self.flaw == "clears when it fails":
                    self.passages.clear()
                raise ValueError("metadata cannot be stored")
            self.passages[passage.id] = replace(passage, metadata=metadata)

    async def aadd(self, passages):
        if self.flaw == "blocks the loop":
            self.add(passages)
        else:
            await asyncio.to_thread(self.add, passages)

    def delete(self, ids):
        for id_ in ids:
            if self.flaw == "fails on unknown ids":
                del self.passages[id_]
            elif self.flaw != "keeps deleted":
                self.passages.pop(id_, None)

    def get(self, ids):
        return [self.passages[id_] for id_ in ids if id_ in self.passages]

    def count(self):
        return len(self.passages)

    def retrieve(self, query, k, where=None):
        [vector] = self.encoder.encode_queries([query])
        found = []
        for passage in self.passages.values():
            if where and self.flaw != "ignores filters" and not where.items() <= passage.metadata.items():
                continue
            other = np.asarray(self.encoder.vector(passage.text), np.float32)
            score = float(vector @ other)
            if self.encoder.metric == "cosine":
                score /= float(np.linalg.norm(vector) * np.linalg.norm(other))
            if self.encoder.metric == "euclidean":
                distance = float(np.sum((vector - other) ** 2))
                score = 1 / (1 + (distance if self.flaw == "squared distance" else math.sqrt(distance)))
            found.append(Hit(passage, rank=1, score=score))
        return sorted(found, key=lambda hit: -hit.score)[:k]

    async def aretrieve(self, query, k):
        return await asyncio.to_thread(self.retrieve, query, k)


@pytest.mark.parametrize(
    ("flaw", "caught"),
    [
        (None, set()),
        ("no generators", {"a_generator_is_as_good_as_a_list"}),
        ("limit", {"more_than_the_store_takes_at_once"}),
        ("no empty add", {"adding_nothing"}),
        ("no twins", {"of_equal_ids_in_one_call_the_last_wins"}),
        ("first wins", {"adding_again_replaces", "metadata_are_replaced_not_merged"}),
        ("merges", {"metadata_are_replaced_not_merged"}),
        ("drops metadata", {"metadata_that_cannot_be_stored_do_no_harm"}),
        ("clears when it fails", {"metadata_that_cannot_be_stored_do_no_harm"}),
        ("fails on unknown ids", {"deleting_what_is_not_there"}),
        ("keeps deleted", {"deleted_is_gone"}),
        ("ignores filters", {"a_filter_holds"}),
        ("squared distance", {"scores_by_distance"}),
        ("blocks the loop", {"async_lets_the_event_loop_run"}),
    ],
)
def test_a_flaw_of_a_store_is_caught(flaw, caught):
    class Flawed(VectorStoreContract):
        is_persistent = False

        def make(self, encoder, path=None):
            return Stored(encoder, flaw)

    failed = {check for check, outcome in run_contract(Flawed).items() if outcome.startswith("FAIL")}
    assert failed == caught


def test_a_reranker_without_thresholds_or_a_retriever_that_keeps_nothing_does_not_fail():
    class Reranker(RerankerContract):
        has_threshold = False

        def make(self, scorer, *, top_n=None, score_threshold=None):
            return Ranked(scorer)

        def call(self, component, query, inputs, *, top_n=None, score_threshold=None):
            assert score_threshold is None
            return component.rank(query, inputs, top_n=top_n)

    class Retriever(RetrieverContract):
        def make(self, passages, k, encoder):
            return Found(passages, encoder)

    for contract in (Reranker, Retriever):
        outcomes = run_contract(contract)
        assert [check for check, outcome in outcomes.items() if outcome.startswith("FAIL")] == []
    assert outcomes["written_down_and_read_again"].startswith("n/a")


def test_a_contract_says_what_must_be_given():
    with pytest.raises(NotImplementedError, match="def make"):
        RerankerContract().test_best_first()


def test_a_call_that_hangs_fails_its_check(monkeypatch):
    from retrieve_rerank.testing import running

    monkeypatch.setattr(running, "PATIENCE", 0.2)

    class Hanging(RerankerContract):
        def make(self, scorer, *, top_n=None, score_threshold=None):
            return Ranked(scorer)

        async def acall(self, component, query, inputs, **options):
            await asyncio.sleep(5)

    start = time.perf_counter()
    assert run_contract(Hanging)["async_is_sync"] == "FAIL: no answer within 0.2 s"
    assert time.perf_counter() - start < 4


def test_threads_that_hang_fail_their_check(monkeypatch):
    """They were waited for, and so was the end of the interpreter."""
    from retrieve_rerank.testing import running

    monkeypatch.setattr(running, "PATIENCE", 0.2)
    never = threading.Event()
    with pytest.raises(AssertionError, match=r"no answer within 0.2 s on 1 of 4 threads"):
        running.in_threads(lambda number: never.wait(60) if number == 2 else None, threads=4)
    never.set()
    with pytest.raises(ZeroDivisionError):
        running.in_threads(lambda number: 1 // number, threads=2)


def test_checks_of_the_users_own_may_be_async_and_skip():
    class Own:
        async def test_async_that_fails(self):
            raise AssertionError("no")

        async def test_async_that_passes(self):
            pass

        def test_skipped(self):
            pytest.skip("not here")

        def test_failed(self):
            pytest.fail("told to")

    assert run_contract(Own) == {
        "async_that_fails": "FAIL: no",
        "async_that_passes": "pass",
        "skipped": "n/a: not here",
        "failed": "FAIL: told to",
    }


def test_a_list_of_hits_and_texts_is_no_first_stage():
    hits = hits_of(["a"])
    with pytest.raises(InvalidInputError, match="hits or texts, not both"):
        ListRetriever([hits[0], "b"])
    assert [hit.passage.text for hit in ListRetriever(hits).retrieve("q", 5)] == ["a"]


def test_the_contracts_import_no_framework_no_torch_and_no_pytest():
    script = """
        import sys
        from retrieve_rerank.testing import LetterEncoder, RerankerContract, RetrieverContract, VectorStoreContract
        heavy = ("torch", "chromadb", "langchain_core", "llama_index", "pytest")
        print([name for name in heavy if name in sys.modules])
    """
    assert run_python(script).strip() == "[]"


def test_without_its_framework_a_contract_names_the_extra():
    script = """
        import sys
        sys.modules["langchain_core"] = sys.modules["llama_index"] = None
        import retrieve_rerank.testing as testing
        for name in ("LangChainRerankerContract", "LlamaIndexRerankerContract"):
            try:
                getattr(testing, name)
            except ImportError as error:
                print(error)
    """
    printed = run_python(script)
    assert 'pip install "retrieve-rerank[langchain]"' in printed
    assert 'pip install "retrieve-rerank[llama-index]"' in printed
