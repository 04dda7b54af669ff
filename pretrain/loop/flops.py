"""Arithmetic of a pair, and parameters of the towers, from an open_clip configuration. No torch.

A layer of width d on n tokens takes 2n(4 + 2m)d² for its matrices (m: the MLP's ratio) and 4n²d for
attention; the patch embedding 2P 3p²d. Backward is twice forward, less the gradient of the pixels
and all of a frozen tower's. A multiplication and an addition count as two; causal attention counts
whole, as is usual. The loss (2 N D each way) is left out: below 1 % at a global batch of 32,768.

This is the arithmetic of the model as published, so that MFU compares with other trainers'. Our towers reach
the same result with some 7 % less (the last block finishes only the pooled token), so an MFU of 44 % is about
41 % of the peak in arithmetic that is really done.

FLIP, arXiv 2212.00794 (fewer patches); CLIPA, arXiv 2305.07017 (fewer pixels and words).

Legend: n tokens, P patches, p patch side, d width, D embedding, L text tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ImageTower:
    """A vision transformer with a class token. ``keep_frac`` of its patches go through the layers."""

    layers: int
    width: int
    mlp_ratio: float
    patch_px: int
    image_px: int
    embed_dim: int
    keep_frac: float = 1.0
    frozen: bool = False

    @property
    def patches(self) -> int:
        return (self.image_px // self.patch_px) ** 2

    @property
    def tokens(self) -> int:
        return max(math.floor(self.keep_frac * self.patches + 1e-9), 1) + 1

    @property
    def blocks_flops(self) -> float:
        return _blocks(self.layers, self.width, self.mlp_ratio, self.tokens)

    @property
    def forward_flops(self) -> float:
        return self.blocks_flops + self._stem_flops + 2 * self.width * self.embed_dim

    @property
    def train_flops(self) -> float:
        """Forward and backward of one picture; nobody asks for the gradient of its pixels."""
        return self.forward_flops if self.frozen else 3 * self.forward_flops - self._stem_flops

    @property
    def _stem_flops(self) -> float:
        return 2 * self.patches * 3 * self.patch_px**2 * self.width

    @property
    def parameters(self) -> int:
        positions = (self.patches + 1) * self.width
        stem = 3 * self.patch_px**2 * self.width + self.width + positions
        norms = 4 * self.width
        return (
            stem
            + norms
            + _block_parameters(self.layers, self.width, self.mlp_ratio)
            + self.width * self.embed_dim
        )


@dataclass(frozen=True)
class TextTower:
    """A causal transformer over ``tokens`` of the ``context`` it has positions for."""

    layers: int
    width: int
    mlp_ratio: float
    tokens: int
    context: int
    vocabulary: int
    embed_dim: int
    frozen: bool = False

    @property
    def blocks_flops(self) -> float:
        return _blocks(self.layers, self.width, self.mlp_ratio, self.tokens)

    @property
    def forward_flops(self) -> float:
        return self.blocks_flops + 2 * self.width * self.embed_dim

    @property
    def train_flops(self) -> float:
        return self.forward_flops if self.frozen else 3 * self.forward_flops

    @property
    def parameters(self) -> int:
        tables = (self.vocabulary + self.context + self.embed_dim) * self.width
        return tables + 2 * self.width + _block_parameters(self.layers, self.width, self.mlp_ratio)


@dataclass(frozen=True)
class Towers:
    """Both towers, as one phase runs them."""

    image: ImageTower
    text: TextTower

    def train_flops(self, images: int = 1, texts: int = 1) -> float:
        """Of one pair, forward and backward, nothing counted twice: what MFU is made of.

        ``images`` and ``texts``: how many views of each tower a pair has.
        """
        return images * self.image.train_flops + texts * self.text.train_flops

    def executed_flops(
        self,
        images: int = 1,
        texts: int = 1,
        *,
        accumulated: bool = False,
        checkpointed: bool = False,
    ) -> float:
        """With what is computed again: forward once more for accumulation, layers for checkpointing."""
        views = ((images, self.image), (texts, self.text))
        again = sum(count * tower.forward_flops for count, tower in views) if accumulated else 0.0
        layers = sum(count * tower.blocks_flops for count, tower in views if not tower.frozen)
        return self.train_flops(images, texts) + again + (layers if checkpointed else 0.0)

    @property
    def parameters(self) -> int:
        return self.image.parameters + self.text.parameters + 1  # the logit scale

    @property
    def trained_parameters(self) -> int:
        return sum(tower.parameters for tower in (self.image, self.text) if not tower.frozen)

    def at(self, *, image_px: int | None = None, text_tokens: int | None = None) -> Towers:
        """The same at another resolution or text length."""
        image = dataclasses.replace(self.image, image_px=image_px or self.image.image_px)
        text = dataclasses.replace(self.text, tokens=text_tokens or self.text.tokens)
        return Towers(image, text)

    def tweaked(self, tweak: str, options: Mapping[str, Any]) -> Towers:
        """As a tweak of that name (``patch_drop``) leaves them; one that is not known changes nothing."""
        change = _TWEAKS.get(tweak)
        return change(self, options) if change else self


def of_config(config: Mapping[str, Any]) -> Towers | None:
    """The towers of an open_clip configuration; None for others than its own two transformers."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    foreign = vision.get("timm_model_name") or text.get("hf_model_name")
    if foreign or not isinstance(vision.get("layers", 12), int) or "multimodal_cfg" in config:
        return None
    side = vision.get("image_size", 224)
    embed_dim = int(config["embed_dim"])
    context = int(text.get("context_length", 77))
    return Towers(
        ImageTower(
            vision.get("layers", 12), vision.get("width", 768), vision.get("mlp_ratio", 4.0), vision.get("patch_size", 16),
            side if isinstance(side, int) else side[0], embed_dim,
        ),
        TextTower(
            text.get("layers", 12), text.get("width", 512), text.get("mlp_ratio", 4.0), context, context,
            text.get("vocab_size", 49408), embed_dim,
        ),
    )  # fmt: skip


def _blocks(layers: int, width: int, mlp_ratio: float, tokens: int) -> float:
    matrices = 2 * tokens * (4 + 2 * mlp_ratio) * width**2
    return layers * (matrices + 4 * tokens**2 * width)


def _block_parameters(layers: int, width: int, mlp_ratio: float) -> int:
    hidden = int(width * mlp_ratio)
    attention, mlp, norms = 4 * width**2 + 4 * width, 2 * width * hidden + hidden + width, 4 * width
    return layers * (attention + mlp + norms)


def _patch_drop(towers: Towers, options: Mapping[str, Any]) -> Towers:
    keep = 1 - float(options.get("fraction", 0.5))
    return dataclasses.replace(towers, image=dataclasses.replace(towers.image, keep_frac=keep))


def _resolution(towers: Towers, options: Mapping[str, Any]) -> Towers:
    return towers.at(image_px=int(options.get("image_size", 0)))


def _text_length(towers: Towers, options: Mapping[str, Any]) -> Towers:
    return towers.at(text_tokens=int(options.get("tokens", 0)))


def _freeze(towers: Towers, options: Mapping[str, Any]) -> Towers:
    tower = str(options.get("tower", "image"))
    return dataclasses.replace(
        towers, **{tower: dataclasses.replace(getattr(towers, tower), frozen=True)}
    )


_TWEAKS = {
    "patch_drop": _patch_drop,
    "resolution": _resolution,
    "text_length": _text_length,
    "freeze": _freeze,
}
