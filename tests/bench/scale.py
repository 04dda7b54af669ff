"""The paper estimate of recipes: CPU-hours, GPU-hours, bytes and money for so many pairs; and the rates it stands on.

    python tests/bench/scale.py [RECIPE ...] [--rows 1e9] [--gpu h200] [--rates rates.json] [--pool POOL]
        [--cpu-hour 0.045] [--gpu-hour 4] [--tb-month 23] [--months 1] [--stages]
    python tests/bench/scale.py --measure rates.json [--rows 200000] [--pictures 5000]

Without a name, all shipped recipes that curate or train. Rates are those of pipelines/costs.py; ``--rates`` takes
others from a file, ``--pool`` those (and the shares of rows that went on) that a run of yours found in its pool.
``--measure`` runs small pools of made captions and pictures through the real pipeline in this process and writes
what each stage took: CPU-seconds of its worker functions for global stages, the source and the shards, and of
row stages, which share one function, that function's CPU-seconds divided as their own clocks say.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np

from curate.contract import parts
from curate.stage import RowStage
from pipelines import curation, estimate, fused, global_step, part, recipe, sharding
from pipelines.components import Component
from pipelines.estimate import Known, Prices
from pipelines.plan import CurationPlan, plan_curation
from pipelines.progress import Progress
from pipelines.recipe import CuratePlan, Recipe
from tests.bench.runner import TimedRunner, write_entries, write_source

_RECIPES = Path(__file__).resolve().parent.parent.parent / "pipelines" / "recipes"
_TEXT_STAGES = ("score.language", "score.caption_shape")
_SLOW = (Component("score.text_regions", {}, "text regions"),)
_QUICK = (
    *(Component(use, {}, use) for use in ("filter.duplicate_image", "score.phash", "filter.near_duplicate")),
    Component("score.picture_shape", {"of": "stored"}, "shape"),
)  # fmt: skip


class Timed(TimedRunner):
    """By stage: each worker function, or its own name where several stages share it."""

    def named(
        self, function: Callable[..., Any], plan: CurationPlan, calls: Sequence[tuple[Any, ...]]
    ) -> str:
        if function.__module__ == global_step.__name__:
            return plan.stages[calls[0][0]].name
        if function.__module__ == sharding.__name__:
            return plan.shard.name
        if function is part.ingest:
            return plan.source.name
        if function is fused.run_span:
            return " + ".join(plan.stages[index].name for index in calls[0][0])
        return function.__name__


def measured(plan: CurationPlan) -> dict[str, Known]:
    """CPU-seconds and bytes a row of every stage of a plan, and the share of its rows that went on."""
    for planned in plan.stages:  # models: once for each worker, whatever its rows
        if isinstance(planned.stage, RowStage):
            fused.opened(planned)
    runner = Timed()
    manifest = curation.run(plan, runner, Progress()).manifest
    count = sum(1 for _ in Path(plan.pool_root, "rows").glob("*.parquet"))
    found: dict[str, Known] = {}
    told = {}
    for planned in (plan.source, *plan.stages):
        stats = [parts.read_stats(part.sidecar(plan, planned, number)) for number in range(count)]
        told[planned.name] = (
            sum(s["rows_in"] for s in stats), sum(s["kept"] for s in stats), sum(s["seconds"] for s in stats),
        )  # fmt: skip
    for name, cpu_s in runner.seconds.items():
        if name == plan.shard.name:
            found[name] = Known(cpu_s / max(manifest["kept"], 1))
            continue
        names = name.split(" + ")
        whole_s = sum(told[one][2] for one in names) or 1.0
        for one in names:
            rows, kept, seconds = told[one]
            own_s = cpu_s * (seconds / whole_s if len(names) > 1 else 1.0)
            planned = next(p for p in (plan.source, *plan.stages) if p.name == one)
            found[estimate.key(planned.use, planned.options)] = Known(
                own_s / max(rows, 1), kept / max(rows, 1)
            )
    return found


def write_tar(path: Path, count: int) -> None:
    """Smooth pictures of 256 px with noise, and short captions."""
    from PIL import Image

    rng = np.random.default_rng(2)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC), np.int16)
            pixels = np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG", quality=85)
            for name, data in (("jpg", file.getvalue()), ("txt", f"picture {number}".encode())):
                entry = tarfile.TarInfo(f"{number:06d}.{name}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def _plan(folder: Path, name: str, source: Component, stages: Sequence[Component]) -> CurationPlan:
    curate = CuratePlan(
        pool=str(folder / f"{name}-pool"), shards=str(folder / f"{name}-shards"), source=source,
        stage=tuple(stages), shard=Component("shard.write", {}, "curate.shard"), max_error_frac=0.5,
    )  # fmt: skip
    return plan_curation(Recipe(name=name, path=name, paper="", seed=0, curate=curate, train=None, evaluate=()))  # fmt: skip


def measure(path: str, rows: int, pictures: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        entries = write_entries(folder / "entries.txt", 300_000)
        write_source(folder / "rows.parquet", rows, entries)
        text = [
            Component("score.metadata_match", {"entries": str(folder / "entries.txt")}, "match"),
            *(Component(use, {}, use) for use in _TEXT_STAGES),
            Component("filter.threshold", {"column": "caption_words", "at_least": 1}, "threshold"),
            Component("filter.top_fraction", {"column": "caption_chars", "fraction": 0.9}, "top"),
            Component("filter.metadata_balance", {"t": max(rows // 10_000, 1)}, "balance"),
        ]
        source = {"path": str(folder / "rows.parquet"), "rows_per_part": 100_000}
        plan = _plan(folder, "text", Component("source.url_table", source, "source"), text)
        known = measured(plan)
        known["shard.write: list of pairs"] = known.pop("shard.write")
        # Few pictures for the slow stage, and enough for the quick ones.
        for name, count, seen in (
            ("few", max(pictures // 25, 1), _SLOW),
            ("many", pictures, _QUICK),
        ):
            write_tar(folder / f"{name}.tar", count)
            tars = Component("source.image_tars", {"path": str(folder / f"{name}.tar")}, "source")
            known = known | measured(_plan(folder, name, tars, seen))
    for name, one in sorted(known.items()):
        assert one.seconds_per_row is not None
        print(f"{name:34s} {one.seconds_per_row * 1e6:12.2f} CPU-us/row  {1 / max(one.seconds_per_row, 1e-9):14,.0f} rows/CPU-s")  # fmt: skip
    # Shares of made rows say nothing of others.
    estimate.write_known(path, {name: Known(one.seconds_per_row) for name, one in known.items()})


def shipped() -> list[str]:
    return sorted(path.stem for path in _RECIPES.glob("*.toml") if not path.stem.startswith("demo"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="*")
    parser.add_argument("--rows", type=float, default=None)
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--rates", default="")
    parser.add_argument("--pool", default="")
    for name, value in (("cpu-hour", Prices.cpu_hour), ("gpu-hour", Prices.gpu_hour), ("tb-month", Prices.tb_month), ("months", Prices.months)):  # fmt: skip
        parser.add_argument(f"--{name}", type=float, default=value)
    parser.add_argument("--stages", action="store_true", help="tell of every stage")
    parser.add_argument("--measure", default="", metavar="RATES")
    parser.add_argument("--pictures", type=int, default=5000)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure, int(given.rows or 200_000), given.pictures)
        return
    prices = Prices(given.cpu_hour, given.gpu_hour, given.tb_month, given.months)
    known = estimate.read_known(given.rates) if given.rates else {}
    known |= estimate.known_of_pool(given.pool) if given.pool else {}
    found = [
        estimate.estimate(recipe.load(name), given.rows or 1e9, given.gpu, known)
        for name in given.recipe or shipped()
    ]
    print("\n".join(estimate.table(found, prices)))
    if given.stages:
        print("\n".join(line for one in found for line in ["", *estimate.words(one, prices)]))


if __name__ == "__main__":
    main()
