"""Fingerprints and manifests: what made a folder, in enough detail to make it again.

A fingerprint is sha256 over (use, version, options, content of input files, fingerprints of what
is read). It is folder name, cache key and resume rule in one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA_VERSION = 2  # 2: parts have manifests of their own, see done.py
_PACKAGES = (
    "clip-pipe",
    "img2dataset",
    "numpy",
    "onnxruntime",
    "pyarrow",
    "rapidocr",
    "ray",
    "torch",
    "open_clip_torch",
    "webdataset",
)


def fingerprint(*things: Any) -> str:
    """sha256, in hex, of the canonical JSON of ``things`` (keys sorted, no spaces)."""
    text = json.dumps(
        things, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str
    )
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def package_versions() -> dict[str, str]:
    """Installed versions of what shapes the output, without importing any of it."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True)
class Manifest:
    """One stage's record: what it was given, with what, and what came of the rows."""

    use: str
    fingerprint: str
    version: int
    options: dict[str, Any]
    seed: int
    input_fingerprints: list[str]
    input_files_sha256: dict[str, str]
    rows_in: int
    kept: int
    refused: dict[str, int]
    seconds: float
    parts: int
    costs: dict[str, float] = field(default_factory=dict)  # sums over the parts, see RowStage.costs
    packages: dict[str, str] = field(default_factory=package_versions)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
