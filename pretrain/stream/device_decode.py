"""Decodes a batch's JPEGs on the device; what its decoder refuses is judged by the CPU, as ever.

The decoder is NVJPEG, by torchvision's ``decode_jpeg`` (read at 0.28; from 0.29 on it is deprecated in
favour of TorchCodec's). It takes a list, all or nothing, so a refused picture is found by halving. That
picture goes the very way it would have gone in a loader; if it is refused there too, its position gets
the replacement that is a function of (seed, position), and is counted with the same reason. So which
samples a run sees does not hang on the device.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.stream.batch import BadSample, Batch, Sample, Stream
from pretrain.stream.encoded import Decoder, Encoded, put_rows
from pretrain.stream.rows import rows_for

_OLDEST_CUDA = (
    12,
    3,
)  # older: NVJPEG leaks (before 11.6), or ends the process on odd EXIF (before 12.2.2)
_HINT = 'hint: decode = "worker" decodes in the loaders'
# No picture is to blame. Of NVJPEG's states: not initialised, no memory, a chip that is not meant.
_MACHINE = re.compile(r"out of memory|CUDA (error|stream)|: [157]$")
_ENOUGH = 16  # so many pictures of one batch, all refused: it is not the pictures
_logger = logging.getLogger(__name__)


class DecoderFault(Exception):
    """The device's decoder fails for reasons of its own."""


def nvjpeg(device: torch.device) -> Decoder:
    """NVJPEG on this device, tried on one picture. Raises ValueError, with a hint, where there is none."""
    if device.type != "cuda":
        raise ValueError(f'train.decode = "device", and there is no CUDA device here. {_HINT}')
    if _version(torch.version.cuda) < _OLDEST_CUDA:
        raise ValueError(
            f'train.decode = "device" needs CUDA {_OLDEST_CUDA[0]}.{_OLDEST_CUDA[1]} or newer, and torch was built '
            f"with {torch.version.cuda or 'none'}. {_HINT}"
        )
    try:
        decode = each(_torchvision(device))
        found = decode([_one_grey_square()])[0]
    except (ImportError, OSError, RuntimeError, AttributeError, DecoderFault) as fault:
        found = f"{type(fault).__name__}: {fault}"
    if isinstance(found, str) or found.shape != (3, 16, 16):
        told = " ".join(str(found).split())[:300]
        raise ValueError(
            f'train.decode = "device", and torchvision does not decode a JPEG on {device}: {told}. '
            'hint: install the torchvision that was built for this torch and its CUDA, or set decode = "worker"'
        )
    return decode


def _version(cuda: str | None) -> tuple[int, int]:
    """(12, 6) of "12.6"; (0, 0) where torch has no CUDA."""
    found = re.match(r"(\d+)\.(\d+)", cuda or "")
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _torchvision(device: torch.device) -> Callable[[list[Tensor]], list[Tensor]]:
    """All of a list, or RuntimeError. Raises ImportError, OSError or RuntimeError where it does not load."""
    from torchvision import io

    def decode(jpegs: list[Tensor]) -> list[Tensor]:
        # The decoder writes on a stream of its own and does not wait for this one: memory that is free again,
        # but still read by what is queued here, would be overwritten (pytorch/vision, pull request 9606).
        torch.cuda.current_stream(device).synchronize()
        return io.decode_jpeg(jpegs, mode=io.ImageReadMode.RGB, device=device)

    return decode


def _one_grey_square() -> Tensor:
    import simplejpeg

    jpeg = simplejpeg.encode_jpeg(np.full((16, 16, 3), 128, np.uint8), colorsubsampling="444")
    return torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)


def each(whole: Callable[[list[Tensor]], list[Tensor]]) -> Decoder:
    """A decoder out of one that takes all of a list or raises RuntimeError: halves it to find which."""

    def decode(jpegs: list[Tensor]) -> list[Tensor | str]:
        try:
            return list(whole(jpegs))
        except RuntimeError as fault:
            told = _message(fault)
            if type(fault) is not RuntimeError or _MACHINE.search(told):
                raise DecoderFault(told) from fault
            if len(jpegs) == 1:
                return [told]
        half = len(jpegs) // 2
        return decode(jpegs[:half]) + decode(jpegs[half:])

    return decode


def _message(fault: Exception) -> str:
    """Without the C++ frames that torch adds."""
    return " ".join(str(fault).split("Exception raised from")[0].split())[:300]


class Bring:
    """Brings batches to the device, and decodes there what a loader left encoded.

    ``decoder`` None: nothing is left so. Where the decoder itself fails, the batch says so as ``fatal``.
    """

    def __init__(self, stream: Stream, device: torch.device | str, decoder: Decoder | None) -> None:
        self.stream, self.device, self.decoder = stream, device, decoder
        self.told = False

    def __call__(self, batch: Batch) -> Batch:
        by_cpu: set[int] = set()  # rows that no decoder takes; it grows, so this ends
        while not batch.fatal:
            try:
                views, lost = self._decoded(batch)
            except DecoderFault as fault:
                return replace(batch, views={}, fatal=f"the device's JPEG decoder fails: {fault}. {_HINT}")  # fmt: skip
            if not lost:
                return replace(batch, views=views).to(self.device)
            by_cpu |= lost
            batch = self.stream.batch(batch.positions.tolist(), by_cpu)
        return batch

    def _decoded(self, batch: Batch) -> tuple[dict[str, Any], set[int]]:
        """(the views with all pictures decoded, rows whose picture neither decoder takes)."""
        views, lost = dict(batch.views), set()
        for name, rows in batch.views.items():
            if isinstance(rows, Encoded):
                assert self.decoder is not None
                views[name], refused = rows.decoded(self.device, self.decoder)
                if refused:
                    self._tell(batch, len(rows.sizes), refused)
                    lost |= self._by_cpu(batch, name, views[name], refused)
        return views, lost

    def _by_cpu(
        self, batch: Batch, name: str, out: Tensor, refused: dict[int, tuple[Tensor, str]]
    ) -> set[int]:
        """Draw refused rows as a loader would have; those that it would not have taken either."""
        view = next(view for view in self.stream.views if view.name == name)
        lost = set()
        for row, (jpeg, _) in refused.items():
            sample = Sample(batch.keys[row], jpeg.numpy().tobytes(), "")
            crops = rows_for(view, 1, "device")
            try:
                self.stream.draw(crops, 0, sample, name, int(batch.positions[row]))
            except BadSample:
                lost.add(row)
            else:
                put_rows(out, [row], crops.close().to(self.device))  # type: ignore[union-attr]
        return lost

    def _tell(self, batch: Batch, handed: int, refused: dict[int, tuple[Tensor, str]]) -> None:
        row, (_, why) = next(iter(refused.items()))
        if len(refused) == handed >= _ENOUGH:
            raise DecoderFault(
                f"it refuses all {handed} pictures of a batch; of the first it says: {why}"
            )
        if not self.told:
            self.told = True
            _logger.warning(
                "the device's decoder refuses the picture of %s (%s); it is decoded on the CPU, and so are others like it",
                batch.keys[row], why,
            )  # fmt: skip
