"""curate/stage.py: decisions and reasons as columns, options that paths and tuning mark, the bases."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pyarrow as pa
import pytest

from curate.contract.columns import COLUMNS
from curate.stage import (
    KEEP,
    REASON,
    GlobalStage,
    Resources,
    RowStage,
    ShardStage,
    SourceStage,
    Stage,
    decision,
    error,
    path_option,
    tuning_option,
)


@dataclass(frozen=True, kw_only=True)
class _Marked(RowStage):
    needed: str = path_option()
    given: str = path_option("here")
    pace: int = tuning_option(3)
    plain: int = 1


def test_a_decision_is_a_keep_and_a_reason_per_row() -> None:
    table = pa.table(decision(["a", None, "b", "a"]), schema=pa.schema([KEEP, REASON]))
    assert table["keep"].to_pylist() == [False, True, False, False]
    assert table["reason"].to_pylist() == ["a", None, "b", "a"]


@pytest.mark.parametrize("reasons", [[], [None, None]])
def test_a_decision_without_refusals_has_the_same_types(reasons: list[str | None]) -> None:
    keep, reason = decision(reasons)
    assert (keep.type, reason.type) == (KEEP.type, REASON.type)
    assert keep.to_pylist() == [True] * len(reasons)
    assert reason.to_pylist() == reasons


def test_a_decision_takes_any_iterable_once() -> None:
    keep, reason = decision(name for name in ("late", None))
    assert (keep.to_pylist(), reason.to_pylist()) == ([False, True], ["late", None])


def test_keep_and_reason_are_the_contract_s_columns() -> None:
    assert COLUMNS["keep"].field == KEEP
    assert COLUMNS["reason"].field == REASON


def test_the_reason_of_a_failed_row() -> None:
    assert error("download.fetch", "http_404") == "error.download.fetch.http_404"


def test_options_carry_what_the_recipe_loader_and_the_fingerprint_need() -> None:
    found = {field.name: field for field in dataclasses.fields(_Marked)}
    assert [name for name, field in found.items() if field.metadata.get("path")] == [
        "needed",
        "given",
    ]
    assert [name for name, field in found.items() if field.metadata.get("tuning")] == ["pace"]
    made = _Marked(needed="x")
    assert (made.given, made.pace, made.plain) == ("here", 3, 1)
    with pytest.raises(TypeError, match="needed"):
        _Marked()  # type: ignore[call-arg]


def test_what_a_stage_has_unless_it_says_otherwise() -> None:
    assert Stage.version == 1
    assert Stage().inputs() == ()
    assert Stage.resources == Resources(cpus=1.0, gpus=0.0, memory_bytes=0)
    assert _Marked(needed="x").open() is None
    assert GlobalStage.bucket_by is None
    assert (SourceStage().reads(), SourceStage().writes()) == ((), pa.schema([]))
    assert (ShardStage().reads(), ShardStage().writes()) == (("image",), pa.schema([]))


def test_stages_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        _Marked(needed="x").plain = 2  # type: ignore[misc]


@pytest.mark.parametrize("method", ["reads", "writes"])
def test_a_row_stage_must_say_what_it_reads_and_writes(method: str) -> None:
    with pytest.raises(NotImplementedError):
        getattr(_Marked(needed="x"), method)()
