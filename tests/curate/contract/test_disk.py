"""Files on disk appear whole, and of several writers one wins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curate.contract import disk, storage

ROOT = Path(__file__).resolve().parent.parent.parent.parent


def winners(write: Callable[[int], bool], count: int = 8) -> list[int]:
    """Which of so many threads, begun together, wrote."""
    gate, won = threading.Barrier(count), list[int]()

    def one(number: int) -> None:
        gate.wait()
        if write(number):
            won.append(number)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


@pytest.mark.parametrize("has_links", [True, False])
def test_one_of_eight_creates_and_one_swaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:

        def refuse(*_: object) -> None:
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr("os.link", refuse)
    path = str(tmp_path / "deep" / "file")
    [first] = winners(lambda n: storage.create_text(path, f"{n}"))
    assert storage.read_text(path) == f"{first}"
    [second] = winners(lambda n: storage.swap_text(path, f"again {n}", f"{first}"))
    assert storage.read_text(path) == f"again {second}"
    assert not storage.swap_text(path, "never", f"{first}")
    assert not storage.create_text(path, "never")
    assert not storage.swap_text(path, "never", None)
    assert not storage.swap_text(str(tmp_path / "none"), "never", "x")
    assert os.listdir(tmp_path / "deep") == ["file"]
    assert os.listdir(tmp_path) == ["deep"]


@pytest.mark.parametrize("look", [1, 2])
def test_a_lock_that_goes_while_it_is_looked_at_is_let_go_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    """Its last holder took the name away; a descriptor left open would hold up all others for ever."""
    path = str(tmp_path / "file")
    storage.write_text(path, "old")
    real, looks = os.stat, []

    def stat(name: Any, **named: Any) -> os.stat_result:
        if str(name).endswith("lock"):
            looks.append(name)
            if len(looks) == look:
                os.remove(name)
        return real(name, **named)

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("os.stat", stat)
    assert disk.swap(path, "new", "old")
    assert len(os.listdir("/proc/self/fd")) == before
    assert storage.read_text(path) == "new"


def test_eight_processes_count_together(tmp_path: Path) -> None:
    code = (
        "import sys; from curate.contract import storage\n"
        "for _ in range(10):\n"
        "    while not storage.swap_text(sys.argv[1], str(int(held := storage.read_text(sys.argv[1])) + 1), held): pass\n"
    )
    path = str(tmp_path / "count")
    storage.write_text(path, "0")
    processes = [subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert storage.read_text(path) == "40"
    assert os.listdir(tmp_path) == ["count"]


def test_a_lost_answer_is_not_another_s_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def twice(source: str, target: str) -> None:
        real(source, target)
        real(source, target)  # the network disk's client asks again

    monkeypatch.setattr("os.link", twice)
    assert storage.create_text(str(tmp_path / "a"), "mine")


def test_who_dies_with_the_lock_frees_it(tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    storage.write_text(path, "1")
    code = (
        "import sys; from curate.contract import disk\n"
        "with disk._alone(sys.argv[1]):\n    print('held', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    waiting = threading.Thread(target=storage.swap_text, args=(path, "2", "1"))
    waiting.start()
    assert storage.read_text(path) == "1"
    process.send_signal(signal.SIGKILL)
    process.wait()
    waiting.join(30)
    assert storage.read_text(path) == "2"


def test_an_error_inside_comes_out_and_leaves_no_lock(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk._alone(str(tmp_path / "a")):
        raise FileNotFoundError
    assert os.listdir(tmp_path) == []


def test_a_full_disk_s_file_is_named(tmp_path: Path) -> None:
    import errno
    import pickle

    path = str(tmp_path / "part")
    with pytest.raises(OSError, match="No space left") as caught, storage.committed(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert pickle.loads(pickle.dumps(caught.value)).filename == path  # also from a worker
    with pytest.raises(OSError, match="reading") as caught, storage.committed(path):
        raise OSError(errno.EIO, "reading")
    assert caught.value.filename is None
    assert list(tmp_path.iterdir()) == []
