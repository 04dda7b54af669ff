"""SigLIP's pairwise sigmoid loss, with a learned scale and bias; texts go round a ring of ranks.

SigLIP, arXiv 2303.15343, equation in section 3: L = 1/N sum_ij softplus(-y_ij (s x_i . t_j + b)),
y = 1 for pairs and -1 elsewhere. Computed by tiles (`tiles.py`). As in the authors' code, the scale is
not clamped.

Legend: B local rows, N all ranks' rows, D embedding.
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
from pretrain.objective.tiles import sigmoid_pairs


class Sigmoid(Term):
    """Options: ``init_scale`` 0 starts from the scale of the weights the model was given.

    ``exchange`` is how ranks see each other's texts: by "ring", with memory for a few ranks' texts, or by
    "gather", in fewer messages; the results are equal to rounding. ``image`` and ``text`` name the two
    views ("stored:<name>" a sidecar's features). ``tile`` is the number of pictures whose logits are held
    at once; 0 chooses by the room they take.
    """

    kind: ClassVar[Literal["batch", "sample"]] = "batch"

    def __init__(
        self,
        *,
        init_scale: float = 10.0,
        init_bias: float = -10.0,
        exchange: Literal["ring", "gather"] = "ring",
        tile: int = 0,
        image: str = "image",
        text: str = "text",
    ) -> None:
        super().__init__()
        if init_scale < 0 or tile < 0:
            raise ValueError(
                f"sigmoid: init_scale = {init_scale}, tile = {tile}. "
                "hint: a scale is positive (0 takes the pretrained one); a tile is a number of rows, or 0"
            )
        if exchange not in ("ring", "gather"):
            raise ValueError(f'sigmoid: exchange = {exchange!r}. hint: "ring" or "gather"')
        self.init_scale, self.init_bias = init_scale, init_bias
        self.exchange = exchange
        self.tile = tile
        self.image, self.text = image, text
        self.needs = frozenset({feature_name(image), feature_name(text)})
        self.embed_dim = 0
        self.log_scale = nn.Parameter(torch.tensor(0.0))
        self.bias = nn.Parameter(torch.tensor(float(init_bias)))

    def setup(self, dims: Dims) -> None:
        self.embed_dim = dims.embed_dim
        nn.init.constant_(self.log_scale, math.log(self.init_scale or dims.logit_scale))
        nn.init.constant_(self.bias, self.init_bias)

    def forward(self, features: Features, comm: Comm, step: int) -> tuple[Tensor, Metrics]:
        images = features[feature_name(self.image)]
        with no_autocast(images):
            loss, right_B = sigmoid_pairs(
                unit_rows(images),
                unit_rows(features[feature_name(self.text)]),
                self.log_scale.exp(),
                self.bias,
                comm,
                self.tile,
                ring=self.exchange == "ring",
            )
        return loss, {"batch_accuracy": right_B.float().mean(), "logit_bias": self.bias.detach()}

    def logit_scale(self) -> Tensor:
        return self.log_scale.detach().exp()

    def loss_at_start(self, batch: int) -> float | None:
        """softplus(-b) of a pair and N - 1 times e^(b + s^2 / 2D) of strangers, for random features."""
        if not self.embed_dim or not self.init_scale:
            return None
        strangers = math.exp(self.init_bias + self.init_scale**2 / (2 * self.embed_dim))
        return math.log1p(math.exp(-self.init_bias)) + (batch - 1) * math.log1p(strangers)

    def loss_of_guessing(self, batch: int) -> float:
        """Every pair at the chance 1/N: ln N + (N - 1) ln (N / (N - 1)); a lone pair is surely one."""
        if batch < 2:
            return 0.0
        return math.log(batch) - (batch - 1) * math.log1p(-1 / batch)
