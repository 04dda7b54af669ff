"""Tables for another grid: as open_clip resamples and makes them, corners kept, the class token untouched."""

import pytest
import torch
import torch.nn.functional as F

from pretrain.model import positions
from pretrain.model.encoder import import_open_clip


def smooth(side: int, width: int = 32) -> torch.Tensor:
    """A table as training leaves it: neighbours alike."""
    return positions.sin_cos(side, width) + 0.01 * torch.randn(
        1 + side * side, width, generator=torch.Generator().manual_seed(0)
    )


def test_it_is_what_open_clip_does_on_reading_weights():
    open_clip = import_open_clip()

    class Model:
        class visual:
            grid_size = (14, 14)

    table = torch.randn(37, 32)
    state = {"visual.positional_embedding": table}
    open_clip.model.resize_pos_embed(state, Model)
    found = positions.resampled(table, 14)
    torch.testing.assert_close(found, state["visual.positional_embedding"])
    assert torch.equal(found[0], table[0])


def test_corners_keep_their_direction_from_96_to_224_pixels():
    small = smooth(6)
    large = positions.resampled(small, 14)
    grid_small, grid_large = small[1:].view(6, 6, -1), large[1:].view(14, 14, -1)
    for row in (0, -1):
        for column in (0, -1):
            near = F.cosine_similarity(grid_small[row, column], grid_large[row, column], dim=0)
            assert near > 0.99


def test_the_same_grid_is_left_alone_and_there_and_back_is_near():
    table = smooth(6)
    assert positions.resampled(table, 6) is table
    back = positions.resampled(positions.resampled(table, 12), 6)
    assert F.cosine_similarity(back[1:], table[1:]).min() > 0.99
    with pytest.raises(ValueError, match=r"no square. hint:"):
        positions.resampled(torch.zeros(8, 4), 6)


@pytest.mark.parametrize("side", [1, 6, 14])
def test_waves_are_open_clips(side):
    import_open_clip()
    from open_clip.pos_embed import get_2d_sincos_pos_embed

    expected = torch.from_numpy(get_2d_sincos_pos_embed(32, side, cls_token=True)).float()
    torch.testing.assert_close(positions.sin_cos(side, 32), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"no multiple of 4. hint:"):
        positions.sin_cos(side, 30)
