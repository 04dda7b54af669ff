"""AdamW with weight decay on matrices only, and gradient norms.

AdamW, arXiv 1711.05101. CLIP, arXiv 2103.00020, section 2.5: decay on all weights that are not
gains or biases; here embeddings of tokens, positions and classes are also left out, learned queries and
scales too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pretrain.loop.parallel import local
from pretrain.loop.settings import Phase

# Last parts of names: tables of positions, and tokens that are learned as such (open_clip's and timm's).
_POSITIONS = ("positional_embedding", "pos_embed", "rel_pos", "relative_position")
_TOKENS = {
    "class_embedding", "cls_token", "cls_emb", "dist_token", "reg_token", "register_tokens", "mask_token",
    "latent", "query", "probe",
}  # fmt: skip


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter of this name, which is no table of an `nn.Embedding`."""
    last = name.rpartition(".")[2]
    position = any(part in last for part in _POSITIONS)
    return parameter.ndim >= 2 and not position and last not in _TOKENS


def decayed(module: nn.Module) -> dict[str, bool]:
    """Every parameter's name -> whether weight decay applies to it."""
    tables = {
        id(table)
        for part in module.modules()
        if isinstance(part, (nn.Embedding, nn.EmbeddingBag))
        for table in part.parameters(recurse=False)
    }
    return {n: id(p) not in tables and decays(n, p) for n, p in module.named_parameters()}


def adamw(phase: Phase, modules: Sequence[nn.Module]) -> torch.optim.AdamW:
    """AdamW over every trainable parameter of ``modules``, in two groups.

    In four where the towers are sharded: one fused step takes no mixture, so what is sharded comes
    before what is not in either; `parallel.optimizer_state` saves two. Raises ValueError where nothing
    trains.
    """
    trained: dict[bool, list[nn.Parameter]] = {True: [], False: []}  # by whether they decay
    for module in modules:
        decaying = decayed(module)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                trained[decaying[name]].append(parameter)
    if not any(trained.values()):
        raise ValueError(
            "no parameter to train. hint: both towers are frozen, and the objective has none"
        )
    groups: list[dict[str, Any]] = [
        {"params": trained[True], "weight_decay": phase.weight_decay},
        {"params": trained[False], "weight_decay": 0.0},
    ]
    if any(isinstance(p, DTensor) for p in chain(*trained.values())):
        groups = [
            {**group, "params": [p for p in group["params"] if isinstance(p, DTensor) is sharded]}
            for group in groups
            for sharded in (True, False)
        ]
    return torch.optim.AdamW(
        groups, lr=phase.lr, betas=(phase.beta1, phase.beta2), eps=phase.eps, fused=True
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def grad_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The 2-norm of all gradients together, a scalar on the device; 0 where there are none.

    Sharded gradients (FSDP2) count as whole ones; then all ranks call it together.
    """
    return _norm([p.grad for p in parameters if p.grad is not None])


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Scale all gradients together so that their norm is at most ``max_norm``; 0 leaves them.

    Does not wait for the device: where the norm is small, the factor is 1.
    """
    if not max_norm:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    factor = (max_norm / (_norm(gradients) + 1e-6)).clamp(max=1.0)
    if factor.device.type == "cpu" and float(factor) == 1:
        return  # where looking costs nothing
    by_device: dict[torch.device, list[Tensor]] = {}
    for gradient in map(local, gradients):
        by_device.setdefault(gradient.device, []).append(gradient)
    for device, alike in by_device.items():
        torch._foreach_mul_(alike, factor.to(device))


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    if not gradients:
        return torch.tensor(0.0)
    shards = [local(g) for g in gradients if isinstance(g, DTensor)]
    rest = [g for g in gradients if not isinstance(g, DTensor)]
    if not shards:
        return nn.utils.get_total_norm(rest)
    # Each rank has its own rows of what is sharded, and all of the rest.
    squared = torch.stack(torch._foreach_norm(shards)).square().sum()
    dist.all_reduce(squared)
    if rest:
        squared = squared + nn.utils.get_total_norm(rest).square()
    return squared.sqrt()
