"""JPEG scenes, and stand-ins for a device's decoder that run on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import simplejpeg
import torch
from torch import Tensor

from tests.tiny import scenes

Members = list[tuple[str, bytes]]


def jpeg(number: int, height: int = 40, width: int = 56) -> bytes:
    """A plain JPEG of scene ``number``, wider than high or the other way round."""
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(scenes.picture(number, max(height, width))))
    if number % 3 == 0:
        height, width = width, height
    stream = io.BytesIO()
    image.crop((0, 0, width, height)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write_shards(
    folder: Path, count: int, change: Callable[[int, Members], Members] | None = None
) -> Path:
    """Scenes as plain JPEGs; every fourth one is a PNG, which no loader hands over."""

    def with_jpeg(number: int, members: Members) -> Members:
        if number % 4:
            members = [("jpg", jpeg(number)), *members[1:]]
        return change(number, members) if change else members

    return scenes.write_shards(folder, count, per_shard=7, rewrite_count=3, change=with_jpeg)


class OnTheCpu:
    """All of a list or RuntimeError, as torchvision's: by libjpeg-turbo, with the loaders' own pixels.

    ``refuses`` says of which JPEGs it takes none.
    """

    def __init__(self, refuses: Callable[[bytes], bool] = lambda data: False) -> None:
        self.refuses = refuses
        self.asked: list[int] = []  # how many, of each call

    def __call__(self, jpegs: list[Tensor]) -> list[Tensor]:
        self.asked.append(len(jpegs))
        found = []
        for one in jpegs:
            data = one.numpy().tobytes()
            if self.refuses(data):
                raise RuntimeError("Error while decoding JPEG images: Failed to decode batch: 4")
            found.append(torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1).contiguous())  # fmt: skip
        return found
