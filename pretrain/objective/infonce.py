"""CLIP's symmetric softmax contrastive loss with a learned scale.

CLIP, arXiv 2103.00020, figure 3: L = 1/2 [mean_i CE(z_i., i) + mean_j CE(z_.j, j)], z = s X T'.
Computed by rows: each rank takes its own pictures against all texts and its own texts against all
pictures, and DDP's average is then the loss over the global batch. The scale is clamped to
[1, ``max_logit_scale``] after every step, as in the paper.

Legend: B local rows, N all ranks' rows, D embedding.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from pretrain.objective.base import Comm, Dims, Features, Metrics, Term, full_precision, no_autocast


class InfoNCE(Term):
    """Options: ``init_temperature`` 0 starts from the scale of the weights the model was given."""

    kind: ClassVar[Literal["batch", "sample"]] = "batch"
    needs: ClassVar[frozenset[str]] = frozenset({"image:pooled", "text:pooled"})

    def __init__(self, *, init_temperature: float = 0.07, max_logit_scale: float = 100.0) -> None:
        super().__init__()
        if init_temperature < 0 or max_logit_scale < 1:
            raise ValueError(
                f"infonce: init_temperature = {init_temperature}, max_logit_scale = {max_logit_scale}. "
                "hint: a temperature is positive (0 takes the pretrained one), the largest scale at least 1"
            )
        self.init_temperature = init_temperature
        self.max_logit_scale = max_logit_scale
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    def setup(self, dims: Dims) -> None:
        scale = 1 / self.init_temperature if self.init_temperature else dims.logit_scale
        nn.init.constant_(self.log_scale, math.log(scale))

    def forward(self, features: Features, comm: Comm, step: int) -> tuple[Tensor, Metrics]:
        images, texts = features["image:pooled"], features["text:pooled"]
        with no_autocast(images):
            image_BD = normalize(full_precision(images), dim=-1)
            text_BD = normalize(full_precision(texts), dim=-1)
            image_logits_BN = self.log_scale.exp() * image_BD @ comm.gather(text_BD).T
            text_logits_BN = self.log_scale.exp() * text_BD @ comm.gather(image_BD).T
            labels_B = comm.row_offset(len(image_BD)) + torch.arange(
                len(image_BD), device=image_BD.device
            )
            loss = (
                cross_entropy(image_logits_BN, labels_B) + cross_entropy(text_logits_BN, labels_B)
            ) / 2
        right_B = image_logits_BN.detach().argmax(dim=1) == labels_B
        return loss, {"batch_accuracy": right_B.float().mean()}

    def after_step(self) -> None:
        with torch.no_grad():
            self.log_scale.clamp_(0, math.log(self.max_logit_scale))

    def logit_scale(self) -> Tensor:
        return self.log_scale.detach().exp()
