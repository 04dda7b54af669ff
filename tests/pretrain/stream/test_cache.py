"""Arrays kept on disk are whole, made once, and travel as a path; the folder is the user's to choose."""

import multiprocessing
import os
import pickle

import numpy as np
import pytest

from pretrain.stream import cache

ROWS = np.dtype([("offset", "<i8", (3,)), ("member", "u1")])


def make(put):
    for start in (0, 2, 5):
        numbers = np.arange(start, start + 3, dtype=np.float16).reshape(-1, 1) * np.ones(
            (1, 2), np.float16
        )
        rows = np.zeros(start, ROWS)
        rows["offset"][:, 1] = start
        put({"numbers": numbers, "rows": rows})
    return {"told": ["what"]}


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_pieces_become_one_array_here_and_elsewhere(tmp_path, where):
    found = cache.arrays(str(tmp_path / "a") if where == "disk" else "", make)
    assert found.about == {"told": ["what"]}
    for held in (found, pickle.loads(pickle.dumps(found))):
        assert held["numbers"].tolist() == [[n, n] for n in (0, 1, 2, 2, 3, 4, 5, 6, 7)]
        assert held["rows"]["offset"][:, 1].tolist() == [2, 2, 5, 5, 5, 5, 5]
        assert held["rows"].dtype == ROWS
        assert isinstance(held["rows"], np.memmap) == (where == "disk")


def test_what_is_there_is_not_made_again(tmp_path):
    cache.arrays(str(tmp_path / "a"), make)
    assert (
        len(cache.arrays(str(tmp_path / "a"), lambda put: pytest.fail("made again"))["rows"]) == 7
    )


def test_one_that_fails_or_dies_leaves_nothing_that_counts(tmp_path):
    def fails(put):
        put({"numbers": np.zeros(3)})
        raise ValueError("in the midst")

    def dies():
        cache.arrays(str(tmp_path / "a"), lambda put: put({"n": np.zeros(3)}) or os._exit(9))

    with pytest.raises(ValueError, match="in the midst"):
        cache.arrays(str(tmp_path / "a"), fails)
    assert list(tmp_path.iterdir()) == []
    process = multiprocessing.get_context("fork").Process(target=dies)
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert len(list(tmp_path.iterdir())) == 1
    assert len(cache.arrays(str(tmp_path / "a"), make)["rows"]) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_folder_is_as_chosen_or_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_PIPE_CACHE", str(tmp_path / "env"))
    assert cache.folder(str(tmp_path / "own")) == str(tmp_path / "own")
    assert cache.folder() == str(tmp_path / "env")
    monkeypatch.delenv("CLIP_PIPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == str(tmp_path / "xdg" / "clip-pipe")


def test_a_folder_that_can_t_be_written_says_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match=r"can't be written.*hint: set train.cache"),
        cache.locked(str(tmp_path / "file"), "index", "x"),
    ):
        pass


def test_a_lock_is_free_again_though_a_child_still_has_its_file(tmp_path):
    with cache.locked(str(tmp_path), "copy", "x"):
        process = multiprocessing.get_context("fork").Process(target=_wait)
        process.start()
    with cache.locked(str(tmp_path), "copy", "x"):
        assert process.is_alive()
    process.kill()
    process.join(60)


def _wait():
    import time

    time.sleep(200)
