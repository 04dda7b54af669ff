"""Our pass over a tower gives open_clip's features, for every form of tower, and short captions the same."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.model import tower
from pretrain.model.encoder import from_config, import_open_clip
from pretrain.stream.lengths import grouped

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 20, "vocab_size": 600, "width": 32, "heads": 2, "layers": 2}
NEAR = {"rtol": 1e-10, "atol": 1e-10}


def made(
    vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **rest: Any
) -> tuple[Any, Any]:
    """Our encoder in float64, and open_clip's own model with the same weights."""
    open_clip = import_open_clip()
    config = {
        "embed_dim": 16,
        "vision_cfg": VISION | (vision or {}),
        "text_cfg": TEXT | (text or {}),
        **rest,
    }
    torch.manual_seed(0)
    encoder = from_config("tower_test", config).double().train()
    theirs = open_clip.create_model(encoder.name).double().train()
    theirs.load_state_dict(encoder.clip.state_dict(), strict=False)
    return encoder, theirs


def pictures() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=generator)


def texts(length: int = 20) -> torch.Tensor:
    """Captions of 3, 6 and 9 tokens, the end token the highest, zeros behind."""
    tokens = torch.zeros(3, length, dtype=torch.int64)
    for row, words in enumerate((1, 4, 7)):
        tokens[row, : words + 2] = torch.tensor([598, *range(5, 5 + words), 599])
    return tokens


def alike(ours: Any, theirs: Any) -> None:
    """Equal gradients of every parameter that open_clip's model has one for."""
    found = dict(ours.clip.named_parameters())
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name].grad, parameter.grad, **NEAR)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        {"pool_type": "tok", "final_ln_after_pool": True},
        {"pos_embed_type": "sin_cos_2d", "pool_type": "avg"},
        {"ls_init_value": 0.1, "qk_norm": True},
        {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2},
        {"image_size": 32, "patch_size": 7},
    ],
)
def test_image_features_and_gradients_are_open_clips(options):
    encoder, theirs = made(options)
    reference = (pictures().permute(0, 3, 1, 2).double() - encoder.mean) / encoder.std
    expected = theirs.encode_image(reference)
    found = encoder.encode_image(pictures())
    torch.testing.assert_close(found, expected, **NEAR)
    torch.testing.assert_close(encoder.encode_image(reference), expected, **NEAR)
    found.square().sum().backward()
    expected.square().sum().backward()
    alike(encoder, theirs)


@pytest.mark.parametrize(
    ("options", "rest"),
    [
        ({}, {}),
        ({}, {"custom_text": True}),
        ({"pool_type": "eos", "eos_id": 599}, {"custom_text": True, "quick_gelu": True}),
        ({"pool_type": "last", "no_causal_mask": True, "proj_bias": True}, {"custom_text": True}),
        ({"no_causal_mask": True}, {}),
        ({"qk_norm": True}, {"custom_text": True}),
        ({"embed_cls": True}, {"custom_text": True}),
    ],
)
def test_text_features_and_gradients_are_open_clips(options, rest):
    encoder, theirs = made(text=options, **rest)
    expected, found = theirs.encode_text(texts()), encoder.encode_text(texts())
    torch.testing.assert_close(found, expected, **NEAR)
    found.square().sum().backward()
    expected.square().sum().backward()
    alike(encoder, theirs)
    causal = "no_causal_mask" not in options and "embed_cls" not in options
    assert encoder.text_is_causal == causal
    if causal:
        torch.testing.assert_close(encoder.encode_text(texts()[:, :9]), expected, **NEAR)
    else:
        with pytest.raises(ValueError, match=r"texts of 9 tokens for a tower of 20. hint:"):
            encoder.encode_text(texts()[:, :9])


@pytest.mark.parametrize(("kind", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_a_caption_cut_to_its_bucket_has_the_same_features_and_gradients(kind, near):
    encoder, _ = made(text={"context_length": 77})
    encoder = encoder.to(kind)
    gradients = {}
    whole = encoder.encode_text(texts(77))
    for length in (16, 32, 77):
        copied = copy.deepcopy(encoder)
        found = copied.encode_text(texts(77)[:, :length])
        torch.testing.assert_close(found, whole, rtol=near, atol=near)
        found.square().sum().backward()
        gradients[length] = [p.grad for _, p in copied.tower_parameters("text")]
    for length in (16, 32):
        for short, full in zip(gradients[length], gradients[77], strict=True):
            size = max(1.0, float(full.abs().max()))
            torch.testing.assert_close(short, full, rtol=near, atol=near * size)


def captions(rows: int, length: int) -> tuple[torch.Tensor, np.ndarray]:
    """Captions of 3 to ``length`` tokens in no order, and how many each has."""
    draw = np.random.default_rng(2)
    used = draw.integers(3, length + 1, rows)
    tokens = torch.zeros(rows, length, dtype=torch.int64)
    for row, count in enumerate(used):
        words = draw.integers(1, 590, count - 2).tolist()
        tokens[row, :count] = torch.tensor([598, *words, 599])
    return tokens, used


@pytest.mark.parametrize(
    ("options", "rest"),
    [
        ({}, {}),
        ({"pool_type": "eos", "eos_id": 599, "proj_bias": True}, {"custom_text": True}),
        ({"qk_norm": True, "ls_init_value": 0.1}, {"custom_text": True}),
    ],
)
def test_rows_split_by_length_have_the_same_features_and_gradients(options, rest):
    encoder, _ = made(text=options, **rest)
    tokens, used = captions(21, 20)
    views = {"image": pictures().repeat(7, 1, 1, 1), "text": tokens}
    towers = {"image": "image", "text": "text"}
    groups = grouped(np.searchsorted((6, 12, 20), used), (6, 12, 20))
    assert groups is not None
    assert [length for length, _ in groups.spans] == [6, 12, 20]
    ways = []
    for given in (None, {"text": groups}):
        copied = copy.deepcopy(encoder)
        found = copied(views, towers, None, given)
        weights = torch.arange(1.0, 22.0, dtype=torch.float64)[:, None]
        (found["text:pooled"].square() * weights).sum().backward()
        found["image:pooled"].sum().backward()
        ways.append((found, {n: p.grad for n, p in copied.clip.named_parameters()}))
    (plain, expected), (split, gradients) = ways
    assert torch.equal(split["image:pooled"], plain["image:pooled"])
    torch.testing.assert_close(split["text:pooled"], plain["text:pooled"], rtol=1e-12, atol=1e-12)
    for name, gradient in expected.items():
        if gradient is None or name.startswith("visual."):
            assert (gradient is None) == (gradients[name] is None)
            assert gradient is None or torch.equal(gradients[name], gradient)
            continue
        near = 1e-12 * max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-12, atol=near)


def test_two_views_of_texts_are_each_split_by_their_own_lengths():
    encoder, _ = made()
    one, used = captions(16, 20)
    other = one.flip(0)
    groups = {"one": grouped(np.searchsorted((8, 20), used), (8, 20))}
    groups["other"] = grouped(np.searchsorted((8, 20), used[::-1]), (8, 20))
    towers = {"one": "text", "other": "text", "third": "text", "fourth": "text"}
    views = {"one": one, "other": other, "third": one, "fourth": other}
    found = encoder(views, towers, None, groups)
    for name, rows in views.items():
        torch.testing.assert_close(found[f"{name}:pooled"], encoder.encode_text(rows), **NEAR)


def test_only_a_causal_tower_without_wanted_tokens_is_split():
    tokens, used = captions(16, 20)
    groups = {"text": grouped(np.searchsorted((8, 20), used), (8, 20))}
    for options in ({}, {"no_causal_mask": True}):
        encoder, _ = made(text=options)
        expected = encoder.encode_text(tokens)
        encoder.wanted = frozenset({"text:tokens"} if not options else {})
        found = encoder({"text": tokens}, {"text": "text"}, None, groups)
        torch.testing.assert_close(found["text:pooled"], expected, **NEAR)
        if not options:
            assert found["text:tokens"].shape[:2] == (16, 20)


def test_a_longer_text_than_the_table_has_a_hint():
    encoder, _ = made()
    with pytest.raises(ValueError, match=r"texts of 21 tokens for a tower of 20. hint:"):
        encoder.encode_text(texts(21))
    with pytest.raises(ValueError, match=r"pictures of 16 x 16 px for a tower of 32 x 32. hint:"):
        encoder.encode_image(pictures()[:, :16, :16])


def test_tokens_are_given_where_they_are_asked_for_and_pooled_ones_stay():
    encoder, theirs = made(text={"output_tokens": False})
    views = {"image": pictures(), "text": texts()}
    towers = {"image": "image", "text": "text"}
    before = encoder(views, towers)
    assert set(before) == {"image:pooled", "text:pooled"}
    encoder.wanted = frozenset({"image:tokens", "text:tokens"})
    after = encoder(views, towers)
    for name, rows in before.items():
        torch.testing.assert_close(after[name], rows, **NEAR)
    theirs.visual.output_tokens = True
    reference = (pictures().permute(0, 3, 1, 2).double() - encoder.mean) / encoder.std
    torch.testing.assert_close(after["image:tokens"], theirs.visual(reference)[1], **NEAR)
    assert after["text:tokens"].shape == (3, 20, 32)
    ends = after["text:tokens"][torch.arange(3), texts().argmax(1)]
    torch.testing.assert_close(ends @ encoder.clip.text_projection, after["text:pooled"], **NEAR)


def test_other_towers_run_as_they_are_and_give_no_tokens():
    encoder, theirs = made({"layers": [1, 1, 1, 1], "width": 8, "head_width": 32})
    assert not tower.image_is_known(encoder.clip.visual)
    reference = (pictures().permute(0, 3, 1, 2).double() - encoder.mean) / encoder.std
    torch.testing.assert_close(encoder.eval().encode_image(pictures()), theirs.eval().encode_image(reference), **NEAR)  # fmt: skip
    encoder.wanted = frozenset({"image:tokens"})
    with pytest.raises(ValueError, match=r"needs the image tower's tokens.* hint:"):
        encoder({"image": pictures()}, {"image": "image"})


def test_bf16_autocast_gives_bf16_features_near_the_full_ones():
    encoder, _ = made()
    encoder = encoder.float()
    full = encoder.encode_image(pictures()), encoder.encode_text(texts())
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder.encode_image(pictures()), encoder.encode_text(texts()[:, :16])
    for found, expected in zip(half, full, strict=True):
        assert found.dtype == torch.bfloat16
        assert torch.cosine_similarity(found.float(), expected).min() > 0.999
        found.float().sum().backward(retain_graph=True)
