"""What terms need of views and towers: what returns from the phase before, and what stands still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.loop import serve
from pretrain.loop.settings import Phase
from pretrain.model.encoder import DualEncoder, Tower
from pretrain.model.tweak.freeze import Freeze
from pretrain.objective.base import Dims
from pretrain.objective.infonce import InfoNCE
from pretrain.objective.sigmoid import Sigmoid
from pretrain.stream.view.caption_mix import CaptionMix
from pretrain.stream.view.crop import Crop
from tests.pretrain.loop.test_gradients import Agree, encoder_of

DIMS = Dims(16, 14.0)
TOWERS_OF: dict[str, Tower] = {"image": "image", "text": "text"}


def entered(*terms: Any, before: Any = ()) -> list[Any]:
    phase = Phase(samples=8, global_batch=8, objective=tuple((1.0, term) for term in terms))
    return serve.terms_of(phase, DIMS, before)[1]


def scales(terms: list[Any]) -> list[float]:
    return [round(term.log_scale.item(), 3) for term in terms]


def test_a_term_goes_on_by_its_features_and_else_by_its_type() -> None:
    first = entered(InfoNCE(), InfoNCE(text="short"))
    with torch.no_grad():
        first[0].log_scale.fill_(1.0)
        first[1].log_scale.fill_(4.0)
    assert scales(entered(InfoNCE(text="short"), before=first)) == [4.0]
    assert scales(entered(InfoNCE(text="short"), InfoNCE(), before=first)) == [4.0, 1.0]
    # One over features that are new takes what no other has a better claim to.
    assert scales(entered(InfoNCE(text="new"), InfoNCE(), before=first)) == [4.0, 1.0]
    assert scales(entered(Sigmoid(), before=first)) == [2.303]


def test_a_term_of_another_shape_begins_anew() -> None:
    wide = serve.terms_of(
        Phase(samples=8, global_batch=8, objective=((1.0, Agree()),)), Dims(32, 1.0)
    )[1]
    (term,) = entered(Agree(), before=wide)
    assert term.head.weight.shape == (3, 16)


def idle(folder: Path, *needs: str, freeze: bool = False) -> tuple[DualEncoder, list[str]]:
    encoder = encoder_of(folder)
    if freeze:
        Freeze(tower="image").apply(encoder)
    names = serve.still_idle(encoder, TOWERS_OF, frozenset(needs))
    assert encoder.wanted == frozenset()
    assert encoder.clip.visual.training != freeze
    for name, parameter in encoder.clip.named_parameters():
        still = name in names or (freeze and name.startswith("visual."))
        assert parameter.requires_grad != still, name
    return encoder, names


def test_what_no_feature_depends_on_stands_still_until_the_next_phase(tmp_path: Path) -> None:
    assert idle(tmp_path, "image:pooled", "text:pooled")[1] == []
    assert idle(tmp_path, "image:tokens", "text:pooled")[1] == ["visual.proj"]
    assert idle(tmp_path, "text:pooled", freeze=True)[1] == []
    encoder, names = idle(tmp_path, "image:pooled", "stored:dino")
    texts = [name for name, _ in encoder.tower_parameters("text")]
    assert sorted(names) == sorted(texts)
    encoder.thaw()
    assert all(parameter.requires_grad for parameter in encoder.clip.parameters())


def test_views_that_nothing_needs_are_not_used() -> None:
    phase = Phase(samples=8, global_batch=8, view=(Crop(), CaptionMix(), CaptionMix(name="short")))
    needs = serve.needs_of([InfoNCE(text="short")])
    views = serve.views_of("here", phase, 32, needs, ())
    assert len(views) == 3
    assert serve.used_views(views, needs) == {"image": "image", "short": "text"}
    with pytest.raises(ValueError, match=r"here: needs \['new:pooled'\], .* hint: add a view"):
        serve.views_of("here", phase, 32, frozenset({"new:pooled"}), ())
