"""An index is made once, by whoever comes first, and is the same however it is kept."""

import io
import multiprocessing
import os
import tarfile
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from curate.contract import shards, tars
from pretrain.stream import index
from pretrain.stream.remote import Copies
from tests.tiny import scenes


@pytest.fixture
def load(tmp_path):
    return lambda path: index.load(
        str(path), str(tmp_path / "cache"), Copies(str(tmp_path / "cache"), 1)
    )


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.setattr(index, "_SMALL_INDEX_BYTES", 0)
    monkeypatch.setattr(index, "_SMALL_TARS_BYTES", 0)


def content(found):
    rows = [found.rows(shard) for shard in range(len(found.names))]
    return found.names, [(one.sample.tobytes(), one.keys, one.faults) for one in rows]


def test_small_sets_leave_no_trace(tmp_path, load):
    folder = scenes.write_shards(tmp_path / "s", 10, per_shard=4)
    load(folder)
    (folder / "index.parquet").unlink()
    load(folder)
    assert not (tmp_path / "cache").exists()


def test_in_memory_on_disk_and_walked_are_one(tmp_path, load, monkeypatch):
    folder = scenes.write_shards(tmp_path / "s", 10, per_shard=4)
    in_memory = load(folder)
    monkeypatch.setattr(index, "_SMALL_INDEX_BYTES", 0)
    monkeypatch.setattr(index, "_SMALL_TARS_BYTES", 0)
    on_disk = load(folder)
    assert isinstance(on_disk.found["sample"], np.memmap)
    (folder / "index.parquet").unlink()
    walked = load(folder)
    assert content(in_memory) == content(on_disk) == content(walked)
    assert len({found.fingerprint for found in (in_memory, on_disk, walked)}) == 1
    assert in_memory.counts.tolist() == [4, 4, 2]


def test_a_tar_is_walked_once_and_again_when_it_changed(tmp_path, load, kept, monkeypatch):
    folder = scenes.write_shards(tmp_path / "s", 10, per_shard=4)
    (folder / "index.parquet").unlink()
    walks = []
    walk = index._walk
    monkeypatch.setattr(index, "_walk", lambda name, *rest: walks.append(name) or walk(name, *rest))
    first = load(folder)
    assert sorted(walks) == ["00000.tar", "00001.tar", "00002.tar"]
    assert content(load(folder)) == content(first)
    assert len(walks) == 3
    damaged = (folder / "00001.tar").read_bytes()[:2000]
    (folder / "00001.tar").write_bytes(damaged)
    again = load(folder)
    assert walks[3:] == ["00001.tar"]
    assert again.fingerprint != first.fingerprint
    assert again.rows(1).faults
    read_back = load(folder)
    assert content(read_back) == content(again)  # faults are kept with the rest
    assert read_back.damage == again.damage
    assert list(again.damage) == [1]
    assert again.damage[1].is_cut
    assert "to 2000 hold no sample: " in again.damage[1].told


def foreign(folder, *samples, cut=(), end=tars.END):
    """Tars of so many samples; those of ``cut`` end early, in the middle of a picture."""
    folder.mkdir()
    for number, count in enumerate(samples):
        blocks = [
            shards.sample_block(f"{number}-{n}", [("jpg", b"x" * 600), ("txt", b"y")])[0]
            for n in range(count)
        ]
        stop = cut[number] if number < len(cut) else 0
        whole = b"".join(blocks[: stop or None]) + (blocks[-1][:800] if stop else end)
        (folder / f"{number}.tar").write_bytes(whole)
    return folder


@pytest.mark.parametrize(
    ("name", "made", "lost"),
    [
        ("sound", {}, 0),
        ("two of three", {"cut": (10, 10, 0)}, 178 / 300),
        ("of one nothing is there", {"cut": (0, 0, 1)}, 98 / 300),
        ("without an end", {"end": b""}, 0),
    ],
)
def test_what_is_lost_is_estimated_by_the_undamaged(tmp_path, load, name, made, lost):
    found = load(foreign(tmp_path / "s", 100, 100, 100, **made))
    assert found.lost_frac() == pytest.approx(lost)
    assert bool(found.damage) == (name != "sound")


def test_overwritten_bytes_weigh_as_samples_and_one_sample_is_not_judged(tmp_path, load):
    folder = foreign(tmp_path / "s", 100, 100)
    content = bytearray((folder / "0.tar").read_bytes())
    one = (len(content) - len(tars.END)) // 100
    content[10 * one] ^= 255
    (folder / "0.tar").write_bytes(content)
    assert load(folder).lost_frac() == 0
    content[10 * one : 60 * one] = b"\xff" * (50 * one)
    (folder / "0.tar").write_bytes(content)
    found = load(folder)
    assert found.damage[0].gap_bytes == 50 * one
    assert not found.damage[0].is_cut
    assert found.lost_frac() == pytest.approx(49 / 200, abs=0.01)


def test_a_download_that_was_not_finished_weighs_as_a_cut_tar(tmp_path, load):
    folder = foreign(tmp_path / "s", 100, 100, 100)
    size = (folder / "0.tar").stat().st_size
    reached = 10 * (size - len(tars.END)) // 100
    with (folder / "0.tar").open("r+b") as file:
        file.truncate(reached)
        file.truncate(size)
    found = load(folder)
    assert [found.told, found.damage[0].is_cut] == [
        [
            f"0.tar: bytes {reached} to {size} hold no sample: the rest from byte {reached} "
            f"is {size - reached} bytes of zeros: the download was not finished"
        ],
        True,
    ]
    assert found.lost_frac() == pytest.approx(89 / 300, abs=0.01)


def cut_by_index(folder):
    """Shards of ours, one cut within its second of four samples; what is told of it."""
    scenes.write_shards(folder, 12, per_shard=4)
    table = pq.read_table(folder / "index.parquet").to_pylist()
    second = next(row for row in table if row["key"] == scenes.uid(5) and row["member"] == "txt")
    end = (folder / "00001.tar").stat().st_size
    size = second["offset"]
    os.truncate(folder / "00001.tar", size)
    return (
        f"00001.tar: ends at byte {size}, by its index not before {end}: "
        "3 of its 4 samples are cut off"
    )


def test_a_cut_shard_is_named_by_its_index(tmp_path, load, kept):
    told = cut_by_index(tmp_path / "s")
    for _ in range(2):  # made, and found in the cache
        found = load(tmp_path / "s")
        assert found.told == [told]
        assert found.lost_frac() == 3 / 12
    whole = load(scenes.write_shards(tmp_path / "t", 12, per_shard=4))
    assert (whole.told, whole.lost_frac()) == ([], 0)


def test_a_shard_that_lacks_its_end_alone_lost_nothing(tmp_path, load):
    folder = scenes.write_shards(tmp_path / "s", 4)
    os.truncate(folder / "00000.tar", (folder / "00000.tar").stat().st_size - 1)
    found = load(folder)
    assert found.told[0].endswith(": 0 of its 4 samples are cut off")
    assert found.lost_frac() == 0


def test_one_cut_sample_is_named_and_does_not_weigh(tmp_path, load):
    folder = scenes.write_shards(tmp_path / "s", 4)
    os.truncate(folder / "00000.tar", (folder / "00000.tar").stat().st_size - len(tars.END) - 512)
    found = load(folder)
    assert found.told[0].endswith(": 1 of its 4 samples are cut off")
    assert found.lost_frac() == 0


def test_cut_shards_of_a_store_are_named_by_one_listing(tmp_path, load, monkeypatch):
    told = cut_by_index(tmp_path / "s")
    store = MemoryFileSystem()
    for path in (tmp_path / "s").iterdir():
        store.pipe(f"/cut/{path.name}", path.read_bytes())
    listings = []
    sizes = index.storage.sizes
    monkeypatch.setattr(index.storage, "sizes", lambda path: listings.append(path) or sizes(path))
    asked = []
    monkeypatch.setattr(index, "_size", asked.append)
    try:
        found = load("memory://cut")
        assert (found.told, found.lost_frac()) == ([told], 3 / 12)
        assert (listings, asked) == (["memory://cut"], [])
    finally:
        store.rm("/cut", recursive=True)


@pytest.mark.parametrize("kind", ["tar", "table"])
def test_content_that_changed_and_kept_its_size_is_read_again(tmp_path, load, kept, kind):
    def letters(swap):
        return lambda number, members: [members[0], ("txt", b"ba" if swap else b"ab")]

    folder = scenes.write_shards(tmp_path / "s", 4, change=letters(False))
    other = scenes.write_shards(tmp_path / "t", 4, change=letters(True))
    name = {"tar": "00000.tar", "table": "index.parquet"}[kind]
    if kind == "tar":
        (folder / "index.parquet").unlink()
    before = load(folder).fingerprint
    assert (folder / name).stat().st_size == (other / name).stat().st_size
    (folder / name).write_bytes((other / name).read_bytes())
    os.utime(folder / name, (1e9, 1e9))
    assert load(folder).fingerprint != before


def test_a_folder_that_is_not_finished_or_not_whole_says_so(tmp_path, load, caplog):
    folder = scenes.write_shards(tmp_path / "s[0-9]", 10, per_shard=2)
    (folder / "00009.tar").write_bytes((folder / "00000.tar").read_bytes())
    assert len(load(folder).names) == 5
    assert "1 tars of the folder, such as 00009.tar, are not in it" in caplog.text
    (folder / shards.UNFINISHED).write_text("{}")
    with pytest.raises(ValueError, match=r"has not finished. hint: run it to the end"):
        load(folder)


def test_what_a_server_has_is_asked_at_once(tmp_path, monkeypatch):
    folder = scenes.write_shards(tmp_path / "s", 12, per_shard=1)
    (folder / "index.parquet").unlink()
    asked = threading.Barrier(12)  # broken, and an error, where one waits for another

    def mark(path):
        asked.wait(60)
        return 1, path

    monkeypatch.setattr(index, "_mark", mark)
    cache = str(tmp_path / "cache")
    found = index.load(f"file://{folder}", cache, Copies(cache, 1))
    assert len(found.names) == 12


def _load(folder, cache, begin, told):
    begin.wait(60)
    index._SMALL_TARS_BYTES = 0
    told.put(index.load(folder, cache, Copies(cache, 1)).fingerprint)


def test_several_processes_at_once_are_safe(tmp_path, load):
    folder = scenes.write_shards(tmp_path / "s", 40, per_shard=2)
    (folder / "index.parquet").unlink()
    context = multiprocessing.get_context("fork")
    begin, told = context.Event(), context.Queue()
    arguments = (str(folder), str(tmp_path / "cache"), begin, told)
    processes = [context.Process(target=_load, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    begin.set()
    found = [told.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert found == [load(folder).fingerprint] * 3


def test_an_index_of_many_shards_in_one_row_group_is_cut_right(tmp_path, load, monkeypatch):
    folder = scenes.write_shards(tmp_path / "s", 10, per_shard=3)
    whole = content(load(folder))
    monkeypatch.setattr(index, "_BATCH_ROWS", 7)  # batches end in the midst of shards and samples
    assert content(load(folder)) == whole


def test_an_index_out_of_order_or_of_another_kind_says_so(tmp_path, load):
    folder = scenes.write_shards(tmp_path / "s", 6, per_shard=2)
    table = pq.read_table(folder / "index.parquet")
    mixed = pa.concat_tables([table, table.slice(0, 3)])
    pq.write_table(mixed, folder / "index.parquet")
    with pytest.raises(ValueError, match=r"rows of 00000.tar stand in several places. hint: sort"):
        load(folder)
    pq.write_table(table.drop_columns("crc32"), folder / "index.parquet")
    with pytest.raises(
        ValueError, match=r"can't be read as an index of shards.*hint: it needs shard"
    ):
        load(folder)
    pq.write_table(table, folder / "index.parquet")
    (folder / "00002.tar").unlink()
    with pytest.raises(ValueError, match=r"names 00002.tar, which is not there. hint: the folder"):
        load(folder)
    (folder / "00002.tar").symlink_to(folder / "nowhere")
    with pytest.raises(ValueError, match=r"names 00002.tar, which is not there. hint: the folder"):
        load(folder)
    for name in ("00001.tar", "00002.tar"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"names 00001.tar, which is not there \(nor are 1 more\)"):
        load(folder)


def test_a_tar_of_other_writers_is_indexed(tmp_path, load):
    path = tmp_path / "other.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (
            ("p/" + "k" * 120 + ".jpg", b"x" * 600),
            ("p/" + "k" * 120 + ".TXT", b"y"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    rows = load(path).rows(0)
    assert rows.key(0) == "p/" + "k" * 120
    data = path.read_bytes()
    start, size = int(rows.sample["offset"][0, 0]), int(rows.sample["size"][0, 0])
    assert data[start : start + size] == b"x" * 600
