"""What became of the URLs of a download: by reason, by host, in processor time, and which may come on another try.

Read part by part from the stage's sidecars with the pool's rows beside them. What is held does not grow with
the pool: counts per reason, one example of each, and a bounded number of hosts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curate.contract.parts import Pool
from curate.download import outcomes
from pipelines import generations
from pipelines.report import asked, fetch_costs, options, placeholders
from pipelines.report.content import Download, HostRow, Hosts, OutcomeRow
from pipelines.report.tally import Tally

_NEEDED = ("status", "error_message", "keep", "reason")
_SHOWN_HOSTS = 20
_TEXT_CHARACTERS = 500
# After the scheme and a user name: up to a port, path, query or end.
_HOST = r"^\s*[A-Za-z][A-Za-z0-9+.-]*:[/\\]{2}(?:[^/\\?#]*@)?(?P<host>\[[^\]/\\?#]*\]|[^/\\?#:\s]+)"


def found(pool: Pool, manifest: Mapping[str, Any]) -> list[Download]:
    """One section for each stage of the run that fetched pictures; ``manifest``: of the shards."""
    made = set(manifest.get("images", []))
    downloads = []
    for stage in manifest["stages"]:
        columns = asked.columns(pool, stage) if stage["fingerprint"] in made else []
        if set(_NEEDED) <= set(columns):
            downloads.append(_download(pool, stage, columns))
    return [download for download in downloads if download.rows]


def host_of(urls: pa.Array) -> pa.Array:
    """The host's name in each URL, lower-case, without user name and port; "" where there is none."""
    host = pc.struct_field(pc.extract_regex(pc.cast(urls, pa.string()), _HOST), "host")
    return pc.utf8_lower(pc.fill_null(host, ""))


@dataclass
class _Seen:
    """What the parts so far hold."""

    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # "" for rows that came
    examples: dict[str, tuple[str, str]] = field(default_factory=dict)  # reason -> message, url
    hosts: Tally = field(default_factory=Tally)

    def add(self, rows: pa.Table) -> None:
        self.rows += len(rows)
        for entry in pc.value_counts(rows["reason"]).to_pylist():
            self.reasons[entry["values"]] += entry["counts"]
            if entry["values"] not in self.examples:
                self.examples[entry["values"]] = _example(rows, entry["values"])
        self.hosts.add(host_of(rows["url"]).combine_chunks(), rows["reason"].combine_chunks())


def _download(pool: Pool, stage: Mapping[str, Any], columns: Sequence[str]) -> Download:
    use = options.use_of(stage)
    hashed = "sha256" in columns
    seen, pictures = _Seen(), Tally()
    for _, rows in asked.rows(pool, stage, [*_NEEDED[1:], *(["sha256"] if hashed else [])]):
        seen.add(rows)
        if hashed:
            placeholders.count(rows, pictures)
    prefix = f"error.{use}."
    rows = sorted(seen.reasons.items(), key=lambda item: (-item[1], item[0]))
    kinds = {reason: reason.removeprefix(prefix) for reason, _ in rows if reason.startswith(prefix)}
    transient = (generations.TRANSIENT,)
    again = sum(n for reason, n in rows if generations.is_meant(use, reason, transient))
    return Download(
        stage["use"],
        seen.rows,
        [
            OutcomeRow(reason, n, meaning(kinds.get(reason, "")), *seen.examples[reason])
            for reason, n in rows
        ],
        _hosts(seen.hosts),
        again,
        fetch_costs.found(pool, stage),
        placeholders.found(pool, stage, pictures) if hashed else [],
    )


def meaning(kind: str) -> str:
    """What `curate.download.outcomes` says of a kind, or of its family; "" for one it does not know."""
    family = kind.partition(".")[0] + "."
    return outcomes.KINDS.get(kind) or outcomes.KINDS.get(family, "")


def _example(rows: pa.Table, reason: str) -> tuple[str, str]:
    """error_message and url of the first row with a reason; nothing to show of those that came."""
    if not reason:
        return "", ""
    first = pc.index(rows["reason"], reason).as_py()
    message, url = rows["error_message"][first].as_py(), rows["url"][first].as_py()
    return (message or "")[:_TEXT_CHARACTERS], (url or "")[:_TEXT_CHARACTERS]


def _hosts(tally: Tally) -> Hosts:
    counts = tally.counts()
    came = pc.equal(counts["value"], "")
    counts = counts.append_column("ok", pc.if_else(came, counts["rows"], 0))
    by_host = counts.group_by("key", use_threads=False).aggregate([("rows", "sum"), ("ok", "sum")])
    by_host = by_host.append_column("failed", pc.subtract(by_host["rows_sum"], by_host["ok_sum"]))
    failures = counts.filter(pc.invert(came))

    def top(column: str) -> list[HostRow]:
        order = by_host.sort_by([(column, "descending"), ("key", "ascending")])
        rows = order.slice(0, _SHOWN_HOSTS).to_pylist()
        return [_host(row, failures) for row in rows if row[column]]

    failed = top("failed") if len(by_host) > _SHOWN_HOSTS else []
    return Hosts(top("rows_sum"), failed, len(by_host), tally.dropped_rows, tally.uncertain)


def _host(row: Mapping[str, Any], failures: pa.Table) -> HostRow:
    own = failures.filter(pc.equal(failures["key"], row["key"])).to_pylist()
    worst = min(own, key=lambda entry: (-entry["rows"], entry["value"]), default=None)
    reason, rows = (worst["value"], worst["rows"]) if worst is not None else ("", 0)
    return HostRow(row["key"], row["rows_sum"], row["ok_sum"], reason, rows)
