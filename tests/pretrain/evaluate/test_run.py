"""Evaluations in a row: lines in metrics.jsonl, the encoder left as it was, faults named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pretrain.evaluate.retrieval import Retrieval
from pretrain.evaluate.run import run
from pretrain.evaluate.zero_shot import ZeroShot
from tests.tiny import eval_sets
from tests.tiny.encoders import ColourEncoder


class ModeEncoder(ColourEncoder):
    """Asserts that it is in eval mode."""

    def encode_image(self, images):  # type: ignore[no-untyped-def]
        assert not self.training
        return super().encode_image(images)


@pytest.fixture
def sets(tmp_path: Path) -> list:
    files = {f"{name}/0.png": eval_sets.square(name) for name in ("red", "blue")}
    folder = eval_sets.folder(tmp_path / "classes", files)
    pairs = {
        "0.png": eval_sets.square("red"),
        "0.txt": b"red",
        "1.png": eval_sets.square("blue"),
        "1.txt": b"blue",
    }
    return [
        ("colours", ZeroShot(path=folder)),
        ("pairs", Retrieval(path=eval_sets.tar(tmp_path / "p.tar", pairs))),
    ]


def test_figures_are_returned_and_appended(tmp_path: Path, sets: list) -> None:
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.parent.mkdir()
    metrics.write_text(
        '{"step": 1}\n{"step": 2, "lo'
    )  # the trainer was killed in the middle of a line
    encoder = ModeEncoder()
    results = run(encoder, sets, "cpu", str(metrics), {"samples_seen": 64})
    assert encoder.training
    assert results["colours"]["top1"] == results["pairs"]["text_to_image_r1"] == 1.0
    lines = metrics.read_text().splitlines()
    assert lines[:2] == ['{"step": 1}', '{"step": 2, "lo']
    assert [json.loads(line) for line in lines[2:]] == [
        {"eval": name, "samples_seen": 64, **figures} for name, figures in results.items()
    ]


def test_without_a_path_nothing_is_written(tmp_path: Path, sets: list) -> None:
    before = sorted(tmp_path.rglob("*"))
    run(ModeEncoder(), sets, "cpu")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_fault_names_its_evaluation_and_what_was_done_stays(tmp_path: Path, sets: list) -> None:
    metrics = tmp_path / "new" / "metrics.jsonl"
    encoder = ModeEncoder()
    with pytest.raises(ValueError, match=r"evaluation bad: .*gone: not there. hint: "):
        run(encoder, [sets[0], ("bad", ZeroShot(path=str(tmp_path / "gone")))], "cpu", str(metrics))
    assert json.loads(metrics.read_text())["eval"] == "colours"
    assert encoder.training


def test_two_evaluations_of_one_name_are_refused(sets: list) -> None:
    with pytest.raises(ValueError, match=r"two evaluations are named 'colours'\. hint: "):
        run(ModeEncoder(), [sets[0], sets[0]], "cpu")


def test_the_real_encoder(tmp_path: Path, sets: list) -> None:
    from pretrain.model import encoder as encoders

    torch.manual_seed(0)
    encoder = encoders.build("vit_tiny_64")
    weights = {name: rows.clone() for name, rows in encoder.state_dict().items()}
    results = run(encoder, sets, "cpu")
    assert results["colours"]["n_pictures"] == 2
    assert results["pairs"]["image_to_text_r1"] in (0.0, 0.5, 1.0)
    assert all(torch.equal(rows, weights[name]) for name, rows in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_figures(sets: list) -> None:
    assert run(ModeEncoder(), sets, "cuda") == run(ModeEncoder(), sets, "cpu")


def test_figures_are_told_as_each_is_done_also_before_one_that_fails(
    tmp_path: Path, sets: list
) -> None:
    heard: dict[str, dict[str, float]] = {}
    broken = [*sets, ("gone", Retrieval(path=str(tmp_path / "gone")))]
    with pytest.raises(ValueError, match="evaluation gone"):
        run(ColourEncoder(), broken, "cpu", heard=heard.__setitem__)
    assert list(heard) == ["colours", "pairs"]
    assert heard["colours"]["top1"] == 1.0
