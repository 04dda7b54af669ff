"""Sample, Batch, and the loader that gives each rank its slice of every global batch.

A worker makes one local batch at a time: read, decode, view, stack. Pictures stay uint8 until they
are on the device. A bad sample uses up its position, is replaced by another one that is a function
of (seed, position) alone, and is counted by kind.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pretrain.stream.order import Mixture, ShardOrder, generator, local_rows
from pretrain.stream.picture import BadPicture, decode_rgb

MAX_REPLACEMENTS = 32


class BadSample(Exception):
    """A sample that cannot be used. ``kind`` is counted; the message says which and why."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True)
class Sample:
    """One pair as unpacked. ``captions`` has the alt-text first, then the added ones."""

    key: str
    image: bytes
    caption: str
    captions: tuple[str, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def pixels(self) -> np.ndarray:
        """uint8 (height, width, 3), decoded once for all views. Raises BadPicture."""
        return decode_rgb(self.image)


@dataclass(frozen=True)
class Row:
    """What stands at one position. ``fault`` is (kind, what was found) if its sample was replaced."""

    key: str
    views: dict[str, Any]  # view name -> uint8 array, or text
    fault: tuple[str, str] | None = None
    fatal: str = ""


@dataclass
class Batch:
    """The local batch of one rank. ``views`` maps a view's name to its rows, stacked."""

    views: dict[str, Tensor]
    keys: list[str]
    bad: list[tuple[str, str]]  # (kind, what was found) of replaced samples
    fatal: str = ""  # why this batch cannot be made at all; then it has no views

    def pin_memory(self) -> Batch:
        self.views = {name: rows.pin_memory() for name, rows in self.views.items()}
        return self

    def to(self, device: torch.device) -> dict[str, Tensor]:
        return {name: rows.to(device, non_blocking=True) for name, rows in self.views.items()}


class Reader:
    """One shard set as a map from sample number to Sample; see ``tars.TarSet``."""

    counts: tuple[int, ...]

    def read(self, number: int) -> Sample:
        """Raises BadSample."""
        raise NotImplementedError


class Stream(Dataset[Any]):
    """Position -> views of the sample there. Pure: any process may ask for any position."""

    def __init__(
        self,
        readers: Sequence[Reader],
        weights: Sequence[float],
        views: Sequence[Any],
        tokenize: Callable[[list[str]], Tensor],
        seed: int,
    ) -> None:
        self.readers = list(readers)
        self.views = list(views)
        self.tokenize = tokenize
        self.seed = seed
        self.mixture = Mixture(tuple(weights), seed)
        self.orders = [ShardOrder(reader.counts, seed) for reader in self.readers]

    def __getitem__(self, position: int) -> Row:
        source, inside = self.mixture.at(position)
        reader, order = self.readers[source], self.orders[source]
        fault: BadSample | None = None
        for attempt in range(MAX_REPLACEMENTS + 1):
            if attempt:
                draw = generator(self.seed, "replace", position, attempt)
                inside = int(draw.integers(order.total))
            try:
                key, views = self._views(reader.read(order.sample_at(inside)), position)
            except BadSample as found:
                fault = fault or found
                continue
            return Row(key, views, (fault.kind, str(fault)) if fault else None)
        # Not raised here: an exception crosses processes with the whole traceback in its message.
        return Row(
            "",
            {},
            fatal=f"{MAX_REPLACEMENTS + 1} samples tried for position {position}, none usable; the first: {fault}. "
            "hint: check that the shards are whole, e.g. by running `clip-pipe curate` again",
        )

    def _views(self, sample: Sample, position: int) -> tuple[str, dict[str, Any]]:
        try:
            views = {
                view.name: view(sample, generator(self.seed, f"view.{view.name}", position))
                for view in self.views
            }
        except BadPicture as fault:
            raise BadSample(f"picture.{fault.kind}", f"sample {sample.key}: {fault}") from fault
        return sample.key, views

    def collate(self, rows: list[Row]) -> Batch:
        fatal = next((row.fatal for row in rows if row.fatal), "")
        if fatal:
            return Batch({}, [], [], fatal)
        views: dict[str, Tensor] = {}
        for view in self.views:
            made = [row.views[view.name] for row in rows]
            if isinstance(made[0], str):
                views[view.name] = self.tokenize(made)
            else:
                views[view.name] = torch.from_numpy(np.stack(made))
        return Batch(views, [row.key for row in rows], [row.fault for row in rows if row.fault])


@dataclass(frozen=True)
class LocalBatches:
    """The positions of a rank's local batches, from one point of the stream to another."""

    samples_seen: int
    end: int
    global_batch: int
    rank: int = 0
    world: int = 1

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(self.samples_seen, self.end, self.global_batch):
            yield list(local_rows(start, self.global_batch, self.rank, self.world))

    def __len__(self) -> int:
        return len(range(self.samples_seen, self.end, self.global_batch))


def loader(stream: Stream, batches: LocalBatches, workers: int, pin: bool) -> DataLoader[Any]:
    """Local batches in order. ``workers`` = 0 decodes in this process; the result is the same."""
    return DataLoader(
        stream,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=stream.collate,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers else None,
    )


def _start_worker(_: int) -> None:
    """Ctrl-C, and often SIGTERM, go to the whole process group: the rank alone decides when to stop.

    It ends its loaders by a SIGTERM of its own where they don't end by themselves, so the first one
    is passed over and the second is obeyed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL) and None)
