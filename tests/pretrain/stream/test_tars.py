import json
import pickle
from collections import Counter

import pyarrow as pa
import pytest

from curate.contract import shards, tars
from pretrain.stream.batch import BadSample
from pretrain.stream.tars import TarSet
from tests.tiny import scenes


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
    with pytest.raises(BadSample, match=rf"00000.tar: {scenes.uid(0)}.png") as fault:
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
    (tmp_path / "00000.tar").write_bytes(tars.member("a.jpg", b"x" * 999)[:900])
    with pytest.raises(
        ValueError, match=r"00000.tar: 'a.jpg' at byte 0 is cut.*hint: this tar is damaged"
    ):
        TarSet(str(tmp_path))


def test_more_shards_than_files_held_open(tmp_path):
    found = TarSet(str(scenes.write_shards(tmp_path / "s", 70, per_shard=1)))
    read = Counter(found.read(number).key for number in [*range(70), *range(70)])
    assert set(read.values()) == {2}
    assert len(found._open) == 64
    assert isinstance(found._index, pa.Table)


@pytest.mark.parametrize(
    ("name", "count"), [("webshard-cc12m-32.tar", 32), ("webshard-laion400m-50.tar", 50)]
)
def test_shards_that_img2dataset_wrote_are_read_whole(shared_data, name, count):
    found = TarSet(str(shared_data / name))
    samples = [found.read(number) for number in range(len(found))]
    assert len(samples) == count
    assert all(sample.pixels.shape[2] == 3 and sample.caption for sample in samples)
    assert len({sample.key for sample in samples}) == count
