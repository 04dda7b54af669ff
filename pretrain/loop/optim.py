"""AdamW with weight decay on matrices only, and gradient norms.

AdamW, arXiv 1711.05101. CLIP, arXiv 2103.00020, section 2.5: decay on all weights that are not
gains or biases; here positional, class and token embeddings are also left out, and so are scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pretrain.loop.settings import Phase

_EMBEDDINGS = (
    "positional_embedding",
    "pos_embed",
    "class_embedding",
    "cls_token",
    "cls_emb",
    "token_embedding",
)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter of this name."""
    return parameter.ndim >= 2 and not any(part in name for part in _EMBEDDINGS)


def adamw(phase: Phase, modules: Sequence[nn.Module]) -> torch.optim.AdamW:
    """AdamW over every trainable parameter of ``modules``, in two groups.

    Raises ValueError where nothing trains.
    """
    named = [
        pair for module in modules for pair in module.named_parameters() if pair[1].requires_grad
    ]
    if not named:
        raise ValueError(
            "no parameter to train. hint: both towers are frozen, and the objective has none"
        )
    groups = [
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": phase.weight_decay},
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=phase.lr, betas=(phase.beta1, phase.beta2), eps=phase.eps, fused=True
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def grad_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The 2-norm of all gradients together, a scalar on the device; 0 where there are none."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return nn.utils.get_total_norm(gradients) if gradients else torch.tensor(0.0)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Scale all gradients together so that their norm is at most ``max_norm``; 0 leaves them."""
    if max_norm:
        nn.utils.clip_grad_norm_(list(parameters), max_norm)
