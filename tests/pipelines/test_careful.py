"""Careful mode in one process: the row at fault is found, the others get what they would have got."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.stage import StageError
from pipelines import careful, fused
from pipelines.careful import Limits
from pipelines.plan import Planned, plan_curation
from tests.tiny.faults import USE
from tests.tiny.stages import USE as STAGES

ROWS = pa.table({"uid": [f"u{n}" for n in range(4)], "caption": [f"caption {n}" for n in range(4)]})


@pytest.fixture
def stage(curate_recipe: Callable[..., Any]) -> Callable[..., Planned]:
    source = {"use": f"{STAGES}:Numbers"}
    return lambda **table: plan_curation(curate_recipe(source, [table])).stages[1]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def reasons(table: pa.Table) -> list[str | None]:
    return table["reason"].cast(pa.string()).to_pylist()


@pytest.mark.parametrize(("how", "kind"), [("hang", "hung"), ("exit", "died"), ("eat", "memory")])
def test_the_row_at_fault_is_found(
    stage: Callable[..., Planned], log: Path, how: str, kind: str
) -> None:
    trap = stage(use=f"{USE}:Trap", at=" 2", how=how, log=str(log))
    batch_s, row_s = (0.5, 2.5) if how == "hang" else (100.0, 100.0)
    limits = Limits(batch_s, row_s, memory_bytes=300 << 20)
    rows = ROWS if how == "exit" else ROWS.slice(1, 2)
    at = 2 if how == "exit" else 1
    with careful.mode(limits):
        found = fused.attempt(trap, rows)
    assert reasons(found) == [
        f"error.{USE}:Trap.{kind}" if n == at else None for n in range(len(rows))
    ]
    whole = fused.attempt(stage(use=f"{USE}:Trap"), rows)
    kept = [n for n in range(len(rows)) if n != at]
    assert found.take(kept).to_pylist() == whole.take(kept).to_pylist()
    lost = 3 if how == "exit" else 2  # of 4, 2 and 1 rows, each with a process
    assert len(set(log.read_text().split())) > lost - 1
    assert str(os.getpid()) not in log.read_text()


def test_what_a_stage_raises_is_what_it_is_without(stage: Callable[..., Planned]) -> None:
    length = stage(use=f"{STAGES}:Length", fail_on="n 3")
    with careful.mode(Limits(20.0, 20.0)):
        found = fused.attempt(length, ROWS)
    assert found.to_pylist() == fused.attempt(length, ROWS).to_pylist()
    assert reasons(found)[3] == f"error.{STAGES}:Length.KeyError"


def test_a_lost_service_ends_the_run(stage: Callable[..., Planned], tmp_path: Path) -> None:
    killer = stage(use=f"{STAGES}:Killer", at="3", flag=str(tmp_path / "flag"), how="service")
    with careful.mode(Limits(20.0, 20.0)), pytest.raises(StageError, match="the service at x is down"):  # fmt: skip
        fused.attempt(killer, ROWS)


def test_a_stage_that_can_t_be_opened_is_no_row_s_fault(stage: Callable[..., Planned]) -> None:
    trap = stage(use=f"{USE}:Trap", at="never")
    with (
        careful.mode(Limits(20.0, 20.0, open_s=0.0)),
        pytest.raises(StageError, match=r"could not be opened: it did not answer within 0 s"),
    ):
        fused.attempt(trap, ROWS)


def test_the_child_ends_with_its_mode(stage: Callable[..., Planned], log: Path) -> None:
    assert careful.child() is None
    with careful.mode(Limits(20.0, 20.0)):
        fused.attempt(stage(use=f"{USE}:Trap", log=str(log)), ROWS)
        child = int(log.read_text())
        assert careful.held_bytes(child) > 0
    assert careful.child() is None
    until = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_what_the_child_has_started_ends_with_it(
    stage: Callable[..., Planned], tmp_path: Path
) -> None:
    """And it may have very many files open, as a download has."""
    log = tmp_path / "started"
    parent = stage(use=f"{USE}:Trap", at="3", how=f"start {log}")
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(_more_files(1100))]
    try:
        with careful.mode(Limits(20.0, 20.0)):
            fused.attempt(parent, ROWS.slice(3))
    finally:
        for number in held:
            os.close(number)
    started = Path(f"/proc/{log.read_text()}/stat")
    until = time.monotonic() + 30
    while started.exists() and " Z " not in started.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert not started.exists() or " Z " in started.read_text()


def _more_files(wanted: int) -> int:
    """So many, where this process may open them."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return min(wanted, most - 200) if most > 200 else 0


def test_memory_is_known() -> None:
    assert careful.held_bytes() > 10 << 20
    assert careful.held_bytes(2**22 + 1) == 0
    assert 0 < careful.free_bytes() < 1 << 50
