"""Downloading beside img2dataset: CPU and wall per picture, whole commands, and a web that fails and hangs.

    python tests/bench/download.py [--count 600] [--rounds 3] [--only http https command web]

One run, one server in a process of its own, the same list for all; contenders take turns, each in a fresh
process. Pictures are photographs of 800 to 2000 px (`tests/bench/corpus.py`), brought to 256 px on the short
side, JPEG q95, tar. On a busy machine trust the ratios (medians of the rounds), not the seconds.

http, https   CPU and wall after start-up, of img2dataset's Downloader on one shard (64 threads) and of
              download.fetch with the tar writer
command       `img2dataset` and `clip-pipe curate --local` as a user starts them: wall, CPU, most memory
web           3 parts, median latency 80 ms, 4 % 404, 2 % hangs, 128 at once, the same time-out
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.bench import corpus
from tests.bench.contenders import children_of, cpu_s, tree_pss_bytes
from tests.bench.web import Site, answer, served, web_like

ROOT = Path(__file__).resolve().parent.parent.parent
_SAMPLE_S = 0.25
_ORACLE = "img2dataset"
_STAGE = (_ORACLE, "img2dataset, one SSLContext", "clip-pipe fast", "clip-pipe exact")
_WEB = ("img2dataset", "clip-pipe fast", "clip-pipe fast, 2 decoders")
_COSTS = (
    "fetch_cpu_s",
    "tls_wall_s",
    "decode_cpu_s",
    "resize_cpu_s",
    "encode_cpu_s",
    "decoder_cpu_s",
    "tar_cpu_s",
)
Measured = dict[str, Any]


@dataclass
class Table:
    """Measured figures by contender, one entry per round."""

    title: str
    goals: dict[str, float]  # figure -> how many times less than img2dataset
    found: dict[str, list[Measured]] = field(default_factory=dict)

    def add(self, name: str, measured: Measured) -> None:
        self.found.setdefault(name, []).append(measured)
        print(f"  {name}: {_figures(measured)}", file=sys.stderr, flush=True)

    def show(self, count: int) -> None:
        print(f"\n{self.title}")
        print(
            f"{'':32s}{'ms CPU/picture':>15s}{'pictures/s':>12s}{'PSS MB':>8s}{'ok':>7s}   times less: CPU, wall, memory"
        )
        for name, rounds in self.found.items():
            cpu_ms, rate, pss, ok = (
                statistics.median(one.get(key, 0) for one in map(_per_picture(count), rounds))
                for key in ("cpu_ms", "rate", "pss_mb", "ok")
            )
            ratios = (
                ""
                if name == _ORACLE
                else ", ".join(
                    f"{self.ratio(name, key):.2f}" for key in ("cpu_s", "wall_s", "pss_bytes")
                )
            )
            print(f"{name:32s}{cpu_ms:15.2f}{rate:12.1f}{pss:8.0f}{ok:7.0f}   {ratios}")
            costs = rounds[-1].get("costs")
            if costs:
                line = ", ".join(
                    f"{key.removesuffix('_s')} {1000 * costs.get(key, 0.0) / count:.2f}"
                    for key in _COSTS
                )
                print(
                    f"{'':4s}ms per picture: {line}; connections {costs.get('connections', 0):.0f}, tls {costs.get('tls_handshakes', 0):.0f}"
                )
        for key, goal in self.goals.items():
            ours = [name for name in self.found if name.startswith("clip-pipe fast")]
            if _ORACLE in self.found and ours:
                print(
                    f"goal: {key.split('_')[0]} {goal} times less; found {self.ratio(ours[0], key):.2f}"
                )

    def ratio(self, name: str, key: str) -> float:
        """How many times less than img2dataset: the median over rounds, each with its own neighbour."""
        pairs = zip(self.found.get(_ORACLE, []), self.found[name])
        ratios = [theirs[key] / ours[key] for theirs, ours in pairs if ours.get(key)]
        return statistics.median(ratios) if ratios else float("nan")


def _per_picture(count: int) -> Callable[[Measured], dict[str, float]]:
    return lambda one: {
        "cpu_ms": 1000 * one["cpu_s"] / count,
        "rate": count / one["wall_s"],
        "pss_mb": one["pss_bytes"] / 1e6,
        "ok": one["ok"],
    }


def _figures(one: Measured) -> str:
    return f"{one['wall_s']:.1f} s wall, {one['cpu_s']:.1f} s CPU, {one['pss_bytes'] / 1e6:.0f} MB, {one['ok']} ok"


def watched(command: list[str], environment: dict[str, str], log: Path) -> tuple[str, Measured]:
    """Run a command to its end: what it printed, wall and CPU seconds of its tree, most memory at once."""
    began_s, most_bytes, out = time.monotonic(), 0, log.with_suffix(".out")
    spent_s: dict[int, float] = {}
    with out.open("w") as stdout, log.open("w") as stderr:
        process = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, cwd=ROOT, env={**os.environ, **environment}
        )
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            most_bytes = max(most_bytes, tree_pss_bytes(process.pid))
            for one in (process.pid, *children_of(process.pid)):
                spent_s[one] = max(spent_s.get(one, 0.0), cpu_s(one))
            time.sleep(_SAMPLE_S)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}\nended with {process.returncode}: {log.read_text()[-3000:]}")
    return out.read_text(), {
        "wall_s": time.monotonic() - began_s,
        # A child that outlived its parent is in no parent's account, one that was short in no sample.
        "cpu_s": max(usage.ru_utime + usage.ru_stime, sum(spent_s.values())),
        "pss_bytes": most_bytes,
    }


def environment_of(site: Site) -> dict[str, str]:
    return {
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "WANDB_MODE": "disabled",
        "SSL_CERT_FILE": site.ca_file,
    }


def stage_once(
    name: str, site: Site, parts: list[list[str]], warm: list[str], concurrency: int, folder: Path
) -> Measured:
    """One contender of `contenders.py`, start-up not counted."""
    out = Path(tempfile.mkdtemp(dir=folder))
    job = {
        "parts": parts,
        "warm": warm,
        "out": str(out),
        "hosts": site.hosts,
        "timeout_s": 10,
        "concurrency": concurrency,
    }
    (out / "job.json").write_text(json.dumps(job))
    command = [sys.executable, str(ROOT / "tests/bench/contenders.py"), name, str(out / "job.json")]
    told, whole = watched(command, environment_of(site), out / "log")
    return {**whole, **json.loads(told.splitlines()[-1])}


def measure_stage(
    scheme: str, site: Site, count: int, rounds: int, names: tuple[str, ...], folder: Path
) -> Table:
    fresh = sys.version_info >= (3, 12)
    goal = 2.2 if scheme == "http" else (2.0 if fresh else 6.0)
    table = Table(f"{scheme}, {count} pictures, after start-up, 64 at once", {"cpu_s": goal})
    for _ in range(rounds):
        for name in names:
            urls = [site.url(number, scheme) for number in range(count + 32)]
            table.add(name, stage_once(name, site, [urls[:count]], urls[count:], 64, folder))
    return table


def measure_web(site: Site, count: int, rounds: int, folder: Path) -> Table:
    table = Table(
        f"3 x {count} URLs, 80 ms latency, 4 % 404, 2 % hangs, 128 at once, time-out 10 s",
        {"wall_s": 2.0},
    )
    urls = [site.url(number) for number in range(3 * count)]
    parts = [urls[start : start + count] for start in range(0, len(urls), count)]
    for _ in range(rounds):
        for name in _WEB:
            table.add(name, stage_once(name, site, parts, [], 128, folder))
    return table


_RECIPE = """
name = "bench"
[curate]
pool = "{out}/pool"
shards = "{out}/shards"
max_error_frac = 0.9
[curate.source]
use = "source.url_table"
path = "{list}"
rows_per_part = 1000
[[curate.stage]]
use = "download.fetch"
allow_hosts = {hosts}
decode_processes = {decoders}
quality = "{quality}"
{more}
[curate.shard]
samples_per_shard = 1000
"""


def img2dataset_command(out: Path, table: Path) -> list[str]:
    options = {
        "url_list": table, "input_format": "parquet", "url_col": "url", "caption_col": "caption",
        "output_folder": out / "shards", "output_format": "webdataset", "processes_count": 1, "thread_count": 64,
        "image_size": 256, "resize_mode": "keep_ratio", "encode_quality": 95, "number_sample_per_shard": 1000,
        "extract_exif": False, "enable_wandb": False, "timeout": 10,
    }  # fmt: skip
    return [
        str(Path(sys.executable).parent / "img2dataset"),
        *(f"--{key}={value}" for key, value in options.items()),
    ]


def clip_pipe_command(
    out: Path, table: Path, site: Site, decoders: int, quality: str, more: str = ""
) -> list[str]:
    recipe = out / "bench.toml"
    recipe.write_text(
        _RECIPE.format(
            out=out,
            list=table,
            hosts=json.dumps(site.hosts),
            decoders=decoders,
            quality=quality,
            more=more,
        )
    )
    return [sys.executable, str(ROOT / "cli.py"), "curate", str(recipe), "--local"]


def measure_command(site: Site, count: int, rounds: int, folder: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = Table(
        f"whole commands with start-up, {count} pictures over HTTP",
        {"wall_s": 2.5, "pss_bytes": 4.0},
    )
    listed = folder / "list.parquet"
    urls = [site.url(number) for number in range(count)]
    pq.write_table(
        pa.table({"url": urls, "caption": [f"a picture at {url}" for url in urls]}), listed
    )
    contenders: dict[str, Callable[[Path], list[str]]] = {
        _ORACLE: lambda out: img2dataset_command(out, listed),
        "clip-pipe fast": lambda out: clip_pipe_command(out, listed, site, 1, "fast"),
        "clip-pipe fast, 2 decoders": lambda out: clip_pipe_command(out, listed, site, 2, "fast"),
        "clip-pipe exact": lambda out: clip_pipe_command(out, listed, site, 1, "exact"),
    }
    for _ in range(rounds):
        for name, command in contenders.items():
            out = Path(tempfile.mkdtemp(dir=folder))
            _, measured = watched(command(out), environment_of(site), out / "log")
            table.add(name, {**measured, "ok": packed(out / "shards")})
    return table


def packed(shards: Path) -> int:
    """Pictures in the tars of a folder."""
    import tarfile

    count = 0
    for path in shards.glob("*.tar"):
        with tarfile.open(path) as tar:
            count += sum(name.endswith(".jpg") for name in tar.getnames())
    return count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=600, help="pictures of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--distinct", type=int, default=200, help="different pictures; a body may have several URLs"
    )
    parser.add_argument(
        "--hosts", type=int, default=20, help="loopback addresses the URLs are spread over"
    )
    parser.add_argument(
        "--web-count", type=int, default=1000, help="URLs of each of the three parts of `web`"
    )
    parser.add_argument(
        "--contenders", nargs="*", default=_STAGE, help="of the http and https tables"
    )
    parser.add_argument("--only", nargs="*", default=["http", "https", "command", "web"])
    arguments = parser.parse_args()
    pictures = corpus.shared_folder()
    bodies = corpus.make(pictures, arguments.distinct, 0)
    mean_kb = sum(map(len, bodies)) / len(bodies) / 1000
    print(
        f"{len(bodies)} {'photographs' if pictures else 'rendered textures'}, mean {mean_kb:.0f} KB; Python {sys.version.split()[0]}"
    )
    count, rounds, names = arguments.count, arguments.rounds, tuple(arguments.contenders)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good = [answer("200 OK", body, Content_Type="image/jpeg") for body in bodies]
        good *= 1 + (max(count, 1) + 32) // len(good)
        with served(good, arguments.hosts, tls="https" in arguments.only) as site:
            for scheme in ("http", "https"):
                if scheme in arguments.only:
                    measure_stage(scheme, site, count, rounds, names, folder).show(count)
            if "command" in arguments.only:
                measure_command(site, count, rounds, folder).show(count)
        if "web" in arguments.only:
            answers = web_like(
                bodies, 3 * arguments.web_count, latency_s=0.08, gone=0.04, hangs=0.02
            )
            with served(answers, arguments.hosts) as site:
                measure_web(site, arguments.web_count, rounds, folder).show(3 * arguments.web_count)


if __name__ == "__main__":
    main()
