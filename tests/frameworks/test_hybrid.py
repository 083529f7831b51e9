"""Several first stages as one retriever."""

from __future__ import annotations

from typing import Any

import pytest

from retrieve_rerank import DegradedWarning, InvalidInputError, RetrieveRerankError, fuse
from tests.core.stubs import found
from tests.frameworks.adapters import Door, Seen, ids, letters, ranks


async def test_it_is_the_cores_fusion(door: Door) -> None:
    options: dict[str, Any] = {"weights": [2, 1.5], "rrf_k": 10}
    hybrid = door.hybrid([door.listed(letters("abcd")), door.listed(letters("cbe"))], **options)
    hits = fuse([found("abcd"), found("cbe")], **options)
    expected = [
        Seen(hit.passage.text, hit.passage.text.upper(), hit.retrieval_score, hit.retrieval_rank, hit.retrieval_ranks)
        for hit in hits
    ]
    assert await door.ask(hybrid, "q") == [expected, expected]


async def test_passages_are_merged_by_id_or_by_text(door: Door) -> None:
    """C13: the peer merges by the text, and loses one of two documents; and it gives no scores."""
    one, two = door.listed([("1", "same"), ("2", "same")]), door.listed([("3", "same"), ("1", "other")])
    for results in await door.ask(door.hybrid([one, two]), "q"):
        assert (ids(results), ranks(results)) == ("132", [(1, 2), (None, 1), (2, None)])
        assert results[0].text == "same"  # as the first retriever returned it
    two = door.listed([("3", "same"), ("4", "other")])
    for results in await door.ask(door.hybrid([one, two], merge="text"), "q"):
        assert (ids(results), ranks(results)) == ("14", [(1, 1), (None, 2)])


async def test_retrievers_that_made_their_own_ids_are_told_of(door: Door) -> None:
    """Else every passage comes twice, without a word."""
    texts = ["a paris", "b paris", "c paris"]

    def made(prefix: str) -> Any:
        return door.listed([(prefix + text, text) for text in texts])

    with pytest.warns(UserWarning, match='the same texts under different ids.*merge="text"') as warned:
        twice = await door.ask(door.hybrid([made("one "), made("two ")]), "paris")
    assert len(warned) == 2  # one a call
    once = [
        *await door.ask(door.hybrid([made("one "), made("two ")], merge="text"), "paris"),
        *await door.ask(door.hybrid([made(""), made("")]), "paris"),
    ]
    for several, times in ((twice, 2), (once, 1)):
        for results in several:
            assert sorted(seen.text for seen in results) == sorted(texts * times)


async def test_a_failure_is_raised_or_skipped_with_one_warning(door: Door) -> None:
    down, listed = door.down(ConnectionError("no server")), door.listed(letters("ab"))
    with pytest.raises(ConnectionError, match="no server"):
        await door.ask(door.hybrid([listed, down]), "q")
    with pytest.warns(DegradedWarning, match=r"retriever 1 \(Answering\): ConnectionError: no server") as warned:
        several = await door.ask(door.hybrid([down, listed], on_error="skip"), "q")
    assert len(warned) == 2
    for results in several:
        assert (ids(results), ranks(results)) == ("ab", [(None, 1), (None, 2)])
    with pytest.raises(RetrieveRerankError, match="every retriever failed"):
        await door.ask(door.hybrid([down, down], on_error="skip"), "q")


async def test_the_ranks_in_every_list_live_through_re_ranking(door: Door) -> None:
    model = door.table({"A": 0.0, "B": 1.0, "C": 2.0, "D": 3.0})
    retrievers = [door.listed(letters("abcd")), door.listed(letters("bad"))]
    hybrid = door.hybrid(retrievers, k=1)
    fused = {seen.id: seen for seen in (await door.ask(door.hybrid(retrievers, k=3), "q"))[0]}
    given = await door.native(door.retriever(hybrid, door.reranker(model), fetch_k=3, top_n=2), "q")
    again = await door.reranked(door.reranker(model), given[0], "q")
    for results in [[door.read(one) for one in results] for results in given + again]:
        assert ids(results) == "cb"
        for seen in results:
            before = fused[seen.id]
            assert (seen.retrieval_ranks, seen.retrieval_rank) == (before.retrieval_ranks, before.retrieval_rank)
            assert seen.retrieval_score == before.retrieval_score
    assert len((await door.ask(hybrid, "q"))[0]) == 1  # what was given is not modified


async def test_what_is_merged_by_text_is_one_for_rewrites_too(door: Door) -> None:
    """Each finds one text, under an id of its own; for some queries nothing."""

    def by_query(id_: str, queries: str) -> Any:
        return door.answering(lambda query: door.scored([(id_, "the text")]) if query in queries else [])

    hybrid = door.hybrid([by_query("d", "a"), by_query("w", "ab")], merge="text")
    retriever = door.retriever(hybrid, door.table({"the text": 1.0}), fetch_k=1, rewrites=["b"])
    assert [ids(results) for results in await door.ask(retriever, "a")] == ["d", "d"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weights": [1]}, "one weight a retriever: 2, got 1"),
        ({"weights": [0, 0]}, "above 0"),
        ({"weights": [1, -1]}, r"weights\[1\]"),
        ({"weights": [1, True]}, r"weights\[1\]"),
        ({"rrf_k": -1}, "rrf_k must be"),
        ({"k": 0}, "k must be"),
        ({"merge": "hash"}, "merge must be 'id' or 'text'"),
        ({"on_error": "retrieval_order"}, "on_error must be 'raise' or 'skip'"),
        ({"retrievers": []}, "at least one"),
        ({"retrievers": "ab"}, "must be a list of retrievers, got str"),
        ({"retrievers": None}, "must be a list of retrievers, got NoneType"),
    ],
)
def test_arguments_that_cannot_be_used(door: Door, options: dict[str, Any], says: str) -> None:
    given = {"retrievers": [door.listed(letters("a")), door.listed(letters("b"))], **options}
    with pytest.raises(door.refusal, match=says):
        door.hybrid(**given)


def test_what_is_no_retriever_of_the_framework_is_named(door: Door) -> None:
    with pytest.raises(door.refusal, match=r"retrievers\[1\] must be a .* retriever or .*, got str"):
        door.hybrid([door.listed(letters("a")), "b"])


@pytest.mark.parametrize("query", ["", " "])
async def test_an_empty_query_asks_nobody(door: Door, query: str) -> None:
    hybrid = door.hybrid([door.down(ConnectionError())])
    with pytest.raises(InvalidInputError, match="empty"):
        await door.ask(hybrid, query)
