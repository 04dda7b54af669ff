"""GPU memory of a rank by formula, before any work. No torch.

State: weights and gradients in fp32, AdamW's two moments, an average of the weights where there is
one, and a copy of the weights in bf16. Activations: about 36 bytes a layer, token and channel in bf16 (two
layer norms 12, query key value 6, attention 2, the MLP's two sides 16), of the rows of one forward; with
checkpointing a layer keeps its input (2) and one layer at a time is whole. The tiled loss keeps features
of the global batch. Plus what CUDA itself takes, and a tenth for gaps between blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.loop.flops import ImageTower, TextTower, Towers

_PER_CHANNEL_BYTES, _INPUT_BYTES = 36, 2
_CUDA_BYTES = 2e9
_GAPS = 1.1
FSDP_PARAMETERS = 1_000_000_000  # above, `parallel = "auto"` splits the state over ranks


@dataclass(frozen=True)
class Memory:
    """In bytes. ``row_bytes`` is what one row more in a forward takes."""

    state: float
    loss: float
    row_bytes: float
    one_layer: float  # of a layer that is computed again, per row
    rows: int

    @property
    def activations(self) -> float:
        return self.rows * (self.row_bytes + self.one_layer) * _GAPS

    @property
    def total(self) -> float:
        return _CUDA_BYTES + self.state + self.loss + self.activations

    def most_rows(self, memory_bytes: float) -> int:
        """How many rows of one forward fit into a device."""
        left = memory_bytes - _CUDA_BYTES - self.state - self.loss
        return max(int(left / ((self.row_bytes + self.one_layer) * _GAPS)), 0)


def of(
    towers: Towers,
    *,
    rows: int,
    local_batch: int,
    global_batch: int,
    images: int = 1,
    texts: int = 1,
    bf16: bool = True,
    checkpointed: bool = False,
    ema: bool = False,
    shards: int = 1,
) -> Memory:
    """``rows`` of ``local_batch`` go through the towers at once; ``shards`` ranks split the state (FSDP2)."""
    kept = 4 + 4 * ema + 2 * bf16
    state = (kept * towers.parameters + 12 * towers.trained_parameters) / shards
    width = 1 if bf16 else 2
    views: list[tuple[int, ImageTower | TextTower]] = [(images, towers.image), (texts, towers.text)]
    trained = [(count, tower) for count, tower in views if not tower.frozen]
    per_token = _INPUT_BYTES if checkpointed else _PER_CHANNEL_BYTES
    row_bytes = sum(c * t.layers * t.tokens * t.width * per_token * width for c, t in trained)
    one_layer = max(
        (c * t.tokens * t.width * _PER_CHANNEL_BYTES * width for c, t in trained), default=0
    )
    pixels = images * 3 * towers.image.image_px**2
    features = 6 * 4 * global_batch * towers.image.embed_dim * (images + texts) / 2
    return Memory(
        state,
        features + 2 * local_batch * pixels,  # two batches of 8-bit pixels beside the features
        row_bytes + 6 * pixels,  # normalised, in fp32 and bf16
        one_layer if checkpointed else 0,
        rows,
    )
