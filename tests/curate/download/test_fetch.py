"""download.fetch against a local web of good, odd and hostile answers: each row ok or with one reason."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from aiohttp import web

from curate.download.fetch import Fetch
from curate.score.picture import decode
from tests.tiny.local_server import serve
from tests.tiny.pictures import (
    corner_colours,
    encoded,
    quadrants,
    shared_data,
    tar_files,
    with_orientation,
)

PHOTO = encoded(quadrants(400, 300), "JPEG", quality=95)


async def web_of_faults(request: web.Request) -> web.StreamResponse:
    path = request.path
    if path == "/endless" or path == "/drip":
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"\xff" * (1 << 16 if path == "/endless" else 1))
                await asyncio.sleep(0 if path == "/endless" else 0.05)
        return response
    answers: dict[str, dict[str, Any]] = {
        "/photo.jpg": {"body": PHOTO},
        "/gone.jpg": {"status": 404},
        "/page.jpg": {"body": b"<!DOCTYPE html><h1>Not here</h1>", "content_type": "image/jpeg"},
        "/typed as text": {"body": PHOTO, "content_type": "text/plain"},
        "/cut.jpg": {"body": PHOTO[: len(PHOTO) // 2]},
        "/out": {"body": PHOTO, "headers": {"X-Robots-Tag": "noai"}},
        "/away": {"status": 302, "headers": {"Location": "http://10.0.0.1/"}},
        "/pixel.gif": {"body": encoded(np.zeros((1, 1), np.uint8), "GIF")},
        "/strip.png": {"body": encoded(np.zeros((20, 2000, 3), np.uint8))},
        "/deep.png": {"body": encoded(np.full((32, 32), 0x8000, np.uint16))},
        "/turned.jpg": {"body": with_orientation(quadrants(400, 300), 6)},
        "/größe ü.jpg": {"body": PHOTO},
        "/empty": {"body": b""},
    }
    return web.Response(**answers[path])


EXPECTED = {
    "/photo.jpg": None,
    "/gone.jpg": "http.404",
    "/page.jpg": "not_an_image",
    "/typed as text": None,
    "/cut.jpg": "decode",
    "/out": "opt_out",
    "/away": "forbidden_address",
    "/pixel.gif": "too_small",
    "/strip.png": "too_large.aspect",
    "/deep.png": None,
    "/turned.jpg": None,
    "/größe ü.jpg": None,
    "/empty": "not_an_image",
    "/endless": "too_large.bytes",
    "/drip": "timeout",
}


def fetched(urls: list[str | None], **options: Any) -> pa.Table:
    stage = Fetch(allow_hosts=("127.0.0.1",), **{"timeout": 2.0, "max_bytes": 4 << 20, **options})
    stage.check()
    table = stage.process(pa.table({"url": pa.array(urls, pa.string())}), stage.open())
    assert table.schema == stage.writes()
    assert table.num_rows == len(urls)
    return table


@pytest.mark.net
def test_each_row_is_ok_or_has_one_reason() -> None:
    Fetch().open()  # imports take longer than the time-out that is measured here
    with serve(web_of_faults) as base:
        began = time.monotonic()
        table = fetched([base + path for path in EXPECTED])
        assert time.monotonic() - began < 8.0
    reasons = [
        None if kind is None else f"error.download.fetch.{kind}" for kind in EXPECTED.values()
    ]
    assert table["reason"].to_pylist() == reasons
    for row in table.to_pylist():
        ok = row["reason"] is None
        assert row["keep"] is ok
        assert row["status"] == "success" if ok else row["status"].startswith("failed_to_")
        assert (row["error_message"] is None) is ok
        for name in ("image", "width", "height", "original_width", "original_height", "sha256"):
            assert (row[name] is not None) is ok
    rows = dict(zip(EXPECTED, table.to_pylist()))
    assert rows["/photo.jpg"]["sha256"] == hashlib.sha256(PHOTO).hexdigest()
    assert (rows["/photo.jpg"]["width"], rows["/photo.jpg"]["height"]) == (341, 256)
    assert (rows["/photo.jpg"]["original_width"], rows["/photo.jpg"]["original_height"]) == (
        400,
        300,
    )
    assert decode(rows["/deep.png"]["image"]).mean() == pytest.approx(127, abs=1)
    assert (rows["/turned.jpg"]["width"], rows["/turned.jpg"]["height"]) == (256, 341)
    assert corner_colours(decode(rows["/turned.jpg"]["image"])) == "brwg"


@pytest.mark.net
def test_rows_are_the_same_for_any_cut_in_batches() -> None:
    paths = [path for path in EXPECTED if path != "/drip"]
    with serve(web_of_faults) as base:
        whole = fetched([base + path for path in paths])
        parts = [fetched([base + path]) for path in paths]
    assert pa.concat_tables(parts).combine_chunks().to_pylist() == whole.to_pylist()


@pytest.mark.net
def test_loopback_is_closed_unless_named() -> None:
    with serve(web_of_faults) as base:
        stage = Fetch(timeout=2.0)
        table = stage.process(
            pa.table({"url": [base + "/photo.jpg", "file:///etc/hostname", None]}), stage.open()
        )
    kinds = [reason.removeprefix("error.download.fetch.") for reason in table["reason"].to_pylist()]
    assert kinds == ["forbidden_address", "scheme", "bad_url"]


@pytest.mark.net
def test_resize_only_if_bigger_and_limits_are_options() -> None:
    with serve(web_of_faults) as base:
        urls: list[str | None] = [base + "/photo.jpg", base + "/pixel.gif", base + "/strip.png"]
        table = fetched(
            urls,
            image_size=350,
            resize_only_if_bigger=True,
            min_image_size=0,
            max_aspect_ratio=100.0,
            disallowed_header_directives=(),
        )
        assert table["width"].to_pylist() == [400, 1, 2000]
        small = fetched(urls[:1], max_image_area=100_000)
        assert small["reason"].to_pylist() == ["error.download.fetch.too_large.pixels"]
        png = fetched(urls[:1], encode_format="png", encode_quality=3)
        assert png["image"][0].as_py().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "options",
    [
        {"resize_mode": "squash"},
        {"encode_format": "gif"},
        {"encode_format": "png", "encode_quality": 95},
        {"image_size": 0},
        {"timeout": 0},
        {"retries": -1},
        {"max_image_area": 10**9},
        {"user_agent_token": " "},
        {"allow_hosts": ("http://127.0.0.1",)},
        {"allow_hosts": ("*.example.com",)},
    ],
)
def test_impossible_options_are_refused_with_a_hint(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="hint: "):
        Fetch(**options).check()


def test_defaults_are_accepted() -> None:
    Fetch().check()


@pytest.mark.net
@pytest.mark.filterwarnings("ignore")
def test_hostile_files_each_get_one_reason_and_nothing_hangs() -> None:
    files = {
        name: data
        for name, data in tar_files(shared_data("awkward.tar")).items()
        if name.startswith("files/")
    }

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=files[request.path[1:]])

    with serve(answer) as base:
        began = time.monotonic()
        table = fetched([f"{base}/{name}" for name in files], timeout=10.0)
        assert time.monotonic() - began < 15
    rows = dict(zip(files, table.to_pylist()))
    assert all((row["reason"] is None) == (row["image"] is not None) for row in rows.values())
    for name, row in rows.items():
        kind = (row["reason"] or "").removeprefix("error.download.fetch.")
        if name.startswith(("files/not_an_image/", "files/svg/")):
            assert kind == "not_an_image", name
        if name.startswith("files/bomb_or_huge_header/"):
            assert kind in ("too_large.pixels", "decode"), name
        if row["image"] is not None:
            assert min(decode(row["image"]).shape[:2]) == 256, name
    assert sum(row["reason"] is None for row in rows.values()) > 100


def test_failures_that_last_are_kinds_that_are_documented() -> None:
    from curate.download import fetch

    table = fetch.__doc__ or ""
    for kind in fetch.Fetch.lasting_errors:
        assert kind.split(".")[0] in table
        assert kind not in ("timeout", "connection", "refused", "dns", "http.503", "http.429")
