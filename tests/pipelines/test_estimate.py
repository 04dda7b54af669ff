"""The paper estimate: rows thin out stage by stage, rates are those of costs or of a run, sums are sums."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import costs, curation, estimate, recipe
from pipelines.errors import RecipeError
from pipelines.estimate import Known, Prices
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import SOURCE, STAGES, Quiet


def lines_of(found: estimate.Estimate) -> dict[str, estimate.Line]:
    return {line.name: line for line in found.lines}


def test_rows_thin_out_and_hours_are_typical_rates() -> None:
    found = estimate.estimate(recipe.load("metaclip"), 1e9)
    lines = lines_of(found)
    assert list(lines)[:4] == [
        "source.url_table", "filter.duplicate_pair", "score.metadata_match", "filter.metadata_balance",
    ]  # fmt: skip
    assert lines["score.metadata_match"].rows == 0.98e9
    fetched = lines["download.fetch"]
    assert (fetched.rows, fetched.kept) == pytest.approx((0.245e9, 0.1715e9))
    rate = costs.typical("download.fetch")
    assert rate is not None
    assert fetched.cpu_h == pytest.approx(0.245e9 * rate.seconds_per_row / 3600)
    assert fetched.bytes == pytest.approx(0.1715e9 * 24_000)
    assert lines["shard.write"].rows == pytest.approx(0.1715e9 * 0.95 * 0.95)
    assert found.cpu_h == pytest.approx(sum(line.cpu_h or 0 for line in found.lines))
    assert found.unknown == ()


def test_a_larger_share_or_slower_stage_of_a_run_counts_from_there_on() -> None:
    loaded = recipe.load("metaclip")
    known = {
        "filter.metadata_balance": Known(share=0.5),
        "score.phash": Known(seconds_per_row=1.0),
    }
    plain, other = estimate.estimate(loaded, 1e9), estimate.estimate(loaded, 1e9, known=known)
    assert lines_of(other)["download.fetch"].rows == 2 * lines_of(plain)["download.fetch"].rows
    phash = lines_of(other)["score.phash"]
    assert (phash.cpu_h, phash.source) == (pytest.approx(phash.rows / 3600), "measured")
    assert lines_of(other)["score.metadata_match"] == lines_of(plain)["score.metadata_match"]


def test_a_share_that_is_an_option_is_not_what_a_run_found() -> None:
    loaded = recipe.load("datacomp_clip_score")
    known = {"filter.top_fraction": Known(share=0.9)}
    plain, other = estimate.estimate(loaded, 1e9), estimate.estimate(loaded, 1e9, known=known)
    (line,) = (one for one in plain.lines if one.name == "filter.top_fraction")
    assert 0 < line.kept < 0.9 * line.rows
    assert lines_of(other)["filter.top_fraction"] == line


def test_every_shipped_recipe_has_an_estimate_with_nothing_left_out() -> None:
    names = sorted(path.stem for path in Path(recipe.__file__).parent.glob("recipes/*.toml"))
    found = {name: estimate.estimate(recipe.load(name), 1e9) for name in names}
    assert {name for name, one in found.items() if one.unknown} == {"demo_curated"}  # asks a model
    assert found["demo_curated"].unknown == ("caption.llm_rewrite",)
    assert {name for name, one in found.items() if not one.lines and not one.train_gpu_h} == set()
    text = estimate.table(list(found.values()), Prices())
    assert len(text) == 2 + len(names)
    assert len({line.count("|") for line in text}) == 1


def test_a_score_by_a_large_model_is_arithmetic_on_the_gpu() -> None:
    line = lines_of(estimate.estimate(recipe.load("datacomp_clip_score"), 1e9))["score.clip_score"]
    # 162 GFLOP of ViT-L/14's picture and 13 of its text, at 40 % of 989 TFLOP/s
    assert line.gpu_h == pytest.approx(line.rows * 175e9 / (0.4 * 989e12) / 3600, rel=0.03)
    assert line.cpu_h == 0.0
    faster = estimate.estimate(recipe.load("datacomp_clip_score"), 1e9, gpu="b200")
    assert faster.gpu_h < line.gpu_h
    with pytest.raises(RecipeError, match="--gpu"):
        estimate.estimate(recipe.load("datacomp_clip_score"), 1e9, gpu="abacus")


def test_training_costs_the_same_as_the_plan_says() -> None:
    found = estimate.estimate(recipe.load("clip_b32"), 1e9)
    assert found.lines == ()
    assert found.train_samples == 12_800_000_000
    # 59 GFLOP a pair with accumulation's second forward: the recipe's own header
    assert found.train_gpu_h == pytest.approx(12.8e9 * 59e9 / (0.4 * 989e12) / 3600, rel=0.03)
    prices = Prices(gpu_hour=2.0)
    assert found.dollars(prices) == {
        "curation": 0.0, "storage": 0.0, "training": pytest.approx(2 * found.train_gpu_h),
    }  # fmt: skip


def test_a_pool_tells_what_its_stages_took_and_let_through(
    curate_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = curate_recipe(SOURCE, STAGES)
    curation.run(plan_curation(made), LocalRunner(), Quiet())
    monkeypatch.setattr(costs, "LEAST_S", 0.0)
    known = estimate.known_of_pool(made.curate.pool)
    rows = json.loads(Path(made.curate.shards, "manifest.json").read_text())["stages"]
    for stage in rows:
        name = stage["use"]
        assert known[name].share == pytest.approx(stage["kept"] / stage["rows_in"])
        assert (known[name].seconds_per_row or 0.0) * stage["rows_in"] == pytest.approx(
            stage["seconds"]
        )
    path = str(tmp_path / "rates.json")
    estimate.write_known(path, known)
    assert estimate.read_known(path) == known
    with pytest.raises(RecipeError, match="no stage has ended"):
        estimate.known_of_pool(str(tmp_path))
    (tmp_path / "rates.json").write_text('{"score.phash": {"second": 1}}')
    with pytest.raises(RecipeError, match="no rates"):
        estimate.read_known(path)


def test_words_say_what_is_not_counted() -> None:
    found = estimate.estimate(recipe.load("demo_curated"), 1e6)
    text = "\n".join(estimate.words(found, Prices(months=12)))
    assert "caption.llm_rewrite" in text
    assert "not known CPU-h" in text
    assert "caption.llm_rewrite not counted" in text
    assert "for 12 months of storage" in text


def test_the_page_has_what_the_command_prints() -> None:
    page = (Path(recipe.__file__).parent.parent / "docs" / "scale.md").read_text()
    found = [
        estimate.estimate(recipe.load(name), 1e9)
        for name in ("clip_l14", "metaclip", "url_list", "text_only")
    ]
    for line in estimate.table(found, Prices()):
        assert f"\n{line}\n" in page
