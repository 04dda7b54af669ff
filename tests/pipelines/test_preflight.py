"""Before any work: models, weights, sets and shards that are not there are said, and without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import preflight, recipe
from pipelines.errors import RecipeError
from pretrain.loop.settings import TrainSettings
from tests.pipelines.test_launch import data
from tests.tiny import scenes


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(scenes.write_shards(tmp_path_factory.mktemp("shards"), 8, per_shard=4))


def test_the_data_hash_is_the_shards_fingerprint_or_made_of_foreign_tars(
    shards: str, tmp_path: Path
) -> None:
    assert preflight.data_hash_of(shards) == preflight.data_hash_of(shards)
    first = preflight.data_hash_of(shards)
    (Path(shards) / "manifest.json").write_text(json.dumps({"fingerprint": "abc"}))
    assert first != preflight.data_hash_of(shards) == "abc"
    (Path(shards) / "manifest.json").unlink()


@pytest.mark.parametrize("begun", ["metrics.jsonl", "checkpoints"])
def test_a_folder_that_holds_a_run_is_refused_by_either_sign(
    begun: str, shards: str, tmp_path: Path
) -> None:
    (tmp_path / "out" / begun).mkdir(parents=True)
    loaded = recipe.from_data(data(shards, tmp_path / "out"), "x")
    with pytest.raises(RecipeError, match=r"holds a run already\nhint: add --resume"):
        preflight.checked(loaded, resume=False)
    preflight.checked(loaded, resume=True)


def test_missing_pretrained_weights_are_said_before_any_work(shards: str, tmp_path: Path) -> None:
    content = data(shards, tmp_path / "out")
    content["train"]["pretrained"] = "no/such.pt"
    with pytest.raises(RecipeError, match=r"train\.pretrained = .*no such file"):
        preflight.checked(recipe.from_data(content, "x"), resume=False)


def test_tags_of_open_clip_are_weights_and_nothing_is_downloaded(
    shards: str, tmp_path: Path
) -> None:
    for model, tag in (("ViT-B-32", "laion2b_s34b_b79k"), ("ViT-B-32-quickgelu", "openai")):
        content = data(shards, tmp_path / "out")
        content["train"] |= {"model": model, "pretrained": tag}
        loaded = recipe.from_data(content, "x")
        assert loaded.train is not None
        assert loaded.train.pretrained == tag  # no path is made of it
        preflight.check_training(loaded)
    weights = tmp_path / "weights"
    weights.touch()
    content["train"]["pretrained"] = str(weights)
    preflight.check_training(recipe.from_data(content, "x"))


@pytest.mark.parametrize(
    ("train", "evaluate", "message"),
    [
        (
            {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79"},
            {},
            "no such file, and no tag of ViT-B-32\nhint: did you mean 'laion2b_s34b_b79k'?",
        ),
        (
            {"pretrained": "openai"},
            {},
            "no tag of vit_tiny_64\nhint: open_clip has no weights for it",
        ),
        ({"pretrained": "no/such.pt"}, {}, "no such file\nhint: the path of weights"),
        ({"model": "ViT-B-23"}, {}, "no model 'ViT-B-23'\nhint: did you mean 'ViT-B-32'?"),
        ({"model": "no/such.json"}, {}, "no/such.json: no such file"),
        ({"shards": "/no/such/shards"}, {}, "/no/such/shards: no tar files found"),
        ({}, {"path": "/no/such/set"}, "evaluate.0.path: /no/such/set: no such file or folder"),
        ({}, {"set": "cifar11"}, "no set 'cifar11'\nhint: did you mean 'cifar10'?"),
    ],
)
def test_what_training_and_evaluation_would_miss(
    shards: str, tmp_path: Path, train: dict[str, Any], evaluate: dict[str, Any], message: str
) -> None:
    content = data(shards, tmp_path / "out")
    content["train"] |= train
    content["evaluate"] = [{"use": "zero_shot", "path": shards, **evaluate}]
    with pytest.raises(RecipeError) as fault:
        preflight.check_training(recipe.from_data(content, "x"))
    assert message in str(fault.value)


def test_open_clip_s_models_ours_and_own_files_are_known(shards: str, tmp_path: Path) -> None:
    for model in ("ViT-B-32", "vit_tiny_64", scenes.write_model(tmp_path)):
        content = data(shards, tmp_path / "out")
        content["train"]["model"] = model
        preflight.check_training(recipe.from_data(content, "x"))


def test_shards_of_another_version_of_the_recipe_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines import curation
    from pipelines.plan import plan_curation
    from pipelines.run_local import LocalRunner
    from tests.pipelines.test_curation import SOURCE, STAGES, Quiet

    content = data("", tmp_path / "out")
    del content["train"]["shards"]
    content["curate"] = {
        "pool": str(tmp_path / "pool"),
        "shards": str(tmp_path / "shards"),
        "source": SOURCE,
        "stage": STAGES,
    }
    loaded = recipe.from_data(content, "x")
    curation.run(plan_curation(loaded), LocalRunner(), Quiet())
    preflight.checked(loaded, resume=False)
    assert capsys.readouterr().err == ""
    content["curate"]["shard"] = {"samples_per_shard": 3}
    preflight.checked(recipe.from_data(content, "x"), resume=False)
    assert "holds shards of another version of this recipe's [curate]" in capsys.readouterr().err


def test_an_output_folder_that_can_not_be_written_is_said(shards: str) -> None:
    with pytest.raises(RecipeError, match=r"train\.out: /proc/x/out: can't be written"):
        preflight.checked(recipe.from_data(data(shards, Path("/proc/x/out")), "x"), resume=False)


def test_a_logger_that_is_not_installed_is_told_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pretrain.loop.log.importlib.util.find_spec", lambda name: None)
    settings = TrainSettings(model="m", out="o", loggers=("wandb",))
    with pytest.raises(RecipeError, match=r"train.loggers: wandb is not installed\nhint: pip"):
        preflight._check_loggers(settings)


def told(
    content: dict[str, Any], capsys: pytest.CaptureFixture[str], resume: bool = False
) -> list[str]:
    """What is said on stderr, by `check` and by `train`."""
    loaded = recipe.from_data(content, "x")
    preflight.check_training(loaded)
    checked = capsys.readouterr().err
    preflight.checked(loaded, resume=resume)
    return [checked, capsys.readouterr().err]


def test_a_warmup_longer_than_its_phase_is_told_by_check_and_train(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for said in told(data(shards, tmp_path / "out", warmup_samples=480), capsys):
        assert said.startswith("warning: train.phase.0: a warm-up of 480 samples in a phase of 48")
    assert told(data(shards, tmp_path / "out", warmup_samples=16), capsys) == ["", ""]
    with pytest.raises(RecipeError, match=r"warmup_samples = 48,000 .*\nhint: "):
        recipe.from_data(data(shards, tmp_path / "out", warmup_samples=48_000), "x")


def test_of_many_ranks_one_tells(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = recipe.from_data(data(shards, tmp_path / "out", warmup_samples=480), "x")
    preflight.checked(loaded, resume=False, tell=False)
    assert capsys.readouterr().err == ""


def test_shards_of_another_kind_say_what_they_may_be(tmp_path: Path) -> None:
    content = data("", tmp_path / "out")
    for wrong in (5, [5], [["a"]]):
        content["train"]["shards"] = wrong
        with pytest.raises(RecipeError, match=r"train.shards: found .*\nhint: a folder, a glob"):
            recipe.from_data(content, "x")


def test_buckets_beyond_the_context_are_refused(shards: str, tmp_path: Path) -> None:
    content = data(shards, tmp_path / "out")
    content["train"]["text_buckets"] = [16, 48]
    loaded = recipe.from_data(content, "x")
    for check in (preflight.check_training, lambda one: preflight.checked(one, resume=False)):
        with pytest.raises(
            RecipeError,
            match=r"train.text_buckets: \[16, 48\]: 48 is more than the 32 .*\nhint: \[16\]",
        ):
            check(loaded)
    content["train"]["model"] = "ViT-B-32"  # reads 77
    preflight.check_training(recipe.from_data(content, "x"))


def test_a_resume_of_nothing_begins_and_says_so(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Job scripts give --resume from the first time on; a wrong folder must be seen all the same."""
    _, said = told(data(shards, tmp_path / "out"), capsys, resume=True)
    assert said.startswith(
        f"note: --resume, and {tmp_path}/out holds no checkpoint: the run begins"
    )
    (tmp_path / "out" / "checkpoints").mkdir()
    assert told(data(shards, tmp_path / "out"), capsys, resume=True) == ["", ""]


def test_shards_of_the_recipe_itself_that_are_not_there_name_the_command(tmp_path: Path) -> None:
    from tests.pipelines.test_curation import SOURCE

    own = str(tmp_path / "own")
    content = data(own, tmp_path / "out")
    content["curate"] = {"pool": str(tmp_path / "pool"), "shards": own, "source": SOURCE}
    with pytest.raises(
        RecipeError, match=r"own: not there yet\nhint: run `clip-pipe curate x` first"
    ):
        preflight.checked(recipe.from_data(content, "x"), resume=False)
