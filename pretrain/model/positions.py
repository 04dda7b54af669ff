"""Position embeddings of patches for another grid: resampled, or made anew where they are fixed waves.

CLIPA, arXiv 2305.07017, section 4 (trained small, tuned large). Learned tables are resampled bicubically with
antialiasing, as open_clip does on reading weights of another size; fixed sin-cos tables are formulas
and are made anew (MoCo v3, arXiv 2104.02057). The first row, the class token's, stays as it is.

Legend: P patches, S side of the grid in patches, W width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def resampled(table_PW: Tensor, side: int) -> Tensor:
    """A learned table (1 + P, W) for a grid of side x side: (1 + side², W), in the table's type."""
    class_1W, grid_PW = table_PW[:1], table_PW[1:]
    before = round(len(grid_PW) ** 0.5)
    if before * before != len(grid_PW):
        raise ValueError(f"{len(grid_PW)} patches are no square. hint: use square pictures")
    if before == side:
        return table_PW
    grid_WSS = grid_PW.float().view(before, before, -1).permute(2, 0, 1)
    larger_WSS = F.interpolate(
        grid_WSS[None], size=(side, side), mode="bicubic", antialias=True, align_corners=False
    )[0]
    return torch.cat([class_1W, larger_WSS.flatten(1).T.to(table_PW.dtype)])


def sin_cos(side: int, width: int) -> Tensor:
    """The fixed table for a grid of side x side, float32 (1 + side², width); the class token has zeros.

    The first half of the width tells the column, the second the row; of each, sines then cosines.
    """
    if width % 4:
        raise ValueError(f"width {width} is no multiple of 4. hint: use a learned table")
    frequencies = 1.0 / 10000 ** (np.arange(width // 4) / (width / 4))
    angles = np.arange(side, dtype=np.float64)[:, None] * frequencies
    waves_SW = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    columns = np.tile(waves_SW, (side, 1))
    rows = np.repeat(waves_SW, side, axis=0)
    table = np.concatenate([np.zeros((1, width)), np.concatenate([columns, rows], axis=1)])
    return torch.from_numpy(table.astype(np.float32))
