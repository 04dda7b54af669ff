"""Every curation component found keeps the laws: same rows, same order, only declared columns, any cut."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.stage import GlobalStage, RowStage, SourceStage, pool_state
from pipelines import components
from pipelines.components import Component
from tests.conformance import examples

STAGES = components.found("stage")
SOURCES = components.found("source")

pytestmark = pytest.mark.net


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, list[str]]]:
    from pipelines.demo import server, world

    made = world.build(0, world.MIN_ROWS)
    paths = [
        row.path
        for row in made.rows
        if row.path and made.assets[row.path].answer in ("image", "missing")
    ]
    with server.serve(made) as base_url:
        yield base_url, paths


@pytest.fixture(scope="module")
def table(served: tuple[str, list[str]]) -> pa.Table:
    return examples.table(*served)


def build(use: str, folder: Path, served: tuple[str, list[str]]) -> Any:
    try:
        return components.build(
            "stage", Component(use, examples.stage_options(use, folder, served[0]))
        )
    except Exception as fault:
        raise AssertionError(
            f"{use} can't be built here. hint: add its options to tests/conformance/examples.py"
        ) from fault


def outcome(stage: Any, table: pa.Table, cut: int) -> pa.Table:
    """What a stage says of every row when the rows come in slices of ``cut``."""
    slices = [table.slice(start, cut) for start in range(0, len(table), cut)]
    if isinstance(stage, GlobalStage):
        state = pool_state(stage, lambda: slices)
        if "part" in state.column_names:
            assert set(state["part"].to_pylist()) <= {0}
        done = [stage.decide(part, state) for part in slices]
    else:
        assert isinstance(stage, RowStage)
        opened = stage.open()
        done = [stage.process(part, opened) for part in slices]
    assert [len(part) for part in done] == [len(part) for part in slices], "rows were lost or added"
    return pa.concat_tables(
        [part.cast(stage.writes()) for part in done], promote_options="permissive"
    ).combine_chunks()


def settled(stage: GlobalStage, merged: pa.Table, table: pa.Table) -> pa.Table:
    """The last state, from what was merged."""
    state = stage.settle([stage.close(merged)])
    for _ in range(1, stage.passes()):
        state = stage.adjust(state, [stage.look_again(table, state)])
    return state


@pytest.mark.parametrize("use", STAGES)
def test_laws_of_a_stage(
    use: str, tmp_path: Path, served: tuple[str, list[str]], table: pa.Table
) -> None:
    stage = pickle.loads(pickle.dumps(build(use, tmp_path, served)))
    needed = ["uid", *(name for name in stage.reads() if name != "uid")]
    given = table.select(needed)
    before = given.to_pylist()
    whole = outcome(stage, given, len(given))
    assert whole.schema.names == stage.writes().names
    assert not set(stage.writes().names) & {"uid", "url", "caption", "part", "row"}
    for name, kind in examples.DECISION_TYPES.items():
        if name in whole.column_names:
            assert whole.schema.field(name).type == kind
    for cut in (1, 5):
        assert outcome(stage, given, cut).to_pylist() == whole.to_pylist(), (
            f"cut in slices of {cut}"
        )
    assert given.to_pylist() == before, "the stage changed its input"


@pytest.mark.parametrize("use", STAGES)
def test_refusals_have_reasons(
    use: str, tmp_path: Path, served: tuple[str, list[str]], table: pa.Table
) -> None:
    stage = build(use, tmp_path, served)
    assert ("keep" in stage.writes().names) == ("reason" in stage.writes().names)
    if "keep" not in stage.writes().names:
        return
    given = table.select(["uid", *(name for name in stage.reads() if name != "uid")])
    done = outcome(stage, given, len(given))
    for keep, reason in zip(done["keep"].to_pylist(), done["reason"].to_pylist(), strict=True):
        assert keep == (reason is None)
        assert reason is None or (reason == reason.strip() and reason)


@pytest.mark.parametrize(
    "use", [use for use in STAGES if issubclass(components.load("stage", use), GlobalStage)]
)
def test_merging_is_associative_and_takes_any_order(
    use: str, tmp_path: Path, served: tuple[str, list[str]], table: pa.Table
) -> None:
    stage = build(use, tmp_path, served)
    given = table.select(["uid", *(name for name in stage.reads() if name != "uid")])
    a, b, c = (stage.summarize(given.slice(start, 5)) for start in (0, 5, 10))
    merged = [stage.merge([stage.merge([a, b]), c]), stage.merge([a, stage.merge([c, b])])]
    assert merged[0].schema == stage.merge([a]).schema
    left, right = (settled(stage, state, given) for state in merged)
    assert stage.decide(given, left).to_pylist() == stage.decide(given, right).to_pylist()


@pytest.mark.parametrize("use", SOURCES)
def test_laws_of_a_source(use: str, tmp_path: Path) -> None:
    known = examples.make_sources(tmp_path)
    assert use in known, f"add {use} to tests/conformance/examples.py"
    options, rows = known[use]
    source = pickle.loads(pickle.dumps(components.build("source", Component(use, options))))
    assert isinstance(source, SourceStage)
    assert source.inputs(), "a source must name its files, or changed ones go unnoticed"
    tables = [table for part in source.parts() for table in source.produce(part)]
    whole = pa.concat_tables(tables, promote_options="permissive")
    assert len(whole) == rows
    assert set(whole.column_names) == {
        "uid",
        "url",
        "caption",
        "keep",
        "reason",
        *source.writes().names,
    }
    assert all(len(uid) == 32 for uid in whole["uid"].to_pylist())
    assert [part.index for part in source.parts()] == list(range(len(source.parts())))
    assert whole["keep"].to_pylist() == [reason is None for reason in whole["reason"].to_pylist()]
