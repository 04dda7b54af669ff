"""Plots: inline SVG that loads nothing, follows the page's colours and is the same every time."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from pipelines.report import plots

LONG = [(float(step), 1.0 / (step + 1)) for step in range(50)]


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("xlink:href", "href"))


@pytest.fixture(scope="module")
def both() -> tuple[str, str]:
    return plots.training_curve(
        "loss", "loss & more", [LONG, LONG[:2], []], log_y=True
    ), plots.entry_curve(LONG[1:], LONG[1:9])


def test_well_formed_and_self_contained(both: tuple[str, str]) -> None:
    for svg in both:
        root = parsed(svg)
        assert root.tag == "svg"
        assert root.get("viewBox")
        assert root.get("width") is None
        assert not re.search(r"http|xmlns|<\?xml|<metadata|<style|<script|DOCTYPE", svg)
        assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', svg))


def test_ids_are_there_for_every_use_and_unique_over_the_page(both: tuple[str, str]) -> None:
    ids = re.findall(r'\bid="([^"]*)"', "".join(both))
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', "".join(both))) <= {
        (i, "") for i in ids
    } | {("", i) for i in ids}


def test_every_colour_is_a_variable_of_the_page(both: tuple[str, str]) -> None:
    for svg in both:
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
        assert {"var(--ink)", "var(--line)", "var(--series-0)", "var(--series-1)"} <= set(
            re.findall(r"var\([^)]*\)", svg)
        )


def test_the_same_numbers_give_the_same_bytes_and_global_settings_stay(
    both: tuple[str, str],
) -> None:
    before = dict(mpl.rcParams)
    assert plots.training_curve("loss", "loss & more", [LONG, LONG[:2], []], log_y=True) == both[0]
    assert (
        plots.training_curve("loss", "loss & more", [LONG[1:], LONG[:2], []], log_y=True) != both[0]
    )
    assert dict(mpl.rcParams) == before


def test_one_point_is_seen() -> None:
    svg = plots.training_curve("loss", "loss", [[(1.0, 2.0)]])
    assert re.search(r"<use [^>]*var\(--series-0\)", svg)


def test_a_legend_tells_any_number_of_runs_apart() -> None:
    legend = plots.legend([f"run {number}" for number in range(14)])
    assert legend[0] == ("run 0", "var(--series-0)", "solid")
    assert len({look for _, *look in map(tuple, legend) for look in [tuple(look)]}) == 14
