"""The forward pass of open_clip's own towers over its modules, without what contrastive training leaves unused.

The same figures as open_clip's `encode_image` and `encode_text`, up to the order of sums. What is left
out: dropped patches are never embedded; of the last block only the pooled token is finished, unless
the others are asked for; captions may be cut to their groups' lengths, which is exact for a causal
tower that pools at the end token, since no token sees those after it.

Legend: B rows, G patches a side, Q pixels a side of a patch, K patches kept, L text tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.model.attention import LeanBlock, token_at
from pretrain.stream.lengths import Groups

Outputs = tuple[Tensor, Tensor | None]  # pooled (B, embed_dim); tokens (B, K or L, D) if asked for


def image_is_known(visual: nn.Module) -> bool:
    """Whether ``image_outputs`` can run this tower: open_clip's own vision transformer."""
    from open_clip.transformer import VisionTransformer

    return type(visual) is VisionTransformer


def image_outputs(
    visual: Any, images: Tensor, mean: Tensor, std: Tensor, keep_BK: Tensor | None, tokens: bool
) -> Outputs:
    """uint8 (B, H, W, 3), or float (B, 3, H, W) already normalised, to features and, if asked for, tokens.

    ``mean`` and ``std``, of 3 numbers each, are those of uint8 pixels. ``keep_BK`` names the patches of
    each row that are kept, int64, ascending; None keeps all. Tokens are the patches' alone, after the
    last norm and before the projection.
    """
    x_BKD = _embedded(visual, images, mean, std, keep_BK)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x_BKD = block(x_BKD)
    only_class = (
        visual.pool_type == "tok"
        and visual.attn_pool is None
        and not tokens
        and isinstance(last, LeanBlock)
    )
    pooled, rest = visual._pool(last(x_BKD, at=0) if only_class else last(x_BKD))
    if visual.proj is not None:
        pooled = pooled @ visual.proj
    return pooled, rest if tokens else None


def _embedded(
    visual: Any, images: Tensor, mean: Tensor, std: Tensor, keep_BK: Tensor | None
) -> Tensor:
    """Patches with their positions behind the class token, (B, 1 + K, D)."""
    weight = visual.conv1.weight
    x = _patches(images, weight.shape[-1], visual.image_size[0], keep_BK)
    if images.dtype == torch.uint8:
        x = x.to(mean.dtype).sub_(mean.view(3)).div_(std.view(3))
    # A convolution whose stride is its kernel is a product with the patches as rows.
    x_BKD = F.linear(x.flatten(2).to(weight.dtype), weight.permute(0, 2, 3, 1).flatten(1))
    places_PD = visual.positional_embedding.to(x_BKD.dtype)
    class_D = visual.class_embedding.to(x_BKD.dtype) + places_PD[0]
    x_BKD = x_BKD + (places_PD[1:] if keep_BK is None else places_PD[1:][keep_BK])
    x_BKD = torch.cat([class_D.expand(len(x_BKD), 1, -1), x_BKD], dim=1)
    return visual.ln_pre(visual.patch_dropout(x_BKD))


def _patches(images: Tensor, side: int, size_px: int, keep_BK: Tensor | None) -> Tensor:
    """(B, K, Q, Q, 3), in the type of the pictures."""
    if images.dtype != torch.uint8:
        images = images.permute(0, 2, 3, 1)
    if images.shape[1:3] != (size_px, size_px):
        raise ValueError(
            f"pictures of {images.shape[2]} x {images.shape[1]} px for a tower of {size_px} x {size_px}. "
            "hint: crop them to the model's size"
        )
    used_px = size_px // side * side  # a convolution leaves out what is no whole patch
    images = images[:, :used_px, :used_px]
    cut = images.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)  # B G G Q Q 3
    if keep_BK is None:
        return cut.flatten(1, 2)
    rows_B1 = torch.arange(len(images), device=images.device)[:, None]
    across = cut.shape[2]
    return cut[rows_B1, keep_BK // across, keep_BK % across]


def text_part(clip: Any) -> Any:
    """The module that holds the text tower's parts: the model itself, or its ``text``; None for a foreign one."""
    from open_clip.model import CLIP
    from open_clip.transformer import TextTransformer

    if type(clip) is CLIP:
        return clip
    text: Any = getattr(clip, "text", None)
    return text if type(text) is TextTransformer and text.cls_emb is None else None


def text_is_causal(clip: Any) -> bool:
    """Whether padding that is cut off changes nothing: a causal tower that pools at the end token."""
    text = text_part(clip)
    return text is not None and text.attn_mask is not None and _pool(text) in ("argmax", "eos")


def text_can_be_short(clip: Any) -> bool:
    """Whether the tower runs on fewer tokens than its table has positions."""
    text = text_part(clip)
    return text is not None and not getattr(text, "use_pad_mask", False)


def text_outputs(
    clip: Any, tokens_BL: Tensor, tokens: bool, groups: Groups | None = None
) -> Outputs:
    """int64 (B, L), L at most the table's length, to features and, if asked for, tokens after the last norm.

    Only for a tower that ``text_part`` knows and that has no padding mask. ``groups`` are those of a
    causal tower (``text_is_causal``); where tokens are asked for there are no groups.
    """
    text = text_part(clip)
    parts = [tokens_BL] if groups is None or tokens else groups.cut(tokens_BL)
    kind = text.transformer.get_cast_dtype()
    # Looked up at once: the gradient of each look-up is as large as the table.
    flat = torch.cat([ids.flatten() for ids in parts]) if len(parts) > 1 else parts[0].flatten()
    words = text.token_embedding(flat).to(kind).split([ids.numel() for ids in parts])
    made = [_run(text, ids, x.unflatten(0, ids.shape), tokens) for ids, x in zip(parts, words)]
    x_BLD = text.ln_final(torch.cat(made) if len(made) > 1 else made[0])
    end_B = _end(text, tokens_BL)
    if end_B is None:
        pooled = x_BLD
    else:
        pooled = (token_at(x_BLD, end_B) if tokens else x_BLD)[:, 0]
    if groups is not None and not tokens:
        pooled = pooled.index_select(0, groups.places)
    if isinstance(text.text_projection, nn.Linear):
        pooled = text.text_projection(pooled)
    elif text.text_projection is not None:
        pooled = pooled @ text.text_projection
    return pooled, x_BLD if tokens else None


def _run(text: Any, ids_BL: Tensor, x_BLD: Tensor, tokens: bool) -> Tensor:
    """Embedded tokens through all blocks: (B, L, D), or (B, 1, D) where only the pooled one is needed."""
    length = ids_BL.shape[1]
    x_BLD = x_BLD + text.positional_embedding[:length].to(x_BLD.dtype)
    causal = text.attn_mask is not None
    mask = text.attn_mask[:length, :length] if causal else None
    *blocks, last = text.transformer.resblocks
    for block in blocks:
        x_BLD = _through(block, x_BLD, causal, mask)
    end_B = _end(text, ids_BL)
    if tokens or end_B is None:
        return _through(last, x_BLD, causal, mask)
    if not isinstance(last, LeanBlock):
        return token_at(_through(last, x_BLD, causal, mask), end_B)
    return last(x_BLD, causal=causal, at=end_B)


def _through(block: Any, x_BLD: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
    """Our blocks are told that they are causal, and so need no mask; others are given one."""
    if isinstance(block, LeanBlock):
        return block(x_BLD, causal=causal)
    return block(x_BLD, attn_mask=mask)


def _pool(text: Any) -> str:
    return str(text.pool_type if hasattr(text, "pool_type") else text.text_pool_type)


def _end(text: Any, tokens_BL: Tensor) -> Tensor | int | None:
    """The place of the token that is pooled, int64 (B,) or one for all; None where all of them are."""
    kind = _pool(text)
    if kind == "argmax":
        return tokens_BL.argmax(dim=-1)
    if kind == "eos":
        end = text.eos_id if hasattr(text, "eos_id") else text.text_eos_id
        return (tokens_BL == end).int().argmax(dim=-1)
    return {"first": 0, "last": tokens_BL.shape[1] - 1}.get(kind)
