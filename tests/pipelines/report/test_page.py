"""The page: valid, self-contained, hostile texts escaped, sections only where there is something."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipelines.report.content import (
    KEPT,
    Balance,
    BalanceGroup,
    Cost,
    Costs,
    Download,
    EntryBalance,
    EntryRow,
    FaultRow,
    FunnelRow,
    HostRow,
    Hosts,
    OutcomeRow,
    Placeholder,
    Report,
    Thumb,
    Totals,
)
from pipelines.report.page import render, write_report
from tests.tiny import eval_sets
from tests.tiny.finished_run import HOSTILE

VOID = {"meta", "img", "br", "hr", "input", "link"}
FULL = Report(
    title=f"title {HOSTILE}",
    summary=f"summary {HOSTILE}",
    funnel=[FunnelRow("a-0000", f"use {HOSTILE}", 1000, 600, {f"reason {HOSTILE}": 400}, 1.25, f"options {HOSTILE}"), FunnelRow("b-0000", "b", 600, 600)],
    totals=Totals(1000, 600, 1000, {f"reason {HOSTILE}": 400}),
    faults=[FaultRow(f"fault {HOSTILE}", 10, 9, 0.9, 0.81, reached=10), FaultRow("nobody looks", 3, None, None, None)],
    faults_note=f"note {HOSTILE}",
    entries=EntryBalance([EntryRow(f"entry {HOSTILE}", 90, 20)], [EntryRow("rare", 1, 1)], [(1, 90), (2, 1)], [(1, 20), (2, 1)], 1234, 1200),
    balance=Balance("filter.metadata_balance", [BalanceGroup(f"group {HOSTILE}", 20, 3, 300, 40, 100)], 1, 580, 600.25, 12.5),
    downloads=[Download(
        f"fetch {HOSTILE}", 200,
        [OutcomeRow("", 150), OutcomeRow(f"reason {HOSTILE}", 50, f"meaning {HOSTILE}", f"message {HOSTILE}", f"http://evil.example/?{HOSTILE}")],
        Hosts([HostRow(f"host {HOSTILE}", 120, 90, f"reason {HOSTILE}", 30)], [HostRow("", 80, 60, f"error.fetch {HOSTILE}.never.shown", 20)], 22),
        again=7,
        costs=Costs(150, [Cost("fetch", 0.25), Cost(f"decode {HOSTILE}", 0.75)], 200, 12, 3, 41.6, 1_500_000_000),
        placeholders=[Placeholder(Thumb("u5", eval_sets.square("red"), "", note=f"url {HOSTILE}"), 1500, 1234, True)],
    )],
    thumbnails={
        f"reason {HOSTILE}": [Thumb("u2", b"\xff\xd8\xff bad", f"{HOSTILE}" + "x" * 100_000, note="http://evil.example/", repeats=Thumb("u9", eval_sets.square("blue"), f"stays {HOSTILE}"), item=f"item {HOSTILE}")],
        KEPT: [Thumb('u1"', eval_sets.square("red"), HOSTILE, [HOSTILE, "second"], HOSTILE), Thumb("u3", None, "")],
        "empty": [],
    },
    curves={f"run {HOSTILE}": [{"samples_seen": 1, "loss": 2.0}, {"samples_seen": 2, "loss": float("nan")}, {"samples_seen": 3, "loss": 1}], "second": []},
    evaluations={f"run {HOSTILE}": {f"set {HOSTILE}": {"top1": 0.123, "image_to_text_r10": 1.0, "n_bad": 2}}},
    notes=[f"note {HOSTILE}"],
    provenance={f"name {HOSTILE}": HOSTILE},
)  # fmt: skip


class Checked(HTMLParser):
    """Collects tags, attributes and text; asserts that elements are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data


@pytest.fixture(scope="module")
def page() -> str:
    return render(FULL)


@pytest.fixture(scope="module")
def checked(page: str) -> Checked:
    return Checked(page)


def test_hostile_text_stays_text_everywhere(page: str, checked: Checked) -> None:
    assert "<script" not in page
    assert "script" not in checked.tags
    for place in (
        "title",
        "summary",
        "use",
        "reason",
        "fault",
        "note",
        "entry",
        "run",
        "options",
        "stays",
        "item",
        "group",
        "set",
        "name",
    ):
        assert f"{place} {HOSTILE}" in checked.words, place
    assert not [name for _, name, _ in checked.attributes if name.startswith("on")]


def test_nothing_is_loaded_from_elsewhere(page: str, checked: Checked) -> None:
    loads = [
        (tag, name, value)
        for tag, name, value in checked.attributes
        if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
    ]
    assert [load for load in loads if load[0] == "img"]
    assert all(value.startswith(("data:image/webp;base64,", "#")) for _, _, value in loads)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(checked.tags)
    assert not re.search(r"@import|url\((?!#)", page)
    policy = next(
        value
        for tag, name, value in checked.attributes
        if tag == "meta" and name == "content" and "default-src" in value
    )
    assert "default-src 'none'" in policy


def test_links_inside_the_page_arrive(checked: Checked) -> None:
    ids = [value for _, name, value in checked.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {
        value[1:] for tag, name, value in checked.attributes if tag == "a" and name == "href"
    }
    assert targets
    assert targets <= set(ids)


def test_figures_are_shown(checked: Checked) -> None:
    words = re.sub(r"\s+", " ", checked.words)
    for expected in (
        "rows in1,000",
        "kept600 60.0 %",
        "refused400 40.0 %",
        "R@10",
        "12.3 %",
        "90.0 %",
        "81.0 %",
        "1,234 entries",
        "2 more captions",
        "not a picture",
        "no caption",
    ):
        assert expected in words, expected
    assert "top-1" in words
    assert words.index(KEPT + " ·") < words.index(f"reason {HOSTILE} ·")


def test_the_threshold_and_what_it_was_expected_to_keep(checked: Checked) -> None:
    words = re.sub(r"\s+", " ", checked.words)
    assert "add up to 600 rows, give or take 12 (a standard deviation)" in words
    assert "filter.metadata_balance kept 580" in words
    assert "203300" in words  # t, then entries and matches of the head
    assert "40100 25.0 %" in words
    plain = Balance("b", [BalanceGroup("", 7, 1, 9, 0, 0)], 1, 7)
    words = Checked(render(Report(title="t", balance=plain))).words
    assert "group" not in words
    assert "chances" not in words


def test_a_download_is_told(checked: Checked) -> None:
    words = re.sub(r"\s+", " ", checked.words)
    for expected in (
        "was given 200 rows: 150 came (75.0 %), 50 did not. 7 of these may come on another try: clip-pipe curate RECIPE --retry transient.",
        f"5025.0 %meaning {HOSTILE}message {HOSTILE}http://evil.example/?{HOSTILE}",
        f"1.00 ms of one core for each of 150 bodies that came; the largest share: decode {HOSTILE}.",
        "200 attempts, retries and redirects among them, over 12 connections; 1.5 GB came",
        "TLS alone3 handshakes; on the clock 42 ms each, 0.83 ms per picture, waiting included.",
        "libcurl does both in one thread.in fetch",
        "most rowsrows",
        "0.75075.0 %",
        f"host {HOSTILE}1209030reason {HOSTILE} 30",
        "(no host)806020never.shown 20",
        f"1,234 or more URLs, 1,500 rowsurl {HOSTILE}",
    ):
        assert re.sub(r"\s+", "", expected) in re.sub(r"\s+", "", words), expected
    assert "22 hosts." in words


def test_few_hosts_are_one_table_and_plain_http_has_no_tls() -> None:
    costs = Costs(1, [Cost("fetch", 1.0)], 1, 1, 0, 0.0, 9)
    told = Download("f", 1, [OutcomeRow("", 1)], Hosts([HostRow("a", 1, 1)], [], 1), costs=costs)
    words = Checked(render(Report(title="t", downloads=[told]))).words
    assert "hostrows" in re.sub(r"\s+", "", words)
    for absent in ("most rows", "most failures", "TLS alone"):
        assert absent not in words, absent


def test_a_download_with_nothing_more_to_tell() -> None:
    hosts = Hosts([HostRow("a", 1, 1)], [], 300, 1000, 12)
    told = Download("f", 1, [OutcomeRow("", 1)], hosts)
    words = re.sub(r"\s+", " ", Checked(render(Report(title="t", downloads=[told, told]))).words)
    assert "Download · f" in words
    assert (
        "1,000 rows of rare ones are left out, and a host here may have up to 12 rows more" in words
    )
    for absent in ("another try", "Processor time", "most failures", "under many URLs"):
        assert absent not in words, absent


def test_a_copy_stands_beside_the_row_that_stays(checked: Checked) -> None:
    pairs = [value for _, name, value in checked.attributes if (name, value) == ("class", "pair")]
    assert len(pairs) == 1
    roles = [value for _, name, value in checked.attributes if (name, value) == ("class", "role")]
    assert len(roles) == 2
    words = checked.words
    start = words.index("the row that stays")
    assert words.rindex("refused", 0, start) < words.index(f"item {HOSTILE}") < start
    assert start < words.index(f"stays {HOSTILE}", start)


def test_counts_that_differ_between_runs_are_all_told() -> None:
    runs = {
        "raw": {"z": {"top1": 0.5, "n_pictures": 960, "n_bad": 0}},
        "curated": {"z": {"top1": 0.25, "n_pictures": 958}, "y": {"top1": 1.0}},
    }
    words = re.sub(r"\s+", " ", Checked(render(Report(title="t", evaluations=runs))).words)
    assert "z 960 / 958 pictures, 0 bad" in words
    assert "top-150.0 %25.0 %" in words
    assert "top-1–100.0 %" in words


def test_a_megabyte_of_caption_is_cut(page: str) -> None:
    assert len(page) < 200_000
    assert "…" in page


def test_a_difference_between_ledger_and_rows_is_told(checked: Checked) -> None:
    assert "differs from rows in" not in checked.words
    assert (
        "differs from rows in" in Checked(render(Report(title="t", totals=Totals(10, 5, 9)))).words
    )


def test_an_empty_report_has_no_sections() -> None:
    checked = Checked(render(Report(title="nothing yet")))
    assert checked.tags.count("h1") == 1
    assert not {"h2", "table", "svg", "img"} & set(checked.tags)


def test_the_same_report_is_the_same_page(page: str) -> None:
    assert render(FULL) == page


def test_the_page_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(str(path), Report(title="é"))
    assert path.read_text(encoding="utf-8") == render(Report(title="é"))
