"""filter.threshold: bounds are inclusive, missing values have their own reason, wrong types stop the run."""

from __future__ import annotations

import decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.filter.threshold import Threshold
from curate.stage import StageError
from pipelines import components
from pipelines.components import Component
from pipelines.errors import RecipeError


def reasons(values: pa.Array, **options: Any) -> list[str | None]:
    stage = Threshold(column="x", **options)
    stage.check()
    decided = stage.process(pa.table({"x": values}), stage.open())
    assert decided.schema == stage.writes()
    assert decided["keep"].to_pylist() == [
        reason is None for reason in decided["reason"].to_pylist()
    ]
    return decided["reason"].to_pylist()


NO, MISSING = "threshold.x", "threshold.x.missing"


def test_bounds_are_inclusive() -> None:
    values = pa.array([0.25, 0.5, 0.75, 1.0])
    assert reasons(values, at_least=0.5) == [NO, None, None, None]
    assert reasons(values, at_most=0.5) == [None, None, NO, NO]
    assert reasons(values, at_least=0.5, at_most=0.75) == [NO, None, None, NO]
    assert reasons(pa.array([1, 2, 3], pa.int8()), at_least=2, at_most=2) == [NO, None, NO]


def test_missing_values_are_refused_by_their_own_name_or_kept() -> None:
    values = pa.array([None, float("nan"), 1.0, -1.0])
    assert reasons(values, at_least=0) == [MISSING, MISSING, None, NO]
    assert reasons(values, at_least=0, missing="keep") == [None, None, None, NO]
    assert reasons(pa.nulls(2), at_most=1) == [MISSING, MISSING]


def test_equals_takes_text_truth_and_numbers() -> None:
    assert reasons(pa.array(["en", "de", None]), equals="en") == [None, NO, MISSING]
    assert reasons(pa.array([True, False]), equals=False) == [NO, None]
    assert reasons(pa.array([1, 2]), equals=2) == [NO, None]


def test_one_of_takes_some_texts() -> None:
    values = pa.array(["en", "de", "fr", None])
    assert reasons(values, one_of=("en", "de")) == [None, None, NO, MISSING]
    assert reasons(values.dictionary_encode(), one_of=("fr",)) == [NO, NO, None, MISSING]
    with pytest.raises(StageError, match="is int64, not text"):
        reasons(pa.array([1]), one_of=("1",))


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_a_bound_is_rounded_as_the_column_is(kind: pa.DataType) -> None:
    values = pa.array([0.05, 0.06], kind)
    assert reasons(values, at_most=0.05) == [None, NO]
    assert reasons(values, at_least=0.06) == [NO, None]
    assert reasons(values, equals=0.05) == [None, NO]
    assert reasons(values, at_most=1e300) == [None, None]


def test_integers_are_compared_exactly() -> None:
    values = pa.array([2**53, 2**53 + 1])
    assert reasons(values, equals=2**53 + 1) == [NO, None]
    assert reasons(values, at_most=float(2**53)) == [None, NO]


def test_bounds_on_integers_are_exact() -> None:
    values = pa.array([2**60, 2**60 + 1, 2**60 + 2])
    assert reasons(values, at_least=2**60 + 1) == [NO, None, None]
    assert reasons(values, at_most=2**60 + 1) == [None, None, NO]
    assert reasons(values.cast(pa.uint64()), at_least=2**60 + 1) == [NO, None, None]
    small = pa.array([-128, 0, 127, None], pa.int8())
    assert reasons(small, at_least=300) == [NO, NO, NO, MISSING]
    assert reasons(small, at_most=300, at_least=-(2**70)) == [None, None, None, MISSING]
    assert reasons(small, at_most=float("inf"), at_least=-0.5) == [NO, None, None, MISSING]
    assert reasons(small, at_most=126.5) == [None, None, NO, MISSING]
    assert reasons(small, equals=0.5) == [NO, NO, NO, MISSING]
    assert reasons(pa.array([2**64 - 1], pa.uint64()), at_most=-1) == [NO]
    made = Component("filter.threshold", {"column": "x", "at_least": 2**60 + 1})
    assert components.build("stage", made).at_least == 2**60 + 1


def test_decimals_are_numbers() -> None:
    values = pa.array([decimal.Decimal("0.50"), decimal.Decimal("0.51"), None])
    assert reasons(values, at_most=0.5) == [None, NO, MISSING]
    assert reasons(values, equals=0.5, missing="keep") == [None, NO, None]


NUMBERS = [pa.int8(), pa.uint64(), pa.int64(), pa.float16(), pa.float32(), pa.float64()]


@given(data=st.data(), kind=st.sampled_from(NUMBERS), cut=st.integers(1, 9))
def test_it_is_what_plain_comparison_says(data: st.DataObject, kind: pa.DataType, cut: int) -> None:
    whole = pa.types.is_integer(kind)
    exact = st.integers(0, 127) if whole else st.floats(width=16)
    values = data.draw(st.lists(st.one_of(st.none(), exact), max_size=20))
    low = data.draw(st.one_of(st.none(), st.integers(-300, 300), st.floats(-1e4, 1e4, width=16)))
    high = 100 if low is None else None
    expected = [
        MISSING if value is None or value != value
        else None if (low is None or value >= low) and (high is None or value <= high)
        else NO
        for value in values
    ]  # fmt: skip
    column = pa.chunked_array([pa.array(values[:cut], kind), pa.array(values[cut:], kind)])
    stage = Threshold(column="x", at_least=low, at_most=high)
    assert stage.process(pa.table({"x": column}), None)["reason"].to_pylist() == expected


def test_dictionary_columns_are_their_values() -> None:
    values = pa.array(["en", "de", None]).dictionary_encode()
    assert reasons(values, equals="en") == [None, NO, MISSING]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "nothing to compare with"),
        ({"at_least": 2.0, "at_most": 1.0}, "at_least = 2.0 is over at_most = 1.0"),
        ({"at_least": 1.0, "equals": "en"}, "and a bound"),
        ({"at_least": 1.0, "one_of": ("en",)}, "one_of = \\['en'\\] and a bound or equals"),
        ({"equals": "en", "one_of": ("en",)}, "and a bound or equals"),
        ({"at_most": float("nan")}, "nan"),
        ({"equals": float("nan")}, "nan"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match=rf"{found}.*hint: "):
        Threshold(column="x", **options).check()


@pytest.mark.parametrize(
    ("values", "options", "hint"),
    [
        (pa.array(["0.5"]), {"at_least": 0.1}, 'equals = "a text"'),
        (pa.array([True]), {"at_least": 0.1}, "equals = true"),
        (pa.array([[1.0]]), {"at_most": 1.0}, "nothing; choose a column"),
        (pa.array([1.0]), {"equals": "1"}, "at_least, at_most, or equals = a number"),
        (pa.array(["true"]), {"equals": True}, 'equals = "a text"'),
    ],
)
def test_a_column_that_cannot_be_compared_stops_the_run_with_a_hint(
    values: pa.Array, options: dict[str, Any], hint: str
) -> None:
    with pytest.raises(StageError, match=rf"column 'x' is .*hint: compare it with {hint}"):
        reasons(values, **options)


def test_options_as_a_recipe_gives_them() -> None:
    def made(**options: Any) -> Threshold:
        return components.build("stage", Component("filter.threshold", {"column": "x", **options}))

    assert made(equals=True).equals is True
    assert type(made(equals=1).equals) is int
    assert made(at_least=1).at_least == 1.0
    with pytest.raises(RecipeError, match="found 'drop'"):
        made(at_least=1, missing="drop")
