"""Pictures of a batch that leave a loader as JPEGs: decoded, cropped and resized on the device.

A loader hands over a JPEG only where its markers promise that any decoder takes it
(``picture.baseline_size``), with the crop that was drawn for it; all others come as crops, as ever.
Which decoder that is, and what becomes of a picture that it refuses all the same: ``device_decode``.

Legend: B rows, J of them as JPEGs, S side of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pretrain.stream.device import Allocate, Ragged, chunks, resize_planes

# JPEGs, each uint8 (bytes,) on the host -> for each its pixels, uint8 (3, height, width) on the device, or
# why it is refused. Raises only what is no picture's fault.
Decoder = Callable[[list[Tensor]], list[Tensor | str]]


@dataclass(frozen=True)
class Encoded:
    """B rows of a view, J of them JPEGs. ``decoded`` is what they become."""

    data: Tensor  # uint8 (bytes,): the JPEGs, one after another
    sizes: tuple[int, ...]  # J: how many bytes each has
    # int64 (J, 8), by row: the row; height and width of the picture; left, top, height and width of the
    # crop in it, in pixels; 1 if mirrored.
    table: Tensor
    here: tuple[int, ...]  # B - J: the rows that a loader decoded
    crops: Ragged  # of these

    @staticmethod
    def of(
        jpegs: Sequence[tuple[bytes, tuple[int, ...]]],
        here: Sequence[int],
        crops: Sequence[tuple[np.ndarray, bool]],
        size: int,
        empty: Allocate,
    ) -> Encoded:
        """From (bytes, line of the table), and the crops of the rows ``here``."""
        sizes = tuple(len(data) for data, _ in jpegs)
        data = empty((sum(sizes),))
        flat, at = data.numpy(), 0
        for (jpeg, _), length in zip(jpegs, sizes, strict=True):
            flat[at : at + length] = np.frombuffer(jpeg, np.uint8)
            at += length
        table = torch.tensor([line for _, line in jpegs], dtype=torch.int64).view(-1, 8)
        none = Ragged(empty((0, 3)), torch.empty((0, 4), dtype=torch.int64), size)
        return Encoded(data, sizes, table, tuple(here), Ragged.of(crops, size, empty) if crops else none)  # fmt: skip

    def __len__(self) -> int:
        return len(self.sizes) + len(self.here)

    def pin_memory(self) -> Encoded:
        return replace(
            self,
            data=self.data.pin_memory(),
            table=self.table.pin_memory(),
            crops=self.crops.pin_memory(),
        )

    def jpegs(self) -> list[Tensor]:
        """The bytes of each, uint8; views of ``data``."""
        return list(self.data.split(self.sizes))

    def decoded(
        self, device: torch.device | str, decoder: Decoder
    ) -> tuple[Tensor, dict[int, tuple[Tensor, str]]]:
        """(uint8 (B, S, S, 3) on the device, row -> (bytes, why) of JPEGs that were refused).

        What stands in the rows of the latter is not defined.
        """
        side = self.crops.size
        out = torch.empty((len(self), side, side, 3), dtype=torch.uint8, device=device)
        if self.here:
            put_rows(out, self.here, self.crops.to(device))
        refused: dict[int, tuple[Tensor, str]] = {}
        jpegs, lines = self.jpegs(), self.table.tolist()
        table = self.table.to(device, non_blocking=True)
        # By the size of pictures, not of crops: it bounds what is there decoded, and what is padded.
        for some, _, _ in chunks([(line[1], line[2]) for line in lines]):
            found = [
                _of_size(one, line[1], line[2])
                for one, line in zip(decoder(jpegs[some]), lines[some], strict=True)
            ]
            bad = {n: why for n, why in enumerate(found) if isinstance(why, str)}
            refused |= {lines[some][n][0]: (jpegs[some][n], why) for n, why in bad.items()}
            good = [n for n in range(len(found)) if n not in bad]
            if good:
                taken = table[some]
                taken = taken[_numbers(good, device)] if bad else taken
                pixels = torch.cat([found[n].reshape(-1) for n in good])  # type: ignore[union-attr]
                tallest, widest = (max(lines[some][n][k] for n in good) for k in (5, 6))
                rows = resize_planes(pixels, taken, tallest, widest, side)
                out.index_copy_(0, taken[:, 0], rows)
        return out, refused


def put_rows(out: Tensor, rows: Sequence[int], pixels: Tensor) -> None:
    """Write ``pixels`` into these rows of ``out``; both are on one device."""
    out.index_copy_(0, _numbers(rows, out.device), pixels)


def _numbers(rows: Sequence[int], device: torch.device | str) -> Tensor:
    numbers = torch.tensor(rows, dtype=torch.int64)
    if torch.device(device).type == "cuda":
        numbers = numbers.pin_memory()  # from other memory the copy would be waited for
    return numbers.to(device, non_blocking=True)


def _of_size(pixels: Tensor | str, height: int, width: int) -> Tensor | str:
    """The same, refused where it is not what the header said."""
    if isinstance(pixels, str) or pixels.shape == (3, height, width):
        return pixels
    return f"{tuple(pixels.shape)} came, not {(3, height, width)}"
