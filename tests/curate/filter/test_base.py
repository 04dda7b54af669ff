"""FirstOfEqual: the first in source order stays, for any order of merging and any buckets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.filter.base import FirstOfEqual


@dataclass(frozen=True, kw_only=True)
class _FirstOfColour(FirstOfEqual):
    column: ClassVar[str] = "colour"
    refusal: ClassVar[str] = "duplicate.colour"


STAGE = _FirstOfColour()


def part_of(number: int, colours: list[str | None], rows: list[int] | None = None) -> pa.Table:
    rows = list(range(len(colours))) if rows is None else rows
    return pa.table(
        {
            "uid": pa.array([f"{number}-{row}" for row in rows], pa.string()),
            "colour": pa.array(colours, pa.string()),
            "part": pa.array([number] * len(colours), pa.int64()),
            "row": pa.array(rows, pa.int64()),
        }
    )


def reasons(parts: list[pa.Table], state: pa.Table) -> list[list[str | None]]:
    return [STAGE.decide(part, state)["reason"].to_pylist() for part in parts]


def test_first_in_source_order_stays_and_null_is_never_equal() -> None:
    parts = [part_of(0, ["red", None, "blue", "red"]), part_of(1, ["blue", None, "green"])]
    state = STAGE.merge([STAGE.summarize(part) for part in reversed(parts)])
    again = "duplicate.colour"
    assert reasons(parts, state) == [[None, None, None, again], [again, None, None]]


def test_a_row_refused_earlier_does_not_count_as_first() -> None:
    parts = [
        part_of(0, ["blue"], rows=[7]),
        part_of(1, ["red", "blue"], rows=[0, 5]),
    ]  # only living rows are seen
    state = STAGE.merge([STAGE.summarize(part) for part in parts])
    assert reasons(parts, state) == [[None], [None, "duplicate.colour"]]


def test_empty_parts_are_no_trouble() -> None:
    state = STAGE.merge([STAGE.summarize(part_of(0, [])), STAGE.summarize(part_of(1, [None]))])
    assert reasons([part_of(0, []), part_of(1, [None])], state) == [[], [None]]


def test_equal_row_numbers_of_two_parts_are_two_rows() -> None:
    both = pa.concat_tables([part_of(0, ["red", "blue"]), part_of(1, ["blue", "red"])])
    again = "duplicate.colour"
    assert reasons([both], STAGE.summarize(both)) == [[None, None, again, again]]


@settings(max_examples=60, deadline=None)
@given(
    colours=st.lists(
        st.lists(st.sampled_from(["r", "g", "b", "y", None]), max_size=6), min_size=1, max_size=5
    ),
    order=st.randoms(use_true_random=False),
)
def test_any_merge_order_and_routing_agrees_with_a_plain_loop(
    colours: list[list[str | None]], order: object
) -> None:
    parts = [part_of(number, found) for number, found in enumerate(colours)]
    seen: set[str] = set()
    expected = []
    for found in colours:
        here = []
        for colour in found:
            here.append("duplicate.colour" if colour is not None and colour in seen else None)
            seen.add(colour or "")
        expected.append(here)
    partials = [STAGE.summarize(part) for part in parts]
    order.shuffle(partials)  # type: ignore[attr-defined]
    state = partials[0]
    for partial in partials[1:]:
        state = STAGE.merge([state, partial])
    assert state.equals(STAGE.merge(partials))
    routed = [state.filter(pa.compute.equal(state["part"], number)) for number in range(len(parts))]
    assert reasons(parts, state) == expected
    assert [reasons([part], own)[0] for part, own in zip(parts, routed, strict=True)] == expected


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_large_strings_are_taken(kind: pa.DataType) -> None:
    part = part_of(0, ["red", "red"])
    part = part.set_column(1, "colour", part["colour"].cast(kind))
    assert reasons([part], STAGE.summarize(part)) == [[None, "duplicate.colour"]]
