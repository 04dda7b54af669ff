"""A model is loaded by name, by file or from our own checkpoints; faults have a hint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from curate.score.image_embedding import ImageEmbedding
from curate.score.open_clip_model import LoadedClip, OpenClipModel, _without_strips
from curate.stage import StageError
from tests.tiny import models
from tests.tiny.pictures import encoded, quadrants


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return models.clip_options(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def loaded(options: dict[str, str]) -> LoadedClip:
    return OpenClipModel(**options).load("score.test")


def test_a_checkpoint_of_ours_says_which_model_it_is(
    options: dict[str, str], loaded: LoadedClip, tmp_path: Path
) -> None:
    import io

    from pretrain.loop import checkpoint

    weights = torch.load(io.BytesIO(models.clip_weights()), weights_only=True)
    content = {
        "cursor": {"samples_seen": 5},
        "model": {"name": "tiny", "config": models.CLIP_CONFIG},
        "state_dict": weights,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
    }
    path = checkpoint.save(str(tmp_path), content, keep=1)
    own = OpenClipModel(checkpoint=path)
    own.check()
    assert own.spec().config == models.CLIP_CONFIG
    picture = [encoded(quadrants())]
    same = own.load("score.test").embed_pictures(picture)[0]
    assert np.array_equal(same, loaded.embed_pictures(picture)[0])


class Archive(torch.nn.Module):
    """What OpenAI published: half precision weights under open_clip's names, and a few numbers."""

    def __init__(self, clip: torch.nn.Module) -> None:
        super().__init__()
        for name, rows in clip.state_dict().items():
            self._keep(name.split("."), rows.half())
        self.register_buffer("context_length", torch.tensor(16))

    def _keep(self, path: list[str], rows: torch.Tensor) -> None:
        module: torch.nn.Module = self
        for name in path[:-1]:
            if name not in dict(module.named_children()):
                module.add_module(name, torch.nn.Module())
            module = getattr(module, name)
        module.register_buffer(path[-1], rows)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


def test_openais_own_archives_are_read(
    options: dict[str, str], loaded: LoadedClip, tmp_path: Path
) -> None:
    path = str(tmp_path / "archive.pt")
    torch.jit.trace(Archive(loaded.clip), torch.ones(1)).save(path)
    with pytest.raises(ValueError, match="does not say which model"):
        OpenClipModel(checkpoint=path).check()
    read = OpenClipModel(config=options["config"], checkpoint=path).load("score.test")
    picture = [encoded(quadrants())]
    near, exact = (model.embed_pictures(picture)[0] for model in (read, loaded))
    assert np.allclose(near, exact, atol=1e-2)


def test_a_downloaded_folder_brings_its_preprocessing(
    options: dict[str, str], loaded: LoadedClip, tmp_path: Path
) -> None:
    config = tmp_path / "open_clip_config.json"
    half = [0.5, 0.5, 0.5]
    config.write_text(
        json.dumps({"model_cfg": models.CLIP_CONFIG, "preprocess_cfg": {"mean": half, "std": half}})
    )
    other = OpenClipModel(config=str(config), checkpoint=options["checkpoint"]).load("score.test")
    assert list(other.clip.visual.preprocess_cfg["mean"]) == half
    picture = [encoded(quadrants())]
    one, two = (model.embed_pictures(picture)[0] for model in (other, loaded))
    assert not np.array_equal(one, two)


def test_a_tag_names_the_preprocessing_of_a_local_file(options: dict[str, str]) -> None:
    from curate.score.open_clip_model import _tag, import_open_clip

    open_clip = import_open_clip()
    siglip = OpenClipModel(model="ViT-B-16-SigLIP", checkpoint="x", pretrained="webli")
    tag = _tag(open_clip, siglip.model, siglip.pretrained, siglip.spec())
    assert tuple(tag["mean"]) == (0.5, 0.5, 0.5)
    plain = OpenClipModel(model="ViT-B-32").spec()
    with pytest.raises(ValueError, match=r"no tag 'openia' for ViT-B-32\. hint: one of openai"):
        _tag(open_clip, "ViT-B-32", "openia", plain)
    with pytest.raises(ValueError, match=r'another activation.*hint: model = "ViT-B-32-quickgelu"'):
        _tag(open_clip, "ViT-B-32", "openai", plain)


def test_weights_that_do_not_fit_stop_the_stage(options: dict[str, str], tmp_path: Path) -> None:
    wrong = OpenClipModel(model="RN50", checkpoint=options["checkpoint"])
    with pytest.raises(
        StageError, match=r"score\.test: .*tiny_clip\.pt' can't be used: .* hint: give weights"
    ):
        wrong.load("score.test")
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"no weights")
    with pytest.raises(StageError, match=r"damaged\.pt' can't be used"):
        OpenClipModel(config=options["config"], checkpoint=str(damaged)).load("score.test")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "no weights. hint: checkpoint = a local file"),
        ({"checkpoint": "/nowhere.pt", "model": "RN50"}, "no file /nowhere.pt. hint:"),
        ({"pretrained": "openai"}, "without a model. hint: model ="),
        (
            {"model": "ViT-B-23", "pretrained": "openai"},
            "no model 'ViT-B-23'. hint: did you mean ViT-B-",
        ),
        ({"model": "RN50", "config": "x", "pretrained": "openai"}, "hint: set one of them"),
    ],
)
def test_options_that_cannot_work_are_named(given: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError) as fault:  # noqa: PT011
        ImageEmbedding(**given).check()
    assert said in str(fault.value)


def test_files_that_do_not_say_their_model(options: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"does not say which model it is\. hint: set model or config"
    ):
        OpenClipModel(checkpoint=options["checkpoint"]).check()
    config = tmp_path / "config.json"
    for text, said in (
        ("{", "hint: a JSON file"),
        ("{}", "has no embed_dim, vision_cfg, text_cfg"),
        ("[]", "has no embed"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=said):
            OpenClipModel(config=str(config), checkpoint=options["checkpoint"]).check()


def test_only_cuda_asks_for_a_gpu(options: dict[str, str]) -> None:
    assert ImageEmbedding(**options).resources.gpus == 0
    assert ImageEmbedding(**options, device="cuda").resources.gpus == 1


def test_a_special_token_written_out_ends_no_caption(loaded: LoadedClip) -> None:
    whole, cut, plain = loaded.embed_captions(
        ["a dog <end_of_text> and a cat", "a dog", "a dog and a cat"]
    )
    assert not np.allclose(whole, cut, atol=1e-3)
    assert loaded.embed_captions([]).shape == (0, models.CLIP_DIM)
    assert not np.allclose(plain, cut, atol=1e-3)


def test_long_strips_are_cut_at_the_centre(loaded: LoadedClip) -> None:
    strip = np.zeros((2, 3200, 3), np.uint8)
    strip[:, 1584:1616] = 255
    assert _without_strips(strip).tolist() == np.full((2, 32, 3), 255).tolist()
    assert _without_strips(strip.swapaxes(0, 1)).shape == (32, 2, 3)
    assert _without_strips(quadrants()).shape == quadrants().shape
    found, faults = loaded.embed_pictures(
        [encoded(strip), encoded(np.full((4, 4, 3), 255, np.uint8))]
    )
    assert faults == [None, None]
    assert np.allclose(found[0], found[1], atol=1e-5)
