"""Several first stages as one."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest

from retrieve_rerank import (
    ChromaIndex,
    DegradedWarning,
    Hit,
    HybridRetriever,
    InvalidInputError,
    Passage,
    RetrieveRerankError,
    fuse,
)
from retrieve_rerank.models.threads import run_beside
from tests.core.stubs import LetterEncoder, ListRetriever, SlowRetriever, found, run_python


class SlowAsync(SlowRetriever):
    """Has an async method of its own, and no sync one that works."""

    cancelled = False

    async def aretrieve(self, query: str, k: int, **options: object) -> list[Hit]:
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return ListRetriever.retrieve(self, query, k, **options)


class Down(ListRetriever):
    """Fails, at once or after a while."""

    def __init__(self, error: BaseException | None = None, seconds: float = 0.0) -> None:
        super().__init__([])
        self.error = error or ConnectionError("no server")
        self.seconds = seconds

    def retrieve(self, query: str, k: int, **options: object) -> list[Hit]:
        time.sleep(self.seconds)
        raise self.error


class NoOptions(ListRetriever):
    def retrieve(self, query: str, k: int) -> list[Hit]:  # type: ignore[override]
        return super().retrieve(query, k)


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.passage.text for hit in hits]


async def called(hybrid: HybridRetriever, way: str, *queries: str, k: int = 100, **options: Any) -> list[list[Hit]]:
    """Return what one of the ways in finds for each query, or for "q"."""
    asked = list(queries or ["q"])
    match way:
        case "retrieve":
            return [hybrid.retrieve(asked[0], k, **options)]
        case "aretrieve":
            return [await hybrid.aretrieve(asked[0], k, **options)]
        case "retrieve_many":
            return hybrid.retrieve_many(asked, k, **options)
        case _:
            return await hybrid.aretrieve_many(asked, k, **options)


WAYS = ("retrieve", "aretrieve", "retrieve_many", "aretrieve_many")
every = pytest.mark.parametrize("way", WAYS)


async def every_way(hybrid: HybridRetriever, query: str, k: int, **options: Any) -> list[list[Hit]]:
    """Return what each way in finds."""
    return [(await called(hybrid, way, query, k=k, **options))[0] for way in WAYS]


async def test_it_is_the_fusion_of_what_the_retrievers_find() -> None:
    lists = ["abcd", "cbe"]
    options: dict[str, Any] = {"weights": [2, 1.5], "rrf_k": 10}
    hybrid = HybridRetriever([ListRetriever(list(texts)) for texts in lists], **options)
    expected = fuse([found(list(texts)) for texts in lists], **options)
    for hits in await every_way(hybrid, "q", 100):
        assert hits == expected
    for hits in await every_way(hybrid, "q", 2):
        assert hits == fuse([found(list(texts))[:2] for texts in lists], **options)[:2]


async def test_each_is_asked_for_k_and_a_longer_answer_is_cut() -> None:
    class Generous(ListRetriever):
        def retrieve(self, query: str, k: int, **options: object) -> list[Hit]:
            return super().retrieve(query, 99, **options)

    first, second = ListRetriever("ab"), Generous("xya")
    for hits in await every_way(HybridRetriever([first, second]), "q", 2):
        assert [(hit.passage.text, hit.retrieval_ranks) for hit in hits] == [("a", (1, None)), ("x", (None, 1))]
    assert {(query, k) for query, k, _ in first.asked} == {("q", 2)}
    assert {hit.retrieval_ranks for hit in HybridRetriever([second]).retrieve("q", 2)} == {(1,), (2,)}


def test_a_hundred_hits_unless_told_otherwise() -> None:
    retriever = ListRetriever("a")
    HybridRetriever([retriever]).retrieve("q")
    assert retriever.asked == [("q", 100, {})]


@pytest.mark.parametrize("kind", [SlowRetriever, SlowAsync])
async def test_retrievers_run_at_the_same_time(kind: type[SlowRetriever]) -> None:
    """C13: the peer runs them one after another."""
    hybrid = HybridRetriever([kind("a", 0.3), SlowRetriever("b", 0.3), SlowRetriever("c", 0.3)])
    for call in (
        lambda: asyncio.to_thread(hybrid.retrieve, "q"),
        lambda: hybrid.aretrieve("q"),
        lambda: asyncio.to_thread(hybrid.retrieve_many, ["q"]),
        lambda: hybrid.aretrieve_many(["q"]),
    ):
        start = time.perf_counter()
        await call()
        assert 0.29 < time.perf_counter() - start < 0.6


async def test_callers_do_not_wait_for_one_another() -> None:
    hybrid = HybridRetriever([SlowRetriever("a", 0.3), SlowRetriever("b", 0.3)])
    start = time.perf_counter()
    await asyncio.gather(*(hybrid.aretrieve("q") for _ in range(4)))
    assert time.perf_counter() - start < 0.6


async def test_the_loop_and_its_default_pool_are_left_alone() -> None:
    slow = SlowRetriever("a", 0.2)
    waiting = asyncio.create_task(HybridRetriever([slow, SlowAsync("b", 0.1)]).aretrieve("q"))
    ticks = 0
    while not waiting.done():
        ticks += 1
        await asyncio.sleep(0.01)
    assert ids(waiting.result()) == ["a", "b"]
    assert ticks >= 10
    assert slow.threads[0].startswith("retrieve-rerank hybrid")


async def test_the_callers_context_is_seen_by_every_retriever() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="lost")
    seen: list[str] = []

    class Looks(ListRetriever):
        def retrieve(self, query: str, k: int, **options: object) -> list[Hit]:
            seen.append(variable.get())
            return super().retrieve(query, k, **options)

    variable.set("kept")
    await every_way(HybridRetriever([Looks("a"), Looks("b")]), "q", 1)
    assert seen == ["kept"] * 8


async def test_options_go_to_every_retriever_and_are_never_dropped() -> None:
    takes = [ListRetriever("a"), ListRetriever("b")]
    for hits in await every_way(HybridRetriever(takes), "q", 5, where={"n": 1}):
        assert ids(hits) == ["a", "b"]
    assert [asked[2] for retriever in takes for asked in retriever.asked] == [{"where": {"n": 1}}] * 8
    for on_error in ("raise", "skip"):
        hybrid = HybridRetriever([ListRetriever("a"), NoOptions("b")], on_error=on_error)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="NoOptions has no option 'where' in a search; it takes: none"):
            hybrid.retrieve("q", where={"n": 1})
        with pytest.raises(InvalidInputError, match="'where'"):
            await hybrid.aretrieve("q", where={"n": 1})


# One of them fails


@every
async def test_a_failure_is_raised_as_it_is_and_at_once(way: str) -> None:
    hybrid = HybridRetriever([SlowRetriever("a", 2.0), Down()])
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match="no server"):
        await called(hybrid, way)
    assert time.perf_counter() - start < 1.0


async def test_what_is_still_running_is_cancelled() -> None:
    slow = SlowAsync("a", 5.0)
    with pytest.raises(ConnectionError):
        await HybridRetriever([slow, Down()]).aretrieve("q")
    await asyncio.sleep(0)
    assert slow.cancelled
    waiting = asyncio.create_task(HybridRetriever([other := SlowAsync("a", 5.0)]).aretrieve("q"))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    assert other.cancelled


async def test_two_failures_leave_nothing_behind_that_asyncio_logs(caplog: pytest.LogCaptureFixture) -> None:
    class DownAsync(SlowAsync):
        async def aretrieve(self, query: str, k: int, **options: object) -> list[Hit]:
            try:
                await asyncio.sleep(self.seconds)
            finally:
                raise ConnectionError("no server")

    with pytest.raises(ConnectionError):
        await HybridRetriever([DownAsync("a", 0.0), DownAsync("b", 0.0), DownAsync("c", 1.0)]).aretrieve("q")
    await asyncio.sleep(0.01)
    gc.collect()
    assert caplog.text == ""


@every
async def test_a_failure_is_skipped_where_asked_with_one_warning(way: str) -> None:
    hybrid = HybridRetriever([ListRetriever("ab"), Down(), Down(OSError("disk"), 0.05)], on_error="skip")
    with pytest.warns(DegradedWarning) as warned:
        (hits,) = await called(hybrid, way)
    assert ids(hits) == ["a", "b"]
    assert [hit.retrieval_ranks for hit in hits] == [(1, None, None), (2, None, None)]
    (warning,) = warned
    assert str(warning.message) == (
        "the result lacks what these would have found: retriever 2 (Down): ConnectionError: no server; "
        "retriever 3 (Down): OSError: disk"
    )
    assert warning.filename == __file__


@every
async def test_all_failing_raises_where_failures_are_skipped(way: str) -> None:
    hybrid = HybridRetriever([Down(), Down(OSError("disk"))], on_error="skip")
    with pytest.raises(RetrieveRerankError, match=r"every retriever failed: .* no server; .* disk") as raised:
        await called(hybrid, way)
    assert isinstance(raised.value.__cause__, ConnectionError)


def test_a_failure_is_named_in_one_line_and_without_secrets() -> None:
    down = Down(
        ConnectionError("http://elastic:hunter2@db:9200/_search?api_key=SECRET\nAuthorization: Bearer abc\nrefused")
    )
    shown = (
        r"retriever \d \(Down\): ConnectionError: http://\*\*\*@db:9200/_search\?api_key=\*\*\* "
        r"Authorization: \*\*\* refused"
    )
    with pytest.warns(DegradedWarning, match=f"what these would have found: {shown}$"):
        HybridRetriever([ListRetriever("a"), down], on_error="skip").retrieve("q")
    with pytest.raises(RetrieveRerankError, match=f"^every retriever failed: {shown}; {shown}$"):
        HybridRetriever([down, down], on_error="skip").retrieve("q")


@pytest.mark.parametrize("error", [InvalidInputError("where is wrong"), KeyboardInterrupt()])
def test_what_is_not_the_retrievers_fault_is_not_skipped(error: BaseException) -> None:
    with pytest.raises(type(error)):
        HybridRetriever([ListRetriever("a"), Down(error)], on_error="skip").retrieve("q")


def test_a_type_error_inside_a_retriever_is_its_own_failure() -> None:
    hybrid = HybridRetriever([ListRetriever("a"), Down(TypeError("bug"))], on_error="skip")
    with pytest.warns(DegradedWarning, match="TypeError: bug"):
        assert ids(hybrid.retrieve("q")) == ["a"]


# More than one query


async def test_each_retriever_gets_all_queries_together_where_it_can() -> None:
    class Many(ListRetriever):
        def retrieve_many(self, queries: Sequence[str], k: int, **options: object) -> list[list[Hit]]:
            self.asked.append(("+".join(queries), k, options))
            return [found([query]) for query in queries]

    many, single = Many([]), ListRetriever("x")
    hybrid = HybridRetriever([many, single])
    expected = [["a", "x"], ["b", "x"]]
    assert [ids(hits) for hits in hybrid.retrieve_many(["a", "b"], 7, where=1)] == expected
    assert [ids(hits) for hits in await hybrid.aretrieve_many(["a", "b"], 7, where=1)] == expected
    assert many.asked == [("a+b", 7, {"where": 1})] * 2
    assert single.asked == [("a", 7, {"where": 1}), ("b", 7, {"where": 1})] * 2
    assert hybrid.retrieve_many([]) == await hybrid.aretrieve_many([]) == []
    assert len(single.asked) == 4


# Over real indexes, and in the pipeline


@pytest.fixture
def indexes() -> Iterator[list[ChromaIndex]]:
    texts = ["aaa", "aab", "bbc", "c", "abc"]
    with ChromaIndex(LetterEncoder()) as cosine, ChromaIndex(LetterEncoder("dot")) as dot:
        for index in (cosine, dot):
            index.add([Passage(text, text, {"n": number}) for number, text in enumerate(texts)])
        yield [cosine, dot]


async def test_over_two_indexes(indexes: list[ChromaIndex]) -> None:
    hybrid = HybridRetriever(indexes)
    expected = fuse([index.retrieve("ab", 4) for index in indexes], k=4)
    for hits in await every_way(hybrid, "ab", 4):
        assert hits == expected
    for hits in await every_way(hybrid, "ab", 4, where={"n": {"$lt": 2}}):
        assert set(ids(hits)) == {"aaa", "aab"}


def test_a_hybrid_in_a_hybrid(indexes: list[ChromaIndex]) -> None:
    inner = HybridRetriever(indexes)
    hits = HybridRetriever([inner, inner, ListRetriever("z")]).retrieve("ab", 3)
    assert ids(hits)[:2] == ids(inner.retrieve("ab", 2))
    assert hits[0].retrieval_ranks == (1, 1, None)


# Its threads


def test_closing_leaves_the_retrievers_open_and_a_later_call_works() -> None:
    with HybridRetriever([ListRetriever("a"), ListRetriever("b")]) as hybrid:
        assert ids(hybrid.retrieve("q")) == ["a", "b"]
    assert ids(hybrid.retrieve("q")) == ["a", "b"]


def test_a_calls_threads_end_with_it() -> None:
    before = threading.active_count()
    hybrid = HybridRetriever([ListRetriever("a"), ListRetriever("b")])
    assert ids(hybrid.retrieve("q")) == ["a", "b"]
    wait_until(lambda: threading.active_count() <= before)


async def test_calls_that_hang_do_not_block_the_next() -> None:
    stuck = SlowRetriever("a", hangs=20)
    hybrid = HybridRetriever([stuck, ListRetriever("b")])
    try:
        for _ in range(20):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(hybrid.aretrieve("q"), 0.02)
        assert ids(await asyncio.wait_for(hybrid.aretrieve("q"), 10)) == ["a", "b"]
        assert ids(hybrid.retrieve("q")) == ["a", "b"]
    finally:
        stuck.release.set()


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_retriever_that_hangs_keeps_no_interpreter_alive(way: str) -> None:
    script = """
        import asyncio, sys, time
        from retrieve_rerank import HybridRetriever

        class Hung:
            def retrieve(self, query, k):
                time.sleep(600)

        class Down:
            def retrieve(self, query, k):
                raise ConnectionError("no server")

        hybrid = HybridRetriever([Hung(), Down()])
        try:
            hybrid.retrieve("q") if sys.argv[1] == "sync" else asyncio.run(hybrid.aretrieve("q"))
        except ConnectionError:
            print("raised")
    """
    assert run_python(script, way, timeout=30).strip() == "raised"


def test_what_a_failed_call_held_is_freed_at_once() -> None:
    class Held:
        pass

    held = Held()
    alive = weakref.ref(held)

    class Fails(ListRetriever):
        def retrieve(self, query: str, k: int, **options: object) -> list[Hit]:
            raise ConnectionError("no server")

    future = run_beside("retrieve-rerank test", partial(Fails("a").retrieve, "q", 1, held=held))
    del held
    gc.collect()
    gc.disable()
    try:
        assert isinstance(future.exception(10), ConnectionError)
        wait_until(lambda: all(thread.name != "retrieve-rerank test" for thread in threading.enumerate()))
        del future
        assert alive() is None
    finally:
        gc.enable()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + 5
    while not true():
        assert time.perf_counter() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_it_works_in_a_forked_child() -> None:
    script = """
        import os, warnings
        from retrieve_rerank import HybridRetriever
        from tests.core.stubs import ListRetriever
        warnings.simplefilter("ignore")  # newer Pythons warn of a fork beside threads
        hybrid = HybridRetriever([ListRetriever("ab")])
        hybrid.retrieve("q")
        child = os.fork()
        if child == 0:
            os._exit(len(hybrid.retrieve("q")))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert run_python(script, timeout=20).strip() == "2"


# The same texts under ids of each retriever's own


def own_ids(prefix: str, texts: str) -> ListRetriever:
    return ListRetriever([Hit(Passage(f"{prefix}{text}", text), n, 1 / n) for n, text in enumerate(texts, start=1)])


@every
async def test_equal_texts_that_share_no_id_warn_once_a_call(way: str) -> None:
    """Else every passage comes twice, without a word."""
    hybrid = HybridRetriever([own_ids("x", "ab"), own_ids("y", "bc"), ListRetriever([])])
    with pytest.warns(UserWarning, match='the same texts under different ids.*merge="text"') as warned:
        found = await called(hybrid, way, "q", "r", "s")
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert [ids(hits) for hits in found] == [["a", "b", "b", "c"]] * len(found)


@every
@pytest.mark.parametrize(
    ("retrievers", "options"),
    [
        ([own_ids("x", "ab"), own_ids("y", "ab")], {"merge": "text"}),
        ([own_ids("x", "ab"), own_ids("y", "cd")], {}),  # two collections
        ([own_ids("x", "abc"), own_ids("y", "ab"), own_ids("x", "c")], {}),
        ([own_ids("x", "aa"), own_ids("y", "b")], {}),  # twins of one retriever are its own affair
        ([own_ids("x", "ab"), own_ids("y", "ab")], {"weights": [1, 0]}),  # nothing comes twice
        ([own_ids("x", "ab"), ListRetriever([])], {}),
        ([ListRetriever([Hit(Passage(id_, ""), 1, 1.0)]) for id_ in "ab"], {}),  # pictures, say
    ],
)
async def test_what_is_no_mistake_does_not_warn(
    way: str, retrievers: list[ListRetriever], options: dict[str, Any]
) -> None:
    assert await called(HybridRetriever(retrievers, **options), way)


# What cannot be used


TWO = [ListRetriever("a"), ListRetriever("b")]


@pytest.mark.parametrize(
    ("retrievers", "options", "says"),
    [
        ([], {}, "at least one"),
        (None, {}, "must be a list of retrievers, got NoneType"),
        ("ab", {}, "got str"),
        (ListRetriever("a"), {}, "got ListRetriever"),
        ([ListRetriever("a"), "b"], {}, r"retrievers\[1\] must have retrieve"),
        (TWO, {"weights": [1]}, "one weight a retriever: 2, got 1"),
        (TWO, {"weights": [0, 0]}, "above 0"),
        (TWO, {"rrf_k": -1}, "rrf_k"),
        (TWO, {"on_error": "ignore"}, "on_error must be 'raise' or 'skip', got 'ignore'"),
        (TWO, {"merge": "hash"}, "merge must be"),
    ],
)
def test_unusable_retrievers_and_settings(retrievers: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        HybridRetriever(retrievers, **options)


@pytest.mark.parametrize(("query", "k"), [("", 1), (" ", 1), (None, 1), ("q", 0), ("q", True), ("q", 1.5)])
async def test_an_unusable_query_or_count_asks_nobody(query: Any, k: Any) -> None:
    retriever = ListRetriever("a")
    for way in WAYS:
        with pytest.raises(InvalidInputError):
            await called(HybridRetriever([retriever]), way, query, k=k)
    assert retriever.asked == []


def test_the_retrievers_are_not_exchanged() -> None:
    """It changed the repr, and the old ones were asked on."""
    first, second = ListRetriever(["a"]), ListRetriever(["b"])
    hybrid = HybridRetriever([first, second])
    with pytest.raises(AttributeError, match="retrievers"):
        setattr(hybrid, "retrievers", (second, first))  # noqa: B010 - mypy knows that it cannot be assigned
    assert hybrid.retrievers == (first, second)


def test_the_repr_shows_the_settings() -> None:
    shown = repr(HybridRetriever([ChromaIndex(LetterEncoder())], weights=[2]))
    assert shown.startswith("HybridRetriever([ChromaIndex(")
    assert shown.endswith("weights=[2.0], rrf_k=60, on_error='raise', merge='id')")
