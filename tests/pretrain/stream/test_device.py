import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.stream import device
from pretrain.stream.device import Ragged, resize_into


def empty(shape):
    return torch.empty(shape, dtype=torch.uint8)


def crops_of(*sizes: tuple[int, int]) -> list[tuple[np.ndarray, bool]]:
    """Noise over waves, every second one mirrored."""
    draw = np.random.default_rng(0)
    found = []
    for number, (height, width) in enumerate(sizes):
        y, x = np.mgrid[:height, :width]
        waves = np.sin(x / 5)[..., None] * 70 + np.cos(y / 6)[..., None] * 50 + 128
        pixels = np.clip(waves + draw.normal(0, 40, (height, width, 3)), 0, 255).astype(np.uint8)
        found.append((pixels, number % 2 == 1))
    return found


CROPS = crops_of((40, 40), (61, 37), (16, 16), (9, 12), (33, 90), (1, 1), (64, 64))


def in_the_loader(crops: list[tuple[np.ndarray, bool]], size: int) -> np.ndarray:
    rows = np.zeros((len(crops), size, size, 3), np.uint8)
    for row, (pixels, mirrored) in zip(rows, crops, strict=True):
        resize_into(row, pixels, mirrored)
    return rows


def test_the_device_gives_what_the_loader_gives():
    ragged = Ragged.of(CROPS, 16, empty)
    found, wanted = ragged.to("cpu").numpy(), in_the_loader(CROPS, 16)
    assert found.shape == wanted.shape == (7, 16, 16, 3)
    assert np.abs(found.astype(int) - wanted).max() <= 1
    assert (found == wanted).mean() > 0.95


def test_the_device_gives_what_pillow_gives():
    found = Ragged.of(CROPS, 24, empty).to("cpu").numpy()
    for row, (pixels, mirrored) in zip(found, CROPS, strict=True):
        wanted = np.asarray(Image.fromarray(pixels).resize((24, 24), Image.Resampling.BICUBIC))
        wanted = wanted[:, ::-1] if mirrored else wanted
        difference = np.abs(row.astype(int) - wanted)
        assert difference.max() <= 2  # Pillow may go down first, and rounds in between
        assert difference.mean() < 0.3


def test_any_size_and_contrast_is_within_two_levels():
    draw = np.random.default_rng(5)
    for size in (8, 16, 64):
        crops = []
        for number in range(90):
            height, width = draw.integers(1, 4 * size + 1, 2).tolist()
            width = height if number % 2 else width
            pixels = draw.integers(0, 256, (height, width, 3))
            if number % 3 == 0:
                pixels = (pixels > 127) * 255
            crops.append((pixels.astype(np.uint8), number % 5 == 0))
        loaded = in_the_loader(crops, size).astype(int)
        found = Ragged.of(crops, size, empty).to("cpu").numpy()
        assert np.abs(found - loaded).max() <= 2
        assert (np.abs(found - loaded) <= 1).mean() > 0.999
        for row, (pixels, mirrored) in zip(loaded, crops, strict=True):
            if pixels.shape[0] == pixels.shape[1]:
                wanted = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
                wanted = np.asarray(wanted)[:, :: -1 if mirrored else 1]
                assert np.abs(row - wanted).max() <= 2


def test_rows_do_not_hang_on_their_neighbours(monkeypatch):
    ragged = Ragged.of(CROPS, 16, empty)
    whole = ragged.to("cpu")
    for start, stop in ((0, 3), (2, 7), (6, 7), (3, 3)):
        assert torch.equal(ragged[start:stop].to("cpu"), whole[start:stop])
        assert torch.equal(ragged[start:stop][0:1].to("cpu"), whole[start:stop][0:1])
    assert len(ragged[1:3].pixels) == 61 * 37 + 16 * 16
    monkeypatch.setattr(device, "_CHUNK_PX", 2000)
    assert len(ragged._chunks()) > 3
    assert torch.equal(ragged.to("cpu"), whole)


def test_a_crop_of_the_size_itself_is_copied():
    ((pixels, _),) = crops_of((16, 16))
    assert np.array_equal(in_the_loader([(pixels, False)], 16)[0], pixels)
    assert np.array_equal(in_the_loader([(pixels, True)], 16)[0], pixels[:, ::-1])
    assert np.array_equal(Ragged.of([(pixels, True)], 16, empty).to("cpu")[0], pixels[:, ::-1])


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_view_into_a_larger_picture_is_enough(mirrored):
    ((pixels, _),) = crops_of((60, 70))
    part = pixels[5:45, 11:58]
    one, two = (in_the_loader([(p, mirrored)], 16) for p in (part, part.copy()))
    assert np.array_equal(one, two)


@pytest.mark.gpu
def test_the_gpu_gives_what_the_cpu_gives():
    ragged = Ragged.of(CROPS, 16, empty)
    difference = ragged.pin_memory().to("cuda").cpu().int() - ragged.to("cpu").int()
    assert difference.abs().max() <= 1
