import io
import logging
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from pretrain.loop.step import brought
from pretrain.stream import device_decode
from pretrain.stream.batch import LocalBatches, Stream, loader
from pretrain.stream.device_decode import Bring, DecoderFault, each, nvjpeg
from pretrain.stream.encoded import Encoded
from pretrain.stream.picture import decode_rgb
from pretrain.stream.tars import TarSet
from pretrain.stream.view.caption_mix import CaptionMix
from pretrain.stream.view.crop import Crop
from tests.tiny import jpegs

VIEWS = (Crop(scale=(0.5, 1.0), flip=True).fit(24), CaptionMix())
CPU = torch.device("cpu")


def letters(texts: list[str]) -> torch.Tensor:
    """Text lengths and first bytes, int64 (B, 2)."""
    return torch.tensor([[len(text), text.encode()[0]] for text in texts])


def stream_of(folder: Path, decode: str) -> Stream:
    reader = TarSet(str(folder))
    return Stream([reader], [1.0], VIEWS, letters, 0, augment="device", decode=decode)


def came(folder: Path, decode: str, decoder=None, samples_seen=0, workers=0, batch=12):
    stream = stream_of(folder, decode)
    made = loader(stream, LocalBatches(samples_seen, 48, batch), workers, pin=False)
    return list(brought(made, CPU, Bring(stream, CPU, each(decoder) if decoder else None)))


def rows_of(batches) -> list[tuple]:
    """(position, key, pixels, tokens) of every sample."""
    return [
        (int(batch.positions[row]), key, batch.views["image"][row].numpy().tobytes(), batch.views["text"][row].tolist())
        for batch in batches for row, key in enumerate(batch.keys)
    ]  # fmt: skip


def bad_of(batches) -> list[tuple[str, str]]:
    return [found for batch in batches for found in batch.bad]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Shards of 20 scenes, 15 of them plain JPEGs."""
    return jpegs.write_shards(tmp_path_factory.mktemp("decode") / "s", 20)


@pytest.fixture(scope="module")
def undisturbed(folder) -> list:
    """All that loaders decode themselves."""
    return came(folder, "worker")


def a_third(data: bytes) -> bool:
    return sum(data) % 3 == 0


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("refuses", [lambda data: False, a_third], ids=["none", "a third"])
def test_samples_and_pixels_are_those_of_the_loaders(folder, undisturbed, workers, refuses):
    decoder = jpegs.OnTheCpu(refuses)
    batches = came(folder, "device", decoder, workers=workers)
    assert rows_of(batches) == rows_of(undisturbed)
    assert bad_of(batches) == bad_of(undisturbed) == []
    assert sum(decoder.asked) >= 4 * 8  # three quarters of 12, or so, in each batch


def test_a_run_that_goes_on_and_one_with_other_batches_sees_the_same(folder, undisturbed):
    decoder = jpegs.OnTheCpu(a_third)
    whole = rows_of(undisturbed)
    assert rows_of(came(folder, "device", decoder, samples_seen=24, workers=1)) == whole[24:]
    assert rows_of(came(folder, "device", decoder, batch=6)) == whole


def test_pictures_do_leave_the_loaders_as_bytes(folder):
    batch = stream_of(folder, "device").batch(range(12))
    rows = batch.views["image"]
    assert isinstance(rows, Encoded)
    assert len(rows.sizes) == 12 - len(rows.here) > 6


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """The same, with two JPEGs in which no decoder finds a picture, though their markers are in order."""

    def change(number, members):
        if number in (5, 9):
            data = members[0][1]
            at = data.index(b"\xff\xc4")  # its first table has more codes than there are
            return [("jpg", data[: at + 5] + b"\xfe" * 16 + data[at + 21 :]), *members[1:]]
        return members

    return jpegs.write_shards(tmp_path_factory.mktemp("broken") / "s", 20, change)


def is_broken(data: bytes) -> bool:
    return b"\xfe" * 16 in data


@pytest.mark.parametrize("workers", [0, 2])
def test_what_no_decoder_takes_is_replaced_and_counted_as_by_the_loaders(broken, workers, caplog):
    wanted = came(broken, "worker")
    assert len(bad_of(wanted)) >= 4
    assert {kind for kind, _ in bad_of(wanted)} == {"picture.not_decodable"}
    handed = stream_of(broken, "device").batch(range(20)).views["image"]
    assert sum(is_broken(data.numpy().tobytes()) for data in handed.jpegs()) == 2
    with caplog.at_level(logging.WARNING):
        found = came(broken, "device", jpegs.OnTheCpu(is_broken), workers=workers)
    assert rows_of(found) == rows_of(wanted)
    assert [batch.bad for batch in found] == [batch.bad for batch in wanted]
    assert caplog.text.count("the device's decoder refuses the picture of") == 1


def test_replacements_that_are_refused_too_are_replaced_again(broken):
    """Where the device takes few of the replacements either, and two broken ones are in one batch."""
    wanted = came(broken, "worker")
    decoder = jpegs.OnTheCpu(lambda data: is_broken(data) or a_third(data))
    found = came(broken, "device", decoder, batch=24)
    assert rows_of(found) == rows_of(wanted)
    assert bad_of(found) == bad_of(wanted)


def test_a_batch_that_cannot_be_made_stays_so(tmp_path):
    folder = jpegs.write_shards(tmp_path / "s", 3, lambda n, m: [("jpg", b"not a picture"), *m[1:]])
    (batch, *_) = came(folder, "device", jpegs.OnTheCpu())
    assert "none usable" in batch.fatal


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("Error while decoding JPEG images: CUDA out of memory. Tried to allocate"),
        RuntimeError("Error while decoding JPEG images: Failed to decode batch: 5"),
        RuntimeError("Failed to synchronize CUDA stream: 700"),
        torch.OutOfMemoryError("no room"),
    ],
    ids=str,
)
def test_a_fault_of_the_decoder_itself_ends_the_run_and_blames_no_picture(folder, fault):
    def fails(jpegs):
        raise fault

    (batch, *_) = came(folder, "device", fails)
    assert str(fault) in batch.fatal
    assert 'hint: decode = "worker"' in batch.fatal
    assert batch.bad == []


def test_a_decoder_that_takes_nothing_ends_the_run(folder):
    (batch, *_) = came(folder, "device", jpegs.OnTheCpu(lambda data: True), batch=24)
    assert "it refuses all" in batch.fatal


def test_the_refused_ones_are_found_by_halving():
    given = [torch.tensor([n], dtype=torch.uint8) for n in range(64)]
    calls = []

    def whole(some):
        calls.append(len(some))
        if any(int(one) in (5, 40) for one in some):
            # As torch says it, with the frames it came by.
            raise RuntimeError(
                "Failed to parse jpeg stream: 3\nException raised from CUDA error at x.cpp: 5"
            )
        return [one + 1 for one in some]

    found = each(whole)(given)
    assert [n for n, one in enumerate(found) if isinstance(one, str)] == [5, 40]
    assert found[5] == "Failed to parse jpeg stream: 3"
    assert found[6] == torch.tensor([7])
    assert len(calls) == 1 + 2 * 2 * 6 - 2

    def unknown(some):
        raise NotImplementedError("no such operator on CUDA")  # torch's own, a RuntimeError

    with pytest.raises(DecoderFault, match="no such operator"):
        each(unknown)(given)


def test_without_a_gpu_the_setting_is_refused_with_a_hint():
    with pytest.raises(
        ValueError, match=r"there is no CUDA device here. hint: decode = \"worker\""
    ):
        nvjpeg(CPU)


def test_an_old_cuda_and_a_torchvision_that_does_not_fit_are_refused(monkeypatch):
    gpu = torch.device("cuda", 0)
    for version in (None, "11.8", "12.1"):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(ValueError, match=r"needs CUDA 12.3 or newer, and torch was built with"):
            nvjpeg(gpu)
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def missing(device):
        raise ImportError("no image.so")

    def blind(device):
        return lambda jpegs: [torch.zeros(3, 1, 1)]

    def without(device):
        return lambda jpegs: jpegs[0].no_such_operator()

    for torchvision, why in ((missing, "no image.so"), (blind, "tensor"), (without, "no_such")):
        monkeypatch.setattr(device_decode, "_torchvision", torchvision)
        with pytest.raises(
            ValueError, match=f"does not decode a JPEG on cuda:0: .*{why}.*hint: install"
        ):
            nvjpeg(gpu)
    monkeypatch.setattr(device_decode, "_torchvision", lambda device: jpegs.OnTheCpu())
    assert nvjpeg(gpu)([torch.frombuffer(bytearray(jpegs.jpeg(1)), dtype=torch.uint8)])[0].shape == (3, 40, 56)  # fmt: skip


def level_db(one, two) -> float:
    return 10 * float(np.log10(255**2 / max(((one.astype(float) - two) ** 2).mean(), 1e-9)))


def photograph(height: int, width: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + n) * 60 + np.cos(y / (7 + n)) * 50 + 128 for n in range(3)]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 1))
    return Image.fromarray(np.clip(np.stack(waves, 2) + noise, 0, 255).astype(np.uint8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("subsampling", "least_db"), [(0, 40), (1, 33), (2, 33)])
def test_nvjpegs_pixels_are_the_cpus(subsampling, least_db):
    """Chroma that was halved may be repeated where libjpeg smooths it, so those differ by more."""
    data = []
    for number, image in enumerate([photograph(256, 341), photograph(300, 257), photograph(64, 64)] * 9):  # fmt: skip
        stream = io.BytesIO()
        image = image.convert("L") if number % 4 == 3 and not subsampling else image
        image.save(stream, "JPEG", quality=90, subsampling=subsampling)
        data.append(stream.getvalue())
    decoder = nvjpeg(torch.device("cuda", torch.cuda.current_device()))
    given = [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in data]
    for one, found in zip(data, decoder(given), strict=True):
        assert not isinstance(found, str), found
        pixels = found.permute(1, 2, 0).cpu().numpy()
        assert level_db(pixels, decode_rgb(one)) > least_db
        if subsampling:
            plain = simplejpeg.decode_jpeg(one, fastupsample=True)
            assert max(level_db(pixels, plain), level_db(pixels, decode_rgb(one))) > 38
    given.insert(3, torch.frombuffer(bytearray(data[0][:300]), dtype=torch.uint8))
    assert [isinstance(found, str) for found in decoder(given)].index(True) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_nvjpeg_are_the_cpus(folder, undisturbed, workers):
    gpu = torch.device("cuda", torch.cuda.current_device())
    stream = stream_of(folder, "device")
    made = loader(stream, LocalBatches(0, 48, 12), workers, pin=True)
    found = list(brought(made, gpu, Bring(stream, gpu, nvjpeg(gpu))))
    for one, two in zip(found, undisturbed, strict=True):
        assert one.keys == two.keys
        pixels = one.views["image"].cpu().numpy()
        assert level_db(pixels, two.views["image"].numpy()) > 30  # hard edges, chroma halved
