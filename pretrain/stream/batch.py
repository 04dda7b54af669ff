"""Sample, Batch, and the loader that gives each rank its slice of every global batch.

A worker makes one local batch at a time: read, decode, view, gather. Pictures stay uint8 until they
are on the device. A bad sample uses up its position, is replaced by another one that is a function
of (seed, position) alone, and is counted by kind.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pretrain.stream import arena, lengths
from pretrain.stream.arena import Lent
from pretrain.stream.device import Ragged
from pretrain.stream.draws import Draws
from pretrain.stream.encoded import Encoded
from pretrain.stream.lengths import Groups
from pretrain.stream.order import Mixture, ShardOrder, local_rows
from pretrain.stream.picture import BadPicture, decode_rgb, jpeg_header
from pretrain.stream.remote import Unreachable
from pretrain.stream.rows import Rows, rows_for, tokens_of

MAX_REPLACEMENTS = 32
_FROM_THE_WINDOW = 24  # of these; the others come from the whole set, should all of a window be bad
_ENDS_WITHIN_S = 600
_PIPED_BYTES = (
    1 << 18
)  # smaller tensors go through the pipe of the loader, not shared memory of their own


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
    stored: dict[str, np.ndarray] = field(default_factory=dict)  # name -> float (D,), of sidecars
    where: str = field(
        default="", compare=False
    )  # shard, key and byte of the picture, for messages
    _decoded: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def pixels(self) -> np.ndarray:
        """uint8 (height, width, 3), decoded once for all views. Raises BadPicture."""
        return self.decoded(1)

    def decoded(self, shrink: int) -> np.ndarray:
        """The same with sides shorter by ``shrink`` where that is cheaper; see ``picture.decode_rgb``."""
        if shrink not in self._decoded:
            self._decoded[shrink] = decode_rgb(self.image, shrink)
        return self._decoded[shrink]

    @cached_property
    def size_px(self) -> tuple[int, int]:
        """(width, height) of ``pixels``; for most JPEGs nothing is decoded for it. Raises BadPicture."""
        jpeg = jpeg_header(self.image)
        return jpeg.upright if jpeg else (self.pixels.shape[1], self.pixels.shape[0])


@dataclass
class Batch:
    """The local batch of one rank, B rows."""

    # View name -> image: uint8 (B, H, W, 3), or crops that ``to`` resizes on the device; text: int64 (B, L).
    views: dict[str, Any]
    keys: list[str]
    positions: Tensor  # int64 (B,): place in the endless stream
    stored: dict[str, Tensor] = field(default_factory=dict)  # float32 (B, D), of sidecars
    lengths: tuple[int, ...] = ()  # of texts, rising; the last is that of the ids
    # Text view -> (B,): the first of ``lengths`` that holds a row's caption. Always on the host.
    fits: dict[str, np.ndarray] = field(default_factory=dict)
    # Text view -> its rows by length, made of the two above by ``to`` and ``rows``, where they gain.
    groups: dict[str, Groups] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)  # (kind, what) of replaced samples
    fatal: str = ""  # why this batch cannot be made at all; then it has no views
    cost_s: float = 0.0  # CPU time of the process that made it

    def __len__(self) -> int:
        return len(self.positions)

    def rows(self, start: int, stop: int) -> Batch:
        """Some consecutive rows, as a batch of their own; ids keep their length. No bad, no cost."""
        part = Batch(
            {name: rows[start:stop] for name, rows in self.views.items()},
            self.keys[start:stop],
            self.positions[start:stop],
            {name: rows[start:stop] for name, rows in self.stored.items()},
            self.lengths,
            {name: fits[start:stop] for name, fits in self.fits.items()},
        )
        return replace(part, groups=part._grouped(self.positions.device))

    def text_spans(self, name: str, micro_batch: int = 0) -> list[tuple[int, int]]:
        """(length in tokens, rows) of each pass that a text view takes, ``micro_batch`` rows at a time."""
        ids = self.views[name]
        if name not in self.fits:
            return [(ids.shape[1], len(ids))]
        fits, size = self.fits[name], micro_batch or len(ids)
        return [
            (length, len(rows))
            for start in range(0, len(fits), size)
            for length, rows in lengths.split(fits[start : start + size], self.lengths)
        ]

    def _grouped(self, device: torch.device | str) -> dict[str, Groups]:
        made = {n: lengths.grouped(fits, self.lengths, device) for n, fits in self.fits.items()}
        return {name: groups for name, groups in made.items() if groups is not None}

    def to(self, device: torch.device | str) -> Batch:
        """The same on the device, pictures cropped to one size there if they were not before."""

        def moved(tensors: dict[str, Any]) -> dict[str, Tensor]:
            return {name: rows.to(device, non_blocking=True) for name, rows in tensors.items()}

        return replace(
            self,
            views=moved(self.views),
            positions=self.positions.to(device, non_blocking=True),
            stored=moved(self.stored),
            groups=self._grouped(device),
        )

    def pin_memory(self) -> Batch:
        def pinned(tensors: dict[str, Any]) -> dict[str, Any]:
            return {name: rows.pin_memory() for name, rows in tensors.items()}

        positions = self.positions.pin_memory()
        return replace(
            self, views=pinned(self.views), positions=positions, stored=pinned(self.stored)
        )

    def __getstate__(self) -> dict[str, Any]:
        """Small tensors travel as arrays: a piece of shared memory each would cost more than they hold."""
        state = dict(self.__dict__, positions=_piped(self.positions))
        for part in ("views", "stored"):
            state[part] = {name: _piped(rows) for name, rows in state[part].items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for part in ("views", "stored"):
            state[part] = {name: _unpiped(rows) for name, rows in state[part].items()}
        self.__dict__.update(state, positions=_unpiped(state["positions"]))


def _piped(rows: Any) -> Any:
    if isinstance(rows, Ragged | Encoded):
        return replace(rows, **{of.name: _piped(getattr(rows, of.name)) for of in fields(rows)})
    if not isinstance(rows, Tensor):
        return rows
    return rows.numpy() if rows.nbytes < _PIPED_BYTES else arena.lent(rows) or rows


def _unpiped(rows: Any) -> Any:
    if isinstance(rows, Ragged | Encoded):
        return replace(rows, **{of.name: _unpiped(getattr(rows, of.name)) for of in fields(rows)})
    if isinstance(rows, Lent):
        return rows.tensor()
    return torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows


class Reader:
    """One shard set as a map from sample number to Sample; see ``tars.TarSet``."""

    counts: tuple[int, ...]

    def read(self, number: int) -> Sample:
        """Raises BadSample."""
        raise NotImplementedError

    def ahead(self, numbers: Sequence[int]) -> None:
        """A hint: these samples are asked for soon, in this order."""


class Stream(Dataset[Any]):
    """Positions -> the batch of samples there. Pure: any process may ask for any positions.

    ``buckets`` are text lengths: a batch's captions are cut to the shortest that holds all of them,
    and with ``split`` it says which rows fit a shorter one.
    With ``augment`` = "device", pictures leave the loader as crops that are not yet resized; with
    ``decode`` = "device" as JPEGs, where a decoder surely takes them: see ``device_decode.Bring``.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        weights: Sequence[float],
        views: Sequence[Any],
        tokenize: Callable[[list[str]], Tensor],
        seed: int,
        buckets: Sequence[int] = (),
        augment: str = "worker",
        split: bool = True,
        decode: str = "worker",
    ) -> None:
        self.readers = list(readers)
        self.views = list(views)
        self.tokenize = tokenize
        self.seed = seed
        self.buckets = tuple(sorted(buckets))
        self.augment, self.decode = augment, decode
        self.split = split
        self.mixture = Mixture(tuple(weights), seed)
        self.orders = [ShardOrder(reader.counts, seed) for reader in self.readers]

    def __getitems__(self, positions: list[int]) -> Batch:
        """What a loader process asks for: one local batch."""
        return self.batch(positions)

    def batch(self, positions: Sequence[int], by_cpu: Collection[int] = ()) -> Batch:
        """The samples at these positions, in this order; pictures of rows ``by_cpu`` are decoded here."""
        began_s = time.process_time()
        gathered = {
            view.name: rows_for(view, len(positions), self.augment, self.decode, by_cpu)
            for view in self.views
        }
        batch = Batch({}, [], torch.tensor(positions))
        stored: list[dict[str, np.ndarray]] = []
        for row, found in enumerate(self._samples(positions)):
            sample = self._put(gathered, row, positions[row], *found, batch)
            if sample is None:
                return batch
            batch.keys.append(sample.key)
            stored.append(sample.stored)
        made = {name: rows.close() for name, rows in gathered.items()}
        words = {name: rows for name, rows in made.items() if isinstance(rows, list)}
        texts = tokens_of(words, self.tokenize, self.buckets)
        batch.views = {**made, **texts.ids}
        if self.split and len(texts.lengths) > 1:
            batch.lengths, batch.fits = texts.lengths, texts.fits
        self._add_stored(batch, stored)
        batch.cost_s = time.process_time() - began_s
        return batch

    def _add_stored(self, batch: Batch, stored: list[dict[str, np.ndarray]]) -> None:
        for name in sorted({name for of in stored for name in of}):
            without = next((row for row, of in enumerate(stored) if name not in of), None)
            if without is not None:
                batch.fatal = (
                    f"sample {batch.keys[without]} has no stored {name!r}, which others of its batch have. "
                    "hint: give every shard set a sidecar of that name"
                )
                return
            rows = np.stack([of[name] for of in stored]).astype(np.float32)
            batch.stored[name] = torch.from_numpy(rows)

    def _samples(self, positions: Sequence[int]) -> list[tuple[int, int, int]]:
        """(number of the shard set, place in its stream, sample) at each position; readers are told."""
        found = [self.mixture.at(position) for position in positions]
        samples: list[tuple[int, int, int]] = [(0, 0, 0)] * len(found)
        for source, reader in enumerate(self.readers):
            rows = [row for row, (of, _) in enumerate(found) if of == source]
            if rows:
                places = [found[row][1] for row in rows]
                first = min(places)
                numbers = self.orders[source].samples(first, max(places) + 1)
                mine = [int(numbers[place - first]) for place in places]
                # These, then the rest of the window's shards, then the next window's.
                reader.ahead([*mine, *self.orders[source].soon(first).tolist()])
                for row, place, number in zip(rows, places, mine, strict=True):
                    samples[row] = source, place, number
        return samples

    def _put(
        self,
        gathered: dict[str, Rows],
        row: int,
        position: int,
        source: int,
        place: int,
        number: int,
        batch: Batch,
    ) -> Sample | None:
        """Fill a row of every view, from another sample if need be. None if no sample can be used."""
        reader, order = self.readers[source], self.orders[source]
        fault: BadSample | None = None
        draws = Draws(self.seed, "replace", position)
        for attempt in range(MAX_REPLACEMENTS + 1):
            if attempt > _FROM_THE_WINDOW:
                number = draws.integers(order.total)
            elif attempt:  # its shards are open, and here if they are remote
                near = order.window_samples(place)
                number = int(near[draws.integers(len(near))])
            try:
                sample = reader.read(number)
                for name, rows in gathered.items():
                    self.draw(rows, row, sample, name, position)
            except Unreachable as gone:
                batch.fatal = str(gone)
                return None
            except BadSample as damage:
                fault = fault or damage
                continue
            if fault:
                batch.bad.append((fault.kind, str(fault)))
            return sample
        # Not raised here: an exception crosses processes with the whole traceback in its message.
        batch.fatal = (
            f"{MAX_REPLACEMENTS + 1} samples tried for position {position}, none usable; the first: {fault}. "
            "hint: check that the shards are whole, e.g. by running `clip-pipe curate` again"
        )
        return None

    def draw(self, rows: Rows, row: int, sample: Sample, name: str, position: int) -> None:
        """Fill one row of a view with what it draws for a sample at a position. Raises BadSample."""
        try:
            rows.put(row, sample, Draws(self.seed, f"view.{name}", position))
        except BadPicture as fault:
            where = sample.where or f"sample {sample.key}"
            raise BadSample(f"picture.{fault.kind}", f"{where}: {fault}") from fault


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
    # By fork nothing of the stream is copied, and a stream may hold large indexes.
    forks = workers and sys.platform == "linux"
    return DataLoader(
        stream,
        batch_sampler=batches,
        multiprocessing_context="fork" if forks else None,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers else None,
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _end_with(rank: int) -> None:
    """End this loader within a second of its rank's end, also a killed one's: its queue may never drain."""
    while os.getppid() == rank:
        time.sleep(0.5)
    os._exit(1)


def _start_worker(_: int) -> None:
    """Ctrl-C, and often SIGTERM, go to the whole process group: the rank alone decides when to stop.

    It ends its loaders by a SIGTERM of its own where they don't end by themselves. So the first one is passed
    over, for a time in which a step surely ends. A rank closes its loaders on a fault too; only one that did
    not, and sends no second signal, would wait for its workers for ever.
    """
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _told_once)


def _told_once(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(_ENDS_WITHIN_S)  # unhandled, it ends the process
