"""Descriptors are shared by all sets of a process, and go where there are none left."""

import errno
import os

import pytest

from pretrain.stream import files
from pretrain.stream.files import OpenFiles


@pytest.fixture
def opened(tmp_path):
    (tmp_path / "a").touch()
    return lambda: os.open(tmp_path / "a", os.O_RDONLY)


def test_the_one_used_longest_ago_goes_first_whoever_opened_it(opened, monkeypatch):
    monkeypatch.setattr(files, "_most", lambda: 3)
    held, one, two = OpenFiles(), files.owner(), files.owner()
    first = held.get(one, 0, opened)
    held.get(two, 0, opened)
    held.get(one, 1, opened)
    assert held.get(one, 0, pytest.fail) == first
    held.get(two, 1, opened)
    assert (held.of(one), held.of(two)) == ([1, 0], [1])
    held.close_others(one, {0})
    assert (held.of(one), held.of(two)) == ([0], [1])
    held.close_others(one, ())
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(first)


def test_with_no_descriptor_left_others_are_closed(opened):
    held, own = OpenFiles(), files.owner()
    for shard in range(4):
        held.get(own, shard, opened)

    def scarce():
        if len(held.of(own)) > 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return opened()

    held.get(own, 9, scarce)
    assert held.of(own) == [3, 9]

    def never():
        raise OSError(errno.EMFILE, "Too many open files")

    with pytest.raises(OSError, match="Too many"):
        held.get(own, 10, never)


def test_no_more_than_a_part_of_what_the_system_allows(monkeypatch):
    for allowed, most in ((160, 40), (4, 8), (1 << 20, 256)):
        monkeypatch.setattr(files.resource, "getrlimit", lambda _, n=allowed: (n, n))
        assert files._most() == most
