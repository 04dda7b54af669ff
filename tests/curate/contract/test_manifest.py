"""Fingerprints: the same for equal content, different for any change, stable for ever."""

from __future__ import annotations

import json

from curate.contract.manifest import Manifest, fingerprint, package_versions


def test_key_order_does_not_count_and_values_do() -> None:
    assert fingerprint("use", 1, {"a": 1, "b": 2}) == fingerprint("use", 1, {"b": 2, "a": 1})
    assert (
        fingerprint("use", 1, {"a": 1})
        != fingerprint("use", 2, {"a": 1})
        != fingerprint("use", 2, {"a": 1.5})
    )


def test_known_value_never_changes() -> None:
    assert (
        fingerprint("score.x", 1, {"a": [1, "é"]}, [])
        == "b89e53afa971f12c5a20c7c26452d0cf37b164eef0f7f4fd3c3246b9c9e58294"
    )


def test_manifest_is_json_with_everything_in_it() -> None:
    manifest = Manifest(
        use="filter.x", fingerprint="f", version=1, options={"t": 5}, seed=0, input_fingerprints=["g"], input_files_sha256={"e.txt": "00"},
        rows_in=3, kept=1, refused={"balanced": 2}, seconds=0.5, parts=1,
    )  # fmt: skip
    read = json.loads(manifest.to_json())
    assert read["refused"] == {"balanced": 2}
    assert read["packages"] == package_versions()
    assert "numpy" in read["packages"]
