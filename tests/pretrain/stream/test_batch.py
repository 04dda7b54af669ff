import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.stream.batch import BadSample, Batch, LocalBatches, Reader, Sample, Stream, loader
from pretrain.stream.tars import TarSet
from pretrain.stream.view.caption_mix import CaptionMix
from pretrain.stream.view.crop import Crop
from tests.tiny import scenes

ROOT = Path(__file__).resolve().parent.parent.parent.parent
VIEWS = (Crop(scale=(0.5, 1.0), flip=True).fit(16), CaptionMix())


def letters(texts: list[str]) -> torch.Tensor:
    """A stand-in for the encoder's tokenizer: text lengths and first bytes, int64 (B, 2)."""
    return torch.tensor([[len(text), text.encode()[0]] for text in texts])


def stream_of(*folders, weights=None, seed=0, augment="worker") -> Stream:
    readers = [TarSet(str(folder)) for folder in folders]
    return Stream(readers, weights or [1.0] * len(readers), VIEWS, letters, seed, augment=augment)


def read(
    stream, samples_seen=0, end=48, global_batch=12, world=1, workers=0
) -> list[tuple[str, bytes, bytes]]:
    """(key, pixels, tokens) of every sample, in the order of the global stream."""
    batches = [
        list(
            loader(
                stream,
                LocalBatches(samples_seen, end, global_batch, rank, world),
                workers,
                pin=False,
            )
        )
        for rank in range(world)
    ]
    found = []
    for step in range(len(batches[0])):
        for rank in range(world):
            batch = batches[rank][step]
            pixels, tokens = batch.views["image"].numpy(), batch.views["text"].numpy()
            found += [
                (key, pixels[row].tobytes(), tokens[row].tobytes())
                for row, key in enumerate(batch.keys)
            ]
    return found


def test_the_stream_is_the_same_for_any_ranks_workers_and_resume_point(tmp_path):
    stream = stream_of(scenes.write_shards(tmp_path / "s", 20, per_shard=7, rewrite_count=3))
    whole = read(stream)
    assert len(whole) == 48
    assert read(stream, world=3) == whole
    assert read(stream, workers=2) == whole
    assert read(stream, world=2, workers=1) == whole
    assert read(stream, samples_seen=12, global_batch=6, world=2) == whole[12:]


def test_a_set_smaller_than_a_batch_and_fewer_shards_than_ranks_are_legal(tmp_path):
    stream = stream_of(scenes.write_shards(tmp_path / "s", 5))
    keys = [key for key, _, _ in read(stream, end=24, world=4)]
    everything = sorted(scenes.uid(number) for number in range(5))
    assert [sorted(keys[at : at + 5]) for at in range(0, 20, 5)] == [everything] * 4
    assert len(set(keys[20:])) == 4


def test_views_differ_each_time_a_sample_comes_by(tmp_path):
    found = read(stream_of(scenes.write_shards(tmp_path / "s", 4, rewrite_count=3)), end=48)
    of_one = [(pixels, tokens) for key, pixels, tokens in found if key == scenes.uid(0)]
    assert len(of_one) == 12
    assert len({pixels for pixels, _ in of_one}) > 6
    assert len({tokens for _, tokens in of_one}) > 2


def test_a_mixture_takes_from_every_set_by_its_weight(tmp_path):
    one = scenes.write_shards(tmp_path / "one", 4)
    two = scenes.write_shards(
        tmp_path / "two", 8, change=lambda n, m: [*m[:1], ("txt", b"zz"), *m[2:]]
    )
    found = read(stream_of(one, two, weights=[1.0, 3.0]), end=1200, global_batch=100)
    second = sum(tokens[8:9] == b"z" for _, _, tokens in found)
    assert 0.68 < second / len(found) < 0.82


def test_bad_samples_are_replaced_alike_everywhere_and_counted_by_kind(tmp_path):
    def change(number, members):
        if number == 3:
            return [("png", b"not a picture"), *members[1:]]
        return members[:1] if number == 5 else members

    stream = stream_of(scenes.write_shards(tmp_path / "s", 12, change=change))
    batches = list(loader(stream, LocalBatches(0, 12, 12), 0, pin=False))
    (batch,) = batches
    assert sorted(kind for kind, _ in batch.bad) == ["no_caption", "picture.not_decodable"]
    assert any(scenes.uid(3) in detail for _, detail in batch.bad)
    assert len(batch.keys) == 12
    assert not {scenes.uid(3), scenes.uid(5)} & set(batch.keys)
    assert {scenes.uid(n) for n in range(12)} - set(batch.keys) == {scenes.uid(3), scenes.uid(5)}
    assert read(stream, world=2, workers=1) == read(stream)


class Large(Reader):
    """Many shards; every fifth sample is bad, and says which it is. ``bad_shards`` are bad as a whole."""

    counts = (100,) * 320

    def __init__(self, bad_shards=()) -> None:
        self.asked: list[int] = []
        self.bad_shards = bad_shards

    def read(self, number):
        self.asked.append(number)
        if number % 5 == 0 or number // 100 in self.bad_shards:
            raise BadSample("bad", f"sample {number}")
        return Sample(str(number), b"", "words", ("words",))


def test_a_replacement_comes_from_the_same_window():
    reader = Large()
    stream = Stream([Told(), reader], [1.0, 3.0], [CaptionMix()], letters, 0)
    read = [stream.batch(range(start, start + 64)) for start in (0, 64)]
    place = min(stream.mixture.at(p)[1] for p in range(128) if stream.mixture.at(p)[0])
    window = set(stream.orders[1].window_samples(place).tolist())
    assert sum(len(batch.bad) for batch in read) > 10
    assert set(reader.asked) <= window
    assert len({number // 100 for number in reader.asked}) <= 32
    again = Stream([Told(), Large()], [1.0, 3.0], [CaptionMix()], letters, 0)
    assert again.batch(range(40, 72)).keys == (read[0].keys + read[1].keys)[40:72]


def test_a_window_that_is_bad_as_a_whole_is_replaced_from_the_others():
    order = Stream([Large()], [1.0], [CaptionMix()], letters, 0).orders[0]
    bad = {int(number) // 100 for number in order.window_samples(0)}
    batch = Stream([Large(bad)], [1.0], [CaptionMix()], letters, 0).batch(range(4))
    assert not batch.fatal
    assert all(int(key) // 100 not in bad for key in batch.keys)


def test_what_is_told_of_a_bad_sample_is_the_first_fault():
    stream = Stream([Large()], [1.0], [CaptionMix()], letters, 0)
    numbers = stream.orders[0].samples(0, 400)
    told = [detail for _, detail in stream.batch(range(400)).bad]
    assert told == [f"sample {number}" for number in numbers if number % 5 == 0]


@pytest.mark.skipif(sys.platform != "linux", reason="fork is chosen on Linux only")
def test_workers_are_forked_whatever_the_interpreter_does_by_itself(monkeypatch):
    stream = Stream([Large()], [1.0], [CaptionMix()], letters, 0)
    made = loader(stream, LocalBatches(0, 4, 4), 1, pin=False)
    assert made.multiprocessing_context.get_start_method() == "fork"


def test_a_set_with_nothing_usable_says_so_and_does_not_spin(tmp_path):
    stream = stream_of(scenes.write_shards(tmp_path / "s", 3, change=lambda n, m: m[:1]))
    (batch,) = loader(stream, LocalBatches(0, 2, 2), 0, pin=False)
    assert "none usable; the first: 00000.tar: sample" in batch.fatal
    assert "hint:" in batch.fatal
    assert not batch.views


def test_pictures_stay_eight_bit(tmp_path):
    (batch,) = loader(
        stream_of(scenes.write_shards(tmp_path / "s", 4)), LocalBatches(0, 4, 4), 0, pin=False
    )
    assert batch.views["image"].dtype == torch.uint8
    assert batch.views["image"].shape == (4, 16, 16, 3)
    assert batch.to(torch.device("cpu")).views["text"].shape == (4, 2)
    assert batch.cost_s > 0


def same_views(one: Batch, two: Batch) -> None:
    assert one.keys == two.keys
    assert one.positions.tolist() == two.positions.tolist()
    assert one.views.keys() == two.views.keys()
    for name, rows in one.views.items():
        assert torch.equal(rows, two.views[name])
    for name, rows in one.stored.items():
        assert torch.equal(rows, two.stored[name])


@pytest.mark.parametrize("augment", ["worker", "device"])
def test_some_rows_of_a_batch_are_a_batch(tmp_path, augment):
    stream = stream_of(scenes.write_shards(tmp_path / "s", 9), augment=augment)
    whole = stream.batch(range(3, 12))
    whole.stored["teacher"] = torch.arange(18.0).reshape(9, 2)
    assert len(whole) == 9
    assert whole.positions.tolist() == list(range(3, 12))
    parts = [whole.rows(start, min(start + 4, 9)).to("cpu") for start in range(0, 9, 4)]
    moved = whole.to("cpu")
    for name, rows in moved.views.items():
        assert torch.equal(torch.cat([part.views[name] for part in parts]), rows)
    assert torch.equal(torch.cat([p.stored["teacher"] for p in parts]), whole.stored["teacher"])
    assert [key for part in parts for key in part.keys] == whole.keys
    assert moved.positions.dtype == torch.int64
    same_views(pickle.loads(pickle.dumps(moved)), moved)


def test_cropping_on_the_device_changes_no_pixel_by_more_than_a_level(tmp_path):
    folder = scenes.write_shards(tmp_path / "s", 12)
    (one,) = loader(stream_of(folder), LocalBatches(0, 12, 12), 0, pin=False)
    (two,) = loader(stream_of(folder, augment="device"), LocalBatches(0, 12, 12), 1, pin=False)
    moved = two.to("cpu")
    assert (moved.views["image"].int() - one.views["image"].int()).abs().max() <= 1
    assert torch.equal(moved.views["text"], one.views["text"])
    assert moved.keys == one.keys


class Told(Reader):
    """A reader that notes what it is told, with pictures of its own."""

    counts = (5, 7)

    def __init__(self, stored: bool = True) -> None:
        self.told: list[list[int]] = []
        self.asked: list[int] = []
        self.stored = stored

    def ahead(self, numbers):
        self.told.append(list(numbers))

    def read(self, number):
        self.asked.append(number)
        stored = {"teacher": np.full(3, number, np.float16)} if self.stored else {}
        return Sample(str(number), scenes.picture(number), "words", (), {}, stored)


def test_readers_are_told_what_comes_and_in_which_order():
    reader = Told()
    stream = Stream([reader], [1.0], VIEWS, letters, 0)
    batches = list(loader(stream, LocalBatches(0, 12, 4), 0, pin=False))
    assert len(batches) == 3
    assert [numbers[:4] for numbers in reader.told] == [
        reader.asked[at : at + 4] for at in (0, 4, 8)
    ]
    assert all({0, 5} <= set(numbers[4:]) for numbers in reader.told)  # one sample of each shard


def test_what_sidecars_hold_comes_along_in_order():
    batch = Stream([Told()], [1.0], VIEWS, letters, 0).batch(range(4))
    assert batch.stored["teacher"].dtype == torch.float32
    assert batch.stored["teacher"].tolist() == [[float(key)] * 3 for key in batch.keys]


def test_a_set_without_what_another_stores_is_named():
    stream = Stream([Told(), Told(stored=False)], [1.0, 1.0], VIEWS, letters, 0)
    assert "has no stored 'teacher'" in stream.batch(range(16)).fatal


def test_text_comes_in_the_shortest_bucket(tmp_path):
    folder = scenes.write_shards(tmp_path / "s", 4)
    stream = Stream([TarSet(str(folder))], [1.0], VIEWS, letters, 0, buckets=(2, 1))
    assert stream.batch([0]).views["text"].shape == (1, 2)


def lettered(texts: list[str]) -> torch.Tensor:
    """One id a letter, int64 (B, 48)."""
    rows = [[1 + ord(c) for c in text] for text in texts]
    return torch.tensor([row + [0] * (48 - len(row)) for row in rows])


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_are_grouped_by_length_and_so_are_those_of_micro_batches(tmp_path, workers):
    folder = scenes.write_shards(tmp_path / "s", 16)
    stream = Stream([TarSet(str(folder))], [1.0], VIEWS, lettered, 0, buckets=(34, 36))
    (batch,) = loader(stream, LocalBatches(0, 16, 16), workers, pin=False)
    assert batch.groups == {}  # made where the rows go
    captions = lettered([scenes.caption(int(n)) for n in stream.orders[0].samples(0, 16)])
    used = (captions != 0).sum(1)
    assert used.unique().numel() > 3
    moved = batch.to("cpu")
    for start, stop in ((0, 16), (0, 5), (5, 16), (3, 4)):
        part = moved.rows(start, stop) if (start, stop) != (0, 16) else moved
        ids = part.views["text"]
        assert ids.shape == (stop - start, max(bucket for bucket in moved.lengths))
        groups = part.groups.get("text")
        spans = part.text_spans("text")
        if groups is None:
            assert spans == [(ids.shape[1], len(ids))]
            continue
        assert spans == list(groups.spans)
        for (length, _), rows in zip(spans, groups.order.split([n for _, n in spans])):
            assert (used[start:stop][rows] <= length).all()
    by_hand = [span for start in (0, 6, 12) for span in moved.rows(start, min(start + 6, 16)).text_spans("text")]  # fmt: skip
    assert moved.text_spans("text", 6) == by_hand
    assert len(moved.text_spans("text")) > 1


def test_a_stream_that_must_not_split_gives_no_groups(tmp_path):
    folder = scenes.write_shards(tmp_path / "s", 16)
    reader = TarSet(str(folder))
    stream = Stream([reader], [1.0], VIEWS, lettered, 0, buckets=(34, 36), split=False)
    batch = stream.batch(range(16)).to("cpu")
    assert batch.groups == {}
    assert batch.rows(0, 4).groups == {}
    assert batch.text_spans("text", 4) == [(batch.views["text"].shape[1], 16)]


@pytest.mark.parametrize("samples_seen", [0, 5, 12])
def test_the_number_of_batches_left_is_known(samples_seen):
    batches = LocalBatches(samples_seen, 12, 4)
    assert len(batches) == len(list(batches))


def test_a_rank_that_dies_of_an_exception_does_not_wait_for_its_workers(tmp_path):
    """Its traceback keeps the loader alive, and multiprocessing asks each worker to end only once."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from pretrain.stream import batch
from torch.utils.data import Dataset
batch._ENDS_WITHIN_S = 2
class Numbers(Dataset):
    def __getitems__(self, positions): return positions
def work():
    coming = iter(batch.loader(Numbers(), [[n] for n in range(1000)], 2, False))
    next(coming)
    raise RuntimeError("planted")
work()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, timeout=200
    )
    assert "planted" in ended.stderr
    assert ended.returncode == 1
