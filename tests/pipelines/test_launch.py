"""Launching: checks before torch is imported, defaults built, two ranks by torchrun, evaluation by recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import launch, recipe
from pipelines.errors import RecipeError
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
    with pytest.raises(RecipeError, match="16 does not divide by 3 ranks"):
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


def test_two_ranks_by_torchrun_see_the_batches_of_one(shards: str, tmp_path: Path) -> None:
    """The whole command with --nproc 2 against --nproc 1: the same samples, the same losses to rounding."""
    found = []
    for nproc in (1, 2):
        out = tmp_path / str(nproc)
        folder = tmp_path / f"recipe{nproc}"
        folder.mkdir()
        command = [
            sys.executable,
            "cli.py",
            "train",
            write(folder, data(shards, out)),
            "--nproc",
            str(nproc),
        ]
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=180,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout)["samples_seen"] == 48
        found.append(losses(out))
    assert found[1] == pytest.approx(found[0], rel=2e-4)


def test_another_run_s_checkpoint_leaves_this_run_s_figures_alone(
    shards: str, tmp_path: Path
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
