"""Small components for runner tests: real stages whose faults and pace a test can choose."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate.contract import storage
from curate.contract.draw import pair_uid
from curate.score import vectors
from curate.score.picture import decode
from curate.shard.write import Write
from curate.stage import (
    KEEP,
    REASON,
    GlobalStage,
    Part,
    Pictures,
    RowStage,
    SourceStage,
    StageError,
    decision,
    error,
    tuning_option,
)

USE = "tests.tiny.stages"


@dataclass(frozen=True, kw_only=True)
class Numbers(SourceStage):
    """Rows 0..count-1; every ``bad_every``th has no url, every ``repeat_every``th repeats row 0."""

    count: int = 10
    rows_per_part: int = 4
    bad_every: int = 0
    repeat_every: int = 0

    def parts(self) -> list[Part]:
        if self.count < 1:
            raise ValueError("count = 0. hint: at least 1")
        return [
            Part(i, {"start": s, "stop": min(s + self.rows_per_part, self.count)})
            for i, s in enumerate(range(0, self.count, self.rows_per_part))
        ]

    def produce(self, part: Part) -> Iterator[pa.Table]:
        for number in range(part.payload["start"], part.payload["stop"]):
            bad = bool(self.bad_every) and number % self.bad_every == self.bad_every - 1
            shown = (
                0
                if self.repeat_every and number % self.repeat_every == self.repeat_every - 1
                else number
            )
            url, caption = (None if bad else f"u{shown}"), f"word{shown % 3} number {shown}"
            yield pa.table(
                [
                    [pair_uid(url, caption)],
                    pa.array([url], pa.string()),
                    [caption],
                    *decision([error("tiny", "null_url") if bad else None]),
                ],
                names=["uid", "url", "caption", "keep", "reason"],
            )


@dataclass(frozen=True, kw_only=True)
class Length(RowStage):
    """Caption length; fails on captions that contain ``fail_on``, and counts its calls in a file."""

    fail_on: str = ""
    plus: int = 0
    calls_file: str = tuning_option("")

    def reads(self) -> tuple[str, ...]:
        return ("caption",)

    def writes(self) -> pa.Schema:
        return pa.schema([("length", pa.int32())])

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        captions = batch["caption"].to_pylist()
        if self.fail_on and any(self.fail_on in caption for caption in captions):
            raise KeyError(self.fail_on)
        if self.calls_file:
            with Path(self.calls_file).open("a") as file:
                file.writelines(f"{uid}\n" for uid in batch["uid"].to_pylist())
        return pa.table(
            {"length": pa.array([len(caption) + self.plus for caption in captions], pa.int32())}
        )


@dataclass(frozen=True, kw_only=True)
class Picture(RowStage):
    """Draws a picture's bytes from the caption; none (with a reason) for captions with ``dead``."""

    dead: str = ""
    batch_rows = 3  # type: ignore[misc]  # odd on purpose: batches that don't divide parts

    def reads(self) -> tuple[str, ...]:
        return ("caption",)

    def writes(self) -> pa.Schema:
        return pa.schema([("sha256", pa.string()), ("image", pa.binary()), KEEP, REASON])

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        captions = batch["caption"].to_pylist()
        images = [
            None if self.dead and self.dead in c else b"\xff\xd8\xff" + c.encode() for c in captions
        ]
        reasons = [None if image else error("tiny", "dead") for image in images]
        return pa.table(
            [
                [str(hash_of(i)) if i else None for i in images],
                pa.array(images, pa.binary()),
                *decision(reasons),
            ],
            schema=self.writes(),
        )


def hash_of(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


@dataclass
class Heard:
    """What an Ahead was told and has not been asked for yet."""

    waiting: set[str]
    is_asked: bool = False
    calls: int = 0
    wants: threading.Event = dataclass_field(default_factory=threading.Event)


@dataclass(frozen=True, kw_only=True)
class Ahead(Picture):
    """A Picture that is told of its rows before; writes what it hears and is asked to a file."""

    looks_ahead = True  # type: ignore[misc]
    log: str = tuning_option("")
    room: int = tuning_option(10)  # rows it wants to have heard of
    slow: bool = tuning_option(
        False
    )  # hears of nothing more before it is asked, then waits until it has
    broken: bool = tuning_option(False)

    def open(self) -> Heard:
        return Heard(set())

    def expect(self, rows: pa.Table, state: Heard, notes: str) -> None:
        if self.broken:
            raise OSError("notes are damaged")
        uids = rows["uid"].to_pylist()
        state.waiting |= set(uids)
        storage.write_text(f"{notes}/begun", "begun")
        self._write("told", notes.rsplit("-", 1)[-1], *uids)
        if len(state.waiting) >= self.room:
            state.wants.set()

    def wants_more(self, state: Heard) -> bool:
        return len(state.waiting) < self.room and (state.is_asked or not self.slow)

    def process(self, batch: pa.Table, state: Heard) -> pa.Table:
        self._write("asked", *batch["uid"].to_pylist())
        state.is_asked = True
        state.calls += 1
        if self.slow and not state.wants.wait(60):
            raise StageError("heard of nothing while it was asked")
        state.waiting -= set(batch["uid"].to_pylist())
        return super().process(batch, state)

    def costs(self, state: Heard) -> dict[str, float]:
        spent, state.calls = state.calls, 0
        return {"calls": float(spent)}

    def _write(self, *words: str) -> None:
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(" ".join(words) + "\n")


@dataclass(frozen=True, kw_only=True)
class Longer(RowStage):
    """Adds a byte to each picture: a second stage that makes some."""

    def reads(self) -> tuple[str, ...]:
        return ("image",)

    def writes(self) -> pa.Schema:
        return pa.schema([("image", pa.binary())])

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        images = [None if one is None else one + b"+" for one in batch["image"].to_pylist()]
        return pa.table([pa.array(images, pa.binary())], schema=self.writes())


@dataclass(frozen=True, kw_only=True)
class PictureSize(RowStage):
    """Bytes of the newest picture."""

    def reads(self) -> tuple[str, ...]:
        return ("image",)

    def writes(self) -> pa.Schema:
        return pa.schema([("picture_bytes", pa.int64())])

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        return pa.table(
            {
                "picture_bytes": pa.array(
                    [len(image) for image in batch["image"].to_pylist()], pa.int64()
                )
            }
        )


@dataclass(frozen=True, kw_only=True)
class Blocks(RowStage):
    """An embedding that needs no model: the mean colours of 4 by 4 blocks, unit norm."""

    def reads(self) -> tuple[str, ...]:
        return ("image",)

    def writes(self) -> pa.Schema:
        return pa.schema([("embedding_image", vectors.column_type(48))])

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        pixels = np.stack([decode(data.as_py()) for data in batch["image"]]).astype(np.float64)
        rows, height, width, _ = pixels.shape
        blocks = pixels.reshape(rows, 4, height // 4, 4, width // 4, 3).mean(axis=(2, 4)) - 127.5
        flat = blocks.reshape(rows, 48)
        flat /= np.linalg.norm(flat, axis=1, keepdims=True)
        return pa.table([vectors.to_column(flat, 48)], schema=self.writes())


@dataclass(frozen=True, kw_only=True)
class Killer(RowStage):
    """Kills its own process, or reports a lost service, at the ``at``th row while a flag file is absent."""

    flag: str = tuning_option("")
    at: str = ""
    how: str = tuning_option("kill")

    def reads(self) -> tuple[str, ...]:
        return ("caption",)

    def writes(self) -> pa.Schema:
        return pa.schema([("survived", pa.bool_())])

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        if (
            any(caption.endswith(f" {self.at}") for caption in batch["caption"].to_pylist())
            and self.flag
            and not Path(self.flag).exists()
        ):
            if self.how == "service":
                Path(self.flag).touch()
                raise StageError("the service at x is down. hint: start it")
            die_once(self.flag, "row")
        return pa.table({"survived": pa.array([True] * len(batch))})


@dataclass(frozen=True, kw_only=True)
class Common(GlobalStage):
    """Refuses rows whose first word is in more than ``most`` kept rows."""

    most: int = 100
    flag: str = tuning_option("")

    def reads(self) -> tuple[str, ...]:
        return ("caption",)

    def writes(self) -> pa.Schema:
        return pa.schema([KEEP, REASON])

    def summarize(self, part: pa.Table) -> pa.Table:
        die_once(self.flag, "summarize")
        words = [caption.split()[0] for caption in part["caption"].to_pylist()]
        return pa.table(
            {"word": pa.array(words, pa.string()), "n": pa.array([1] * len(words), pa.int64())}
        )

    def merge(self, partials: Sequence[pa.Table]) -> pa.Table:
        die_once(self.flag, "merge")
        whole = (
            pa.concat_tables(partials).group_by("word", use_threads=False).aggregate([("n", "sum")])
        )
        return whole.rename_columns({"n_sum": "n"}).select(["word", "n"])

    def decide(self, part: pa.Table, state: pa.Table) -> pa.Table:
        die_once(self.flag, "decide")
        counts = dict(zip(state["word"].to_pylist(), state["n"].to_pylist(), strict=True))
        words = [caption.split()[0] for caption in part["caption"].to_pylist()]
        return pa.table(
            decision("common" if counts[word] > self.most else None for word in words),
            schema=self.writes(),
        )


def die_once(flag: str, step: str) -> None:
    """kill -9 of the own process, the first time a step is reached with this flag."""
    path = Path(f"{flag}-{step}")
    if flag and not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, kw_only=True)
class DyingNumbers(Numbers):
    """Numbers, killed in the middle of its second part."""

    flag: str = tuning_option("")

    def produce(self, part: Part) -> Iterator[pa.Table]:
        for number, table in enumerate(super().produce(part)):
            if part.index == 1 and number == 2:
                die_once(self.flag, "source")
            yield table


@dataclass(frozen=True, kw_only=True)
class DyingWrite(Write):
    """shard.write, killed after one part is packed, and in the middle of the second tar."""

    flag: str = tuning_option("")

    def pack(
        self, samples: pa.Table, pictures: Pictures, blocks_path: str, index_path: str
    ) -> dict[int, int]:
        histogram = super().pack(samples, pictures, blocks_path, index_path)
        die_once(self.flag, "pack")
        return histogram

    def assemble(
        self, piece: tuple[int, ...], packed: Sequence[tuple[str, str]], path: str
    ) -> pa.Table:
        if path.endswith("00001.tar"):
            die_once(self.flag, "assemble")
        index = super().assemble(piece, packed, path)
        if path.endswith("00001.tar"):
            die_once(self.flag, "assembled")
        return index


@dataclass(frozen=True, kw_only=True)
class Length2(Length):
    """A second measure of the same kind under another column."""

    def writes(self) -> pa.Schema:
        return pa.schema([("length2", pa.int32())])

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        return super().process(batch, state).rename_columns(["length2"])


@dataclass(frozen=True, kw_only=True)
class Drops(Length):
    """Breaks the law that a stage returns the same rows."""

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        return super().process(batch, state).slice(1)


@dataclass(frozen=True, kw_only=True)
class Slow(Numbers):
    """Numbers that take a while, so that a signal meets it in the middle."""

    def produce(self, part: Part) -> Iterator[pa.Table]:
        for table in super().produce(part):
            time.sleep(0.05)
            yield table


@dataclass(frozen=True, kw_only=True)
class Unopened(Length):
    """A stage whose model can't be loaded."""

    def open(self) -> Any:
        raise OSError("weights.onnx is no model")


@dataclass(frozen=True, kw_only=True)
class Service(RowStage):
    """Something far away that answers while a flag file is there, and refuses every row otherwise."""

    flag: str = tuning_option("")

    def reads(self) -> tuple[str, ...]:
        return ("caption",)

    def writes(self) -> pa.Schema:
        return pa.schema([KEEP, REASON])

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        up = Path(self.flag).exists()
        return pa.table(
            decision(None if up else error("tiny", "refused") for _ in range(len(batch))),
            schema=self.writes(),
        )
