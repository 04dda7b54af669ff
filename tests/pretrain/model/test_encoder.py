import math

import pytest
import torch

from pretrain.model import encoder as towers
from pretrain.model.attention import LeanBlock
from pretrain.model.encoder import build, load
from tests.tiny import scenes


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.manual_seed(0)
    return build(scenes.write_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(
        0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_features_have_the_declared_shapes(tiny, images):
    tokens = tiny.tokenize(["a red circle", "two", "three"])
    assert (tiny.image_size, tiny.context_length, tiny.embed_dim) == (32, 24, 64)
    assert tokens.shape == (3, 24)
    assert tiny.encode_image(images).shape == tiny.encode_text(tokens).shape == (3, 64)


def test_pictures_are_normalised_as_open_clip_does(tiny, images):
    preprocess = towers.import_open_clip().image_transform(
        32,
        is_train=False,
        mean=tiny.clip.visual.preprocess_cfg["mean"],
        std=tiny.clip.visual.preprocess_cfg["std"],
    )
    from PIL import Image

    reference = torch.stack([preprocess(Image.fromarray(image.numpy())) for image in images])
    with torch.no_grad():
        assert torch.allclose(
            tiny.encode_image(images), tiny.clip.encode_image(reference), atol=1e-5
        )
        assert torch.allclose(
            tiny.encode_image(reference), tiny.clip.encode_image(reference), atol=1e-6
        )


def test_padding_after_the_end_token_has_no_effect(tiny):
    tokens = tiny.tokenize(["a red circle"])
    padded = tokens.clone()
    padded[0, -3:] = 5
    assert torch.allclose(tiny.encode_text(tokens), tiny.encode_text(padded), atol=1e-6)


def test_two_views_of_one_tower_go_through_it_together(tiny, images):
    tokens = tiny.tokenize(["one", "two", "three"])
    views = {"image": images, "second": images.flip(1), "text": tokens}
    features = tiny(views, {"image": "image", "second": "image", "text": "text"})
    assert set(features) == {"image:pooled", "second:pooled", "text:pooled"}
    assert torch.allclose(features["second:pooled"], tiny.encode_image(images.flip(1)), atol=1e-5)
    assert torch.allclose(features["image:pooled"], tiny.encode_image(images), atol=1e-5)


def test_views_of_different_sizes_of_text_and_rows_are_kept_apart(tiny, images):
    views = {"image": images, "few": images[:1]}
    features = tiny(views, {"image": "image", "few": "image"})
    assert features["few:pooled"].shape == (1, 64)


def test_the_two_towers_are_all_of_it_and_the_scale_is_elsewhere(tiny):
    names = [name for tower in towers.TOWERS for name, _ in tiny.tower_parameters(tower)]
    assert sorted(names) == sorted(name for name, _ in tiny.clip.named_parameters())
    assert not any("logit" in name for name in names)
    assert tiny.pretrained_logit_scale == pytest.approx(1 / 0.07, rel=1e-4)


def test_weights_go_to_open_clip_and_back(tiny, images, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(
        {"model": {"name": tiny.name, "config": tiny.config}, "state_dict": tiny.weights(20.0)},
        path,
    )
    mine = load(str(path))
    theirs = towers.import_open_clip().create_model(tiny.name, pretrained=str(path))
    assert theirs.logit_scale.item() == pytest.approx(math.log(20))
    started = build(tiny.name, pretrained=str(path))
    assert started.pretrained_logit_scale == pytest.approx(20)
    tokens = tiny.tokenize(["a red circle"])
    with torch.no_grad():
        expected = tiny.eval().encode_image(images)
        for encoder in (mine, started.eval()):
            assert torch.equal(encoder.encode_image(images), expected)
        assert torch.allclose(
            theirs.eval().encode_text(tokens), tiny.encode_text(tokens), atol=1e-6
        )
    assert not mine.training


def test_a_checkpoint_carries_its_configuration(tmp_path):
    # The same name with another shape, as after an edit of the file: the checkpoint's own one counts.
    config = {**scenes.TINY_MODEL, "embed_dim": 32}
    encoder = towers.from_config("tiny_32", config)
    torch.save(
        {"model": {"name": "tiny_32", "config": config}, "state_dict": encoder.weights(1.0)},
        tmp_path / "c.pt",
    )
    assert load(str(tmp_path / "c.pt")).embed_dim == 32


def test_a_checkpoint_carries_how_its_pixels_are_normalised(tmp_path, images):
    # Weights of a tag may have their own mean and deviation, which no configuration tells.
    encoder = towers.from_config("tiny_32", scenes.TINY_MODEL).eval()
    encoder.normalise_as({"mean": [127.5] * 3, "std": [127.5] * 3})
    torch.save(
        {"model": encoder.described(), "state_dict": encoder.weights(1.0)}, tmp_path / "c.pt"
    )
    again = load(str(tmp_path / "c.pt"))
    assert torch.equal(again.mean, encoder.mean)
    assert torch.equal(again.encode_image(images), encoder.encode_image(images))


def test_our_own_configuration_is_there_by_name():
    encoder = build("vit_tiny_64")
    assert (encoder.image_size, encoder.embed_dim, encoder.context_length) == (64, 128, 32)


def test_wrong_names_and_files_have_a_hint(tmp_path):
    with pytest.raises(
        ValueError, match=r"unknown model 'ViT-B-33'. hint: did you mean .*ViT-B-32"
    ):
        build("ViT-B-33")
    (tmp_path / "half.json").write_text('{"embed_dim": 8}')
    with pytest.raises(ValueError, match=r"half.json: no \['vision_cfg', 'text_cfg'\]. hint:"):
        build(str(tmp_path / "half.json"))
    (tmp_path / "no.pt").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"no.pt: not a checkpoint of clip-pipe .* hint:"):
        load(str(tmp_path / "no.pt"))
    with pytest.raises(ValueError, match=r"do not fit model 'vit_tiny_64'.* hint:"):
        build("vit_tiny_64", pretrained=str(tmp_path / "absent.pt"))
    torch.save({"state_dict": {"visual.proj": torch.zeros(3, 3)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"do not fit model 'vit_tiny_64'.* hint:"):
        build("vit_tiny_64", pretrained=str(tmp_path / "other.pt"))


def test_blocks_are_those_of_both_towers_and_were_made_lean(tiny):
    blocks = tiny.blocks()
    assert blocks == [*tiny.clip.visual.transformer.resblocks, *tiny.clip.transformer.resblocks]
    assert all(type(block) is LeanBlock for block in blocks)


def test_a_frozen_tower_runs_without_gradient_and_in_eval_mode(tiny, images):
    tiny.thaw()
    tiny.frozen.add("image")
    tiny.train()
    assert not tiny.encode_image(images).requires_grad
    assert not any(module.training for module in tiny.tower_modules("image"))
    assert tiny.encode_text(tiny.tokenize(["one"])).requires_grad
    tiny.thaw()
    assert tiny.encode_image(images).requires_grad


def test_texts_of_two_lengths_are_two_passes_with_the_same_features(tiny):
    tokens = tiny.tokenize(["a red circle", "two"])
    views = {"text": tokens, "short": tokens[:, :8]}
    features = tiny(views, {"text": "text", "short": "text"})
    assert torch.allclose(features["text:pooled"], features["short:pooled"], atol=1e-6)
