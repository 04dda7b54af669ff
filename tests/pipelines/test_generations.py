"""Which failures a pattern means, and what a stage was asked again for."""

from __future__ import annotations

import pytest

from pipelines.generations import Retry, asked_since, generation, is_meant, kind_of, noted

USE = "download.fetch"


@pytest.mark.parametrize(
    ("reason", "pattern", "meant"),
    [
        ("error.download.fetch.http.503", "http.5xx", True),
        ("error.download.fetch.http.503", "http.503", True),
        ("error.download.fetch.http.503", "http", True),
        ("error.download.fetch.http.404", "http.5xx", False),
        ("error.download.fetch.timeout.total", "timeout", True),
        ("error.download.fetch.timeout.total", "timeout.connect", False),
        ("error.download.fetch.timeouts", "timeout", False),
        ("error.download.fetch.dns", "error.download.fetch.dns", True),
        ("error.download.fetch.http.502", "error.download.fetch.http.5xx", True),
        ("error.download.fetch.dns", "error.caption.llm_rewrite.dns", False),
        ("error.download.fetch.timeout.connect", "transient", True),
        ("error.download.fetch.http.404", "transient", False),
        ("error.tiny.dead", "tiny.dead", True),
        ("error.tiny.dead", "error.tiny.dead", True),
        ("near_duplicate.image", "near_duplicate", False),
    ],
)
def test_what_a_pattern_means(reason: str, pattern: str, meant: bool) -> None:
    assert is_meant(USE, reason, ["no_such_kind", pattern]) == meant


def test_a_kind_is_the_end_of_a_reason() -> None:
    assert kind_of(USE, "error.download.fetch.http.404") == "http.404"
    assert kind_of("mylab:Get", "error.mylab:Get.KeyError") == "KeyError"
    assert kind_of(USE, "error.tiny.dead") == "tiny.dead"


def test_generations_are_counted_by_stage() -> None:
    described = {
        "retries": [
            {"kinds": ["timeout"], "rows": 2, "before": {USE: {}, "caption.x": {}}},
            {"kinds": ["http.404", "timeout"], "rows": 1, "before": {USE: {}}},
        ]
    }
    retries = noted(described, "a")
    assert retries[1] == Retry(("http.404", "timeout"), (USE,))
    assert [generation(retries, name) for name in (USE, "caption.x", "score.phash")] == [2, 1, 0]
    assert asked_since(retries, USE, 0) == ("timeout", "http.404")
    assert asked_since(retries, USE, 1) == ("http.404", "timeout")
    assert asked_since(retries, USE, 2) == ()
    assert asked_since(retries, "score.phash", 0) == ()
    assert noted(None, "a") == noted({}, "a") == ()


def test_another_recipe_s_retries_do_not_count() -> None:
    entries = [
        {"recipe": name, "kinds": [kind], "rows": 1, "before": {USE: {}}}
        for name, kind in (("a", "dns"), ("b", "http.404"), ("a", "timeout"))
    ]
    assert [retry.kinds for retry in noted({"retries": entries}, "a")] == [("dns",), ("timeout",)]
    assert [retry.kinds for retry in noted({"retries": entries}, "b")] == [("http.404",)]
    assert noted({"retries": entries}, "c") == ()
