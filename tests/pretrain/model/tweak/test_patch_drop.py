"""Dropped patches are as if no token could see them; masks hang on the sample alone."""

from typing import Any

import pytest
import torch

from pretrain.model.draws import row_keys
from pretrain.model.encoder import DualEncoder, build, from_config
from pretrain.model.tweak.freeze import Freeze
from pretrain.model.tweak.patch_drop import PatchDrop
from tests.tiny import scenes

TOWERS: dict[str, Any] = {"image": "image", "second": "image"}
POSITIONS = torch.arange(100, 108)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    torch.manual_seed(0)
    return build(scenes.write_model(tmp_path_factory.mktemp("model"))).double()


@pytest.fixture
def encoder(tiny: DualEncoder) -> DualEncoder:
    tiny.thaw()
    tiny.draw_key = 11
    return tiny


def pictures() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=generator)


def pooled(encoder: DualEncoder, rows: slice = slice(0, 8)) -> torch.Tensor:
    return encoder({"image": pictures()[rows]}, TOWERS, POSITIONS[rows])["image:pooled"]


def test_it_equals_a_full_pass_in_which_dropped_patches_are_not_seen(encoder):
    tweak = PatchDrop(fraction=0.5)
    tweak.apply(encoder)
    found = pooled(encoder)
    kept = tweak.kept(row_keys(POSITIONS, 11, "patches.image"), 16)
    assert kept.shape == (8, 8)
    visual: Any = encoder.clip.visual
    reference = (pictures().permute(0, 3, 1, 2).double() - encoder.mean) / encoder.std
    expected = []
    for row, ids in zip(reference, kept, strict=True):
        hidden = torch.ones(17, dtype=torch.bool)
        hidden[0] = False
        hidden[ids + 1] = False
        mask = torch.zeros(17, 17, dtype=torch.float64).masked_fill(hidden, float("-inf"))
        tokens = visual.transformer(visual._embeds(row[None]), attn_mask=mask)
        expected.append(visual._pool(tokens)[0] @ visual.proj)
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-9, atol=1e-9)


def test_none_dropped_is_no_tweak_and_evaluation_sees_whole_pictures(encoder):
    whole = pooled(encoder)
    PatchDrop(fraction=0.0).apply(encoder)
    assert torch.equal(pooled(encoder), whole)
    PatchDrop(fraction=0.5).apply(encoder)
    assert not torch.allclose(pooled(encoder), whole)
    encoder.eval()
    assert torch.equal(pooled(encoder), whole)
    encoder.train()
    encoder.thaw()
    assert torch.equal(pooled(encoder), whole)


def test_any_split_of_the_batch_keeps_the_same_patches(encoder):
    PatchDrop(fraction=0.75).apply(encoder)
    whole = pooled(encoder)
    for size in (1, 3, 4):
        parts = [pooled(encoder, slice(n, n + size)) for n in range(0, 8, size)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-10, atol=1e-10)
    other = encoder.draw_key
    encoder.draw_key = 12
    assert not torch.allclose(pooled(encoder), whole)
    encoder.draw_key = other
    torch.testing.assert_close(pooled(encoder), whole)


def test_two_views_of_a_sample_keep_different_patches(encoder):
    PatchDrop(fraction=0.5).apply(encoder)
    features = encoder({"image": pictures(), "second": pictures()}, TOWERS, POSITIONS)
    torch.testing.assert_close(features["image:pooled"], pooled(encoder))
    assert not torch.allclose(features["image:pooled"], features["second:pooled"])


@pytest.mark.parametrize(
    ("fraction", "patches", "keep"),
    [(0.5, 49, 24), (0.5, 196, 98), (0.3, 70, 49), (0.75, 196, 49), (0.99, 9, 1), (0.1, 10, 9)],
)
def test_the_number_kept_is_rounded_down(fraction, patches, keep):
    ids = PatchDrop(fraction=fraction).kept(row_keys(torch.arange(64), 0, "x"), patches)
    assert ids.shape == (64, keep)
    assert (ids.diff(dim=1) > 0).all()
    assert ids.min() >= 0
    assert ids.max() < patches
    assert keep == 1 or len({tuple(row) for row in ids.tolist()}) > (1 if keep == 9 else 60)


def test_every_patch_is_kept_equally_often():
    ids = PatchDrop(fraction=0.5).kept(row_keys(torch.arange(20_000), 5, "x"), 20)
    shares = torch.bincount(ids.flatten(), minlength=20) / 20_000
    assert (shares - 0.5).abs().max() < 4 * (0.25 / 20_000) ** 0.5


def test_tokens_are_those_of_the_kept_patches(encoder):
    PatchDrop(fraction=0.5).apply(encoder)
    encoder.wanted = frozenset({"image:tokens"})
    try:
        found = encoder({"image": pictures()}, TOWERS, POSITIONS)
    finally:
        encoder.wanted = frozenset()
    assert found["image:tokens"].shape == (8, 8, 64)
    torch.testing.assert_close(found["image:pooled"], pooled(encoder))


def test_what_cannot_be_has_a_hint(encoder):
    with pytest.raises(ValueError, match=r"fraction = 1.0. hint:"):
        PatchDrop(fraction=1.0)
    PatchDrop().apply(encoder)
    with pytest.raises(ValueError, match=r"there are none. hint:"):
        encoder({"image": pictures()}, TOWERS)
    with pytest.raises(ValueError, match=r"patches are dropped in this phase. hint:"):
        Freeze(tower="image").apply(encoder)
    encoder.thaw()
    Freeze(tower="image").apply(encoder)
    with pytest.raises(ValueError, match=r"image tower is frozen in this phase. hint:"):
        PatchDrop().apply(encoder)
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}
    resnet = from_config("drop_resnet", {**scenes.TINY_MODEL, "vision_cfg": vision})
    with pytest.raises(ValueError, match=r"no vision transformer of open_clip's own. hint:"):
        PatchDrop().apply(resnet)
