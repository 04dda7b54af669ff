"""filter.eval_overlap: planted evaluation pictures and captions are found, and nothing else."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curate.filter import eval_overlap
from curate.filter.eval_overlap import EvalOverlap, normalised
from curate.score import vectors
from curate.score.phash import Phash
from curate.stage import StageError
from tests.tiny import eval_sets
from tests.tiny.pictures import encoded, tar_files
from tests.tiny.pictures import shared_data as shared_file

IMAGE, CAPTION, EMBEDDING = (f"eval_overlap.{name}" for name in ("image", "caption", "embedding"))


def scene(number: int) -> Image.Image:
    """Random shades that fall off with frequency as those of photographs do."""
    rng, total = np.random.default_rng(number), np.zeros((280, 360, 3))
    for octave in range(6):
        shape = (3 << octave, 4 << octave, 3)
        noise = Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8))
        total += np.asarray(noise.resize((360, 280), Image.Resampling.BICUBIC)) / (1 << octave)
    return Image.fromarray((total / 2).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def copies(image: Image.Image) -> list[bytes]:
    """Re-encoded, halved in size, 2 % cut off the sides, and as PNG."""
    width, height = image.size
    left, top = max(width // 100, 1), max(height // 100, 1)
    cut = image.crop((left, top, width - left, height - top))
    halved = image.resize((width // 2, height // 2))
    return [jpeg(image, 50), jpeg(halved), jpeg(cut), encoded(np.asarray(image), "PNG")]


def with_hashes(images: Sequence[bytes | None]) -> pa.Table:
    hashed = Phash().process(pa.table({"image": pa.array(images, pa.binary())}), None)
    return hashed.select(["phash"])


def decided(stage: EvalOverlap, table: pa.Table, cut: int = 0) -> dict[str, list[Any]]:
    stage = pickle.loads(pickle.dumps(stage))
    stage.check()
    state, rows = stage.open(), cut or max(len(table), 1)
    slices = [table.slice(start, rows) for start in range(0, len(table), rows)]
    done = [stage.process(part, state) for part in slices]
    assert all(part.schema == stage.writes() for part in done)
    whole = pa.concat_tables(done, promote_options="permissive").to_pydict()
    assert whole["keep"] == [reason is None for reason in whole["reason"]]
    assert whole["keep"] == [item is None for item in whole["overlap"]]
    return whole


def test_planted_pictures_are_found_and_nothing_else(tmp_path: Path) -> None:
    held_out = {f"{n:03d}.jpg": jpeg(scene(n)) for n in range(12)}
    tar = eval_sets.tar(tmp_path / "val.tar.gz", held_out)
    planted = [(copy, f"val/{n:03d}.jpg") for n in range(12) for copy in copies(scene(n))]
    others = [(jpeg(scene(n)), None) for n in range(100, 200)]
    rows = [*planted, *others, (jpeg(Image.new("RGB", (64, 64), "white")), None)]
    table = with_hashes([image for image, _ in rows])
    found = decided(EvalOverlap(pictures=(tar,)), table)
    assert found["overlap"] == [item for _, item in rows]
    assert found["reason"] == [IMAGE if item else None for _, item in rows]
    assert decided(EvalOverlap(pictures=(tar,)), table, cut=7) == found


def test_stored_hashes_spare_the_hashing(tmp_path: Path) -> None:
    table = with_hashes([jpeg(scene(n)) for n in range(5)])
    path = str(tmp_path / "phash.parquet")
    pq.write_table(table.slice(0, 3).append_column("uid", pa.array(["a", "b", "c"])), path)
    found = decided(EvalOverlap(pictures=(path,)), table)
    assert found["overlap"] == ["phash/a", "phash/b", "phash/c", None, None]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), radius=st.integers(0, 40), block=st.sampled_from([1, 3, 4096]))
def test_the_nearest_hash_within_the_radius_as_all_pairs_have_it(
    data: st.DataObject, radius: int, block: int
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    items = rng.integers(0, 256, (6, 32)).astype(np.uint8)
    noise = np.packbits(rng.random((9, 256)) < data.draw(st.sampled_from([0.02, 0.1])), axis=1)
    own = items[rng.integers(0, 6, 9)] ^ noise
    state = eval_overlap.Found([f"i{n}" for n in range(6)], items, {}, [], np.zeros((0, 0)))
    column = pa.chunked_array([pa.array([row.tobytes() for row in own], pa.binary())])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval_overlap, "_BLOCK_ITEMS", block)
        found = eval_overlap._near_hashes(column, state, radius)
    expected = {}
    for row, mine in enumerate(own):
        apart = np.unpackbits(items ^ mine, axis=1)
        low = apart.reshape(6, 16, 16)[:, :8, :8].sum(axis=(1, 2))
        bits = np.where(low <= radius // 4, apart.sum(axis=1), 999)
        if bits.min() <= radius:
            expected[row] = f"i{bits.argmin()}"
    assert found == expected


def test_captions_are_equal_but_for_their_form(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("A dog runs, on the beach.\na cat\nＡ ｂｉｇ café at night\n森の中を走る犬\n")
    rows = {
        "a dog RUNS on the  beach": "captions/0",
        "“A dog runs – on the beach”": "captions/0",
        "A dog runs on the beach today": None,
        "a cat": None,
        "A big cafe\u0301 at night": "captions/2",
        "a big cafe at night": None,
        "森の中を走る犬。": "captions/3",
        "": None,
        None: None,
    }
    table = pa.table({"caption": pa.array(list(rows), pa.string())})
    found = decided(EvalOverlap(captions=(str(path),)), table)
    assert found["overlap"] == list(rows.values())
    assert set(found["reason"]) == {CAPTION, None}
    short = decided(EvalOverlap(captions=(str(path),), min_words=2), table)
    assert short["overlap"][3] == "captions/1"
    assert decided(EvalOverlap(captions=(str(path),)), table, cut=2) == found


@given(st.text(st.characters(codec="utf-8")))
def test_a_normal_form_is_its_own(text: str) -> None:
    once = normalised(pa.array([text]))
    assert normalised(once).to_pylist() == normalised(normalised(once)).to_pylist()
    assert normalised(pa.array([f" {text}!"])).to_pylist() == once.to_pylist()


def test_embeddings_by_their_cosine(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    items = rng.normal(size=(5, 32)).astype(np.float32) * 3
    np.save(tmp_path / "val.npy", np.vstack([items, np.zeros((1, 32), np.float32)]))
    near = items + rng.normal(size=items.shape) * 0.1
    own = np.vstack([near[::-1], rng.normal(size=(20, 32)), np.full((1, 32), np.nan)])
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    table = pa.table({"embedding_image": vectors.to_column(own, 32)})
    stage = EvalOverlap(embeddings=(str(tmp_path / "val.npy"),))
    stage.check_columns({"embedding_image": table["embedding_image"].type})
    found = decided(stage, table)
    assert found["overlap"] == [*(f"val/{n}" for n in (4, 3, 2, 1, 0)), *[None] * 21]
    assert found["reason"][0] == EMBEDDING
    assert decided(stage, table, cut=1) == found
    narrow = pa.table({"embedding_image": vectors.to_column(own[:, :16], 16)})
    with pytest.raises(StageError, match=r"have 32 numbers, the column has 16.*hint"):
        decided(stage, narrow)


def test_a_similarity_of_one_finds_equal_embeddings(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    items = rng.normal(size=(500, 24))
    items = (items / np.linalg.norm(items, axis=1, keepdims=True)).astype(np.float16)
    np.save(tmp_path / "val.npy", items)
    norms = np.linalg.norm(items.astype(np.float32), axis=1, keepdims=True)
    equal = (items.astype(np.float32) / norms).astype(np.float16)  # as the set's are scaled
    other = equal.copy()
    other[:, 0] = np.nextafter(other[:, 0], np.float16(2))
    table = pa.table({"embedding_image": vectors.to_column(np.concatenate([equal, other]), 24)})
    stage = EvalOverlap(embeddings=(str(tmp_path / "val.npy"),), similarity=1.0)
    assert decided(stage, table)["overlap"] == [*(f"val/{n}" for n in range(500)), *[None] * 500]


def test_the_radius_decides(tmp_path: Path) -> None:
    image = scene(1)
    width, height = image.size
    cut = image.crop((4, 3, width - 4, height - 3))
    table = with_hashes([jpeg(image), jpeg(cut)])
    whole, other = (int.from_bytes(value) for value in table["phash"].to_pylist())
    apart = (whole ^ other).bit_count()
    assert 12 <= apart <= 26
    folder = eval_sets.folder(tmp_path / "val", {"1.jpg": jpeg(image)})
    for radius in (0, 8, apart - 1, apart, 26, 40):
        found = decided(EvalOverlap(pictures=(folder,), radius=radius), table)
        assert found["overlap"] == ["val/1.jpg", "val/1.jpg" if radius >= apart else None], radius


def test_the_first_way_gives_the_reason_and_columns_follow_the_options(tmp_path: Path) -> None:
    folder = eval_sets.folder(tmp_path / "val", {"1.jpg": jpeg(scene(1))})
    text = tmp_path / "text.txt"
    text.write_text("four words are enough\n")
    stage = EvalOverlap(pictures=(folder,), captions=(str(text),))
    assert stage.reads() == ("phash", "caption")
    assert EvalOverlap(embeddings=("x",), embedding="embedding_b").reads() == ("embedding_b",)
    table = with_hashes([jpeg(scene(1)), jpeg(scene(2)), None])
    caption = pa.array(["four words are enough", "Four words are enough!", "other words"])
    found = decided(stage, table.append_column("caption", caption))
    assert found["reason"] == [IMAGE, CAPTION, None]
    assert found["overlap"] == ["val/1.jpg", "text/0", None]


def test_what_decides_is_in_the_identity(tmp_path: Path) -> None:
    folder = eval_sets.folder(tmp_path / "val", {"1.jpg": jpeg(scene(1)), "1.txt": b"some words"})
    both = [EvalOverlap(pictures=(folder,)), EvalOverlap(captions=(folder,))]
    assert [stage.inputs() for stage in both] == [(f"{folder}/1.jpg",), (f"{folder}/1.txt",)]
    swapped = EvalOverlap(captions=(f"{folder}/1.txt",)), EvalOverlap(pictures=(f"{folder}/1.txt",))
    assert swapped[0].identity() != swapped[1].identity()


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "nothing to compare with"),
        ({"pictures": ("none.tar",)}, "no such file or folder"),
        ({"captions": ("x",), "radius": 64}, "radius is 64"),
        ({"captions": ("x",), "similarity": 0.0}, "similarity is 0"),
        ({"captions": ("x",), "min_words": 0}, "min_words is 0"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match=f"{found}.*hint: "):
        EvalOverlap(**options).check()


def test_sets_without_anything_to_find_stop_the_run(tmp_path: Path) -> None:
    folder = eval_sets.folder(tmp_path / "val", {"1.jpg": b"no picture", "1.txt": b"a dog"})
    with pytest.raises(StageError, match=r"no picture in .* could be read.*hint"):
        EvalOverlap(pictures=(folder,)).open()
    with pytest.raises(StageError, match=r"no caption of 4 words or more.*hint"):
        EvalOverlap(captions=(folder,)).open()


def test_pictures_without_a_hash_are_told_and_many_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flat = encoded(np.full((64, 64, 3), 200, np.uint8))
    held_out = {"1.jpg": jpeg(scene(1)), "2.jpg": jpeg(scene(2)), "3.png": flat, "4.jpg": b"no"}
    half = eval_sets.folder(tmp_path / "half", held_out)
    assert len(EvalOverlap(pictures=(half,)).open().hash_names) == 2
    assert f"2 of 4 pictures of {half} can't be hashed" in caplog.text
    more = eval_sets.folder(tmp_path / "more", held_out | {"5.png": flat})
    with pytest.raises(StageError, match=r"3 of 5 pictures of .*more can't be hashed.*hint"):
        EvalOverlap(pictures=(half, more)).open()
    path = str(tmp_path / "phash.parquet")
    pq.write_table(with_hashes([jpeg(scene(1)), flat, flat]), path)
    with pytest.raises(StageError, match=r"2 of 3 pictures of .*phash\.parquet"):
        EvalOverlap(pictures=(path,)).open()


def test_a_set_without_a_usable_embedding_stops_the_run(tmp_path: Path) -> None:
    np.save(tmp_path / "val.npy", np.array([[0.0, 0.0], [np.nan, 1.0]]))
    with pytest.raises(StageError, match=r"val\.npy: every embedding is zero or not finite.*hint"):
        EvalOverlap(embeddings=(str(tmp_path / "val.npy"),)).open()


def test_what_is_no_word_is_no_caption_and_signs_are_words(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("!!!\n白い猫\n白い dog\na dog\nコーヒー\n犬3匹\n")

    def looked_for(words: int) -> list[str]:
        return list(EvalOverlap(captions=(str(path),), min_words=words).open().captions)

    assert looked_for(1) == ["白い猫", "白い dog", "a dog", "コーヒー", "犬3匹"]
    assert looked_for(3) == ["白い猫", "白い dog", "コーヒー", "犬3匹"]
    assert looked_for(4) == ["コーヒー"]
    stage = EvalOverlap(captions=(str(path),), min_words=1)
    rows = pa.table({"caption": pa.array(["???", "", " ", None], pa.string())})
    assert decided(stage, rows)["keep"] == [True] * 4


def test_hashes_of_another_length_stop_the_run(tmp_path: Path) -> None:
    folder = eval_sets.folder(tmp_path / "val", {"1.jpg": jpeg(scene(1))})
    stage = EvalOverlap(pictures=(folder,), bits=64, radius=6)
    with pytest.raises(StageError, match=r"another length than the sets' 64 bits.*hint"):
        decided(stage, with_hashes([jpeg(scene(1))]))
    short = Phash(bits=64).process(pa.table({"image": [jpeg(scene(1)), jpeg(scene(2))]}), None)
    assert decided(stage, short)["overlap"] == ["val/1.jpg", None]


def test_real_photographs_planted_among_others() -> None:
    held_out = tar_files(shared_file("pairs-flickr8k-dev.tar"))
    names = sorted(name for name in held_out if name.endswith(".jpg"))
    pool = tar_files(shared_file("pairs-coco-mini-val.tar"))
    others = [data for name, data in pool.items() if name.endswith(".jpg")]
    others += [held_out[name] for name in names[200:400]]
    planted = [
        (copy, name)
        for name in names[:40]
        for copy in copies(Image.open(io.BytesIO(held_out[name])).convert("RGB"))
    ]
    stage = EvalOverlap(pictures=(str(shared_file("pairs-flickr8k-dev.tar")),))
    assert len(stage.open().hash_names) > 0.98 * len(names)
    table = with_hashes([copy for copy, _ in planted])
    found = decided(stage, table)["overlap"]
    right = [item == f"pairs-flickr8k-dev/{name}" for item, (_, name) in zip(found, planted)]
    assert np.mean(right) >= 0.95
    coco = EvalOverlap(pictures=(str(shared_file("pairs-coco-mini-val.tar")),))
    assert decided(coco, with_hashes(others[-200:]))["overlap"] == [None] * 200
