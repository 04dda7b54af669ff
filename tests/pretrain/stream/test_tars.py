"""Any sample by its number; damage of every kind is named; sidecars and remote shards join in."""

import json
import os
import pickle
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from curate.contract import shards, tars
from pretrain.loop.settings import Sidecar
from pretrain.stream import files
from pretrain.stream import index as indexes
from pretrain.stream.batch import BadSample, LocalBatches, Stream, loader
from pretrain.stream.order import ShardOrder
from pretrain.stream.tars import TarSet, check_matched
from pretrain.stream.view.caption_mix import CaptionMix
from tests.tiny import scenes

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_PIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def few_files(monkeypatch):
    monkeypatch.setattr(files, "_most", lambda: 12)
    return 12


def everything(found):
    """(keys that are read, (kind, message) of the others), in order."""
    keys, faults = [], []
    for number in range(len(found)):
        try:
            keys.append(found.read(number).key)
        except BadSample as fault:
            faults.append((fault.kind, str(fault)))
    return keys, faults


def damaged(folder, change, name="00001.tar"):
    content = bytearray((folder / name).read_bytes())
    (folder / name).write_bytes(bytes(change(content) or content))


def offset_of(folder, number, member, name="00001.tar"):
    """Where the header of a member of scene ``number`` stands."""
    with (folder / name).open("rb") as file:
        places = {found: offset for found, offset, _ in tars.places(file, name)}
    return places[f"{scenes.uid(number)}.{member}"] - tars.BLOCK_BYTES


def test_every_sample_is_read_by_its_number(tmp_path):
    found = TarSet(str(scenes.write_shards(tmp_path / "s", 10, per_shard=4, rewrite_count=2)))
    assert found.counts == (4, 4, 2)
    assert len(found) == 10
    for number in (9, 0, 5):
        sample = found.read(number)
        assert (sample.key, sample.caption) == (scenes.uid(number), scenes.caption(number))
        assert sample.image == scenes.picture(number)
        assert sample.captions == (scenes.caption(number), *scenes.rewrites(number, 2))
        assert sample.record["uid"] == sample.key
        assert sample.pixels.shape == (32, 32, 3)


def test_tars_without_an_index_read_the_same(tmp_path):
    folder = scenes.write_shards(tmp_path / "s", 6, per_shard=4)
    indexed = TarSet(str(folder))
    (folder / "index.parquet").unlink()
    walked = TarSet(str(folder))
    assert walked.fingerprint == indexed.fingerprint
    assert [walked.read(n) for n in range(6)] == [indexed.read(n) for n in range(6)]


def test_the_fingerprint_follows_the_content(tmp_path):
    def other(number, members):
        return [(name, data + b"!" if name == "txt" else data) for name, data in members]

    one = TarSet(str(scenes.write_shards(tmp_path / "a", 4)))
    same = TarSet(str(scenes.write_shards(tmp_path / "b", 4)))
    changed = TarSet(str(scenes.write_shards(tmp_path / "c", 4, change=other)))
    assert one.fingerprint == same.fingerprint != changed.fingerprint


def test_damage_names_shard_and_sample_and_spares_the_others(tmp_path):
    folder = scenes.write_shards(tmp_path / "s", 4)
    content = bytearray((folder / "00000.tar").read_bytes())
    content[content.index(b"PNG") + 40] ^= 1
    (folder / "00000.tar").write_bytes(bytes(content))
    found = TarSet(str(folder))
    with pytest.raises(
        BadSample, match=rf"00000.tar: sample {scenes.uid(0)}: its picture at byte 512: checksum"
    ) as fault:
        found.read(0)
    assert fault.value.kind == "damaged"
    assert found.read(1).caption == scenes.caption(1)


@pytest.mark.parametrize(
    ("member", "data", "kind"),
    [
        ("png", None, "no_picture"),
        ("txt", None, "no_caption"),
        ("txt", b"\xff\xfe", "caption_not_utf8"),
        ("json", b"{", "json"),
        ("json", b"[1]", "json"),
        ("json", b"[" * 100_000, "json"),
    ],
)
def test_unusable_members_have_a_kind(tmp_path, member, data, kind):
    def change(number, members):
        kept = [(name, found if name != member else data) for name, found in members]
        return [(name, found) for name, found in kept if found is not None]

    found = TarSet(str(scenes.write_shards(tmp_path / "s", 1, change=change)))
    with pytest.raises(BadSample) as fault:
        found.read(0)
    assert fault.value.kind == kind


def test_the_records_caption_stands_in_for_a_missing_txt(tmp_path):
    def change(number, members):
        return [members[0], ("json", json.dumps({"caption": "from img2dataset"}).encode())]

    assert (
        TarSet(str(scenes.write_shards(tmp_path / "s", 1, change=change))).read(0).caption
        == "from img2dataset"
    )


def test_pickles_in_a_tar_are_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was opened",))

    def change(number, members):
        return [*members, ("pickle", pickle.dumps(Bomb())), ("pyd", b"x")]

    assert TarSet(str(scenes.write_shards(tmp_path / "s", 1, change=change))).read(
        0
    ).caption == scenes.caption(0)


def test_equal_keys_in_two_shards_are_two_samples(tmp_path):
    block, _ = shards.sample_block("same", [("png", scenes.picture(0)), ("txt", b"x")])
    for name in ("00000.tar", "00001.tar"):
        (tmp_path / name).write_bytes(block + tars.END)
    assert TarSet(str(tmp_path)).counts == (1, 1)


def test_unusable_sets_say_what_and_why(tmp_path):
    with pytest.raises(ValueError, match=r"no tar files found. hint:"):
        TarSet(str(tmp_path))
    (tmp_path / "00000.tar").write_bytes(tars.member("a.pdf", b"x") + tars.END)
    with pytest.raises(ValueError, match=r"no picture or caption in its tars. hint:"):
        TarSet(str(tmp_path))
    page = b"<html>not found</html>" * 99
    (tmp_path / "00000.tar").write_bytes(page)
    with pytest.raises(ValueError, match=r"no sample can be read.*00000.tar: bytes 0 to 2178 hold"):
        TarSet(str(tmp_path))
    (tmp_path / "00000.tar").write_bytes(tars.member("a.jpg", b"x") + tars.END)
    (tmp_path / "index.parquet").write_bytes(page)
    with pytest.raises(ValueError, match=r"index.parquet: can't be read as an index.*hint:"):
        TarSet(str(tmp_path))


def test_more_shards_than_files_may_be_open(tmp_path, few_files):
    found = TarSet(str(scenes.write_shards(tmp_path / "s", 30, per_shard=1)))
    assert Counter(found.read(n).key for n in [*range(30), *range(30)]) == {
        scenes.uid(n): 2 for n in range(30)
    }
    assert files.SHARED.of(found._owner) == list(range(30 - few_files, 30))


def test_shards_stay_open_where_there_is_room(tmp_path):
    found = TarSet(str(scenes.write_shards(tmp_path / "s", 70, per_shard=1)))
    read = Counter(found.read(number).key for number in [*range(70), *range(70)])
    assert set(read.values()) == {2}
    assert files.SHARED.of(found._owner) == list(range(70))


@pytest.mark.parametrize(
    ("name", "count"), [("webshard-cc12m-32.tar", 32), ("webshard-laion400m-50.tar", 50)]
)
def test_shards_that_img2dataset_wrote_are_read_whole(shared_data, name, count):
    found = TarSet(str(shared_data / name))
    samples = [found.read(number) for number in range(len(found))]
    assert len(samples) == count
    assert all(sample.pixels.shape[2] == 3 and sample.caption for sample in samples)
    assert len({sample.key for sample in samples}) == count


KINDS = {
    "a flipped bit in a header": lambda folder: (
        lambda data: data.__setitem__(
            offset_of(folder, 6, "txt") + 3, data[offset_of(folder, 6, "txt") + 3] ^ 1
        )
    ),
    "a flipped bit in a picture's header": lambda folder: (
        lambda data: data.__setitem__(
            offset_of(folder, 6, "png") + 130, data[offset_of(folder, 6, "png") + 130] ^ 1
        )
    ),
    "a flipped bit in the data": lambda folder: (
        lambda data: data.__setitem__(
            offset_of(folder, 6, "png") + 600, data[offset_of(folder, 6, "png") + 600] ^ 1
        )
    ),
    "cut in a picture": lambda folder: lambda data: data[: offset_of(folder, 6, "png") + 700],
    "a page of HTML": lambda folder: lambda data: b"<html>gone</html>" * 50,
    "empty": lambda folder: None,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", ["ours", "foreign"])
def test_damage_loses_what_it_hits_and_is_named(tmp_path, kind, index):
    # webdataset, open_clip and Ray Data lose the rest of the shard here, without a word.
    folder = scenes.write_shards(tmp_path / "s", 12, per_shard=4)
    starts = {n: offset_of(folder, n, "png") for n in range(4, 8)}
    change = KINDS[kind](folder)
    if index == "foreign":
        (folder / "index.parquet").unlink()
    if kind == "empty":
        (folder / "00001.tar").write_bytes(b"")
    else:
        damaged(folder, change)
    keys, faults = everything(TarSet(str(folder)))
    lost = {
        "a flipped bit in a header": [6] if index == "foreign" else [],
        "a flipped bit in a picture's header": [6] if index == "foreign" else [],
        "a flipped bit in the data": [6] if index == "ours" else [],  # nothing knew its checksum
        "cut in a picture": [6, 7],
        "a page of HTML": [4, 5, 6, 7],
        "empty": [4, 5, 6, 7],
    }[kind]
    assert keys == [scenes.uid(n) for n in range(12) if n not in lost]
    if lost:
        assert {found for found, _ in faults} == {"damaged"}
        assert all(re.search(r"00001\.tar: .*byte", told) for _, told in faults)
        if index == "ours" or len(lost) == 1:
            assert all(scenes.uid(n) in told for n, (_, told) in zip(lost, faults, strict=True))
        if len(lost) == 1:
            assert re.search(
                rf"bytes? ({starts[6]}|{starts[6] + 512}|{offset_of_txt(folder)})", faults[0][1]
            )


def offset_of_txt(folder):
    """Where the header of scene 6's caption stands in an undamaged shard like this one."""
    whole = scenes.write_shards(folder.parent / "whole", 12, per_shard=4)
    return offset_of(whole, 6, "txt")


def test_a_lost_member_that_nobody_lacks_still_has_a_place(tmp_path):
    blocks = [
        shards.sample_block(f"k{n}", [("jpg", b"x" * 600), ("txt", b"y")])[0] for n in range(3)
    ]
    content = bytearray(b"".join(blocks) + tars.END)
    start = len(blocks[0])
    content[start], content[start + 1536] = 255, 255  # both headers of the second sample
    (tmp_path / "a.tar").write_bytes(bytes(content))
    found = TarSet(str(tmp_path / "a.tar"))
    keys, faults = everything(found)
    assert keys == ["k0", "k2"]
    assert faults == [("damaged", faults[0][1])]
    assert (
        f"a.tar: bytes {start} to {start + 2560} hold no sample: bad header at byte {start}"
        in faults[0][1]
    )


@pytest.mark.parametrize("index", ["ours", "foreign"])
@pytest.mark.parametrize("apart", [0, 1])
def test_a_key_that_comes_twice_counts_once_and_is_named(tmp_path, index, apart):
    members = [("jpg", b"x" * 600), ("txt", b"one")]
    names = ["a", *["b"] * apart, "a", "c"]
    blocks, rows = [], []
    for name in names:
        block, found = shards.sample_block(name, members)
        rows += [
            {**row, "shard": "s.tar", "offset": row["offset"] + sum(map(len, blocks))}
            for row in found
        ]
        blocks.append(block)
    (tmp_path / "s.tar").write_bytes(b"".join(blocks) + tars.END)
    if index == "ours":
        pq.write_table(pa.Table.from_pylist(rows, shards.INDEX_SCHEMA), tmp_path / "index.parquet")
    keys, faults = everything(TarSet(str(tmp_path)))
    assert keys == ["a", *["b"] * apart, "c"]
    second = sum(map(len, blocks[: 1 + apart]))
    assert faults == [
        (
            "duplicate_key",
            f"s.tar: sample a at byte {second}: a sample of this key is at byte 0 already",
        )
    ]


def test_a_missing_picture_is_named_with_its_place(tmp_path):
    def change(number, members):
        return members[1:] if number == 5 else members

    folder = scenes.write_shards(tmp_path / "s", 8, per_shard=4, change=change)
    place = offset_of(folder, 5, "txt")
    _, faults = everything(TarSet(str(folder)))
    assert faults == [
        ("no_picture", f"00001.tar: sample {scenes.uid(5)} at byte {place} has only txt and json")
    ]


def batches(found, rank, world, workers=0):
    stream = Stream([found], [1.0], [CaptionMix()], tokens, 0)
    return list(loader(stream, LocalBatches(0, 32, 8, rank, world), workers, pin=False))


def tokens(texts):
    return torch.zeros(len(texts), 4, dtype=torch.int64)


def test_ranks_have_equal_batches_over_damaged_shards_all_the_same(tmp_path):
    folder = scenes.write_shards(tmp_path / "s", 12, per_shard=4)
    damaged(folder, lambda data: data[:3000])
    alone = batches(TarSet(str(folder)), 0, 1)
    halves = [batches(TarSet(str(folder)), rank, 2) for rank in range(2)]
    for whole, first, second in zip(alone, *halves, strict=True):
        assert (len(whole.keys), len(first.keys), len(second.keys)) == (8, 4, 4)
        assert whole.keys == first.keys + second.keys
        assert whole.bad == first.bad + second.bad
    assert any("00001.tar: " in told for batch in alone for _, told in batch.bad)


@pytest.mark.filterwarnings("ignore:This DataLoader")
def test_one_shard_feeds_more_workers_than_there_are_shards(tmp_path):
    folder = str(scenes.write_shards(tmp_path / "s", 12, per_shard=12))
    ranks = [batches(TarSet(folder), rank, 2, workers=4) for rank in range(2)]
    alone = batches(TarSet(folder), 0, 1)
    assert [a.keys + b.keys for a, b in zip(*ranks, strict=True)] == [one.keys for one in alone]


def test_a_shard_that_went_away_ends_the_batch_with_a_hint(tmp_path):
    folder = scenes.write_shards(tmp_path / "s", 4, per_shard=4)
    found = TarSet(str(folder))
    (folder / "00000.tar").unlink()
    assert re.search(r"00000.tar: No such file.* hint: put it back", batches(found, 0, 1)[0].fatal)


def test_a_cut_shard_of_a_server_that_lists_nothing_is_named_when_its_copy_is_there(
    tmp_path, monkeypatch, caplog
):
    folder = scenes.write_shards(tmp_path / "s", 12, per_shard=4)
    damaged(folder, lambda data: data[:3000])
    store = MemoryFileSystem()
    for path in folder.iterdir():
        store.pipe(f"/cut/{path.name}", path.read_bytes())

    def unlisted(path):
        raise NotImplementedError("no listing")

    monkeypatch.setattr(indexes.storage, "sizes", unlisted)
    try:
        found = TarSet("memory://cut")
        assert (found.damage, found.lost_frac()) == ([], 0)
        keys, faults = everything(found)
        everything(found)
    finally:
        store.rm("/cut", recursive=True)
    assert len(keys) + len(faults) == 12
    assert {kind for kind, _ in faults} == {"damaged"}
    told = [r.message for r in caplog.records]
    assert len(told) == 1
    assert told[0].startswith("00001.tar: ends at byte 3000, by its index not before ")
    assert told[0].endswith(f": {len(faults)} of its 4 samples are cut off")


def sidecar(tmp_path, name="s.parquet", **columns):
    path = tmp_path / name
    pq.write_table(pa.table(columns), path)
    return str(path)


UIDS = [scenes.uid(n) for n in range(12)]


def test_dropped_samples_never_come_in_any_epoch(tmp_path):
    folder = scenes.write_shards(tmp_path / "s", 12, per_shard=4)
    keep = [number % 3 != 1 for number in range(12)]
    table = Sidecar(path=sidecar(tmp_path, uid=UIDS[::-1], keep=keep[::-1]), use="keep")
    found = TarSet(str(folder), sidecars=[table])
    left = [uid for uid, stays in zip(UIDS, keep, strict=True) if stays]
    assert found.counts == (3, 2, 3)
    assert [found.read(number).key for number in range(len(found))] == left
    order = ShardOrder(found.counts, 0)
    epochs = [order.samples(e * order.total, (e + 1) * order.total).tolist() for e in range(3)]
    read = [[found.read(number).key for number in epoch] for epoch in epochs]
    assert all(sorted(keys) == sorted(left) for keys in read)
    assert read[0] != read[1]


def test_captions_and_features_join_by_uid(tmp_path):
    folder = scenes.write_shards(tmp_path / "s", 12, per_shard=4, rewrite_count=1)
    some = range(0, 12, 2)
    lists = pa.array([[{"text": f"c{n}"}, {"text": f"d{n}"}] for n in some])
    vectors = np.arange(12 * 3, dtype=np.float32).reshape(12, 3)
    tables = [
        Sidecar(path=sidecar(tmp_path, "a.parquet", uid=[UIDS[n] for n in some], captions=lists), use="captions"),
        Sidecar(path=sidecar(tmp_path, "b.parquet", uid=UIDS[3:5], better=["new 3", "new 4"]), use="caption", column="better"),
        Sidecar(path=sidecar(tmp_path, "c.parquet", uid=UIDS, teacher=list(vectors.astype(np.float16))), use="features", column="teacher", name="t"),
    ]  # fmt: skip
    found = TarSet(str(folder), sidecars=tables)
    plain = TarSet(str(folder))
    for number in range(12):
        sample, before = found.read(number), plain.read(number)
        caption = f"new {number}" if number in (3, 4) else before.caption
        added = (f"c{number}", f"d{number}") if number in some else ()
        assert sample.caption == caption
        assert sample.captions == (caption, *before.captions[1:], *added)
        assert sample.stored["t"].tolist() == vectors[number].tolist()
        assert sample.stored["t"].dtype == np.float32
    dropped = TarSet(
        str(folder), sidecars=[Sidecar(path=tables[0].path, use="captions", missing="drop")]
    )
    assert [dropped.read(n).key for n in range(len(dropped))] == [UIDS[n] for n in some]


def test_the_fingerprint_tells_sidecars_apart(tmp_path):
    folder = str(scenes.write_shards(tmp_path / "s", 12, per_shard=4))

    def of(name, *tables):
        return TarSet(folder, sidecars=tables).fingerprint

    one = Sidecar(path=sidecar(tmp_path, "1.parquet", uid=UIDS, keep=[True] * 12), use="keep")
    same = Sidecar(
        path=sidecar(tmp_path, "2.parquet", uid=UIDS[::-1], keep=[True] * 12), use="keep"
    )
    other = Sidecar(
        path=sidecar(tmp_path, "3.parquet", uid=UIDS, keep=[False] + [True] * 11), use="keep"
    )
    assert of("one", one) == of("same", same)
    assert len({of("none"), of("one", one), of("other", other)}) == 3


def test_sidecars_that_do_not_fit_the_set_say_so(tmp_path):
    folder = str(scenes.write_shards(tmp_path / "s", 12, per_shard=4))
    few = Sidecar(path=sidecar(tmp_path, uid=UIDS[:3], features=[[1.0, 2.0]] * 3), use="features")
    with pytest.raises(
        ValueError, match=rf"no row for sample {UIDS[3]} of 00000.tar. hint: missing"
    ):
        TarSet(folder, sidecars=[few])
    with pytest.raises(ValueError, match=r"have one name, \['features', 'features'\]. hint:"):
        TarSet(folder, sidecars=[few, few])
    none = Sidecar(path=sidecar(tmp_path, "n.parquet", uid=UIDS, keep=[False] * 12), use="keep")
    with pytest.raises(ValueError, match=r"leave no sample. hint:"):
        TarSet(folder, sidecars=[none])


@pytest.mark.parametrize(
    ("use", "values"),
    [("keep", [True] * 12), ("captions", ["x"] * 12), ("caption", ["x"] * 12)],
)
def test_a_sidecar_of_other_uids_is_refused(tmp_path, use, values):
    folder = str(scenes.write_shards(tmp_path / "s", 12, per_shard=4))
    upper = sidecar(tmp_path, "u.parquet", uid=[uid.upper() for uid in UIDS], **{use: values})
    found = TarSet(folder, sidecars=[Sidecar(path=upper, use=use)])
    assert found.matched == (0,)
    told = rf"u.parquet: none of its uids, such as '{UIDS[0].upper()}'.*such as '{UIDS[0]}'. hint:"
    with pytest.raises(ValueError, match=told):
        check_matched([found])
    with pytest.raises(ValueError, match=told):
        TarSet(folder, sidecars=[Sidecar(path=upper, use=use, missing="drop")])
    # One of the sets of a run is enough.
    half = sidecar(tmp_path, "h.parquet", uid=UIDS[:6], **{use: values[:6]})
    one, two = (
        TarSet(path, sidecars=[Sidecar(path=half, use=use)])
        for path in (folder, str(scenes.write_shards(tmp_path / "t", 5)))
    )
    assert (one.matched, two.matched) == ((6,), (5,))
    two.matched = (0,)
    check_matched([one, two])


def test_of_a_large_set_the_first_samples_are_counted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("pretrain.stream.tars._SMALL_SAMPLES", 5)
    folder = str(scenes.write_shards(tmp_path / "s", 12, per_shard=4))
    table = sidecar(tmp_path, uid=UIDS[9:], captions=["x"] * 3)
    found = TarSet(folder, sidecars=[Sidecar(path=table, use="captions")])
    check_matched([found])
    assert "has no row for any of the first 8 samples" in caplog.text
    assert found.read(9).captions[-1] == "x"


def test_foreign_keys_are_matched_as_they_are(tmp_path):
    blocks = [shards.sample_block(f"{n:09d}", [("jpg", b"x"), ("txt", b"y")])[0] for n in range(4)]
    (tmp_path / "a.tar").write_bytes(b"".join(blocks) + tars.END)
    table = sidecar(tmp_path, uid=["000000002", "000000001", "000000009"], keep=[False, True, True])
    found = TarSet(
        str(tmp_path / "a.tar"), sidecars=[Sidecar(path=table, use="keep", missing="drop")]
    )
    assert everything(found) == (["000000001"], [])


def test_a_set_travels_with_everything_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(indexes, "_SMALL_INDEX_BYTES", 0)
    monkeypatch.setattr("pretrain.stream.sidecar._SMALL_BYTES", 0)
    monkeypatch.setattr("pretrain.stream.tars._SMALL_SAMPLES", 0)
    folder = scenes.write_shards(tmp_path / "s", 12, per_shard=4)
    table = Sidecar(path=sidecar(tmp_path, uid=UIDS, keep=[n != 5 for n in range(12)]), use="keep")
    found = TarSet(str(folder), sidecars=[table])
    found.read(0)
    sent = pickle.dumps(found)
    assert len(sent) < 4000  # arrays travel as the paths of their files
    assert everything(pickle.loads(sent)) == everything(found)
    assert len(found) == 11


def test_a_forked_process_reads_with_files_of_its_own(tmp_path):
    found = TarSet(str(scenes.write_shards(tmp_path / "s", 8, per_shard=4)))
    found.read(0)
    child = os.fork()
    if not child:
        try:
            right = found.read(1).key == scenes.uid(1) and found._pid == os.getpid()
        finally:
            os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert found.read(1).key == scenes.uid(1)


@pytest.mark.slow
def test_a_large_index_costs_little_memory(tmp_path):
    # 1,000 shards x 1,000 samples x 3 members; the tars themselves are a few bytes each.
    folder = tmp_path / "large"
    folder.mkdir()
    schema = shards.INDEX_SCHEMA
    members = 3 * 1000
    with pq.ParquetWriter(folder / "index.parquet", schema) as writer:
        for number in range(1000):
            name = shards.shard_name(number)
            (folder / name).touch()
            base = np.arange(1000, dtype=np.int64) + number * 1000
            keys = np.char.mod("%032x", base * 7919)
            writer.write_table(
                pa.table(
                    [
                        pa.repeat(name, members),
                        pa.array(np.repeat(keys, 3)),
                        pa.array(["jpg", "txt", "json"] * 1000),
                        pa.array(np.arange(members, dtype=np.int64) * 1024 + 512),
                        pa.array(np.full(members, 500, np.int64)),
                        pa.array(np.arange(members, dtype=np.uint32)),
                    ],
                    schema=schema,
                )
            )
    code = """
import os, resource, sys
import numpy as np
from pretrain.stream import index
from pretrain.stream.tars import TarSet
index._SMALL_INDEX_BYTES = 0
def own_mb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024
if sys.argv[2] == "make":
    TarSet(sys.argv[1])
    sys.exit()
before = own_mb()
found = TarSet(sys.argv[1])
assert sum(found.counts) == 1_000_000 and len(found.counts) == 1000
for shard in range(1000):
    rows = found._shard(shard).rows
assert rows.key(999) == "%032x" % (999_999 * 7919)
print(own_mb() - before)
"""
    for task in ("make", "measure"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder), task],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 30


def test_a_process_holds_the_shards_it_reads_from_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(indexes, "_SMALL_INDEX_BYTES", 0)
    monkeypatch.setattr("pretrain.stream.tars._KEPT_SHARDS", 3)
    found = TarSet(str(scenes.write_shards(tmp_path / "s", 12, per_shard=1)))
    assert everything(found) == (UIDS, [])
    assert list(found._held) == [9, 10, 11]
    assert all(isinstance(rows, np.memmap) for rows in found._index.found.found.values())
    assert not isinstance(found._held[11].rows.sample, np.memmap)
