"""Requests to an S3 server that fails: asked again, one winner, clear words in the end; and after a fork."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curate.contract import object_client, object_login, storage
from tests.curate.contract.test_disk import winners
from tests.tiny import object_server

pytestmark = pytest.mark.net


def test_one_of_eight_creates_and_one_swaps(
    bucket: str, moto_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fourth request fails; an answer that was lost makes no one lose what he won."""
    with object_server.proxy(moto_address, every=4) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        path = f"{bucket}/lease"
        [first] = winners(lambda n: storage.create_text(path, f"{n}"))
        assert storage.read_text(path) == f"{first}"
        [second] = winners(lambda n: storage.swap_text(path, f"again {n}", f"{first}"))
        assert storage.read_text(path) == f"again {second}"
        assert not storage.swap_text(path, "never", f"{first}")
        assert not storage.swap_text(f"{bucket}/none", "never", "x")


@pytest.mark.parametrize("kind", ["reset", "lost"])
def test_a_conditional_write_whose_answer_is_lost_is_still_ours(
    bucket: str, moto_address: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(object_client, "_WAIT_S", 0.01)
    with object_server.proxy(moto_address) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        proxy.once = {"PUT": kind}
        assert storage.create_text(f"{bucket}/a", "mine")
        proxy.once = {"PUT": kind}
        assert storage.swap_text(f"{bucket}/a", "mine again", "mine")
        assert not storage.create_text(f"{bucket}/a", "mine again")  # equal words of another writer
        assert [kind for _, _, kind in proxy.seen if kind] == [kind] * 2


def test_large_files_come_and_go_while_requests_fail(
    bucket: str, moto_address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(object_client, "PART_BYTES", 5 << 20)
    data = random.Random(0).randbytes(12 << 20)
    with object_server.proxy(moto_address, every=4) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        with storage.committed(f"{bucket}/big") as file:
            file.write(data)
        storage.fetch(f"{bucket}/big", str(tmp_path / "big"))
        with storage.open_shard(f"{bucket}/big") as shard:
            assert b"".join(iter(lambda: shard.read(300_000), b"")) == data
        storage.link_or_copy(f"{bucket}/big", f"{bucket}/deep/copy")
        assert storage.size_bytes(f"{bucket}/deep/copy") == len(data)
        assert any("uploadId" in path for _, path, _ in proxy.seen)
        assert {kind for _, _, kind in proxy.seen if kind} == set(proxy.kinds)
    assert (tmp_path / "big").read_bytes() == data


def test_a_copy_that_broke_off_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where the client gave up on an answer in its middle, which it mostly does not."""
    data = random.Random(0).randbytes(1000)
    asked = []

    class Answer:
        def __init__(self, begin: int, end: int) -> None:
            self.range = begin, end
            self.number = len(asked)
            asked.append(self.range)

        def stream(self, min_chunk_size: int) -> Iterator[bytes]:
            begin, end = self.range
            yield data[begin : begin + 30]
            if self.number == 1:
                raise OSError("the connection broke")
            if self.number != 3:  # the third ends early and says nothing
                yield data[begin + 30 : end]

    class Store:
        def get(self, key: str, options: dict[str, Any]) -> Answer:
            return Answer(*options["range"])

    monkeypatch.setattr(object_client, "PIECE_BYTES", 400)
    monkeypatch.setattr(object_client, "_WAIT_S", 0.0)
    monkeypatch.setattr(object_client, "_AT_ONCE", 1)
    monkeypatch.setattr(object_client, "_at", lambda url: (Store(), "key"))
    monkeypatch.setattr(object_client, "head", lambda url: (1000, '"v"', ""))
    object_client.download("s3://bucket/key", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == data
    assert asked == [(0, 400), (400, 800), (400, 800), (800, 1000), (800, 1000)]


def test_an_upload_that_fails_for_good_leaves_nothing(
    bucket: str, moto_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    monkeypatch.setattr(object_client, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(object_client, "_WAIT_S", 0.01)
    monkeypatch.setattr(object_login, "RETRIES", 1)
    monkeypatch.setattr(object_login.store, "__defaults__", (1,))

    def write() -> None:
        with storage.committed(f"{bucket}/big") as file:
            file.write(bytes(11 << 20))

    with object_server.proxy(moto_address) as proxy:
        proxy.always = {"PUT": "busy"}
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        with pytest.raises(object_client.StoreError) as told:
            write()
    assert str(told.value).startswith(f"{bucket}/big: write: asked 3 times in ")
    assert "each with 1 retries: 503 SlowDown. hint: is the store reachable" in str(told.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_address)
    assert storage.listed(bucket) == []
    client = boto3.client("s3", endpoint_url=moto_address)
    assert client.list_multipart_uploads(Bucket=bucket[5:]).get("Uploads", []) == []


def test_what_is_wrong_is_told_at_the_start(
    bucket: str, moto_address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    storage.prepare(f"{bucket}/room")
    assert storage.listed(bucket) == []
    assert caplog.records == []
    with pytest.raises(
        ValueError, match=r"^s3://no-such/room: there is no bucket 'no-such'. hint: "
    ):
        storage.prepare("s3://no-such/room")
    monkeypatch.setattr(object_client, "_WAIT_S", 0.01)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(ValueError, match=r"room: write: asked 3 times .* hint: is the store reach"):
        storage.prepare(f"{bucket}/room")
    for status, code, hint in (
        (
            403,
            "InvalidAccessKeyId",
            "not allowed: 403 InvalidAccessKeyId. hint: set AWS_ACCESS_KEY",
        ),
        (301, "PermanentRedirect", "in another region. hint: set AWS_REGION"),
    ):
        with object_server.proxy(moto_address) as proxy:
            proxy.says = (status, f"<Error><Code>{code}</Code></Error>".encode())
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
            with pytest.raises(ValueError, match=hint):
                storage.prepare(f"{bucket}/room")
            assert len(proxy.seen) <= 2  # the write, once, and its removal


def test_a_store_that_lets_a_second_writer_overwrite_is_told_of(
    bucket: str, moto_address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    with object_server.proxy(moto_address) as proxy:
        proxy.ignores = ("if-none-match",)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        storage.prepare(f"{bucket}/room")
    assert "lets a second writer overwrite the first" in caplog.text
