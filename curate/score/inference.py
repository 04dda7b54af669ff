"""Runs torch models so that a row's numbers do not depend on which rows it is computed with.

A matrix product adds up in another order for another count of rows, so an embedding differs in its
last bits between a batch of 7 and one of 8, and its float16 form with it. Here every forward pass of
a model has the same shape: rows are taken a fixed number at a time, the last batch is filled up with
copies, and one thread computes. At equal shapes the place of a row and its neighbours change nothing
(measured with open_clip and BERT on the CPU; the tests hold it for small models).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

CPU_BATCH_ROWS = 8  # more rows are not faster on one thread: measured with ViT-B-32
CUDA_BATCH_ROWS = 64
_kept_alive: list[Any] = []


def import_torchvision() -> None:
    """Make ``import torchvision`` work beside a CPU-only torch; open_clip and transformers need it.

    PyPI's torchvision is built for CUDA. Beside a CPU build of torch its compiled part does
    not load, and its Python part then describes two operators that nobody declared. Declaring them
    is enough for what is used here, transforms.
    """
    import torch

    try:
        import torchvision
    except RuntimeError as fault:
        if "torchvision::" not in str(fault):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # lives with the process
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept_alive.append(library)
        import torchvision  # noqa: F401


def pick_device(wanted: str) -> str:
    """``auto`` is cuda where torch sees one, else the CPU. Raises ValueError for a cuda that is not there."""
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ValueError('device = "cuda", and torch sees none. hint: device = "auto" or "cpu"')
    return "cuda" if there and wanted != "cpu" else "cpu"


def batch_rows(device: str) -> int:
    """Rows of one forward pass."""
    return CUDA_BATCH_ROWS if device == "cuda" else CPU_BATCH_ROWS


@contextmanager
def one_thread() -> Iterator[None]:
    """No gradients, and one thread: what a worker has, and the same sums on every machine of a kind."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def in_fixed_batches(
    rows: Tensor, size: int, forward: Callable[[Tensor], Tensor], device: str = "cpu"
) -> np.ndarray:
    """``forward`` over ``rows`` (n, ...), always ``size`` rows at a time. Returns float32 (n, D)."""
    import torch

    found: list[np.ndarray] = []
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        real = len(batch)
        if real < size:
            batch = torch.cat([batch, batch[:1].expand(size - real, *batch.shape[1:])])
        with one_thread():
            out = forward(batch.to(device))
        found.append(out[:real].float().cpu().numpy())
    return np.concatenate(found)


def unit_norm(features: np.ndarray) -> np.ndarray:
    """float32 (n, D) -> the same directions, length 1; rows that have none (zero, NaN, inf) become NaN."""
    lengths = np.sqrt(np.multiply(features, features, dtype=np.float64).sum(axis=1))
    lengths[~(np.isfinite(lengths) & (lengths > 0))] = np.nan
    return (features / lengths[:, None]).astype(np.float32)
