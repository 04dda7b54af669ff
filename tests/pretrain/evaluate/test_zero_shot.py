"""Zero-shot: prompt ensembles, hand-worked ranks with ties, and models that must score 0."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pretrain.evaluate.zero_shot import ZeroShot, class_ranks, class_weights
from tests.tiny import eval_sets
from tests.tiny.encoders import COLOURS, CollapsedEncoder, ColourEncoder, DivergedEncoder
from tests.tiny.pictures import shared_data


def colour_folders(path: Path, *colours: str) -> str:
    files = {
        f"{name}/{number}.png": eval_sets.square(name) for name in colours for number in range(2)
    }
    return eval_sets.folder(path, files)


def test_class_weight_is_the_unit_mean_of_unit_text_features() -> None:
    # "red" -> (1,0,0); "white" -> (1,1,1)/sqrt(3). Taking the mean before making them unit would
    # give (2,1,1)/sqrt(6) instead.
    weights = class_weights(ColourEncoder(), [["red", "white"], ["blue"]], "cpu", 2)
    third = 3**-0.5
    mean = torch.tensor([(1 + third) / 2, third / 2, third / 2])
    assert torch.allclose(weights, torch.stack([mean / mean.norm(), torch.tensor([0.0, 0, 1])]))


def test_ranks_by_hand_with_a_tie() -> None:
    images = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 1.0, 0]])
    weights = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0.8, 0.6, 0], [0, 0, 1.0]])
    # Picture 0 against classes: 1, .8, .8, 0. Class 1 is beaten by 0 and ties with 2: rank 3.
    # Picture 2: 0, .6, .6, 0. Class 3 is beaten by 1 and 2, ties with 0: rank 4.
    assert class_ranks(images, weights, torch.tensor([0, 1, 2, 3])).tolist() == [1, 3, 2, 4]


def test_perfect_on_colours_with_every_figure(tmp_path: Path) -> None:
    path = colour_folders(tmp_path / "s", *COLOURS)
    (tmp_path / "s" / "red" / "9.png").write_bytes(eval_sets.BAD)
    (tmp_path / "s" / "stray.png").write_bytes(eval_sets.square("red"))
    assert ZeroShot(path=path, batch=4).run(ColourEncoder(), "cpu") == {
        "top1": 1.0, "top5": 1.0, "mean_per_class": 1.0, "n_pictures": 14, "n_classes": 7, "n_bad": 2,
    }  # fmt: skip


def test_mean_per_class_weighs_classes_alike_and_few_classes_have_no_top5(tmp_path: Path) -> None:
    files = {f"red/{n}.png": eval_sets.square("red") for n in range(3)}
    files["blue/0.png"] = eval_sets.square("red")  # taken for the other class
    figures = ZeroShot(path=eval_sets.folder(tmp_path / "s", files)).run(ColourEncoder(), "cpu")
    assert figures["top1"] == 0.75
    assert figures["mean_per_class"] == 0.5
    assert "top5" not in figures


@pytest.mark.parametrize("encoder", [CollapsedEncoder(), DivergedEncoder()])
def test_a_model_that_tells_nothing_apart_scores_zero(
    tmp_path: Path, encoder: ColourEncoder
) -> None:
    figures = ZeroShot(path=colour_folders(tmp_path / "s", *COLOURS)).run(encoder, "cpu")
    assert figures["top1"] == figures["top5"] == figures["mean_per_class"] == 0.0


def test_templates_and_set_reach_the_model(tmp_path: Path) -> None:
    words = tmp_path / "mine.toml"
    words.write_text(
        'templates = ["one {}.", "two {}."]\nclassnames = ["a", "b", "c"]\nignore = ["junk"]\n'
        'prompt_names = {a = "red", b = "blue", c = "green"}\n'
    )
    files = {
        "a/0.png": eval_sets.square("red"),
        "b/0.png": eval_sets.square("blue"),
        "junk/0.png": eval_sets.square("red"),
    }
    path = eval_sets.folder(tmp_path / "s", files)
    encoder = ColourEncoder()
    figures = ZeroShot(path=path, set=str(words)).run(encoder, "cpu")
    assert encoder.texts == [
        "one red.",
        "two red.",
        "one blue.",
        "two blue.",
        "one green.",
        "two green.",
    ]
    assert (figures["top1"], figures["n_pictures"], figures["n_classes"], figures["n_bad"]) == (
        1.0,
        2,
        3,
        0,
    )
    encoder = ColourEncoder()
    ZeroShot(path=path, set=str(words), templates=("just {}",)).run(encoder, "cpu")
    assert encoder.texts == ["just red", "just blue", "just green"]


@pytest.mark.parametrize("wrong", [{"set": "cifar"}, {"templates": ("no place",)}, {"batch": 0}])
def test_wrong_options_are_found_before_any_work(wrong: dict) -> None:
    with pytest.raises(ValueError, match="hint: "):
        ZeroShot(**{"path": "not-there", **wrong}).check()


def test_a_class_the_set_lacks_names_the_path(tmp_path: Path) -> None:
    path = colour_folders(tmp_path / "s", "red")
    with pytest.raises(ValueError, match=rf"{path}: class 'red' is not among the 10"):
        ZeroShot(path=path, set="cifar10").run(ColourEncoder(), "cpu")


@pytest.mark.parametrize(
    ("file", "words", "pictures", "classes"),
    [
        ("classify-cifar10-test.tar.gz", "cifar10", 3000, 10),
        ("classify-caltech101.tar", "caltech101", 505, 101),
    ],
)
def test_real_sets_are_read_whole(file: str, words: str, pictures: int, classes: int) -> None:
    figures = ZeroShot(path=str(shared_data(file)), set=words).run(ColourEncoder(), "cpu")
    assert (figures["n_pictures"], figures["n_classes"], figures["n_bad"]) == (pictures, classes, 0)
    assert 0 <= figures["top1"] <= figures["top5"] < 1
