"""Recipes that train only: each loads, is as its header says, and trains a few steps at tiny size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import launch, recipe, training_plan
from pretrain.loop.settings import TrainSettings, check
from tests.tiny import scenes

NAMES = (
    "clip_b32", "clip_b16", "clip_l14", "siglip_b16", "flip_b16", "clipa_l16", "laclip_b16", "lit_b16",
)  # fmt: skip
BATCH, SAMPLES = 8, 16


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """(shards with rewrites, a model of 32 px with patches of 8 and 32 tokens, weights of it)."""
    from pretrain.model.encoder import build

    folder = tmp_path_factory.mktemp("recipes")
    shards = scenes.write_shards(folder / "shards", SAMPLES, rewrite_count=2)
    config = json.loads(json.dumps(scenes.TINY_MODEL))
    config["text_cfg"]["context_length"] = 32
    model = folder / "recipe_tiny.json"
    model.write_text(json.dumps(config))
    torch.manual_seed(5)
    torch.save({"state_dict": build(str(model)).weights(20.0)}, folder / "weights.pt")
    return str(shards), str(model), str(folder / "weights.pt")


def loaded(name: str, *changes: str) -> TrainSettings:
    settings = recipe.load(name, list(changes)).train
    assert settings is not None
    return settings


@pytest.mark.parametrize("name", NAMES)
def test_its_header_says_how_to_run_it_what_it_costs_and_what_comes_of_it(name: str) -> None:
    text = (recipe.SHIPPED / f"{name}.toml").read_text()
    header = text.split("\n\n")[0] if name != "laclip_b16" else text
    for word in (f"clip-pipe train {name} ", "#   cost ", "GFLOP a pair", "#   expected  not yet run"):  # fmt: skip
        assert word in header, word


def test_they_share_what_their_headers_do_not_name() -> None:
    small, base, large = (
        recipe.load(name).resolved["train"]["phase"]
        for name in ("clip_b32", "clip_b16", "clip_l14")
    )
    assert base == [{**small[0], "micro_batch": 512}]
    assert large == [{**small[0], "micro_batch": 128, "lr": 4e-4}]
    (sigmoid,) = loaded("siglip_b16").phase
    assert _uses(sigmoid.objective) == ["sigmoid"]


def _uses(components: Any) -> list[str]:
    return [component.use for component in components]


def test_phases_do_what_the_papers_say() -> None:
    masked, unmasked = loaded("flip_b16").phase
    assert _uses(masked.tweak) == ["patch_drop", "text_length"]
    assert _uses(unmasked.tweak) == ["text_length"]
    assert unmasked.lr == pytest.approx(masked.lr / 100)
    small, full = loaded("clipa_l16").phase
    assert small.tweak[0].options == {"image_size": 96}
    assert full.tweak[0].options == {"image_size": 224}
    assert [phase.tweak[1].options["tokens"] for phase in (small, full)] == [8, 32]
    assert full.lr == pytest.approx(small.lr / 10)
    assert _uses(loaded("lit_b16").phase[0].tweak) == ["fresh", "freeze"]


def _tiny(name: str, place: tuple[str, str, str], out: Path) -> list[str]:
    """Changes that make a recipe tiny and leave its phases, views, tweaks and objective as they are."""
    shards, model, weights = place
    changes = [
        f"train.shards={shards}", f"train.model={model}", f"train.out={out}", "train.workers=0",
        'train.precision="fp32"', "train.log_every_steps=1", 'train.compile="off"',
    ]  # fmt: skip
    if name == "lit_b16":
        changes.append(f"train.pretrained={weights}")
    for number, phase in enumerate(loaded(name).phase):
        where = f"train.phase.{number}"
        changes += [f"{where}.samples={SAMPLES}", f"{where}.global_batch={BATCH}", f"{where}.warmup_samples=0"]  # fmt: skip
        for n, tweak in enumerate(phase.tweak):
            if tweak.use == "resolution":
                size = 16 if tweak.options["image_size"] < 224 else 32
                changes.append(f"{where}.tweak.{n}.image_size={size}")
    return changes


@pytest.mark.parametrize("name", [*NAMES, "metaclip", "less_is_more", "datacomp_basic"])
@pytest.mark.parametrize("gpu", ["h200", "h100", "a100"])
def test_it_fits_on_eight_gpus_by_the_plan(name: str, gpu: str) -> None:
    settings = loaded(name)
    told = [line for line in training_plan.words(settings, gpu, 8).splitlines() if " memory " in line]  # fmt: skip
    assert len(told) == len(settings.phase)
    for line in told:
        assert line.endswith(": fits"), line


@pytest.mark.parametrize("name", NAMES)
def test_a_micro_batch_is_legal_on_usual_numbers_of_gpus_and_not_smaller_than_needed(
    name: str,
) -> None:
    settings = loaded(name)
    for gpus in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        check(settings, gpus)
    for number, phase in enumerate(settings.phase):
        if not phase.micro_batch:
            continue
        twice = loaded(name, f"train.phase.{number}.micro_batch={2 * phase.micro_batch}")
        assert "does not fit" in training_plan.words(twice, "h100", 8)


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_at_tiny_size(name: str, place: tuple[str, str, str], tmp_path: Path) -> None:
    changes = _tiny(name, place, tmp_path / "out")
    plan = recipe.load(name, changes)
    assert plan.train is not None
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = launch.run_rank(plan, resume=False)
    finally:
        torch.set_num_threads(before)
    phases = len(plan.train.phase)
    assert result["samples_seen"] == phases * SAMPLES
    lines = [json.loads(line) for line in Path(result["metrics"]).read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == phases * SAMPLES // BATCH
    assert all(torch.tensor(line["loss"]).isfinite() for line in steps)
    saved = torch.load(result["checkpoint"], weights_only=True)
    if name == "lit_b16":
        _lit_keeps_its_picture_tower(saved["state_dict"], place[2])
    if name == "flip_b16":
        assert saved["model"]["text_length"] == 32
    if name == "clipa_l16":
        assert saved["model"]["config"]["vision_cfg"]["image_size"] == 32


def _lit_keeps_its_picture_tower(state: dict[str, Any], weights: str) -> None:
    given = torch.load(weights, weights_only=True)["state_dict"]
    for part, rows in given.items():
        if part.startswith("visual."):
            assert torch.equal(rows, state[part]), part
    moved = (state["token_embedding.weight"] - given["token_embedding.weight"]).abs().mean()
    assert moved > 0.01, "the text tower did not begin anew"


def test_a_run_stopped_in_its_second_phase_goes_on_as_if_it_had_not_been(
    place: tuple[str, str, str], tmp_path: Path
) -> None:
    """Size, text length and masks of phases are taken up again: bit for bit the same weights."""
    from pretrain.loop import train as loop

    weights = []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, stops in (("whole", (None,)), ("stopped", (SAMPLES + BATCH, None))):
            changes = _tiny("clipa_l16", place, tmp_path / name)
            plan = recipe.load("clipa_l16", [*changes, "train.phase.1.tweak.1.tokens=16"])
            assert plan.train is not None
            settings = launch.built(plan.train, plan.seed)
            for number, stop in enumerate(stops):
                result = loop.run(settings, seed=0, resume=number > 0, stop_after_samples=stop)
            weights.append(torch.load(result.checkpoint, weights_only=True))
    finally:
        torch.set_num_threads(before)
    first, second = weights
    assert first["model"] == second["model"]
    assert first["model"]["text_length"] == 16
    for part, rows in first["state_dict"].items():
        assert torch.equal(rows, second["state_dict"][part]), part
