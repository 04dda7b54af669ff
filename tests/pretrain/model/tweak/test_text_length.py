"""Shorter captions for a phase: cut at the tokenizer, exact in the tower, all positions back afterwards."""

import pytest
import torch

from pretrain.model.encoder import DualEncoder, build, from_config, load
from pretrain.model.tweak.text_length import TextLength
from tests.tiny import scenes

LONG = "a red circle left of a blue square and a green bar above it"


@pytest.fixture
def encoder(tmp_path) -> DualEncoder:
    torch.manual_seed(0)
    return build(scenes.write_model(tmp_path))


def test_captions_are_cut_and_end_with_the_end_token(encoder):
    full = encoder.tokenize([LONG, "a bar"])
    TextLength(tokens=8).apply(encoder)
    short = encoder.tokenize([LONG, "a bar"])
    assert encoder.context_length == 8
    assert short.shape == (2, 8)
    assert torch.equal(short[0, :7], full[0, :7])
    assert short[0, 7] == full[0].max()
    assert torch.equal(short[1], full[1, :8])
    assert encoder.encode_text(short).shape == (2, 64)
    with pytest.raises(ValueError, match=r"texts of 24 tokens for a tower of 8. hint:"):
        encoder.encode_text(full)


def test_positions_beyond_are_kept_and_come_back(encoder):
    table = encoder.clip.positional_embedding
    TextLength(tokens=8).apply(encoder)
    encoder.encode_text(encoder.tokenize([LONG])).sum().backward()
    assert table.grad[:8].abs().sum() > 0
    assert table.grad[8:].abs().sum() == 0
    encoder.thaw()
    assert encoder.context_length == 24
    assert encoder.clip.positional_embedding is table


def test_a_checkpoint_notes_the_length(encoder, tmp_path):
    TextLength(tokens=8).apply(encoder)
    path = str(tmp_path / "c.pt")
    torch.save({"model": encoder.described(), "state_dict": encoder.weights(1.0)}, path)
    read = load(path)
    assert read.context_length == 8
    assert torch.equal(read.tokenize([LONG]), encoder.tokenize([LONG]))


def test_a_tower_that_sees_all_tokens_takes_the_length_too():
    text = {**scenes.TINY_MODEL["text_cfg"], "no_causal_mask": True, "pool_type": "last"}  # type: ignore[dict-item]
    encoder = from_config("text_length_all", {**scenes.TINY_MODEL, "text_cfg": text})
    TextLength(tokens=8).apply(encoder)
    assert encoder.encode_text(encoder.tokenize([LONG])).shape == (1, 64)
    assert not encoder.text_is_causal


def test_what_cannot_be_has_a_hint(encoder):
    with pytest.raises(ValueError, match=r"tokens = 2. hint:"):
        TextLength(tokens=2)
    with pytest.raises(ValueError, match=r"tokens = 25, and .* has 24. hint: at most 24"):
        TextLength(tokens=25).apply(encoder)
