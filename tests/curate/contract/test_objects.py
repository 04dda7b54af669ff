"""Names, folders and reading in an object store."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.contract import objects, storage
from tests.tiny import object_server

pytestmark = pytest.mark.net
ROOT = Path(__file__).resolve().parent.parent.parent.parent


def test_only_object_stores_are_handled_here() -> None:
    assert [objects.handles(f"{scheme}://x/y") for scheme in ("s3", "gs", "az", "abfss")] == [
        True
    ] * 4
    assert not any(map(objects.handles, ("memory://x", "http://x", "file:///x", "/x", "s3")))


def test_names_and_folders(bucket: str) -> None:
    names = ("a b%20#é.txt", "c/x-1/part-0.parquet", "c/x-1/part-1.parquet", "c/y-2/part-0.parquet",
             "z.tar", "z.tar.tmp-x", "[q]/k.tar")  # fmt: skip
    root = f"{bucket}/room"
    for name in names:
        storage.write_text(f"{root}/{name}", name)

    def glob(pattern: str, only_files: bool = False) -> list[str]:
        return [
            path.removeprefix(f"{root}/") for path in storage.glob(f"{root}/{pattern}", only_files)
        ]

    assert glob("*") == ["[q]", "a b%20#é.txt", "c", "z.tar", "z.tar.tmp-x"]
    assert glob("*", only_files=True) == ["a b%20#é.txt", "z.tar", "z.tar.tmp-x"]
    assert glob("c/*/part-0.parquet") == ["c/x-1/part-0.parquet", "c/y-2/part-0.parquet"]
    assert glob("c/x*/part-?.parquet") == ["c/x-1/part-0.parquet", "c/x-1/part-1.parquet"]
    assert glob("**/*.parquet") == sorted(name for name in names if name.endswith("parquet"))
    assert glob("z.tar") == ["z.tar"]
    assert glob("no/*") == glob("z.ta") == []
    assert storage.inside(f"{root}/[q]", "*.tar") == [f"{root}/[q]/k.tar"]
    assert storage.below(root) == sorted(f"{root}/{name}" for name in names)
    assert storage.listed(f"{root}/c") == [f"{root}/c/x-1", f"{root}/c/y-2"]
    assert storage.sizes(f"{root}/c/x-1") == dict.fromkeys(storage.listed(f"{root}/c/x-1"), 20)
    assert storage.marks(f"{root}/c/x-1") == {
        path: storage.mark(path) for path in storage.listed(f"{root}/c/x-1")
    }
    there = [bucket, root, f"{root}/c", f"{root}/z.tar"]
    assert [*map(storage.exists, [*there, f"{root}/z.ta", f"{root}/none"])] == [True] * 4 + [
        False
    ] * 2
    assert [*map(storage.is_file, there)] == [False] * 3 + [True]
    storage.remove(f"{root}/z.tar")
    assert glob("z*") == ["z.tar.tmp-x"]
    storage.move(f"{root}/c/x-1/part-0.parquet", f"{root}/aside")
    assert storage.read_text(f"{root}/aside") == "c/x-1/part-0.parquet"
    storage.remove(root)
    assert storage.listed(root) == []
    assert storage.is_empty(root)
    assert not storage.exists(root)
    storage.remove(root)
    for ask in (storage.read_text, storage.open_file, storage.size_bytes, storage.mark):
        with pytest.raises(FileNotFoundError, match=r"^s3://.*room/none: no such file"):
            ask(f"{root}/none")
    with pytest.raises(ValueError, match="a whole bucket is not removed"):
        storage.remove(bucket)
    with pytest.raises(ValueError, match=r"hint: storage\.committed"):
        storage.open_file(f"{root}/a", "wb")


def test_a_large_folder_takes_a_request_for_each_thousand_files(
    bucket: str, moto_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(30):
        storage.write_text(f"{bucket}/many/{n:03d}", "")
    with object_server.proxy(moto_address) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        assert len(storage.glob(f"{bucket}/many/*")) == 30
        assert len(storage.marks(f"{bucket}/many")) == 30
        assert len(storage.below(f"{bucket}/many")) == 30
        assert [method for method, _, _ in proxy.seen] == ["GET"] * 3


def test_reading_here_and_there_and_straight_on(
    bucket: str, moto_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    data = rng.randbytes(6 << 20)
    with storage.committed(f"{bucket}/file") as file:
        file.write(data)
    with object_server.proxy(moto_address) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        with storage.open_shard(f"{bucket}/file") as shard:
            assert b"".join(iter(lambda: shard.read(10_000), b"")) == data
            assert len(proxy.seen) <= 10  # 600 reads
        with storage.open_shard(f"{bucket}/file") as shard:
            for _ in range(15):
                at, size = rng.randrange(len(data) + 10), rng.randrange(300_000)
                assert shard.seek(at) == at
                assert shard.read(size) == data[at : at + size]
            assert shard.seek(-5, os.SEEK_END) == len(data) - 5
            assert shard.read() == data[-5:]
            assert shard.read(1) == b""
            with pytest.raises(OSError, match="negative"):
                shard.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        shard.read(1)
    storage.write_text(f"{bucket}/empty", "")
    with storage.open_file(f"{bucket}/empty") as file:
        assert file.read() == b""


def test_readers_of_others_read_it(bucket: str) -> None:
    table = pa.table({"n": list(range(1000))})
    with storage.committed(f"{bucket}/t.parquet") as file:
        pq.write_table(table, file)
    with storage.open_file(f"{bucket}/t.parquet") as file:
        assert pq.read_table(file) == table
    with storage.committed(f"{bucket}/t.tar") as file, tarfile.open(fileobj=file, mode="w") as tar:
        member = tarfile.TarInfo("a")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    with storage.open_file(f"{bucket}/t.tar") as file, tarfile.open(fileobj=file) as tar:
        found = tar.extractfile("a")
        assert found is not None
        assert found.read() == b"abc"
    storage.write_text(f"{bucket}/lines", "one\ntwo\n")
    with storage.open_file(f"{bucket}/lines") as file:
        assert list(io.TextIOWrapper(file)) == ["one\n", "two\n"]


def test_a_file_that_is_written_anew_while_it_is_read_is_told(bucket: str) -> None:
    storage.write_text(f"{bucket}/a", "x" * 600_000)
    with storage.open_file(f"{bucket}/a") as file:
        file.read(10)
        storage.write_text(f"{bucket}/a", "y" * 600_000)
        with pytest.raises(OSError, match="was written anew while it was read"):
            file.read()


def test_a_writer_that_is_killed_or_fails_leaves_nothing(bucket: str) -> None:
    def fail() -> None:
        with storage.committed(f"{bucket}/a") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    code = (
        "import sys; from curate.contract import storage\n"
        "with storage.committed(sys.argv[1]) as file:\n"
        "    file.write(bytes(1 << 20)); file.flush(); print('half', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, f"{bucket}/b"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert storage.listed(bucket) == []
