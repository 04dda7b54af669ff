"""LeanBlock: open_clip's transformer block over the same parameters, with less work around the kernel.

open_clip's block goes through `nn.MultiheadAttention`, which copies its input once and queries, keys
and values once more, and is given a causal mask as a tensor, which keeps the fast kernels away. Here one
product makes all three, the kernel takes them where they lie, and is told that the mask is causal.
Where only one token of the result is wanted (the pooled one, in a tower's last block), keys and values
are made of every token and all the rest of that one. Names and values of parameters are unchanged.

Legend: B rows, L tokens, W width, H heads, K width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LeanBlock(nn.Module):
    """What a `ResidualAttentionBlock` of open_clip becomes; see ``lighten``. It is not made directly."""

    ln_1: nn.Module
    ln_2: nn.Module
    ls_1: nn.Module
    ls_2: nn.Module
    attn: nn.MultiheadAttention
    mlp: Any

    def forward(
        self,
        x_BLW: Tensor,
        k_x: None = None,
        v_x: None = None,
        attn_mask: Tensor | None = None,
        causal: bool = False,
        at: Tensor | int | None = None,
    ) -> Tensor:
        """(B, L, W) -> (B, L, W); with ``at``, the one token there of each row alone: (B, 1, W).

        ``at`` is a place for all rows, or int64 (B,). With ``causal`` a token sees itself and those
        before it. The other parameters stand where open_clip's own callers expect them; ``attn_mask``,
        (L, L) or (B H, L, L), is added to the logits.
        """
        inner_BLW = self.ln_1(x_BLW)
        if at is None:
            x_BLW = x_BLW + self.ls_1(self._attend(inner_BLW, attn_mask, causal))
        else:
            x_BLW = token_at(x_BLW, at) + self.ls_1(self._attend_one(inner_BLW, causal, at))
        return x_BLW + self.ls_2(self.mlp(self.ln_2(x_BLW)))

    def _attend(self, x_BLW: Tensor, attn_mask: Tensor | None, causal: bool) -> Tensor:
        attn = self.attn
        joined = F.linear(x_BLW, attn.in_proj_weight, attn.in_proj_bias)
        query_BHLK, key_BHLK, value_BHLK = (
            part.transpose(1, 2) for part in joined.unflatten(-1, (3, attn.num_heads, -1)).unbind(2)
        )
        mask = attn_mask if attn_mask is None else attn_mask.to(joined.dtype)
        if mask is not None and mask.ndim == 3:  # (B H, L, L)
            mask = mask.unflatten(0, (len(x_BLW), -1))
        seen_BHLK = F.scaled_dot_product_attention(
            query_BHLK, key_BHLK, value_BHLK, attn_mask=mask, is_causal=causal and mask is None
        )
        return attn.out_proj(seen_BHLK.transpose(1, 2).flatten(2))

    def _attend_one(self, x_BLW: Tensor, causal: bool, at: Tensor | int) -> Tensor:
        attn = self.attn
        width = x_BLW.shape[-1]
        weight, bias = attn.in_proj_weight, attn.in_proj_bias
        query = F.linear(token_at(x_BLW, at), weight[:width], bias[:width])
        joined = F.linear(x_BLW, weight[width:], bias[width:])
        key_BHLK, value_BHLK = (
            part.transpose(1, 2) for part in joined.unflatten(-1, (2, attn.num_heads, -1)).unbind(2)
        )
        mask = None
        if causal:
            places_L = torch.arange(x_BLW.shape[1], device=x_BLW.device)
            last = at.view(-1, 1) if isinstance(at, Tensor) else at
            mask = (places_L <= last).view(-1, 1, 1, len(places_L))
        seen_BH1K = F.scaled_dot_product_attention(
            query.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2),
            key_BHLK,
            value_BHLK,
            attn_mask=mask,
        )
        return attn.out_proj(seen_BH1K.transpose(1, 2).flatten(2))

    def get_weight_dtype(self) -> torch.dtype:
        """open_clip's transformer asks its first block for the type it computes in."""
        return self.mlp.c_fc.weight.dtype


def token_at(x_BLW: Tensor, at: Tensor | int) -> Tensor:
    """One token of each row, (B, 1, W). ``at`` is a place for all rows, or int64 (B,)."""
    if isinstance(at, int):
        return x_BLW[:, at : at + 1]
    return x_BLW.gather(1, at.view(-1, 1, 1).expand(-1, 1, x_BLW.shape[-1]))


def lighten(model: nn.Module) -> int:
    """Turn every plain block of an open_clip model into a LeanBlock, in place. Returns how many."""
    from open_clip.transformer import ResidualAttentionBlock, Transformer

    changed = 0
    stacks: list[Any] = [m for m in model.modules() if type(m) is Transformer and m.batch_first]
    for block in (block for stack in stacks for block in stack.resblocks):
        if type(block) is ResidualAttentionBlock and _is_plain(block):
            block.__class__ = LeanBlock  # parameters, their names and their order stay
            changed += 1
    return changed


def _is_plain(block: Any) -> bool:
    attn = block.attn
    return (
        not hasattr(block, "ln_1_kv")
        and attn.in_proj_weight is not None
        and attn.in_proj_bias is not None
        and attn.bias_k is None
        and not attn.dropout
    )
