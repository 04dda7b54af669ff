"""Manifests decide what is done: files that don't fit theirs are named, and of two attempts one counts whole."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate.contract import done, object_client, storage

FOLDERS = ["", "memory://test_done", pytest.param("bucket", marks=pytest.mark.net)]
ORDERS = sorted(set(itertools.permutations("AAABBB")))


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "bucket":
        yield f"{request.getfixturevalue('bucket')}/pool"
        return
    yield request.param or str(tmp_path)
    if request.param:
        storage.remove(request.param)


def write(path: str, data: bytes) -> done.Written:
    with done.hashing(path) as file:
        file.write(data)
    return file.written


def attempt(folder: str, name: bytes) -> Iterator[str]:
    """One attempt at a part with pictures, a step at a time; ends with whose result counts."""
    path, images = f"{folder}/part-00003.parquet", f"{folder}/images/part-00003.tar"
    if done.look(path, {"images": images}).stats is not None:
        yield "late"
        return
    told = write(images, b"pictures of " + name)
    yield "pictures"
    own = write(path, b"columns of " + name)
    yield "columns"
    try:
        stats, is_ours = done.commit(path, {"by": name.decode()}, own, {"images": (images, told)})
    except done.Damaged:
        yield "taken back"
        return
    assert is_ours == (stats["by"] == name.decode())
    yield "counts" if is_ours else "keeps the other"


@pytest.mark.parametrize("other", [b"two", b"second"])  # files of the same size, and of another
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dies", [None, 1, 2])  # after how many steps the second one dies
def test_two_attempts_are_never_mixed(
    tmp_path: Path, order: tuple[str, ...], other: bytes, dies: int | None
) -> None:
    interleave(str(tmp_path), order, other, dies)


@pytest.mark.slow
@pytest.mark.net
@pytest.mark.parametrize("other", [b"two", b"second"])
def test_two_attempts_are_never_mixed_in_an_object_store(bucket: str, other: bytes) -> None:
    for number, (order, dies) in enumerate(itertools.product(ORDERS, (None, 1, 2))):
        interleave(f"{bucket}/{number}", order, other, dies)


def interleave(folder: str, order: tuple[str, ...], other: bytes, dies: int | None) -> None:
    runs = {"A": attempt(folder, b"one"), "B": attempt(folder, other)}
    steps = {"A": 0, "B": 0}
    for who in order:
        if who == "B" and dies is not None and steps["B"] >= dies:
            continue
        steps[who] += 1
        next(runs[who], None)
    path, beside = f"{folder}/part-00003.parquet", {"images": f"{folder}/images/part-00003.tar"}
    seen = done.look(path, beside)
    if seen.stats is not None and dies is None:
        assert not done.verify(path, beside), "a mix counts as done"
    # Where one died behind the other's end, before it could say so: sizes tell, or the hash.
    if seen.stats is None or done.verify(path, beside):
        if seen.fault or done.verify(path, beside):
            done.set_aside(path, beside)
        list(attempt(folder, b"again"))
    assert done.is_done(path, beside)
    assert not done.verify(path, beside)
    name = json.loads(storage.read_text(done.manifest_path(path)))["by"].encode()
    assert storage.open_file(path).read() == b"columns of " + name
    assert storage.open_file(beside["images"]).read() == b"pictures of " + name


def test_the_first_manifest_wins(folder: str) -> None:
    path = f"{folder}/part-00000.parquet"
    own = write(path, b"same")
    assert done.commit(path, {"by": "first"}, own, {}) == (
        {"by": "first", **own.told()},
        True,
    )
    # The same bytes again: whose manifest it is makes no difference.
    assert done.commit(path, {"by": "second"}, write(path, b"same"), {})[0]["by"] == "first"
    assert done.look(path).stats == {"by": "first", **own.told()}


@pytest.mark.net
def test_an_object_put_a_moment_after_ours_is_not_taken_for_it(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = f"{bucket}/part-00000.parquet"
    upload = object_client.upload
    (tmp_path / "theirs").write_bytes(b"theirs")

    def followed(url: str, source: str) -> str:
        version = upload(url, source)
        upload(url, str(tmp_path / "theirs"))
        return version

    monkeypatch.setitem(object_client._QUESTIONS, "upload", followed)
    own = write(path, b"ours!!")
    with pytest.raises(done.Damaged, match="at the same time, and mixed"):
        done.commit(path, {}, own, {})
    assert not done.is_done(path)


def test_damage_is_named(folder: str) -> None:
    path, images = f"{folder}/part-00000.parquet", f"{folder}/part-00000.tar"
    beside = {"images": images}
    assert done.look(path, beside) == (None, "", "")
    told = write(images, b"pictures")
    done.commit(path, {}, write(path, b"0123456789"), {"images": (images, told)})
    assert done.is_done(path, beside)
    assert not done.verify(path, beside)
    assert done.look(path, beside, {path: 1, images: 8}).stats, "an old listing is no damage"
    write(images, b"pictureX")
    assert done.is_done(path, beside), "sizes alone are looked at"
    assert [f"{images}: its bytes have another hash" in f for f in done.verify(path, beside)] == [
        True
    ]
    write(images, b"pict")
    assert done.look(path, beside) == (None, "4 of 8 bytes", images)
    storage.remove(images)
    assert done.look(path, beside) == (None, "is not there, though its manifest is", images)
    assert done.look(path, {"other": path}).fault == "its manifest does not name it"
    storage.write_text(done.manifest_path(path), '{"rows": 1')
    assert "can't be read as JSON" in done.look(path).fault
    with pytest.raises(done.Damaged, match="can't be read as JSON"):
        done.checked(path)
    done.set_aside(path, beside)
    assert done.look(path, beside) == (None, "", "")
    assert storage.exists(path + done.ASIDE)
    assert done.aside_stats(path) is None


def test_a_part_set_aside_keeps_what_it_was(folder: str) -> None:
    path = f"{folder}/part-00000.parquet"
    done.commit(path, {"rows": 7}, write(path, b"0123456789"), {})
    done.set_aside(path)
    assert (done.aside_stats(path) or {})["rows"] == 7
    done.commit(path, {"rows": 8}, write(path, b"01234"), {})
    done.withdraw(path)
    assert not storage.exists(path)
    assert not done.is_done(path)


def test_an_adopted_part_has_sizes_and_no_hash(tmp_path: Path) -> None:
    path = str(tmp_path / "part-00000.parquet")
    write(path, b"0123456789")
    assert done.adopt(path, {"rows": 3})
    assert not done.adopt(path, {"rows": 4})
    assert done.look(path).stats == {"rows": 3, "bytes": 10, "sha256": ""}
    assert not done.verify(path)


def test_damage_travels_from_a_worker() -> None:
    fault = pickle.loads(pickle.dumps(done.Damaged("/p", "is cut")))
    assert (str(fault), fault.path) == ("/p: is cut", "/p")
