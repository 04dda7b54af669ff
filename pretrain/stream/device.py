"""Antialiased bicubic resizing of cropped pictures: one by one in a loader, or a batch on the device.

``resize_into`` is torch's kernel for bytes. ``Ragged`` carries crops of any size as one flat tensor to
the device, and resizes all of them there as two batched products with Pillow's filter coefficients
(horizontal, rounded to bytes, vertical), so its result is within two levels of the loader's, as a rule one.

Legend: B rows, S side of the result, H W the largest height and width of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

_CHUNK_PX = 16_000_000  # padded pixels in work at a time: about 600 MB with what is made of them
_CUBIC = -0.5

Allocate = Callable[[tuple[int, ...]], Tensor]  # an uninitialised uint8 tensor of a shape


def resize_into(row: np.ndarray, pixels: np.ndarray, mirrored: bool) -> None:
    """``pixels`` uint8 (height, width, 3) into ``row``, uint8 (S, S, 3), left and right swapped or not."""
    side = row.shape[0]
    target = torch.from_numpy(row).permute(2, 0, 1)[None]
    if pixels.shape == row.shape:
        source = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        target.copy_(source.flip(-1) if mirrored else source)
        return
    # A slice is copied first: torch would do it in a slower way. Its out= writes the row directly.
    source = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    if mirrored:
        source = source.flip(-1)
    torch.ops.aten._upsample_bicubic2d_aa.out(source, [side, side], False, out=target)


@dataclass(frozen=True)
class Ragged:
    """Crops of B pictures, not yet resized. ``to(device)`` resizes and mirrors them there."""

    pixels: Tensor  # uint8 (sum of height * width, 3): the crops' pixels, one crop after another
    crops: Tensor  # int64 (B, 4): where a crop begins in ``pixels``, height, width, 1 if mirrored
    size: int

    @staticmethod
    def of(crops: Sequence[tuple[np.ndarray, bool]], size: int, empty: Allocate) -> Ragged:
        """From (uint8 (height, width, 3), mirrored) pairs. ``empty`` makes the tensor they are copied to."""
        known = np.array([(0, *crop.shape[:2], flip) for crop, flip in crops], np.int64)
        ends = np.cumsum(known[:, 1] * known[:, 2])
        known[1:, 0] = ends[:-1]
        pixels = empty((int(ends[-1]), 3))
        flat = pixels.numpy()
        for (crop, _), begin, end in zip(crops, known[:, 0].tolist(), ends.tolist(), strict=True):
            flat[begin:end].reshape(crop.shape)[...] = crop
        return Ragged(pixels, torch.from_numpy(known), size)

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, rows: slice) -> Ragged:
        """Consecutive rows; the pixels of the others are left out."""
        crops = self.crops[rows].clone()
        if not len(crops):
            return replace(self, pixels=self.pixels[:0], crops=crops)
        begin, last = int(crops[0, 0]), crops[-1].tolist()
        crops[:, 0] -= begin
        return replace(self, pixels=self.pixels[begin : last[0] + last[1] * last[2]], crops=crops)

    def pin_memory(self) -> Ragged:
        return replace(self, pixels=self.pixels.pin_memory(), crops=self.crops.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Tensor:
        """uint8 (B, S, S, 3) on the device. The pixels travel once, whole; resizing goes by chunks."""
        pixels = self.pixels.to(device, non_blocking=non_blocking)
        crops = self.crops.to(device, non_blocking=non_blocking)
        out = torch.empty((len(self), self.size, self.size, 3), dtype=torch.uint8, device=device)
        for rows, height, width in self._chunks():
            out[rows] = _resize(pixels, crops[rows], height, width, self.size)
        return out

    def _chunks(self) -> list[tuple[slice, int, int]]:
        return chunks([(height, width) for _, height, width, _ in self.crops.tolist()])


def chunks(sizes: Sequence[tuple[int, int]]) -> list[tuple[slice, int, int]]:
    """(rows, their largest height and width): padded pixels stay within ``_CHUNK_PX``, or one row."""
    found: list[tuple[slice, int, int]] = []
    begin = height = width = 0
    for row, (h, w) in enumerate(sizes):
        if row > begin and (row + 1 - begin) * max(h, height) * max(w, width) > _CHUNK_PX:
            found.append((slice(begin, row), height, width))
            begin = row
            height = width = 0
        height, width = max(height, h), max(width, w)
    return [*found, (slice(begin, len(sizes)), height, width)] if sizes else []


def _resize(pixels: Tensor, crops_B4: Tensor, height: int, width: int, side: int) -> Tensor:
    """Crops in ``pixels``, none larger than (height, width): uint8 (B, S, S, 3). Nothing waits here."""
    starts_B, heights_B, widths_B, mirrored_B = crops_B4.unbind(1)
    index = _places(starts_B, widths_B, height, width)
    crops = pixels[index.clamp_(max=len(pixels) - 1)].float()  # (B, W, H, 3)
    return _smaller(crops, heights_B, widths_B, mirrored_B, side)


def resize_planes(pixels: Tensor, table_B8: Tensor, height: int, width: int, side: int) -> Tensor:
    """Crops of whole pictures that lie one after another, uint8 (B, S, S, 3). Nothing waits here.

    ``pixels`` uint8 (bytes,) has each picture's red, then its green, then its blue. ``table_B8`` int64:
    height and width of a picture, then left, top, height and width of its crop, 1 if mirrored; the
    first column is the row and is not looked at. No crop is larger than (height, width).
    """
    _, tall_B, wide_B, left_B, top_B, heights_B, widths_B, mirrored_B = table_B8.unbind(1)
    plane_B = tall_B * wide_B
    starts_B = 3 * (plane_B.cumsum(0) - plane_B) + top_B * wide_B + left_B
    index = _places(starts_B, wide_B, height, width)
    last = len(pixels) - 1
    planes = [pixels[(index + n * plane_B[:, None, None]).clamp_(max=last)] for n in range(3)]
    crops = torch.stack(planes, 3).float()  # (B, W, H, 3)
    return _smaller(crops, heights_B, widths_B, mirrored_B, side)


def _places(starts_B: Tensor, widths_B: Tensor, height: int, width: int) -> Tensor:
    """Where the pixels of each crop are, int64 (B, W, H), from its first one and the width of its rows.

    Transposed, so that both products have their sum in the middle. What lies outside of a crop has
    weight 0, and any pixel will do there.
    """
    y_H = torch.arange(height, device=starts_B.device)
    x_W = torch.arange(width, device=starts_B.device)
    return (starts_B[:, None] + x_W)[:, :, None] + (y_H * widths_B[:, None])[:, None, :]


def _smaller(
    crops: Tensor, heights_B: Tensor, widths_B: Tensor, mirrored_B: Tensor, side: int
) -> Tensor:
    """Crops in float (B, W, H, 3), each of its own size, as uint8 (B, S, S, 3)."""
    width, height = crops.shape[1:3]
    across = _weights(widths_B, width, side)
    across = torch.where(mirrored_B.bool()[:, None, None], across.flip(1), across)
    thin = _bytes(across @ crops.flatten(2)).unflatten(2, (height, 3))  # (B, S, H, 3)
    thin = thin.transpose(1, 2).flatten(2)
    done = _bytes(_weights(heights_B, height, side) @ thin)
    return done.unflatten(2, (side, 3)).to(torch.uint8)


def _weights(lengths_B: Tensor, longest: int, side: int) -> Tensor:
    """Pillow's bicubic coefficients, float32 (rows, side, longest); each sums to 1 over its length."""
    scale = (lengths_B / side)[:, None, None]
    centre = (torch.arange(side, device=lengths_B.device) + 0.5)[None, :, None] * scale
    places = torch.arange(longest, device=lengths_B.device)[None, None, :]
    x = ((places + 0.5 - centre) / scale.clamp(min=1)).abs()
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * _CUBIC - 4 * _CUBIC
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weights = weights * (places < lengths_B[:, None, None])
    return weights / weights.sum(2, keepdim=True)


def _bytes(values: Tensor) -> Tensor:
    """Rounded as Pillow rounds (halves up) and clipped to what a byte holds; still floats."""
    return values.add_(0.5).floor_().clamp_(0, 255)
