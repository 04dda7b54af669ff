"""What an evaluation is, what it asks of an encoder, and how a rank is counted.

Legend: N pictures or texts, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Cosines nearer than this are a tie. Equal vectors give cosines that differ in the last bits with
# the place they have in a matrix product, and a collapsed model must not win by those bits.
TIE = 1e-6


class Encoder(Protocol):
    """The part of `pretrain.model.encoder.DualEncoder` that evaluations use."""

    image_size: int
    training: bool

    def encode_image(self, images: Tensor) -> Tensor: ...

    def encode_text(self, tokens: Tensor) -> Tensor: ...

    def tokenize(self, texts: list[str]) -> Tensor: ...

    def train(self, mode: bool = True) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Base of every evaluation component; the fields of a subclass are the recipe's options."""

    def check(self) -> None:
        """Raise ValueError("what was found. hint: ...") for options that can't work."""

    def run(self, encoder: Encoder, device: torch.device | str) -> dict[str, float]:
        """Figures by name: shares in [0, 1], and counts whose names begin with ``n_``.

        Raises ValueError for a set that cannot be read, or of which no picture can be decoded.
        """
        raise NotImplementedError


def unit(features_ND: Tensor) -> Tensor:
    """Float32 rows of length 1; a row of zeros stays zero and so ties with everything."""
    return F.normalize(features_ND.float(), dim=-1)


def share_at(ranks: Tensor, k: int) -> float:
    """The share of ranks (1 is best) that are at most k."""
    return float((ranks <= k).double().mean())


def not_below(others: Tensor, own: Tensor) -> Tensor:
    """Where another's cosine beats or ties with the right one. NaN counts as beaten."""
    return ~(others < own - TIE)
