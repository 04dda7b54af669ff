"""Stages that fail as real ones do: a row that hangs, kills or eats memory; a part that can't be committed."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from curate.stage import GlobalStage, Resources, RowStage, tuning_option

USE = "tests.tiny.faults"


@dataclass(frozen=True, kw_only=True)
class Trap(RowStage):
    """The caption's length; hangs, dies or eats memory at captions that end with ``at``.

    ``log``: a file that gets a line for each process that opens the stage.
    """

    batch_rows = 2  # type: ignore[misc]
    column: ClassVar[str] = "trapped"

    at: str = ""
    how: str = tuning_option("hang")
    log: str = tuning_option("")
    pause: float = tuning_option(0.0)  # seconds for each batch
    gpus: float = tuning_option(0.0)
    keep: bool = tuning_option(False)

    @property
    def resources(self) -> Resources:  # type: ignore[override]
        return Resources(gpus=self.gpus, keep=self.keep)

    def reads(self) -> tuple[str, ...]:
        return ("caption",)

    def writes(self) -> pa.Schema:
        return pa.schema([(self.column, pa.int32())])

    def open(self) -> int:
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{os.getpid()}\n")
        return os.getpid()

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        captions = batch["caption"].to_pylist()
        time.sleep(self.pause)
        if self.at and any(caption.endswith(self.at) for caption in captions):
            self._fail()
        return pa.table({self.column: pa.array([len(caption) for caption in captions], pa.int32())})

    def _fail(self) -> None:
        if self.how == "hang":
            time.sleep(600)
        elif self.how.startswith("start "):
            child = subprocess.Popen(["sleep", "600"])
            Path(self.how.removeprefix("start ")).write_text(str(child.pid))
        elif self.how == "exit":
            os._exit(3)
        elif self.how == "eat":
            held = []
            for _ in range(80):
                held.append(bytearray(os.urandom(1 << 10) * (32 << 10)))
                time.sleep(0.01)


class Trap0(Trap):
    """The first of several in one recipe."""

    column = "trapped_0"


class Trap1(Trap):
    """The second."""

    column = "trapped_1"


class Trap2(Trap):
    """The third."""

    column = "trapped_2"


@dataclass(frozen=True, kw_only=True)
class Uncommittable(RowStage):
    """Columns that can't be written for the part of the rows that end with ``at``: no row's fault."""

    at: str = ""
    mended: str = tuning_option("")  # all is well where this file is

    def reads(self) -> tuple[str, ...]:
        return ("caption", "part")

    def writes(self) -> pa.Schema:
        return pa.schema([("fine", pa.bool_())])

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        ends = [caption.endswith(self.at) for caption in batch["caption"].to_pylist()]
        if any(ends) and not (self.mended and Path(self.mended).exists()):
            return _Unwritable.of(len(batch))
        return pa.table({"fine": pa.array([True] * len(batch))})


class _Unwritable:
    """Passes for a table until it is put among the others."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    @classmethod
    def of(cls, rows: int) -> Any:
        return cls(rows)

    def __len__(self) -> int:
        return self._rows

    def cast(self, schema: pa.Schema) -> Any:
        raise OSError("this part can't be written")


@dataclass(frozen=True, kw_only=True)
class SlowPool(GlobalStage):
    """Sees the whole pool, taking its time."""

    seconds: float = tuning_option(0.1)

    def reads(self) -> tuple[str, ...]:
        return ("caption",)

    def writes(self) -> pa.Schema:
        return pa.schema([("pool_rows", pa.int64())])

    def summarize(self, part: pa.Table) -> pa.Table:
        time.sleep(self.seconds)
        return pa.table({"n": pa.array([len(part)], pa.int64())})

    def merge(self, partials: Sequence[pa.Table]) -> pa.Table:
        return pa.table({"n": pa.array([sum(p["n"][0].as_py() for p in partials)], pa.int64())})

    def decide(self, part: pa.Table, state: pa.Table) -> pa.Table:
        time.sleep(self.seconds)
        rows = state["n"][0].as_py()
        return pa.table({"pool_rows": pa.array([rows] * len(part), pa.int64())})
