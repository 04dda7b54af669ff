"""Files by name from folders, tars, ranges of tars and tar.gz; damage is found, faults have hints."""

from __future__ import annotations

from pathlib import Path

import pytest

from curate.contract import tars
from pretrain.evaluate.store import lower_extension, open_store
from tests.tiny import eval_sets

FILES = {"a/x.JPG": b"one", "a/b.c.png": b"two", "labels.csv": b"three"}
NAMES = ["a/b.c.png", "a/x.jpg", "labels.csv"]


@pytest.mark.parametrize("kind", ["folder", "set.tar", "set.tar.gz", "set.tgz"])
def test_the_same_files_however_packed(tmp_path: Path, kind: str) -> None:
    if kind == "set.tgz":
        eval_sets.tar(tmp_path / "set.tar.gz", FILES)
        path = str((tmp_path / "set.tar.gz").rename(tmp_path / kind))
    else:
        path = (
            eval_sets.folder(tmp_path / kind, FILES)
            if kind == "folder"
            else eval_sets.tar(tmp_path / kind, FILES)
        )
    with open_store(path) as store:
        assert sorted(store.names) == NAMES
        assert [store.read(name) for name in NAMES] == [b"two", b"one", b"three"]
        assert store.path == path


def test_tars_of_a_folder_in_order_with_repeated_keys_kept(tmp_path: Path) -> None:
    for number in range(2):
        eval_sets.tar(tmp_path / f"{number:05d}.tar", {"0.txt": b"from %d" % number})
    for path in (tmp_path, tmp_path / "*.tar", tmp_path / "{00000..00001}.tar"):
        with open_store(str(path)) as store:
            assert [store.read(name) for name in store.names] == [b"from 0", b"from 1"]


def test_a_changed_byte_is_found_when_read(tmp_path: Path) -> None:
    path = eval_sets.tar(tmp_path / "set.tar", {"a.txt": b"good"})
    with open_store(path) as store:
        Path(path).write_bytes(Path(path).read_bytes().replace(b"good", b"evil"))
        with pytest.raises(tars.TarDamage, match=r"set.tar: a.txt"):
            store.read("a.txt")


def test_a_cut_tar_is_named(tmp_path: Path) -> None:
    path = Path(eval_sets.tar(tmp_path / "set.tar", {"a.txt": b"good" * 999}))
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(tars.TarDamage, match=r"set\.tar"), open_store(str(path)):
        pass


@pytest.mark.parametrize(
    "name", ["missing", "missing.tar", "missing.tar.gz", "empty", "cut.tar.gz", "plain.tar.gz"]
)
def test_what_is_no_set_is_refused_with_a_hint(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    whole = Path(eval_sets.tar(tmp_path / "whole.tar.gz", {"a.txt": b"good" * 999})).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[:-20])
    (tmp_path / "plain.tar.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=rf"{name}.*hint: "), open_store(str(tmp_path / name)):
        pass


def test_a_temporary_tar_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with open_store(eval_sets.tar(tmp_path / "set.tar.gz", FILES)):
        assert list((tmp_path / "tmp").iterdir())
    assert not list((tmp_path / "tmp").iterdir())


def test_lower_extension_leaves_the_rest() -> None:
    assert [lower_extension(name) for name in ("A/B.JPG", "A.B/C", "Plain")] == [
        "A/B.jpg",
        "A.B/C",
        "Plain",
    ]
