import pytest
import torch

from pretrain.loop.optim import adamw
from pretrain.loop.settings import Phase
from pretrain.model.encoder import build
from pretrain.model.tweak.freeze import Freeze
from pretrain.objective.base import Comm, Dims, Features
from pretrain.objective.infonce import InfoNCE
from tests.tiny import scenes


@pytest.mark.parametrize("tower", ["image", "text"])
def test_the_frozen_towers_bytes_stay_and_the_other_trains(tmp_path, tower):
    torch.manual_seed(0)
    encoder = build(scenes.write_model(tmp_path))
    Freeze(tower=tower).apply(encoder)
    encoder.train()
    term = InfoNCE()
    term.setup(Dims(encoder.embed_dim, 1.0))
    optimizer = adamw(Phase(samples=1, global_batch=1, lr=1e-3), [encoder, term])
    before = {name: rows.clone() for name, rows in encoder.clip.state_dict().items()}
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    tokens = encoder.tokenize(["a", "b c", "d", "e f g"])
    for _ in range(10):
        features = Features(
            encoder({"image": images, "text": tokens}, {"image": "image", "text": "text"})
        )
        loss, _ = term(features, Comm(), 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = encoder.clip.state_dict()
    frozen = {name for name, _ in encoder.tower_parameters(tower)}
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    other = [name for name, _ in encoder.tower_parameters("text" if tower == "image" else "image")]
    assert any(not torch.equal(before[name], after[name]) for name in other)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for _, p in encoder.tower_parameters(tower)}
    assert not any(module.training for module in encoder.tower_modules(tower))


def test_the_next_phase_thaws(tmp_path):
    encoder = build(scenes.write_model(tmp_path))
    Freeze(tower="image").apply(encoder)
    encoder.thaw()
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert all(module.training for module in encoder.modules())
    assert encoder.encode_image(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).requires_grad


def test_an_unknown_tower_has_a_hint():
    with pytest.raises(ValueError, match=r"tower = 'audio'. hint:"):
        Freeze(tower="audio")  # type: ignore[arg-type]
