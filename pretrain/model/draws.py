"""Random integers on the device as a pure function of (key, position in the stream, index).

No generator is involved, only 64-bit integer arithmetic, which is the same on every device: so what is
drawn for a row hangs neither on its rank, nor on its micro batch, nor on the rows beside it. The mixing
function is the output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).

Legend: B rows, P things to put into a random order.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_INDEX_BITS = 16  # the lowest bits hold the index itself, so that no two numbers of a row are equal


def row_keys(positions_B: Tensor, draw_key: int, purpose: str) -> Tensor:
    """int64 (B,): one random key for each row. ``purpose`` keeps uses apart, e.g. a view's name."""
    digest = hashlib.blake2b(f"{draw_key}\0{purpose}".encode(), digest_size=8).digest()
    return _mix(positions_B.to(torch.int64) ^ int.from_bytes(digest, "little", signed=True))


def shuffled(keys_B: Tensor, count: int) -> Tensor:
    """int64 (B, P): for each row, ``count`` random integers, all different. Raises ValueError beyond 65,536."""
    if count > 1 << _INDEX_BITS:
        raise ValueError(f"{count} things to draw from. hint: at most {1 << _INDEX_BITS}")
    index_P = torch.arange(count, device=keys_B.device)
    random_BP = _mix(keys_B[:, None] + (index_P + 1) * _signed(_GOLDEN))
    return (random_BP & -(1 << _INDEX_BITS)) | index_P


def _mix(bits: Tensor) -> Tensor:
    for shift, factor in _STEPS:
        bits = (bits ^ _shifted(bits, shift)) * _signed(factor)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shifted right with zeros coming in; torch's own shift of int64 brings in the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits
