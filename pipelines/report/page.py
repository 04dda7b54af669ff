"""A Report as one HTML file: no script, nothing loaded from elsewhere, every foreign text escaped.

Captions, URLs and class names come from the open web. Jinja2's autoescape is on for all of them,
and the page's own Content-Security-Policy would stop what slipped through.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from curate.contract import storage
from pipelines.report import plots, thumbs
from pipelines.report.content import KEPT, Download, Report, Thumb

_CURVES = (  # key of metrics.jsonl, title, log scale
    ("loss", "loss", False),
    ("logit_scale", "logit scale", False),
    ("lr", "learning rate", False),
    ("samples_per_s", "samples per second", False),
    ("data_wait_frac", "share of time waiting for data", False),
)


@dataclass
class _Evaluation:
    name: str
    counts: str = ""  # such as "960 pictures, 24 classes"; "960 / 958" where runs differ
    rows: list[tuple[str, list[str]]] = field(default_factory=list)  # (figure, value in each run)


@dataclass(frozen=True)
class _Shown:
    thumb: Thumb
    uri: str | None
    repeats: _Shown | None


@dataclass(frozen=True)
class _Fetched:
    """A download with what the page works out of it."""

    told: Download
    came: int
    cpu_ms: float  # of one picture, all kinds of work together
    largest: str  # the kind of work that took most
    placeholders: list[_Shown]


@dataclass(frozen=True)
class _Gallery:
    name: str
    anchor: str
    count: int | None
    shown: list[_Shown]


def write_report(path: str, report: Report) -> None:
    """Commit the page under ``path``, a local file or fsspec URL."""
    storage.write_text(path, render(report))


def render(report: Report) -> str:
    """The whole page. The same report gives the same text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(os.path.dirname(os.path.abspath(__file__))),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=_count,
        of=_of,
        percent=_percent,
        share=_share,
        words=_words,
        cut=_cut,
        bytes=_bytes,
        kind=_kind,
        stage=_stage,
    )
    galleries = _galleries(report)
    entries = report.entries
    return environment.get_template("template.html").render(
        report=report,
        rows_in=_rows_in(report),
        faults_reached=any(row.reached is not None for row in report.faults),
        evaluations=_evaluations(report),
        legend=plots.legend(list(report.curves)),
        curves=[Markup(svg) for svg in _training_curves(report)],
        entry_legend=plots.legend(["before balancing", "after balancing"]),
        entry_curve=Markup(plots.entry_curve(entries.before, entries.after)) if entries else "",
        downloads=[_fetched(download) for download in report.downloads],
        galleries=galleries,
        anchors={gallery.name: gallery.anchor for gallery in galleries},
    )


def _fetched(download: Download) -> _Fetched:
    costs = download.costs.cpu if download.costs is not None else ()
    largest = max(costs, key=lambda cost: cost.cpu_ms, default=None)
    return _Fetched(
        download,
        sum(row.rows for row in download.outcomes if not row.reason),
        sum(cost.cpu_ms for cost in costs),
        largest.name if largest is not None else "",
        [_shown(one.thumb) for one in download.placeholders],
    )


def _rows_in(report: Report) -> int:
    if report.totals:
        return report.totals.rows_in
    return report.funnel[0].rows_in if report.funnel else 0


def _evaluations(report: Report) -> list[_Evaluation]:
    """The evaluations in order, shares in rows and counts in a line above them."""
    from pretrain.evaluate import table

    found: dict[str, _Evaluation] = {}
    for name, figure, values in table.rows(report.evaluations):
        group = found.setdefault(name, _Evaluation(name))
        shown = [table.shown(figure, value) for value in values]
        if figure.startswith("n_"):
            known = dict.fromkeys(text for text, value in zip(shown, values) if value is not None)
            group.counts += f"{', ' if group.counts else ''}{' / '.join(known)} {_words(figure)}"
        else:
            group.rows.append((figure, shown))
    return list(found.values())


def _training_curves(report: Report) -> list[str]:
    """One plot for each measure that any run has, all runs in it."""
    found = []
    for key, title, log_y in _CURVES:
        runs = [_series(lines, key) for lines in report.curves.values()]
        if any(runs):
            found.append(plots.training_curve(key, title, runs, log_y))
    return found


def _series(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    points = [(line.get("samples_seen"), line.get(key)) for line in lines if "eval" not in line]
    return [(float(x), float(y)) for x, y in points if _finite(x) and _finite(y)]


def _finite(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _galleries(report: Report) -> list[_Gallery]:
    """Kept first, then the reasons by how many rows they refused."""
    reasons = report.totals.reasons if report.totals else {}
    counts = {**reasons, **({KEPT: report.totals.kept} if report.totals else {})}
    order = sorted(report.thumbnails, key=lambda name: (name != KEPT, -counts.get(name, 0), name))
    return [
        _Gallery(
            name,
            f"samples-{number}",
            counts.get(name),
            [_shown(thumb) for thumb in report.thumbnails[name]],
        )
        for number, name in enumerate(order)
        if report.thumbnails[name]
    ]


def _shown(thumb: Thumb) -> _Shown:
    repeats = _shown(thumb.repeats) if thumb.repeats is not None else None
    return _Shown(thumb, thumbs.data_uri(thumb.image), repeats)


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def _of(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _percent(part: float, whole: float) -> str:
    """A CSS width: 0 to 100."""
    return f"{min(100.0, 100 * part / whole):.2f}" if whole else "0"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _stage(name: str) -> str:
    """A stage's use: a second one of the same in a recipe is named ``use#2``."""
    return name.partition("#")[0]


def _kind(reason: str, name: str) -> str:
    """The end of ``error.<stage>.<kind>``; any other reason as it is."""
    return reason.removeprefix(f"error.{_stage(name)}.")


def _bytes(number: float) -> str:
    """``1.5 GB``: at most four digits, decimal units."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:,.0f} {unit}" if unit == "bytes" or number >= 100 else f"{number:.1f} {unit}"


def _words(figure: str) -> str:
    """``image_to_text_r1`` as ``image to text R@1``, ``n_bad`` as ``bad``, ``top1`` as ``top-1``."""
    words = figure.removeprefix("n_").replace("top", "top-").split("_")
    return " ".join(
        f"R@{word[1:]}" if word[:1] == "r" and word[1:].isdigit() else word for word in words
    )


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"
