import pickle

import numpy as np
import pytest
import torch

from pretrain.stream import device
from pretrain.stream.batch import Sample
from pretrain.stream.device_decode import each
from pretrain.stream.draws import Draws
from pretrain.stream.encoded import Encoded, put_rows
from pretrain.stream.rows import rows_for
from pretrain.stream.view.crop import Crop
from tests.tiny import jpegs, scenes

VIEW = Crop(size=16, scale=(0.4, 1.0), flip=True)


def pictures(count: int) -> list[bytes]:
    """JPEGs of many sizes; every fourth one a PNG."""
    found = [jpegs.jpeg(n, 20 + 3 * n % 17, 30 + 5 * n % 23) for n in range(count)]
    return [scenes.picture(n) if n % 4 == 3 else data for n, data in enumerate(found)]


def drawn(data: list[bytes], decode: str, view=VIEW, by_cpu=()):
    rows = rows_for(view, len(data), "device", decode, by_cpu)
    for row, picture in enumerate(data):
        rows.put(row, Sample("key", picture, ""), Draws(0, "view.image", row))
    return rows.close()


def test_decoded_on_the_device_they_are_what_a_loader_would_have_made():
    data = pictures(11)
    encoded, crops = drawn(data, "device"), drawn(data, "worker")
    assert isinstance(encoded, Encoded)
    assert (len(encoded), encoded.here) == (11, (3, 7))
    assert [one.numpy().tobytes() for one in encoded.jpegs()] == [
        one for n, one in enumerate(data) if n % 4 != 3
    ]
    found, refused = encoded.decoded("cpu", each(jpegs.OnTheCpu()))
    assert refused == {}
    assert found.shape == (11, 16, 16, 3)
    assert torch.equal(found, crops.to("cpu"))
    assert len(found.flatten(1).unique(dim=0)) == 11


def test_pictures_are_decoded_a_bounded_number_at_a_time(monkeypatch):
    encoded = drawn(pictures(11), "device")
    whole, _ = encoded.decoded("cpu", each(jpegs.OnTheCpu()))
    monkeypatch.setattr(device, "_CHUNK_PX", 4000)
    decoder = jpegs.OnTheCpu()
    found, _ = encoded.decoded("cpu", each(decoder))
    assert torch.equal(found, whole)
    assert sum(decoder.asked) == 9
    assert max(decoder.asked) < 5


@pytest.mark.parametrize("data", [pictures(4)[:3], [scenes.picture(1)] * 2, pictures(4)], ids=len)
def test_all_none_or_some_of_a_batch_are_jpegs(data):
    found, _ = drawn(data, "device").decoded("cpu", each(jpegs.OnTheCpu()))
    assert torch.equal(found, drawn(data, "worker").to("cpu"))


def test_those_that_are_refused_are_named_with_their_bytes_and_cost_no_other_a_pixel():
    data = pictures(11)
    bad = {0, 5, 6, 10}
    decoder = each(jpegs.OnTheCpu(lambda jpeg: jpeg in [data[row] for row in bad]))
    found, refused = drawn(data, "device").decoded("cpu", decoder)
    assert {row: one.numpy().tobytes() for row, (one, _) in refused.items()} == {row: data[row] for row in bad}  # fmt: skip
    assert all("Failed to decode batch: 4" in why for _, why in refused.values())
    good = [row for row in range(11) if row not in bad]
    assert torch.equal(found[good], drawn(data, "worker").to("cpu")[good])


def test_another_size_than_the_header_says_is_refused():
    def halved(data):
        return [pixels[:, ::2] for pixels in jpegs.OnTheCpu()(data)]

    _, refused = drawn(pictures(3), "device").decoded("cpu", halved)
    assert sorted(refused) == [0, 1, 2]
    assert "came, not (3," in refused[0][1]


def test_rows_for_the_cpu_and_large_pictures_stay_with_the_loader():
    sizes = [(24, 30), (24, 30), (40, 40), (120, 120), (20, 250)]
    data = [jpegs.jpeg(1, *size) for size in sizes]
    whole = Crop(size=16, scale=(1, 1), scaled_decode=False)
    assert drawn(data, "device", whole, by_cpu={1}).here == (1, 3, 4)  # 16 times the crop's area
    scaled = Crop(size=16, scale=(1, 1))
    assert drawn(data, "device", scaled).here == (2, 3, 4)  # 40 pixels are decoded as 20
    found, _ = drawn(data, "device", scaled).decoded("cpu", each(jpegs.OnTheCpu()))
    assert torch.equal(found, drawn(data, "worker", scaled).to("cpu"))


def test_a_row_takes_the_last_sample_it_was_given():
    first, second = pictures(4)[2:4]  # a JPEG, a PNG
    for one, two in ((first, second), (second, first)):
        rows = rows_for(VIEW, 1, "device", "device")
        for data in (one, two):
            rows.put(0, Sample("key", data, ""), Draws(0, "view.image", 0))
        found, _ = rows.close().decoded("cpu", each(jpegs.OnTheCpu()))
        assert torch.equal(found, drawn([two], "worker").to("cpu"))


def test_they_travel_whole():
    encoded = drawn(pictures(6), "device")
    again = pickle.loads(pickle.dumps(encoded))
    assert torch.equal(*(one.decoded("cpu", each(jpegs.OnTheCpu()))[0] for one in (encoded, again)))


def test_rows_are_put_in_their_places():
    out = torch.zeros((4, 2), dtype=torch.uint8)
    put_rows(out, [3, 1], torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8))
    assert np.array_equal(out, [[0, 0], [3, 4], [0, 0], [1, 2]])
