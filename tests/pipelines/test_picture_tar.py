"""A tar of pictures is there whole, or not at all."""

from __future__ import annotations

from pathlib import Path

from curate.contract import parts
from pipelines.picture_tar import PictureTar


def test_a_tar_is_there_when_it_is_committed(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.tar"
    pictures = {"a": b"\xff\xd8\xffone", "c": b"\xff\xd8\xfftwo"}
    writer = PictureTar(str(path))
    writer.add(["a", "b", "c"], [pictures["a"], None, pictures["c"]])
    writer.finish()
    assert not path.exists()
    assert writer.commit().told()["bytes"] == path.stat().st_size
    writer.close()
    assert parts.read_images(str(path)) == pictures


def test_what_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    writer = PictureTar(str(tmp_path / "part-00000.tar"))
    writer.add(["a"], [b"\xff\xd8\xffone"])
    writer.close()
    assert not [*tmp_path.iterdir()]
