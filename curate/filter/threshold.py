"""Keeps rows whose value in one column is within bounds, or is one of some values; measures nothing itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.stage import KEEP, REASON, RowStage, StageError


@dataclass(frozen=True, kw_only=True)
class Threshold(RowStage):
    """Refuses rows as ``threshold.<column>``, and rows without a value as ``threshold.<column>.missing``.

    Options:
        column: any column that a stage above writes.
        at_least, at_most: bounds on a number, both inclusive. One left out (None) is no bound.
        equals: the one value to keep (text, true or false, a number) instead of bounds.
        one_of: the texts to keep, such as ["en", "de"], instead of bounds or ``equals``.
        missing: ``refuse`` or ``keep`` rows where the value is null or not a number (NaN).

    Numbers of the recipe are rounded to the column's type before they are compared, so a stored
    float32 of 0.05 is within ``at_most = 0.05``. Whole numbers are compared exactly, however large.
    """

    batch_rows: ClassVar[int] = 8192

    column: str
    at_least: int | float | None = None
    at_most: int | float | None = None
    equals: bool | int | float | str | None = None
    one_of: tuple[str, ...] = ()
    missing: Literal["refuse", "keep"] = "refuse"

    def reads(self) -> tuple[str, ...]:
        return (self.column,)

    def writes(self) -> pa.Schema:
        return pa.schema([KEEP, REASON])

    def check(self) -> None:
        bounds = [bound for bound in (self.at_least, self.at_most) if bound is not None]
        if not bounds and self.equals is None and not self.one_of:
            raise ValueError(
                "nothing to compare with. hint: set at_least, at_most, equals, or one_of"
            )
        if self.one_of and (bounds or self.equals is not None):
            raise ValueError(
                f"one_of = {list(self.one_of)} and a bound or equals. hint: set one of them"
            )
        if bounds and self.equals is not None:
            raise ValueError(
                f"equals = {self.equals!r} and a bound. hint: set equals, or bounds, not both"
            )
        if any(isinstance(one, float) and math.isnan(one) for one in (*bounds, self.equals)):
            raise ValueError(
                "a bound is nan, which no value is within or equal to. hint: set a number"
            )
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(
                f"at_least = {self.at_least} is over at_most = {self.at_most}: no row would be kept. hint: swap them"
            )

    def check_columns(self, types: Mapping[str, pa.DataType]) -> None:
        kind = types[self.column]
        try:
            self._check_type(kind.value_type if pa.types.is_dictionary(kind) else kind)
        except StageError as fault:
            raise ValueError(str(fault)) from fault

    def process(self, batch: pa.Table, state: None) -> pa.Table:
        kind = batch[self.column].type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        self._check_type(kind)
        values = batch[self.column].combine_chunks().cast(kind)
        missing = np.asarray(pc.is_null(values, nan_is_null=True))
        refused = missing if self.missing == "refuse" else np.zeros(len(values), bool)
        if not pa.types.is_null(kind):
            refused = refused | (~missing & ~self._within(values))
        codes = pa.array(missing.astype(np.int32), mask=~refused)
        names = [f"threshold.{self.column}", f"threshold.{self.column}.missing"]
        reason = pa.DictionaryArray.from_arrays(codes, names)
        return pa.table([pa.array(~refused), reason], schema=self.writes())

    def _check_type(self, kind: pa.DataType) -> None:
        """Raises StageError where the column's type can't be compared: no row could be judged."""
        wanted, fits = "a number", _is_number(kind)
        if isinstance(self.equals, bool):
            wanted, fits = "true or false", pa.types.is_boolean(kind)
        elif isinstance(self.equals, str) or self.one_of:
            wanted, fits = "text", _is_text(kind)
        if not (fits or pa.types.is_null(kind)):
            raise StageError(
                f"filter.threshold: column {self.column!r} is {kind}, not {wanted}. hint: compare it with {_fitting(kind)}"
            )

    def _within(self, values: pa.Array) -> np.ndarray:
        """Whether each value is what the options ask for: bool of shape (rows,); any for a missing one."""
        if self.one_of:
            wanted = pa.array(self.one_of, pa.string())
            return np.asarray(pc.is_in(values.cast(pa.string()), value_set=wanted))
        if isinstance(self.equals, bool | str):
            found = values.cast(pa.string()) if isinstance(self.equals, str) else values
            return np.asarray(pc.equal(found, self.equals).fill_null(False))
        numbers = _numbers(values)
        within = np.ones(len(numbers), bool)
        if self.equals is not None:
            within &= numbers == _rounded(self.equals, values.type)
        if self.at_least is not None:
            within &= numbers >= _rounded(self.at_least, values.type, math.ceil)
        if self.at_most is not None:
            within &= numbers <= _rounded(self.at_most, values.type, math.floor)
        return within


def _numbers(values: pa.Array) -> np.ndarray:
    """A column of numbers in a type that compares exactly; anything where there is none."""
    if pa.types.is_floating(values.type):
        return np.asarray(values.cast(pa.float64()).fill_null(0.0))
    if pa.types.is_integer(values.type):
        return np.asarray(values.fill_null(0))
    return np.array([value or 0 for value in values.to_pylist()], object)  # decimals


def _rounded(
    value: int | float, kind: pa.DataType, whole: Callable[[float], int] | None = None
) -> Any:
    """A number of the recipe as the column would hold it; unchanged where it can't.

    ``whole`` makes a bound on whole numbers of one with a fraction.
    """
    if pa.types.is_integer(kind):
        return whole(value) if whole and math.isfinite(value) else value
    if not pa.types.is_floating(kind):
        return value
    with np.errstate(over="ignore"):  # 1e300 is inf in float32, and no value is over it
        return float(np.asarray(value, dtype=kind.to_pandas_dtype()))


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _is_text(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _fitting(kind: pa.DataType) -> str:
    """Which options go with a type."""
    if pa.types.is_boolean(kind):
        return "equals = true or equals = false"
    if _is_text(kind):
        return 'equals = "a text"'
    if _is_number(kind):
        return "at_least, at_most, or equals = a number"
    return "nothing; choose a column that holds one value per row"
