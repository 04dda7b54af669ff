"""Pictures and texts of an evaluation to unit features, in batches; bad pictures are counted.

Pictures are prepared as CLIP's evaluations do: short side resized to the model's size (bicubic),
centre crop. Decoding runs in threads one batch ahead of the encoder.

Legend: N pictures or texts, D embedding, H W C picture.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from curate.contract import tars
from pretrain.evaluate.base import Encoder, unit
from pretrain.evaluate.store import Store
from pretrain.stream.picture import BadPicture, decode_rgb

Decoded = np.ndarray | str  # the prepared picture, or the reason why there is none
_MAX_ASPECT = 16  # a strip of 1 x 10,000 px would be resized to gigabytes for one square of it
_DECODE_THREADS = min(8, os.cpu_count() or 1)


@dataclass
class ImageFeatures:
    """Unit features of the pictures that could be decoded, and which those were."""

    features_ND: Tensor
    positions: list[int]  # of each row, in the names asked for
    bad: Counter[str] = field(default_factory=Counter)  # reason -> pictures


def prepare(image_HWC: np.ndarray, size_px: int) -> np.ndarray:
    """Short side to ``size_px`` (bicubic, antialiased), then the centre square. uint8 in and out."""
    from PIL import Image

    height, width = image_HWC.shape[:2]
    short = min(height, width)
    above, before = (max(0, side - _MAX_ASPECT * short) // 2 for side in (height, width))
    image_HWC = image_HWC[above : height - above, before : width - before]
    height, width = image_HWC.shape[:2]
    scaled = (size_px * width // short, size_px * height // short)
    image = Image.fromarray(np.ascontiguousarray(image_HWC)).resize(
        scaled, Image.Resampling.BICUBIC
    )
    left, top = round((scaled[0] - size_px) / 2), round((scaled[1] - size_px) / 2)
    return np.asarray(image.crop((left, top, left + size_px, top + size_px)))


def embed_images(
    encoder: Encoder, store: Store, names: Sequence[str], device: torch.device | str, batch: int
) -> ImageFeatures:
    """Features of the named pictures. Raises ValueError, with the reasons, if not one is good."""
    found = ImageFeatures(torch.empty(0), [])
    rows: list[Tensor] = []
    for start, decoded in _decoded_batches(encoder, store, names, batch):
        good = [(start + i, image) for i, image in enumerate(decoded) if not isinstance(image, str)]
        found.bad.update(reason for reason in decoded if isinstance(reason, str))
        if not good:
            continue
        found.positions += [position for position, _ in good]
        images_NHWC = torch.from_numpy(np.stack([image for _, image in good]))
        with torch.inference_mode():
            rows.append(unit(encoder.encode_image(images_NHWC.to(device))))
    if not rows:
        raise ValueError(
            f"{store.path}: none of {len(names):,} pictures can be decoded: {dict(found.bad)}. "
            "hint: open one of them with an image viewer; the set may be damaged"
        )
    found.features_ND = torch.cat(rows)
    return found


def embed_texts(
    encoder: Encoder, texts: Sequence[str], device: torch.device | str, batch: int
) -> Tensor:
    """Unit features (N, D) of the texts, in order."""
    rows: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(texts), batch):
            tokens = encoder.tokenize(list(texts[start : start + batch]))
            rows.append(unit(encoder.encode_text(tokens.to(device))))
    return torch.cat(rows)


def _decoded_batches(
    encoder: Encoder, store: Store, names: Sequence[str], batch: int
) -> Iterator[tuple[int, list[Decoded]]]:
    """(position of the first, prepared pictures) per batch, the next one already under way."""
    with ThreadPoolExecutor(_DECODE_THREADS) as threads:
        ahead: tuple[int, list[Future[Decoded]]] | None = None
        for start in range(0, len(names), batch):
            # Bytes are read here and not in the threads: they share one file handle a tar.
            data = [_read(store, name) for name in names[start : start + batch]]
            under_way = [threads.submit(_decode, item, encoder.image_size) for item in data]
            if ahead is not None:
                yield ahead[0], [future.result() for future in ahead[1]]
            ahead = (start, under_way)
        if ahead is not None:
            yield ahead[0], [future.result() for future in ahead[1]]


def _read(store: Store, name: str) -> bytes | str:
    try:
        return store.read(name)
    except tars.TarDamage:
        return "damaged"
    except OSError as fault:
        return f"unreadable.{type(fault).__name__}"


def _decode(data: bytes | str, size_px: int) -> Decoded:
    if isinstance(data, str):
        return data
    try:
        return prepare(decode_rgb(data), size_px)
    except BadPicture as fault:
        return fault.kind
