import pytest
import torch
from torch import nn

from pretrain.loop.optim import adamw, clip_gradients, decayed, decays, grad_norm, set_lr
from pretrain.loop.settings import Phase
from pretrain.model.encoder import build, import_open_clip
from pretrain.objective.infonce import InfoNCE
from tests.tiny import scenes

PHASE = Phase(samples=1, global_batch=1, lr=0.1, weight_decay=0.5)


def test_only_matrices_decay(tmp_path):
    encoder, term = build(scenes.write_model(tmp_path)), InfoNCE()
    optimizer = adamw(PHASE, [encoder, term])
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    names = {id(parameter): name for name, parameter in encoder.clip.named_parameters()}
    names[id(term.log_scale)] = "log_scale"
    of_plain = {names[id(parameter)] for parameter in plain["params"]}
    assert {
        "log_scale",
        "positional_embedding",
        "visual.positional_embedding",
        "visual.class_embedding",
    } <= of_plain
    assert {"token_embedding.weight", "ln_final.weight", "visual.ln_pre.bias"} <= of_plain
    of_decayed = {names[id(parameter)] for parameter in decayed["params"]}
    assert {"text_projection", "visual.proj", "visual.conv1.weight"} <= of_decayed
    assert len(of_plain) + len(of_decayed) == len(names)


PLAIN_MATRICES = {
    "ViT-B-32": {"positional_embedding", "visual.positional_embedding", "token_embedding.weight"},
    "RN50": {"positional_embedding", "visual.attnpool.positional_embedding", "token_embedding.weight"},
    "coca_ViT-B-32": {
        "text.positional_embedding", "visual.positional_embedding", "text.token_embedding.weight",
        "visual.attn_pool.query",
    },
    "ViT-B-16-SigLIP": {
        "text.positional_embedding", "visual.trunk.pos_embed", "text.token_embedding.weight",
        "visual.trunk.attn_pool.latent",
    },
    "convnext_base": {"positional_embedding", "token_embedding.weight"},
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN_MATRICES)
def test_which_matrices_of_real_models_do_not_decay(name):
    with torch.device("meta"):
        model = import_open_clip().create_model(name, device="meta")
    found = decayed(model)
    shapes = {n: p.ndim for n, p in model.named_parameters()}
    assert {n for n in found if shapes[n] > 1 and not found[n]} == PLAIN_MATRICES[name]
    assert not any(found[n] for n in found if shapes[n] < 2)


def test_tokens_and_tables_by_any_name_do_not_decay():
    rows = nn.Parameter(torch.zeros(2, 2))
    for name in ("trunk.reg_token", "trunk.cls_token", "mask_token", "b.rel_pos_h", "trunk.pos_embed"):  # fmt: skip
        assert not decays(name, rows), name
    for name in ("attn.query.weight", "latent.weight", "visual.proj"):
        assert decays(name, rows), name
    assert decayed(nn.Embedding(2, 2)) == {"weight": False}


def test_one_step_is_the_papers_formula():
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(layer.weight, 2.0)
    phase = Phase(
        samples=1, global_batch=1, lr=0.1, weight_decay=0.5, beta1=0.9, beta2=0.98, eps=1e-6
    )
    optimizer = adamw(phase, [layer])
    set_lr(optimizer, 0.2)
    layer.weight.grad = torch.full_like(layer.weight, 3.0)
    optimizer.step()
    # The first step's moments, bias-corrected, are the gradient and its square.
    assert layer.weight.item() == pytest.approx(
        2.0 * (1 - 0.2 * 0.5) - 0.2 * 3 / (3 + 1e-6), rel=1e-9
    )


def test_norm_of_all_gradients_and_clipping():
    a, b, c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert float(grad_norm([a, b, c])) == pytest.approx(5)
    clip_gradients([a, b, c], 0.0)
    assert float(grad_norm([a, b])) == pytest.approx(5)
    clip_gradients([a, b, c], 1.0)
    assert float(grad_norm([a, b])) == pytest.approx(1, rel=1e-4)
    assert float(grad_norm([c])) == 0
    a.grad = torch.tensor([float("nan"), 0.0])
    clip_gradients([a, b, c], 1.0)
    assert b.grad.isnan().any()  # never hidden: the loop stops on it


def test_nothing_to_train_is_refused():
    layer = nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(ValueError, match=r"no parameter to train. hint:"):
        adamw(PHASE, [layer])
