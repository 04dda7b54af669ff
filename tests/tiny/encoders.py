"""Encoders with known answers: colours seen and colours named; and one that maps all to one point."""

from __future__ import annotations

import torch
from torch import Tensor, nn

COLOURS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "cyan": (0, 1, 1),
    "purple": (1, 0, 1),
    "white": (1, 1, 1),
}


class ColourEncoder(nn.Module):
    """Pictures are their mean colour, texts the sum of the colours they name."""

    image_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor([(0, 0, 0), *COLOURS.values()], dtype=torch.float32))
        self.texts: list[str] = []

    def encode_image(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (8, 8, 3)
        return images.float().mean((1, 2)) / 255

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.table[tokens].sum(1)

    def tokenize(self, texts: list[str]) -> Tensor:
        self.texts += texts
        names = list(COLOURS)
        found = [[names.index(name) + 1 if name in text else 0 for name in names] for text in texts]
        return torch.tensor(found)


class CollapsedEncoder(ColourEncoder):
    """Everything has the same features, but for the last bits."""

    def encode_image(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 3), 0.3) + torch.rand(len(images), 3) * 1e-8

    def encode_text(self, tokens: Tensor) -> Tensor:
        return torch.full((len(tokens), 3), 0.7)


class DivergedEncoder(ColourEncoder):
    """A model that training has broken: all features are NaN."""

    def encode_image(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 3), torch.nan)
