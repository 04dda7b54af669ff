"""What a recipe takes for so many pairs, on paper: CPU-hours, GPU-hours, bytes, money. Nothing is read but the recipe.

Seconds a row are those of ``costs`` (typical, or as given: measured by a run of the user's own), arithmetic on a
GPU is ``pretrain/loop/flops.py``'s, and what each stage lets through is an assumption that can be replaced by what
a run of the user's own found. A stage of which nothing is known is named and left out of the sums.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from curate.contract import storage
from pipelines import components, costs, training_plan
from pipelines.components import Component
from pipelines.errors import RecipeError
from pipelines.recipe import Recipe

_HOUR_S = 3600.0
_PAIRS = "shard.write: list of pairs"  # what a recipe without pictures ends with
_BRING_PICTURES = ("source.image_tars", "source.folder")
_PAIR_DUPLICATES = "filter.duplicate_pair"
# Bytes of a fetched picture by the longest or shortest side it is made: LAION-400M is 10 TB at 256 px
# (img2dataset's page of that set), CommonPool 450 TB for 12.8 thousand million at 512 px (arXiv 2304.14108).
_PICTURE_BYTES = {256: 24_000, 512: 35_000}
_TAR_BYTES = 4_000  # headers, padding, caption and JSON of a sample
_ROW_BYTES = (
    190  # uid, url and caption of a row of the pool, compressed; measured, see docs/scale.md
)
_SIDECAR_BYTES = 36  # uid and decision of a row in one sidecar: the uid is not compressed

# What a stage lets through: (share of its rows, where the figure is from).
SHARES: dict[str, tuple[float, str]] = {
    "filter.duplicate_pair": (0.98, "assumed"),
    "filter.metadata_balance": (0.25, "400 M of 1.6 thousand million pairs, arXiv 2309.16671"),
    "download.fetch": (0.7, "assumed, of a list some years old"),
    "filter.duplicate_image": (0.95, "assumed"),
    "filter.near_duplicate": (0.95, "assumed"),
    "filter.threshold:text_area_frac": (0.8, "assumed"),
    "filter.threshold:language": (0.5, "assumed"),
    "filter.threshold:caption_words": (0.9, "assumed"),
    "filter.threshold:caption_chars": (0.98, "assumed"),
    "filter.threshold:min_side_px": (0.8, "assumed"),
    "filter.threshold:aspect_ratio": (0.95, "assumed"),
}


@dataclass(frozen=True)
class Prices:
    """US dollars. Defaults: see docs/scale.md for where each is from."""

    cpu_hour: float = 0.045
    gpu_hour: float = 4.0
    tb_month: float = 23.0
    months: float = 1.0


@dataclass(frozen=True)
class Known:
    """What a run found of one stage: seconds of one core a row, share of rows let through, bytes a row."""

    seconds_per_row: float | None = None
    share: float | None = None
    bytes_per_row: float | None = None


@dataclass(frozen=True)
class Line:
    """One stage: its rows, hours (None: nobody knows), bytes that stay, and where the figures are from."""

    name: str
    rows: float
    kept: float
    cpu_h: float | None = 0.0
    gpu_h: float = 0.0
    bytes: float = 0.0
    source: str = ""
    share_source: str = ""


@dataclass(frozen=True)
class Estimate:
    """A recipe's stages in order, and its training."""

    recipe: str
    rows: float
    lines: tuple[Line, ...]
    gpu: str
    train_samples: int = 0
    train_gpu_h: float | None = None
    unknown: tuple[str, ...] = field(default=())

    @property
    def cpu_h(self) -> float:
        return sum(line.cpu_h or 0.0 for line in self.lines)

    @property
    def gpu_h(self) -> float:
        return sum(line.gpu_h for line in self.lines)

    @property
    def bytes(self) -> float:
        return sum(line.bytes for line in self.lines)

    def dollars(self, prices: Prices) -> dict[str, float]:
        """Of curation's hours, of keeping its bytes, and of the training."""
        return {
            "curation": self.cpu_h * prices.cpu_hour + self.gpu_h * prices.gpu_hour,
            "storage": self.bytes / 1e12 * prices.tb_month * prices.months,
            "training": (self.train_gpu_h or 0.0) * prices.gpu_hour,
        }


def estimate(
    recipe: Recipe, rows: float, gpu: str = "h200", known: Mapping[str, Known] | None = None
) -> Estimate:
    """The paper estimate of a recipe for ``rows`` pairs of its source.

    ``known``: what runs found, by ``key()``. Raises RecipeError for a GPU that is not known.
    """
    lines = tuple(_curation(recipe, rows, gpu, known or {})) if recipe.curate else ()
    unknown = tuple(line.name for line in lines if line.cpu_h is None)
    if recipe.train is None:
        return Estimate(recipe.name, rows, lines, gpu, unknown=unknown)
    samples = sum(phase.samples for phase in recipe.train.phase)
    seconds = training_plan.gpu_seconds(recipe.train, gpu)
    hours = None if seconds is None else seconds / _HOUR_S
    return Estimate(recipe.name, rows, lines, gpu, samples, hours, unknown)


def key(use: str, options: Mapping[str, Any]) -> str:
    """What a stage's figures are known under: its component, with the column that a threshold is of."""
    return f"{use}:{options['column']}" if use == "filter.threshold" else use


def _curation(recipe: Recipe, total: float, gpu: str, known: Mapping[str, Known]) -> Iterator[Line]:
    """The source, each stage over the rows that are left (its sidecar has all of them), and the shards."""
    assert recipe.curate is not None
    stages = list(recipe.curate.stage)
    if all(stage.use != _PAIR_DUPLICATES for stage in stages):
        stages.insert(0, Component(_PAIR_DUPLICATES, {}, "curate"))
    yield _line("source", recipe.curate.source, recipe, total, total * _ROW_BYTES, gpu, known)
    rows, picture = total, 0.0
    for stage in stages:
        line = _line("stage", stage, recipe, rows, total * _SIDECAR_BYTES, gpu, known)
        if stage.use == "download.fetch":
            picture = _picture_bytes(stage, recipe)
            own = known.get("download.fetch", Known()).bytes_per_row
            line = replace(line, bytes=line.kept * picture if own is None else line.bytes)
        yield line
        rows = line.kept
    has_pictures = picture or recipe.curate.source.use in _BRING_PICTURES
    size = (picture or _PICTURE_BYTES[256]) + _TAR_BYTES if has_pictures else _ROW_BYTES
    line = _line("shard", recipe.curate.shard, recipe, rows, rows * size, gpu, known)
    if not has_pictures:
        seconds, source = _seconds_per_row(_PAIRS, known.get(_PAIRS, Known()))
        hours = None if seconds is None else rows * seconds / _HOUR_S
        line = replace(line, name=_PAIRS, cpu_h=hours, source=source)
    yield line


def _line(
    kind: str,
    component: Component,
    recipe: Recipe,
    rows: float,
    size_bytes: float,
    gpu: str,
    known: Mapping[str, Known],
) -> Line:
    options = components.resolve_options(kind, component, recipe.seed)
    name = key(component.use, options)
    found = known.get(name, Known())
    if "fraction" in options and component.use == "filter.top_fraction":
        share, share_source = float(options["fraction"]), "the option"
    else:
        share, share_source = SHARES.get(name, (1.0, ""))
    if found.share is not None and share_source != "the option":
        share, share_source = found.share, "measured"
    if found.bytes_per_row is not None:
        size_bytes = rows * found.bytes_per_row
    seconds, source = _seconds_per_row(component.use, found)
    gpu_s = 0.0
    if component.use == "score.clip_score" and found.seconds_per_row is None:
        model_s = training_plan.score_seconds(str(options["model"]), gpu)
        if model_s is not None:
            seconds, gpu_s, source = 0.0, model_s, "arithmetic"
    return Line(
        name, rows, rows * share,
        None if seconds is None else rows * seconds / _HOUR_S,
        rows * gpu_s / _HOUR_S, size_bytes, source, share_source,
    )  # fmt: skip


def _seconds_per_row(use: str, found: Known) -> tuple[float | None, str]:
    if found.seconds_per_row is not None:
        return found.seconds_per_row, "measured"
    rate = costs.typical(use)
    return (None, "not known") if rate is None else (rate.seconds_per_row, "typical")


def _picture_bytes(stage: Component, recipe: Recipe) -> float:
    side = int(components.resolve_options("stage", stage, recipe.seed)["image_size"])
    near = min(_PICTURE_BYTES, key=lambda known: abs(known - side))
    return _PICTURE_BYTES[near] * (side / near) ** 2


def known_of_pool(root: str) -> dict[str, Known]:
    """What the newest run of each stage found in a pool: from the manifests under POOL/columns. RecipeError: none."""
    newest: dict[str, tuple[str, Known]] = {}
    for path in storage.glob(storage.join(root, "columns", "*", "manifest.json")):
        manifest = storage.read_json(path, "pool")
        rows, seconds = int(manifest["rows_in"]), float(manifest["seconds"])
        if not rows:
            continue
        name = key(manifest["use"], manifest["options"])
        # A stage that only took values over has cost nothing; that is no rate.
        rate = seconds / rows if seconds >= costs.LEAST_S else None
        entry = (storage.modified(path), Known(rate, int(manifest["kept"]) / rows, None))
        newest[name] = max(newest.get(name, ("", Known())), entry, key=lambda one: one[0])
    if not newest:
        raise RecipeError(
            root, "no stage has ended in this pool", "run `clip-pipe curate` on a sample first"
        )
    return {name: found for name, (_, found) in newest.items()}


def read_known(path: str) -> dict[str, Known]:
    """What ``write_known`` wrote, or a person by hand. Raises RecipeError."""
    try:
        found = storage.read_json(path, "rates")
        return {name: Known(**entry) for name, entry in found.items()}
    except (ValueError, TypeError) as fault:
        raise RecipeError(
            path,
            f"no rates: {fault}",
            'as in {"score.phash": {"seconds_per_row": 0.0007, "share": 1.0}}',
        ) from fault


def write_known(path: str, known: Mapping[str, Known]) -> None:
    told = {name: dataclasses.asdict(found) for name, found in sorted(known.items())}
    storage.write_text(path, json.dumps(told, indent=1) + "\n")


def words(found: Estimate, prices: Prices) -> list[str]:
    """The estimate as lines of text."""
    lines = [f"{found.recipe}: {found.rows:,.0f} pairs"]
    for line in found.lines:
        hours = "not known" if line.cpu_h is None else _hours(line.cpu_h)
        share = f"{line.kept / line.rows:.0%} {line.share_source}" if line.share_source else ""
        lines.append(
            f"  {line.name:32s} {line.rows:15,.0f} rows {hours:>12s} CPU-h {_hours(line.gpu_h):>9s} GPU-h "
            f"{costs.size(line.bytes):>9s}  {line.source:10s} {share}"
        )
    dollars = found.dollars(prices)
    if found.lines:
        left = f"; {', '.join(found.unknown)} not counted" if found.unknown else ""
        lines.append(
            f"  curation {found.cpu_h:,.0f} CPU-h, {found.gpu_h:,.0f} GPU-h, {costs.size(found.bytes)} kept: "
            f"${dollars['curation']:,.0f}, and ${dollars['storage']:,.0f} for {_months(prices)} of storage{left}"
        )
    if found.train_gpu_h is not None:
        lines.append(
            f"  training {found.train_samples:,} samples: {found.train_gpu_h:,.0f} {found.gpu.upper()}-hours, ${dollars['training']:,.0f}"
        )
    return lines


def _months(prices: Prices) -> str:
    return "a month" if prices.months == 1 else f"{prices.months:g} months"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 or not hours else f"{hours:,.1f}"


def table(found: Sequence[Estimate], prices: Prices) -> list[str]:
    """A line of Markdown for each recipe."""
    lines = [
        f"| recipe | CPU-hours | GPU-hours | kept | curation | storage for {_months(prices)} | samples trained on | {found[0].gpu.upper()}-hours | training |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        dollars = one.dollars(prices)
        mark = " + ?" if one.unknown else ""
        cells = ["", "", "", "", ""]
        if one.lines:
            cells = [f"{_hours(one.cpu_h)}{mark}", _hours(one.gpu_h), costs.size(one.bytes), f"${dollars['curation']:,.0f}{mark}", f"${dollars['storage']:,.0f}"]  # fmt: skip
        cells += ["", "", ""]
        if one.train_gpu_h is not None:
            cells[5:] = [f"{one.train_samples / 1e6:,.6g} M", _hours(one.train_gpu_h), f"${dollars['training']:,.0f}"]  # fmt: skip
        lines.append(f"| {one.recipe} | {' | '.join(cells)} |")
    return lines
