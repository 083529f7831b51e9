"""Values that nobody expects: what `test_generated_calls.py` hands to every public door."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import math
import random
import sys
from collections import ChainMap, OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np


class Theirs(Exception):
    """What a caller's own object raises when it is used, which may pass through; shown, it must not."""


class Number(enum.IntEnum):
    ONE = 1


class Word(str, enum.Enum):
    PARIS = "paris"


class Plain(enum.Enum):
    PARIS = "paris"


class Text(str):
    """A text that says something else of itself."""

    __slots__ = ()

    def __str__(self) -> str:
        return "something else"

    def __repr__(self) -> str:
        raise RuntimeError("a text that cannot be shown")


class Whole(int):
    def __repr__(self) -> str:
        return "w" * 100_000


class Real(float):
    def __str__(self) -> str:
        return "real"


class Items(list[Any]):
    def __repr__(self) -> str:
        raise RuntimeError("a list that cannot be shown")


class Table(dict[Any, Any]):
    def __repr__(self) -> str:
        return "t" * 100_000


class Unshown:
    def __repr__(self) -> str:
        raise RuntimeError("an object that cannot be shown")


class LongShown:
    def __repr__(self) -> str:
        return "é" * 1_000_000


class Unequal:
    def __eq__(self, other: object) -> bool:
        raise Theirs("compared")

    def __hash__(self) -> int:
        return 7


class Unhashed:
    __hash__ = None  # type: ignore[assignment]


class Unsized:
    def __len__(self) -> int:
        raise Theirs("counted")

    def __iter__(self) -> Iterator[str]:
        return iter(["a", "b"])


class Breaks:
    def __iter__(self) -> Iterator[str]:
        yield "paris"
        raise Theirs("walked through")


class Indexed:
    def __index__(self) -> int:
        return 3


class Unindexed:
    def __index__(self) -> int:
        raise Theirs("indexed")


class Everything:
    """Has every attribute, all of them None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class Lengthy(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise Theirs(key)

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 2


def nested(kind: str, depth: int) -> Any:
    value: Any = "paris"
    for _ in range(depth):
        value = (
            [value] if kind == "list" else (value,) if kind == "tuple" else {"$and" if kind == "and" else "a": value}
        )
    return value


def endless(kind: str) -> Any:
    if kind == "list":
        items: list[Any] = [1]
        items.append(items)
        return items
    table: dict[str, Any] = {"a": 1}
    table["b"] = table
    return table


def _raising() -> Iterator[str]:
    yield "paris"
    raise Theirs("drawn")


_TEXTS: list[str] = [
    *("", " ", "\t\n\r", "\0", "a\0b", "\ud800", "paris \udfff rome", "\ud83d\ude00", "\u202eparis", "e\u0301" * 400),
    *("\ufeffparis", "\u2028", "\x85", "\x1b[31mparis\x1b[0m", "paris" * 200_000, "é ☃ 😀" * 30_000, "a" * 1_000_000),
    *("{", "{}", "{0}", "{a[0].b}", "%s%n", "${x}", "$eq", "$and", "#document", "chroma:document", "_node_content"),
    *("_retrieve_rerank_json", "None", "nan", "null", "-1", "../../etc/passwd", "/dev/null", "http://", "CON", "~"),
    *("(a+)+$", "[", "\\", "'; DROP TABLE x; --", "<script>", "𝕡𝕒𝕣𝕚𝕤", "\u0000" * 100, "\U000e0001", "x" * 300),
]
_NUMBERS: list[Any] = [
    *(0, -0.0, 1, -1, 2, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**400, -(10**400), 10**5000),
    *(0.5, 1.0, 1.5, -1e-320, 5e-324, 1e-9, 1e308, sys.float_info.max, math.inf, -math.inf, math.nan, True, False),
    *(decimal.Decimal("1.5"), decimal.Decimal("NaN"), decimal.Decimal("1e999999"), fractions.Fraction(1, 3), 1 + 2j),
    *(
        np.int64(3),
        np.float32(0.5),
        np.float64("nan"),
        np.bool_(True),
        np.uint8(255),
        np.float16("inf"),
        np.str_("paris"),
    ),
    *(fractions.Fraction(10**400, 3), np.datetime64("2020-01-01"), np.complex64(1j), np.float64(1e300), np.int8(-1)),
]
_MADE: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "Number": lambda: Number.ONE,
    "Word": lambda: Word.PARIS,
    "Plain": lambda: Plain.PARIS,
    "Text": lambda: Text("paris"),
    "Text empty": lambda: Text(""),
    "Whole": lambda: Whole(3),
    "Whole huge": lambda: Whole(10**400),
    "Whole below": lambda: Whole(-3),
    "Real": lambda: Real(0.5),
    "Real above": lambda: Real(1.5),
    "Items": lambda: Items(["paris", 3]),
    "Table": lambda: Table({"a": "b"}),
    "bytes": lambda: b"paris\xff",
    "bytes long": lambda: b"\0" * 1_000_000,
    "bytearray": lambda: bytearray(b"paris"),
    "memoryview": lambda: memoryview(b"paris"),
    "Path": lambda: Path("/nowhere/paris"),
    "Path long": lambda: Path("x" * 5000),
    "Unshown": Unshown,
    "LongShown": LongShown,
    "Unequal": Unequal,
    "Unhashed": Unhashed,
    "Unsized": Unsized,
    "Breaks": Breaks,
    "Indexed": Indexed,
    "Unindexed": Unindexed,
    "Everything": Everything,
    "Lengthy": Lengthy,
    "object": object,
    "class": lambda: dict,
    "lambda": lambda: lambda *_: None,
    "lambda of errors": lambda: lambda *_: 1 / 0,
    "module": lambda: math,
    "NotImplemented": lambda: NotImplemented,
    "Ellipsis": lambda: ...,
    "date": lambda: datetime.date(2020, 1, 1),
    "datetime": lambda: datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
    "timedelta": lambda: datetime.timedelta(seconds=1),
    "set": lambda: {"paris", "rome"},
    "set mixed": lambda: {1, "rome", None},
    "frozenset": lambda: frozenset(["paris"]),
    "range": lambda: range(5),
    "range long": lambda: range(100_000),
    "generator": lambda: (word for word in ("paris", "rome")),
    "generator raising": _raising,
    "map": lambda: map(str, range(3)),
    "deque": lambda: deque(["paris"]),
    "UserList": lambda: UserList(["paris"]),
    "UserDict": lambda: UserDict({"a": "paris"}),
    "ChainMap": lambda: ChainMap({"a": 1}, {"b": 2}),
    "OrderedDict": lambda: OrderedDict(a=1),
    "array": lambda: np.arange(6.0).reshape(2, 3),
    "array of objects": lambda: np.array([None, "a"], object),
    "array of nothing": lambda: np.zeros((0, 5)),
    "array of NaN": lambda: np.full(32, np.nan, np.float32),
    "array 0-d": lambda: np.array(3),
    "array of texts": lambda: np.array(["paris", "rome"]),
    "array of bytes": lambda: np.array([b"paris"]),
    "list": list,
    "dict": dict,
    "tuple": tuple,
    "list of None": lambda: [None],
    "list of empty": lambda: [""],
    "list of lists": lambda: [[], [[]]],
    "list of texts": lambda: ["paris", "rome"],
    "list of numbers": lambda: [1, 2.5, math.nan],
    "list of bytes": lambda: [b"paris"],
    "list of surrogates": lambda: ["\ud800"],
    "list long": lambda: [None] * 200_000,
    "list of long texts": lambda: ["x" * 1000] * 50,
    "dict of numbers": lambda: {1: 2, 3: {4: 5}},
    "dict of None": lambda: {None: None},
    "dict of tuples": lambda: {("a", 1): "b"},
    "dict of surrogates": lambda: {"\ud800": "\udfff"},
    "dict of bytes": lambda: {b"a": b"b"},
    "dict many": lambda: {f"key{number}": number for number in range(7_000)},
    "dict of long lists": lambda: {"pages": list(range(6_600)), "names": [str(number) for number in range(6_600)]},
    "dict of all": lambda: {
        "a": [1, "b", None, {"c": (1, 2)}],
        "chroma:x": 1,
        "": 2,
        "$a": 3,
        "#b": 4,
        "x.y": math.inf,
    },
    "filter enum": lambda: {"n": Number.ONE},
    "filter many": lambda: {"$or": [{"n": number} for number in range(5_000)]},
    "filter in": lambda: {"n": {"$in": [number / 7 for number in range(20_000)]}},
    "filter regex": lambda: {"$regex": "(a+)+$"},
    "filter odd": lambda: {"n": {"$gt": "a"}},
    "endless list": lambda: endless("list"),
    "endless dict": lambda: endless("dict"),
}
for _kind in ("list", "tuple", "dict", "and"):
    for _depth in (30, 500, 900, 5_000):
        _MADE[f"{_kind} {_depth} deep"] = lambda kind=_kind, depth=_depth: nested(kind, depth)

ODD: list[tuple[str, Callable[[], Any]]] = [
    *((f"text {text[:12]!a} of {len(text)}", lambda text=text: text) for text in _TEXTS),
    *(
        (
            f"{type(number).__name__} {number if not isinstance(number, int) or abs(number) < 2**70 else 'huge'}",
            lambda number=number: number,
        )
        for number in _NUMBERS
    ),
    *_MADE.items(),
]


def odd(draw: random.Random) -> tuple[str, Any]:
    """Return an odd value and what to call it."""
    name, make = draw.choice(ODD)
    return name, make()


def nearly(valid: Any, draw: random.Random) -> tuple[str, Any]:
    """Return a value that is right but for one part, somewhere inside; one that has no parts is replaced."""
    if isinstance(valid, list) and valid and draw.random() < 0.8:
        at = draw.randrange(len(valid))
        name, part = nearly(valid[at], draw)
        return f"[{at}] {name}", [*valid[:at], part, *valid[at + 1 :]]
    if isinstance(valid, dict) and draw.random() < 0.8:
        if valid and draw.random() < 0.6:
            key = draw.choice(sorted(valid))
            name, part = nearly(valid[key], draw)
            return f"{{{key}}} {name}", {**valid, key: part}
        name, key = odd(draw)
        try:
            hash(key)
        except Exception:  # noqa: BLE001 - odd values may raise anything
            return name, key
        return f"{{{name}: 1}}", {key: 1}
    fields = getattr(type(valid), "__dataclass_fields__", None) if is_dataclass(valid) else None
    if fields and draw.random() < 0.8:
        field = draw.choice(sorted(fields))
        name, part = nearly(getattr(valid, field), draw)
        try:
            return f".{field} {name}", replace(valid, **{field: part})
        except Exception:  # noqa: BLE001 - which has a door of its own
            return name, part
    return odd(draw)
