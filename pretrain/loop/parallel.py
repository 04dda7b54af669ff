"""The towers over several ranks: DDP, or FSDP2 where they are large; per-block compile and checkpointing.

FSDP2 (torch's `fully_shard`, arXiv 2304.11277) shards weights, gradients and optimizer state block by
block; terms and what ranks exchange for them stay as they are. What is saved is always whole and says
nothing of ranks, so a run goes on under either, on any number of them. Activation checkpointing is
arXiv 1604.06174, per block, and keeps what layers drew.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from pretrain.loop.world import World
from pretrain.model.encoder import DualEncoder

SHARD_FROM = 1_000_000_000  # parameters; under "auto" larger towers are sharded
# Compiled forms of one block's code at most: text lengths, sizes of their groups (eighths of the batch),
# whole or the pooled token alone, with and without gradient. A run comes to see a few dozen.
_MAX_SHAPES = 256
_LIMITS = ("recompile_limit", "cache_size_limit")  # one setting, by its new and its old name
_PLAIN = "_forward_of_its_class"


def shards(encoder: nn.Module, world: World, how: str) -> bool:
    """Whether the towers are sharded (FSDP2): ``how`` is "ddp", "fsdp" or "auto"."""
    if world.size == 1 or how == "ddp":
        return False
    return how == "fsdp" or sum(p.numel() for p in encoder.parameters()) >= SHARD_FROM


def wrap(encoder: DualEncoder, world: World, how: str = "auto", *, bf16: bool = False) -> nn.Module:
    """The towers such that backward leaves the mean gradient over ranks in every parameter.

    The encoder as it is with one rank, or where nothing in it trains. Under FSDP2 it is changed in
    place, for good: make a new one for what comes after. All ranks call it together.
    """
    if world.size == 1 or not any(p.requires_grad for p in encoder.parameters()):
        return encoder
    if shards(encoder, world, how):
        return _sharded(encoder, world, bf16)
    ids = [world.device] if world.device.type == "cuda" else None
    with warnings.catch_warnings():
        # Newer torch has another word for it, which the oldest we support does not know.
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        # No static graph: it saves the search for unused parameters, which is off.
        return nn.parallel.DistributedDataParallel(
            encoder, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )


def _sharded(encoder: DualEncoder, world: World, bf16: bool) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    options: dict[str, Any] = {"mesh": init_device_mesh(world.device.type, (world.size,))}
    if bf16:
        # Autocast casts what goes in, as without sharding; gradients are summed in full precision.
        options["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    for block in encoder.blocks():  # frozen ones too: else the root gathers all of them at once
        fully_shard(block, **options)
    fully_shard(encoder, **options)
    # Features are views of one tensor where two views share a pass; nothing writes to them.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    return encoder


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(p, DTensor) for p in model.parameters())


def prepare_blocks(encoder: DualEncoder, *, compiled: bool, checkpointing: bool) -> None:
    """Compile each transformer block and recompute it in backward, in place; called anew it replaces both.

    Blocks of one kind share compiled code. Checkpointing lies outside of it, and FSDP2's own hooks
    outside of both; names in the state dict stay.
    """
    if compiled:
        config = torch._dynamo.config
        for name in _LIMITS:
            if hasattr(config, name):
                setattr(config, name, max(getattr(config, name), _MAX_SHAPES))
    for block in encoder.blocks():
        plain = block.__dict__.get(_PLAIN, block.forward)
        made = torch.compile(plain, dynamic=False) if compiled else plain
        if checkpointing:
            made = partial(_recomputed, made)
        if compiled or checkpointing:
            block.__dict__[_PLAIN], block.forward = plain, made
        elif _PLAIN in block.__dict__:
            block.forward = block.__dict__.pop(_PLAIN)


def _recomputed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return torch.utils.checkpoint.checkpoint(
        forward, *args, use_reentrant=False, preserve_rng_state=True, **kwargs
    )


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. For a sharded one all ranks call it together, and each gets a copy."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(whole_tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, laid out as ``like`` is. Nothing is sent: every rank has the whole one."""
    if not isinstance(like, DTensor):
        return whole_tensor
    return distribute_tensor(
        whole_tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """The towers' weights by open_clip's names, whole; all ranks call it together.

    Where nothing is sharded, tensors share memory with the model (the writer copies them). Of a
    sharded model only the first rank gets them, on the CPU; for the others the dict is empty.
    """
    return dict(gathered(clip_of(model).state_dict().items(), is_sharded(model)))


def load_full_state(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Take what ``full_state`` gave on any number of ranks. Raises RuntimeError for another model's."""
    own = clip_of(model).state_dict()
    ours = {name: rows for name, rows in weights.items() if name in own}
    odd = sorted(set(own) ^ set(weights) - {"logit_scale", "logit_bias"})
    wrong = [name for name, rows in ours.items() if rows.shape != own[name].shape]
    if odd or wrong:
        raise RuntimeError(f"weights of another model: {(odd + wrong)[:5]}")
    with torch.no_grad():
        for name, rows in ours.items():
            local(own[name]).copy_(local(part_of(rows, own[name])))


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's plain state dict with whole tensors; all ranks call it together.

    Of a sharded model the first rank alone gets the state, on the CPU. Other tensors share memory
    with the optimizer.
    """
    state = optimizer.state_dict()
    if not is_sharded(model):
        return state
    # `optim.adamw` has cut each group in two, what is sharded first.
    pairs = zip(state["param_groups"][::2], state["param_groups"][1::2], strict=True)
    return {
        "state": {
            number: dict(gathered(entry.items(), True)) for number, entry in state["state"].items()
        },
        "param_groups": [{**one, "params": one["params"] + two["params"]} for one, two in pairs],
    }


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Take what ``optimizer_state`` gave, on any number of ranks. Raises ValueError for another's."""
    if not is_sharded(model):
        optimizer.load_state_dict(state)
        return
    own = optimizer.param_groups
    groups: list[dict[str, Any]] = []
    for number, group in enumerate(state["param_groups"][: len(own) // 2]):
        cut = len(own[2 * number]["params"])
        groups += [{**group, "params": p} for p in (group["params"][:cut], group["params"][cut:])]
    like = dict(enumerate(p for group in own for p in group["params"]))
    laid_out = {
        number: {name: part_of(v, like[number]) if v.ndim else v for name, v in entry.items()}
        for number, entry in state["state"].items()
        if number in like
    }
    optimizer.load_state_dict({"state": laid_out, "param_groups": groups})


def clip_of(model: nn.Module) -> nn.Module:
    """open_clip's model inside an encoder, wrapped or not."""
    encoder = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return encoder.clip if isinstance(encoder, DualEncoder) else encoder


def gathered(named: Any, sharded: bool) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors on the CPU, one after the other, so that one alone is whole on the device."""
    for name, tensor in named:
        rows = whole(tensor)
        if not sharded or dist.get_rank() == 0:
            yield name, rows.cpu() if sharded else rows
