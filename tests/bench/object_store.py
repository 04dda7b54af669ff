"""Reading and writing shards on an object store, beside the raw clients' best.

    python tests/bench/object_store.py [--mb 64] [--rounds 5] [--samples 4000] [--url s3://bucket/folder]

Without ``--url`` a moto server is started on loopback in a process of its own. It is one Python process:
its figures compare clients, and are no store's. Contenders take turns; goals compare the best rounds, which
a busy machine disturbs least. CPU is the client's own, for each 100 MB.

obstore get              one request for the whole file, into memory
obstore get, to disk     the same, into a file that is not synced
pyarrow                  ``open_input_file().read()`` of pyarrow.fs
boto3                    ``get_object()["Body"].read()``, where boto3 is installed
clip-pipe, read          ``storage.open_shard().read()``
clip-pipe, straight on   the same file in reads of 64 KiB
clip-pipe, fetch         ``storage.fetch``: ranges in parallel to a file on disk, synced: what the trainer does
trainer's stream         ``TarSet`` over the shards with an empty cache: every sample once, tar bytes per second
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from curate.contract import object_login, shards, storage, tars
from tests.tiny import object_server

GOAL = 0.8
TO_DISK = "obstore get, to disk"
SHARDS = 4
_AHEAD = 64  # samples between two looks ahead


def raw_reads(url: str, folder: str) -> dict[str, Callable[[], int]]:
    """Each of the raw clients' way to have a whole file in memory."""
    _, bucket, key = object_login.split(url)
    store = object_login.store(url)

    def to_disk() -> int:
        with open(f"{folder}/raw", "wb") as file:
            for chunk in store.get(key).stream(min_chunk_size=4 << 20):
                file.write(chunk)
            return file.tell()

    found: dict[str, Callable[[], int]] = {
        "obstore get": lambda: len(store.get(key).bytes()),
        TO_DISK: to_disk,
    }
    from pyarrow import fs

    address = os.environ.get("AWS_ENDPOINT_URL", "")
    plain = address.startswith("http://")
    there = fs.S3FileSystem(
        endpoint_override=address.partition("://")[2] or None, scheme="http" if plain else "https"
    )
    found["pyarrow"] = lambda: len(there.open_input_file(f"{bucket}/{key}").read())
    try:
        import boto3
    except ImportError:
        return found
    client = boto3.client("s3")
    found["boto3"] = lambda: len(client.get_object(Bucket=bucket, Key=key)["Body"].read())
    return found


def our_reads(url: str, folder: str) -> dict[str, Callable[[], int]]:
    def whole() -> int:
        with storage.open_shard(url) as file:
            return len(file.read())

    def straight_on() -> int:
        with storage.open_shard(url) as file:
            return sum(map(len, iter(lambda: file.read(1 << 16), b"")))

    def fetched() -> int:
        storage.fetch(url, f"{folder}/copy")
        return os.path.getsize(f"{folder}/copy")

    return {
        "clip-pipe, read": whole,
        "clip-pipe, straight on": straight_on,
        "clip-pipe, fetch": fetched,
    }


def writes(url: str, data: bytes, folder: str) -> dict[str, Callable[[], int]]:
    store, key = object_login.store(url), object_login.split(url)[2]
    (Path(folder) / "data").write_bytes(data)

    def put() -> int:
        store.put(key, Path(folder) / "data")
        return len(data)

    def committed() -> int:
        with storage.committed(url) as file:
            for at in range(0, len(data), 1 << 20):
                file.write(data[at : at + (1 << 20)])
        return len(data)

    return {"obstore put": put, "clip-pipe, committed": committed}


def make_shards(root: str, samples: int, per_shard: int) -> int:
    """Shards of random pictures' bytes, with their index; the sum of their sizes."""
    index: list[dict[str, Any]] = []
    for first in range(0, samples, per_shard):
        name, offset = shards.shard_name(first // per_shard), 0
        with storage.committed(f"{root}/{name}") as file:
            for n in range(first, min(first + per_shard, samples)):
                members = [("jpg", os.urandom(24_000)), ("txt", b"a picture of something")]
                block, rows = shards.sample_block(f"{n:032x}", members)
                index += [{**row, "shard": name, "offset": row["offset"] + offset} for row in rows]
                file.write(block)
                offset += len(block)
            file.write(tars.END)
    total = sum(storage.sizes(root).values())
    with storage.committed(f"{root}/index.parquet") as file:
        pq.write_table(pa.Table.from_pylist(index, shards.INDEX_SCHEMA), file)
    return total


def streamed(root: str, total: int, folder: str) -> Callable[[], int]:
    from pretrain.stream.tars import TarSet

    def read() -> int:
        cache = f"{folder}/cache-{uuid.uuid4().hex}"
        found = TarSet(root, cache=cache)
        for n in range(len(found)):
            if not n % _AHEAD:
                found.ahead(range(n, min(n + 2 * len(found) // SHARDS, len(found))))
            found.read(n)
        shutil.rmtree(cache)
        return total

    return read


def measure(title: str, ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """MB/s of each in its best round, by turns."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
            size = way()
            if turn:  # the first warms up
                took[name].append(size / 1e6 / (time.perf_counter() - begun_s))
                cpu[name].append((time.process_time() - begun_cpu_s) / size * 1e8)
    print(f"\n{title}: MB/s, median (least to best); CPU seconds for 100 MB")
    for name, values in took.items():
        middle, used = statistics.median(values), statistics.median(cpu[name])
        print(f"  {name:28s}{middle:9.0f}  ({min(values):.0f} to {max(values):.0f}){used:9.2f} s")
    return {name: max(values) for name, values in took.items()}


def goal(rates: dict[str, float], name: str, than: Sequence[str]) -> None:
    best = max(than, key=lambda other: rates.get(other, 0.0))
    share = rates[name] / rates[best]
    met = "met" if share >= GOAL else "NOT met"
    print(f"goal: {name} at least {GOAL:.0%} of {best}; found {share:.0%}: {met}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--url", default="")
    given = parser.parse_args()
    with ExitStack() as stack:
        url = given.url
        if not url:
            address = stack.enter_context(object_server.moto())
            object_server.make_bucket(address, "bench")
            os.environ |= object_server.environment(address)
            url = "s3://bench"
        root = f"{url}/bench-{uuid.uuid4().hex[:8]}"
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        data = os.urandom(given.mb << 20)
        try:
            written = measure(
                f"writing a file of {given.mb} MiB",
                writes(f"{root}/file", data, folder),
                given.rounds,
            )
            goal(written, "clip-pipe, committed", ["obstore put"])
            total = make_shards(f"{root}/shards", given.samples, -(-given.samples // SHARDS))
            ways = raw_reads(f"{root}/file", folder) | our_reads(f"{root}/file", folder)
            read = measure(
                f"reading a file of {given.mb} MiB, and shards of {total / 1e6:.0f} MB",
                {**ways, "trainer's stream": streamed(f"{root}/shards", total, folder)},
                given.rounds,
            )
            goal(read, "clip-pipe, read", ["obstore get", "pyarrow", "boto3"])
            for name in ("clip-pipe, fetch", "trainer's stream"):
                goal(read, name, [TO_DISK])
        finally:
            storage.remove(root)


if __name__ == "__main__":
    main()
