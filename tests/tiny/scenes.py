"""Small labelled scenes for tests: two coloured shapes, their caption and paraphrases, as shards."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.contract import shards, tars
from curate.contract.draw import pair_uid

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 210, 40),
}
SHAPES = ("circle", "square", "triangle", "bar")
RELATIONS = ("left of", "above")

# 32 px, 2 + 2 layers, 64 wide: 3.4 million parameters, nearly all of them the vocabulary.
TINY_MODEL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def words(number: int) -> tuple[str, str, str, str, str]:
    """Colour, shape, relation, colour, shape of scene ``number``; 512 differ."""
    colours = list(COLOURS)
    number, first = divmod(number, 16)
    number, second = divmod(number, 16)
    return (
        colours[first % 4],
        SHAPES[first // 4],
        RELATIONS[number % 2],
        colours[second % 4],
        SHAPES[(second // 4 + first) % 4],
    )


def caption(number: int) -> str:
    c1, s1, relation, c2, s2 = words(number)
    return f"a {c1} {s1} {relation} a {c2} {s2}"


def rewrites(number: int, count: int) -> list[str]:
    """Up to three paraphrases."""
    c1, s1, relation, c2, s2 = words(number)
    inverse = {"left of": "right of", "above": "below"}[relation]
    return [
        f"the {s1} is {c1} and stands {relation} the {c2} {s2}",
        f"there is a {c2} {s2} {inverse} a {c1} {s1}",
        f"two shapes: {c1} {s1}, {relation} {c2} {s2}",
    ][:count]


def picture(number: int, size_px: int = 32, format: str = "PNG") -> bytes:
    """The encoded picture of scene ``number``."""
    from PIL import Image, ImageDraw

    c1, s1, relation, c2, s2 = words(number)
    image = Image.new("RGB", (size_px, size_px), (245, 245, 245))
    draw = ImageDraw.Draw(image)
    half, third = size_px / 2, size_px / 3
    places = [(third / 2, half), (size_px - third / 2, half)]
    if relation == "above":
        places = [(half, third / 2), (half, size_px - third / 2)]
    for (x, y), colour, shape in zip(places, (c1, c2), (s1, s2), strict=True):
        _paint(draw, shape, x, y, size_px / 7, COLOURS[colour])
    stream = io.BytesIO()
    image.save(stream, format)
    return stream.getvalue()


def _paint(
    draw: Any, shape: str, x: float, y: float, r: float, colour: tuple[int, int, int]
) -> None:
    """One shape with its middle at (x, y) and a radius of ``r`` pixels."""
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "triangle":
        draw.polygon([(x - r, y + r), (x + r, y + r), (x, y - r)], fill=colour)
    else:
        height = r if shape == "square" else r * 0.4
        draw.rectangle((x - r, y - height, x + r, y + height), fill=colour)


def members(number: int, rewrite_count: int = 0) -> list[tuple[str, bytes]]:
    """What the shard of scene ``number`` holds: picture, alt-text, record."""
    added = [
        {"text": text, "writer": "scenes", "prompt_sha": "", "seed": seed}
        for seed, text in enumerate(rewrites(number, rewrite_count))
    ]
    record = {"uid": uid(number), "captions": added}
    return [
        ("png", picture(number)),
        ("txt", caption(number).encode()),
        ("json", shards.sample_json(record)),
    ]


def uid(number: int) -> str:
    return pair_uid(f"http://tiny/{number}", caption(number))


def write_shards(
    folder: Path,
    count: int,
    per_shard: int = 16,
    rewrite_count: int = 0,
    change: Callable[[int, list[tuple[str, bytes]]], list[tuple[str, bytes]]] | None = None,
) -> Path:
    """A shard set of scenes 0 to ``count - 1``. ``change`` may alter a sample's members."""
    folder.mkdir(parents=True, exist_ok=True)
    index: list[dict[str, Any]] = []
    sizes: dict[str, int] = {}
    for first in range(0, count, per_shard):
        name, content = shards.shard_name(len(sizes)), bytearray()
        for number in range(first, min(first + per_shard, count)):
            parts = members(number, rewrite_count)
            block, rows = shards.sample_block(
                uid(number), change(number, parts) if change else parts
            )
            index += [
                {**row, "shard": name, "offset": row["offset"] + len(content)} for row in rows
            ]
            content += block
        (folder / name).write_bytes(bytes(content) + tars.END)
        sizes[name] = min(per_shard, count - first)
    pq.write_table(pa.Table.from_pylist(index, shards.INDEX_SCHEMA), folder / "index.parquet")
    (folder / "sizes.json").write_text(json.dumps(sizes))
    return folder


def write_model(folder: Path) -> str:
    """The path of the tiny model's configuration, usable as ``TrainSettings.model``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_32.json"
    path.write_text(json.dumps(TINY_MODEL))
    return str(path)
