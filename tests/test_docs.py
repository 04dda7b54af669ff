"""What the docs list is what there is: kinds of refusal, options of the download, img2dataset's options."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest

from curate.download.fetch import Fetch
from curate.download.outcomes import KINDS, is_transient, is_tried_at_once, matches
from curate.source.tables import FORMATS
from pretrain.loop.meter import TIMED
from pretrain.loop.settings import Phase, TrainSettings

ROOT = Path(__file__).resolve().parent.parent
DOWNLOAD = (ROOT / "docs" / "download.md").read_text()


def rows_below(head: str) -> list[list[str]]:
    """Cells of the table whose header begins so."""
    lines = DOWNLOAD[DOWNLOAD.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_kind_of_refusal_is_listed_with_its_meaning() -> None:
    listed = {kind.strip("`"): meaning for kind, meaning, _ in rows_below("| kind |")}
    assert listed == {kind if kind != "http." else "http.CODE": KINDS[kind] for kind in KINDS}


def test_the_kinds_that_may_pass_are_marked() -> None:
    for kind, _, again in rows_below("| kind |"):
        name = kind.strip("`")
        wanted = "yes" if is_tried_at_once(name) else "later" if is_transient(name) else ""
        wanted = "some" if name == "http.CODE" else wanted
        assert again == wanted, name
    codes = re.search(r"Of `http\.CODE`, (.*) may pass", DOWNLOAD)
    assert codes is not None
    told = re.findall(r"\dxx|\d{3}", codes[1])
    for code in range(400, 600):
        may_pass = any(matches(f"http.{code}", f"http.{entry}") for entry in told)
        assert may_pass == is_transient(f"http.{code}"), code


@pytest.mark.parametrize("option", [item.name for item in dataclasses.fields(Fetch)])
def test_every_option_of_the_download_is_named(option: str) -> None:
    assert re.search(rf"`{option}\b", DOWNLOAD)


def test_options_that_change_no_output_are_named_together() -> None:
    told = re.search(r"Options that decide only how fast.*?\((.*?)\)", DOWNLOAD, re.DOTALL)
    assert told is not None
    tuning = {item.name for item in dataclasses.fields(Fetch) if item.metadata.get("tuning")}
    assert set(re.findall(r"`(\w+)`", told[1])) == tuning


def test_every_option_of_img2dataset_has_a_row() -> None:
    package = importlib.util.find_spec("img2dataset")  # not imported: that takes seconds
    if package is None or not package.submodule_search_locations:
        pytest.skip("img2dataset is not installed")
    tree = ast.parse((Path(package.submodule_search_locations[0]) / "main.py").read_text())
    function = next(
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "download"
    )
    theirs = {argument.arg for argument in function.args.args}
    listed = {
        name for row in rows_below("| img2dataset |") for name in re.findall(r"`(\w+)`", row[0])
    }
    assert listed == theirs


def test_every_format_of_a_table_is_named() -> None:
    row = next(row for row in rows_below("| img2dataset |") if "input_format" in row[0])
    assert all(name in row[1] for name in FORMATS)


@pytest.mark.parametrize("kind", [TrainSettings, Phase])
def test_every_setting_of_training_is_named(kind: type) -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    told = set(re.findall(r"`(\w+)`", text[text.index("## Settings") :]))
    assert {item.name for item in dataclasses.fields(kind)} - {"phase"} <= told


def test_every_figure_that_is_measured_has_its_meaning() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    assert {*TIMED, "loss", "bad_samples"} <= set(re.findall(r"`(\w+)`", text))
