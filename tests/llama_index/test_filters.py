from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from retrieve_rerank import InvalidInputError
from retrieve_rerank.llama_index import ChromaVectorStore
from retrieve_rerank.llama_index.filters import to_condition
from tests.llama_index.stubs import text_node

Op = FilterOperator

RECORDS: dict[str, tuple[str, dict[str, object]]] = {
    "paris": ("Paris is the (capital) of France.", {"year": 2020, "tags": ["city", "big"], "kind": "fact"}),
    "rome": ("Rome is a city; a+b = c.", {"year": 2021, "tags": ["city"], "kind": "fact", "score": 0.5}),
    "bread": ("bread IS baked.\nDaily.", {"year": 2021.0, "kind": "recipe", "sizes": [1, 2]}),
    "bare": ("Ärger is not here.", {}),
    "flag": ("", {"kind": True, "tags": ["big", "red"], "sizes": [2]}),
}


@pytest.fixture(scope="module")
def store() -> Iterator[ChromaVectorStore]:
    store = ChromaVectorStore()
    store.add([text_node(id_, text, [1.0, 0.0], **metadata) for id_, (text, metadata) in RECORDS.items()])
    yield store
    store.close()


def found(store: ChromaVectorStore, filters: MetadataFilters) -> set[str]:
    return {node.node_id for node in store.get_nodes(filters=filters)}


def one(key: str, name: FilterOperator, value: object) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, operator=name, value=value)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "name", "value", "expected"),
    [
        ("kind", Op.EQ, "fact", {"paris", "rome"}),
        ("year", Op.EQ, 2021, {"rome", "bread"}),
        ("kind", Op.NE, "fact", {"bread", "bare", "flag"}),
        ("year", Op.NE, 2021, {"paris", "bare", "flag"}),
        ("year", Op.GT, 2020, {"rome", "bread"}),
        ("year", Op.GTE, 2020, {"paris", "rome", "bread"}),
        ("year", Op.LT, 2020.5, {"paris"}),
        ("year", Op.LTE, 2020, {"paris"}),
        ("score", Op.LT, 1, {"rome"}),
        ("kind", Op.IN, ["recipe", "other"], {"bread"}),
        ("kind", Op.NIN, ["recipe", "fact"], {"bare", "flag"}),
        ("tags", Op.CONTAINS, "city", {"paris", "rome"}),
        ("sizes", Op.CONTAINS, 2, {"bread", "flag"}),
        ("tags", Op.ANY, ["red", "city"], {"paris", "rome", "flag"}),
        ("tags", Op.ANY, ["red"], {"flag"}),
        ("tags", Op.ALL, ["big", "city"], {"paris"}),
        ("kind", Op.CONTAINS, "fac", set()),  # a list has items; a text has none
        ("#document", Op.TEXT_MATCH, "is the (cap", {"paris"}),
        ("#document", Op.TEXT_MATCH, "IS", {"bread"}),
        ("#document", Op.CONTAINS, "city", {"rome"}),
        ("#document", Op.ANY, ["city", "Paris"], {"paris", "rome"}),
        ("#document", Op.ALL, ["Rome", "city"], {"rome"}),
        ("#document", Op.TEXT_MATCH_INSENSITIVE, "IS THE (CAP", {"paris"}),
        ("#document", Op.TEXT_MATCH_INSENSITIVE, "A+B = C.", {"rome"}),
        ("#document", Op.TEXT_MATCH_INSENSITIVE, "baked.\ndaily", {"bread"}),
        ("#document", Op.TEXT_MATCH_INSENSITIVE, "ärger", {"bare"}),
    ],
)
def test_each_operator(
    store: ChromaVectorStore, key: str, name: FilterOperator, value: object, expected: set[str]
) -> None:
    assert found(store, one(key, name, value)) == expected


def test_case_insensitive_text_goes_with_metadata_by_and(store: ChromaVectorStore) -> None:
    text = MetadataFilter(key="#document", operator=Op.TEXT_MATCH_INSENSITIVE, value="is")
    fact = MetadataFilter(key="kind", value="fact")
    assert found(store, MetadataFilters(filters=[fact, text])) == {"paris", "rome"}
    nested = MetadataFilters(filters=[MetadataFilters(filters=[text]), fact])
    assert found(store, nested) == {"paris", "rome"}
    assert found(store, MetadataFilters(filters=[text], condition=FilterCondition.NOT)) == {"flag"}
    both = MetadataFilters(
        filters=[text, MetadataFilter(key="#document", operator=Op.TEXT_MATCH, value="Ä")], condition=FilterCondition.OR
    )
    assert found(store, both) == {"paris", "rome", "bread", "bare"}
    with pytest.raises(InvalidInputError, match="combine them by 'and'"):
        found(store, MetadataFilters(filters=[fact, text], condition=FilterCondition.OR))


@pytest.mark.parametrize(
    ("key", "name", "value", "words"),
    [
        ("year", Op.IS_EMPTY, None, "lack a key"),
        ("year", Op.EQ, None, "no None"),
        ("tags", Op.EQ, ["city"], "contains"),
        ("year", Op.GT, "2020", "numbers only"),
        ("year", Op.LT, float("nan"), "NaN"),
        ("year", Op.EQ, float("inf"), "infinity"),
        ("kind", Op.IN, [], "at least one item"),
        ("kind", Op.IN, "fact", "must be a list"),
        ("tags", Op.ANY, [], "at least one item"),
        ("tags", Op.CONTAINS, ["city"], "any or all"),
        ("kind", Op.TEXT_MATCH, "fac", "#document"),
        ("kind", Op.TEXT_MATCH_INSENSITIVE, "fac", "#document"),
        ("#document", Op.TEXT_MATCH, "", "at least one character"),
        ("#document", Op.TEXT_MATCH, 3, "at least one character"),
        ("#document", Op.EQ, "text", "text_match"),
        ("$and", Op.EQ, "text", "starts with"),
    ],
)
def test_what_chroma_cannot_express_is_refused(key: str, name: FilterOperator, value: object, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        to_condition(one(key, name, value))


@pytest.mark.parametrize("name", [Op.GT, Op.GTE, Op.LT, Op.LTE])
def test_the_negation_of_a_comparison_is_refused(name: FilterOperator) -> None:
    # Chroma's opposite comparison would leave out the records that lack the key.
    with pytest.raises(InvalidInputError, match="negation"):
        to_condition(MetadataFilters(filters=one("year", name, 1).filters, condition=FilterCondition.NOT))


def test_no_filter_is_no_condition() -> None:
    assert to_condition(None) == to_condition(MetadataFilters(filters=[]))
    assert to_condition(None).where is None
    with pytest.raises(InvalidInputError, match="empty"):
        to_condition(MetadataFilters(filters=[MetadataFilters(filters=[])]))
    with pytest.raises(InvalidInputError, match="MetadataFilters"):
        to_condition({"kind": "fact"})  # type: ignore[arg-type]


NUMBERS = [-3, -2, -1, 0, 2019, 2020, 2021, -2.5, -2.0, 0.5, 2020.25, 2020.5, 2020.0]


@pytest.fixture(scope="module")
def numbers() -> Iterator[ChromaVectorStore]:
    store = ChromaVectorStore()
    store.add([text_node(repr(number), None, [1.0, 0.0], n=number, list=[number]) for number in NUMBERS])
    yield store
    store.close()


LEAVES = [
    *(one("kind", name, value).filters[0] for name in (Op.EQ, Op.NE) for value in ("fact", "recipe")),
    *(one("year", name, value).filters[0] for name in (Op.EQ, Op.NE) for value in (2020, 2021)),
    *(one("kind", name, ["fact", "no"]).filters[0] for name in (Op.IN, Op.NIN)),
    *(one("tags", name, ["big", "city"]).filters[0] for name in (Op.ANY, Op.ALL)),
    one("tags", Op.CONTAINS, "red").filters[0],
    one("#document", Op.TEXT_MATCH, "is").filters[0],
]
TREES = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.builds(
        lambda filters, condition: MetadataFilters(filters=filters, condition=condition),
        st.lists(inner, min_size=1, max_size=3),
        st.sampled_from(list(FilterCondition)),
    ),
    max_leaves=8,
)


def passes(item: MetadataFilter | MetadataFilters, text: str, metadata: dict[str, object]) -> bool:
    """What a filter means."""
    if isinstance(item, MetadataFilters):
        each = [passes(inner, text, metadata) for inner in item.filters]
        if item.condition is FilterCondition.AND:
            return all(each)
        return any(each) if item.condition is FilterCondition.OR else not any(each)
    if item.operator is Op.TEXT_MATCH:
        return item.value in text
    value = metadata.get(item.key)
    same = {Op.EQ: [item.value], Op.NE: [item.value]}.get(item.operator, item.value)
    if item.operator in (Op.EQ, Op.IN):
        return value in same and not isinstance(value, bool)
    if item.operator in (Op.NE, Op.NIN):
        return value not in same or isinstance(value, bool)
    items = value if isinstance(value, list) else []
    if item.operator is Op.CONTAINS:
        return item.value in items
    return (any if item.operator is Op.ANY else all)(wanted in items for wanted in item.value)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tree=TREES)
def test_any_tree_of_filters_finds_what_it_means(
    store: ChromaVectorStore, tree: MetadataFilter | MetadataFilters
) -> None:
    filters = tree if isinstance(tree, MetadataFilters) else MetadataFilters(filters=[tree])
    expected = {id_ for id_, (text, metadata) in RECORDS.items() if passes(filters, text, metadata)}
    assert found(store, filters) == expected
