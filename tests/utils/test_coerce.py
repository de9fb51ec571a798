from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from dfmsd.errors import DfmsdError
from dfmsd.utils.coerce import build, check_positive, check_range, coerce, coerce_fields

SIZE = Literal["small", "large", "32"]


@dataclass(frozen=True)
class Wheel:
    radius: float
    name: str = "wheel"

    def __post_init__(self) -> None:
        coerce_fields(self, "wheel.")


@dataclass
class Car:
    wheels: list[Wheel] = field(default_factory=list)
    owner: str | None = None


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (np.int64(3), int, 3),
        (3, float, 3.0),
        (np.float32(0.5), float, 0.5),
        (np.bool_(True), bool, True),
        (Path("a/b"), str, "a/b"),
        (Path("a"), str | list[str] | None, "a"),
        ((Path("a"), "b"), str | list[str] | None, ["a", "b"]),
        (None, str | list[str] | None, None),
        (32, SIZE, "32"),
        ("small", SIZE | list[SIZE], "small"),
        ({"a": [1]}, dict[str, Any] | str, {"a": [1]}),
        ([np.float64(0.5), 2], tuple[float, float] | None, (0.5, 2.0)),
        ({"radius": 1}, Wheel, Wheel(1.0)),
        ([{"radius": 1}, Wheel(2.0)], list[Wheel], [Wheel(1.0), Wheel(2.0)]),
    ],
)
def test_values_are_converted_to_the_annotated_type(value: object, kind: Any, expected: object) -> None:
    converted = coerce(value, kind, "key")
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (1.5, int, "key must be an integer, got 1.5"),
        (True, int, "key must be an integer, got True"),
        ((0.5, 1, 2), tuple[float, float], "key must be a list of 2 values, got"),
        ("ab", tuple[float, float] | None, "key must be a list of 2 values or null, got 'ab'"),
        (1, bool, "key must be true or false, got 1"),
        ("x", float | None, "key must be a number or null, got 'x'"),
        (np.int64(3), str, "key must be a string, got 3"),
        ("a", list[str], "key must be a list, got 'a'"),
        (["a", 3], list[str], "key.1 must be a string, got 3"),
        ("medium", SIZE, "key must be one of small, large, 32, got 'medium'"),
        (True, SIZE, "key must be one of small, large, 32, got True"),
        (3, Wheel, "key must be a Wheel, got 3"),
        ({"radius": 1, "nme": 2}, Wheel, "key.nme is not known; did you mean name?"),
        ({"radius": 1, "colour": 2}, Wheel, "key.colour is not known; known are radius, name"),
        ({}, Wheel, "key: .*'radius'"),
        ({"radius": "wide"}, Wheel, "key.radius must be a number, got 'wide'"),
    ],
)
def test_other_types_are_refused_in_one_line(value: object, kind: Any, message: str) -> None:
    with pytest.raises(DfmsdError, match=message) as caught:
        coerce(value, kind, "key")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["~/runs/a", Path("~/runs/a")])
def test_a_tilde_is_the_home_directory(value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert coerce(value, str, "key") == "/home/me/runs/a"
    assert coerce([value, "a~/b", "~"], list[str], "key") == ["/home/me/runs/a", "a~/b", "~"]


def test_nested_dataclasses_are_built_from_mappings() -> None:
    car = build(Car, {"wheels": ({"radius": 2, "name": Path("left")},)}, "car")
    coerce_fields(car)
    assert car == Car([Wheel(2.0, "left")])


def test_ranges_are_checked() -> None:
    check_range(Wheel(3), ("radius",), minimum=3)
    check_range(Car(), ("owner",), minimum=1)
    check_positive(Wheel(1e-9), ("radius",))
    for radius in (2, float("nan"), float("inf")):
        with pytest.raises(DfmsdError, match=rf"^wheel\.radius must be at least 3, got {float(radius)}"):
            check_range(Wheel(radius), ("radius",), "wheel.", minimum=3)
    for radius in (0, -1, float("nan"), float("inf")):
        with pytest.raises(DfmsdError, match=f"^radius must be above 0, got {float(radius)}"):
            check_positive(Wheel(radius), ("radius",))
