"""Processor time per picture of a download, by kind of work, from the sums in its stage's manifests.

A stage adds up its `costs` as it runs. A retry, or another threshold above it, takes over what earlier runs of
the pool fetched with the same options, so their sums count as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from curate.contract import storage
from curate.contract.parts import Pool, stage_folder
from pipelines.report import options
from pipelines.report.content import Cost, Costs


def found(pool: Pool, stage: Mapping[str, Any]) -> Costs | None:
    """None where nothing was noted: no picture was fetched, or not by an engine that takes notes."""
    sums: Counter[str] = Counter()
    for folder in _folders(pool, stage):
        path = storage.join(folder, "manifest.json")
        if storage.exists(path):
            sums.update(storage.read_json(path, "pool").get("costs") or {})
    return of_sums(sums)


def _folders(pool: Pool, stage: Mapping[str, Any]) -> list[str]:
    """The stage's own sidecar folder, and those of earlier runs that measured the same."""
    own = pool.columns_folder(options.use_of(stage), stage["fingerprint"])
    measure = _measure(own)
    if measure is None:
        return [own]
    start = stage_folder(options.use_of(stage), "")
    found = storage.listed(storage.join(pool.root, "columns"))
    alike = [folder for folder in found if folder.rsplit("/", 1)[-1].startswith(start)]
    return [folder for folder in alike if _measure(folder) == measure]


def _measure(folder: str) -> str | None:
    path = storage.join(folder, "measure.json")
    return storage.read_json(path, "pool").get("measure") if storage.exists(path) else None


def of_sums(sums: Mapping[str, float]) -> Costs | None:
    """Sums over all pictures as figures of one."""
    pictures = int(sums.get("pictures", 0))
    if not pictures:
        return None

    def cost(name: str, seconds: float) -> Cost:
        return Cost(name, 1000.0 * max(seconds, 0.0) / pictures)

    told = ("decode", "resize", "encode")
    inner = {name: sums.get(f"{name}_cpu_s", 0.0) for name in told}
    around = sums.get("decoder_cpu_s", 0.0) - sum(inner.values())
    handshakes = int(sums.get("tls_handshakes", 0))
    return Costs(
        pictures,
        [
            cost("fetch, TLS included", sums.get("fetch_cpu_s", 0.0)),
            *(cost(name, seconds) for name, seconds in inner.items()),
            cost("decoding processes: start, pipes, checks", around),
            cost("tar", sums.get("tar_cpu_s", 0.0)),
        ],
        int(sums.get("requests", 0)),  # begun; the engine counts them before they leave
        int(sums.get("connections", 0)),
        handshakes,
        1000.0 * sums.get("tls_wall_s", 0.0) / handshakes if handshakes else 0.0,
        int(sums.get("wire_bytes", 0)),
    )
