import pytest
import torch

from pretrain.stream.batch import LocalBatches, Stream, loader
from pretrain.stream.tars import TarSet
from pretrain.stream.view.caption_mix import CaptionMix
from pretrain.stream.view.crop import Crop
from tests.tiny import scenes

VIEWS = (Crop(scale=(0.5, 1.0), flip=True).fit(16), CaptionMix())


def letters(texts: list[str]) -> torch.Tensor:
    """A stand-in for the encoder's tokenizer: text lengths and first bytes, int64 (B, 2)."""
    return torch.tensor([[len(text), text.encode()[0]] for text in texts])


def stream_of(*folders, weights=None, seed=0) -> Stream:
    readers = [TarSet(str(folder)) for folder in folders]
    return Stream(readers, weights or [1.0] * len(readers), VIEWS, letters, seed)


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
    assert [keys.count(scenes.uid(number)) for number in range(5)] == [5, 5, 5, 5, 4] or len(
        set(keys)
    ) == 5
    assert sorted(keys[:5]) == sorted({scenes.uid(number) for number in range(5)})


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
    assert batch.to(torch.device("cpu"))["text"].shape == (4, 2)


@pytest.mark.parametrize("samples_seen", [0, 5, 12])
def test_the_number_of_batches_left_is_known(samples_seen):
    batches = LocalBatches(samples_seen, 12, 4)
    assert len(batches) == len(list(batches))
