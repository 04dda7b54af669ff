"""Faults that are really made, by tests/bench/faults.py: two in one process, and the slow ones on three Ray nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import faults
from tests.bench.faults import Bench, Row

pytestmark = pytest.mark.net


def held(bench: Bench, name: str) -> None:
    try:
        found = faults.CASES[name](bench)
        rows = [found] if isinstance(found, Row) else list(found)
    except faults.Skipped as why:
        pytest.skip(str(why))
    for row in rows:
        assert row.is_good, row.text()
    assert rows


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with contextlib.ExitStack() as stack:
        yield Bench(tmp_path_factory.mktemp("quick"), stack, quick=True)


@pytest.mark.parametrize("name", ["disk", "two-runs"])
def test_in_one_process(quick: Bench, name: str) -> None:
    held(quick, name)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with contextlib.ExitStack() as stack:
        yield Bench(tmp_path_factory.mktemp("faults"), stack)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["node-rows", "head", "bad-part", "corrupt", "server-back"])
def test_on_three_nodes(bench: Bench, name: str) -> None:
    held(bench, name)


def test_every_fault_has_a_row_in_the_page() -> None:
    page = (faults.ROOT / "docs" / "reliability.md").read_text()
    assert faults.HEAD.splitlines()[0] in page
    assert Path(faults.__file__).name in page
