"""One tower begins anew and the other keeps its weights, to the byte."""

import pytest
import torch

from pretrain.model.encoder import build
from pretrain.model.tweak.freeze import Freeze
from pretrain.model.tweak.fresh import Fresh
from tests.tiny import scenes


@pytest.mark.parametrize("tower", ["image", "text"])
def test_one_tower_is_new_and_the_other_stays(tmp_path, tower):
    torch.manual_seed(0)
    encoder = build(scenes.write_model(tmp_path))
    encoder.pretrained_logit_scale = 100.0
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(0.5)
    torch.manual_seed(1)
    Fresh(tower=tower).apply(encoder)
    torch.manual_seed(1)
    expected = build(encoder.name)
    for name, rows in encoder.clip.state_dict().items():
        if name.startswith("visual.") == (tower == "image"):
            assert torch.equal(rows, expected.clip.state_dict()[name]), name
        else:
            assert (rows == 0.5).all(), name
    assert encoder.pretrained_logit_scale == pytest.approx(1 / 0.07, rel=1e-4)


def test_it_stays_and_goes_with_a_locked_tower(tmp_path):
    encoder = build(scenes.write_model(tmp_path))
    Fresh(tower="text").apply(encoder)
    Freeze(tower="image").apply(encoder)
    before = encoder.clip.token_embedding.weight.detach().clone()
    encoder.thaw()
    assert torch.equal(encoder.clip.token_embedding.weight, before)


def test_an_unknown_tower_has_a_hint():
    with pytest.raises(ValueError, match=r"tower = 'audio'. hint:"):
        Fresh(tower="audio")  # type: ignore[arg-type]
