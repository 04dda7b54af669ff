"""A run dies, or another attempt comes, between any two things that it writes: the end is the same."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.contract import done, parts
from curate.stage import RowStage
from pipelines import curation, fused, part
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import Quiet, ledger, run, shard_bytes
from tests.tiny.stages import USE

HERE = "tests.pipelines.test_commit_points"
SOURCE = {
    "use": f"{USE}:Numbers",
    "count": 7,
    "rows_per_part": 4,
    "bad_every": 7,
    "repeat_every": 5,
}
STAGES = [
    {"use": f"{USE}:Length"},
    {"use": f"{USE}:Common", "most": 2},
    {"use": f"{USE}:Picture", "dead": "number 1"},
    {"use": f"{USE}:PictureSize"},
]
_WRITES = ((os, "replace"), (os, "link"), (os, "remove"), (shutil, "rmtree"))


@contextmanager
def at_each_write(hook: Callable[[int], None]) -> Iterator[None]:
    """``hook`` is called with 0, 1, ... before each name is given or taken away on the disk."""
    count = itertools.count()
    before = [(module, name, getattr(module, name)) for module, name in _WRITES]

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **named: Any) -> Any:
            hook(next(count))
            return function(*words, **named)

        return call

    for module, name, function in before:
        setattr(module, name, wrapped(function))
    try:
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)


def dies_at(recipe: Any, number: int) -> bool:
    """Run a recipe in a process that ends at once at its ``number``th write; whether it came to that."""
    child = os.fork()
    if not child:
        code = 0
        try:
            with at_each_write(lambda n: os._exit(9) if n == number else None):
                run(recipe)
        except BaseException:
            code = 1
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def check_every(curate_recipe: Callable[..., Any], numbers: Iterator[int]) -> int:
    quiet = curate_recipe(SOURCE, STAGES, folder="quiet", shard={"samples_per_shard": 2})
    run(quiet)
    expected, rows = shard_bytes(quiet), ledger(quiet)
    assert len(rows) == 7
    died = 0
    for number in numbers:
        recipe = curate_recipe(SOURCE, STAGES, folder=f"at{number}", shard={"samples_per_shard": 2})
        if not dies_at(recipe, number):
            break
        died += 1
        run(recipe)
        assert shard_bytes(recipe) == expected, f"died at write {number}"
        assert ledger(recipe) == rows
        left = [p.name for p in Path(recipe.curate.pool).parent.rglob("*") if ".damaged" in p.name]
        assert not left, f"what a run left that died at write {number} was taken for damage"
        assert not [*Path(recipe.curate.shards).glob(".*"), *Path(recipe.curate.pool).glob(".*")]
        shutil.rmtree(Path(recipe.curate.pool).parent)
    return died


def test_death_at_some_writes(curate_recipe: Callable[..., Any]) -> None:
    assert check_every(curate_recipe, itertools.count(3, 29)) > 2


@pytest.mark.slow
def test_death_at_every_write(curate_recipe: Callable[..., Any]) -> None:
    assert check_every(curate_recipe, itertools.count()) > 80


ATTEMPT = ["none"]  # who is at work; also the length of names differs


@dataclass(frozen=True, kw_only=True)
class Signed(RowStage):
    """Pictures and a column that say which attempt made them: as a download, another each time."""

    def reads(self) -> tuple[str, ...]:
        return ("caption",)

    def writes(self) -> pa.Schema:
        return pa.schema([("made_by", pa.string()), ("image", pa.binary())])

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        name = ATTEMPT[0]
        return pa.table(
            {
                "made_by": [name] * len(batch),
                "image": pa.array([b"\xff\xd8\xff" + name.encode()] * len(batch), pa.binary()),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Seen(RowStage):
    """What the picture says, beside who looked."""

    def reads(self) -> tuple[str, ...]:
        return ("image",)

    def writes(self) -> pa.Schema:
        return pa.schema([("seen", pa.string())])

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        return pa.table({"seen": [data[3:].decode() for data in batch["image"].to_pylist()]})


def attempt(plan: Any, name: str) -> None:
    before, ATTEMPT[0] = ATTEMPT[0], name
    try:
        with suppress(done.Damaged):  # said, and done again by the run
            fused.run_rows(plan, (1, 2), 0)
    finally:
        ATTEMPT[0] = before


class Death(BaseException):
    """Of the other attempt: nothing catches it."""


_QUICK = ((None, "two"), (None, "second"), (1, "second"), (3, "second"), (4, "two"))


@pytest.mark.parametrize(
    ("dies", "name"),
    [
        pytest.param(*case, marks=() if case in _QUICK else pytest.mark.slow)
        for case in itertools.product((None, 0, 1, 2, 3, 4), ("two", "second"))
    ],
)
def test_two_attempts_at_a_part(
    curate_recipe: Callable[..., Any], dies: int | None, name: str
) -> None:
    """The second begins and ends at any write of the first, or dies there."""
    source = {**SOURCE, "count": 4, "bad_every": 0}
    bare = curate_recipe(source, [], folder="bare")
    curation.measure(plan_curation(bare), LocalRunner(), Quiet())
    stages = [{"use": f"{HERE}:Signed"}, {"use": f"{HERE}:Seen"}]
    for number in itertools.count():
        recipe = curate_recipe(source, stages, folder=f"at{number}")
        shutil.copytree(bare.curate.pool, recipe.curate.pool)
        plan = plan_curation(recipe)
        came = []

        def other(n: int, number: int = number, plan: Any = plan, came: Any = came) -> None:
            if n == number and not came:
                came.append(True)
                with at_each_write(die), suppress(Death):
                    attempt(plan, name)

        def die(n: int) -> None:
            if n == dies:
                raise Death

        with at_each_write(other):
            attempt(plan, "one")
        if not came:
            break
        attempt(plan, "three")  # the run comes by and sees to what is not done
        rows = part.load_columns(plan, ("made_by", "seen", "image"), 3, 0)
        pictures = [data[3:].decode() for data in rows["image"].to_pylist()]
        assert len({*pictures, *rows["made_by"].to_pylist(), *rows["seen"].to_pylist()}) == 1, (
            f"mixed where the second came at write {number}"
        )
        for stage in plan.stages:
            assert not done.verify(part.sidecar(plan, stage, 0), part.beside(plan, stage, 0))
        assert parts.read_stats(plan.pool.rows_path(0))["rows"] == 4
    assert number >= 5
