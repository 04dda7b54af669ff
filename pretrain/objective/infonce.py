"""CLIP's symmetric softmax contrastive loss with a learned scale.

CLIP, arXiv 2103.00020, figure 3: L = 1/2 [mean_i CE(z_i., i) + mean_j CE(z_.j, j)], z = s X T'.
Computed by tiles (`tiles.py`): each rank takes its own pictures against all texts, and the ranks join
the texts' log-sum-exps; DDP's average is then the loss over the global batch. The scale is clamped to
[1, ``max_logit_scale``] after every step, as in the paper.

Legend: B local rows, D embedding.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pretrain.objective.base import (
    Comm,
    Dims,
    Features,
    Metrics,
    Term,
    feature_name,
    no_autocast,
    unit_rows,
)
from pretrain.objective.tiles import softmax_pairs


class InfoNCE(Term):
    """Options: ``init_temperature`` 0 starts from the scale of the weights the model was given.

    ``image`` and ``text`` name the two views ("stored:<name>" a sidecar's features). ``tile`` is the number
    of pictures whose logits against all texts are held at once; 0 chooses by the room they take.
    """

    kind: ClassVar[Literal["batch", "sample"]] = "batch"

    def __init__(
        self,
        *,
        init_temperature: float = 0.07,
        max_logit_scale: float = 100.0,
        tile: int = 0,
        image: str = "image",
        text: str = "text",
    ) -> None:
        super().__init__()
        if init_temperature < 0 or max_logit_scale < 1:
            raise ValueError(
                f"infonce: init_temperature = {init_temperature}, max_logit_scale = {max_logit_scale}. "
                "hint: a temperature is positive (0 takes the pretrained one), the largest scale at least 1"
            )
        if tile < 0:
            raise ValueError(f"infonce: tile = {tile}. hint: a number of rows, or 0 to choose")
        self.init_temperature = init_temperature
        self.max_logit_scale = max_logit_scale
        self.tile = tile
        self.image, self.text = image, text
        self.needs = frozenset({feature_name(image), feature_name(text)})
        self.embed_dim = 0
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    def setup(self, dims: Dims) -> None:
        self.embed_dim = dims.embed_dim
        scale = 1 / self.init_temperature if self.init_temperature else dims.logit_scale
        nn.init.constant_(self.log_scale, math.log(scale))

    def forward(self, features: Features, comm: Comm, step: int) -> tuple[Tensor, Metrics]:
        images = features[feature_name(self.image)]
        with no_autocast(images):
            image_BD = unit_rows(images)
            text_BD = unit_rows(features[feature_name(self.text)])
            loss, right_B = softmax_pairs(image_BD, text_BD, self.log_scale.exp(), comm, self.tile)
        return loss, {"batch_accuracy": right_B.float().mean()}

    def after_step(self) -> None:
        with torch.no_grad():
            self.log_scale.clamp_(0, math.log(self.max_logit_scale))

    def logit_scale(self) -> Tensor:
        return self.log_scale.detach().exp()

    def loss_at_start(self, batch: int) -> float | None:
        """ln N, and s^2 / 2D of random features."""
        if not self.embed_dim or not self.init_temperature:
            return None
        return math.log(batch) + 1 / (2 * self.embed_dim * self.init_temperature**2)

    def loss_of_guessing(self, batch: int) -> float:
        return math.log(batch)
