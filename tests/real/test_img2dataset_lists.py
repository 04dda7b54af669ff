"""img2dataset's own test cases through both: its Downloader and Resizer as they are, and download.fetch.

Equal cases of its tests (picture sizes, resize modes, skipped re-encoding, filters, hashes, disallowed
headers) and of what lists hold besides: the same rows come in, with the same widths and heights, except
where img2dataset's result is a defect. Those are named in ``DEFECTS``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from curate.download.fetch import Fetch
from curate.score.picture import decode
from tests.bench.web import Answer, Site, answer, served
from tests.tiny.pictures import encoded, quadrants, with_orientation

pytestmark = pytest.mark.net
# The sizes of its test pictures, and the cases of its tests: mode, resize_only_if_bigger, skip_reencode.
SIZES = ((123, 456), (208, 495), (321, 421), (389, 535), (416, 264), (456, 123), (524, 316))
MODES = (
    ("border", False, False), ("border", False, True), ("border", True, False), ("keep_ratio", False, False),
    ("keep_ratio", True, False), ("keep_ratio", True, True), ("keep_ratio_largest", False, False),
    ("keep_ratio_largest", True, False), ("keep_ratio_largest", True, True), ("center_crop", False, False),
    ("center_crop", True, False), ("no", False, False), ("no", False, True),
)  # fmt: skip
FIGURES = ("status", "width", "height", "original_width", "original_height")


def photograph(width: int, height: int) -> np.ndarray:
    """Smooth colours with some detail, so that sizes and pixels can be compared after JPEG."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = [
        127 + 60 * np.sin(x / 23 + n) * np.cos(y / (17 + 5 * n)) + 20 * np.sin((x + y) / 9)
        for n in range(3)
    ]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


def animation() -> bytes:
    frames = [Image.fromarray(photograph(300 + 0 * n, 280)).convert("P") for n in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def with_alpha() -> np.ndarray:
    return np.dstack(
        [quadrants(300, 280), np.tile(np.linspace(0, 255, 300).astype(np.uint8), (280, 1))]
    )


def mode_of(pixels: np.ndarray, mode: str, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


PHOTO = photograph(400, 300)
JPEG = encoded(PHOTO, "JPEG", quality=95)
# What lists hold besides plain photographs. Name -> answer, or a URL that is asked for as it is.
WEB: dict[str, Answer | str] = {
    "jpeg": answer("200 OK", JPEG),
    "png": answer("200 OK", encoded(PHOTO)),
    "webp": answer("200 OK", encoded(PHOTO, "WEBP")),
    "bmp": answer("200 OK", encoded(PHOTO, "BMP")),
    "tiff": answer("200 OK", encoded(PHOTO, "TIFF")),
    "grey jpeg": answer("200 OK", encoded(PHOTO[..., 0], "JPEG")),
    "progressive jpeg": answer("200 OK", encoded(PHOTO, "JPEG", progressive=True)),
    "palette png": answer("200 OK", mode_of(PHOTO, "P", "PNG")),
    "alpha png": answer("200 OK", encoded(with_alpha())),
    "animated gif": answer("200 OK", animation()),
    "one pixel": answer("200 OK", encoded(np.zeros((1, 1), np.uint8), "GIF")),
    "called text": answer("200 OK", JPEG, Content_Type="text/plain"),
    "junk behind": answer("200 OK", JPEG + bytes(5_000_000)),
    "noai": answer("200 OK", JPEG, X_Robots_Tag="noai"),
    "another bot": answer("200 OK", JPEG, X_Robots_Tag="otherbot: noai"),
    "archive only": answer("200 OK", JPEG, X_Robots_Tag="noarchive"),
    "404": answer("404 Not Found", b"no"),
    "403 with a picture": answer("403 Forbidden", JPEG),
    "html": answer("200 OK", b"<!DOCTYPE html><p>gone"),
    "svg": answer("200 OK", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "empty": answer("200 OK", b""),
    "text": answer("200 OK", b"not a picture"),
    "short body": Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", JPEG, end="close"),
    "nobody": "http://127.0.0.1:1/x.jpg",
    "no scheme": "127.0.0.1/x.jpg",
    "empty URL": "",
    # from here on: img2dataset's result is a defect
    "gzip-encoded": answer("200 OK", gzip.compress(JPEG), Content_Encoding="gzip"),
    "space in the URL": answer("200 OK", JPEG),
    "non-ASCII URL": answer("200 OK", JPEG),
    "unavailable_after, noai": answer("200 OK", JPEG, X_Robots_Tag="unavailable_after: 1 Jan 2090, noai"),
    "data URL": "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
    "turned": answer("200 OK", with_orientation(PHOTO, 6)),
    "16-bit grey": answer("200 OK", encoded(np.full((300, 400), 0x4080, np.uint16))),
    "strip": answer("200 OK", encoded(np.zeros((20, 2000, 3), np.uint8))),
    "negative length": Answer(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", JPEG, end="close"),
}  # fmt: skip
PATHS = {"space in the URL": "a photo.jpg", "non-ASCII URL": "größe-写真.jpg"}
# Name -> (what img2dataset says, what download.fetch says): status, or a figure that differs.
DEFECTS: dict[str, tuple[Any, Any]] = {
    "gzip-encoded": ("failed_to_resize", "success"),  # the coding is not undone
    "space in the URL": ("failed_to_download", "success"),
    "non-ASCII URL": ("failed_to_download", "success"),
    "unavailable_after, noai": ("success", "failed_to_download"),  # only the first colon is read
    "data URL": ("success", "failed_to_download"),  # file: too, see below
    "turned": ((400, 300), (300, 400)),  # EXIF orientation is lost
    "16-bit grey": (255, 0x40),  # saturates: all white
    "strip": ("success", "failed_to_resize"),  # in keep_ratio 25,600 x 256 px, out of 2,000 x 20
    "negative length": ("success", "failed_to_download"),
}  # fmt: skip


class Rows:
    """img2dataset's sample writer class and its instance in one: rows in memory, by key."""

    def __init__(self) -> None:
        self.found: dict[int, dict[str, Any]] = {}

    def __call__(self, *_: Any) -> Rows:
        return self

    def write(
        self, image: bytes | None, key: str, caption: str | None, meta: dict[str, Any]
    ) -> None:
        self.found[int(key)] = {**meta, "image": image}

    def close(self) -> None:
        """Nothing is open."""


def by_img2dataset(urls: list[str], folder: Path, **options: Any) -> list[dict[str, Any]]:
    """What img2dataset makes of the URLs, nothing of ours between."""
    from curate.download.img2dataset_engine import borrowed

    downloader, resizer = borrowed()
    rows = Rows()
    path = str(folder / "shard.feather")
    table = pa.table({"url": urls, **options.pop("columns", {})})
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    downloader.Downloader(
        rows, resizer.Resizer(**{"image_size": 256, "resize_mode": "border", "resize_only_if_bigger": False, **options}),
        thread_count=16, save_caption=False, extract_exif=False, output_folder=str(folder), column_list=table.column_names,
        timeout=5, number_sample_per_shard=len(urls), oom_shard_count=5, compute_hash="sha256",
        verify_hash_type=next((name for name in table.column_names if name in ("md5", "sha512")), None),
        encode_format=options.get("encode_format", "jpg"), retries=0, user_agent_token=None,
        disallowed_header_directives=["noai", "noimageai", "noindex", "noimageindex"],
    ).download_shard((0, path))  # fmt: skip
    return [rows.found[number] for number in range(len(urls))]


def by_fetch(urls: list[str], **options: Any) -> list[dict[str, Any]]:
    """What download.fetch makes of the URLs; ``min_image_size`` as img2dataset's."""
    options = {"min_image_size": 0, "resize_mode": "border", "quality": "exact", **options}
    columns = options.pop("columns", {})
    stage = Fetch(allow_hosts=("127.0.0.1",), **options)
    stage.check()
    names = [f"{number:032x}" for number in range(len(urls))]
    table = pa.table({"uid": names, "url": urls, **columns})
    found: list[dict[str, Any]] = stage.process(table, stage.open()).to_pylist()
    return found


@pytest.fixture(scope="module")
def pictures() -> Iterator[tuple[Site, list[bytes]]]:
    bodies = [encoded(photograph(width, height), "JPEG", quality=92) for width, height in SIZES]
    with served([answer("200 OK", body) for body in bodies]) as site:
        yield site, bodies


@pytest.mark.parametrize("image_size", [256, 512])
@pytest.mark.parametrize(("mode", "only_if_bigger", "skip_reencode"), MODES)
def test_its_sizes_and_modes(
    pictures: Any,
    tmp_path: Path,
    mode: str,
    only_if_bigger: bool,
    skip_reencode: bool,
    image_size: int,
) -> None:
    site, bodies = pictures
    urls = [site.url(number) for number in range(len(bodies))]
    options = {
        "image_size": image_size,
        "resize_mode": mode,
        "resize_only_if_bigger": only_if_bigger,
        "skip_reencode": skip_reencode,
    }
    theirs, ours = by_img2dataset(urls, tmp_path, **options), by_fetch(urls, **options)
    for their, our, body in zip(theirs, ours, bodies):
        assert [our[name] for name in (*FIGURES, "sha256")] == [
            their[name] for name in (*FIGURES, "sha256")
        ]
        assert (our["image"] == body) is (their["image"] == body)  # re-encoded by both or by none
        difference = decode(our["image"]).astype(float) - decode(their["image"])
        assert 10 * np.log10(255**2 / max(np.mean(difference**2), 1e-9)) > 37


@pytest.mark.parametrize(("quality", "form"), [(95, "jpg"), (95, "webp"), (9, "png")])
def test_its_formats(pictures: Any, tmp_path: Path, quality: int, form: str) -> None:
    site, bodies = pictures
    urls = [site.url(number) for number in range(len(bodies))]
    options = {"encode_format": form, "encode_quality": quality}
    for their, our in zip(by_img2dataset(urls, tmp_path, **options), by_fetch(urls, **options)):
        assert [our[name] for name in FIGURES] == [their[name] for name in FIGURES]
        assert our["image"][:4] == their["image"][:4]
        assert decode(our["image"]).shape == decode(their["image"]).shape


@pytest.mark.parametrize(
    ("limits", "ok"),
    [({"min_image_size": 200, "max_aspect_ratio": 1.5}, 2), ({"max_image_area": 60_000}, 2)],
)
def test_its_filters(pictures: Any, tmp_path: Path, limits: dict[str, Any], ok: int) -> None:
    site, bodies = pictures
    urls = [site.url(number) for number in range(len(bodies))]
    options = {"resize_mode": "no", "resize_only_if_bigger": True, **limits}
    theirs, ours = by_img2dataset(urls, tmp_path, **options), by_fetch(urls, **options)
    assert [row["status"] for row in ours] == [row["status"] for row in theirs]
    assert sum(row["status"] == "success" for row in ours) == ok
    kinds = {
        "image too small": "too_small",
        "image area too large": "too_large.pixels",
        "aspect ratio too large": "too_large.aspect",
    }
    for their, our in zip(theirs, ours):
        assert (our["reason"] or "").removeprefix("error.download.fetch.") == kinds.get(
            their["error_message"], ""
        )


def test_its_expected_hashes(pictures: Any, tmp_path: Path) -> None:
    site, bodies = pictures
    urls = [site.url(number) for number in range(len(bodies))]
    hashes = [hashlib.md5(body).hexdigest() for body in bodies]
    hashes[2] = hashes[3]
    theirs = by_img2dataset(urls, tmp_path, columns={"md5": hashes})
    ours = by_fetch(urls, columns={"md5": hashes}, verify_hash=("md5", "md5"))
    assert [row["status"] == "success" for row in ours] == [
        row["status"] == "success" for row in theirs
    ]
    assert ours[2]["reason"] == "error.download.fetch.hash"
    assert [row["sha256"] for row in ours if row["sha256"]] == [
        row["sha256"] for row in theirs if row["sha256"]
    ]


def test_the_same_rows_come_in_but_for_its_defects(tmp_path: Path) -> None:
    with served(
        [found if isinstance(found, Answer) else answer("404 Not Found") for found in WEB.values()]
    ) as site:
        urls = [
            found
            if isinstance(found, str)
            else site.url(number).replace("picture.jpg", PATHS.get(name, "picture.jpg"))
            for number, (name, found) in enumerate(WEB.items())
        ]
        theirs = dict(zip(WEB, by_img2dataset(urls, tmp_path)))
        ours = dict(zip(WEB, by_fetch(urls)))
    for name in WEB:
        if name not in DEFECTS:
            same = [
                (row["status"] == "success", *(row[key] for key in FIGURES[1:]))
                for row in (theirs[name], ours[name])
            ]
            assert same[0] == same[1], name
    for name, told in DEFECTS.items():
        if isinstance(told[0], str):
            assert (theirs[name]["status"], ours[name]["status"]) == told, name
    sizes = [
        (row["original_width"], row["original_height"])
        for row in (theirs["turned"], ours["turned"])
    ]
    assert tuple(sizes) == DEFECTS["turned"]
    grey = [round(decode(row["16-bit grey"]["image"])[128, 128].mean()) for row in (theirs, ours)]
    assert tuple(grey) == DEFECTS["16-bit grey"]


def test_a_local_file_never_comes_in(tmp_path: Path) -> None:
    """img2dataset reads the machine's own files: the local file is a success there."""
    path = tmp_path / "private.jpg"
    path.write_bytes(JPEG)
    urls = [f"file://{path}"]
    assert by_img2dataset(urls, tmp_path)[0]["status"] == "success"
    assert by_fetch(urls)[0]["reason"] == "error.download.fetch.scheme"
    assert os.path.exists(path)
