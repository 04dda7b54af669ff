"""A lean block gives what open_clip's gives, and one token of it what the whole would have there."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.model.attention import LeanBlock, lighten, token_at
from pretrain.model.encoder import import_open_clip

B, L, W = 3, 7, 16


@pytest.fixture
def stacks() -> tuple[Any, Any]:
    """open_clip's stack of two blocks in float64, and the same made lean."""
    import_open_clip()
    from open_clip.transformer import Transformer

    torch.manual_seed(0)
    plain = Transformer(W, 2, 4, ls_init_value=0.5).double()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    lean = copy.deepcopy(plain)
    assert lighten(lean) == 2
    return plain, lean


def rows() -> torch.Tensor:
    return torch.randn(B, L, W, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def causal_mask() -> torch.Tensor:
    return torch.full((L, L), float("-inf"), dtype=torch.float64).triu_(1)


@pytest.mark.parametrize("causal", [False, True])
def test_values_and_gradients_are_open_clips(stacks, causal):
    plain, lean = stacks
    expected = plain(rows(), attn_mask=causal_mask() if causal else None)
    found = rows()
    for block in lean.resblocks:
        found = block(found, causal=causal)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    expected.square().sum().backward()
    found.square().sum().backward()
    for ours, theirs in zip(lean.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-11)


def test_open_clip_still_runs_its_stack(stacks):
    plain, lean = stacks
    mask = causal_mask()
    torch.testing.assert_close(lean(rows(), attn_mask=mask), plain(rows(), attn_mask=mask))
    assert lean.get_cast_dtype() == torch.float64


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("at", [0, 4, torch.tensor([0, 6, 3])])
def test_one_token_is_the_wholes(stacks, causal, at):
    block, again = stacks[1].resblocks[0], copy.deepcopy(stacks[1].resblocks[0])
    one = block(rows(), causal=causal, at=at)
    whole = token_at(again(rows(), causal=causal), at)
    assert one.shape == (B, 1, W)
    torch.testing.assert_close(one, whole, rtol=1e-12, atol=1e-12)
    one.square().sum().backward()
    whole.square().sum().backward()
    for ours, theirs in zip(block.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-11)


def test_names_stay_and_blocks_travel(stacks):
    plain, lean = stacks
    assert list(plain.state_dict()) == list(lean.state_dict())
    there = pickle.loads(pickle.dumps(lean.resblocks[0]))
    assert type(there) is LeanBlock
    assert torch.equal(there(rows()), lean.resblocks[0](rows()))


def test_other_blocks_are_left_alone():
    import_open_clip()
    from open_clip.transformer import Transformer

    assert lighten(Transformer(W, 2, 4, qk_norm=True)) == 0
    assert lighten(Transformer(W, 2, 4, batch_first=False)) == 0
