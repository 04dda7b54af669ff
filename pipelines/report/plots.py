"""Plots as inline SVG that follows the page's colours, the same bytes for the same numbers.

matplotlib draws with stand-in colours that are then replaced by CSS variables, so that one figure
serves light and dark pages. Dates, namespaces and document headers are left out.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Series = Sequence[tuple[float, float]]

# Stand-in -> CSS variable. The stand-ins are colours that nobody would choose.
_INK, _FAINT, _PAPER = "#010203", "#040506", "#070809"
_SERIES = ("#0a0b0c", "#0d0e0f", "#101112", "#131415", "#161718", "#191a1b")
_VARIABLES = {_INK: "--ink", _FAINT: "--line", _PAPER: "--paper"} | {
    colour: f"--series-{number}" for number, colour in enumerate(_SERIES)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10.0,
    "axes.titleweight": "normal",
    "axes.titlelocation": "left",
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "text.color": _INK,
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
}


def entry_curve(before: Series, after: Series) -> str:
    """Rows per entry against the entry's rank, both on log scales, before and after balancing."""
    with _figure("entries", "rows per entry, before and after", 6.4, 2.8) as (axes, result):
        for number, points in enumerate((before, after)):
            _line(axes, points, number)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("entries, most frequent first")
        axes.set_ylabel("rows")
    return result[0]


def training_curve(key: str, title: str, runs: Sequence[Series], log_y: bool = False) -> str:
    """One measure against samples seen, a line for each run in the order given."""
    with _figure(f"train-{key}", title, 3.5, 2.3) as (axes, result):
        for number, points in enumerate(runs):
            _line(axes, points, number)
        if log_y:
            axes.set_yscale("log")
        axes.set_title(title)
        axes.set_xlabel("samples seen")
        axes.xaxis.set_major_formatter(_short_number())
    return result[0]


def legend(names: Sequence[str]) -> list[tuple[str, str, str]]:
    """(name, CSS colour, CSS line style) of each series, as the plots draw them."""
    looks = ("solid", "dashed", "dotted")
    return [
        (name, f"var(--series-{i % len(_SERIES)})", looks[i // len(_SERIES) % len(looks)])
        for i, name in enumerate(names)
    ]


def _line(axes: Any, points: Series, number: int) -> None:
    if not points:
        return
    x, y = zip(*points)
    axes.plot(
        x,
        y,
        ("-", "--", ":")[number // len(_SERIES) % 3],
        color=_SERIES[number % len(_SERIES)],
        linewidth=1.6,
        marker="o" if len(points) < 3 else None,  # a line needs two points to be seen
        markersize=4,
    )


def _short_number() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")


@contextmanager
def _figure(
    name: str, title: str, width_in: float, height_in: float
) -> Iterator[tuple[Any, list[str]]]:
    """(axes to draw on, list that gets the SVG when the block ends). Touches no global state."""
    from matplotlib import style
    from matplotlib.figure import Figure

    result: list[str] = []
    # "default" first: the same bytes whatever matplotlibrc the machine has.
    with style.context(["default", {**_STYLE, "svg.hashsalt": f"clip-pipe-{name}"}]):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        yield figure.subplots(), result
        out = io.StringIO()
        figure.savefig(
            out,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    result.append(_for_page(out.getvalue(), title))


def _for_page(svg: str, title: str) -> str:
    """The <svg> element alone: no headers, metadata or namespaces, colours as CSS variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]*; ", "", svg)  # the page's own
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # figure_1, axes_1 ... would repeat on the page
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None, "matplotlib writes a viewBox"
    start = f'<svg viewBox="{box[1]}" role="img" aria-label="{html.escape(title)}">'
    svg = start + svg[svg.index(">") + 1 :]
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
