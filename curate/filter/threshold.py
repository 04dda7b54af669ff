"""Keeps rows whose value in one column is within bounds, or is one of some values; measures nothing itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from curate.stage import KEEP, REASON, RowStage, StageError, decision


@dataclass(frozen=True, kw_only=True)
class Threshold(RowStage):
    """Refuses rows as ``threshold.<column>``, and rows without a value as ``threshold.<column>.missing``.

    Options:
        column: any column that a stage above writes.
        at_least, at_most: bounds on a number, both inclusive; one of them may be left out.
        equals: the one value to keep (text, true or false, a number) instead of bounds.
        one_of: the texts to keep, such as ["en", "de"], instead of bounds or ``equals``.
        missing: ``refuse`` or ``keep`` rows where the value is null or not a number (NaN).

    Numbers of the recipe are rounded to the column's type before they are compared, so a stored
    float32 of 0.05 is within ``at_most = 0.05``.
    """

    column: str
    at_least: float | None = None
    at_most: float | None = None
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
        low, high, equal = (
            _rounded(value, kind) for value in (self.at_least, self.at_most, self.equals)
        )
        values = batch[self.column].to_pylist()
        reasons = [self._reason(value, low, high, equal) for value in values]
        return pa.table(decision(reasons), schema=self.writes())

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

    def _reason(self, value: Any, low: Any, high: Any, equal: Any) -> str | None:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None if self.missing == "keep" else f"threshold.{self.column}.missing"
        if self.one_of:
            within = value in self.one_of
        elif equal is not None:
            within = value == equal
        else:
            within = (low is None or value >= low) and (high is None or value <= high)
        return None if within else f"threshold.{self.column}"


def _rounded(value: Any, kind: pa.DataType) -> Any:
    """A number of the recipe as a floating column would hold it; anything else unchanged."""
    if (
        not pa.types.is_floating(kind)
        or isinstance(value, bool)
        or not isinstance(value, int | float)
    ):
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
