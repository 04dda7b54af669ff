"""Launching: checks before torch is imported, defaults built, two ranks by torchrun, evaluation by recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import launch, recipe
from pipelines.errors import RecipeError, RunFailed
from pretrain.loop import checkpoint
from tests.tiny import scenes

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(scenes.write_shards(tmp_path_factory.mktemp("shards"), 48, per_shard=24))


def data(shards: str, out: Path, **phase: Any) -> dict[str, Any]:
    phases = [{"samples": 48, "global_batch": 16, "lr": 1e-3, **phase}]
    return {
        "name": "launch",
        "train": {
            "model": "vit_tiny_64",
            "shards": shards,
            "out": str(out),
            "workers": 0,
            "precision": "fp32",
            "log_every_steps": 1,
            "phase": phases,
        },
    }


def write(folder: Path, content: dict[str, Any]) -> str:
    import tomli_w

    path = folder / "r.toml"
    path.write_text(tomli_w.dumps(content))
    return str(path)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_defaults_are_crop_caption_mix_and_infonce(shards: str, tmp_path: Path) -> None:
    loaded = recipe.from_data(data(shards, tmp_path), "x")
    assert loaded.train is not None
    (phase,) = launch.built(loaded.train, 0).phase
    assert [type(view).__name__ for view in phase.view] == ["Crop", "CaptionMix"]
    ((weight, term),) = phase.objective
    assert (weight, type(term).__name__) == (1.0, "InfoNCE")


def test_what_is_wrong_is_said_before_any_work(shards: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        RecipeError, match="no tar files found\nhint: give a folder of webdataset shards"
    ):
        launch.train(
            write(tmp_path, data(str(empty), tmp_path / "out")),
            [],
            nproc=1,
            ray_workers=0,
            address="",
            resume=False,
        )
    with pytest.raises(RecipeError, match=r"16 does not divide over 3 ranks.*\n.*e.g. 15 or 18"):
        launch.train(
            write(tmp_path, data(shards, tmp_path / "out")),
            [],
            nproc=3,
            ray_workers=0,
            address="",
            resume=False,
        )
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "metrics.jsonl").touch()
    with pytest.raises(RecipeError, match="holds a run already\nhint: add --resume"):
        launch.train(
            write(tmp_path, data(shards, tmp_path / "out")),
            [],
            nproc=1,
            ray_workers=0,
            address="",
            resume=False,
        )
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "metrics.jsonl"]


def test_train_twice_as_long_by_resume_and_evaluate(shards: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    content = data(shards, out)
    content["evaluate"] = [{"use": "retrieval", "name": "own shards", "path": shards}]
    told = json.loads(
        launch.train(write(tmp_path, content), [], nproc=1, ray_workers=0, address="", resume=False)
    )
    assert told["samples_seen"] == 48
    assert Path(told["report"]).is_file()
    loaded = recipe.from_data(content, "x")
    figures = json.loads(launch.evaluate(loaded, "", as_json=True))["figures"]["own shards"]
    assert 0 <= figures["image_to_text_r1"] <= 1
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["eval"] == "own shards"
    assert "own shards" in launch.evaluate(loaded, told["checkpoint"], as_json=False)
    with pytest.raises(RecipeError, match="no such file"):
        launch.evaluate(loaded, str(tmp_path / "no.pt"), as_json=False)


def test_a_change_is_allowed_and_averaged_weights_are_evaluated(
    shards: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    content = data(shards, out)
    content["train"]["ema_decay"] = 0.99
    content["train"]["loggers"] = ["tensorboard"]
    content["evaluate"] = [{"use": "retrieval", "name": "r", "path": shards}]
    told: dict[str, Any] = {"nproc": 1, "ray_workers": 0, "address": "", "resume": True}
    launch.train(write(tmp_path, content), [], **told)
    longer = ["train.phase.0.samples=64"]
    with pytest.raises(RecipeError, match=r"go on with it by --allow-change phase.0.samples"):
        launch.train(write(tmp_path, content), longer, **told)
    done = json.loads(launch.train(write(tmp_path, content), longer, **told, allow=["phase.0"]))
    assert done["samples_seen"] == 64
    assert "samples = 64" in (out / "recipe.toml").read_text()
    loaded = recipe.from_data(content, "x")
    saved = checkpoint.read(done["checkpoint"])
    assert not torch.equal(saved["ema"]["visual.proj"], saved["state_dict"]["visual.proj"])
    # An average that is plainly another model, so that the figures tell which weights were taken.
    saved["ema"]["visual.proj"] = torch.randn_like(saved["ema"]["visual.proj"])
    checkpoint.write(done["checkpoint"], saved)
    plain = launch.run_evaluations(loaded, done["checkpoint"])
    assert launch.run_evaluations(loaded, done["checkpoint"], ema=True) != plain
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["eval"], last["ema"]) == ("r", True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(out / "tensorboard")).Reload()
    for tag, figures in (("eval/r", plain["r"]), ("eval_ema/r", last)):
        (event,) = shown.Scalars(f"{tag}.text_to_image_r1")
        assert (event.step, event.value) == (64, pytest.approx(figures["text_to_image_r1"]))
    assert [event.step for event in shown.Scalars("loss")] == [16, 32, 48, 64]


def test_a_folder_that_is_lost_before_the_first_step_is_told(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pretrain.loop import away
    from pretrain.loop import train as loop

    def lost(*_: Any, **more: Any) -> None:
        raise away.FolderLost("another run's")

    monkeypatch.setattr(loop, "run", lost)
    loaded = recipe.from_data(data(shards, tmp_path / "run"), "x")
    with pytest.raises(RunFailed, match="another run's"):
        launch.run_rank(loaded, resume=False)


def test_no_averaged_weights_are_said(shards: str, tmp_path: Path) -> None:
    loaded = recipe.from_data(
        {**data(shards, tmp_path / "o", samples=16), "evaluate": [{"use": "retrieval", "path": shards}]},
        "x",
    )  # fmt: skip
    path = launch.run_rank(loaded, resume=False, progress=lambda line: None)["checkpoint"]
    with pytest.raises(RecipeError, match=r"holds no averaged weights\nhint: train with"):
        launch.evaluate(loaded, path, as_json=True, ema=True)


def test_a_rank_of_srun_or_torchrun_starts_no_others(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    path = write(tmp_path, data(shards, tmp_path / "out"))
    told: dict[str, Any] = {"address": "", "resume": False}
    with pytest.raises(RecipeError, match="16 does not divide over 3 ranks"):
        launch.train(path, [], nproc=8, ray_workers=0, **told)
    with pytest.raises(RecipeError, match="a rank of another launcher already"):
        launch.train(path, [], nproc=1, ray_workers=2, **told)


def test_two_ranks_by_torchrun_see_the_batches_of_one(shards: str, tmp_path: Path) -> None:
    """The whole command with --nproc 2 against one rank: the same samples, the same losses to rounding."""
    loaded = recipe.from_data(data(shards, tmp_path / "1"), "x")
    launch.run_rank(loaded, resume=False, progress=lambda line: None)
    command = [sys.executable, "cli.py", "train", write(tmp_path, data(shards, tmp_path / "2"))]
    done = subprocess.run(
        [*command, "--nproc", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["samples_seen"] == 48
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=2e-4)


def test_another_run_s_checkpoint_leaves_this_run_s_figures_alone(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {}
    for name in ("a", "b"):
        content = {
            **data(shards, tmp_path / name),
            "evaluate": [{"use": "retrieval", "name": "r", "path": shards}],
        }
        loaded = recipe.from_data(content, "x")
        paths[name] = launch.run_rank(loaded, resume=False, progress=lambda line: None)[
            "checkpoint"
        ]
    shown: list[tuple[str, int]] = []
    monkeypatch.setattr(
        "pretrain.loop.log.evaluated",
        lambda out, loggers, seen, results, **_: shown.append((out, seen)),
    )
    figures = launch.run_evaluations(loaded, paths["b"])
    metrics = tmp_path / "b" / "metrics.jsonl"
    last = json.loads(metrics.read_text().splitlines()[-1])
    assert (last["eval"], last["checkpoint"], last["samples_seen"]) == (
        "r",
        Path(paths["b"]).name,
        48,
    )
    before = metrics.read_text()
    assert launch.run_evaluations(loaded, paths["a"]).keys() == figures.keys()
    assert metrics.read_text() == before
    assert shown == [(str(tmp_path / "b"), 48)]
